"""The generated Verilog: lint-clean but for the commented waivers, and the same text for the same parameters."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import sim
from hw.config import Config
from hw.verilog import TOP
from sim.build import verilog_for
from sim.tools import find_verilator
from tests.hw.stage import CONFIGS, PIPECNN

WAIVERS = Path(sim.__file__).parent / "rtl" / "lint.vlt"


def lint(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Verilator's opinion of a Verilog text."""
    (folder / "redline.v").write_text(text)
    tool = find_verilator()
    command = [str(tool.path), "--lint-only", "-Wall", "--top-module", TOP, str(WAIVERS), "redline.v"]
    environment = {**os.environ, **tool.environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("config", [*CONFIGS, PIPECNN, Config()], ids=["wide", "deep", "narrow", "pipecnn", "default"])
def test_the_verilog_is_lint_clean(config: Config, tmp_path: Path) -> None:
    done = lint(verilog_for(config), tmp_path)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_the_waivers_hide_no_latch(tmp_path: Path) -> None:
    text = "module redline(input a, output reg b);\n  always @* if (a) b = 1;\nendmodule\n"
    done = lint(text, tmp_path)
    assert done.returncode != 0
    assert "LATCH" in done.stderr
