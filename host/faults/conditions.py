"""Conditions: what is wrong with the accelerator during a whole run: its clock, stuck bits.

They depend on no image and no seed: the same operands meet the same errors, however a batch is split.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hw import masks
from hw.config import Config
from hw.delays import WORD, DelayError, Table, bank_names, register_bits
from hw.errors import RedlineError
from hw.files import parse_json
from hw.masks import BankMasks

ALL_ONES = 0xFFFFFFFF


class ConditionError(RedlineError, ValueError):
    """Conditions cannot hold together, or not on this accelerator; the message says why."""


class Clock(NamedTuple):
    """A clock on a routed array.

    Attributes
    ----------
    table : Table
        The array's delays, as routed.
    period_ps : int
        A path as long as the period arrives in time.
    voltage_scale : float
        Factor on all delays: above 1 for lower voltage or slower silicon.
    """

    table: Table
    period_ps: int
    voltage_scale: float

    @property
    def delays(self) -> Table:
        """The table with the scale applied."""
        return self.table.derated(self.voltage_scale)


class StuckBit(NamedTuple):
    """One bit of one lane's register that keeps its value."""

    lane: int
    bank: str
    bit: int
    value: int


@dataclass(frozen=True, eq=False, repr=False)
class Conditions:
    """A clock, stuck bits, or both.

    Attributes
    ----------
    clock : Clock or None
        None: everything is in time.
    stuck : tuple of StuckBit
        Sorted; each bit once.
    """

    clock: Clock | None = None
    stuck: tuple[StuckBit, ...] = ()

    def __post_init__(self) -> None:
        if self.clock is not None:
            period, scale = self.clock.period_ps, self.clock.voltage_scale
            if not (_is_whole(period) and period >= 0):
                raise ConditionError(f"a clock period is a whole number of ps, not {period!r}")
            if not (isinstance(scale, (int, float)) and scale > 0 and math.isfinite(scale)):
                raise ConditionError(f"the factor on delays must be positive, not {scale!r}")
        for lane, bank, bit, value in self.stuck:
            whole = all(_is_whole(number) for number in (lane, bit, value))
            if not (whole and isinstance(bank, str) and lane >= 0 and 0 <= bit < WORD and value in (0, 1)):
                raise ConditionError(
                    f"a stuck bit is a lane from 0, a bank's name, a bit from 0 to {WORD - 1}, and 0 or 1, not "
                    f"{(lane, bank, bit, value)!r}"
                )

    def __add__(self, other: Conditions) -> Conditions:
        """Both at once.

        Raises
        ------
        ConditionError
            If they name different clocks, or a bit stuck at both values.
        """
        clock = self.clock or other.clock
        if self.clock is not None and other.clock is not None and self.digest_of_clock != other.digest_of_clock:
            raise ConditionError(
                f"an accelerator has one clock, not two (periods {self.clock.period_ps} and {other.clock.period_ps} ps)"
            )
        stuck = tuple(sorted({*self.stuck, *other.stuck}))
        for bit, following in zip(stuck, stuck[1:], strict=False):
            if bit[:3] == following[:3]:
                raise ConditionError(f"bit {bit.bit} of lane {bit.lane}'s {bit.bank} cannot be stuck at both 0 and 1")
        return Conditions(clock, stuck)

    @cached_property
    def digest_of_clock(self) -> str:
        """SHA-256 of the clock and its table, hexadecimal; empty without a clock."""
        if self.clock is None:
            return ""
        named = [self.clock.table.hash, self.clock.period_ps, self.clock.voltage_scale]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything, hexadecimal."""
        return hashlib.sha256(json.dumps([self.digest_of_clock, self.stuck]).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Conditions) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Conditions({self})"

    def __str__(self) -> str:
        clock = []
        if self.clock is not None:
            scale = "" if self.clock.voltage_scale == 1 else f" at delays x {self.clock.voltage_scale:.3f}"
            period, safe = self.clock.period_ps, self.clock.delays.onset_ps
            clock = [f"period {period} ps, safe from {safe} ps{scale}, delay table {self.clock.table.hash[:12]}"]
        return ", ".join(
            [*clock, *(f"lane {bit.lane} {bit.bank} bit {bit.bit} stuck at {bit.value}" for bit in self.stuck)]
        )

    @property
    def sites(self) -> tuple[str, ...]:
        """What the canary must show to work: "clock", "stuck"."""
        return (*(("clock",) if self.clock is not None else ()), *(("stuck",) if self.stuck else ()))

    def at(self, period_ps: int) -> Conditions:
        """The same with another clock period."""
        assert self.clock is not None
        return replace(self, clock=self.clock._replace(period_ps=period_ps))

    # -- use

    def check(self, config: Config) -> None:
        """Raise `ConditionError` unless the accelerator has what the conditions name."""
        if self.clock is not None:
            table = self.clock.table
            if table.vec != config.vec:
                raise ConditionError(
                    f"the delay table is of lanes with {table.vec} products a step, this accelerator adds "
                    f"{config.vec}: use a table routed for vec={config.vec}"
                )
            if len(table.lanes) < config.lanes:
                raise ConditionError(
                    f"the delay table has {len(table.lanes)} lanes, this accelerator {config.lanes}: use a table "
                    f"routed with at least as many, since lanes are routed differently"
                )
            for lane in range(config.lanes):
                if table.bank(lane, "accumulator").width != WORD:
                    raise ConditionError(f"lane {lane}'s accumulator has other than {WORD} bits in the delay table")
        for bit in self.stuck:
            if bit.lane >= config.lanes:
                raise ConditionError(f"no lane {bit.lane} to be stuck; this accelerator has {config.lanes}")
            if bit.bank not in bank_names(config.vec):
                raise ConditionError(
                    f"no register bank {bit.bank!r} to be stuck; there are {', '.join(bank_names(config.vec))}"
                )
            width = self._width(bit.bank, bit.lane)
            if bit.bit >= width:
                raise ConditionError(f"{bit.bank} has bits 0 to {width - 1}, not {bit.bit}")

    def _width(self, bank: str, lane: int) -> int:
        return register_bits(bank) if self.clock is None else self.clock.table.bank(lane, bank).width

    def banks(self, config: Config) -> Mapping[str, BankMasks]:
        """The register banks in which something is late or stuck, by name; empty if nothing is.

        Raises
        ------
        ConditionError
            As `check`.
        """
        return _banks(self, config.lanes, config.vec)

    def records(self, config: Config) -> npt.NDArray[np.void]:
        """What the gateware's instrumentation loads: records of `hw.masks.DTYPE`."""
        return masks.encode(self.banks(config), config.vec)

    # -- files

    def to_json(self) -> str:
        """Everything, the delay table included."""
        clock = None
        if self.clock is not None:
            clock = {
                "table": self.clock.table.to_json(),
                "period_ps": self.clock.period_ps,
                "voltage_scale": self.clock.voltage_scale,
            }
        return json.dumps({"clock": clock, "stuck": self.stuck})

    @staticmethod
    def from_json(text: str) -> Conditions:
        """The inverse of `to_json`; `ConditionError` if the text is something else."""
        try:
            data: dict[str, Any] = parse_json(text, "the text")
            clock = data["clock"]
            if clock is not None:
                clock = Clock(Table.from_json(clock["table"]), clock["period_ps"], clock["voltage_scale"])
            return Conditions(clock, tuple(sorted(StuckBit(*bit) for bit in data["stuck"])))
        except (ValueError, TypeError, KeyError, DelayError) as error:
            raise ConditionError(f"not conditions: {error}") from error


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


