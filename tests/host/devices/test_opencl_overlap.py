"""Batches that overlap on the opencl device: the bytes of one after the other, in order, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import pytest

from host.devices.device import DeviceError, Int8
from host.devices.runtime import Outputs, Runtime
from host.faults.models import SoftErrors
from host.program.program import Program, ProgramError
from host.schedule.launch import MemoryTooSmall
from host.verification.cases import CONFIGS, random_program
from tests.host.opencl import available, needs_opencl

pytestmark = needs_opencl
if available():
    from host.devices.opencl.device import OpenCLDevice
    from host.devices.opencl.overlap import Overlapped

CONFIG = CONFIGS[1]
FAULTS = SoftErrors(1e-2, per="mac") + SoftErrors(1e-2, per="bit")


def make(**options: Any) -> OpenCLDevice:
    return OpenCLDevice(CONFIG, **{"memory_bytes": 1 << 22, "units": 1, **options})


@pytest.fixture(scope="module", params=[27, 28, 31])
def program(request: pytest.FixtureRequest) -> Program:
    return random_program(np.random.default_rng(request.param), CONFIG).with_placement(())


def batches(program: Program, sizes: tuple[int, ...]) -> list[Int8]:
    rng = np.random.default_rng(0)
    return [rng.integers(-128, 128, (size, *program.input_shape)).astype(np.int8) for size in sizes]


def assert_same(found: Outputs, wanted: Outputs) -> None:
    assert found.out.keys() == wanted.out.keys()
    assert found.conv.keys() == wanted.conv.keys()
    for name in wanted.out:
        np.testing.assert_array_equal(found.out[name], wanted.out[name])
    for name in wanted.conv:
        np.testing.assert_array_equal(found.conv[name], wanted.conv[name])
    assert found.report == wanted.report


@pytest.mark.parametrize("writeback", [True, False])
@pytest.mark.parametrize("faulty", [True, False])
def test_a_stream_gives_what_single_passes_give(program: Program, writeback: bool, faulty: bool) -> None:
    # A larger batch in the middle: the regions of the second batch move.
    given = batches(program, (2, 3, 1, 9, 2, 4))
    plan = FAULTS.draw(program, 5, 21, 3) if faulty else None
    with make(units=2) as device:
        streamed = list(Overlapped(program, device).stream(given, writeback=writeback, plan=plan, first_image=5))
        plain, at = Runtime(program, device), 5
        for found, x in zip(streamed, given, strict=True):
            assert_same(found, plain.forward(x, writeback=writeback, plan=plan, first_image=at))
            at += len(x)
        assert at == 26


def test_a_pass_in_parts_gives_what_a_whole_one_gives(program: Program) -> None:
    (x,) = batches(program, (11,))
    plan = FAULTS.draw(program, 0, 11, 9)
    with make(parts=4) as device:
        runtime = device.runtime(program)
        assert isinstance(runtime, Overlapped)
        faulty, clean = runtime.forward(x, plan=plan), runtime.forward(x)
        assert {span.batch for span in runtime.spans} == {0, 1, 2, 3}
        plain = Runtime(program, device)
        assert_same(faulty, plain.forward(x, plan=plan))
        assert_same(clean, plain.forward(x))


def test_the_next_batch_is_taken_before_a_result_is_given(program: Program) -> None:
    taken = []

    def given() -> Iterator[Int8]:
        for number, x in enumerate(batches(program, (1,) * 5)):
            taken.append(number)
            yield x

    with make() as device:
        stream = Overlapped(program, device).stream(given())
        counts = [len(taken) for _ in stream]
    assert counts == [3, 4, 5, 5, 5]


def test_commands_wait_for_what_they_need(program: Program) -> None:
    with make(units=2) as device:
        runtime = Overlapped(program, device)
        assert len(list(runtime.stream(batches(program, (4,) * 6)))) == 6
    for _, mine in groupby(sorted(runtime.spans), key=lambda span: span.batch):
        spans = list(mine)
        written, begun, ended, read = (
            max(s.end_ns for s in spans if s.kind == "write"),
            min(s.start_ns for s in spans if s.kind == "compute"),
            max(s.end_ns for s in spans if s.kind == "compute"),
            min(s.start_ns for s in spans if s.kind == "read"),
        )
        assert written <= begun <= ended <= read


def test_faults_in_weights_are_gone_afterwards(program: Program) -> None:
    given = batches(program, (3, 3))
    plan = SoftErrors(0.05, per="bit", sites=("weight",)).draw(program, 0, 6, 1)
    with make() as device:
        runtime = Overlapped(program, device)
        clean = list(runtime.stream(given))
        faulty = list(runtime.stream(given, plan=plan))
        assert any((a.out[n] != b.out[n]).any() for a, b in zip(faulty, clean, strict=True) for n in a.out)
        for found, wanted in zip(runtime.stream(given), clean, strict=True):
            assert_same(found, wanted)


def test_a_stream_that_is_not_finished_leaves_the_device_usable(program: Program) -> None:
    given = batches(program, (3, 3, 3, 3))
    plan = SoftErrors(0.05, per="bit", sites=("weight",)).draw(program, 0, 12, 1)
    with make() as device:
        runtime = Overlapped(program, device)
        stream = runtime.stream(given, plan=plan)
        next(stream)
        stream.close()
        assert_same(runtime.forward(given[0]), Runtime(program, device).forward(given[0]))


def test_another_runtime_in_between_is_noticed(program: Program) -> None:
    given = batches(program, (2, 2))
    negative = {name: -np.maximum(weight, -127) for name, weight in program.weights.items()}
    other = Program(**{**{f: getattr(program, f) for f in program.__dataclass_fields__}, "weights": negative})
    with make() as device:
        mine = Overlapped(program, device)
        wanted = list(mine.stream(given))
        Runtime(other, device).forward(given[0])
        for found, right in zip(mine.stream(given), wanted, strict=True):
            assert_same(found, right)


def test_what_cannot_overlap_is_refused_by_a_stream_and_done_plainly_by_a_pass(program: Program) -> None:
    given = batches(program, (2, 2))
    on_cpu = program.with_placement((program.names[-1],))
    with make(parts=2) as device:
        with pytest.raises(ProgramError, match="every layer runs on the device"):
            list(Overlapped(on_cpu, device).stream(given))
        assert_same(device.runtime(on_cpu).forward(given[0]), Runtime(on_cpu, device).forward(given[0]))
        with pytest.raises(ProgramError, match="int8 images"):
            list(Overlapped(program, device).stream([given[0].astype(np.float32)]))  # type: ignore[list-item]
    one = Runtime(program, make())
    needed = one._schedule(tuple(range(len(program.layers))), 2, True).end
    with make(memory_bytes=needed + 4096, parts=2) as small:
        with pytest.raises(MemoryTooSmall, match="two batches need"):
            list(Overlapped(program, small).stream(given))
        x = np.concatenate(given)
        assert_same(small.runtime(program).forward(x), one.forward(x))


def test_a_failure_in_the_middle_is_reported_once_and_mended(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    given = batches(program, (2,) * 5)
    with make() as device:
        runtime = Overlapped(program, device)
        wanted = list(runtime.stream(given))
        finish, calls = OpenCLDevice.finish, []

        def failing(self: OpenCLDevice, running: Any) -> Any:
            calls.append(running)
            if len(calls) == 2:
                raise DeviceError("the cable is out")
            return finish(self, running)

        monkeypatch.setattr(OpenCLDevice, "finish", failing)
        with pytest.raises(DeviceError, match="the cable is out"):
            list(runtime.stream(given))
        monkeypatch.undo()
        for found, right in zip(runtime.stream(given), wanted, strict=True):
            assert_same(found, right)
