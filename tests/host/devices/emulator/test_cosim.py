"""Sampled co-simulation: which launches, what is compared, and what follows for all of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from host.devices.device import DeviceError, LaunchReport
from host.devices.emulator.cosim import CosimMismatch, Sampled, SampledCosim
from host.devices.emulator.device import EmulatorDevice
from host.devices.reference import ReferenceDevice
from host.devices.registry import device as make_device
from host.devices.runtime import Runtime
from host.faults.models import SoftErrors
from host.schedule.launch import Launch
from host.verification.cases import CONFIGS, random_case
from host.verification.overclocked import overclocked_case

MEMORY = 1 << 24


class Wrong(ReferenceDevice):
    """Flips a bit of the last layer's output in its third launch."""

    launches = 0

    def launch(self, launch: Launch) -> LaunchReport:
        report = super().launch(launch)
        self.launches += 1
        if self.launches == 3:
            region = launch.memory[launch.result]
            self.write(region.address + 1, self.read(region.address + 1, 1) ^ 4)
        return report


def test_the_sample_is_a_function_of_seed_and_number_with_the_share_asked_for() -> None:
    def sample(seed: int) -> list[bool]:
        cosim = SampledCosim(0.05, seed, ReferenceDevice())
        return [cosim.takes(number) for number in range(4000)]

    first = sample(1)
    assert first == sample(1)
    assert first != sample(2)
    # Within what a binomial count does in all but one of a million samples.
    low, high = stats.binom.interval(1 - 1e-6, 4000, 0.05)
    assert low <= sum(first) <= high


@pytest.mark.parametrize("compared", [1, 30, 300])
def test_the_bound_without_a_mismatch_is_the_closed_form(compared: int) -> None:
    found = Sampled(0.1, 0, launches=10 * compared, compared=compared)
    assert found.bound() == pytest.approx(1 - 0.05 ** (1 / compared))
    assert f"at most {100 * found.bound():.3g} %" in str(found)


def test_the_bound_is_the_rate_at_which_so_few_mismatches_are_just_unlikely() -> None:
    found = Sampled(0.1, 0, launches=1000, compared=100, mismatches=3)
    assert stats.binom.cdf(3, 100, found.bound(0.99)) == pytest.approx(0.01)


def test_nothing_compared_bounds_nothing() -> None:
    assert Sampled(0.1, 0, launches=5).bound() == 1


@pytest.mark.parametrize("number", range(4))
def test_sampled_launches_with_every_fault_agree(number: int) -> None:
    case = overclocked_case(31, number)
    config = case.program.config
    against = ReferenceDevice(config, memory_bytes=MEMORY)
    with EmulatorDevice(config, memory_bytes=MEMORY, sampled_cosim=1.0, cosim_device=against) as device:
        runtime = Runtime(case.program, device)
        for plan in (case.plan, *case.others):
            runtime.forward(case.x, plan=plan, first_image=case.first_image)
        found = device.sampled
    assert found is not None
    assert found.launches == found.compared > 0
    assert found.mismatches == 0


def test_a_share_of_the_launches_is_compared_and_the_results_are_the_same() -> None:
    case = random_case(32, 1)
    config = case.program.config
    against = ReferenceDevice(config, memory_bytes=MEMORY)
    with (
        EmulatorDevice(config, memory_bytes=MEMORY) as plain,
        EmulatorDevice(config, memory_bytes=MEMORY, sampled_cosim=0.3, cosim_seed=4, cosim_device=against) as device,
    ):
        wanted, runtime = Runtime(case.program, plain).forward(case.x), Runtime(case.program, device)
        for _ in range(20):
            found = runtime.forward(case.x)
            for name in case.program.names:
                assert np.array_equal(found.out[name], wanted.out[name])
        assert plain.sampled is None
        assert device.sampled is not None
        assert 0 < device.sampled.compared < device.sampled.launches


def test_a_mismatch_is_an_error_that_says_where() -> None:
    case = next(case for case in (random_case(33, n) for n in range(50)) if len(case.program.segments()) == 1)
    config = case.program.config
    against = Wrong(config, memory_bytes=MEMORY)
    with EmulatorDevice(config, memory_bytes=MEMORY, sampled_cosim=1.0, cosim_device=against) as device:
        runtime = Runtime(case.program, device)
        runtime.forward(case.x)
        runtime.forward(case.x)
        last = case.program.layers[-1].name
        with pytest.raises(CosimMismatch, match=rf"launch 2 .* 1 of \d+ in region out/{last}, the first at byte 1 "):
            runtime.forward(case.x)
        assert device.sampled == Sampled(1.0, 0, launches=3, compared=3, mismatches=1)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_only_shares_are_taken(share: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        EmulatorDevice(memory_bytes=MEMORY, sampled_cosim=share)


def test_launches_run_on_the_rtl() -> None:
    config = CONFIGS[1]
    case = next(c for c in (random_case(34, n, configs=(config,)) for n in range(50)) if c.plan is not None)
    made = make_device("emulator", config, memory_bytes=MEMORY, units=2, sampled_cosim=1.0)
    with made as device:
        assert isinstance(device, EmulatorDevice)
        Runtime(case.program, device).forward(case.x, plan=case.plan, first_image=case.first_image)
        assert device.sampled is not None
        assert device.sampled.compared > 0


def test_the_rtl_without_instrumentation_refuses_faults() -> None:
    config = CONFIGS[6]
    program = random_case(35, 0, configs=(config,)).program
    plan = SoftErrors(0.5, per="mac").draw(program, 0, 1, 1)
    x = np.zeros((1, *program.input_shape), np.int8)
    with (
        EmulatorDevice(config, memory_bytes=MEMORY, sampled_cosim=1.0) as device,
        pytest.raises(DeviceError, match="saboteur=True"),
    ):
        Runtime(program, device).forward(x, plan=plan)
