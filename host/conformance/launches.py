"""Launches: random programs give the reference's bytes, however they are split, and the same each time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from host.conformance.suite import Bench, check, need
from host.devices.device import Device, Int8
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Outputs, Runtime
from host.program.program import Program
from host.verification.cases import Case, random_case, random_program


def compare(found: Outputs, wanted: Outputs, what: object) -> None:
    """Need two passes to have given the same tensors.

    Raises
    ------
    Broken
        Names the first place that differs.
    """
    for kind in ("conv", "out"):
        for name, right in getattr(wanted, kind).items():
            need(name in getattr(found, kind), f"{what}: layer {name!r} gives no {kind}")
            wrong = np.argwhere(getattr(found, kind)[name] != right)
            if len(wrong):
                at = tuple(int(i) for i in wrong[0])
                value = int(getattr(found, kind)[name][at])
                need(False, f"{what}: {kind} of layer {name!r} at {at} is {value}, not {int(right[at])}")


def forward(case: Case, device: Device) -> Outputs:
    """A case on a device."""
    runtime = Runtime(case.program, device)
    return runtime.forward(case.x, writeback=case.writeback, plan=case.plan, first_image=case.first_image)


def random_cases(bench: Bench, first: int, **changed: object) -> list[Case]:
    """Random cases for a bench's accelerator."""
    made = [
        random_case(bench.seed + 98, number, configs=(bench.config,)) for number in range(first, first + bench.cases)
    ]
    return [replace(case, **changed) for case in made]  # type: ignore[arg-type]


def program_and_images(bench: Bench, images: int) -> tuple[Program, Int8]:
    """A random program, and images for it."""
    program = random_program(np.random.default_rng(bench.seed + 26), bench.config)
    x = np.random.default_rng(bench.seed).integers(-128, 128, (images, *program.input_shape)).astype(np.int8)
    return program, x


def agree(bench: Bench, cases: list[Case]) -> None:
    """Need the device to give what the reference gives."""
    with ReferenceDevice(bench.config, memory_bytes=1 << 24) as oracle:
        for case in cases:
            compare(forward(case, bench.device), forward(case, oracle), case)


@check
def programs_written_back(bench: Bench) -> None:
    """Random programs give the reference's bytes, every layer written back."""
    agree(bench, random_cases(bench, 0, plan=None, writeback=True))


@check
def programs_chained_on_chip(bench: Bench) -> None:
    """Random programs give the reference's bytes, only the result written."""
    agree(bench, random_cases(bench, 1000, plan=None, writeback=False))


@check
def writing_back_changes_nothing(bench: Bench) -> None:
    """Writing layers back or not gives the same result."""
    program, x = program_and_images(bench, 5)
    last, runtime = program.names[-1], Runtime(program, bench.device)
    chained, back = (runtime.forward(x, writeback=on).out[last] for on in (False, True))
    need(bool((chained == back).all()), f"the results differ: {program.names}")


@check
def batches_and_units_do_not_matter(bench: Bench) -> None:
    """A batch may be split over calls and compute units in any way."""
    program, x = program_and_images(bench, 7)
    last = program.names[-1]
    whole = Runtime(program, bench.device).forward(x).out[last]
    need(bool((Runtime(program, bench.device, units=1).forward(x).out[last] == whole).all()), "one unit differs")
    parts = [Runtime(program, bench.device).forward(x[at : at + 3]).out[last] for at in range(0, 7, 3)]
    need(bool((np.concatenate(parts) == whole).all()), "parts of the batch differ from the whole")


@check
def weights_may_change_between_launches(bench: Bench) -> None:
    """A launch uses the weights written last."""
    program, x = program_and_images(bench, 2)
    other = replace(program, weights={name: -np.maximum(w, -127) for name, w in program.weights.items()})
    with ReferenceDevice(bench.config, memory_bytes=1 << 24) as oracle:
        for one in (program, other, program):
            compare(Runtime(one, bench.device).forward(x), Runtime(one, oracle).forward(x), "after weights changed")


@check
def launches_repeat(bench: Bench) -> None:
    """The same launch gives the same bytes, again and on a fresh device."""
    (case, *_) = random_cases(bench, 2000, writeback=True)
    first = forward(case, bench.device)
    for _ in range(3):
        compare(forward(case, bench.device), first, "again")
    with bench.another() as fresh:
        compare(forward(case, fresh), first, "on a fresh device")
