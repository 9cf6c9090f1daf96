"""Compares the word model with the gate-level oracle, on placements and operand streams that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hw.delays import Bank, Table
from sim.timing import model
from sim.timing.oracle import Oracle
from sim.timing.route import Routed
from sim.timing.streams import Stream

REJECTS = (0, 100)
"""Pulse rejections of the oracle, ps."""
FRACTIONS = (0.98, 0.95, 0.92, 0.89, 0.86, 0.84, 0.82, 0.8, 0.78, 0.76, 0.74, 0.72, 0.7)
"""Clock periods, as parts of the lane's longest path."""
FEW, MANY = 0.01, 0.05
"""Points are judged by their share of wrong steps: "many", at least 5 %, and "few", 1 to 5 %."""
ACCEPTED = {
    # (pulse rejection, model, band): lowest and highest rate factor, lowest F1
    (0, "model", "many"): (0.999, 1.001, 0.999),
    (0, "model", "few"): (0.999, 1.001, 0.999),
    (100, "model", "many"): (0.9, 1.15, 0.93),
    (100, "model", "few"): (0.55, 1.8, 0.80),
    (100, "majority", "few"): (1 / 1.3, 1.3, 0.90),
}
"""What a validation must reach."""


@dataclass(frozen=True)
class Score:
    """One model against the oracle at one point."""

    rate: float
    """Share of steps in which the model has some bank of the lane take a wrong word."""
    bit_f1: float | None
    """Over (step, bank, bit) that are wrong: harmonic mean of precision and recall; None if neither has any."""


@dataclass(frozen=True)
class Point:
    """One lane at one clock period, on one stream.

    A step is wrong if the word that some bank of the lane takes is not the sum of the words its operands' registers
    hold: errors of earlier steps that the operands carry do not count again.
    """

    seed: int
    lane: int
    stream: str
    period_ps: int
    onset_ps: int
    reject_ps: int
    steps: int
    oracle_rate: float
    accumulator_rate: float
    model: Score
    majority: Score
    naive: Score
    free_running_identical: bool
    """Whether the accumulators are those of the model that sees the operands alone, in every step."""


def _wrong(banks: Sequence[Bank], words: model.Words, right: model.Words) -> npt.NDArray[np.uint32]:
    """Wrong bits, shape (banks, cycles)."""
    return np.stack([words[bank.name] ^ right[bank.name] for bank in banks])


def _rate(wrong: npt.NDArray[np.uint32], given: model.Stimulus) -> float:
    cycles = len(given.first) - given.idle
    return float((wrong != 0).any(axis=0).sum() / cycles)


def f1(theirs: npt.NDArray[np.uint32], ours: npt.NDArray[np.uint32]) -> float | None:
    """F1 of the bits set in two arrays of words."""
    both, either = (int(np.bitwise_count(x).sum(dtype=np.int64)) for x in (theirs & ours, theirs | ours))
    return 2 * both / (either + both) if either else None


def measure(
    oracle: Oracle, banks: Sequence[Bank], stream: Stream, period_ps: int, *, seed: int, lane: int, reject_ps: int
) -> Point:
    """One point."""
    given = model.stimulus(stream, lane)
    taken = oracle.run(period_ps, given.products, given.bias, given.first).words
    right = {bank.name: model.exact(bank, model.signals(given, taken, bank)) for bank in banks}
    theirs = _wrong(banks, taken, right)
    scores = []
    for take in (model.masked(period_ps), model.majority(period_ps), model.naive(period_ps)):
        ours = _wrong(banks, model.one_step_ahead(banks, given, taken, take), right)
        scores.append(Score(_rate(ours, given), f1(theirs, ours)))
    free = model.free_running(banks, given, period_ps)["accumulator"]
    return Point(
        seed,
        lane,
        stream.name,
        period_ps,
        max(bank.onset_ps for bank in banks),
        reject_ps,
        len(stream),
        _rate(theirs, given),
        _rate(theirs[-1:], given),
        scores[0],
        scores[1],
        scores[2],
        bool(np.array_equal(free, taken["accumulator"])),
    )


