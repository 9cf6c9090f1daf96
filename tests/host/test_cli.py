"""The command line: one line for expected errors, a remedy for whatever is missing."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from host import cli, doctor, models
from host.campaign.analyses import sensitivity
from host.cli import conformance
from host.cli.app import console, fail
from host.cli.study import open_folder, run_folder, show_table
from host.datasets import data
from host.program.program import Program
from host.stats import Clustered
from host.studies import workbench
from host.studies.report.document import Table
from hw.errors import RedlineError
from sim import tools
from tests.needs import needs_data


def redline(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "host.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=120,
    )


def test_help_lists_every_command() -> None:
    said = CliRunner().invoke(cli.app, ["--help"]).output
    commands = (
        "doctor demo sweep verify conformance board campaign bench pretrain compile estimate photos timing kernel "
        "bitstream version"
    )
    for command in commands.split():
        assert command in said


@needs_data
def test_doctor_is_content_with_a_machine_that_was_set_up() -> None:
    found = {finding.name: finding for finding in doctor.examine()}
    assert [name for name, finding in found.items() if finding.state == "missing"] == []
    assert "checksums right" in found["Fashion-MNIST"].found


def test_doctor_says_how_to_mend_a_missing_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> tools.Tool:
        return tools.find_perl(path="/nowhere")

    finding = doctor._tool("perl", missing)
    assert finding.state == "missing"
    assert finding.remedy == "run: sudo apt-get install perl"


def test_doctor_says_how_to_mend_a_missing_data_set(tmp_path: Path) -> None:
    finding = doctor.dataset(str(tmp_path))
    assert finding.state == "missing"
    assert "no train-images-idx3-ubyte" in finding.remedy


def test_doctor_fails_and_names_what_is_missing(tmp_path: Path) -> None:
    done = redline("doctor", "--data-dir", str(tmp_path / "absent"))
    assert done.returncode == 1
    assert "error: missing: Fashion-MNIST" in done.stderr


def test_doctor_survives_a_damaged_weights_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\x00" * 50)
    monkeypatch.setattr(models, "pretrained_file", lambda name: damaged)
    finding = doctor.weights()
    assert (finding.state, finding.remedy) == ("missing", "run: redline pretrain")


def test_expected_errors_are_one_line_without_a_traceback(tmp_path: Path) -> None:
    done = redline("demo", "--data-dir", str(tmp_path / "absent"), "--out", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "no such folder" in done.stderr
    assert "Traceback" not in done.stderr


@needs_data
def test_an_unknown_device_is_refused_never_replaced(tmp_path: Path) -> None:
    done = redline("demo", "--device", "fpga", "--out", str(tmp_path))
    assert done.returncode == 1
    assert "no device 'fpga'; there are " in done.stderr.replace("\n", " ")
    assert not (tmp_path / "demo" / "results.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--rates", "1e-3,many"], "not a list of numbers"),
        (["demo", "--rates", "2"], "lie between 0 and 1"),
        (["demo", "--rates", "0.1,0.1"], "numbers must differ"),
        (["demo", "--resume", "--restart"], "not both"),
        (["demo", "--resume", "--name", "absent", "--out", "nowhere"], "no run to resume"),
        (["verify", "--devices", "reference"], "at least two"),
        (["verify", "--devices", "reference,fpga"], "no device 'fpga'"),
        (["verify", "--faults", "hard"], "there are soft and overclock, not 'hard'"),
        (["verify", "--table", "a.json"], "delay tables are for --faults overclock"),
        (["compile", "nonesuch"], "no network 'nonesuch'; there are lenet5, caffe_lenet, alexnet"),
    ],
)
def test_wrong_arguments_are_explained(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code != 0
    assert message in " ".join(done.output.replace("│", " ").split())


def test_restart_throws_away_a_run_and_nothing_else(tmp_path: Path) -> None:
    from host.campaign import campaign
    from host.studies import demo

    for kind, sign in ((campaign, "campaign.db"), (workbench, "config.json"), (demo, "soft-errors/config.json")):
        folder = tmp_path / kind.__name__
        for name in ("precious.txt", sign):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            open_folder(folder, kind.started, restart=True)  # nothing of the kind is there yet
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        open_folder(folder, kind.started, restart=False, resume=True)
        assert (folder / "precious.txt").exists()
        open_folder(folder, kind.started, restart=True)
        assert not folder.exists()


def test_restart_does_not_throw_away_what_lies_elsewhere(tmp_path: Path) -> None:
    precious = tmp_path / "elsewhere"
    (precious / "below").mkdir(parents=True)
    for folder in (precious, precious / "below"):
        (folder / "config.json").touch()
    (tmp_path / "run").symlink_to(precious)
    for name in ("run", "run/below"):
        with pytest.raises(typer.Exit):
            open_folder(tmp_path / name, workbench.started, restart=True)
    assert (precious / "below" / "config.json").exists()


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/tmp/x", "", ".", "..", "a\nb", "\x1b[31m"])
def test_a_name_that_leads_out_of_the_folder_of_runs_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit):
        run_folder(tmp_path / "runs", name)
    assert "a run's name is that of a folder within --out" in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x", "a/b", "x.1", "[/red]", "=1", "$x$", "ü", "my run"])
def test_other_names_are_folders_within(name: str, tmp_path: Path) -> None:
    assert run_folder(tmp_path / "runs", name) == tmp_path / "runs" / name


@pytest.mark.parametrize(
    "command", [["campaign", "run", "x"], ["demo"], ["sweep", "overclock"], ["campaign", "cost", "x"]]
)
def test_an_output_that_is_a_file_is_refused_before_anything_is_computed(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(cli.app, [*command, "--out", str(tmp_path / "file")])
    assert done.exit_code == 1
    assert "file is not a folder: choose another --out or name" in " ".join(done.output.split())


@pytest.mark.parametrize("name", ["[/red]", "[bold]x", "[link=x]", ":smile:", "[red"])
def test_names_are_shown_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    show_table(Table([name], [[name]]), name)
    fail(f"{name} is wrong")
    console.print(name)
    said = capsys.readouterr()
    assert said.out.count(name) == 4
    assert said.err == f"error: {name} is wrong\n"


@pytest.mark.parametrize("name", ["$", "$x", "$\\frac$", "a$b$c", "_x", "{", "=1", "[/red]"])
def test_layers_of_any_name_are_drawn(name: str) -> None:
    rates = {key: Clustered.of(np.array([1, 0]), np.array([4, 4])) for key in sensitivity.OUTCOMES}
    drawn = sensitivity.draw(
        sensitivity.Sensitivity("arm", [name], {(name, "mac", 3): rates}, {name: rates}, {("mac", 3): rates})
    )
    assert drawn.png.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (RedlineError("[/red] is wrong"), "error: [/red] is wrong"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "error: x: No space left on device"),
        (OSError(errno.EIO, "Input/output error"), "error: [Errno 5] Input/output error"),
        (MemoryError(), "error: there is not enough memory"),
        (RecursionError("deep\nand more"), "error: unexpected RecursionError: deep; this is a defect: please report"),
        (KeyError("x"), "error: unexpected KeyError: 'x'; this is a defect"),
        (BrokenPipeError(), ""),
    ],
)
def test_the_command_line_shows_a_line_and_never_a_traceback(
    raised: BaseException, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise raised

    monkeypatch.setattr(cli, "app", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    found = capsys.readouterr().err
    assert found.startswith(said)
    assert len(found.splitlines()) == bool(said)


def test_a_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise KeyError("x")

    monkeypatch.setattr(cli, "app", command)
    monkeypatch.setenv(cli.TRACEBACK, "1")
    with pytest.raises(KeyError):
        cli.main()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="hardware: no /dev/full")
def test_output_that_cannot_be_written_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "host.cli", "timing", "show", "--static"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "error: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("value", ["[" * 100_000, "{", "1e", '"'])
def test_an_option_that_is_no_json_is_text(value: str) -> None:
    assert conformance.parsed([f"a={value}"]) == {"a": value}


def test_verify_agrees_with_itself_and_prints_json() -> None:
    done = redline("verify", "--devices", "reference,reference", "--cases", "3", "--seed", "5", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["cases"], found["mismatches"], found["seed"]) == (3, 0, 5)


def test_verify_under_overclocking_counts_what_it_did() -> None:
    done = redline(
        "verify", "--devices", "reference,reference", "--faults", "overclock", "--cases", "6", "--seed", "5", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["mismatches"] == 0
    assert found["late_cases"] >= found["wrong_cases"] > 0
    assert found["clock_changes"] > 0


@needs_data
def test_compile_shows_the_layers_and_saves_the_program(tmp_path: Path) -> None:
    done = redline("compile", "lenet5", "--out", str(tmp_path / "lenet.program"), COLUMNS="160")
    assert done.returncode == 0, done.stderr
    for name in ("conv1", "conv2", "fc1", "fc2", "fc3"):
        assert name in done.stdout
    assert Program.load(tmp_path / "lenet.program").names == ("conv1", "conv2", "fc1", "fc2", "fc3")


@needs_data
def test_pretraining_writes_weights_with_their_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = data.load

    def small(name: str, split: data.Split, *arguments: object, **options: object) -> data.Dataset:
        return whole(name, split).head(512)

    monkeypatch.setattr(data, "load", small)
    done = CliRunner().invoke(cli.app, ["pretrain", "--out", str(tmp_path / "w.safetensors"), "--epochs", "1"])
    assert done.exit_code == 0, done.output
    made = models.metadata(tmp_path / "w.safetensors")
    assert (made["seed"], made["epochs"], made["parameters"]) == (1, 1, 61706)
    models.lenet5(pretrained=tmp_path / "w.safetensors")


def test_the_public_face_exports_only_names_that_exist() -> None:
    import redline as face

    for name in face.__all__:
        assert hasattr(face, name), name
