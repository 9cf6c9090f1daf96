"""The accelerator with a microprogram in the cycle model: the microprogram, instruction by instruction.

What it does next depends on descriptors, never on features or weights; so these are not computed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from host.schedule.channels import Memory, Pace
from host.schedule.launch import Launch
from host.schedule.memory import params_name
from hw import axi, params
from hw.config import Config
from hw.microcode.arithmetic import REGISTER_BITS
from hw.microcode.instructions import LAYOUT, Action, Condition, Mode, Op, Source, Target
from hw.microcode.mac import steps_under_way
from hw.microcode.program import WORD_BYTES, assemble

INSTRUCTION = 2
"""Cycles of an instruction that waits for nothing."""
ASKING = 1
"""Cycles of one that waits, before it asks memory."""

_ALL = (1 << REGISTER_BITS) - 1
_SIGN = 1 << (REGISTER_BITS - 1)


@dataclass(frozen=True)
class Span:
    """One job: when it begins and ends, its steps, the cycles in which it waits for weights, and the bytes it moves."""

    start: int
    end: int
    steps: int
    waited: int
    read: int
    written: int


@lru_cache(maxsize=8)
def _decoded(config: Config) -> tuple[tuple[tuple[int, int, int], ...], int, int]:
    """The instructions as (op, mode, operand), the place where a job begins, and the number of registers."""
    assembler = assemble(config)
    op, mode, operand = (LAYOUT[name] for name in ("op", "mode", "operand"))
    fields = tuple(
        (
            word >> op.offset,
            word >> mode.offset & (1 << mode.width) - 1,
            word >> operand.offset & (1 << operand.width) - 1,
        )
        for word in assembler.words()
    )
    return fields, assembler.place("job"), assembler.used


class Interpreter:
    """One launch on one compute unit.

    Attributes
    ----------
    end : int
        Cycles from start to done.
    spans : list of Span
        By job.
    """

    def __init__(self, launch: Launch, memory: Memory, unit: int = 0) -> None:
        config = launch.program.config
        self._config, self._memory = config, memory
        work = launch.units[unit]
        self._words = self._known_words(launch, work.descriptors_address, work.descriptors)
        self._arguments = {Source.DESCRIPTORS: work.descriptors_address, Source.JOBS: len(work.descriptors)}
        self._pace = Pace(memory.interval(config))
        self._writes = Pace(memory.interval(config))
        self.now = 0
        self._read = self._written = 0
        self.end = 0
        self.spans: list[Span] = []

    @staticmethod
    def _known_words(launch: Launch, address: int, descriptors: np.ndarray) -> dict[int, int]:
        """Memory, as far as control depends on it: descriptors and shifts."""
        words = dict(enumerate(np.frombuffer(descriptors.tobytes(), "<u4").tolist(), address // WORD_BYTES))
        for name in launch.layers:
            layer, first = launch.program.layer(name), launch.memory[params_name(name)].address
            records = np.zeros(len(layer.shifts), params.DTYPE)
            records["shift"] = layer.shifts
            found = np.frombuffer(records.tobytes(), "<u4").tolist()
            words.update(enumerate(found, first // WORD_BYTES))
        return words

    def run(self) -> None:
        """To the end of the launch."""
        fields, job_begins, count = _decoded(self._config)
        registers = [0] * count
        words, arguments = self._words, self._arguments
        acc = index = carry = word = at = now = steps = waited = 0
        begun: tuple[int, ...] | None = None
        while True:
            if at == job_begins:
                reached = (now, steps, waited, self._read, self._written)
                if begun is not None:
                    moved = (after - before for after, before in zip(reached[1:], begun[1:], strict=True))
                    self.spans.append(Span(begun[0], now, *moved))
                begun = reached
            op, mode, operand = fields[at]
            at += 1
            now += INSTRUCTION
            if op < Op.JUMP:
                place = operand + index if mode == Mode.INDEXED else operand
                if op >= Op.STORE:
                    if op == Op.ADD_TO:
                        acc = registers[place] + acc & _ALL
                    elif op == Op.UP:
                        acc = registers[place] + 1 & _ALL
                    elif op == Op.DOWN:
                        acc = registers[place] - 1 & _ALL
                    registers[place] = acc
                    continue
                if mode == Mode.CONSTANT:
                    value = operand
                elif mode == Mode.OUTSIDE:
                    value = arguments[Source(operand)] if operand in arguments else _outside(operand, word)
                else:
                    value = registers[place]
                if op == Op.LOAD:
                    acc = value
                elif op == Op.ADD:
                    acc = acc + value & _ALL
                elif op == Op.SUB:
                    carry = acc >= value
                    acc = acc - value & _ALL
                elif op == Op.AND:
                    acc &= value
            elif op == Op.JUMP:
                at = operand
            elif op == Op.JUMP_IF:
                if mode == Condition.ZERO:
                    taken = acc == 0
                elif mode == Condition.NOT_ZERO:
                    taken = acc != 0
                elif mode == Condition.NEGATIVE:
                    taken = acc & _SIGN != 0
                else:
                    taken = bool(carry)
                if taken:
                    at = operand
            elif op == Op.RETURN:
                at = registers[operand]
            elif op == Op.SET:
                if operand == Target.INDEX:
                    index = acc
            elif operand == Action.READ:
                word = words.get(acc // WORD_BYTES, 0)
                now = self._one_word(now)
            elif operand == Action.STEPS:
                before = now
                now = self._steps(acc, now)
                steps += acc
                waited += max(0, now - before - acc * self._config.lanes)
            elif operand == Action.WRITE:
                now = self._write(now)
            elif operand == Action.SHIFT:
                now += 1 + acc
            elif operand == Action.FINISH:
                break
        self.end = now

    def _one_word(self, now: int) -> int:
        """When the instruction is through that ended in this cycle but for its word."""
        self._read += WORD_BYTES
        return self._pace.beats(now + ASKING + self._memory.latency, 1)

    def _write(self, now: int) -> int:
        self._written += self._config.lanes
        return self._writes.beats(now + ASKING, 1) + self._memory.latency

    def _steps(self, count: int, now: int) -> int:
        """Bursts of a step's weights, as many as may be outstanding."""
        lanes, latency = self._config.lanes, self._memory.latency
        self._read += WORD_BYTES * lanes * count
        ends: deque[int] = deque(maxlen=axi.OUTSTANDING)
        asked = now + ASKING - 1
        last = now
        for _ in range(count):
            asked += 1
            if len(ends) == axi.OUTSTANDING:
                asked = max(asked, ends[0] + 1)
            last = self._pace.beats(max(asked + latency, last + 1), lanes)
            ends.append(last)
        return last + steps_under_way(self._config)


def _outside(source: int, word: int) -> int:
    if source == Source.MEMORY:
        return word
    if Source.BYTE_0 <= source <= Source.BYTE_3:
        return word >> 8 * (source - Source.BYTE_0) & 0xFF
    if source in (Source.HALF_0, Source.HALF_1):
        return word >> 8 * (source - Source.HALF_0) & 0xFFFF
    return 0  # of outputs, on which nothing depends
