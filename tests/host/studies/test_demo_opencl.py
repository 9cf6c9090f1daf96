"""The demo on the opencl device: the same tables as on the reference and on the emulator, byte for byte."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from host.studies import demo, soft_errors
from host.studies.overclock import OverclockSettings
from host.studies.workbench import Settings
from tests.host.opencl import needs_opencl
from tests.needs import needs_data

pytestmark = [
    needs_opencl,
    needs_data,
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
TINY = Settings(units=1, test_images=64, train_images=128, batch=16, lr=0.03, calibration_images=64, probe_images=16)
LINES = {"overclock": 6, "soft-errors": 7}
"""Of each study's table."""


def test_retraining_gives_the_reference_devices_table(tmp_path: Path) -> None:
    for device in ("reference", "opencl"):
        soft_errors.run(tmp_path / device, replace(SMALL, device=device))
    tables = [(tmp_path / device / "results.csv").read_bytes() for device in ("reference", "opencl")]
    assert len(tables[0].splitlines()) == 7
    assert tables[0] == tables[1]


def test_the_whole_demo_gives_the_emulators_tables(tmp_path: Path) -> None:
    found = {}
    for device in ("emulator", "opencl"):
        same = asdict(replace(TINY, device=device))
        found[device] = demo.run(
            tmp_path / device,
            demo.Settings(
                overclock=OverclockSettings(**same, clocks=(198.0,)),
                soft_errors=soft_errors.SoftErrorSettings(**same, rates=(1e-3,)),
            ),
        )
    for study, lines in LINES.items():
        tables = [(tmp_path / device / study / "results.csv").read_bytes() for device in found]
        assert len(tables[0].splitlines()) == lines
        assert tables[0] == tables[1]
    # The clock is one that does harm, and what each layer does wrong is the same, too.
    emulator, opencl = (results.overclock for results in found.values())
    assert opencl.errors == emulator.errors
    assert any(layer.accumulator.wrong for layer in opencl.errors[198.0])
    assert opencl.repeatable
