"""Static analysis of a routed lane: against nextpnr's own report, and on netlists that are no adders."""

from __future__ import annotations

import gzip
import json

import pytest

from hw.delays import NO_PATH
from sim.timing.analysis import analyse, carry_chain, complete
from sim.timing.netlist import NetlistError, build
from tests.sim.timing import fragment


@pytest.fixture
def data():
    return json.loads(gzip.decompress(fragment.FILE.read_bytes()))


def test_longest_paths_are_those_of_nextpnr_to_the_picosecond() -> None:
    netlist, adders, reported = fragment.load()
    assert [adder.name for adder in adders] == ["tree_1_0", "tree_1_1", "tree_2_0", "accumulator"]
    for adder, arrivals in zip(adders, reported, strict=True):
        bank = analyse(netlist, adder)
        assert [max(int(bank.arrival(signal)[bit].max()) for signal in bank.signals) for bit in range(bank.width)] == (
            arrivals
        )


def test_a_path_of_the_table_is_the_sum_of_its_pieces_in_the_netlist() -> None:
    """Every operand bit to every output bit, walked forwards piece by piece."""
    netlist, adders, _ = fragment.load()
    adder = complete(netlist, adders[-1])
    bank, chain = analyse(netlist, adder), carry_chain(netlist, adder)
    total = adder.operands["sum"]
    for j in range(bank.width):
        source, output = total[min(j, len(total) - 1)]
        launch = netlist.cells[source].delays["CLK", "Q"]
        (pin,) = (pin for pin in "AB" if (chain[j].inputs.get(pin)) == netlist.cells[source].outputs[output])
        at_pin = launch + chain[j].wires[pin]
        for i in range(j, bank.width):
            if i == j:
                arrival = at_pin + chain[j].delays[pin, "F"]
            else:
                arrival = at_pin + chain[j].delays[pin, "FCO"]
                for k in range(j + 1, i):
                    arrival += chain[k].wires["FCI"] + chain[k].delays["FCI", "FCO"]
                arrival += chain[i].wires["FCI"] + chain[i].delays["FCI", "F"]
            arrival += netlist.cells[adder.registers[i][0]].wires["DI"]
            assert bank.arrival("sum")[i, j] == arrival
        assert (bank.arrival("sum")[:j, j] == NO_PATH).all()


def test_the_registers_are_as_wide_as_their_values() -> None:
    netlist, adders, _ = fragment.load()
    assert [analyse(netlist, adder).width for adder in adders] == [17, 17, 18, 32]


def test_the_select_is_the_one_wire_that_reaches_every_bit() -> None:
    netlist, adders, _ = fragment.load()
    operands = complete(netlist, adders[-1]).operands
    assert len(operands["select"]) == 1
    assert len(set(operands["bias"])) == 32
    assert not set(operands["bias"]) & {*operands["accumulator"], *operands["sum"], *operands["select"]}


def _chain_cell(data, bank: int, bit: int) -> str:
    netlist, adders, _ = fragment.from_fragment(data)
    return carry_chain(netlist, complete(netlist, adders[bank]))[bit].name


def _refused(data, bank: int, message: str) -> None:
    netlist, adders, _ = fragment.from_fragment(data)
    with pytest.raises(NetlistError, match=message):
        analyse(netlist, adders[bank])


def test_a_carry_cell_that_does_something_else_is_refused(data) -> None:
    name = _chain_cell(data, 0, 5)
    data["cells"][name]["parameters"]["INITVAL"] = "0" * 16
    _refused(data, 0, "a carry cell that does not add")


def test_a_broken_carry_chain_is_refused(data) -> None:
    name = _chain_cell(data, 0, 5)
    del data["cells"][name]["connections"]["FCI"]
    _refused(data, 0, "broken at bit 5")


def test_a_chain_that_begins_before_bit_0_is_refused(data) -> None:
    data["adders"][0]["registers"] = data["adders"][0]["registers"][1:]
    _refused(data, 0, "begins before bit 0")


def test_logic_before_a_tree_adder_is_refused(data) -> None:
    """An operand that comes through a look-up table has the wrong source: the adder's own operand is not there."""
    data["adders"][0]["operands"]["a"] = data["adders"][1]["operands"]["a"]
    _refused(data, 0, "is no operand of it")


def test_a_multiplexer_that_chooses_the_wrong_way_round_is_refused(data) -> None:
    netlist, adders, _ = fragment.from_fragment(data)
    accumulator = complete(netlist, adders[-1])
    cell = carry_chain(netlist, accumulator)[7]
    (mux,) = {
        source[0].name for pin in "AB" if (source := netlist.driver(cell, pin)) is not None and not source[0].launches
    }
    table = data["cells"][mux]["parameters"]["INITVAL"]
    data["cells"][mux]["parameters"]["INITVAL"] = "".join("10"[int(bit)] for bit in table)
    _refused(data, 3, "is not its load multiplexer")


def test_a_delay_that_depends_on_the_edge_is_refused(data) -> None:
    line = next(line for line in data["sdf"] if "IOPATH" in line)
    at = data["sdf"].index(line)
    head, last = line.rsplit(" ", 1)
    data["sdf"][at] = f"{head} (0:0:9999))"
    with pytest.raises(NetlistError, match="depends on the edge"):
        build({"cells": data["cells"]}, "\n".join(data["sdf"]))


def test_delays_of_another_netlist_are_refused(data) -> None:
    with pytest.raises(NetlistError, match="that the netlist lacks: stranger"):
        build({"cells": data["cells"]}, "(INSTANCE stranger)")
