"""What differs between the families of chips: how Yosys, nextpnr and the packer are called, and what they count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hw.boards.board import Board
from hw.boards.chip import TOP
from sim.toolchain import ECPPACK, GOWIN_PACK, ICEPACK, NEXTPNR_ECP5, NEXTPNR_GOWIN, NEXTPNR_ICE40, YOSYS, Tool

SOURCE, SYNTHESISED, REPORT = "chip.il", "synthesised.json", "timing.json"
RESOURCES = ("lut", "ff", "dsp", "ram")
"""Look-up tables (with those that are carries or memories), flip-flops, multipliers, block RAMs."""

_MERGE = "simplemap t:$dff*; opt_expr; opt_merge; wreduce; opt -full; opt_clean -purge; "
"""Equal registers become one (copies of sign bits), and what they feed as narrow as it can be: a level a time."""
_LEVELS = 6


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes
    ----------
    synthesise : str
        Yosys' command.
    place : Tool
    place_options : callable
        Of board, constraint file and clock in MHz.
    pack : Tool
    pack_options : callable
        Of board and bitstream's name.
    routed : str
        The file between the two.
    suffix : str
        Of the bitstream.
    before : mapping of str to mapping of str to int
        For each resource, how much of it a cell of Yosys' takes. Of Gowin's multipliers, one of 18 bits is two of 9.
    after : mapping of str to mapping of str to int
        Likewise, of the kinds that nextpnr counts.
    large : mapping of str to str
        Further block memories of the chip, by nextpnr's name: what they are called.
    prepare : str
        Yosys' commands before all others.
    tables : mapping of str to str
        Where a flip-flop takes nothing but the output of the table beside it: the kinds of table, with that output. Any
        other flip-flop keeps a table's place empty.
    """

    synthesise: str
    place: Tool
    place_options: Callable[[Board, str, float], list[str]]
    pack: Tool
    pack_options: Callable[[Board, str], list[str]]
    routed: str
    suffix: str
    before: Mapping[str, Mapping[str, int]]
    after: Mapping[str, Mapping[str, int]]
    large: Mapping[str, str]
    prepare: str = ""
    tables: Mapping[str, str] = field(default_factory=dict)

    @property
    def tools(self) -> tuple[Tool, ...]:
        """All that a bitstream takes."""
        return YOSYS, self.place, self.pack

    @property
    def script(self) -> str:
        """Yosys' script: the chip, flat, in cells of the family."""
        start = f"read_rtlil {SOURCE}; hierarchy -top {TOP}; proc; flatten; {self.prepare}opt -full; "
        return f"{start}{_MERGE * _LEVELS}{self.synthesise} -noflatten -top {TOP} -json {SYNTHESISED}"


def _ecp5_options(board: Board, constraints: str, mhz: float) -> list[str]:
    size = board.part.removeprefix("LFE5U-").removesuffix("F").lower()
    # The clock's frequency follows from the reference's, through the PLL's dividers.
    options = [f"--{size}k", "--package", board.package, "--speed", board.speed, "--lpf", constraints]
    options += ["--textcfg", "chip.config", "--router", "router2", "--router2-alt-weights"]
    return [*options, "--placer-heap-beta", "0.6"]


def _ecppack_options(board: Board, bitstream: str) -> list[str]:
    # MHz at which the chip reads its flash: as both boards' own examples have it.
    flash = "38.8" if board.name == "orangecrab" else "62.0"
    return ["--compress", "--freq", flash, "--input", "chip.config", "--bit", bitstream]


def _ice40_options(board: Board, constraints: str, mhz: float) -> list[str]:
    return ["--up5k", "--package", board.package, "--pcf", constraints, "--asc", "chip.asc", "--freq", f"{mhz:g}"]


def _gowin_options(board: Board, constraints: str, mhz: float) -> list[str]:
    options = ["--device", board.part, "--vopt", f"family={GOWIN_FAMILY}", "--vopt", f"cst={constraints}"]
    return [*options, "--write", "routed.json", "--freq", f"{mhz:g}"]


GOWIN_FAMILY = "GW1N-9C"

FAMILIES = {
    "ecp5": Family(
        synthesise="synth_ecp5",
        place=NEXTPNR_ECP5,
        place_options=_ecp5_options,
        pack=ECPPACK,
        pack_options=_ecppack_options,
        routed="chip.config",
        suffix="bit",
        before={
            # A memory of 16 x 4 takes the place of eight tables: four hold it, two more write.
            "lut": {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 4},
            "ff": {"TRELLIS_FF": 1},
            "dsp": {"MULT18X18D": 1},
            "ram": {"DP16KD": 1},
        },
        after={
            "lut": {"TRELLIS_COMB": 1},
            "ff": {"TRELLIS_FF": 1},
            "dsp": {"MULT18X18D": 1},
            "ram": {"DP16KD": 1},
        },
        large={},
    ),
    "ice40": Family(
        synthesise="synth_ice40 -device u -dsp -spram",
        place=NEXTPNR_ICE40,
        place_options=_ice40_options,
        pack=ICEPACK,
        pack_options=lambda board, bitstream: ["chip.asc", bitstream],
        routed="chip.asc",
        suffix="bin",
        before={
            "lut": {"SB_LUT4": 1},
            "ff": {f"SB_DFF{kind}": 1 for kind in ("", "E", "SR", "R", "SS", "S", "ESR", "ER", "ESS", "ES")},
            "dsp": {"SB_MAC16": 1},
            "ram": {"SB_RAM40_4K": 1},
        },
        # A logic cell has a table and a flip-flop; nextpnr counts cells.
        after={
            "lut": {"ICESTORM_LC": 1},
            "ff": {"ICESTORM_LC": 1},
            "dsp": {"ICESTORM_DSP": 1},
            "ram": {"ICESTORM_RAM": 1},
        },
        large={"ICESTORM_SPRAM": "SPRAM of 32 KiB"},
        # The large memory cannot start at zero. No job reads what nothing wrote.
        prepare="delete t:$meminit* r:MEMID=*ram.memory %i; ",
        tables={"SB_LUT4": "O"},
    ),
    "gowin": Family(
        synthesise="synth_gowin -family gw1n",
        place=NEXTPNR_GOWIN,
        place_options=_gowin_options,
        pack=GOWIN_PACK,
        pack_options=lambda board, bitstream: ["-d", GOWIN_FAMILY, "-o", bitstream, "routed.json"],
        routed="routed.json",
        suffix="fs",
        before={
            "lut": {f"LUT{inputs}": 1 for inputs in range(1, 5)} | {"ALU": 1, "RAM16SDP4": 4},
            "ff": {f"DFF{kind}": 1 for kind in ("", "E", "R", "RE", "S", "SE", "C", "CE", "P", "PE")},
            "dsp": {"MULT9X9": 1, "MULT18X18": 2},
            "ram": dict.fromkeys(("SPX9", "SP", "SDP", "SDPX9B", "SDPB", "DPX9B", "DPB", "DP", "SPX9B"), 1),
        },
        after={
            "lut": {"LUT4": 1, "ALU": 1, "RAM16SDP4": 4},
            "ff": {"DFF": 1},
            "dsp": {"MULT9X9": 1, "MULT18X18": 2},
            "ram": {"BSRAM": 1},
        },
        large={},
        tables={f"LUT{inputs}": "F" for inputs in range(1, 5)} | {"ALU": "SUM"},
    ),
}
