"""The gate-level simulation of a routed lane, and the word model against it."""

from __future__ import annotations

import numpy as np
import pytest

from sim.timing import model, oracle
from sim.timing.analysis import analyse
from sim.timing.oracle import Oracle, OracleError
from sim.timing.streams import Stream
from sim.timing.validate import f1, measure
from tests.needs import needs_program
from tests.sim.timing import fragment

icarus = needs_program("iverilog", "iverilog")

LENGTH = 25


def random_stream(seed: int, outputs: int, vec: int = fragment.VEC, lanes: int = fragment.LANES) -> Stream:
    """Operands of the kind that layers have: many zero features, small weights, and now and then an extreme."""
    rng = np.random.default_rng(seed)
    steps = outputs * LENGTH
    features = np.clip(rng.normal(0, 40, (steps, vec)), -128, 127).astype(np.int8)
    features[rng.random((steps, vec)) < 0.4] = 0
    weights = np.clip(rng.normal(0, 25, (steps, lanes, vec)), -128, 127).astype(np.int8)
    weights[rng.random((steps, lanes, vec)) < 0.02] = -128
    bias = rng.integers(-20000, 20000, (outputs, lanes)).astype(np.int32).repeat(LENGTH, axis=0)
    return Stream(f"random {seed}", features, weights, np.arange(steps) % LENGTH == 0, bias)


@pytest.fixture(scope="module")
def lane():
    netlist, adders, _ = fragment.load()
    return netlist, adders, [analyse(netlist, adder) for adder in adders]


@icarus
def test_at_a_safe_clock_the_gates_add_and_accumulate(lane) -> None:
    netlist, adders, banks = lane
    stream = random_stream(1, 4)
    given = model.stimulus(stream, fragment.LANE)
    period = max(bank.onset_ps for bank in banks)
    with Oracle(netlist, adders) as gates:
        taken = gates.run(period, given.products, given.bias, given.first).words["accumulator"]
    sums = (stream.features.astype(np.int64) * stream.weights[:, fragment.LANE]).sum(axis=1).reshape(-1, LENGTH)
    expected = np.cumsum(sums, axis=1) + stream.bias[::LENGTH, fragment.LANE, None]
    start = given.idle + given.depth
    assert taken[start:].view(np.int32).tolist() == expected.reshape(-1).tolist()


@icarus
@pytest.mark.parametrize("part", [0.95, 0.85, 0.75])
def test_the_capture_formula_is_the_gates_bit_for_bit(lane, part: float) -> None:
    netlist, adders, banks = lane
    stream = random_stream(2, 16)
    given = model.stimulus(stream, fragment.LANE)
    period = round(part * max(bank.onset_ps for bank in banks))
    with Oracle(netlist, adders) as gates:
        taken = gates.run(period, given.products, given.bias, given.first).words
    ahead = model.one_step_ahead(banks, given, taken, model.masked(period))
    alone = model.free_running(banks, given, period)
    for bank in banks:
        assert np.array_equal(ahead[bank.name], taken[bank.name])
        assert np.array_equal(alone[bank.name], taken[bank.name])
    right = model.exact(banks[-1], model.signals(given, taken, banks[-1]))
    assert (right != taken["accumulator"]).any()


@icarus
def test_the_same_operands_give_the_same_errors_and_the_naive_model_others(lane) -> None:
    netlist, adders, banks = lane
    period = round(0.8 * max(bank.onset_ps for bank in banks))
    points = []
    for _ in range(2):
        with Oracle(netlist, adders) as gates:
            points.append(measure(gates, banks, random_stream(3, 8), period, seed=1, lane=1, reject_ps=0))
    assert points[0] == points[1]
    assert points[0].oracle_rate > 0.05
    assert points[0].model.bit_f1 == 1
    assert points[0].naive.bit_f1 < 0.8


@icarus
def test_swallowed_pulses_change_little(lane) -> None:
    netlist, adders, banks = lane
    period = round(0.78 * max(bank.onset_ps for bank in banks))
    with Oracle(netlist, adders, reject_ps=100) as gates:
        point = measure(gates, banks, random_stream(4, 16), period, seed=1, lane=1, reject_ps=100)
    assert point.oracle_rate > 0.05
    assert point.model.bit_f1 >= 0.93
    assert 0.9 <= point.model.rate / point.oracle_rate <= 1.15


@icarus
def test_gates_are_inertial_only_with_a_rejection(lane) -> None:
    """Verilog's continuous assignments with a delay swallow shorter pulses: none without a rejection."""
    netlist, adders, _ = lane
    plain, rejecting = (oracle.lane_verilog(netlist, adders, reject_ps=reject) for reject in (0, 100))
    assert "assign #(" not in plain
    assert rejecting.count("assign #(100)") > 50
    assert "assign #(71)" in rejecting


def test_without_icarus_the_error_names_the_package(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(OracleError, match="apt-get install iverilog"):
        oracle.find_icarus()


def test_f1_counts_bits() -> None:
    theirs, ours = np.array([0b0111, 0], np.uint32), np.array([0b0011, 0b1000], np.uint32)
    assert f1(theirs, ours) == pytest.approx(2 * 2 / (3 + 3))
    assert f1(np.zeros(2, np.uint32), np.zeros(2, np.uint32)) is None
