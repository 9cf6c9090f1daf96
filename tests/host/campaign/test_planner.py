"""Plans of campaigns: which faults the images of a trial share, and how many trials that takes."""

from __future__ import annotations

import pytest

from host.campaign.campaign import CampaignError
from host.campaign.planner import APART, CORRELATIONS, Plan, plan
from host.campaign.settings import Settings


@pytest.mark.parametrize(
    ("settings", "shared"),
    [
        (Settings(rate=1e-6, per="bit", sites=("weight",)), True),
        (Settings(rate=1e-6, per="bit", sites=("feature", "weight")), True),
        (Settings(rate=1e-6, per="bit", sites=("feature",)), False),
        (Settings(rate=1e-6, per="mac"), False),
        (Settings(mhz=188), False),
        (Settings(stuck=("1:2:0",)), False),
    ],
    ids=lambda value: "" if isinstance(value, bool) else f"{value.rate} {value.sites} {value.mhz} {value.stuck}",
)
def test_flips_in_weights_are_shared_by_the_images_of_a_trial(settings: Settings, shared: bool) -> None:
    found = plan(settings, 0.01, 0.5, 0.95)
    assert tuple(found.trials) == (CORRELATIONS if shared else APART)
    # 9,600 independent images (Piegorsch 2004, the worst case), 32 a trial: as many trials if all are alike.
    assert found.trials[0.0] == 300
    if shared:
        assert found.trials[1.0] == 9600
    assert found.parts == {}


def test_a_precision_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(CampaignError, match="a half-width must be more than 0 and less than 0.5, not 0.7"):
        plan(Settings(rate=1e-6), 0.7, 0.5, 0.95)


SINGLE = Plan(0.01, 0.5, 0.95, 32, 9600, {1.0: 9600, 0.1: 1230, 0.0: 300}, {"conv1": 1000, "conv2": 6000, "fc": 1000})
RATE = Plan(0.01, 0.5, 0.95, 32, 9600, {0.0: 300}, {})


def test_a_plan_is_told_in_words_and_numbers() -> None:
    asked = "For 95 % intervals of +-1 % around 50 %, 32 images a trial."
    assert SINGLE.lines() == [
        asked,
        "The space has 8,000 faults; 75.0 % of them are in conv2, so are as many of the trials.",
        "There are not so many faults: a campaign that tries each once needs no interval for faults.",
    ]
    many = Plan(0.01, 0.5, 0.95, 32, 9600, {1.0: 8000}, SINGLE.parts)
    assert many.lines() == SINGLE.lines()[:2]
    assert RATE.lines() == [asked]


def test_a_plans_table_has_trials_and_inferences_by_correlation() -> None:
    table = SINGLE.table()
    assert table.head == ["correlation", "trials", "inferences", ""]
    assert table.body == [
        ["1", "9,600", "307,200", "a fault does the same to every image"],
        ["0.1", "1,230", "39,360", ""],
        ["0", "300", "9,600", "images know nothing of each other"],
    ]
    assert RATE.table().body == [["0", "300", "9,600", "every image meets faults of its own, or all trials the same"]]


def test_a_plan_as_json_has_all_that_was_asked_and_found() -> None:
    assert SINGLE.as_dict() == {
        "half_width": 0.01,
        "share": 0.5,
        "confidence": 0.95,
        "images": 32,
        "independent_inferences": 9600,
        "trials_by_correlation": {"1.0": 9600, "0.1": 1230, "0.0": 300},
        "space": 8000,
        "parts": {"conv1": 1000, "conv2": 6000, "fc": 1000},
    }
