"""Static analysis of the routed banks: from a netlist and the names of its registers to the banks' delays.

It walks back from each register bit through its carry chain to the registers that launched the operands, and checks on
the way that the bank is what the capture formula needs: one two-operand adder, one path from each operand bit to each
output bit, and before the accumulator's running sum one multiplexer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hw.delays import Bank, Pins
from sim.timing.netlist import LOGIC, REGISTER, Cell, Netlist, NetlistError

Word = tuple[tuple[str, str], ...]
"""A word of registers: (cell, output pin) of each bit, as many as there really are; the last is the sign."""


@dataclass(frozen=True)
class Adder:
    """Where one bank's registers are.

    Attributes
    ----------
    name : str
        Of the bank (`hw.delays`).
    registers : Word
        The bank's own.
    operands : dict of str to Word
        The registers of each signal. The accumulator's bias and select may be missing: `complete` finds them.
    """

    name: str
    registers: Word
    operands: dict[str, Word]


@dataclass(frozen=True)
class Entry:
    """One way from a launching register to a pin of a carry chain."""

    source: tuple[str, str]
    pin: str
    arrival: int


def complete(netlist: Netlist, adder: Adder) -> Adder:
    """The adder with all operands: what else reaches the accumulator is its select, common to all bits, and the bias.

    Raises
    ------
    NetlistError
        If the bank is not an adder, or there is no such pair.
    """
    if adder.name != "accumulator" or "bias" in adder.operands:
        return adder
    known = {source for word in adder.operands.values() for source in word}
    others = [{entry.source for entry in _entries(netlist, cell)} - known for cell in carry_chain(netlist, adder)]
    common = set.intersection(*others)
    if len(common) != 1 or any(len(sources) != 2 for sources in others):
        raise NetlistError(f"{adder.registers[0][0]}: before the accumulator lies no multiplexer with one select")
    bias = tuple(source for sources in others for source in sources - common)
    return replace(adder, operands={**adder.operands, "bias": bias, "select": tuple(common)})


def analyse(netlist: Netlist, adder: Adder) -> Bank:
    """The delays of one bank.

    Raises
    ------
    NetlistError
        If the bank is not a two-operand adder between registers; the message says which cell is in the way.
    """
    adder = complete(netlist, adder)
    chain = carry_chain(netlist, adder)
    kind = "accumulator" if adder.name == "accumulator" else "tree"
    carry: dict[str, list[int]] = {}
    own: dict[str, list[int]] = {}
    offset, climbed = [], 0
    for bit, cell in enumerate(chain):
        register = netlist.cells[adder.registers[bit][0]]
        last = register.wires[register.data_pin] + register.setups.get(register.data_pin, 0)
        if bit:
            climbed += cell.wires.get("FCI", 0)
            offset.append(climbed + cell.delays["FCI", "F"] + last)
            climbed += cell.delays["FCI", "FCO"] if bit + 1 < len(chain) else 0
        else:
            offset.append(0)
        entries = _entries(netlist, cell)
        by_signal = {}
        for entry in entries:
            signal = _signal(adder, entry, bit)
            if signal in by_signal:
                raise NetlistError(f"{cell.name}: {entry.source[0]} reaches the adder's bit {bit} in two ways")
            by_signal[signal] = entry
        _check_function(netlist, adder, cell, by_signal)
        for signal, entry in by_signal.items():
            own.setdefault(signal, []).append(entry.arrival + cell.delays[entry.pin, "F"] + last)
            # The last bit's carry goes nowhere.
            entered = 0 if bit + 1 == len(chain) else entry.arrival + cell.delays[entry.pin, "FCO"] - climbed
            carry.setdefault(signal, []).append(entered)
    pins = {signal: Pins(tuple(carry[signal]), tuple(own[signal])) for signal in own}
    return Bank(adder.name, kind, len(chain), tuple(offset), pins)


def carry_chain(netlist: Netlist, adder: Adder) -> list[Cell]:
    """The chain's cells, lowest bit first."""
    chain: list[Cell] = []
    for bit, (name, _) in enumerate(adder.registers):
        register = netlist.cells[name]
        found = netlist.driver(register, register.data_pin)
        if register.kind != REGISTER or found is None or not found[0].carries or found[1] != "F":
            raise NetlistError(f"{name}: bit {bit} of {adder.name} does not come straight from a carry chain")
        below = netlist.driver(found[0], "FCI")
        if bit == 0 and below is not None and not _constant(netlist, below[0]):
            raise NetlistError(f"{found[0].name}: the carry chain of {adder.name} begins before bit 0")
        if bit and (below is None or below[0].name != chain[-1].name):
            raise NetlistError(f"{found[0].name}: the carry chain of {adder.name} is broken at bit {bit}")
        chain.append(found[0])
    return chain


