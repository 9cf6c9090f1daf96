"""The microprogram's instructions: 16 bits, one operand, an accumulator; and the assembler that writes them down."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

from amaranth.lib import data

from hw.config import ConfigError

OPERAND_BITS = 10
"""Of a register's number, a constant, or an instruction's address."""

LAYOUT = data.StructLayout({"operand": OPERAND_BITS, "mode": 2, "op": 4})
"""Of an instruction."""


class Op(IntEnum):
    """What an instruction does. `value` is what the mode makes of the operand; `acc` the accumulator.

    Those before JUMP calculate; of these, those from STORE on write a register.
    """

    LOAD = 0
    """acc = value"""
    ADD = 1
    """acc += value"""
    SUB = 2
    """acc -= value; the carry is set unless it borrows"""
    AND = 3
    """acc &= value"""
    MAX = 4
    """acc = the larger of each of its signed bytes and the value's"""
    MIN = 5
    """acc = the smaller of each of its signed bytes and the value's"""
    STORE = 6
    """register = acc"""
    ADD_TO = 7
    """register += acc; acc = register"""
    UP = 8
    """register += 1; acc = register"""
    DOWN = 9
    """register -= 1; acc = register"""
    JUMP = 10
    """Go on at the operand."""
    JUMP_IF = 11
    """Go on at the operand if the mode's condition holds."""
    RETURN = 12
    """Go on at the place that the register holds."""
    SET = 13
    """Give acc to what the operand's bit names (`Target`)."""
    GO = 14
    """Do what the operand's bit names (`Action`), and wait for it."""


class Mode(IntEnum):
    """What the operand stands for."""

    REGISTER = 0
    INDEXED = 1
    """The register at the operand plus the index."""
    CONSTANT = 2
    OUTSIDE = 3
    """One of `Source`."""


class Condition(IntEnum):
    """Of JUMP_IF, in the place of the mode. A carry is that of the last SUB."""

    ZERO = 0
    NOT_ZERO = 1
    NEGATIVE = 2
    CARRY = 3


class Source(IntEnum):
    """Values from outside the registers."""

    MEMORY = 0
    """The word read last."""
    BYTE_0, BYTE_1, BYTE_2, BYTE_3 = 4, 5, 6, 7
    HALF_0, HALF_1 = 8, 10
    OUTPUT = 12
    """The LANES bytes of the output."""
    SUM = 13
    """The first lane's accumulator, rounded after its shift; beyond an int8 it need not be exact."""
    DESCRIPTORS = 14
    JOBS = 15
    """The launch's arguments."""


class Target(IntFlag):
    """What SET gives the accumulator to."""

    INDEX = 1
    FEATURE = 2
    """The first word of the steps to come in the source buffer."""
    STRIDE = 4
    """Words from one step's features to the next's."""
    WEIGHT = 8
    """Byte address of the weights of the steps to come."""
    SKIP = 16
    """So many steps' weights are passed over."""
    PUSH = 32
    """The output's last byte, saturated; the others move up, the first one leaves."""
    OUTPUT = 64
    """All of the output."""
    BUFFERS = 128
    """Bit 0: the source buffer is B; bit 1: the destination is."""


class Action(IntFlag):
    """What GO does."""

    READ = 1
    """Read the word of memory at byte address acc."""
    FILL = 2
    """Write the word read last into the source buffer, at word acc."""
    KEEP = 4
    """Write the output into the destination buffer, at byte acc."""
    WRITE = 8
    """Write the output to memory, at byte address acc."""
    STEPS = 16
    """Execute acc steps."""
    SHIFT = 32
    """Shift the first lane's accumulator right by acc, keeping the last bit that leaves for the rounding."""
    CLEAR = 64
    """Clear the accumulators."""
    BIAS = 128
    """Add acc to the first lane's accumulator, and go to the next lane."""
    NEXT = 256
    """Go to the next lane."""
    FINISH = 512
    """The launch is complete: wait for the next one."""


