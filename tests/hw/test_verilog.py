"""The generated Verilog: lint-clean but for the commented waivers, and the same text for the same parameters."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import sim
from hw.config import Config
from hw.verilog import TOP, ZEROED_WORDS, generate, without_zeroing
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


@pytest.mark.parametrize(
    "config",
    [*CONFIGS, PIPECNN, Config(), replace(CONFIGS[0], overclock=32)],
    ids=["wide", "deep", "narrow", "pipecnn", "default", "overclock"],
)
def test_the_verilog_is_lint_clean(config: Config, tmp_path: Path) -> None:
    done = lint(verilog_for(config), tmp_path)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_the_waivers_hide_no_latch(tmp_path: Path) -> None:
    text = "module redline(input a, output reg b);\n  always @* if (a) b = 1;\nendmodule\n"
    done = lint(text, tmp_path)
    assert done.returncode != 0
    assert "LATCH" in done.stderr


def test_only_small_memories_are_zeroed_word_by_word() -> None:
    config = Config(lanes=8, vec=4, port_bits=64, feature_bytes=1 << 14, weight_bytes=1 << 14)
    text = generate(config)
    assert f"[{config.feature_words - 1}:0];" in text, "the buffers are memories"
    blocks = [block.split("end\n")[0] for block in text.split("initial begin\n")[1:]]
    assert blocks, "queues are still zeroed"
    assert max(block.count("\n") for block in blocks) <= ZEROED_WORDS


def test_an_initialisation_other_than_zero_stays() -> None:
    depth = 2 * ZEROED_WORDS
    zeros = [f"    memory[{at}] = 16'd0;\n" for at in range(depth)]
    block = "  initial begin\n{}  end\n  always @(posedge clk)\n"
    assert without_zeroing(block.format("".join(zeros))) == "  always @(posedge clk)\n"
    for change in ("    memory[7] = 16'd10;\n", "    other[7] = 16'd0;\n", "    memory[7] = 16'd0; x = 1;\n"):
        kept = block.format("".join([*zeros[:7], change, *zeros[8:]]))
        assert without_zeroing(kept) == kept
    small = block.format("".join(zeros[:ZEROED_WORDS]))
    assert without_zeroing(small) == small
