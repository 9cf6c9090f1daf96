"""The emulator's benchmark: it overclocks as far as it says, and counts what it names. Times are not asserted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from host import models
from host.bench import emulator
from host.compiler.compile import compile as compile_network
from host.devices.emulator.device import EmulatorDevice
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.faults.conditions import Clock, Conditions
from host.faults.models import SoftErrors


def test_the_clock_of_the_headline_makes_only_accumulators_late_in_few_groups() -> None:
    conditions = emulator._conditions(emulator._random_table())
    banks = conditions.banks(emulator.CONFIG)
    assert set(banks) == {"accumulator"}
    assert 1 <= banks["accumulator"].groups <= emulator.MOST_GROUPS
    assert conditions.clock is not None
    faster = conditions.at(conditions.clock.period_ps - conditions.clock.table.onset_ps // 50).banks(emulator.CONFIG)
    assert set(faster) != {"accumulator"} or faster["accumulator"].groups > emulator.MOST_GROUPS


@pytest.mark.parametrize("share", [None, 0.97, 0.8])
def test_the_passes_that_are_timed_give_the_references_bytes(share: float | None) -> None:
    torch.manual_seed(emulator.SEED)
    x = torch.rand(2, 1, 28, 28)
    program = compile_network(models.lenet5(), emulator.CONFIG, calibrate=x)
    images, table = program.quantise_input(x), emulator._random_table()
    plan = SoftErrors(1e-4, per="mac").draw(program, 0, len(x), emulator.SEED)
    assert len(plan)
    if share is not None:
        plan = plan.under(Conditions(Clock(table, round(share * table.onset_ps), 1.0)))
    with EmulatorDevice(emulator.CONFIG) as device:
        given = Runtime(program, device).forward(images, writeback=False, plan=plan).out
    expected = Runtime(program, ReferenceDevice(emulator.CONFIG)).forward(images, plan=plan).out
    last = program.layers[-1].name
    assert np.array_equal(given[last], expected[last])


def test_a_training_steps_row_names_the_network_and_both_times(monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape, _ = emulator.STEPS["lenet5"]
    monkeypatch.setitem(emulator.STEPS, "lenet5", (make, shape, 1))
    row = emulator._step("lenet5", lambda _: None)
    assert set(row) == {"network", "batch", "fp32_ms", "int8_ms", "step_over_fp32"}
    assert (row["network"], row["batch"]) == ("lenet5", emulator.STEP_BATCH)
