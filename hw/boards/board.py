"""What a build must know of a board: part, pads, clock, what fits, how it is programmed; and its constraint file."""

from __future__ import annotations

from dataclasses import dataclass

from hw.boards.pll import Pll
from hw.config import Config
from hw.errors import RedlineError


class BoardError(RedlineError, ValueError):
    """No such board, or its top level has not the ports that it has pads for."""


CLOCK, RECEIVE, TRANSMIT = "clk", "rx", "tx"
"""Ports that every board has."""
LEDS = ("led_open", "led_busy", "led_error")
"""Ports of the top level that a board has if it has LEDs for them."""


@dataclass(frozen=True)
class Pad:
    """Where one port of the top level goes.

    Attributes
    ----------
    port : str
    site : str
        The package's name of the ball or pin.
    attributes : tuple of (str, str)
        In the terms of the family's constraint file.
    """

    port: str
    site: str
    attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board.

    Attributes
    ----------
    name : str
        As the command line takes it.
    title : str
    family : str
        "ecp5", "gowin" or "ice40".
    part, package, speed : str
        Of the chip; the package and the speed grade in the place-and-route tool's terms.
    has : dict of str to int
        What the chip has of "lut", "ff", "dsp" (multipliers), "ram" (blocks).
    pll : Pll
    reference_mhz : float
        The oscillator on the board.
    pads : tuple of Pad
        Of the ports `clk`, `rx`, `tx`, of LEDS, and of `high`.
    led_on : int
        The level that lights an LED.
    high : tuple of str
        Ports that are held at 1.
    config : Config
        The default: what was measured to fit.
    memory_bytes : int
        Device memory in block RAM, by default.
    mhz : float
        The default clock, just below what place and route reaches with the default seed.
    baud : int
        Of the serial link.
    program : tuple of str
        Commands that load the bitstream `{file}`: until power is cut, then for good.
    serial : str
        Where the serial link is to be found.
    source : str
        The public constraint file that the pads were taken from.
    """

    name: str
    title: str
    family: str
    part: str
    package: str
    speed: str
    has: dict[str, int]
    pll: Pll
    reference_mhz: float
    pads: tuple[Pad, ...]
    led_on: int
    high: tuple[str, ...] = ()
    config: Config
    memory_bytes: int
    mhz: float
    baud: int
    program: tuple[str, ...]
    serial: str
    source: str

    def constraints(self) -> str:
        """The constraint file: every port once, with its site."""
        return _WRITERS[self.family](self)


def _lpf(board: Board) -> str:
    lines = [f'FREQUENCY PORT "{CLOCK}" {board.reference_mhz:g} MHZ;']
    for pad in board.pads:
        lines.append(f'LOCATE COMP "{pad.port}" SITE "{pad.site}";')
        attributes = " ".join(f"{name}={value}" for name, value in pad.attributes)
        lines.append(f'IOBUF PORT "{pad.port}" {attributes};')
    return "\n".join([*lines, ""])


def _pcf(board: Board) -> str:
    lines = []
    for pad in board.pads:
        options = " ".join(f"-{name} {value}" for name, value in pad.attributes)
        lines.append(" ".join(["set_io", *([options] if options else []), pad.port, pad.site]))
    lines.append(f"set_frequency {CLOCK} {board.reference_mhz:g}")
    return "\n".join([*lines, ""])


def _cst(board: Board) -> str:
    lines = []
    for pad in board.pads:
        lines.append(f'IO_LOC "{pad.port}" {pad.site};')
        lines += [f'IO_PORT "{pad.port}" {name}={value};' for name, value in pad.attributes]
    return "\n".join([*lines, ""])


_WRITERS = {"ecp5": _lpf, "ice40": _pcf, "gowin": _cst}
SUFFIX = {"ecp5": "lpf", "ice40": "pcf", "gowin": "cst"}
"""Of the family's constraint file."""
