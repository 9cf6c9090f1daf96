"""`redline estimate`: images a second, what binds each layer, and the roofline as a picture."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from host import cli, performance_report
from host.compiler.compile import compile as compile_network
from host.schedule.cycles import Memory, estimate
from host.schedule.launch import schedule
from host.schedule.performance import predict
from hw.boards.catalogue import BOARDS
from hw.config import Config

RUN = CliRunner()


def found(*arguments: str) -> dict:
    done = RUN.invoke(cli.app, ["estimate", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_images_a_second_follow_from_cycles_and_clock() -> None:
    result = found("lenet5", "--mhz", "250", "--batch", "8", "--bytes-per-cycle", "64", "--latency", "100")
    assert result["config"]["port_bits"] == 512
    assert result["memory"] == {"bytes_per_cycle": 64.0, "latency": 100}
    assert result["images_per_second"] == pytest.approx(250e6 / result["cycles_per_image"], rel=1e-4)
    assert result["gmacs_per_second"] == pytest.approx(result["images_per_second"] * 416_520e-9, rel=1e-3)
    assert sum(layer["cycles"] for layer in result["layers"]) == pytest.approx(result["cycles_per_image"], rel=1e-3)
    assert sum(layer["share"] for layer in result["layers"]) == pytest.approx(1, abs=1e-3)
    assert [layer["layer"] for layer in result["layers"]] == ["conv1", "conv2", "fc1", "fc2", "fc3"]
    assert {layer["bound"] for layer in result["layers"]} <= {"compute", "memory", "latency"}


def test_chained_and_write_back_stand_side_by_side() -> None:
    plain, back = found("lenet5"), found("lenet5", "--writeback")
    assert plain["modes"] == back["modes"]
    assert plain["modes"]["chained"]["bytes_written"] == plain["bytes_written"] == 16
    assert plain["modes"]["writeback"]["bytes_written"] == back["bytes_written"] > 5000
    assert plain["cycles_per_image"] <= back["cycles_per_image"]


def test_a_board_brings_its_accelerator_memory_and_clock() -> None:
    result = found("lenet5", "--board", "icebreaker", "--batch", "1")
    board = BOARDS["icebreaker"]
    assert (result["config"]["control"], result["config"]["lanes"]) == ("microcode", board.config.lanes)
    assert result["images_per_second"] == pytest.approx(board.mhz * 1e6 / result["cycles_per_image"], rel=1e-4)
    slower = found("lenet5", "--board", "icebreaker", "--batch", "1", "--mhz", "10")
    assert slower["images_per_second"] == pytest.approx(result["images_per_second"] * 10 / board.mhz, rel=1e-3)
    assert result["modes"]["chained"]["bytes_read"] == slower["bytes_read"]
    refused = RUN.invoke(cli.app, ["estimate", "--board", "ulx4s"])
    assert refused.exit_code == 1
    assert "no board is called 'ulx4s'" in refused.output


def test_a_saved_program_brings_its_accelerator(tmp_path: Path) -> None:
    config = Config(lanes=8, vec=4, port_bits=256)
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    program = compile_network(net, config, calibrate=torch.rand(2, 4, 8, 8))
    program.save(tmp_path / "own.program")
    result = found(str(tmp_path / "own.program"), "--batch", "3", "--bytes-per-cycle", "8", "--latency", "50")
    assert (result["network"], result["config"]["lanes"], result["config"]["vec"]) == ("own", 8, 4)
    launch = schedule(program, range(2), 3, writeback=False)
    assert result["cycles_per_batch"] == round(estimate(launch, Memory(50, 8.0)).cycles)
    refused = RUN.invoke(cli.app, ["estimate", str(tmp_path / "own.program"), "--bytes-per-cycle", "64"])
    assert refused.exit_code == 1
    assert "carries 32 bytes a cycle" in " ".join(refused.output.split())


def test_the_folder_holds_picture_csv_and_json(tmp_path: Path) -> None:
    result = found("lenet5", "--bytes-per-cycle", "4", "--out", str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(performance_report.FILES)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "layers.csv").read_text())))
    assert [row["layer"] for row in rows] == ["conv1", "conv2", "fc1", "fc2", "fc3"]
    assert [float(row["cycles"]) for row in rows] == [layer["cycles"] for layer in result["layers"]]
    assert json.loads((tmp_path / "estimate.json").read_text()) == result
    with Image.open(tmp_path / "roofline.png") as picture:
        assert picture.size >= (1000, 600)
        pixels = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or []}
    # Points of two kinds are there: their colours at 75 % over white.
    for kind in ("compute", "memory"):
        full = [int(performance_report.COLOURS[kind][at : at + 2], 16) for at in (1, 3, 5)]
        blended = [0.75 * value + 0.25 * 255 for value in full]
        assert any(max(abs(a - b) for a, b in zip(pixel, blended, strict=True)) < 4 for pixel in pixels), kind
    text = (tmp_path / "roofline.svg").read_text()
    assert "lenet5" in text


def test_the_same_estimate_gives_the_same_picture() -> None:
    program = compile_network(nn.Sequential(nn.Conv2d(8, 16, 3)), Config(), calibrate=torch.rand(1, 8, 9, 9))
    mode = predict(program, Memory(100, 8.0))
    comparison = performance_report.Comparison("net", 100, mode, mode, mode)
    assert performance_report.plot(comparison) == performance_report.plot(comparison)


def test_the_table_is_readable_at_120_columns() -> None:
    done = RUN.invoke(cli.app, ["estimate", "lenet5", "--mhz", "100"])
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 120
    for word in ("images/s at 100 MHz", "chained on chip", "write-back", "compute", "conv2"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonesuch"], "no network 'nonesuch'; there are lenet5"),
        (["lenet5", "--mhz", "0"], "--mhz must be positive"),
        (["lenet5", "--bytes-per-cycle", "100"], "at most 64"),
        (["lenet5", "--batch", "0"], "greater than or equal to 1"),
    ],
)
def test_wrong_arguments_are_explained(arguments: list[str], message: str) -> None:
    done = RUN.invoke(cli.app, ["estimate", *arguments])
    assert done.exit_code != 0
    assert message in " ".join(done.output.replace("│", " ").split())
