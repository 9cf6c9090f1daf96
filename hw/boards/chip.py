# amaranth: UnusedElaboratable=no
# (What a constructor refuses is never used.)

"""All that goes onto a board's chip: clock generator, top level, and the pads."""

from __future__ import annotations

from amaranth.back import rtlil
from amaranth.hdl import Elaboratable, Module, Signal

from hw.boards.board import CLOCK, LEDS, RECEIVE, TRANSMIT, Board, BoardError
from hw.boards.clock import add_clock
from hw.boards.pll import Setting
from hw.boards.top import BoardTop
from hw.config import Config

TOP = "chip"


def ports(board: Board) -> list[str]:
    """The names of the ports that the chip has on a board.

    Raises
    ------
    BoardError
        If the board has a pad for a port that the top level has not.
    """
    known = {CLOCK, RECEIVE, TRANSMIT, *LEDS, *board.high}
    for pad in board.pads:
        if pad.port not in known:
            raise BoardError(f"{board.name} has a pad for {pad.port}, which the top level has not")
    return [pad.port for pad in board.pads]


class Chip(Elaboratable):
    """The chip of a board.

    Parameters
    ----------
    board : Board
    setting : Setting
        Of the PLL.
    config : Config
    memory_bytes : int
    baud : int

    Attributes
    ----------
    ports : dict of str to Signal
        By the names of the board's pads.

    Raises
    ------
    BoardError
        If the board has a pad for a port that is not there.
    ConfigError
        If the top level cannot be built.
    """

    def __init__(self, board: Board, setting: Setting, config: Config, memory_bytes: int, baud: int) -> None:
        self.ports = {name: Signal(name=name) for name in ports(board)}
        self._board, self._setting = board, setting
        single_port = board.family == "ice40"  # its large memories have one port
        self._top = BoardTop(config, memory_bytes, float(setting.mhz) * 1e6, baud, single_port=single_port)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        board, ports = self._board, self.ports
        add_clock(m, board.pll, board.reference_mhz, self._setting, ports[CLOCK])
        m.submodules.top = top = self._top
        m.d.comb += [top.rx.eq(ports[RECEIVE]), ports[TRANSMIT].eq(top.tx)]
        for name in LEDS:
            if name in ports:
                lit = getattr(top, name)
                m.d.comb += ports[name].eq(lit if board.led_on else ~lit)
        m.d.comb += [ports[name].eq(1) for name in board.high]
        return m

    def convert(self) -> str:
        """The chip as RTLIL: module `chip`."""
        return str(rtlil.convert(self, name=TOP, ports=list(self.ports.values()), emit_src=False))
