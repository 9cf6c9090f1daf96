"""The boards: pads as other people have them, constraint files that name each port once, clocks that can be made."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from importlib import import_module

import pytest
from amaranth.hdl import Fragment, Module, Signal

from hw.boards.board import LEDS, BoardError, Pad
from hw.boards.catalogue import BOARDS, find
from hw.boards.chip import TOP, Chip, ports
from hw.boards.clock import add_clock
from hw.boards.pll import Pll, PllError
from hw.config import Config

NAMES = tuple(BOARDS)
PLATFORMS = {
    "ulx3s-85f": ("ulx3s", "ULX3S_85F_Platform"),
    "ulx3s-25f": ("ulx3s", "ULX3S_25F_Platform"),
    "orangecrab": ("orangecrab_r0_2", "OrangeCrabR0_2_25FPlatform"),
    "tang-nano-9k": ("tang_nano_9k", "TangNano9kPlatform"),
    "icebreaker": ("icebreaker", "ICEBreakerPlatform"),
}
SITED = {
    "ecp5": re.compile(r'^LOCATE COMP "(\w+)" SITE "(\w+)";$', re.MULTILINE),
    "ice40": re.compile(r"^set_io (?:-\w+ \w+ )*(\w+) (\w+)$", re.MULTILINE),
    "gowin": re.compile(r'^IO_LOC "(\w+)" (\w+);$', re.MULTILINE),
}


SMALL = Config(lanes=2, vec=4, feature_bytes=512, weight_bytes=512, port_bits=32, pool_columns=8)
"""The board's own array would only take longer."""


@cache
def chip(name: str) -> str:
    """The chip of a board, with a small array, as RTLIL."""
    board = BOARDS[name]
    setting = board.pll.nearest(board.reference_mhz, board.mhz)
    return Chip(board, setting, SMALL, 4096, board.baud).convert()


@pytest.mark.parametrize("name", NAMES)
def test_the_constraint_file_names_each_port_of_the_chip_once_at_a_site_of_its_own(name: str) -> None:
    board = BOARDS[name]
    top = chip(name).split(f"module \\{TOP}\n", 1)[1].split("\nmodule ", 1)[0]
    found = re.findall(r"^  wire (?:width 1 )?(?:input|output|inout) \d+ +\\(\w+)$", top, re.MULTILINE)
    sited = SITED[board.family].findall(board.constraints())
    assert sorted(port for port, _ in sited) == sorted(found)
    assert len({site for _, site in sited}) == len(sited)
    assert {"clk", "rx", "tx"} < set(found)


@pytest.mark.parametrize("name", NAMES)
def test_part_clock_and_pads_are_those_of_amaranth_boards(name: str) -> None:
    """Written by other people from the boards' schematics."""
    platforms = pytest.importorskip("amaranth_boards", reason="install: pip install -c constraints.txt '.[dev]'")
    module, kind = PLATFORMS[name]
    platform = getattr(import_module(f"{platforms.__name__}.{module}"), kind)()
    board = BOARDS[name]
    site = {pad.port: pad.site for pad in board.pads}

    part = platform.part if board.family == "gowin" else platform.device
    assert part == board.part
    if board.family == "ecp5":
        assert platform.speed == board.speed
    oscillator = platform.lookup(platform.default_clk)
    assert oscillator.ios[0].names == [site["clk"]]
    assert platform.default_clk_frequency == pytest.approx(board.reference_mhz * 1e6, rel=1e-6)
    if name == "orangecrab":  # no UART of its own: pins 0 and 1 of the header
        header = platform.connectors["io", 0].mapping
        assert (site["rx"], site["tx"]) == (header["0"], header["1"])
    else:
        uart = {line.name: line.ios[0].names for line in platform.lookup("uart").ios if hasattr(line, "ios")}
        assert (uart["rx"], uart["tx"]) == ([site["rx"]], [site["tx"]])
    lit = {site: resource for resource in platform.resources.values() for site in led_sites(resource)}
    for port in LEDS:
        if port in site:
            assert lit[site[port]] != bool(board.led_on)  # inverted where 0 lights it


def led_sites(resource) -> dict[str, bool]:
    """Pads of an LED, or of each colour of one, and whether it is lit by 0."""
    if not resource.name.startswith(("led", "rgb_led")):
        return {}
    parts = [part.ios[0] if hasattr(part, "ios") else part for part in resource.ios]
    return {part.names[0]: part.invert for part in parts if hasattr(part, "names")}


@pytest.mark.parametrize("name", NAMES)
def test_the_default_clock_is_one_that_the_pll_makes(name: str) -> None:
    board = BOARDS[name]
    assert float(board.pll.nearest(board.reference_mhz, board.mhz).mhz) == pytest.approx(board.mhz, rel=0.002)


@pytest.mark.parametrize("name", ["ulx3s-85f", "icebreaker", "tang-nano-9k"])
def test_the_chip_has_the_pll_with_its_dividers(name: str) -> None:
    board = BOARDS[name]
    setting = board.pll.nearest(board.reference_mhz, board.mhz)
    (instance,) = re.findall(rf"cell \\{board.pll.primitive} .*?\n  end\n", chip(name), re.DOTALL)
    for divider, value in setting.dividers:
        assert re.search(rf"parameter (signed )?\\{divider} ({value}|\d+'0*{value:b})\n", instance), divider
    assert re.search(r"connect \\(LOCK|CLKOS|CLKOUT|PLLOUTGLOBAL) ", instance)


def test_an_unknown_board_is_refused_with_the_list_of_boards() -> None:
    with pytest.raises(BoardError, match="no board is called 'ulx4s'; there are: ulx3s-85f, ulx3s-25f, orangecrab"):
        find("ulx4s")


def test_a_pad_without_a_port_is_refused() -> None:
    board = BOARDS["ulx3s-25f"]
    with pytest.raises(BoardError, match="ulx3s-25f has a pad for led_9, which the top level has not"):
        ports(replace(board, pads=(*board.pads, Pad("led_9", "H3"))))


def test_a_pll_without_an_instance_is_refused() -> None:
    board = BOARDS["ulx3s-25f"]
    setting = board.pll.nearest(25, 50)
    other, m = Pll("PLLE2_ADV", *(board.pll.input,) * 4), Module()
    with pytest.raises(PllError, match="no instance of PLLE2_ADV is known"):
        add_clock(m, other, 25, setting, Signal())
    Fragment.get(m, None)  # Amaranth warns of modules that nothing uses
