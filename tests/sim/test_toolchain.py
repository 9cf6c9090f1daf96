"""Tools of synthesis and place and route: run in a folder, their output kept, their failures told with the remedy."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest

from sim import toolchain
from sim.toolchain import Tool, ToolchainError

PYTHON = Tool("python", "pytest", "toy_tool", "main")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A tool that prints its arguments, writes a file, and exits with the number it is given."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/toy_tool.py").write_text(
        "import pathlib, sys\n"
        "def main(arguments):\n"
        "    print('given', *arguments)\n"
        "    print('last words', file=sys.stderr)\n"
        "    pathlib.Path('made').write_text('here')\n"
        "    return int(arguments[-1])\n"
        "def without():\n"
        "    return main(sys.argv[1:])\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "modules"), *sys.path])
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.mark.parametrize(("function", "own_arguments"), [("main", False), ("without", True)])
def test_a_tool_runs_in_its_folder_and_what_it_prints_is_told_and_kept(toy, function: str, own_arguments: bool) -> None:
    said: list[str] = []
    tool = Tool("toy", "toy", "toy_tool", function, own_arguments)
    toolchain.run(tool, ["a b", "0"], toy, extra="bitstream", progress=said.append, log=toy / "log")
    assert (toy / "made").read_text() == "here"
    assert sorted(said) == ["given a b 0", "last words"]
    assert sorted((toy / "log").read_text().splitlines()) == sorted(said)


def test_a_tool_that_fails_is_an_error_with_the_end_of_what_it_printed(toy) -> None:
    with pytest.raises(ToolchainError, match=r"python failed with status 3 \(all of it: .*log\):\n(.*\n)*last words"):
        toolchain.run(PYTHON, ["3"], toy, extra="bitstream", log=toy / "log")
    assert "given 3" in (toy / "log").read_text()


def test_a_tool_that_is_not_there_is_named_with_its_remedy(tmp_path, monkeypatch) -> None:
    missing = Tool("nextpnr-none", "yowasp-nextpnr-none", "yowasp_nextpnr_none", "run")
    remedy = r"nextpnr-none is missing; run: pip install 'redline\[bitstream\]' \(package yowasp-nextpnr-none\)"
    with pytest.raises(ToolchainError, match=remedy):
        toolchain.run(missing, [], tmp_path, extra="bitstream")
    with pytest.raises(ToolchainError, match=remedy):
        toolchain.versions((missing,), "bitstream")


def test_versions_are_those_of_the_packages() -> None:
    assert toolchain.versions((PYTHON,), "bitstream") == {
        "python": metadata.version("pytest"),
        "amaranth": metadata.version("amaranth"),
    }
