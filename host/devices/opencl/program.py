"""The program that an OpenCL device runs: compiled from source, or loaded from a board's binary."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl

from host.devices.device import DeviceError
from host.devices.opencl import gateware
from host.devices.opencl.source import INTERFACE, Shape, source
from hw.config import Config
from hw.registers import ARGUMENTS

KERNEL, IDENTITY = "redline", "redline_identity"
GATEWARE_ARGUMENTS = len(ARGUMENTS)
"""Those of the register map: descriptors, both lists of events, late masks; where memory is, and the record goes."""
SOURCE_ARGUMENTS = 14
"""The lists, memory, and what gateware has of its own: feature buffers, weights, results, their size, status. A build
with overclocking takes one more: the masks of its banks."""
IDENTITY_WORDS = 3


@dataclass(frozen=True)
class Program:
    """A kernel `redline` that was built for the right accelerator.

    Attributes
    ----------
    kernel : pyopencl.Kernel
    group : int
        Work-items of one compute unit.
    operand_bytes : int
        Size of one feature or weight in the kernel's own buffers; 0 for gateware, which takes `GATEWARE_ARGUMENTS`.
    """

    kernel: Any
    group: int
    operand_bytes: int

    @property
    def is_gateware(self) -> bool:
        """Whether the kernel has memory and buffers of its own."""
        return self.kernel.num_args == GATEWARE_ARGUMENTS


def compiled(context: Any, device: Any, config: Config, shape: Shape) -> Any:
    """The program of an accelerator from source, as a pyopencl.Program.

    Raises
    ------
    DeviceError
        If the driver's compiler refuses it; with its log.
    """
    return _build(cl.Program(context, source(config, shape)), device, "the OpenCL C kernel", ["-cl-std=CL1.2"])


def loaded(context: Any, device: Any, binary: Path) -> Any:
    """The program in a board's or driver's binary, as a pyopencl.Program.

    Raises
    ------
    DeviceError
        If there is no such file, or it is not for this device.
    """
    try:
        content = binary.read_bytes()
    except OSError as error:
        raise DeviceError(f"{binary}: {error.strerror}; binary= takes a file that was built for the board") from error
    try:
        made = cl.Program(context, [device], [content])
    except cl.Error as error:
        raise DeviceError(f"{binary} is no program for {device.name.strip()!r}: {error}") from error
    return _build(made, device, str(binary))


def _build(program: Any, device: Any, what: str, options: Sequence[str] = ()) -> Any:
    try:
        with warnings.catch_warnings():
            # A driver's compiler may be talkative; what matters is whether it fails.
            warnings.simplefilter("ignore", cl.CompilerWarning)
            return program.build(list(options), devices=[device])
    except cl.Error as error:
        raise DeviceError(f"{what} cannot be built for {device.name.strip()!r}: {error}") from error


def checked(program: Any, queue: Any, config: Config, what: str) -> Program:
    """The program's kernel, if the program was built for this accelerator.

    Raises
    ------
    DeviceError
        If it lacks a kernel, or is of another build.
    """
    kernel = _kernel(program, KERNEL, what)
    if kernel.num_args == GATEWARE_ARGUMENTS:
        gateware.identify(kernel, queue, config, what)
        return Program(kernel, 1, 0)
    if kernel.num_args != SOURCE_ARGUMENTS + bool(config.overclock):
        raise DeviceError(
            f"{what}: kernel {KERNEL} takes {kernel.num_args} arguments instead of the register map's "
            f"{GATEWARE_ARGUMENTS}: rebuild it with this Redline"
        )
    identity = _kernel(program, IDENTITY, what)
    said = np.zeros(IDENTITY_WORDS, np.uint64)
    buffer = cl.Buffer(queue.context, cl.mem_flags.WRITE_ONLY, said.nbytes)
    cl.enqueue_copy(queue, buffer, said)
    identity(queue, (1,), (1,), buffer)
    cl.enqueue_copy(queue, said, buffer)
    found, interface, operand_bytes = (int(word) for word in said)
    if (found, interface) != (config.hash, INTERFACE):
        raise DeviceError(
            f"{what} is of another build (hash {found:#018x}, interface {interface}) than {config} (hash "
            f"{config.hash:#018x}, interface {INTERFACE}): give the parameters it was built with, or the right binary"
        )
    group = kernel.get_work_group_info(cl.kernel_work_group_info.COMPILE_WORK_GROUP_SIZE, queue.device)[0]
    return Program(kernel, max(1, group), operand_bytes)


def _kernel(program: Any, name: str, what: str) -> Any:
    try:
        return cl.Kernel(program, name)
    except cl.Error as error:
        raise DeviceError(
            f"{what} has no kernel {name!r}: it was not built for Redline (docs/opencl.md says how)"
        ) from error
