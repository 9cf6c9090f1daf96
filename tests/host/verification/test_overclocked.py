"""Verification under conditions: cases are reproducible and varied, and devices agree on them or are found out."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from host.devices.device import Device, LaunchReport
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.devices.simulation import SimulationDevice
from host.faults import canary
from host.faults.overclock import Overclock
from host.faults.plan import FaultPlan
from host.faults.stuck import StuckAt
from host.schedule.launch import Launch
from host.verification.divergence import in_trace
from host.verification.overclocked import OVERCLOCKED, overclocked_case, random_table
from host.verification.verify import _TracingWitness, expected_jobs, run_case, verify
from hw.config import Config

SMALL = OVERCLOCKED[0]


def test_cases_are_the_same_wherever_they_are_made() -> None:
    for number in range(5):
        a, b = overclocked_case(5, number), overclocked_case(5, number)
        assert a.plan == b.plan
        assert a.others == b.others
        assert str(a) == str(b)


def test_cases_have_clocks_stuck_bits_flips_and_changes_between_passes() -> None:
    seen = set()
    for number in range(60):
        case = overclocked_case(1, number)
        plans = [case.plan, *case.others]
        conditions = [None if plan is None else plan.conditions for plan in plans]
        seen |= {f"{len(plans)} passes", "plain pass" if None in conditions else ""}
        seen |= {"change" for a, b in zip(conditions, conditions[1:], strict=False) if a != b}
        for plan in plans:
            if plan is not None and plan.conditions is not None:
                here = plan.conditions
                seen |= set(here.sites)
                seen |= {"flips too"} if len(plan) else set()
                seen |= {"scaled"} if here.clock is not None and here.clock.voltage_scale != 1 else set()
                seen |= {"stuck alone"} if here.clock is None else set()
                seen |= set(here.banks(case.program.config))
    assert seen >= {"1 passes", "2 passes", "3 passes", "plain pass", "change", "clock", "stuck", "flips too", "scaled"}
    assert seen >= {"stuck alone", "tree_1_0", "tree_2_0", "accumulator"}


def test_tables_without_order_need_many_groups() -> None:
    found = set()
    for seed in range(20):
        table = random_table(np.random.default_rng(seed), SMALL)
        found.add(len(table.bank(0, "accumulator").groups(round(0.7 * table.onset_ps))))
    assert max(found) >= 15


def test_routed_tables_are_used_where_they_fit() -> None:
    table = random_table(np.random.default_rng(0), Config())
    used = [overclocked_case(1, number, tables=[table]) for number in range(40)]
    fits = [case for case in used if any(plan and plan.conditions and plan.conditions.clock
            and plan.conditions.clock.table is table for plan in (case.plan, *case.others))]  # fmt: skip
    assert fits
    assert all(case.program.config.vec == 8 for case in fits)


class Deaf(ReferenceDevice):
    """Ignores conditions."""

    def launch(self, launch: Launch) -> LaunchReport:
        return super().launch(replace(launch, plan=None if launch.plan is None else launch.plan.under(None)))


def test_a_device_that_ignores_conditions_is_found_out() -> None:
    def make(name: str, config: Config, units: int) -> Device:
        return (Deaf if name == "other" else ReferenceDevice)(config, memory_bytes=1 << 24, units=units)

    report = verify(("reference", "other"), 30, 1, make=make, overclock=True, most_mismatches=2)
    assert len(report.mismatches) == 2
    assert {mismatch.divergence.stage for mismatch in report.mismatches} <= {"write pool", "write conv"}
    assert report.as_dict()["wrong_cases"] >= 2


def test_reference_and_simulation_agree_on_one_accelerator() -> None:
    report = verify(cases=25, seed=9, overclock=True, configs=(SMALL,))
    assert report.ok, str(report)
    assert report.wrong_cases > 8
    assert report.clock_changes > 8
    assert "changes of clock" in str(report)


def test_the_probes_show_every_accumulator_as_expected_late_bits_included() -> None:
    config = replace(SMALL, probe=True)
    compared = 0
    with closing(SimulationDevice(config, processes=1, memory_bytes=1 << 24)) as device:
        for number in range(6):
            case = replace(overclocked_case(4, number, configs=(SMALL,)), units=1, others=())
            case = replace(case, program=replace(case.program, config=config))
            oracle = ReferenceDevice(config, memory_bytes=1 << 24)
            everything, expected = run_case(replace(case, writeback=True), oracle), run_case(case, oracle)
            witness = _TracingWitness(case, device)
            witness.forward(case.x, writeback=case.writeback, plan=case.plan, first_image=case.first_image)
            for wanted, full, trace in zip(expected, everything, witness.traces, strict=True):
                jobs = expected_jobs(wanted, full)
                assert in_trace("simulation", trace, jobs, config) is None, str(case)
                compared += sum(job.acc.size for job in jobs)
    assert compared > 1000


@pytest.mark.parametrize("fault", ["clock", "stuck"])
def test_the_canary_sings_on_the_simulation(fault: str) -> None:
    case = overclocked_case(4, 2, configs=(SMALL,))
    table = random_table(np.random.default_rng(3), SMALL)
    chosen = StuckAt(0, 5, 1)
    if fault == "clock":
        chosen = Overclock(table=table, period_ns=table.onset_ps / 1000)  # type: ignore[assignment]
    with closing(SimulationDevice(SMALL, processes=1, memory_bytes=1 << 24)) as device:
        runtime = Runtime(case.program, device)
        canary.check(runtime, case.x, chosen.sites, chosen.conditions)
        plan = FaultPlan.of(case.program.names).under(chosen.conditions)
        assert runtime.forward(case.x, plan=plan).report.cycles > 0
