"""Plans of campaigns: which faults the images of a trial share, and how many trials that takes."""

from __future__ import annotations

import pytest

from host.campaign.campaign import CampaignError
from host.campaign.planner import APART, CORRELATIONS, plan
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
