"""Tiled layers on the RTL, with faults in the accumulators and the features."""

from __future__ import annotations

from host.verification.cases import CONFIGS, random_case
from host.verification.verify import verify
from tests.host.schedule.test_tiling import tiled

TIGHT = min(CONFIGS, key=lambda config: config.feature_bytes)


def test_random_tiled_layers_give_the_references_bytes_on_the_rtl() -> None:
    cases, seed = 80, 4
    report = verify(("reference", "simulation"), cases, seed, configs=(TIGHT,))
    assert report.ok, str(report)
    assert report.faulty_cases > cases // 3
    assert sum(tiled(random_case(seed, number, configs=(TIGHT,))) for number in range(cases)) > cases // 7
