"""Threads on one device take turns: everybody gets the results of their own images."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch

from host.devices.device import Device, DeviceError, LaunchReport
from host.devices.emulator.device import EmulatorDevice
from host.devices.reference import ReferenceDevice
from host.devices.turns import turn_of
from host.faults.models import SoftErrors
from host.schedule.launch import Launch
from host.training.train import evaluate
from host.training.twin import AttachError, Twin, attach
from hw.config import Config
from tests.host.training.small import Few, images, network

FAULTS = SoftErrors(1e-3, per="mac")
MAKERS: dict[str, Callable[[], Device]] = {
    "reference": lambda: ReferenceDevice(Config(lanes=4, vec=4, saboteur=True)),
    "emulator": lambda: EmulatorDevice(Config(lanes=4, vec=4, saboteur=True)),
}


def in_threads(*works: Callable[[], None]) -> None:
    """Run all at once; what one raises is raised here."""
    raised: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("kind", ["one twin", "a twin each", "networks of their own", "devices of their own"])
def test_threads_get_the_results_of_their_own_images(name: str, kind: str) -> None:
    device = MAKERS[name]()
    twins = [attach(network(0), device, calibrate=images()).eval()] * 2
    if kind == "a twin each":
        twins[1] = attach(twins[0].net, device, calibrate=images()).eval()
    if kind == "networks of their own":
        twins[1] = attach(network(1), device, calibrate=images()).eval()
    if kind == "devices of their own":
        twins[1] = attach(twins[0].net, MAKERS[name](), calibrate=images()).eval()
    inputs = [images(6, seed=1), images(6, seed=2)]
    right = [twin(x) for twin, x in zip(twins, inputs, strict=True)]

    def work(at: int) -> None:
        for _ in range(40):
            assert torch.equal(twins[at](inputs[at]), right[at])

    in_threads(lambda: work(0), lambda: work(1))


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_in_threads_are_those_of_one_after_the_other(name: str) -> None:
    device = MAKERS[name]()
    twins = [attach(network(seed), device, calibrate=images()).train() for seed in (0, 1)]
    inputs = [images(6, seed=1), images(6, seed=2)]

    def gradient(at: int) -> torch.Tensor:
        twins[at].zero_grad()
        twins[at](inputs[at]).square().sum().backward()
        return torch.cat([p.grad.flatten() for p in twins[at].net.parameters() if p.grad is not None])

    right = [gradient(0), gradient(1)]

    def work(at: int) -> None:
        for _ in range(15):
            assert torch.equal(gradient(at), right[at])

    in_threads(lambda: work(0), lambda: work(1))


@pytest.mark.parametrize("name", MAKERS)
def test_evaluations_in_threads_have_reports_of_their_own(name: str) -> None:
    device = MAKERS[name]()
    twins = [attach(network(seed), device, calibrate=images()) for seed in (0, 1)]
    right = [evaluate(twin, Few(24), faults=FAULTS, seed=seed) for seed, twin in enumerate(twins)]

    def work(at: int) -> None:
        for _ in range(4):
            found = evaluate(twins[at], Few(24), faults=FAULTS, seed=at, batch=5)
            assert (found.digest, found.report) == (right[at].digest, right[at].report)

    in_threads(lambda: work(0), lambda: work(1))


def test_one_twin_evaluated_in_two_threads_counts_for_each_alone() -> None:
    class Counting(ReferenceDevice):
        def launch(self, launch: Launch) -> LaunchReport:
            super().launch(launch)
            return LaunchReport(cycles=1)

    twin = attach(network(), Counting(Config(lanes=4, vec=4)), calibrate=images())

    def work() -> None:
        assert evaluate(twin, Few(24), batch=4).report.cycles == 6

    in_threads(work, work)
    assert twin.report.cycles == 12


def twin_of(seed: int = 0) -> Twin:
    return attach(network(seed), MAKERS["reference"](), calibrate=images())


def test_another_threads_faults_are_refused_with_the_remedy() -> None:
    twin = twin_of().eval()
    with FAULTS.on(twin, seed=1):
        with pytest.raises(AttachError, match=r"another thread has faults on .* a twin of its own \(copy.deepcopy\)"):
            in_threads(lambda: twin(images()))
        with pytest.raises(AttachError, match="another thread has faults on"):
            in_threads(lambda: evaluate(twin, Few(8)))
        assert twin.image_number == 0
    in_threads(lambda: twin(images()))


def test_fault_contexts_of_two_twins_in_two_threads_do_not_meet() -> None:
    first = twin_of().eval()
    second = copy.deepcopy(first)
    right = []
    for seed in (1, 2):
        with FAULTS.on(first, seed=seed):
            right.append(first(images()))
    assert not torch.equal(right[0], right[1])

    def work(twin: Twin, seed: int) -> None:
        for _ in range(10):
            with FAULTS.on(twin, seed=seed):
                assert torch.equal(twin(images()), right[seed - 1])

    in_threads(lambda: work(first, 1), lambda: work(second, 2))


def test_all_who_use_a_device_share_its_turn_and_others_do_not() -> None:
    first, second = MAKERS["reference"](), MAKERS["reference"]()
    assert turn_of(first) is turn_of(first)
    assert turn_of(first) is not turn_of(second)


def test_a_failure_in_one_thread_leaves_the_device_to_the_other() -> None:
    class Failing(ReferenceDevice):
        failing = False

        def launch(self, launch: Launch) -> LaunchReport:
            if Failing.failing:
                raise DeviceError("no")
            return super().launch(launch)

    twin = attach(network(), Failing(Config(lanes=4, vec=4)), calibrate=images()).eval()
    right = twin(images())
    Failing.failing = True
    with pytest.raises(DeviceError, match="no"):
        in_threads(lambda: twin(images()))
    Failing.failing = False
    in_threads(lambda: torch.testing.assert_close(twin(images()), right, rtol=0, atol=0))
