"""Faults: every site is hit as the plan says, and leaves no trace afterwards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from host.conformance.launches import compare, forward, program_and_images, random_cases
from host.conformance.suite import Bench, Skipped, check, need
from host.devices.device import DeviceError, LaunchReport
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.faults.models import SoftErrors
from host.faults.plan import SITES, FaultPlan
from host.faults.stuck import StuckAt
from host.program.arrangement import steps
from host.verification.overclocked import overclocked_case


def _instrumented(bench: Bench) -> None:
    if not bench.config.saboteur:
        raise Skipped("the accelerator has no fault instrumentation")


def _counted(found: LaunchReport, wanted: LaunchReport) -> None:
    # A device that does not count says 0.
    count, right = found.faults_applied, wanted.faults_applied
    need(count in (0, right), f"it applied {count} fault events of {right}")


@check
def random_plans(bench: Bench) -> None:
    """Random fault plans give the reference's bytes, and as many faults."""
    _instrumented(bench)
    with ReferenceDevice(bench.config, memory_bytes=1 << 24) as oracle:
        for case in random_cases(bench, 0):
            found, wanted = forward(case, bench.device), forward(case, oracle)
            compare(found, wanted, case)
            _counted(found.report, wanted.report)


@check
def every_site_is_hit_and_recovers(bench: Bench) -> None:
    """Faults of each site change the result, the same each time, and are gone afterwards."""
    _instrumented(bench)
    program, x = program_and_images(bench, 3)
    runtime = Runtime(program, bench.device)
    clean = runtime.forward(x)
    with ReferenceDevice(bench.config, memory_bytes=1 << 24) as device:
        oracle = Runtime(program, device)
        for site in SITES:
            model = SoftErrors(0.02, per="mac" if site == "mac" else "bit", sites=(site,))
            plan = model.draw(program, 0, 3, 5)
            need(len(plan) > 0, f"the plan of {site} faults is empty")
            faulty = runtime.forward(x, plan=plan)
            same = all(bool((faulty.out[name] == clean.out[name]).all()) for name in program.names)
            need(not same, f"{site} faults change nothing")
            compare(faulty, oracle.forward(x, plan=plan), f"{site} faults")
            compare(runtime.forward(x, plan=plan), faulty, f"{site} faults again")
            compare(runtime.forward(x), clean, f"after {site} faults")


@check
def every_bit_of_an_accumulator(bench: Bench) -> None:
    """A flip of any of an accumulator's bits, after the first or the last step, gives the reference's bytes."""
    _instrumented(bench)
    program, x = program_and_images(bench, 2)
    runtime = Runtime(program, bench.device)
    at = next(at for at, layer in enumerate(program.layers) if layer.placement == "accelerator")
    layer = program.layers[at]
    last = steps(layer, bench.config) - 1
    outputs = int(np.prod(layer.conv_shape))
    with ReferenceDevice(bench.config, memory_bytes=1 << 24) as device:
        oracle = Runtime(program, device)
        for step in sorted({0, last}):
            rows = [
                (image, at, SITES.index("mac"), (17 * bit + image) % outputs, step, bit)
                for bit in range(32)
                for image in range(2)
            ]
            plan = FaultPlan.of(program.names, *np.array(rows).T)
            found, wanted = runtime.forward(x, plan=plan), oracle.forward(x, plan=plan)
            compare(found, wanted, f"flips after step {step}")
            _counted(found.report, wanted.report)


@check
def images_keep_their_faults(bench: Bench) -> None:
    """An image meets the faults of its number, whatever the batch."""
    _instrumented(bench)
    program, x = program_and_images(bench, 4)
    plan = SoftErrors(0.01, per="mac").draw(program, 10, 4, 3)
    runtime, last = Runtime(program, bench.device), program.names[-1]
    whole = runtime.forward(x, plan=plan, first_image=10).out[last]
    parts = [runtime.forward(x[at : at + 1], plan=plan, first_image=10 + at).out[last] for at in range(4)]
    need(bool((np.concatenate(parts) == whole).all()), "single images differ from the batch")


@check
def conditions_are_not_ignored(bench: Bench) -> None:
    """Late and stuck bits are applied as the reference applies them, or refused; never ignored."""
    if bench.config.overclock and bench.device.knows_conditions:
        _random_conditions(bench)
    program, x = program_and_images(bench, 2)
    plan = StuckAt(lane=1, bit=5, value=1).draw(program, 0, 2, 1)
    runtime = Runtime(program, bench.device)
    try:
        found = runtime.forward(x, plan=plan)
    except DeviceError:
        found = None
    with ReferenceDevice(bench.config, memory_bytes=1 << 24) as oracle:
        if found is not None:
            compare(found, Runtime(program, oracle).forward(x, plan=plan), "with a stuck bit")
        compare(runtime.forward(x), Runtime(program, oracle).forward(x), "after a stuck bit")


def _random_conditions(bench: Bench) -> None:
    """Programs at clocks that change from pass to pass, with stuck bits and flips."""
    with ReferenceDevice(bench.config, memory_bytes=1 << 24) as oracle:
        for number in range(bench.cases):
            case = overclocked_case(bench.seed + 98, number, configs=(bench.config,))
            for plan in (case.plan, *case.others):
                one = replace(case, plan=plan)
                found, wanted = forward(one, bench.device), forward(one, oracle)
                compare(found, wanted, one)
                _counted(found.report, wanted.report)
