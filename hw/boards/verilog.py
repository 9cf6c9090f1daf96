# amaranth: UnusedElaboratable=no
# (What a constructor refuses is never used.)

"""A board's top level as Verilog: module `redline_board`, for simulation and for tools that take no Amaranth."""

from __future__ import annotations

from amaranth.back import verilog

from hw.boards.top import BoardTop
from hw.config import Config
from hw.overclocked import adders_verilog
from hw.verilog import without_zeroing

TOP = "redline_board"


def generate(config: Config, memory_bytes: int, clock_hz: float, baud: int, inbox_bytes: int) -> str:
    """Verilog text of module `redline_board`: `clk`, `rst` (synchronous, active high), and `BoardTop`'s members."""
    top = BoardTop(config, memory_bytes, clock_hz, baud, inbox_bytes=inbox_bytes)
    # Without source locations: they would make every comment a new design for whoever caches builds.
    text = verilog.convert(top, name=TOP, emit_src=False, strip_internal_attrs=True)
    return without_zeroing(str(text)) + (adders_verilog() if config.overclock else "")