@dataclass
class Assembler:
    """Instructions in the order in which they are written, with registers and labels by name.

    Attributes
    ----------
    registers : dict of str to int
        Their numbers, by their names.
    used : int
        How many there are.
    """

    registers: dict[str, int] = field(default_factory=dict)
    used: int = 0
    _code: list[tuple[Op, int, int | str]] = field(default_factory=list)
    _labels: dict[str, int] = field(default_factory=dict)

    def label(self, name: str) -> None:
        """Name the place of the next instruction.

        Raises
        ------
        ValueError
            If there is one of that name.
        """
        if name in self._labels:
            raise ValueError(f"label {name!r} is there already")
        self._labels[name] = len(self._code)

    def place(self, label: str) -> int:
        """Number of the instruction at a label. Raises KeyError if there is none."""
        return self._labels[label]

    def block(self, name: str, count: int) -> int:
        """Number of the first of `count` registers in a row; a name stands for the same ones ever after."""
        if name not in self.registers:
            self.registers[name] = self.used
            self.used += count
        return self.registers[name]

    def _emit(self, op: Op, mode: int, operand: int | str) -> None:
        self._code.append((op, mode, operand))

    def _on(self, op: Op, value: str | int | Source, indexed: bool = False) -> None:
        """A register by its name, a constant, or a source."""
        if isinstance(value, Source):
            self._emit(op, Mode.OUTSIDE, int(value))
        elif isinstance(value, str):
            self._emit(op, Mode.INDEXED if indexed else Mode.REGISTER, self.block(value, 1))
        else:
            self._emit(op, Mode.CONSTANT, value)

    def load(self, value: str | int | Source) -> None:
        self._on(Op.LOAD, value)

    def add(self, value: str | int | Source) -> None:
        self._on(Op.ADD, value)

    def sub(self, value: str | int | Source) -> None:
        self._on(Op.SUB, value)

    def mask(self, value: str | int) -> None:
        self._on(Op.AND, value)

    def max(self, value: str) -> None:
        self._on(Op.MAX, value)

    def min(self, value: str) -> None:
        self._on(Op.MIN, value)

    def store(self, name: str) -> None:
        self._on(Op.STORE, name)

    def add_to(self, name: str) -> None:
        self._on(Op.ADD_TO, name)

    def up(self, name: str) -> None:
        self._on(Op.UP, name)

    def down(self, name: str) -> None:
        self._on(Op.DOWN, name)

    def indexed(self, op: Op, name: str) -> None:
        """An instruction on the register at `name` plus the index."""
        self._on(op, name, indexed=True)

    def move(self, value: str | int | Source, name: str, *, label: bool = False) -> None:
        """register = value, by way of the accumulator; or the place of a label"""
        if label:
            self._emit(Op.LOAD, Mode.CONSTANT, str(value))
        else:
            self.load(value)
        self.store(name)

    def jump(self, label: str) -> None:
        self._emit(Op.JUMP, 0, label)

    def jump_if(self, condition: Condition, label: str) -> None:
        self._emit(Op.JUMP_IF, condition, label)

    def call(self, label: str) -> None:
        """Go on at a label, until its `ret`. The accumulator is lost; nothing calls itself."""
        back = f"{label}: {len(self._code)}"
        self._emit(Op.LOAD, Mode.CONSTANT, back)
        self.store(f"{label}: return")
        self.jump(label)
        self.label(back)

    def go_on_at(self, name: str) -> None:
        """Go on at the place that a register holds."""
        self._on(Op.RETURN, name)

    def ret(self, label: str) -> None:
        """Go back to after the `call` of a label."""
        self._on(Op.RETURN, f"{label}: return")

    def set(self, target: Target) -> None:
        self._emit(Op.SET, 0, int(target))

    def go(self, action: Action) -> None:
        self._emit(Op.GO, 0, int(action))

    def words(self) -> list[int]:
        """The instructions.

        Raises
        ------
        ConfigError
            If they, or the registers, or a constant are too many for an operand.
        KeyError
            If a label is nowhere.
        """
        words = []
        for op, mode, operand in self._code:
            value = self._labels[operand] if isinstance(operand, str) else operand
            if not 0 <= value < 1 << OPERAND_BITS:
                raise ConfigError(f"the microprogram needs an operand of {value}, of less than {1 << OPERAND_BITS}")
            words.append(value | mode << OPERAND_BITS | op << (OPERAND_BITS + 2))
        if len(words) > 1 << OPERAND_BITS or self.used > 1 << OPERAND_BITS:
            raise ConfigError(
                f"the microprogram has {len(words)} instructions and {self.used} registers, "
                f"more than {1 << OPERAND_BITS}"
            )
        return words
