"""Runs cocotb benches of single designs through cocotb-test, building each design once and tracing what fails."""

from __future__ import annotations

import logging
import os
import re
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from cocotb_test.simulator import Verilator

from sim.cache import BuildError, cached, digest
from sim.tools import find_toolchain

BUILD_ARGUMENTS = ("--no-public-flat-rw", "-Wno-fatal", "-Wno-lint", "-Wno-style", "-O3", "--x-initial", "fast")
# Without the first, the PyPI wheel's builds fail on precompiled headers.
MAKE_ARGUMENTS = ("CFG_CXXFLAGS_PCH_I=-include", "OPT_FAST=-O1", "OPT_SLOW=-O0", "OPT_GLOBAL=-O1")
WAVES_DIRECTORY = Path("sim_build")
LOG_LINES = 60


class BenchFailed(AssertionError):
    """A bench found an error; the message quotes the simulator and names the waveform, if there is one."""


def component_verilog(component: Any, name: str) -> str:
    """Verilog of an Amaranth component, as module `name` with ports `clk`, `rst` and its flattened members."""
    from amaranth.back import verilog

    return str(verilog.convert(component, name=name, emit_src=False, strip_internal_attrs=True))


class _Run(Verilator):
    """cocotb-test's Verilator flow, in two halves: the cache lies between them."""

    executable: Path | None = None

    def build_command(self) -> list[list[str]]:
        if self.executable is None:
            return list(super().build_command())
        return [[str(self.executable), *self.plus_args]]


class _Lines(logging.Handler):
    """Collects what cocotb-test logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    @property
    def tail(self) -> str:
        """The last lines."""
        return "\n".join(self.lines[-LOG_LINES:])


@contextmanager
def _surroundings() -> Iterator[_Lines]:
    """Verilator on the search path and cocotb-test's log caught; undoes what cocotb-test changes in this process."""
    tools = find_toolchain()
    log, logger = _Lines(), logging.getLogger("cocotb")
    environment = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    os.environ.update(tools.verilator.environment)
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "WAVES", "PYTHONWARNINGS", "COCOTB_RESULTS_FILE"):
        os.environ.pop(name, None)
    if tools.ccache:
        os.environ["OBJCACHE"] = str(tools.ccache)
    propagate, level = logger.propagate, logger.level
    logger.addHandler(log)
    logger.propagate = False
    try:
        yield log
    finally:
        logger.removeHandler(log)
        logger.propagate = propagate
        logger.setLevel(level)
        os.environ.clear()
        os.environ.update(environment)
        try:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        except ValueError:
            pass  # not the main thread: cocotb-test has not touched them either


def _build(verilog: str, toplevel: str, waves: bool, cache: Path | None) -> Path:
    """The bench's executable."""
    arguments = [*BUILD_ARGUMENTS, *(["-LDFLAGS", "-llz4"] if waves else [])]
    identity = find_toolchain().identity
    key = digest({"verilog": verilog, "top": toplevel, "waves": waves, "arguments": arguments, **identity})

    def make(folder: Path) -> None:
        (folder / "bench.v").write_text(verilog)
        # Only the ports are public: all else would cost most of the speed.
        (folder / "public.vlt").write_text(f'`verilator_config\npublic_flat_rw -module "{toplevel}" -var "*"\n')
        with _surroundings() as log:
            try:
                _Run(
                    list(MAKE_ARGUMENTS),
                    toplevel=toplevel,
                    module="none",
                    verilog_sources=[str(folder / "public.vlt"), str(folder / "bench.v")],
                    compile_args=arguments,
                    sim_build=str(folder / "obj"),
                    compile_only=True,
                    waves=waves,
                    timescale="1ns/1ps",
                ).run()
            except SystemExit as error:
                raise BuildError(f"the bench of {toplevel} cannot be built: {error}\n{log.tail}") from error

    return cached("bench", key, make, directory=cache) / "obj" / toplevel


def _failures(results: Path) -> list[str]:
    """Names of the cases that failed, from cocotb's result file."""
    cases = ET.parse(results).getroot().iter("testcase")
    return [
        case.get("name", "") for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]


def _simulate(
    executable: Path,
    toplevel: str,
    module: str,
    folder: Path,
    environment: Mapping[str, str],
    seed: int,
    case: str | None = None,
    waves: Path | None = None,
) -> tuple[list[str], str]:
    """Run a bench; the cases that failed, and the end of the log."""
    results = folder / "results.xml"
    with _surroundings() as log:
        os.environ["COCOTB_RESULTS_FILE"] = str(results)
        os.environ["COCOTB_ANSI_OUTPUT"] = "0"
        run = _Run(
            None,
            toplevel=toplevel,
            module=module,
            sim_build=str(folder),
            testcase=None if case is None else rf"\.{re.escape(case)}$",
            seed=seed,
            extra_env=dict(environment),
            plus_args=["--trace", "--trace-file", str(waves)] if waves else [],
        )
        run.executable = executable
        try:
            run.run()
        except SystemExit as error:
            failures = _failures(results) if results.exists() else []
            return failures or [case or "(the simulator)"], log.tail or str(error)
        return [], log.tail


def run_bench(
    verilog: str,
    toplevel: str,
    test_module: str,
    *,
    parameters: Mapping[str, object] | None = None,
    seed: int = 1,
    waves: bool | None = None,
    cache: Path | None = None,
) -> None:
    """Run the cocotb tests of a module on a design.

    Parameters
    ----------
    verilog : str
        Text with module `toplevel`.
    toplevel : str
    test_module : str
        Importable name of the module with the cocotb tests.
    parameters : mapping, optional
        Reach the bench as environment variables.
    seed : int
        Of `random` in the bench.
    waves : bool, optional
        Repeat exactly the cases that fail with a trace, and leave `sim_build/MODULE.CASE.fst`. Default: `WAVES=1` in
        the environment.
    cache : Path, optional
        Instead of `sim.cache.cache_directory()`.

    Raises
    ------
    BenchFailed
        If a case fails.
    BuildError, ToolError
        If the design cannot be built.
    """
    waves = os.environ.get("WAVES", "0") not in ("", "0") if waves is None else waves
    environment = {name: str(value) for name, value in (parameters or {}).items()}
    executable = _build(verilog, toplevel, False, cache)
    with tempfile.TemporaryDirectory(prefix="redline-bench-") as folder:
        failed, log = _simulate(executable, toplevel, test_module, Path(folder), environment, seed)
        if not failed:
            return
        notes = []
        if waves:
            traced = _build(verilog, toplevel, True, cache)
            WAVES_DIRECTORY.mkdir(exist_ok=True)
            for case in failed:
                name = re.sub(r"[^\w.=-]+", "-", f"{test_module.rpartition('.')[2]}.{case}.fst")
                path = (WAVES_DIRECTORY / name).resolve()
                _simulate(traced, toplevel, test_module, Path(folder), environment, seed, case, path)
                notes.append(f"waveform of {case}: {path}")
        else:
            notes.append("run again with WAVES=1 for a waveform of exactly what failed")
    cases, shown = ", ".join(failed), "\n".join(notes)
    raise BenchFailed(f"{test_module} with seed {seed} {environment or ''}: {cases} failed\n{log}\n{shown}")
