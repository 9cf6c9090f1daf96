"""Stuck bits in compiled kernels: the reference's bytes, with late bits and flips, and without the reference's help."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.devices.emulator import native
from host.devices.emulator.device import EmulatorDevice
from host.devices.emulator.native import Kernels
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.faults.conditions import Conditions, StuckBit
from host.faults.models import SoftErrors
from host.faults.plan import SITES, FaultPlan
from host.faults.stuck import StuckAt
from host.program.layers import INPUT, Layer
from host.program.program import Program
from host.verification.cases import random_case
from host.verification.overclocked import random_conditions, random_table
from host.verification.verify import run_case
from hw.config import Config
from hw.delays import bank_names

LIBRARY = native.library(native.build())
LEVELS = [name for name in native.available_levels() if native.supported(LIBRARY, name)]
MEMORY = 1 << 24


class Alone(EmulatorDevice):
    """An emulator that must not ask the reference."""

    def launch(self, launch):  # type: ignore[no-untyped-def]
        plain = ReferenceDevice.launch

        def refuse(*_: object) -> None:
            raise AssertionError("the reference computed a launch")

        ReferenceDevice.launch = refuse  # type: ignore[method-assign]
        try:
            return super().launch(launch)
        finally:
            ReferenceDevice.launch = plain  # type: ignore[method-assign]


@pytest.fixture(scope="module", params=LEVELS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return Kernels(LIBRARY, request.param)


@st.composite
def stuck_bits(draw: st.DrawFn, config: Config) -> Conditions:
    found = {}
    for _ in range(draw(st.integers(1, 4))):
        bank = draw(st.sampled_from([*bank_names(config.vec), *["accumulator"] * 4]))
        width = 32 if bank == "accumulator" else 16 + int(bank.split("_")[1])
        found[draw(st.integers(0, config.lanes - 1)), bank, draw(st.integers(0, width - 1))] = draw(st.integers(0, 1))
    return Conditions(stuck=tuple(sorted(StuckBit(*where, value) for where, value in found.items())))


def test_a_flip_of_a_stuck_bit_changes_nothing(kernels: Kernels) -> None:
    config = Config(lanes=4, vec=4, port_bits=64)
    layer = Layer("layer", (INPUT,), (4, 1, 1), 4, (1, 1), (1, 1), (0, 0), False, None, 0, (0,) * 4, 0)
    weight, bias = np.ones((4, 4, 1, 1), np.int8), np.zeros(4, np.int32)
    program = Program(config, (layer,), {"layer": weight}, {"layer": bias}, (4, 1, 1), 0)
    stuck = StuckAt(lane=2, bit=4, value=1).conditions
    # Of the last step's results of channels 2 and 3, bit 4; of channel 2, bit 5.
    flips = FaultPlan.of(program.names, 0, 0, SITES.index("mac"), np.array([2, 2, 3]), 0, np.array([4, 5, 4]))
    with Alone(config, memory_bytes=MEMORY, kernels=kernels) as device:
        out = Runtime(program, device).forward(np.ones((1, 4, 1, 1), np.int8), plan=flips.under(stuck)).out["layer"]
    assert out.reshape(-1).tolist() == [4, 4, 4 + 16 + 32, 4 + 16]


@settings(deadline=None, max_examples=40)
@given(data=st.data(), number=st.integers(0, 1 << 20), soft=st.booleans(), dense=st.booleans())
def test_random_networks_with_stuck_bits_leave_the_references_bytes(
    kernels: Kernels, data: st.DataObject, number: int, soft: bool, dense: bool
) -> None:
    case = random_case(77, number, SoftErrors(1e-2 if dense else 1e-4, per="mac"))
    config = case.program.config
    flips = case.plan if soft and case.plan is not None else FaultPlan.of(case.program.names)
    others = (flips.under(data.draw(stuck_bits(config))), flips)
    case = replace(case, plan=flips.under(data.draw(stuck_bits(config))), others=others)
    with Alone(config, memory_bytes=MEMORY, units=2, kernels=kernels) as device:
        found = run_case(case, device)
    wanted = run_case(case, ReferenceDevice(config, memory_bytes=MEMORY, units=2))
    for right, seen in zip(wanted, found, strict=True):
        for name, content in right.regions.items():
            assert np.array_equal(seen.regions[name], content), f"{name} of {case}"


@settings(deadline=None, max_examples=25)
@given(data=st.data(), number=st.integers(0, 1 << 20), seed=st.integers(0, 1 << 20))
def test_so_do_networks_on_a_fast_clock(kernels: Kernels, data: st.DataObject, number: int, seed: int) -> None:
    case = random_case(78, number)
    config, rng = case.program.config, np.random.default_rng(seed)
    clock = replace(random_conditions(rng, config, random_table(rng, config)), stuck=())
    flips = case.plan or FaultPlan.of(case.program.names)
    case = replace(case, plan=flips.under(clock + data.draw(stuck_bits(config))), others=(flips.under(clock),))
    with EmulatorDevice(config, memory_bytes=MEMORY, units=2, kernels=kernels) as device:
        found = run_case(case, device)
    wanted = run_case(case, ReferenceDevice(config, memory_bytes=MEMORY, units=2))
    for right, seen in zip(wanted, found, strict=True):
        for name, content in right.regions.items():
            assert np.array_equal(seen.regions[name], content), f"{name} of {case}"


def test_an_accumulators_top_bit_stuck_at_one_makes_its_lanes_channels_negative(kernels: Kernels) -> None:
    """Independent of the reference: 32-bit two's complement by hand."""
    config = Config(lanes=4, vec=4, port_bits=64)
    layer = Layer("layer", (INPUT,), (4, 1, 2), 6, (1, 1), (1, 1), (0, 0), False, None, 0, (0,) * 6, 0)
    weight = np.zeros((6, 4, 1, 1), np.int8)
    program = Program(config, (layer,), {"layer": weight}, {"layer": np.arange(6, dtype=np.int32)}, (4, 1, 2), 0)
    plan = StuckAt(lane=1, bit=31, value=1).draw(program, 0, 1, 0) + StuckAt(lane=2, bit=1, value=0).draw(
        program, 0, 1, 0
    )
    with Alone(config, memory_bytes=MEMORY, kernels=kernels) as device:
        out = Runtime(program, device).forward(np.ones((1, 4, 1, 2), np.int8), plan=plan).out["layer"]
    # Lane 1 computes channels 1 and 5, lane 2 channel 2.
    assert out[0, :, 0].tolist() == [[0, 0], [-128, -128], [0, 0], [3, 3], [4, 4], [-128, -128]]
