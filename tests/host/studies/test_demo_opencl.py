"""The demo's job on the opencl device: the same table as on the reference, byte for byte."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from host.datasets import data
from host.studies import soft_errors
from tests.host.opencl import needs_opencl

pytestmark = [
    needs_opencl,
    pytest.mark.skipif(
        not data.SYSTEM_DIRS["fashion-mnist"][0].is_dir() and "REDLINE_DATA" not in os.environ,
        reason="Fashion-MNIST is not installed",
    ),
]

SMALL = soft_errors.SoftErrorSettings(
    device="reference",
    units=1,
    rates=(1e-3,),
    test_images=128,
    train_images=256,
    batch=32,
    calibration_images=64,
    probe_images=32,
)


def test_retraining_gives_the_reference_devices_table(tmp_path: Path) -> None:
    for device in ("reference", "opencl"):
        soft_errors.run(tmp_path / device, replace(SMALL, device=device))
    tables = [(tmp_path / device / "results.csv").read_bytes() for device in ("reference", "opencl")]
    assert len(tables[0].splitlines()) == 7
    assert tables[0] == tables[1]
