"""A simulated board: its top level in a process of its own, its serial line a pseudo-terminal of this machine."""

from __future__ import annotations

import os
import select
import socket
import tty
import weakref
from contextlib import suppress
from pathlib import Path

from hw.boards.top import DEFAULT_INBOX
from hw.config import Config
from sim import control
from sim.build import build_board
from sim.client import SimulatorError, Spawned, environment, release
from sim.control import ControlPage
from sim.memory import DeviceMemory

CYCLES = 4
"""Clock cycles a bit: few, since simulating them is what transfers cost."""
BAUD = 1_000_000
START_S = 60.0


class SimulatedBoard(Spawned):
    """A board (`hw.boards.top.BoardTop`) that runs until it is closed, or this process ends.

    Parameters
    ----------
    config : Config
    memory_bytes : int
        Its on-chip memory.
    inbox_bytes : int
        Its buffer for requests.
    cache : Path, optional
        Build cache instead of `sim.cache.cache_directory()`.

    Attributes
    ----------
    path : str
        The pseudo-terminal: what a real board's serial port would be.
    baud : int
        Of the simulated line. In wall time it is as fast as the simulation.

    Raises
    ------
    ToolError, BuildError
        If the simulator cannot be built.
    SimulatorError
        If it does not start.
    """

    baud = BAUD

    def __init__(
        self,
        config: Config,
        memory_bytes: int,
        *,
        inbox_bytes: int = DEFAULT_INBOX,
        cache: Path | None = None,
    ) -> None:
        self.model = build_board(config, memory_bytes, CYCLES * BAUD, BAUD, inbox_bytes, cache=cache)
        self._socket, theirs = socket.socketpair()
        # The page ties the process's life to ours; it has no use for the memory that goes with it.
        memory = DeviceMemory(1 << 12)
        page = os.memfd_create("redline-control", os.MFD_CLOEXEC)
        self._log = os.memfd_create("redline-log", os.MFD_CLOEXEC)
        terminal, line = os.openpty()
        tty.setraw(line)
        self.path = os.ttyname(line)
        process = None
        try:
            os.ftruncate(page, control.PAGE_BYTES)
            with_parent = ControlPage(page)
            with_parent["magic"], with_parent["parent"] = control.MAGIC, os.getpid()
            with_parent["memory_bytes"] = memory.nbytes
            with_parent.close()
            shared = {"CONTROL": page, "MEMORY": memory.fd, "SOCKET": theirs.fileno(), "SERIAL": terminal}
            process = self._spawn(self.model.executable, environment("cosim", "sim.board_server"), shared)
        except OSError as error:
            raise SimulatorError(f"the simulator {self.model.executable} cannot be started: {error}") from error
        finally:
            theirs.close()
            memory.close()
            os.close(page)
            # The line hangs up when the process ends, and only then: a host may come and go.
            os.close(terminal)
            files = [self._log, line]
            self._finalizer = weakref.finalize(self, release, process, os.getpid(), self._socket, files)
            if process is None:
                self._finalizer()
        self.process = process
        self._wait_ready()

    def _wait_ready(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        answer = self._socket.recv(1) if poll.poll(START_S * 1000) else b""
        if answer != control.ANSWER_READY:
            log = self.log
            self.close()
            raise SimulatorError(f"the simulated board does not start\nits log: {log or '(empty)'}")

    def close(self) -> None:
        """End the process: to a host it is as if the board were unplugged. Harmless a second time."""
        with suppress(OSError):
            self._finalizer()
