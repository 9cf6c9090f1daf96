"""Random streams: their identities and draws are those of the first release, and purposes share none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from host.compiler.compile import compile as compile_network
from host.faults import random_streams
from host.faults.count import FlipCount
from host.faults.models import Fault, SoftErrors
from host.faults.plan import SITES
from host.faults.random_streams import IDS, PURPOSES, Streams, seed_for
from host.models import lenet5
from host.program.program import Program
from hw.config import Config

DRAWN: list[tuple[Fault, int, str]] = [
    (SoftErrors(1e-3, sites=("weight",)), 469, "e4b66611d5aa1531"),
    (SoftErrors(1e-3, sites=("input",)), 132, "8b9882e5cd5bfa8b"),
    (SoftErrors(1e-3, sites=("feature",)), 76, "9e83b0ab51b53c0d"),
    (SoftErrors(1e-4, per="mac"), 27, "3a21a314bd969473"),
    (SoftErrors(1e-3), 677, "6276b648a111d1f6"),
    (SoftErrors(1e-3) + SoftErrors(1e-4, per="mac"), 700, "c2ec999c8e5fa069"),
    (SoftErrors(1e-3) + SoftErrors(1e-3) + SoftErrors(1e-4, per="mac"), 1349, "afc41c70b1a2040b"),
    (FlipCount(20, "weight"), 20, "7de8a8477b98b678"),
    (FlipCount(20, "input"), 80, "f302d2f9a5ad131c"),
    (FlipCount(20, "feature"), 80, "7e94386ef8a2e445"),
    (FlipCount(20, "mac"), 80, "b5376abd2978ac22"),
]
"""Models, and the flips that they draw in images 3 to 6 of LeNet-5 under seed 7: how many, and the plan's digest."""


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return compile_network(lenet5(), Config(saboteur=True), calibrate=torch.rand(4, 1, 28, 28))


@pytest.mark.parametrize(("model", "flips", "digest"), DRAWN, ids=lambda value: str(value) if value else None)
def test_draws_are_those_of_the_first_release(model: Fault, flips: int, digest: str, program: Program) -> None:
    plan = model.draw(program, 3, 4, 7)
    assert len(plan) == flips
    assert plan.digest.startswith(digest)


def test_identities_are_given_once_and_new_ones_follow() -> None:
    first = {"weight": 0, "input": 1, "feature": 2, "mac": 3, "part": 4, "count": 5, "purpose": 6}
    assert {name: IDS[name] for name in first} == first
    assert len({*IDS.values()}) == len(IDS)
    assert {name: PURPOSES[name] for name in ("evaluation", "training", "protection")} == {
        "evaluation": 0,
        "training": 1,
        "protection": 2,
    }
    assert len({*PURPOSES.values()}) == len(PURPOSES)
    # Files of plans hold the position.
    assert SITES[:4] == ("weight", "input", "feature", "mac")


def test_the_order_of_identities_does_not_matter(monkeypatch: pytest.MonkeyPatch, program: Program) -> None:
    before = SoftErrors(1e-3).draw(program, 0, 2, 5)
    monkeypatch.setattr(random_streams, "IDS", {"a new site": 99, **dict(reversed(IDS.items()))})
    assert SoftErrors(1e-3).draw(program, 0, 2, 5) == before


def test_an_evaluations_seed_is_the_seed_of_draw_and_others_are_pinned() -> None:
    assert [seed_for("evaluation", seed) for seed in (0, 7, 1 << 62)] == [0, 7, 1 << 62]
    found = [seed_for("training", 0), seed_for("protection", 0), seed_for("training", 1)]
    assert found == [623966759706491785, 123025276299784252, 874844384368947271]


def test_no_purpose_shares_a_seed_with_another_for_any_of_many_seeds() -> None:
    seeds = {seed_for(purpose, seed) for purpose in PURPOSES for seed in range(3000)}
    assert len(seeds) == 3 * 3000


@pytest.mark.parametrize("seed", [-1, -7])
def test_negative_seeds_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed must be 0 or more, not {seed}"):
        Streams(seed, "mac", 0)
    for purpose in PURPOSES:
        with pytest.raises(ValueError, match=f"seed must be 0 or more, not {seed}"):
            seed_for(purpose, seed)


def test_an_unknown_purpose_is_refused() -> None:
    with pytest.raises(ValueError, match="faults are met for evaluation, training, protection, not for 'lunch'"):
        seed_for("lunch", 0)  # type: ignore[arg-type]


def test_a_block_begins_anew_whatever_was_drawn_before() -> None:
    streams = Streams(3, "mac", 1)
    first = streams.of(5).random(4)
    streams.of(2).random(100)
    assert np.array_equal(streams.of(5).random(4), first)
