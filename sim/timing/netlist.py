"""A routed ECP5 netlist with its delays: what nextpnr writes with `--write` and `--sdf`, as one graph."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hw.errors import RedlineError

REGISTER, LOGIC, MULTIPLIER = "TRELLIS_FF", "TRELLIS_COMB", "MULT18X18D"
CLOCKS = ("CLK", "CLK0")


class NetlistError(RedlineError, ValueError):
    """A netlist is not what the analysis understands; the message names the cell."""


@dataclass(frozen=True)
class Cell:
    """One cell: its type, parameters, and the nets at its connected pins.

    Attributes
    ----------
    delays : dict of (str, str) to int
        (input pin, output pin) to the slowest delay within the cell, ps.
    wires : dict of str to int
        Input pin to the slowest delay of the wire that leads to it, ps.
    setups : dict of str to int
        Input pin to its set-up time, ps.
    """

    name: str
    kind: str
    parameters: dict[str, str]
    inputs: dict[str, int]
    outputs: dict[str, int]
    delays: dict[tuple[str, str], int] = field(default_factory=dict)
    wires: dict[str, int] = field(default_factory=dict)
    setups: dict[str, int] = field(default_factory=dict)

    @property
    def carries(self) -> bool:
        """Whether it is one bit of a carry chain."""
        return self.kind == LOGIC and self.parameters.get("MODE") == "CCU2"

    @property
    def launch_ps(self) -> int:
        """Of a register: from the clock edge to its outputs."""
        found = {delay for (start, _), delay in self.delays.items() if start in CLOCKS}
        if len(found) != 1:
            raise NetlistError(f"{self.name}: {len(found)} clock-to-output delays instead of one")
        return found.pop()

    @property
    def launches(self) -> bool:
        """Whether its outputs change at the clock edge."""
        return any(start in CLOCKS for start, _ in self.delays)

    @property
    def lut(self) -> int:
        """The 16 bits of a look-up table; bit `D*8 + C*4 + B*2 + A`. Unconnected pins read 1."""
        return int(self.parameters["INITVAL"], 2)

    @property
    def data_pin(self) -> str:
        """Of a flip-flop: the pin that it takes its value from."""
        for pin in ("DI", "M"):
            if pin in self.inputs:
                return pin
        raise NetlistError(f"{self.name}: a register without a data input")


@dataclass(frozen=True)
class Netlist:
    """Cells by name, and the (cell, pin) that drives each net."""

    cells: dict[str, Cell]
    drivers: dict[int, tuple[str, str]]

    def driver(self, cell: Cell, pin: str) -> tuple[Cell, str] | None:
        """The cell and pin that drive an input pin; None if it is unconnected or constant."""
        net = cell.inputs.get(pin)
        if net is None or net not in self.drivers:
            return None
        name, output = self.drivers[net]
        return self.cells[name], output


def load(routed: Path, sdf: Path) -> Netlist:
    """Read what nextpnr wrote.

    Raises
    ------
    NetlistError
        If the files do not belong together, or a delay depends on the edge.
    """
    modules = json.loads(Path(routed).read_text())["modules"]
    (top,) = [module for module in modules.values() if module["cells"]]
    return build(top, Path(sdf).read_text())


def build(top: dict[str, Any], sdf: str) -> Netlist:
    """The graph of a module in Yosys' JSON form and the text of its SDF file."""
    cells: dict[str, Cell] = {}
    drivers: dict[int, tuple[str, str]] = {}
    for name, entry in top["cells"].items():
        inputs, outputs = {}, {}
        for pin, nets in entry["connections"].items():
            if not nets or not isinstance(nets[0], int):
                continue
            if entry["port_directions"][pin] == "output":
                outputs[pin] = nets[0]
                drivers[nets[0]] = (name, pin)
            else:
                inputs[pin] = nets[0]
        cells[name] = Cell(name, entry["type"], entry["parameters"], inputs, outputs)
    _annotate(cells, sdf)
    return Netlist(cells, drivers)


_TRIPLE = r"\((-?\d+):(-?\d+):(-?\d+)\)"
_WIRE = re.compile(rf"\(INTERCONNECT (\S+)/(\w+) (\S+)/(\w+) {_TRIPLE} {_TRIPLE}\)")
_PATH = re.compile(rf"\(IOPATH (\w+) (\w+) {_TRIPLE} {_TRIPLE}\)")
_SETUP = re.compile(rf"\(SETUPHOLD \(\w+ (\w+)\) \(\w+ \w+\) {_TRIPLE} {_TRIPLE}\)")
_ESCAPED = re.compile(r"\\(.)")
_INSTANCE = re.compile(r"\(INSTANCE (\S*)\)")


def _annotate(cells: dict[str, Cell], sdf: str) -> None:
    current = ""
    for line in sdf.splitlines():
        if found := _INSTANCE.search(line):
            current = _ESCAPED.sub(r"\1", found[1])
            if current and current not in cells:
                raise NetlistError(f"the SDF file has delays of a cell that the netlist lacks: {current}")
        elif found := _PATH.search(line):
            cells[current].delays[found[1], found[2]] = _slowest(found.groups()[2:], current)
        elif found := _WIRE.search(line):
            target = _ESCAPED.sub(r"\1", found[3])
            if target not in cells:
                raise NetlistError(f"the SDF file has a wire to a cell that the netlist lacks: {target}")
            cells[target].wires[found[4]] = _slowest(found.groups()[4:], target)
        elif found := _SETUP.search(line):
            setups = cells[current].setups
            setups[found[1]] = max(setups.get(found[1], 0), int(found[4]))


def _slowest(numbers: tuple[str, ...], cell: str) -> int:
    """Of (min, typical, max) rising and falling: the slow corner, which set-up analysis uses."""
    rising, falling = int(numbers[2]), int(numbers[5])
    if rising != falling:
        raise NetlistError(f"{cell}: a delay depends on the edge ({rising} and {falling} ps), which no word model has")
    return rising
