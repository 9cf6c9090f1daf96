"""One routed lane, small enough to keep: made from place and route by `extract`, read by `load`.

python -m tests.sim.timing.fragment    # makes lane.json.gz anew
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from sim.timing.analysis import Adder, complete
from sim.timing.build import endpoint_arrivals
from sim.timing.netlist import Netlist, build
from sim.timing.route import Routed, route

FILE = Path(__file__).with_name("lane.json.gz")
LANES, VEC, SEED, LANE = 2, 4, 1, 1


def extract(routed: Routed, lane: int) -> dict[str, Any]:
    """A lane's cells from its product registers to its accumulator, in nextpnr's forms, and its report's arrivals."""
    netlist, adders = routed.netlist, [complete(routed.netlist, adder) for adder in routed.adders[lane]]
    wanted: dict[str, set[str]] = {}
    pending = [cell for adder in adders for cell, _ in adder.registers]
    while pending:
        name = pending.pop()
        if name in wanted:
            continue
        cell = netlist.cells[name]
        inside = any((name, "Q") in adder.registers for adder in adders)
        follow = () if cell.launches and not inside else ("A", "B", "C", "D", "FCI", "DI", "M")
        wanted[name] = {pin for pin in follow if netlist.driver(cell, pin) is not None}
        pending += [netlist.driver(cell, pin)[0].name for pin in wanted[name]]
    cells = {}
    for name, inputs in wanted.items():
        cell = netlist.cells[name]
        connections = {pin: [net] for pin, net in cell.inputs.items() if pin in inputs}
        connections |= {pin: [net] for pin, net in cell.outputs.items()}
        cells[name] = {
            "type": cell.kind,
            "parameters": {
                key: cell.parameters[key] for key in ("INITVAL", "MODE", "CCU2_INJECT1") if key in cell.parameters
            },
            "port_directions": {pin: "input" if pin in inputs else "output" for pin in connections},
            "connections": connections,
        }
    arrivals = endpoint_arrivals(routed.report)
    registers = [
        {
            "name": adder.name,
            "registers": adder.registers,
            "operands": {signal: word for signal, word in adder.operands.items() if signal not in ("bias", "select")},
            "reported": [arrivals[name, netlist.cells[name].data_pin] for name, _ in adder.registers],
        }
        for adder in adders
    ]
    whole = {"cells": cells, "sdf": _sdf(netlist, wanted), "adders": registers}
    # nextpnr's names are long; the short ones keep a character that SDF escapes.
    text = json.dumps(whole)
    for number, name in enumerate(sorted(wanted, key=len, reverse=True)):
        for form in (name, name.replace("$", "\\\\$")):
            text = text.replace(f'"{form}"', f'"$c{number}"')
            text = text.replace(f" {form}/", f" \\\\$c{number}/").replace(
                f"INSTANCE {form})", f"INSTANCE \\\\$c{number})"
            )
    return json.loads(text)


def _sdf(netlist: Netlist, wanted: dict[str, set[str]]) -> list[str]:
    """The delays of these cells as nextpnr writes them."""
    wires, paths = [], []
    for name, inputs in wanted.items():
        cell, escaped = netlist.cells[name], name.replace("$", "\\$")
        for pin in sorted(inputs):
            source, output = netlist.driver(cell, pin)
            delay = f"(0:0:{cell.wires[pin]})"
            wires.append(
                f"(INTERCONNECT {source.name.replace('$', chr(92) + '$')}/{output} {escaped}/{pin} {delay} {delay})"
            )
        paths.append(f"(INSTANCE {escaped})")
        for (start, output), delay in cell.delays.items():
            if (start in inputs or start.startswith("CLK")) and output in cell.outputs:
                paths.append(f"(IOPATH {start} {output} (0:0:{delay}) (0:0:{delay}))")
    return wires + paths


def load() -> tuple[Netlist, list[Adder], list[list[int]]]:
    """The lane's netlist, its adders, and for each the arrivals that nextpnr reported at its register's bits."""
    data = json.loads(gzip.decompress(FILE.read_bytes()))
    return from_fragment(data)


def from_fragment(data: dict[str, Any]) -> tuple[Netlist, list[Adder], list[list[int]]]:
    """The same, from what `extract` gives."""

    def word(bits: list[list[str]]) -> tuple[tuple[str, str], ...]:
        return tuple((cell, pin) for cell, pin in bits)

    adders = [
        Adder(
            entry["name"],
            word(entry["registers"]),
            {signal: word(bits) for signal, bits in entry["operands"].items()},
        )
        for entry in data["adders"]
    ]
    return (
        build({"cells": data["cells"]}, "\n".join(data["sdf"])),
        adders,
        [entry["reported"] for entry in data["adders"]],
    )


if __name__ == "__main__":
    FILE.write_bytes(gzip.compress(json.dumps(extract(route(LANES, VEC, SEED), LANE)).encode(), mtime=0))
