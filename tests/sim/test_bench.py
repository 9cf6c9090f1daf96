"""The bench machinery: streams under back-pressure, builds kept, and a waveform of exactly the failing case."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from sim import bench
from sim.bench import BenchFailed, component_verilog, run_bench
from sim.cache import BuildError

FIFO = "tests.sim.benches.fifo"


class Fifo(wiring.Component):
    """A FIFO between two streams; `fickle` makes it break the protocol by withdrawing what it offers."""

    def __init__(self, fickle: bool = False) -> None:
        self.fickle = fickle
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(8))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=8, depth=4)
        wiring.connect(m, wiring.flipped(self.i), fifo.w_stream)
        hidden = Signal()
        if self.fickle:
            m.d.sync += hidden.eq(~hidden)
        m.d.comb += [
            self.o.payload.eq(fifo.r_data),
            self.o.valid.eq(fifo.r_rdy & ~hidden),
            fifo.r_en.eq(self.o.ready & self.o.valid),
        ]
        return m


@pytest.fixture(scope="module")
def fifo() -> str:
    """Verilog of the FIFO."""
    return component_verilog(Fifo(), "fifo")


@pytest.mark.parametrize("pause_out", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("pause_in", [0.0, 0.7])
def test_a_fifo_keeps_order_under_back_pressure(fifo: str, pause_in: float, pause_out: float) -> None:
    handler = signal.getsignal(signal.SIGINT)
    run_bench(fifo, "fifo", FIFO, parameters={"PAUSE_IN": pause_in, "PAUSE_OUT": pause_out})
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_stream_that_withdraws_its_offer_is_caught() -> None:
    text = component_verilog(Fifo(fickle=True), "fifo")
    with pytest.raises(BenchFailed, match=r"(?s)keeps_order failed.*which vanished before it was taken"):
        run_bench(text, "fifo", FIFO, parameters={"PAUSE_IN": 0, "PAUSE_OUT": 0.5}, waves=False)


def test_a_failure_names_the_case_and_offers_a_waveform(fifo: str) -> None:
    with pytest.raises(BenchFailed, match=r"(?s)seed 5 .*: fails_on_purpose failed.*AssertionError.*WAVES=1"):
        run_bench(fifo, "fifo", FIFO, parameters={"PAUSE_IN": 0, "PAUSE_OUT": 0, "FAIL": 1}, seed=5, waves=False)


def test_waves_are_left_for_exactly_the_failing_case(
    fifo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "WAVES_DIRECTORY", tmp_path / "waves")
    monkeypatch.setenv("WAVES", "1")
    path = tmp_path / "waves" / "fifo.fails_on_purpose.fst"
    with pytest.raises(BenchFailed, match=rf"waveform of fails_on_purpose: {path}"):
        run_bench(fifo, "fifo", FIFO, parameters={"PAUSE_IN": 0, "PAUSE_OUT": 0, "FAIL": 1})
    assert path.stat().st_size > 500
    assert list(path.parent.iterdir()) == [path]


def test_a_bench_of_broken_verilog_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"(?s)the bench of fifo cannot be built.*syntax error"):
        run_bench("module fifo(; endmodule", "fifo", FIFO, cache=tmp_path)