def _constant(netlist: Netlist, cell: Cell) -> bool:
    """Whether nothing but constants reaches a cell: how nextpnr starts a carry chain."""
    feeders = [netlist.driver(cell, pin) for pin in cell.inputs]
    return not cell.launches and all(found is not None and _constant(netlist, found[0]) for found in feeders)


def _entries(netlist: Netlist, cell: Cell) -> list[Entry]:
    """Every way from a register to a cell's look-up inputs, through at most one level of logic."""
    entries = []
    for pin in "ABCD":
        found = netlist.driver(cell, pin)
        if found is None:
            continue
        for source, arrival in _sources(netlist, *found, depth=1):
            entries.append(Entry(source, pin, arrival + cell.wires[pin]))
    return entries


def _sources(netlist: Netlist, cell: Cell, output: str, depth: int) -> list[tuple[tuple[str, str], int]]:
    if cell.launches:
        return [((cell.name, output), cell.launch_ps)]
    if cell.kind != LOGIC or cell.carries or output != "F" or depth == 0:
        raise NetlistError(f"{cell.name}: more than a multiplexer lies before an adder")
    sources = []
    for pin in "ABCD":
        found = netlist.driver(cell, pin)
        if found is not None:
            for source, arrival in _sources(netlist, *found, depth=depth - 1):
                sources.append((source, arrival + cell.wires[pin] + cell.delays[pin, "F"]))
    return sources


def _signal(adder: Adder, entry: Entry, bit: int) -> str:
    """What an entry at operand bit `bit` carries."""
    for signal, word in adder.operands.items():
        if word[min(bit, len(word) - 1)] == entry.source:
            return signal
    raise NetlistError(f"{entry.source[0]}: reaches bit {bit} of {adder.name} and is no operand of it")


def _check_function(netlist: Netlist, adder: Adder, cell: Cell, by_signal: dict[str, Entry]) -> None:
    """Whether a chain cell adds, and a multiplexer before it chooses the bias where the select is 1."""
    wanted = {"a", "b"} if adder.name != "accumulator" else {"accumulator", "bias", "select", "sum"}
    if set(by_signal) != wanted:
        raise NetlistError(f"{cell.name}: an adder of {', '.join(sorted(by_signal))}, not {', '.join(sorted(wanted))}")
    pins = sorted({entry.pin for entry in by_signal.values()})
    if len(pins) != 2:
        raise NetlistError(f"{cell.name}: {len(pins)} operands")
    for values in ((0, 0), (0, 1), (1, 0), (1, 1)):
        at = dict(zip(pins, values, strict=True))
        propagate = look_up(cell, at)
        generate = cell.lut >> (2 * at.get("B", 1) + at.get("A", 1)) & 1
        if propagate != values[0] ^ values[1] or (not propagate and generate != values[0]):
            raise NetlistError(f"{cell.name}: a carry cell that does not add")
    if adder.name != "accumulator":
        return
    pin = by_signal["select"].pin
    if by_signal["accumulator"].pin != pin or by_signal["bias"].pin != pin or by_signal["sum"].pin == pin:
        raise NetlistError(f"{cell.name}: the accumulator's operands are not a multiplexer and a sum")
    found = netlist.driver(cell, pin)
    assert found is not None
    mux = found[0]
    roles = {}
    for signal in ("select", "bias", "accumulator"):
        for leg in "ABCD":
            source = netlist.driver(mux, leg)
            if source is not None and (source[0].name, source[1]) == by_signal[signal].source:
                roles[signal] = leg
    for chosen in (0, 1):
        for bias in (0, 1):
            for running in (0, 1):
                at = {roles["select"]: chosen, roles["bias"]: bias, roles["accumulator"]: running}
                if look_up(mux, at) != (bias if chosen else running):
                    raise NetlistError(f"{mux.name}: the logic before the accumulator is not its load multiplexer")


def look_up(cell: Cell, at: dict[str, int]) -> int:
    """A look-up table's output, with unconnected pins at 1."""
    index = sum(at.get(pin, 1) << place for place, pin in enumerate("ABCD"))
    return cell.lut >> index & 1
