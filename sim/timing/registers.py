"""The synthesised netlist's registers: those beside DSP blocks are moved into them, those of banks are found by name.

Yosys does not use the DSP block's own input and output registers; a vendor's synthesiser does. `pack` does the same on
the netlist between Yosys and nextpnr.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from hw.delays import bank_names
from hw.lane import ACCUMULATOR_BITS
from sim.timing.analysis import Adder, Word
from sim.timing.netlist import MULTIPLIER, REGISTER, NetlistError

OPERAND_BITS, PRODUCT_BITS = 18, 36


def pack(top: dict[str, Any]) -> int:
    """Move the registers around every multiplier into it, in place; returns how many multipliers there are.

    Parameters
    ----------
    top : dict
        A module in Yosys' JSON form.

    Raises
    ------
    NetlistError
        If a multiplier's operand or product is not registered, or has a reset or an enable.
    """
    cells = top["cells"]
    driver: dict[int, str] = {}
    readers: dict[int, list[str | None]] = defaultdict(list)
    for name, cell in cells.items():
        for pin, (net,) in cell["connections"].items():
            if cell["port_directions"].get(pin) == "output":
                driver[net] = name
            else:
                readers[net].append(name)
    for port in top["ports"].values():
        for net in port["bits"]:
            readers[net].append(None)

    def register(name: str | None, of: str) -> dict[str, Any]:
        cell: dict[str, Any] = cells[name] if name is not None else {"type": "a pad"}
        if cell["type"] != REGISTER or any(
            cell["connections"].get(pin, [idle]) != [idle] for pin, idle in (("CE", "1"), ("LSR", "0"))
        ):
            raise NetlistError(f"{of}: {name} beside the multiplier is no plain register")
        return cell["connections"]

    multipliers = {name: cell for name, cell in cells.items() if cell["type"] == MULTIPLIER}
    for name, cell in multipliers.items():
        connections, parameters = cell["connections"], cell["parameters"]
        for side in "AB":
            for bit in range(OPERAND_BITS):
                (net,) = connections[f"{side}{bit}"]
                if isinstance(net, int):
                    before = register(driver.get(net), name)
                    connections[f"{side}{bit}"] = before["DI"]
                    connections["CLK0"] = before["CLK"]
            parameters[f"REG_INPUT{side}_CLK"] = "CLK0"
        for bit in range(PRODUCT_BITS):
            pin = f"P{bit}"
            (net,) = connections[pin]
            if not readers[net]:
                del connections[pin], cell["port_directions"][pin]
                continue
            if len(readers[net]) > 1:
                raise NetlistError(f"{name}: product bit {bit} goes to more than its register")
            after = register(readers[net][0], name)
            connections[pin] = after["Q"]
            del cells[readers[net][0]]
        parameters["REG_OUTPUT_CLK"] = "CLK0"
        connections |= {"CE0": ["1"], "RST0": ["0"]}
        cell["port_directions"] |= {"CLK0": "input", "CE0": "input", "RST0": "input"}
    _sweep(top)
    return len(multipliers)


def _sweep(top: dict[str, Any]) -> None:
    """Remove registers that nothing reads any more, and cells that are only notes."""
    cells = top["cells"]
    for name in [name for name, cell in cells.items() if cell["type"].startswith("$")]:
        del cells[name]
    while True:
        read = {net for port in top["ports"].values() for net in port["bits"]}
        for cell in cells.values():
            for pin, nets in cell["connections"].items():
                if cell["port_directions"].get(pin) == "input":
                    read.update(nets)
        dead = [
            name for name, cell in cells.items() if cell["type"] == REGISTER and cell["connections"]["Q"][0] not in read
        ]
        if not dead:
            return
        for name in dead:
            del cells[name]


def adders(top: dict[str, Any], lanes: int, vec: int) -> list[list[Adder]]:
    """For each lane, where its banks' registers and their operands' are, in the order of `bank_names`.

    Not where the accumulator's bias and select are, whose names lie outside the lane: `analysis.complete` finds them.

    Raises
    ------
    NetlistError
        If synthesis has left no trace of a register.
    """
    cells = top["cells"]
    driver: dict[int, tuple[str, str]] = {}
    for name, cell in cells.items():
        for pin, nets in cell["connections"].items():
            if cell["port_directions"].get(pin) == "output":
                driver[nets[0]] = (name, pin)

    def word(name: str) -> Word:
        entry = top["netnames"].get(name)
        if entry is None:
            raise NetlistError(f"the netlist has no register {name}")
        nets = list(entry["bits"])
        while len(nets) > 1 and nets[-1] == nets[-2]:
            nets.pop()
        if any(net not in driver for net in nets):
            raise NetlistError(f"register {name} is not driven")
        return tuple(driver[net] for net in nets)

    # An accumulator leaves its lane, and Yosys may keep an outer name of it: it is known by the sum that it takes.
    accumulators: dict[int, str] = {}
    for name, entry in top["netnames"].items():
        net = entry["bits"][0]
        if len(entry["bits"]) != ACCUMULATOR_BITS or net not in driver or cells[driver[net][0]]["type"] != REGISTER:
            continue
        adder = driver.get(cells[driver[net][0]]["connections"]["DI"][0])
        if adder is not None:
            accumulators |= {nets[0]: name for nets in cells[adder[0]]["connections"].values()}

    found = []
    for lane in range(lanes):
        here = f"lane_{lane}."
        banks = []
        for name in bank_names(vec):
            if name == "accumulator":
                total = f"{here}tree_{vec.bit_length() - 1}_0"
                low = top["netnames"].get(total, {"bits": [None]})["bits"][0]
                if low not in accumulators:
                    raise NetlistError(f"no accumulator takes the sum {total}")
                register = word(accumulators[low])
                banks.append(Adder(name, register, {"accumulator": register, "sum": word(total)}))
            else:
                level, index = (int(part) for part in name.split("_")[1:])
                before = f"{here}product" if level == 1 else f"{here}tree_{level - 1}"
                operands = {"a": word(f"{before}_{2 * index}"), "b": word(f"{before}_{2 * index + 1}")}
                banks.append(Adder(name, word(here + name), operands))
        found.append(banks)
    return found
