"""The boards that `redline bitstream` knows. What of their arrays, buffers and clocks was measured: docs/boards.md."""

from __future__ import annotations

from dataclasses import replace

from hw.boards.board import Board, BoardError, Pad
from hw.boards.pll import Ehxplll, Rpll, SbPll40
from hw.config import Config

SMALL = Config(
    lanes=4,
    vec=4,
    feature_bytes=4096,
    weight_bytes=65536,
    port_bits=32,
    pool_columns=32,
    address_bits=17,
    count_bits=17,
    extent_bits=10,
    control="microcode",
)
"""For chips of a few thousand tables."""

_LVCMOS = (("IO_TYPE", "LVCMOS33"),)

ULX3S_85F = Board(
    name="ulx3s-85f",
    title="ULX3S with LFE5U-85F",
    family="ecp5",
    part="LFE5U-85F",
    package="CABGA381",
    speed="6",
    has={"lut": 83640, "ff": 83640, "dsp": 156, "ram": 208},
    pll=Ehxplll(),
    reference_mhz=25,
    pads=(
        Pad("clk", "G2", (*_LVCMOS, ("PULLMODE", "NONE"))),
        Pad("rx", "M1", (*_LVCMOS, ("PULLMODE", "UP"))),
        Pad("tx", "L4", (*_LVCMOS, ("PULLMODE", "UP"), ("DRIVE", "4"))),
        *(
            Pad(port, site, (*_LVCMOS, ("PULLMODE", "NONE"), ("DRIVE", "4")))
            for port, site in (("led_open", "B2"), ("led_busy", "C2"), ("led_error", "C1"))
        ),
        Pad("wifi_gpio0", "L2", (*_LVCMOS, ("PULLMODE", "UP"), ("DRIVE", "4"))),
    ),
    led_on=1,
    high=("wifi_gpio0",),  # low, the board's ESP32 would take the chip's configuration port
    config=Config(
        lanes=8,
        vec=4,
        feature_bytes=16384,
        weight_bytes=16384,
        port_bits=32,
        pool_columns=64,
        address_bits=20,
        count_bits=18,
        extent_bits=12,
    ),
    memory_bytes=128 << 10,
    mhz=38.1,
    baud=1_000_000,
    program=("openFPGALoader -b ulx3s {file}", "fujprog {file}", "fujprog -j FLASH {file}"),
    serial="the USB port US1, an FT231X: /dev/ttyUSB0 or the like",
    source="constraints/ulx3s_v20.lpf of emard/ulx3s-misc",
)

ULX3S_25F = replace(
    ULX3S_85F,
    name="ulx3s-25f",
    title="ULX3S with LFE5U-25F",
    part="LFE5U-25F",
    has={"lut": 24288, "ff": 24288, "dsp": 28, "ram": 56},
    config=replace(ULX3S_85F.config, lanes=4, feature_bytes=4096, weight_bytes=8192),
    memory_bytes=84 << 10,
    mhz=40,
)

ORANGECRAB = Board(
    name="orangecrab",
    title="OrangeCrab r0.2 with LFE5U-25F",
    family="ecp5",
    part="LFE5U-25F",
    package="CSFBGA285",
    speed="8",
    has=ULX3S_25F.has,
    pll=Ehxplll(),
    reference_mhz=48,
    pads=(
        Pad("clk", "A9", _LVCMOS),
        Pad("rx", "N17", (*_LVCMOS, ("PULLMODE", "UP"))),
        Pad("tx", "M18", _LVCMOS),
        Pad("led_open", "M3", _LVCMOS),
        Pad("led_busy", "J3", _LVCMOS),
        Pad("led_error", "K4", _LVCMOS),
    ),
    led_on=0,
    config=ULX3S_25F.config,
    memory_bytes=ULX3S_25F.memory_bytes,
    mhz=54,
    baud=1_000_000,
    program=("dfu-util -d 1209:5af0 -a 0 -D {file}",),
    serial="a 3.3 V USB-to-UART adapter: its transmit at pin 0, its receive at pin 1 of the header",
    source="verilog/orangecrab_r0.2.1.pcf of orangecrab-fpga/orangecrab-examples",
)

TANG_NANO_9K = Board(
    name="tang-nano-9k",
    title="Tang Nano 9K with GW1NR-9C",
    family="gowin",
    part="GW1NR-LV9QN88PC6/I5",
    package="QN88P",
    speed="C6/I5",
    has={"lut": 8640, "ff": 6480, "dsp": 40, "ram": 26},
    pll=Rpll(),
    reference_mhz=27,
    pads=(
        Pad("clk", "52", _LVCMOS),
        Pad("rx", "18", (*_LVCMOS, ("PULL_MODE", "UP"))),
        Pad("tx", "17", _LVCMOS),
        # Bank 3 is supplied with 1.8 V.
        *(
            Pad(port, site, (("IO_TYPE", "LVCMOS18"),))
            for port, site in (("led_open", "10"), ("led_busy", "11"), ("led_error", "13"))
        ),
    ),
    led_on=0,
    config=SMALL,
    memory_bytes=36 << 10,
    mhz=39,
    baud=1_000_000,
    program=("openFPGALoader -b tangnano9k {file}", "openFPGALoader -b tangnano9k -f {file}"),
    serial="the USB port, a BL702: the second of its two serial ports",
    source="examples/himbaechel/tangnano9k.cst of YosysHQ/apicula, and the board's schematic for the UART",
)

ICEBREAKER = Board(
    name="icebreaker",
    title="iCEBreaker with iCE40UP5K",
    family="ice40",
    part="iCE40UP5K",
    package="sg48",
    speed="",
    has={"lut": 5280, "ff": 5280, "dsp": 8, "ram": 30},
    pll=SbPll40(),
    reference_mhz=12,
    pads=(
        Pad("clk", "35"),
        Pad("rx", "6", (("pullup", "yes"),)),
        Pad("tx", "9"),
        Pad("led_busy", "37"),
        Pad("led_error", "11"),
    ),
    led_on=0,
    config=SMALL,
    memory_bytes=128 << 10,
    mhz=19.875,
    baud=1_000_000,
    program=("iceprog -S {file}", "iceprog {file}"),
    serial="the USB port, an FT2232H: the second of its two serial ports",
    source="icebreaker/icebreaker.pcf of icebreaker-fpga/icebreaker-verilog-examples",
)

BOARDS = {board.name: board for board in (ULX3S_85F, ULX3S_25F, ORANGECRAB, TANG_NANO_9K, ICEBREAKER)}


def find(name: str) -> Board:
    """The board of that name.

    Raises
    ------
    BoardError
        If there is none; the message lists what there is.
    """
    if name not in BOARDS:
        raise BoardError(f"no board is called {name!r}; there are: {', '.join(BOARDS)}")
    return BOARDS[name]
