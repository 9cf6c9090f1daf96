"""Errors: what a device cannot do it refuses with a DeviceError, and works on afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from host.conformance.launches import compare, program_and_images
from host.conformance.suite import PLAIN, Bench, check, need
from host.devices.device import DeviceError
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.faults.models import SoftErrors
from host.program.program import Program
from host.schedule.launch import Launch, schedule
from host.verification.cases import random_program

WORDS = 8
"""A message shorter than this explains nothing."""


def refused(action: Callable[[], object], what: str) -> None:
    """Need an action to raise a DeviceError that says something."""
    try:
        action()
    except DeviceError as error:
        need(len(str(error).split()) >= WORDS, f"{what} is refused without an explanation: {str(error)!r}")
        return
    except Exception as error:
        need(False, f"{what} raises {type(error).__name__} ({error}), not DeviceError")
    need(False, f"{what} is not refused")


def _launch(program: Program, batch: int, units: int = 1) -> Launch:
    """A launch of the program's first layers on the accelerator."""
    positions = next(positions for placement, positions in program.segments() if placement == "accelerator")
    return schedule(program, positions, batch, writeback=True, units=units)


def _works(bench: Bench) -> None:
    program, x = program_and_images(bench, 2)
    with ReferenceDevice(bench.config, memory_bytes=1 << 24) as oracle:
        compare(Runtime(program, bench.device).forward(x), Runtime(program, oracle).forward(x), "after a refusal")


@check
def addresses_outside_memory(bench: Bench) -> None:
    """Reads and writes outside device memory are refused, and change nothing."""
    device, end = bench.device, bench.device.memory_bytes
    device.write(end - 8, np.zeros(8, np.uint8))
    for address in (-1, end - 7, end + 1, 1 << 48):
        refused(lambda at=address: device.read(at, 8), f"reading 8 bytes at {address}")  # type: ignore[misc]
        refused(lambda at=address: device.write(at, np.ones(8, np.uint8)), f"writing 8 bytes at {address}")  # type: ignore[misc]
    refused(lambda: device.read(0, -1), "reading -1 bytes")
    need(not device.read(end - 8, 8).any(), "a refused write has changed memory")


@check
def programs_of_another_accelerator(bench: Bench) -> None:
    """A program for another accelerator is refused: by the runtime, and by the device itself."""
    program, _ = program_and_images(bench, 1)
    other = replace(program, config=replace(bench.config, pool_columns=bench.config.pool_columns * 2))
    refused(lambda: Runtime(other, bench.device), "a runtime for another accelerator")
    refused(lambda: bench.device.launch(_launch(other, 1)), "a launch for another accelerator")
    _works(bench)


@check
def launches_outside_memory(bench: Bench) -> None:
    """A launch whose tensors lie outside device memory is refused."""
    program, _ = program_and_images(bench, 1)
    launch, end = _launch(program, 1), bench.device.memory_bytes
    memory = {name: region._replace(address=region.address + end) for name, region in launch.memory.items()}
    units = []
    for unit in launch.units:
        records = unit.descriptors.copy()
        for name in ("load_addr", "weight_addr", "param_addr", "conv_addr", "pool_addr"):
            records[name] += np.uint64(end)
        units.append(replace(unit, descriptors=records))
    large = replace(launch, memory=memory, units=units)
    refused(lambda: bench.device.launch(large), "a launch outside memory")
    _works(bench)


@check
def more_units_than_there_are(bench: Bench) -> None:
    """A launch for more compute units than the device has is refused."""
    program, _ = program_and_images(bench, 1)
    units = bench.device.units + 1
    refused(lambda: bench.device.launch(_launch(program, units, units)), f"a launch of {units} units")
    _works(bench)


@check
def faults_without_instrumentation(bench: Bench) -> None:
    """Fault events on an accelerator without fault instrumentation are refused, or applied; never ignored."""
    config = PLAIN if bench.config.saboteur else bench.config
    program = random_program(np.random.default_rng(bench.seed + 3), config).with_placement(())
    x = np.zeros((1, *program.input_shape), np.int8)
    plan = SoftErrors(0.2, per="mac").draw(program, 0, 1, 1)
    with bench.another(config) as device, ReferenceDevice(config, memory_bytes=1 << 24) as oracle:
        try:
            found = Runtime(program, device).forward(x, plan=plan)
        except DeviceError:
            return
        compare(found, Runtime(program, oracle).forward(x, plan=plan), "with faults but no instrumentation")


@check
def a_closed_device(bench: Bench) -> None:
    """A closed device refuses everything; closing it twice does no harm."""
    program, _ = program_and_images(bench, 1)
    device = bench.another()
    device.close()
    device.close()
    refused(lambda: device.read(0, 1), "reading from a closed device")
    refused(lambda: device.write(0, np.zeros(1, np.uint8)), "writing to a closed device")
    refused(lambda: device.launch(_launch(program, 1)), "launching on a closed device")