def sweep(
    routed: Iterable[Routed],
    tables: Sequence[Table],
    streams: Sequence[Stream],
    *,
    lanes: int,
    fractions: Sequence[float],
    progress: Callable[[str], None],
) -> list[Point]:
    """Points over placements, lanes, streams, periods and pulse rejections.

    Parameters
    ----------
    routed, tables
        Of the same seeds.
    streams : sequence of Stream
        Every placement meets a different one: number n meets stream n modulo their number.
    lanes : int
        Lanes of each placement, evenly over the array.
    fractions : sequence of float
        Clock periods, as parts of the lane's longest path.
    """
    points = []
    for number, (placement, table) in enumerate(zip(routed, tables, strict=True)):
        for index in range(lanes):
            lane = index * len(table.lanes) // lanes
            stream = streams[(number * lanes + index) % len(streams)]
            banks = table.lanes[lane]
            onset = max(bank.onset_ps for bank in banks)
            for reject in REJECTS:
                with Oracle(placement.netlist, placement.adders[lane], reject_ps=reject) as oracle:
                    for fraction in fractions:
                        period = round(onset * fraction)
                        progress(f"seed {table.seed}, lane {lane}, {stream.name}: {period} ps, rejection {reject} ps")
                        points.append(
                            measure(oracle, banks, stream, period, seed=table.seed, lane=lane, reject_ps=reject)
                        )
    return points


def summary(points: Sequence[Point]) -> dict[str, Any]:
    """The figures that the model is judged by.

    `accepted` says whether they keep to `ACCEPTED` and there are points with many errors at all.

    `worst_rate_factor` and `bit_f1` are the worst over points with at least 5 % wrong steps: against the oracle with
    100 ps rejection, the model's rate divided by the oracle's, where it is furthest from 1; and the lowest F1.
    """
    result: dict[str, Any] = {
        "seeds": sorted({point.seed for point in points}),
        "streams": sorted({point.stream for point in points}),
        "lanes": sorted({(point.seed, point.lane) for point in points}),
        "steps": points[0].steps if points else 0,
    }
    for reject in REJECTS:
        here = [point for point in points if point.reject_ps == reject]
        many = [point for point in here if point.oracle_rate >= MANY]
        few = [point for point in here if FEW <= point.oracle_rate < MANY]
        entry: dict[str, Any] = {"free_running_identical": all(point.free_running_identical for point in here)}
        for which in ("model", "majority", "naive"):
            entry[which] = {"many": _worst(many, which), "few": _worst(few, which)}
        result[f"reject_{reject}_ps"] = entry
    judged = result["reject_100_ps"]["model"]["many"]
    result["worst_rate_factor"] = judged["worst_rate_factor"]
    result["bit_f1"] = judged["bit_f1"]
    result["bit_f1_no_rejection"] = result["reject_0_ps"]["model"]["many"]["bit_f1"]
    result["free_running_identical"] = result["reject_0_ps"]["free_running_identical"]
    result["accepted"] = (
        judged["points"] > 0
        and result["free_running_identical"]
        and all(
            _accepted(result[f"reject_{reject}_ps"][which][band], *wanted)
            for (reject, which, band), wanted in ACCEPTED.items()
        )
    )
    result["points"] = [asdict(point) for point in points]
    return result


def _accepted(entry: dict[str, Any], lowest: float, highest: float, least: float) -> bool:
    if not entry["points"]:
        return True
    return (
        lowest <= entry["lowest_rate_factor"] and entry["highest_rate_factor"] <= highest and entry["bit_f1"] >= least
    )


def _worst(points: Sequence[Point], which: str) -> dict[str, Any]:
    scores = [(getattr(point, which), point.oracle_rate) for point in points]
    factors = [score.rate / rate for score, rate in scores]
    values = [score.bit_f1 for score, _ in scores if score.bit_f1 is not None]
    return {
        "points": len(points),
        "worst_rate_factor": max(
            factors, key=lambda factor: max(factor, 1 / factor if factor else np.inf), default=None
        ),
        "lowest_rate_factor": min(factors, default=None),
        "highest_rate_factor": max(factors, default=None),
        "bit_f1": min(values, default=None),
    }
