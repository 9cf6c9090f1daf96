"""From a routed harness to its delay table, checked against nextpnr's own report."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from hw.delays import Limit, Table
from sim.timing.analysis import analyse, complete
from sim.timing.netlist import MULTIPLIER, NetlistError
from sim.timing.route import PACKAGE, PART, SPEED_GRADE, Routed


def make_table(routed: Routed) -> Table:
    """The delays of every bank of every lane.

    Raises
    ------
    NetlistError
        If a bank is not an adder between registers, or a longest path differs from nextpnr's report.
    """
    arrivals = endpoint_arrivals(routed.report)
    reported: dict[str, int] = defaultdict(int)
    control = 0
    lanes = []
    for adders in routed.adders:
        banks = []
        for adder in adders:
            bank = analyse(routed.netlist, adder)
            for bit, (name, _) in enumerate(adder.registers):
                register = routed.netlist.cells[name]
                pin = register.data_pin
                theirs = arrivals[name, pin] + register.setups.get(pin, 0)
                mine = max(int(bank.arrival(signal)[bit].max()) for signal in bank.signals)
                if mine != theirs:
                    raise NetlistError(f"{name}: the longest path is {mine} ps, but {theirs} ps in nextpnr's report")
                reported[bank.name] = max(reported[bank.name], theirs)
                control = max(control, arrivals.get((name, "CE"), 0) + register.setups.get("CE", 0))
            for name, _ in complete(routed.netlist, adder).operands.get("bias", ()):
                register = routed.netlist.cells[name]
                control = max(control, arrivals.get((name, "CE"), 0) + register.setups.get("CE", 0))
            banks.append(bank)
        lanes.append(tuple(banks))
    operands = 0
    for (name, pin), arrival in arrivals.items():
        cell = routed.netlist.cells.get(name)
        if cell is not None and cell.kind == MULTIPLIER:
            operands = max(operands, arrival + cell.setups.get(pin, 0))
    return Table(
        part=PART,
        package=PACKAGE,
        speed_grade=SPEED_GRADE,
        seed=routed.seed,
        tools=routed.tools,
        source_sha256=routed.source_sha256,
        vec=routed.vec,
        lanes=tuple(lanes),
        reported_ps=dict(reported),
        unmodelled={
            "multiplier operands": Limit(operands, "nextpnr: from the operand registers to the DSP blocks' own"),
            "multiplier": Limit(None, "nextpnr has no limit from the DSP block's input to its output registers"),
            "enables": Limit(control, "nextpnr: clock enables of the accumulators and of the biases"),
            "requantiser": Limit(
                round(1e6 / min(clock["achieved"] for clock in routed.requantiser_report["fmax"].values())),
                "nextpnr: one requantiser, routed by itself",
            ),
            "control and memories": Limit(None, "not routed with the lanes: they depend on the board and the buffers"),
        },
    )


def endpoint_arrivals(report: dict[str, Any]) -> dict[tuple[str, str], int]:
    """From nextpnr's detailed report, the latest arrival in ps at each (cell, pin) that takes a value at the edge."""
    arrivals: dict[tuple[str, str], int] = {}
    for net in report["detailed_net_timings"]:
        for endpoint in net["endpoints"]:
            place = (endpoint["cell"], endpoint["port"])
            arrivals[place] = max(arrivals.get(place, 0), round(1000 * max(endpoint["delay"])))
    return arrivals
