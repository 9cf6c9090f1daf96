"""The simulator is built once for each content, and a failed build says what to do."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import sim.build
from hw.config import Config
from sim.build import build, verilog_for
from sim.cache import BuildError, cache_directory
from sim.tools import Tool, Toolchain, find_toolchain
from tests.sim.fixtures.toy import toy_verilog


def with_fake_verilator(folder: Path, script: str) -> Toolchain:
    """The real tools, with a shell script for Verilator."""
    program = folder / "verilator"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return replace(find_toolchain(), verilator=Tool(program, "Verilator 5.040"))


def test_an_unchanged_design_is_converted_once(tmp_path: Path) -> None:
    calls = []

    def generate(config: Config) -> str:
        calls.append(config)
        return "module redline; endmodule"

    for _ in range(2):
        assert verilog_for(Config(), generate=generate, cache=tmp_path) == "module redline; endmodule"
    verilog_for(Config(lanes=8), generate=generate, cache=tmp_path)
    assert [config.lanes for config in calls] == [16, 8]


def test_gateware_that_cannot_be_converted_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim.build, "HERE", tmp_path / "sim")
    (tmp_path / "hw").mkdir()
    (tmp_path / "hw" / "config.py").write_text("class Config: __init__ = lambda *_, **__: None")
    (tmp_path / "hw" / "verilog.py").write_text("def generate(config): raise NameError('a broken design')")
    with pytest.raises(BuildError, match=r"(?s)cannot be converted to Verilog for Config.*a broken design"):
        verilog_for(Config(), cache=tmp_path / "cache")


def test_gateware_edited_during_the_conversion_is_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = iter(({"lane.py": "old"}, {"lane.py": "new"}))
    monkeypatch.setattr(sim.build, "_hw_sources", lambda: next(versions))
    with pytest.raises(BuildError, match="changed while they were converted"):
        verilog_for(Config(), generate=lambda _: "", cache=tmp_path)
    assert not list((tmp_path / "verilog").iterdir())


def test_an_unchanged_model_is_built_once() -> None:
    first, second = (build(Config(), verilog=toy_verilog(Config())) for _ in range(2))
    assert first == second
    assert first.executable.exists()


def test_each_variant_has_its_own_entry() -> None:
    text = toy_verilog(Config())
    models = [build(Config(), verilog=text, variant=variant) for variant in ("cosim", "raw", "waves")]
    assert len({model.executable for model in models}) == 3


def test_a_design_without_a_port_is_refused(tmp_path: Path) -> None:
    text = toy_verilog(Config()).replace("m_axi_gmem_rlast", "m_axi_gmem_rend")
    with pytest.raises(BuildError, match=r"(?s)lacks a port of the kernel interface.*m_axi_gmem_rlast"):
        build(Config(), verilog=text, cache=tmp_path)


def test_broken_verilog_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"(?s)Verilator failed; its last lines:.*syntax error"):
        build(Config(), verilog="module redline(; endmodule", cache=tmp_path)


def test_a_disk_that_fills_up_during_the_build_leaves_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    tools = with_fake_verilator(tmp_path, "echo 'fatal error: error writing to x.o: No space left on device'; exit 1")
    with pytest.raises(BuildError, match=r"no space left while building in .*free some, or point REDLINE_CACHE"):
        build(Config(), verilog=toy_verilog(Config()), tools=tools, cache=cache)
    assert {path.name for path in cache.rglob("*")} == {"lock", "model"}


def test_a_full_disk_is_named_even_if_the_tool_that_met_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    tools = with_fake_verilator(tmp_path, "echo 'cannot write'; exit 1")
    with pytest.raises(BuildError, match=r"(?s)no space left while building in .*cannot write"):
        build(Config(), verilog=toy_verilog(Config()), tools=tools, cache=tmp_path / "cache")


def test_a_tool_that_vanished_is_named(tmp_path: Path) -> None:
    tools = replace(find_toolchain(), verilator=Tool(tmp_path / "gone", "Verilator 5.040"))
    with pytest.raises(BuildError, match="Verilator cannot be started"):
        build(Config(), verilog=toy_verilog(Config()), tools=tools, cache=tmp_path)


def test_a_cache_whose_path_has_a_blank_is_built_in(tmp_path: Path) -> None:
    text = toy_verilog(Config())
    model = build(Config(), verilog=text, variant="raw", cache=tmp_path / "my cache")
    assert model.executable.is_file()
    assert model.verilog.read_text() == text
    assert {path.name for path in model.executable.parent.iterdir()} >= {"build.log", "control.h"}
    assert not list(model.executable.parent.glob("building-*"))


def test_a_temporary_folder_with_a_blank_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "my tmp"))
    with pytest.raises(BuildError, match="set TMPDIR to a folder without"):
        build(Config(), verilog=toy_verilog(Config()), variant="raw", cache=tmp_path / "my cache")


def test_a_relative_cache_is_where_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDLINE_CACHE", "here")
    assert cache_directory() == tmp_path / "here"
