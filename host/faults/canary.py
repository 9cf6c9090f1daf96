"""The canary: a fault known to change the output, run before faulty runs, so that a dead injection is noticed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from host.devices.device import DeviceError, Int8
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Outputs, Runtime
from host.faults.conditions import Conditions, StuckBit
from host.faults.plan import SITES, FaultPlan
from host.program.arrangement import steps
from hw.masks import MOST_GROUPS

ATTEMPTS = 64
"""Candidate faults tried on the reference before giving up on finding a visible one."""


FASTER = (0.8, 0.7, 0.6, 0.5, 0.4)
"""Clock periods tried, as shares of the safe one: at the last, most bits are late."""


class CanaryError(DeviceError):
    """A fault that must be visible was not: the device does not inject what it is told, or injects something else."""


def check(
    runtime: Runtime,
    x: Int8 | None = None,
    sites: Iterable[str] = ("mac",),
    conditions: Conditions | None = None,
) -> None:
    """Run one image on the device without and with a fault that the reference says is visible, for each site.

    Parameters
    ----------
    runtime : Runtime
    x : int8 array, shape (N, C, H, W), or None
        Quantised images, of which the first is used; a random one by default.
    sites : names of fault sites
        Those that the coming run uses (`Fault.sites`).
    conditions : Conditions, optional
        Those of the coming run, with the sites "clock" and "stuck". What is tried are they, then faster clocks of the
        same table, and other stuck bits.

    Raises
    ------
    CanaryError
        If the device's output with the fault is the clean one, or not the reference's.
    """
    image = _random_image(runtime) if x is None else x[:1]
    clean = runtime.forward(image)
    for site in sites:
        if site in ("clock", "stuck"):
            plan, expected = _visible_condition(runtime, image, site, conditions)
        else:
            plan, expected = _visible(runtime, image, site)
        if plan is None:
            continue  # every layer with such a site runs on the CPU
        faulty = runtime.forward(image, plan=plan)
        last = runtime.program.names[-1]
        where = f"a {site} fault" + (f" in layer {runtime.program.names[int(plan.layer[0])]!r}" if len(plan) else "")
        needed = "saboteur=True" if plan.conditions is None else f"overclock={MOST_GROUPS}"
        if all(np.array_equal(faulty.out[name], clean.out[name]) for name in clean.out):
            raise CanaryError(
                f"the canary is invisible: {where} that must change the output did not, so "
                f"results would be fault-free; is the {runtime.device.name} device built with {needed}?"
            )
        if not np.array_equal(faulty.out[last], expected.out[last]):
            raise CanaryError(
                f"the canary sang a wrong tune: {where} gives other results on the "
                f"{runtime.device.name} device than on the reference; 'redline verify' finds where"
            )


def _visible(runtime: Runtime, image: Int8, site: str) -> tuple[FaultPlan | None, Outputs]:
    """A fault at the site that changes the reference's last output."""
    program = runtime.program
    oracle = Runtime(program, ReferenceDevice(program.config, memory_bytes=runtime.device.memory_bytes))
    clean = oracle.forward(image)
    last = program.names[-1]
    on_device = [at for at, layer in enumerate(program.layers) if layer.placement == "accelerator"]
    layers = [at for at in on_device if at == 0] if site == "input" else on_device
    if not layers:
        return None, clean
    # The last layer first: nothing behind it can hide the flip.
    for attempt in range(ATTEMPTS):
        at = layers[-1 - (attempt % len(layers))]
        plan = _candidate(runtime, at, site, attempt // len(layers))
        faulty = oracle.forward(image, plan=plan)
        if not np.array_equal(faulty.out[last], clean.out[last]):
            return plan, faulty
    raise CanaryError(
        f"no visible {site} fault found in {ATTEMPTS} attempts: the network's output does not depend on it (are all "
        "its weights zero, or its activations saturated?)"
    )


def _visible_condition(
    runtime: Runtime, image: Int8, site: str, conditions: Conditions | None
) -> tuple[FaultPlan | None, Outputs]:
    """A plan of conditions alone that changes the reference's last output."""
    program = runtime.program
    oracle = Runtime(program, ReferenceDevice(program.config, memory_bytes=runtime.device.memory_bytes))
    clean = oracle.forward(image)
    if all(layer.placement == "cpu" for layer in program.layers):
        return None, clean
    last = program.names[-1]
    for tried in _conditions(site, conditions):
        plan = FaultPlan.of(program.names).under(tried)
        faulty = oracle.forward(image, plan=plan)
        if not np.array_equal(faulty.out[last], clean.out[last]):
            return plan, faulty
    raise CanaryError(
        f"no visible {site} fault found: the network's output does not depend on late or stuck bits (are all its "
        "weights zero, or its activations saturated?)"
    )


def _conditions(site: str, conditions: Conditions | None) -> Iterator[Conditions]:
    """Candidates, those of the coming run first."""
    if site == "clock":
        if conditions is None or conditions.clock is None:
            raise ValueError("a canary for the clock needs the conditions of the coming run")
        yield Conditions(conditions.clock)
        onset = conditions.clock.delays.onset_ps
        for share in FASTER:
            yield Conditions(conditions.clock).at(round(share * onset))
        return
    if conditions is not None:
        yield Conditions(stuck=conditions.stuck)
    for bit in (30, 20, 15, 12, 10, 8):
        for value in (1, 0):
            yield Conditions(stuck=(StuckBit(0, "accumulator", bit, value),))


def _random_image(runtime: Runtime) -> Int8:
    rng = np.random.Generator(np.random.Philox(0))
    return rng.integers(-128, 128, (1, *runtime.program.input_shape)).astype(np.int8)


def _candidate(runtime: Runtime, at: int, site: str, turn: int) -> FaultPlan:
    program = runtime.program
    layer = program.layers[at]
    rng = np.random.Generator(np.random.Philox(turn))
    step, image = 0, 0
    if site == "mac":
        # The sign bit after the last step saturates any output one way or the other.
        outputs, step, bit = int(np.prod(layer.conv_shape)), steps(layer, program.config) - 1, 30 + turn % 2
    elif site == "weight":
        outputs, bit, image = int(np.prod(layer.weight_shape)), 7, -1
    else:
        outputs, bit = int(np.prod(layer.out_shape if site == "feature" else layer.in_shape)), 7
    return FaultPlan.of(program.names, image, at, SITES.index(site), int(rng.integers(outputs)), step, bit)
