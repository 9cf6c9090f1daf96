"""The opencl benchmark: what its figures mean, and that a small run gives all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from host import cli
from tests.host.opencl import available, needs_opencl

pytestmark = needs_opencl
if available():
    from host.bench import opencl
    from host.devices.opencl.overlap import Span


def test_shares_are_of_time() -> None:
    spans = [
        Span(0, "write", 0, 0, 10),
        Span(0, "compute", 0, 10, 30),
        Span(1, "write", 0, 15, 25),  # hidden
        Span(0, "read", 0, 28, 36),  # hidden for 2 of 8
        Span(1, "compute", 0, 40, 50),
        Span(1, "compute", 1, 45, 60),
    ]
    assert opencl.hidden_share(spans) == pytest.approx((10 + 2) / (10 + 10 + 8))
    assert opencl.busy_share(spans) == pytest.approx((20 + 20) / 50)


def test_nothing_to_move_hides_nothing() -> None:
    assert opencl.hidden_share([Span(0, "compute", 0, 5, 9)]) == 0
    assert opencl.busy_share([Span(0, "compute", 0, 5, 9)]) == 1


def test_a_small_run_gives_every_figure_and_a_picture(tmp_path: Path) -> None:
    result, spans = opencl.measure(batch=2, rounds=1, stream=3)
    assert result["same_bytes"]
    assert set(result["ratio_to"]) == set(result["images_per_second"]) - {"opencl"} >= {"reference"}
    assert set(result["late"]) == {"in_time", "emulator", *(f"{share:g}" for share in opencl.SHARES)}
    assert {span.batch for span in spans} == {0, 1, 2}
    json.dumps(result)
    opencl.plot(spans, tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_a_device_that_is_not_there_is_named() -> None:
    said = CliRunner().invoke(cli.app, ["bench", "opencl", "--device-name", "abacus"])
    assert "no OpenCL device matches device 'abacus'" in str(said.exception)
