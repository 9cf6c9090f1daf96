"""The host's side of a simulator process: start it, launch the accelerator in it, notice when it dies or hangs."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cocotb_tools.config
import find_libpython

from hw.config import INTERFACE_VERSION
from hw.errors import RedlineError
from hw.registers import AP_DONE, AP_START, OFFSET
from sim import control
from sim.build import Model, has_blank
from sim.control import ControlPage
from sim.memory import DEFAULT_TIMING, DeviceMemory, Timing
from sim.probe import Trace, read_trace
from sim.tools import find_cocotb

LOG_TAIL_BYTES = 4000
POLL_S = 0.2
COUNTERS = ("cycles", "mac_cycles", "stall_cycles", "bytes_read", "bytes_written")


class SimulatorError(RedlineError, RuntimeError):
    """The simulation went wrong in a way that another try would repeat."""


class SimulatorFailed(SimulatorError):
    """The simulator died, hung or never finished: another try may help."""


# A child started with PR_SET_PDEATHSIG dies with the *thread* that started it, so all are started from one thread that
# lives as long as this process.
_spawner: tuple[int, ThreadPoolExecutor] | None = None


def spawn(command: list[str], **options: object) -> subprocess.Popen[bytes]:
    """Start a process that may tie its life to this one's; the arguments are `Popen`'s."""
    global _spawner
    if _spawner is None or _spawner[0] != os.getpid():  # a forked child inherits no threads
        _spawner = (os.getpid(), ThreadPoolExecutor(1, thread_name_prefix="redline-spawner"))
    return _spawner[1].submit(subprocess.Popen, command, **options).result()  # type: ignore[arg-type,return-value]


def release(process: subprocess.Popen[bytes] | None, owner: int, connection: socket.socket, files: list[int]) -> None:
    """End a simulator and close what was shared with it."""
    connection.close()
    for fd in files:
        os.close(fd)
    if process is not None and os.getpid() == owner:  # a forked child must not end its parent's simulators
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


FOREIGN = (
    "COVERAGE", "COVERAGE_RCFILE", "GUI", "MODULE", "NO_COLOR", "PYTHONWARNINGS", "RANDOM_SEED", "TESTCASE", "TOPLEVEL",
)  # fmt: skip
"""Variables without a prefix that cocotb reads, now or in earlier releases; users mean something else by them."""


def environment(variant: str, module: str = "sim.server") -> dict[str, str]:
    """What a simulator process needs of ours, and cocotb's own variables; `module` serves it."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COCOTB_", "GPI_", "PYGPI_", "REDLINE_SIM_")) and name not in FOREIGN
    }
    if variant == "raw":
        return ours
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *(path or str(Path.cwd()) for path in sys.path)]
    libpython = find_libpython.find_libpython()
    if libpython is None:
        raise SimulatorError("libpython was not found, which cocotb embeds; run: sudo apt-get install libpython3-dev")
    libraries = find_cocotb().path
    if has_blank(libraries):
        # A model cannot name them then.
        ours["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(libraries), ours.get("LD_LIBRARY_PATH")]))
    return ours | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYGPI_PYTHON_BIN": sys.executable,
        "GPI_USERS": f"{libpython};{cocotb_tools.config.pygpi_entry_point()}",
        "COCOTB_TOPLEVEL": "redline_system",
        "COCOTB_TEST_MODULES": module,
        "TOPLEVEL_LANG": "verilog",
        "COCOTB_TRUST_INERTIAL_WRITES": "1",
        "COCOTB_RESULTS_FILE": os.devnull,
        "COCOTB_LOG_LEVEL": "WARNING",
        "COCOTB_ANSI_OUTPUT": "0",
    }


