"""The microprogram: it fits every build that can have one, uses what it has, and reads the descriptor as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hw import descriptor
from hw.microcode.instructions import LAYOUT, OPERAND_BITS, Mode, Op
from hw.microcode.program import PLACE, UNUSED, assemble
from tests.hw.stage import MICROCODE


@pytest.mark.parametrize("lanes", [2, 4])
@pytest.mark.parametrize("columns", [1, 256])
def test_the_largest_and_the_least_fit_their_memories(lanes: int, columns: int) -> None:
    assembler = assemble(replace(MICROCODE, lanes=lanes, pool_columns=columns))
    assert len(assembler.words()) <= 1 << OPERAND_BITS
    assert assembler.used <= 1 << OPERAND_BITS


def test_every_field_but_the_unused_has_a_register_that_something_reads() -> None:
    assembler = assemble(MICROCODE)
    operand, mode, op = (LAYOUT[name] for name in ("operand", "mode", "op"))
    read = {
        word >> operand.offset & (1 << operand.width) - 1
        for word in assembler.words()
        if word >> mode.offset & 3 == Mode.REGISTER and word >> op.offset not in (Op.STORE, Op.JUMP, Op.JUMP_IF)
    }
    for field in descriptor.FIELDS:
        if field.name == "flags":
            assert {assembler.registers[name] for name in ("flags_low", "flags_high")} <= read
        elif field.name in UNUSED:
            assert field.name not in assembler.registers
        else:
            assert assembler.registers[field.name] in read, field.name


def test_places_do_not_overlap() -> None:
    registers = assemble(MICROCODE).registers
    numbers = [registers[f"{place}.{name}"] for place in ("conv", "store", "pool") for name in PLACE]
    assert len(set(numbers)) == 3 * len(PLACE)
    rows = [range(registers[name], registers[name] + MICROCODE.pool_columns) for name in ("above", "above2")]
    taken = {*rows[0], *rows[1]}
    assert len(taken) == 2 * MICROCODE.pool_columns
    assert not taken & set(numbers)
