"""The assembler: what it writes is what was meant, and what an instruction cannot hold is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.config import ConfigError
from hw.microcode.instructions import (
    LAYOUT,
    OPERAND_BITS,
    Action,
    Assembler,
    Condition,
    Mode,
    Op,
    Source,
    Target,
)


def fields(word: int) -> tuple[int, int, int]:
    """(op, mode, operand) by the layout that the engine decodes with."""
    return tuple(  # type: ignore[return-value]
        word >> LAYOUT[name].offset & (1 << LAYOUT[name].width) - 1 for name in ("op", "mode", "operand")
    )


@given(st.integers(0, (1 << OPERAND_BITS) - 1))
def test_constants_are_kept_and_registers_are_numbered_in_their_order(constant: int) -> None:
    a = Assembler()
    a.load(constant)
    a.store("first")
    a.add_to("second")
    a.indexed(Op.LOAD, "first")
    a.load(Source.SUM)
    a.set(Target.OUTPUT)
    a.go(Action.FINISH)
    assert [fields(word) for word in a.words()] == [
        (Op.LOAD, Mode.CONSTANT, constant),
        (Op.STORE, Mode.REGISTER, 0),
        (Op.ADD_TO, Mode.REGISTER, 1),
        (Op.LOAD, Mode.INDEXED, 0),
        (Op.LOAD, Mode.OUTSIDE, Source.SUM),
        (Op.SET, 0, Target.OUTPUT),
        (Op.GO, 0, Action.FINISH),
    ]


def test_jumps_go_to_labels_before_and_after() -> None:
    a = Assembler()
    a.label("top")
    a.jump_if(Condition.CARRY, "end")
    a.jump("top")
    a.label("end")
    a.jump("end")
    assert [fields(word) for word in a.words()] == [
        (Op.JUMP_IF, Condition.CARRY, 2),
        (Op.JUMP, 0, 0),
        (Op.JUMP, 0, 2),
    ]


def test_a_call_leaves_where_to_go_on() -> None:
    a = Assembler()
    a.call("sub")
    a.jump("end")
    a.label("sub")
    a.ret("sub")
    a.label("end")
    words = [fields(word) for word in a.words()]
    assert words[0] == (Op.LOAD, Mode.CONSTANT, 3)
    assert words[1][0] == Op.STORE
    assert words[2] == (Op.JUMP, 0, 4)
    assert words[4] == (Op.RETURN, Mode.REGISTER, words[1][2])


def test_registers_in_a_row_are_not_shared_with_others() -> None:
    a = Assembler()
    assert a.block("row", 5) == 0
    assert a.block("after", 1) == 5
    assert a.block("row", 5) == 0
    assert a.used == 6


def test_an_operand_that_does_not_fit_is_refused() -> None:
    a = Assembler()
    a.load(1 << OPERAND_BITS)
    with pytest.raises(ConfigError, match="the microprogram needs an operand of 1024, of less than 1024"):
        a.words()


def test_more_registers_or_instructions_than_can_be_named_are_refused() -> None:
    a = Assembler()
    a.block("many", (1 << OPERAND_BITS) + 1)
    with pytest.raises(ConfigError, match="has 0 instructions and 1025 registers, more than 1024"):
        a.words()
    a = Assembler()
    for _ in range((1 << OPERAND_BITS) + 1):
        a.load(0)
    with pytest.raises(ConfigError, match="has 1025 instructions and 0 registers"):
        a.words()


def test_labels_are_there_once() -> None:
    a = Assembler()
    a.label("here")
    with pytest.raises(ValueError, match="label 'here' is there already"):
        a.label("here")
    a.jump("nowhere")
    with pytest.raises(KeyError, match="nowhere"):
        a.words()
