"""What the tests of the Vitis package share: packages made once, and a shell that AXI models can be connected to."""

from __future__ import annotations

import re
from functools import cache

from hw.config import Config
from hw.vitis.boards import BOARDS
from hw.vitis.package import contents

SMALL = Config(lanes=4, vec=4, feature_bytes=4096, weight_bytes=1024, port_bits=128, pool_columns=32, saboteur=True)
"""Four beats a record."""
NARROW = Config(lanes=2, vec=4, feature_bytes=256, weight_bytes=256, port_bits=32, pool_columns=4)
"""Sixteen beats a record, no fault instrumentation."""
WIDEST = Config(lanes=8, vec=8, feature_bytes=4096, weight_bytes=4096, port_bits=512, pool_columns=16)
"""One beat a record: the widest port, which suits a board's memory."""
LATE = Config(lanes=2, vec=4, feature_bytes=1024, weight_bytes=512, port_bits=64, pool_columns=16, overclock=1)
"""With late masks."""
CONFIGS = {"small": SMALL, "narrow": NARROW, "widest": WIDEST, "late": LATE}


@cache
def package(config: Config) -> dict[str, str]:
    """The package of an accelerator for the default board."""
    return contents(config, BOARDS["u250"])


def ports(verilog: str) -> dict[str, tuple[str, int]]:
    """Direction and width of the ports of module `redline`, as its Verilog declares them."""
    body = verilog[re.search(r"^module redline\(", verilog, re.MULTILINE).start() :]  # type: ignore[union-attr]
    body = body[: body.index("endmodule")]
    declared = re.findall(r"^ *(input|output) (?:reg |wire )?(?:\[(\d+):0\] )?(\w+);", body, re.MULTILINE)
    return {name: (direction, int(high or 0) + 1) for direction, high, name in declared}


def shell(verilog: str) -> str:
    """Module `peer`: the kernel with AXI's ID signals, which the models demand, and inputs that make memory fail."""
    declared, connected = ["input read_error", "input write_error"], []
    for name, (direction, width) in ports(verilog).items():
        declared.append(f"{direction} [{width - 1}:0] {name}")
        error = {"m_axi_gmem_rresp": "read_error", "m_axi_gmem_bresp": "write_error"}.get(name)
        connected.append(f".{name}({name}{f' | {{{error}, 1' + chr(39) + 'b0}' if error else ''})")
    for channel in ("aw", "ar"):
        declared.append(f"output m_axi_gmem_{channel}id")
    declared += ["input m_axi_gmem_bid", "input m_axi_gmem_rid"]
    fixed = "  assign m_axi_gmem_awid = 0, m_axi_gmem_arid = 0;\n"
    return f"module peer({', '.join(declared)});\n{fixed}  redline dut({', '.join(connected)});\nendmodule\n{verilog}"
