"""The `opencl` device: the accelerator's descriptors on PoCL, a GPU, or a board's gateware."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyopencl as cl

from host.devices import extents
from host.devices.checks import check_faults, check_launch, check_range
from host.devices.device import Bytes, Device, DeviceError, LaunchReport
from host.devices.opencl import platforms
from host.devices.opencl.overlap import Overlapped
from host.devices.opencl.session import Running, Session
from host.devices.opencl.source import shape_for
from hw.config import Config

if TYPE_CHECKING:
    from host.program.program import Program
    from host.schedule.launch import Launch

DEFAULT_CONFIG = Config()
MOST_UNITS = 16


class OpenCLDevice(Device):
    """The accelerator on an OpenCL device: buffers, transfers, kernel and events, and nothing else.

    Parameters
    ----------
    config : Config
        The accelerator. A binary must have been built for it.
    platform, device_name : str, optional
        Parts of the names of the wanted platform and device ("nvidia", "pocl", "u250"); the first that fits is taken.
    binary : path, optional
        A binary, instead of the source: a board's (`.xclbin`, `.aocx`) with the kernel that `redline kernel` makes, or
        what `save` wrote.
    memory_bytes : int
        Size of device memory: one OpenCL buffer.
    units : int, optional
        Compute units; the OpenCL device's own, at most 16, by default.
    launch_timeout_s : float
        A launch that takes longer hangs: it is given up, and the device set up anew.
    parts : int, optional
        Parts of a batch whose transfers overlap computing (`Overlapped`); by default 1 on processors, whose transfers
        would take the cores' time, and 4 elsewhere.
    group : int, optional
        Work-items of a compute unit, for a program from source; 1 on processors, 128 elsewhere by default.

    Raises
    ------
    DeviceError
        If there is no such OpenCL device, its memory is too small, or the program is of another build.
    """

    name = "opencl"
    knows_conditions = True

    def __init__(
        self,
        config: Config = DEFAULT_CONFIG,
        *,
        platform: str | None = None,
        device_name: str | None = None,
        binary: Path | str | None = None,
        memory_bytes: int = 1 << 28,
        units: int | None = None,
        launch_timeout_s: float = 120.0,
        parts: int | None = None,
        group: int | None = None,
    ) -> None:
        self.opencl = platforms.find(platform, device_name)
        most = self.opencl.max_mem_alloc_size
        if memory_bytes > most:
            raise DeviceError(
                f"buffers of {self.opencl.name.strip()!r} have at most {most} bytes, less than "
                f"memory_bytes={memory_bytes}"
            )
        self.config, self.memory_bytes = config, memory_bytes
        self.units = min(MOST_UNITS, self.opencl.max_compute_units) if units is None else units
        if self.units < 1:
            raise ValueError(f"units must be at least 1, not {self.units}")
        self.launch_timeout_s = launch_timeout_s
        self._binary = None if binary is None else Path(binary)
        processor = bool(self.opencl.type & cl.device_type.CPU)
        self.parts = (1 if processor else 4) if parts is None else parts
        self._shape = shape_for(config, processor=processor, group=group)
        self._session: Session | None = self._made()

    def _made(self) -> Session:
        with _as_device_errors("the OpenCL device cannot be set up"):
            return Session(
                self.opencl,
                self.config,
                self._shape,
                self._binary,
                self.memory_bytes,
                self.units,
            )

    @property
    def session(self) -> Session:
        """The context in use; another after a hung launch."""
        if self._session is None:
            raise DeviceError("this opencl device is closed; make a new one")
        return self._session

    def write(self, address: int, array: npt.NDArray) -> None:
        self.finish_transfer(*self.begin_write(address, array))

    def read(self, address: int, nbytes: int) -> Bytes:
        array, *events = self.begin_read(address, nbytes)
        self.finish_transfer(*events)
        return array

    def launch(self, launch: Launch) -> LaunchReport:
        return self.finish(self.begin(launch))

    # What follows is for those who overlap transfers with computing (overlap.py).

    def begin_write(self, address: int, array: npt.NDArray, after: Sequence[Any] = ()) -> tuple[Any, ...]:
        """Start copying an array to memory once events are complete; its event, if there is anything to copy."""
        session = self.session
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        check_range(self, address, data.nbytes)
        if not data.nbytes:
            return ()
        with _as_device_errors("a transfer to the device failed"):
            # The event keeps the array alive.
            event = cl.enqueue_copy(
                session.upload, session.memory, data, dst_offset=address, is_blocking=False, wait_for=list(after)
            )
            session.upload.flush()
        return (event,)

    def begin_read(self, address: int, nbytes: int, after: Sequence[Any] = ()) -> tuple[Any, ...]:
        """Start copying from memory once events are complete; the array, then its event, if there is one."""
        session = self.session
        check_range(self, address, nbytes)
        data = np.empty(nbytes, np.uint8)
        if not nbytes:
            return (data,)
        with _as_device_errors("a transfer from the device failed"):
            event = cl.enqueue_copy(
                session.download, data, session.memory, src_offset=address, is_blocking=False, wait_for=list(after)
            )
            session.download.flush()
        return data, event

    @staticmethod
    def finish_transfer(*events: Any) -> None:
        """Wait for what `begin_write` or `begin_read` started."""
        with _as_device_errors("a transfer failed"):
            for event in events:
                event.wait()

    def begin(self, launch: Launch, after: Sequence[Any] = ()) -> Running:
        """Start a launch once events are complete."""
        session = self.session
        check_launch(self, launch)
        check_faults(self, launch)
        for unit in launch.units:
            extents.check(unit.descriptors, self.config, self.memory_bytes)
        with _as_device_errors("the launch failed"):
            return session.begin(launch, after)

    def finish(self, running: Running) -> LaunchReport:
        """Wait for a launch.

        Raises
        ------
        DeviceError
            If it failed or hung. The device was set up anew then, and what else ran is lost, too.
        """
        if running.session is not self.session:
            raise DeviceError("the launch was lost when the device was set up anew; launch it again")
        try:
            with _as_device_errors("the launch failed"):
                return self.session.wait(running, self.launch_timeout_s)
        except BaseException:
            # A kernel that still runs would write into what comes next.
            self._session = None
            self._session = self._made()
            raise

    def runtime(self, program: Program) -> Overlapped:
        return Overlapped(program, self, parts=self.parts)

    def save(self, path: Path) -> None:
        """Write the program as the driver's binary, for `binary=`."""
        (content,) = self.session.program.kernel.program.get_info(cl.program_info.BINARIES)
        path.write_bytes(content)

    def close(self) -> None:
        self._session = None


@contextmanager
def _as_device_errors(what: str) -> Iterator[None]:
    """OpenCL's errors as DeviceErrors."""
    try:
        yield
    except cl.Error as error:
        raise DeviceError(f"{what}: {error}") from error
