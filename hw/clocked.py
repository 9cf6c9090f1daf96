"""Verilog whose registers are assigned where it is decided what they take, in clocked processes.

Amaranth's Verilog has a combinational process for each register, which copies its value to a wire and overwrites the
copy, and a clocked one, which copies the wire back. A simulator carries the copies out in every cycle, also of what
holds still; a clocked process with a condition costs it one branch. (Verilator's model of the accelerator is a quarter
faster for it; `redline bench cosim` measures it.)
"""

from __future__ import annotations

import re
from collections import Counter

_WIRE = r"\\\$\d+"
_NAMES = re.compile(rf"{_WIRE}(?= )")
_REGISTER = re.compile(
    rf"^  always @\(posedge (?P<clock>\S+)\)\n    (?P<name>\S+) +<= (?P<wire>{_WIRE}) ;\n", re.MULTILINE
)
_DECISION = re.compile(
    rf"^  always @\* begin\n    if \(\\\$auto\$\S+ \) begin end\n"
    rf"    (?P<wire>{_WIRE})  = (?P<default>.*);\n(?P<body>(?:    .*\n)*)  end\n",
    re.MULTILINE,
)
_MODULE = re.compile(r"^module .*?^endmodule\n", re.MULTILINE | re.DOTALL)


def clocked(text: str) -> str:
    """The same design, each register's two processes made one wherever nothing else reads the wire between them."""
    return _MODULE.sub(lambda module: _clocked(module[0]), text)


def _clocked(module: str) -> str:
    mentions = Counter(_NAMES.findall(module))
    decisions = {decision["wire"]: decision for decision in _DECISION.finditer(module)}
    edits = []
    for register in _REGISTER.finditer(module):
        name, wire = register["name"], register["wire"]
        decision = decisions.get(wire)
        declaration = re.search(rf"^  reg (\[\d+:0\] )?{re.escape(wire)} ;\n", module, re.MULTILINE)
        if decision is None or declaration is None:
            continue
        default = decision["default"].rstrip()
        write = re.compile(rf"^( +){re.escape(wire)} (\[[\d:]+\])? = ", re.MULTILINE)
        body, writes = write.subn(lambda at, name=name: f"{at[1]}{name} {at[2] or ''} <= ", decision["body"])
        if mentions[wire] != writes + 3:  # its declaration, its default, the register
            continue
        first = "" if default == name else f"    {name} <= {default} ;\n"
        process = f"  always @(posedge {register['clock']}) begin\n{first}{body}  end\n"
        edits += [(register.span(), process), (decision.span(), ""), (declaration.span(), "")]
    for (start, end), replacement in sorted(edits, reverse=True):
        module = module[:start] + replacement + module[end:]
    return module
