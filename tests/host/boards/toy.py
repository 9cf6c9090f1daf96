"""A chip of a few cells on a real board: the PLL, a counter, and every pad."""

from __future__ import annotations

from amaranth.back import rtlil
from amaranth.hdl import Elaboratable, Module, Signal

from host.boards.flow import Design
from hw.boards.board import CLOCK, RECEIVE
from hw.boards.chip import TOP
from hw.boards.clock import add_clock


class Toy(Elaboratable):
    """A counter that the received line resets; its upper bits are on all outputs."""

    def __init__(self, design: Design) -> None:
        self._design = design
        self.ports = {pad.port: Signal(name=pad.port) for pad in design.board.pads}

    def elaborate(self, platform: object) -> Module:
        m = Module()
        board, ports = self._design.board, dict(self.ports)
        add_clock(m, board.pll, board.reference_mhz, self._design.setting, ports.pop(CLOCK))
        counter = Signal(24)
        m.d.sync += counter.eq(counter + 1)
        with m.If(~ports.pop(RECEIVE)):
            m.d.sync += counter.eq(0)
        m.d.comb += [port.eq(counter[-1 - index]) for index, port in enumerate(ports.values())]
        return m


class ToyDesign(Design):
    """A design with the toy in place of the accelerator."""

    def source(self) -> str:
        toy = Toy(self)
        return str(rtlil.convert(toy, name=TOP, ports=list(toy.ports.values()), emit_src=False))