class Spawned:
    """A simulator's process, and the end of what it printed."""

    process: subprocess.Popen[bytes]
    _log: int

    def _spawn(
        self, executable: Path, variables: Mapping[str, str], shared: Mapping[str, int]
    ) -> subprocess.Popen[bytes]:
        """Start it in a session of its own; it inherits the descriptors, by name, and prints to `_log`."""
        return spawn(
            [str(executable)],
            env={**variables, **{f"REDLINE_SIM_{name}": str(fd) for name, fd in shared.items()}},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=tuple(shared.values()),
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Process id of the simulator."""
        return self.process.pid

    @property
    def log(self) -> str:
        """The end of what the process printed."""
        size = os.fstat(self._log).st_size
        return os.pread(self._log, LOG_TAIL_BYTES, max(size - LOG_TAIL_BYTES, 0)).decode(errors="replace").strip()


class Simulator(Spawned):
    """One simulator process: one compute unit on a shared device memory.

    The process runs in a session of its own (Ctrl-C at the terminal does not reach it) and is killed when this one
    ends, in whatever way. It leaves no file and no socket behind.

    Parameters
    ----------
    model : Model
        From `sim.build.build`.
    memory : DeviceMemory
    timing : Timing
        Of the memory.
    waves : Path, optional
        Where to write an FST of everything; needs a model of variant "waves".
    hang_s : float
        Wall time without progress of the simulated clock after which the process counts as hung.
    start_s : float
        Wall time the process may take to start.

    Raises
    ------
    SimulatorFailed
        If the process does not start.
    SimulatorError
        If the model is of another configuration than it is said to be.
    """

    def __init__(
        self,
        model: Model,
        memory: DeviceMemory,
        *,
        timing: Timing = DEFAULT_TIMING,
        waves: Path | None = None,
        hang_s: float = 10.0,
        start_s: float = 60.0,
    ) -> None:
        if waves is not None and model.variant != "waves":
            raise ValueError(f"waves need a model of variant 'waves', not {model.variant!r}")
        self.model = model
        self.hang_s = hang_s
        self._start_s = start_s
        self._ready = False
        self._socket, theirs = socket.socketpair()
        page = os.memfd_create("redline-control", os.MFD_CLOEXEC)
        self._log = os.memfd_create("redline-log", os.MFD_CLOEXEC)
        self._probe = os.memfd_create("redline-probe", os.MFD_CLOEXEC) if model.config.probe else None
        files = [fd for fd in (self._log, self._probe) if fd is not None]
        process = None
        try:
            os.ftruncate(page, control.PAGE_BYTES)
            self.page = ControlPage(page)
            self._set_up(memory, timing)
            shared = {"CONTROL": page, "MEMORY": memory.fd, "SOCKET": theirs.fileno()}
            if self._probe is not None:
                shared["PROBE"] = self._probe
            variables = environment(model.variant)
            if waves is not None:
                variables["REDLINE_SIM_WAVES"] = str(waves.absolute())
            process = self._spawn(model.executable, variables, shared)
        except OSError as error:
            raise SimulatorError(f"the simulator {model.executable} cannot be started: {error}") from error
        finally:
            theirs.close()
            os.close(page)
            self._finalizer = weakref.finalize(self, release, process, os.getpid(), self._socket, files)
            if process is None:
                self._finalizer()
        self.process = process

    def _set_up(self, memory: DeviceMemory, timing: Timing) -> None:
        page, beat = self.page, self.model.config.port_bytes
        rate = round(256 * min(timing.bytes_per_cycle or beat, beat))
        page["magic"] = control.MAGIC
        page["latency"] = timing.latency
        page["read_rate"] = page["write_rate"] = max(rate, 1)
        page["memory_bytes"] = memory.nbytes
        page["stall_seed"] = timing.stalls.seed & 0xFFFFFFFFFFFFFFFF
        for channel, name in enumerate(("ar", "r", "aw", "w", "b")):
            page.array("stall")[channel] = int(getattr(timing.stalls, name) * 0xFFFFFFFF)
        page["parent"] = os.getpid()

    def _failed(self, what: str) -> SimulatorFailed:
        return SimulatorFailed(f"{what}\nits log: {self.log or '(empty)'}")

    def _gone(self) -> SimulatorFailed:
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return self._failed(f"the simulator (process {self.pid}) closed its connection")
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return self._failed(f"the simulator (process {self.pid}) {how}")

    def _send(self, request: bytes) -> None:
        try:
            self._socket.sendall(request)
        except OSError as error:
            raise self._gone() from error

    def _answer(self, limit_s: float) -> bytes:
        """Wait for an answer; `limit_s` counts from the last progress of the simulated clock."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        cycles, since = self.page["cycles"], time.monotonic()
        while not poll.poll(min(POLL_S, limit_s) * 1000):
            now = self.page["cycles"]
            if now != cycles:
                cycles, since = now, time.monotonic()
            elif time.monotonic() - since > limit_s:
                raise self._failed(
                    f"the simulator (process {self.pid}) hangs: no progress in {limit_s:g} s at cycle {now}"
                )
        try:
            answer = self._socket.recv(1)
        except OSError as error:
            raise self._gone() from error
        if not answer:
            raise self._gone()
        return answer

    def wait_ready(self) -> None:
        """Wait until the process has started, and check that it is the accelerator it should be.

        Raises
        ------
        SimulatorFailed, SimulatorError
        """
        if self._ready:
            return
        if self._answer(self._start_s) != control.ANSWER_READY:
            raise self._failed(f"the simulator (process {self.pid}) does not speak the protocol")
        words = self._script(reads=("config_hash_lo", "config_hash_hi", "interface_version"))
        found = words["config_hash_hi"] << 32 | words["config_hash_lo"]
        if found != self.model.config.hash or words["interface_version"] != INTERFACE_VERSION:
            raise SimulatorError(
                f"the gateware in the simulator is of another build: configuration hash {found:#018x}, interface "
                f"{words['interface_version']}; the host expects {self.model.config.hash:#018x}, interface "
                f"{INTERFACE_VERSION}; build both from the same sources and parameters"
            )
        self._ready = True

    def _script(self, *, writes: Mapping[str, int] = {}, reads: tuple[str, ...] = ()) -> dict[str, int]:
        """Write registers, then read registers; waits for both."""
        entries = [(control.OP_WRITE, OFFSET[name], value) for name, value in writes.items()]
        entries += [(control.OP_READ, OFFSET[name], 0) for name in reads]
        self.page.set_script(entries)
        self._send(control.REQUEST_SCRIPT)
        if self._answer(self.hang_s) != control.ANSWER_DONE:
            raise self._failed("the control port does not answer a register access")
        self._check_script(len(entries))
        data = self.page.array("data")[len(writes) : len(entries)].tolist()
        return dict(zip(reads, data, strict=True))

    def _check_script(self, entries: int) -> None:
        bad = self.page.array("response")[:entries].nonzero()[0]
        if len(bad):
            address = int(self.page.array("address")[bad[0]])
            raise SimulatorError(f"the control port answers an access to register {address:#04x} with an error")

    def begin(self, arguments: Mapping[str, int], max_cycles: int) -> None:
        """Start one launch, without waiting for it.

        Parameters
        ----------
        arguments : mapping
            Value by register name (`hw.registers`); a name with `_lo` and `_hi` registers takes 64 bits.
        max_cycles : int
            Clock cycles after which the launch counts as hung.

        Raises
        ------
        SimulatorFailed, SimulatorError
        """
        self.wait_ready()
        self.page.clear_message()
        if self._probe is not None:
            os.ftruncate(self._probe, 0)
            os.lseek(self._probe, 0, os.SEEK_SET)  # the offset is shared with the simulator
        words = {"gie": 1, "ier": 1}
        for name, value in arguments.items():
            if name in OFFSET:
                words[name] = value
            else:
                words[f"{name}_lo"], words[f"{name}_hi"] = value & 0xFFFFFFFF, value >> 32
        words["ap_ctrl"] = AP_START
        self.page["max_cycles"] = max_cycles
        self.page.set_script([(control.OP_WRITE, OFFSET[name], value) for name, value in words.items()])
        self._send(control.REQUEST_LAUNCH)

    def finish(self) -> dict[str, int]:
        """Wait for the launch that `begin` started.

        Returns
        -------
        dict
            `COUNTERS` and `faults_applied`, by name.

        Raises
        ------
        SimulatorFailed
            If the process died or hung, or the accelerator did not finish within `max_cycles`.
        SimulatorError
            If the accelerator touched memory that is not there, or broke the AXI protocol.
        """
        entries = self.page["ops"]
        answer = self._answer(self.hang_s)
        if answer != control.ANSWER_DONE:
            message = self.page.message
            raise self._failed(
                f"the accelerator did not raise its interrupt within {self.page['max_cycles']} cycles"
                + (f" after a bad memory access: {message}" if message else "")
            )
        self._check_script(entries)
        halves = tuple(f"{name}_{half}" for name in COUNTERS for half in ("lo", "hi"))
        words = self._script(writes={"isr": 1}, reads=("ap_ctrl", "faults_applied", *halves))
        if not words["ap_ctrl"] & AP_DONE:
            raise self._failed(f"the interrupt came but ap_ctrl reads {words['ap_ctrl']:#x}: the launch is not done")
        if self.page["errors"]:
            raise SimulatorError(f"the accelerator made {self.page['errors']} bad memory accesses: {self.page.message}")
        counters = {name: words[f"{name}_hi"] << 32 | words[f"{name}_lo"] for name in COUNTERS}
        return counters | {"faults_applied": words["faults_applied"]}

    def launch(self, arguments: Mapping[str, int], max_cycles: int) -> dict[str, int]:
        """`begin`, then `finish`."""
        self.begin(arguments, max_cycles)
        return self.finish()

    @property
    def trace(self) -> Trace:
        """What the probe outputs showed during the last launch.

        Raises
        ------
        SimulatorError
            If the model was built without `Config.probe`.
        """
        if self._probe is None:
            raise SimulatorError("this simulator has no probes; build it with Config(probe=True)")
        data = os.pread(self._probe, os.fstat(self._probe).st_size, 0)
        return read_trace(data, self.model.config.lanes, self.model.config.vec)

    def close(self) -> None:
        """End the process and release everything; harmless a second time."""
        if not self._finalizer.alive:
            return
        # A simulator that writes waves ends by itself when the connection closes, and completes the file.
        if self.model.variant == "waves" and self._ready:
            self._socket.close()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(self.hang_s)
        self._finalizer()
        self.page.close()
