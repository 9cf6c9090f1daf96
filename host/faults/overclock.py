"""Overclocking: a clock faster than the routed paths, whose errors follow from operands, history and delays alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from host.faults.conditions import Clock, Conditions
from host.faults.models import Fault
from host.faults.plan import FaultPlan
from host.faults.spec import Spec, name_of, value_spec
from host.program.program import Program
from hw.delays import Table
from hw.errors import RedlineError
from sim.timing import shipped


class BeyondModel(RedlineError, ValueError):
    """At this clock, parts fail that the model does not cover; the message says which, and from which clock on."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Overclock(Fault):
    """Run the accelerator at a clock at which operand bits may arrive late at the adders' registers.

    No randomness: the same input at the same clock gives the same errors. Modelled are all adders between registers:
    the levels of the adder tree and the accumulator with its load multiplexer (docs/architecture.md, Overclocking).
    The multiplier, the requantiser, control and memories are not; beyond the clock at which the first of them would
    fail (`Table.unmodelled`), the model says nothing.

    Parameters
    ----------
    table : Table, or path of one
        Delays of the routed array, one entry a lane. The accelerator's lane i is the table's lane i. By default the
        first of those that come with Redline, 16 lanes of 8 (`sim.timing.shipped`).
    mhz, period_ns : float
        The clock, one of the two. Rounded down to whole ps.
    voltage_scale : float
        Factor on all delays: above 1 for a lower voltage, or silicon slower than the table's corner.
    beyond_model : bool
        Allow clocks at which something fails that the model does not cover.

    Raises
    ------
    ValueError
        If a value is out of range.
    BeyondModel
        If the clock is beyond the model.
    DelayError
        If the table cannot be read.
    """

    table: Table | Path | str | None = None
    mhz: float | None = None
    period_ns: float | None = None
    voltage_scale: float = 1.0
    beyond_model: bool = False

    def __post_init__(self) -> None:
        if (self.mhz is None) == (self.period_ns is None):
            raise ValueError("give the clock as mhz= or as period_ns=, one of the two")
        for name in ("mhz", "period_ns", "voltage_scale"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive, not {value}")
        if self.period_ps < 1:
            raise ValueError("a clock period must be at least 1 ps")
        if self.table is None:
            object.__setattr__(self, "table", shipped.load())
        elif not isinstance(self.table, Table):
            object.__setattr__(self, "table", Table.load(self.table))
        if not self.beyond_model:
            self._check_modelled()

    def _check_modelled(self) -> None:
        limits = self._clock.delays.unmodelled
        failing = {
            name: limit.period_ps
            for name, limit in limits.items()
            if limit.period_ps is not None and limit.period_ps > self.period_ps
        }
        if failing:
            parts = ", ".join(f"{name} above {1e6 / period:.1f} MHz" for name, period in failing.items())
            raise BeyondModel(
                f"at {1e6 / self.period_ps:.1f} MHz, parts fail that the model does not cover ({parts}): choose a "
                "lower clock, or beyond_model=True for the errors of the adders alone"
            )

    @property
    def period_ps(self) -> int:
        """The clock period, whole ps."""
        period = 1e6 / self.mhz if self.mhz is not None else 1e3 * (self.period_ns or 0.0)
        return math.floor(round(period, 6))

    @property
    def _clock(self) -> Clock:
        assert isinstance(self.table, Table)
        return Clock(self.table, self.period_ps, self.voltage_scale)

    @cached_property
    def conditions(self) -> Conditions:
        """The clock, for a plan."""
        return Conditions(self._clock)

    def spec(self) -> Spec:
        values = {"period_ps": self.period_ps, "voltage_scale": self.voltage_scale, "delay_table": self.table}
        return {"model": name_of(type(self)), **value_spec(values, "Overclock")}

    @classmethod
    def made_from(cls, values: dict[str, Any]) -> Overclock:
        # What lies beyond the model was allowed when it was described.
        return cls(
            table=values["delay_table"],
            period_ns=values["period_ps"] / 1000,
            voltage_scale=values["voltage_scale"],
            beyond_model=True,
        )

    @classmethod
    def words(cls, brief: Spec) -> str:
        scale = "" if brief["voltage_scale"] == 1 else f", delays x {brief['voltage_scale']:g}"
        return (
            f"a clock of {1e6 / brief['period_ps']:.1f} MHz (period {brief['period_ps']} ps{scale}; delay table "
            f"{brief['delay_table'][:12]})"
        )

    def __eq__(self, other: object) -> bool:
        return self.conditions == other.conditions if isinstance(other, Overclock) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.conditions)

    def __repr__(self) -> str:
        return f"Overclock({self.conditions})"

    @property
    def sites(self) -> tuple[str, ...]:  # type: ignore[override]
        """("clock",)"""
        return self.conditions.sites

    def draw(self, program: Program, first_image: int, images: int, seed: int) -> FaultPlan:
        self.conditions.check(program.config)
        return FaultPlan.of(program.names).under(self.conditions)
