"""Gateware behind OpenCL: what it says of itself, and of each launch, in its completion record (`hw.record`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyopencl as cl

from host.devices.device import DeviceError, LaunchReport
from host.devices.opencl.waiting import completed
from hw import record
from hw.config import INTERFACE_VERSION, Config
from hw.registers import ARGUMENTS

Words = npt.NDArray[np.void]

IDENTITY_TIMEOUT_S = 10.0
"""A launch of no jobs takes microseconds."""
_ZEROS = np.zeros(1, record.DTYPE)


def clear(queue: Any, buffer: Any) -> Any:
    """Make sure that what is read next was written by the next launch; the event, which must be kept until then."""
    return cl.enqueue_copy(queue, buffer, _ZEROS, is_blocking=False)


def identify(kernel: Any, queue: Any, config: Config, what: str) -> None:
    """Ask gateware which build it is, by a launch of no jobs.

    Raises
    ------
    DeviceError
        If it is another than `config`, or does not answer.
    """
    context = queue.context
    values: dict[str, Any] = {
        argument.name: cl.Buffer(context, cl.mem_flags.READ_WRITE, record.RECORD_BYTES)
        if argument.is_pointer
        else np.uint32(0)
        for argument in ARGUMENTS
    }
    cleared = clear(queue, values["record"])
    event = kernel(queue, (1,), (1,), *(values[argument.name] for argument in ARGUMENTS), wait_for=[cleared])
    queue.flush()
    if not completed([event], IDENTITY_TIMEOUT_S):
        raise DeviceError(
            f"{what} does not answer: a launch of no jobs was not done after {IDENTITY_TIMEOUT_S:g} s; reset the board"
        )
    said = np.zeros(1, record.DTYPE)
    cl.enqueue_copy(queue, said, values["record"])
    check(said, config, 0, what)


def check(said: Words, config: Config, jobs: int, what: str) -> None:
    """Refuse what another build did, or what went wrong.

    Parameters
    ----------
    said : array of `hw.record.DTYPE`, shape (1,)
        The launch's record, cleared before the launch.
    config : Config
    jobs : int
        Descriptors of the launch.
    what : str
        What launched, for messages.

    Raises
    ------
    DeviceError
    """
    found = said[0]
    if not said.tobytes().strip(b"\0"):
        raise DeviceError(f"{what} left no completion record: it was not built by 'redline kernel' (docs/kernel.md)")
    if (found["config_hash"], found["interface_version"]) != (config.hash, INTERFACE_VERSION):
        raise DeviceError(
            f"{what} is of another build (hash {int(found['config_hash']):#018x}, interface "
            f"{found['interface_version']}) than {config} (hash {config.hash:#018x}, interface {INTERFACE_VERSION}): "
            "give the parameters it was built with, or the right binary"
        )
    if found["status"] & record.MISALIGNED:
        raise DeviceError(
            f"{what} executed nothing: the platform placed a buffer at an address that is not a multiple of 4096"
        )
    for bit, done in ((record.READ_ERROR, "read"), (record.WRITE_ERROR, "write")):
        if found["status"] & bit:
            raise DeviceError(
                f"the board's memory answered a {done} of {what} with an error: results are worthless; is "
                "memory_bytes= more than a bank of its memory?"
            )
    if found["jobs"] != jobs:
        raise DeviceError(f"{what} did {found['jobs']} of {jobs} jobs: the kernel failed")


def report(said: Words) -> LaunchReport:
    """A launch's counters."""
    return LaunchReport(**{name: int(said[name][0]) for name in LaunchReport.__dataclass_fields__})
