"""The `serial` device: an accelerator on a board, behind a serial line."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from host.devices import extents
from host.devices.checks import check_faults, check_launch, check_range
from host.devices.device import Bytes, Device, DeviceError, LaunchReport
from host.devices.serial.port import LineLost, Port, available
from host.devices.serial.session import Request, Session
from hw.config import INTERFACE_VERSION, Config
from hw.link.protocol import MAGIC, MOST_DATA, OFFSET, VERSION, Op
from hw.registers import AP_DONE, AP_IDLE, AP_START
from hw.registers import OFFSET as REGISTER
from sim.board import SimulatedBoard
from sim.client import SimulatorError

if TYPE_CHECKING:
    from host.schedule.launch import Launch, Unit

DEFAULT_CONFIG = Config()
DEFAULT_BAUD = 1_000_000
SIMULATED_BYTES = 1 << 17
"""Memory of a simulated board: about what a small ECP5 has left."""
SIMULATED_TIMEOUT_S = 5.0
"""Simulators of other processes may have the processor for a while."""
COUNTERS = ("cycles", "mac_cycles", "stall_cycles", "bytes_read", "bytes_written")
MOST_POLL_S = 0.05
CHECKED_EVERY = 16
"""Polls between looks at the cycle counter."""
CLOCKS_HZ = range(1_000, 10**10)
"""Clocks that a board can have."""
SLOWEST_HZ = 10_000
"""Cycles a second that a simulated board computes at least."""
SLACK = 2
"""Times that a launch may take longer than its most cycles, and `SLACK_S` beside, before the board counts as hung."""
SLACK_S = 30.0
WIDE_TRIES = 4
"""A counter's high word changes every 2**32 cycles: twice while it is read is no counter."""