@lru_cache(maxsize=64)
def _banks(conditions: Conditions, lanes: int, vec: int) -> Mapping[str, BankMasks]:
    conditions.check(Config(lanes=lanes, vec=vec, port_bits=8 * vec))
    delays = None if conditions.clock is None else conditions.clock.delays
    period = 0 if conditions.clock is None else conditions.clock.period_ps
    found = {}
    for name in bank_names(vec):
        stuck = [bit for bit in conditions.stuck if bit.bank == name]
        late = delays is not None and any(delays.bank(lane, name).onset_ps > period for lane in range(lanes))
        if not stuck and not late:
            continue
        widths = [conditions._width(name, lane) for lane in range(lanes)]
        # (outputs, masks of the bank's signals in their order) of each group of each lane
        groups: list[list[tuple[int, tuple[int, ...]]]] = []
        signals = 4 if name == "accumulator" else 2
        for lane in range(lanes):
            if delays is None:
                groups.append([((1 << widths[lane]) - 1, (ALL_ONES,) * signals)])
            else:
                groups.append([(group.output, group.seen) for group in delays.bank(lane, name).groups(period)])
        most = max(len(own) for own in groups)
        for own in groups:
            own += [(0, (ALL_ONES,) * signals)] * (most - len(own))
        outputs = np.array([[output for output, _ in own] for own in groups], np.uint32)
        seen = [np.array([[s[at] for _, s in own] for own in groups], np.uint32) for at in range(signals)]
        keep, forced = np.full(lanes, ALL_ONES, np.uint32), np.zeros(lanes, np.uint32)
        for bit in stuck:
            one = np.uint32(1 << bit.bit)
            if bit.value:
                forced[bit.lane] |= one
            else:
                keep[bit.lane] &= ~one
        found[name] = BankMasks(
            a=seen[0],
            s=seen[-1],
            outputs=outputs,
            bias=seen[1] if signals == 4 else None,
            select=seen[2] if signals == 4 else None,
            keep=keep,
            set=forced,
            sign=np.array([1 << (width - 1) for width in widths], np.uint32),
        )
    return found
