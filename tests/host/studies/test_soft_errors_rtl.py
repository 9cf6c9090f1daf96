"""The soft-error study on the RTL: the same table as on the reference, byte for byte, and cycles counted."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

from host.store.sealed import read_sealed
from host.studies import soft_errors
from tests.needs import needs_data

pytestmark = needs_data

TINY = soft_errors.SoftErrorSettings(
    rates=(1e-3,), test_images=48, train_images=64, batch=16, calibration_images=64, probe_images=16
)  # fmt: skip
COUNTED = ("cycles", "mac_cycles", "stall_cycles", "bytes_read", "bytes_written")


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "results.csv").read_text().splitlines()))


def test_the_rtl_gives_the_references_table_and_counts_cycles(tmp_path: Path) -> None:
    soft_errors.run(tmp_path / "rtl", TINY)
    soft_errors.run(tmp_path / "reference", replace(TINY, device="reference"))
    ours, oracle = rows(tmp_path / "rtl"), rows(tmp_path / "reference")
    for mine, theirs in zip(ours, oracle, strict=True):
        for name, value in mine.items():
            if name not in COUNTED:
                assert value == theirs[name], name
    for row in ours[1:]:
        assert int(row["cycles"]) > int(row["mac_cycles"]) > 0
    for stage in ("int8", "original 0.001", "CLP 0.001", "TWA 0.001 seed 1", "TWA+CLP 0.001 seed 1"):
        digests = [
            read_sealed(tmp_path / kind / "state" / f"{stage}.json")["result"]["digest"]
            for kind in ("rtl", "reference")
        ]
        assert digests[0] == digests[1], stage
    report = (tmp_path / "rtl" / "report.md").read_text()
    assert "computed by the accelerator's RTL" in report
    assert "Both gave the same outputs, byte for byte." in report


def test_write_back_costs_bytes_and_changes_no_output(tmp_path: Path) -> None:
    folder = tmp_path / "rtl"
    soft_errors.run(folder, TINY)
    off, on = (read_sealed(folder / "state" / f"{name}.json")["result"] for name in ("int8", "int8 write-back"))
    assert off["digest"] == on["digest"]
    assert on["report"]["bytes_written"] > 100 * off["report"]["bytes_written"] > 0
