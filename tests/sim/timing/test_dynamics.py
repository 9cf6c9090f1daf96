"""When errors begin on given operands; operand streams; the summary that validation is judged by."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hw.config import Config
from sim.timing import model, validate
from sim.timing.dynamics import RATES, Dynamics
from sim.timing.streams import Stream, StreamError
from sim.timing.validate import Point, Score
from tests.hw.tables import random_table
from tests.sim.timing.test_oracle import random_stream

SMALL = Config(lanes=2, vec=4, port_bits=32)


@pytest.fixture(scope="module")
def table():
    return random_table(5, SMALL)


def wrong_steps(table, stream, period: int) -> int:
    """Wrong (lane, step) of a free-running array, counted from the words themselves."""
    count = 0
    for lane, banks in enumerate(table.lanes):
        given = model.stimulus(stream, lane)
        slow = model.free_running(banks, given, table.onset_ps)
        fast = model.free_running(banks, given, period)
        count += int(np.any([slow[bank.name] != fast[bank.name] for bank in banks], axis=0).sum())
    return count


def test_the_first_error_is_where_a_free_running_array_first_differs(table) -> None:
    stream = random_stream(7, 6)
    onset = Dynamics(table, [stream]).onset("array")
    assert onset.static_ps == table.onset_ps
    assert 0 < onset.dynamic_ps < onset.static_ps
    assert wrong_steps(table, stream, onset.dynamic_ps) > 0
    assert wrong_steps(table, stream, onset.dynamic_ps + 1) == 0
    assert wrong_steps(table, stream, table.onset_ps - 1) == 0 or onset.dynamic_ps == table.onset_ps - 1


def test_rates_rise_with_the_clock(table) -> None:
    dynamics = Dynamics(table, [random_stream(8, 6)])
    onset = dynamics.onset("accumulator")
    periods = [onset.rates_ps[rate] for rate in RATES]
    assert periods == sorted(periods, reverse=True)
    for rate, period in onset.rates_ps.items():
        assert dynamics.rate("accumulator", period) > rate >= dynamics.rate("accumulator", period + 1)


def test_a_stream_for_another_array_is_refused(table) -> None:
    with pytest.raises(StreamError, match="is for 2x8 products, the table for 2x4"):
        Dynamics(table, [random_stream(1, 1, vec=8)])


def test_the_free_running_model_at_a_safe_clock_is_plain_addition(table) -> None:
    stream = random_stream(9, 5)
    given = model.stimulus(stream, 1)
    taken = model.free_running(table.lanes[1], given, table.onset_ps)["accumulator"][given.idle + given.depth :]
    sums = (stream.features.astype(np.int64) * stream.weights[:, 1]).sum(axis=1).reshape(5, -1)
    assert (taken.view(np.int32).reshape(5, -1) == np.cumsum(sums, axis=1) + stream.bias[::25, 1, None]).all()


def test_the_naive_model_keeps_late_bits_of_the_register(table) -> None:
    bank = table.bank(0, "accumulator")
    period = int(bank.onset_ps * 0.8)
    words = [np.array([value], np.uint32) for value in (0x1234, 0xFF, 0, 0x8765)]
    held = np.array([0xDEADBEEF], np.uint32)
    (got,) = model.naive(period)(bank, words, words, held)
    for i in range(32):
        late = any((bank.arrival(signal)[i, : i + 1] > period).any() for signal in bank.signals)
        assert int(got) >> i & 1 == (0xDEADBEEF if late else 0x1234 + 0x8765) >> i & 1


def test_a_stream_survives_its_file(tmp_path) -> None:
    stream = random_stream(1, 2)
    stream.save(tmp_path / "stream.npz")
    again = Stream.load(tmp_path / "stream.npz")
    assert again.name == stream.name
    for name in ("features", "weights", "first", "bias"):
        assert np.array_equal(getattr(again, name), getattr(stream, name))


def test_what_is_no_stream_is_refused(tmp_path) -> None:
    with pytest.raises(StreamError, match=r"nothing\.npz is no operand stream"):
        Stream.load(tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(StreamError, match=r"text\.npz is no operand stream"):
        Stream.load(tmp_path / "text.npz")
    stream = random_stream(1, 2)
    with pytest.raises(StreamError, match="bias must be int32"):
        dataclasses.replace(stream, bias=stream.bias.astype(np.int64))
    with pytest.raises(StreamError, match="begins with the first step"):
        dataclasses.replace(stream, first=np.zeros_like(stream.first))


def point(reject: int, oracle: float, rate: float, f1: float, same: bool = True) -> Point:
    score = Score(rate, f1)
    return Point(1, 0, "s", 5000, 6000, reject, 100, oracle, oracle, score, score, score, same)


def test_the_summary_names_the_worst_points_of_each_band() -> None:
    points = [
        point(0, 0.10, 0.10, 1.0),
        point(0, 0.20, 0.20, 0.999),
        point(100, 0.10, 0.11, 0.97),
        point(100, 0.20, 0.16, 0.99),
        point(100, 0.02, 0.03, 0.85, same=False),
        point(100, 0.001, 1.0, 0.0, same=False),
    ]
    result = validate.summary(points)
    assert result["worst_rate_factor"] == pytest.approx(0.8)
    assert result["bit_f1"] == 0.97
    assert result["bit_f1_no_rejection"] == 0.999
    assert result["free_running_identical"] is True
    low = result["reject_100_ps"]["model"]["few"]
    assert (low["points"], low["bit_f1"]) == (1, 0.85)
    assert low["worst_rate_factor"] == pytest.approx(1.5)
    assert result["accepted"] is False  # 0.8 is below 0.9


@pytest.mark.parametrize(
    ("changed", "accepted"),
    [
        ({}, True),
        ({"same": False}, False),
        ({"few": 1.79}, True),
        ({"few": 1.9}, False),
        ({"f1": 0.92}, False),
        ({"many": 1.16}, False),
    ],
)
def test_a_validation_is_accepted_only_within_its_limits(changed: dict, accepted: bool) -> None:
    majority = Score(0.03, 0.95)
    few = dataclasses.replace(point(100, 0.03, 0.03 * changed.get("few", 1), 0.85), majority=majority)
    points = [
        point(0, 0.1, 0.1, 1.0, same=changed.get("same", True)),
        point(100, 0.1, 0.1 * changed.get("many", 1), changed.get("f1", 0.94), same=False),
        few,
    ]
    assert validate.summary(points)["accepted"] is accepted


def test_a_validation_without_errors_is_not_accepted() -> None:
    assert validate.summary([point(0, 0.0, 0.0, 1.0), point(100, 0.0, 0.0, 1.0)])["accepted"] is False
