"""A given number of flips: exactly that many, at distinct places, uniform, the same for any split."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from host.compiler.compile import compile as compile_network
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.faults.count import FlipCount, distinct
from host.faults.models import Fault, SoftErrors
from host.faults.plan import SITE_BITS, SITES, extents
from host.models import lenet5
from host.program.program import Program
from host.verification.cases import random_case
from hw.config import Config


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return compile_network(lenet5(), Config(saboteur=True), calibrate=torch.rand(4, 1, 28, 28))


@settings(max_examples=60, deadline=None)
@given(
    case=st.integers(0, 40), site=st.sampled_from(SITES), share=st.floats(0, 1), images=st.integers(1, 5),
    seed=st.integers(0, 2**63),
)  # fmt: skip
def test_every_image_has_exactly_that_many_distinct_flips(
    case: int, site: str, share: float, images: int, seed: int
) -> None:
    program = random_case(0, case).program
    places = sum(
        outputs * steps * SITE_BITS[site]
        for outputs, steps in (extents(program, layer, site) for layer in range(len(program.layers)))
    )
    count = int(min(share * places, 3000))
    plan = FlipCount(count, site).draw(program, 3, images, seed)
    plan.check(program)
    wanted = [-1] if site == "weight" else range(3, 3 + images)
    assert {image: int((plan.image == image).sum()) for image in wanted} == dict.fromkeys(wanted, count)
    assert len(plan) == count * len(wanted)


@pytest.mark.parametrize("site", SITES)
def test_the_split_of_the_images_does_not_matter(program: Program, site: str) -> None:
    model = FlipCount(50, site)
    whole = model.draw(program, 0, 12, 7)
    assert model.draw(program, 0, 12, 8) != whole
    for first in (0, 4, 8):
        assert model.draw(program, first, 4, 7) == whole.images(first, 4)


@pytest.mark.parametrize("site", SITES)
def test_places_are_uniform_over_layers_outputs_and_bits(program: Program, site: str) -> None:
    plan = FlipCount(20_000 if site == "weight" else 1000, site).draw(program, 0, 40, 5)
    places = np.array([np.prod(extents(program, at, site)) for at in range(len(program.layers))], float)
    hit = places > 0
    if hit.sum() > 1:
        counts = np.bincount(plan.layer, minlength=len(places))
        assert not counts[~hit].any()
        assert stats.chisquare(counts[hit], places[hit] / places.sum() * len(plan)).pvalue > 1e-3
    assert stats.chisquare(np.bincount(plan.bit, minlength=SITE_BITS[site])).pvalue > 1e-3
    outputs, steps = extents(program, 0, site)
    first = plan.where(plan.layer == 0)
    assert stats.kstest((first.output * steps + first.step) / (outputs * steps), "uniform").pvalue > 1e-3


def test_the_whole_space_is_legal(program: Program) -> None:
    outputs, _ = extents(program, 0, "input")
    plan = FlipCount(outputs * 8, "input").draw(program, 0, 1, 1)
    assert sorted(zip(plan.output.tolist(), plan.bit.tolist(), strict=True)) == [
        (output, bit) for output in range(outputs) for bit in range(8)
    ]


def test_the_accelerator_meets_all_of_them(program: Program) -> None:
    x = program.quantise_input(torch.rand(2, 1, 28, 28))
    runtime = Runtime(program, ReferenceDevice(program.config))
    for site in ("mac", "feature"):
        assert runtime.forward(x, plan=FlipCount(30, site).draw(program, 0, 2, 1)).report.faults_applied == 60


def test_every_set_of_places_is_as_likely() -> None:
    sets = [tuple(distinct(6, 3, np.random.Generator(np.random.Philox(seed))).tolist()) for seed in range(4000)]
    counts = np.array([sets.count(each) for each in combinations(range(6), 3)])
    assert counts.sum() == 4000
    assert stats.chisquare(counts).pvalue > 1e-3


def test_it_adds_to_other_models(program: Program) -> None:
    both: Fault = FlipCount(10, "mac") + SoftErrors(1e-3, sites="feature")
    plan = both.draw(program, 0, 1, 1)
    assert set(plan.sites) == {"mac", "feature"}
    assert both.sites == ("mac", "feature")


def test_what_makes_no_sense_is_refused(program: Program) -> None:
    with pytest.raises(ValueError, match="flips must be 0 or more, not -1"):
        FlipCount(-1)
    with pytest.raises(ValueError, match="flips happen at weight, input, feature, mac, not at 'register'"):
        FlipCount(1, "register")
    with pytest.raises(ValueError, match="seed must be 0 or more"):
        FlipCount(1).draw(program, 0, 1, -1)
    with pytest.raises(ValueError, match=r"flips do not fit the \d+ places at 'feature'"):
        FlipCount(10**6, "feature").draw(program, 0, 1, 0)
