"""Single faults: every place once, none more likely than another, the same for the same seed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from host.campaign.permutation import Permutation
from host.campaign.space import FaultSpace, SpaceError
from host.campaign.trials import Faults, SingleFault, TrialSequence, faults_words, words
from host.compiler.compile import compile as compile_network
from host.faults.models import SoftErrors
from host.faults.plan import EVERY_IMAGE, SITE_BITS, extents
from host.faults.spec import brief, model_from
from host.models import lenet5
from host.program.program import Program
from hw.config import Config


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return compile_network(lenet5(), Config(), calibrate=torch.rand(4, 1, 28, 28))


# -- the order


def test_orders_are_those_of_every_campaign_so_far() -> None:
    # A campaign that is taken up, or made longer, must find the faults that it began with.
    assert [Permutation(10, ("faults", 1))(i) for i in range(10)] == [0, 4, 2, 7, 5, 8, 9, 1, 3, 6]
    million = Permutation(1_000_003, ("images", 7))
    assert [million(i) for i in range(6)] == [398015, 173491, 149451, 783599, 73470, 237524]
    long = Permutation(2**40, ("faults", 10**80))  # more digits than BLAKE2b's keys have bytes
    assert [long(i) for i in range(2)] == [879096542057, 157674317321]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(0, 2**40))
def test_a_permutation_holds_every_place_once(size: int, seed: int) -> None:
    order = [Permutation(size, ("faults", seed))(i) for i in range(size)]
    assert sorted(order) == list(range(size))


def test_the_first_places_of_a_huge_space_are_distinct_and_uniform() -> None:
    size = 10**12 + 39
    order = Permutation(size, ("faults", 1))
    found = np.array([order(i) for i in range(20_000)])
    assert len(np.unique(found)) == 20_000
    counts = np.bincount(found * 100 // size, minlength=100)
    assert stats.chisquare(counts).pvalue > 1e-3
    # Neighbours in the order are not neighbours in space.
    assert abs(stats.pearsonr(found[:-1], found[1:]).statistic) < 0.03
    assert stats.chisquare(np.bincount(found % 32, minlength=32)).pvalue > 1e-3


def test_another_seed_gives_another_order() -> None:
    first, second = ([Permutation(1000, ("faults", seed))(i) for i in range(1000)] for seed in (1, 2))
    assert np.mean(np.array(first) == np.array(second)) < 0.02


def test_places_outside_are_refused() -> None:
    with pytest.raises(IndexError, match="position 5 of 5"):
        Permutation(5, (1,))(5)
    with pytest.raises(ValueError, match="at least one place"):
        Permutation(0, (1,))


# -- the space


@pytest.mark.parametrize("sites", [("mac",), ("weight",), ("feature",), ("input",), ("weight", "input", "feature")])
def test_the_space_has_every_place_of_its_sites_once(sites: tuple[str, ...], program: Program) -> None:
    space = FaultSpace(program, sites, layers=("conv1", "fc3"))
    wanted = 0
    for at in (0, 4):
        for site in sites:
            outputs, steps = extents(program, at, site)
            wanted += outputs * steps * SITE_BITS[site]
    assert space.size == wanted
    stride = max(1, space.size // 5000)
    places = [space.place(i) for i in range(0, space.size, stride)]
    assert len(set(places)) == len(places)
    for place in places:
        outputs, steps = extents(program, program.index(place.layer), place.site)
        assert 0 <= place.output < outputs
        assert 0 <= place.step < steps
        assert 0 <= place.bit < SITE_BITS[place.site]
    assert sum(space.part_sizes().values()) == space.size


def test_single_faults_are_distinct_and_uniform_over_layers_steps_and_bits(program: Program) -> None:
    trials = TrialSequence(program, SingleFault("mac"), seed=3, images=1, data=10)
    places = [trials.trial(n).place for n in range(4000)]
    assert len(set(places)) == 4000
    space = trials.space
    assert space is not None
    names, sizes = zip(*space.part_sizes().items(), strict=True)
    counts = [sum(place.layer == name for place in places if place) for name in names]
    wanted = np.array(sizes) / space.size * 4000
    assert stats.chisquare(counts, wanted).pvalue > 1e-3
    assert stats.chisquare(np.bincount([place.bit for place in places if place], minlength=32)).pvalue > 1e-3
    conv2 = [place.step for place in places if place and place.layer == "conv2"]
    assert stats.chisquare(np.bincount(conv2, minlength=25)).pvalue > 1e-3


def test_every_fault_of_a_small_space_comes_once(program: Program) -> None:
    trials = TrialSequence(program, SingleFault("feature", ("fc3",)), seed=1, images=1, data=4)
    assert trials.most == 80
    assert len({trials.trial(n).place for n in range(80)}) == 80
    with pytest.raises(IndexError):
        trials.trial(80)


def test_a_trial_is_a_function_of_seed_and_number(program: Program) -> None:
    for faults in (SingleFault(("mac", "weight")), SoftErrors(1e-4), SoftErrors(1e-5, per="mac")):
        trials = TrialSequence(program, faults, seed=5, images=8, data=100)
        again = TrialSequence(replace(program), faults, seed=5, images=8, data=100)
        other = TrialSequence(program, faults, seed=6, images=8, data=100)
        for number in (17, 3):
            a, b = trials.trial(number), again.trial(number)
            assert a.plan == b.plan
            assert np.array_equal(a.images, b.images)
            a.plan.check(program)
        assert trials.trial(3).plan != trials.trial(4).plan
        assert trials.trial(3).plan != other.trial(3).plan
        assert not np.array_equal(trials.trial(3).images, other.trial(3).images)


def test_one_fault_meets_every_image_of_its_trial(program: Program) -> None:
    trial = TrialSequence(program, SingleFault("feature"), seed=1, images=5, data=50).trial(0)
    assert trial.plan.image.tolist() == [0, 1, 2, 3, 4]
    assert len(set(trial.plan.output.tolist())) == len(set(trial.plan.bit.tolist())) == 1
    weight = TrialSequence(program, SingleFault("weight"), seed=1, images=5, data=50).trial(0)
    assert weight.plan.image.tolist() == [EVERY_IMAGE]


def test_images_of_trials_are_drawn_evenly_without_replacement(program: Program) -> None:
    trials = TrialSequence(program, SingleFault("feature"), seed=2, images=10, data=40)
    drawn = [trials.trial(n).images for n in range(400)]
    assert all(len(np.unique(images)) == 10 for images in drawn)
    # Without replacement within a trial: less spread than the multinomial, which chi-square then only overstates.
    counts = np.bincount(np.concatenate(drawn), minlength=40)
    assert stats.chisquare(counts).pvalue > 1e-3


# -- bad input


def test_what_the_network_does_not_have_is_refused(program: Program) -> None:
    with pytest.raises(SpaceError, match="sites of weight, input, feature, mac, stuck, not dram"):
        SingleFault("dram")
    with pytest.raises(SpaceError, match="not none"):
        SingleFault(())
    with pytest.raises(SpaceError, match="unknown fault site 'dram'"):
        FaultSpace(program, ("dram",))
    with pytest.raises(SpaceError, match="layers conv2 have no places of input"):
        FaultSpace(program, ("input",), layers=("conv2",))
    with pytest.raises(ValueError, match="no layer 'conv9'; this network has conv1"):
        FaultSpace(program, ("mac",), layers=("conv9",))
    with pytest.raises(SpaceError, match="from 1 to 10 images"):
        TrialSequence(program, SingleFault(), 0, 11, 10)
    with pytest.raises(SpaceError, match="seed must be 0 or more"):
        TrialSequence(program, SingleFault(), -1, 1, 10)


@pytest.mark.parametrize(
    ("faults", "brief_spec", "said"),
    [
        (
            SingleFault("mac", ("fc1",)),
            {"model": "SingleFault", "sites": ["mac"], "layers": ["fc1"]},
            "One flip a trial (mac in fc1), uniform over the whole space, all different.",
        ),
        (
            SingleFault("stuck"),
            {"model": "SingleFault", "sites": ["stuck"], "layers": []},
            "One stuck bit a trial, uniform over all bits of all lanes' adders and accumulators, all different.",
        ),
        (
            SoftErrors(1e-4, sites="weight") + SoftErrors(1e-5, per="mac"),
            {
                "model": "Combined",
                "parts": [
                    {"model": "SoftErrors", "rate": 1e-4, "per": "bit", "sites": ["weight"]},
                    {"model": "SoftErrors", "rate": 1e-5, "per": "mac", "sites": ["mac"]},
                ],
            },
            "In every trial: soft errors, 0.0001 per bit (weight); soft errors, 1e-05 per mac (mac).",
        ),
    ],
    ids=["single", "stuck", "rates"],
)
def test_fault_models_are_described_by_all_that_decides_them(faults: Faults, brief_spec: dict, said: str) -> None:
    assert brief(faults.spec()) == brief_spec
    assert faults_words(faults) == words(brief_spec) == said
    assert model_from(json.loads(json.dumps(faults.spec()))) == faults


def test_a_class_that_is_not_known_here_is_told_by_its_values() -> None:
    assert words({"model": "cosmos:Rays", "flux": 3}) == "In every trial: model cosmos:Rays, flux 3."


def test_excluded_layers_have_no_places(program: Program) -> None:
    whole = FaultSpace(program, ("mac", "weight"))
    without = FaultSpace(program, ("mac", "weight"), excluded=("conv2", "fc1"))
    assert set(without.part_sizes()) == {"conv1", "fc2", "fc3"}
    assert without.size == whole.size - whole.part_sizes()["conv2"] - whole.part_sizes()["fc1"]
    assert {without.place(at).layer for at in range(0, without.size, without.size // 1000)} <= {"conv1", "fc2", "fc3"}
    with pytest.raises(SpaceError, match="layers conv2 have no places of mac"):
        FaultSpace(program, ("mac",), layers=("conv2",), excluded=("conv2",))