class SerialDevice(Device):
    """The accelerator on a board, through `hw.boards.top.BoardTop`.

    Lost and damaged frames are repeated (`host.devices.serial.session`). A board that does not answer any more, or was
    reset, is lost for good: this device refuses everything from then on, since nobody knows what is in memory.

    Parameters
    ----------
    config : Config
        The accelerator; the board's bitstream must have been built for it.
    port : str, optional
        The serial port ("/dev/ttyUSB0", "COM3"), or a URL that pyserial knows.
    baud : int
        As the bitstream was built.
    simulated : bool
        Instead of a port: build the board in simulation, and talk to it through a pseudo-terminal.
    memory_bytes : int, optional
        Of a simulated board, how much it has. Of a real one, what it must have at least; what it has is used.
    timeout_s : float, optional
        Silence after which what was sent counts as lost.
    attempts : int
        Times that it is sent before the board counts as lost.
    cache : Path, optional
        Build cache of a simulated board, instead of `sim.cache.cache_directory()`.

    Attributes
    ----------
    clock_hz : int
        The accelerator's clock, as the board says.
    repeated : int
        Requests sent more than once since the device was made.

    Raises
    ------
    DeviceError
        If there is no such port, no board answers, or it is another than `config` says.
    ToolError, BuildError
        If a simulated board cannot be built.
    """

    name = "serial"
    knows_conditions = True

    def __init__(
        self,
        config: Config = DEFAULT_CONFIG,
        *,
        port: str | None = None,
        baud: int = DEFAULT_BAUD,
        simulated: bool = False,
        memory_bytes: int | None = None,
        timeout_s: float | None = None,
        attempts: int = 8,
        cache: Path | None = None,
    ) -> None:
        if (port is None) != simulated:
            raise DeviceError(
                "the serial device needs either port= (the board's serial port) or simulated=True (a board in "
                f"simulation); {available()}"
            )
        self.config = config
        self._board: SimulatedBoard | None = None
        self._port: Port | None = None
        self._session: Session | None = None
        self._unknown = True  # what the accelerator is doing
        try:
            if port is None:
                self._board = self._simulate(memory_bytes or SIMULATED_BYTES, cache)
                port, baud = self._board.path, self._board.baud
            if timeout_s is None:
                timeout_s = SIMULATED_TIMEOUT_S if simulated else 0.5
            self._port = Port(port, baud)
            self._session = Session(self._port, baud, timeout_s=timeout_s, attempts=attempts)
            self._identify(port, memory_bytes)
            self._settle()
        except BaseException:
            self.close()
            raise

    def _simulate(self, memory_bytes: int, cache: Path | None) -> SimulatedBoard:
        try:
            return SimulatedBoard(self.config, memory_bytes, cache=cache)
        except SimulatorError as error:
            raise DeviceError(f"the simulated board does not start: {error}") from error

    def _identify(self, port: str, wanted_bytes: int | None) -> None:
        """Refuse every board but the right one."""
        if (magic := self._board_register("magic")) != MAGIC:
            raise DeviceError(f"what answers on {port} is no Redline board (it says {magic:#x}); load a bitstream")
        if (version := self._board_register("version")) != VERSION:
            raise DeviceError(
                f"the board on {port} speaks version {version} of the link, this host version {VERSION}; build its "
                "bitstream from this release and load it"
            )
        found = self._register("config_hash_hi") << 32 | self._register("config_hash_lo")
        interface = self._register("interface_version")
        if (found, interface) != (self.config.hash, INTERFACE_VERSION):
            raise DeviceError(
                f"the bitstream on {port} is of another accelerator: configuration hash {found:#018x}, interface "
                f"{interface}; this device is {self.config}, hash {self.config.hash:#018x}, interface "
                f"{INTERFACE_VERSION}. Load the bitstream built for it, or give the parameters that the board's was "
                "built with"
            )
        self.memory_bytes = self._board_register("memory_bytes")
        self.clock_hz = self._board_register("clock_hz")
        if self.clock_hz not in CLOCKS_HZ or not self.memory_bytes:
            raise DeviceError(
                f"the board on {port} says that its clock has {self.clock_hz} Hz and its memory {self.memory_bytes} "
                "bytes: its bitstream is damaged or of another version; load one of this release"
            )
        self.session.room = self._board_register("inbox_bytes")
        if wanted_bytes is not None and wanted_bytes > self.memory_bytes:
            raise DeviceError(
                f"the board on {port} has {self.memory_bytes} bytes of memory, fewer than memory_bytes={wanted_bytes}; "
                "build its bitstream with more, or ask for less"
            )

    @property
    def session(self) -> Session:
        """The way to the board."""
        if self._session is None:
            raise DeviceError("this serial device is closed; make a new one")
        return self._session

    @property
    def repeated(self) -> int:
        """Requests sent more than once since the device was made."""
        return self.session.repeated

    def _board_register(self, name: str) -> int:
        return self.session.ask(Request(Op.GET, OFFSET[name]))

    def _register(self, name: str) -> int:
        return self.session.ask(Request(Op.GET, REGISTER[name]))

    def _settle(self) -> None:
        """Bring the accelerator to rest, if nobody knows what it is doing."""
        if self._unknown:
            self.session.exchange([Request(Op.RESET)])
            self._unknown = False

    def write(self, address: int, array: npt.NDArray) -> None:
        session = self.session
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).tobytes()
        check_range(self, address, len(data))
        pieces = [(at, data[at : at + MOST_DATA]) for at in range(0, len(data), MOST_DATA)]
        session.exchange([Request(Op.WRITE, len(piece), address + at, piece) for at, piece in pieces])

    def read(self, address: int, nbytes: int) -> Bytes:
        session = self.session
        check_range(self, address, nbytes)
        places = range(address, address + nbytes, MOST_DATA)
        pieces = session.exchange(
            [Request(Op.READ, min(MOST_DATA, address + nbytes - place), place) for place in places]
        )
        return np.frombuffer(b"".join(pieces), np.uint8).copy()

    def launch(self, launch: Launch) -> LaunchReport:
        session = self.session
        check_launch(self, launch)
        check_faults(self, launch)
        (unit,) = launch.units
        extents.check(unit.descriptors, self.config, self.memory_bytes)
        with self._known_afterwards():
            self._settle()
            self._unknown = True
            self.write(unit.descriptors_address, unit.descriptors)
            self.write(unit.mac_events_address, unit.mac_events)
            self.write(unit.feature_events_address, unit.feature_events)
            self.write(unit.late_masks_address, unit.late_masks)
            words = {"gie": 1, "ier": 1, **words_of(arguments(unit)), "ap_ctrl": AP_START}
            session.exchange([Request(Op.PUT, REGISTER[name], value) for name, value in words.items()])
            self._wait(launch.max_cycles)
            # The interrupt, which also tells the board that the launch is over, is cleared by toggling it.
            session.exchange([Request(Op.PUT, REGISTER["isr"], 1)])
            if self._board_register("outside"):
                raise DeviceError(
                    f"the accelerator touched memory outside the board's {self.memory_bytes} bytes; its results are "
                    "void. This is a defect of the schedule or the gateware, or its clock is too fast for its control"
                )
            report = self._report()
            self._unknown = False
        return report

    @contextmanager
    def _known_afterwards(self) -> Iterator[None]:
        """After a failure, let the accelerator do no more; what cannot be done now is done before the next launch."""
        try:
            yield
        except LineLost:
            raise
        except DeviceError:
            with suppress(DeviceError):
                self._settle()
            raise

    def _wait(self, max_cycles: int) -> None:
        """Wait until the accelerator is done.

        Raises
        ------
        DeviceError
            If it takes more than `max_cycles`, or is not running at all.
        """
        pause, polls, before = 0.0, 0, -1
        rate = SLOWEST_HZ if self._board is not None else self.clock_hz
        deadline = time.monotonic() + SLACK * max_cycles / rate + SLACK_S
        while not (state := self._register("ap_ctrl")) & AP_DONE:
            if state & AP_IDLE:
                raise DeviceError(
                    "the accelerator has stopped without finishing the launch: its clock is too fast for its control, "
                    "or another program uses the board; lower the clock, and launch again"
                )
            polls += 1
            if polls % CHECKED_EVERY == 0:
                cycles = self._wide("cycles")
                if cycles > max_cycles or cycles <= before or time.monotonic() > deadline:
                    raise DeviceError(
                        f"the accelerator hangs: it has not finished after {cycles} cycles of at most {max_cycles}; it "
                        "has been reset. If that happens again, its clock is too fast for its control: lower it"
                    )
                before = cycles
            time.sleep(pause)
            pause = min(MOST_POLL_S, 1.5 * pause + 0.0005)

    def _wide(self, name: str) -> int:
        """A counter of 64 bits that may be counting."""
        high = self._register(f"{name}_hi")
        for _ in range(WIDE_TRIES):
            low, again = self._register(f"{name}_lo"), self._register(f"{name}_hi")
            if again == high:
                return high << 32 | low
            high = again
        raise DeviceError(
            f"the counter {name} changes its high word each time it is read: the accelerator's clock is too fast for "
            "its control, or the bitstream is damaged; lower the clock, or load it again"
        )

    def _report(self) -> LaunchReport:
        counters = {name: self._wide(name) for name in COUNTERS}
        return LaunchReport(**counters, faults_applied=self._register("faults_applied"))

    def describe(self) -> str:
        where = "simulated board" if self._board is not None else f"board on {self._port.name if self._port else '?'}"
        return f"serial ({where}, {self.memory_bytes} bytes, {self.clock_hz / 1e6:g} MHz)"

    def close(self) -> None:
        self._session = None
        port, self._port = self._port, None
        if port is not None:
            port.close()
        board, self._board = self._board, None
        if board is not None:
            board.close()


def arguments(unit: Unit) -> dict[str, int]:
    """Register values that make the accelerator execute a unit's lists."""
    values = {"descriptors": unit.descriptors_address, "jobs": len(unit.descriptors)}
    values |= {"mac_events": unit.mac_events_address, "mac_event_count": len(unit.mac_events)}
    values |= {"feature_events": unit.feature_events_address, "feature_event_count": len(unit.feature_events)}
    values |= {"late_masks": unit.late_masks_address, "late_mask_count": len(unit.late_masks)}
    return values


def words_of(values: Mapping[str, int]) -> dict[str, int]:
    """The same as 32-bit registers."""
    words = {}
    for name, value in values.items():
        if name in REGISTER:
            words[name] = value
        else:
            words[f"{name}_lo"], words[f"{name}_hi"] = value & 0xFFFFFFFF, value >> 32
    return words
