"""The page "Bring your own accelerator" is true: its code, installed as a package, is a device that conforms."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import redline
from host.conformance import suite
from host.devices.registry import GROUP, device_names
from host.verification.verify import verify
from hw.config import Config

PAGE = Path(__file__).parents[2] / "docs" / "bring-your-own-accelerator.md"
CONFIG = Config(lanes=4, vec=4)


def block(language: str, number: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)[number]


def install(folder: Path, code: str) -> None:
    """What pip leaves behind: the module, and the metadata with its entry points."""
    project = tomllib.loads(block("toml"))["project"]
    (folder / "gemm.py").write_text(code)
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    points = "\n".join(f"{name} = {target}" for name, target in project["entry-points"][GROUP].items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    install(tmp_path, block("python"))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("gemm", None)


@pytest.mark.usefixtures("installed")
def test_it_is_found_by_its_entry_point_and_conforms() -> None:
    assert "gemm" in device_names()
    with redline.device("gemm", CONFIG) as device:
        assert type(device).__module__ == "gemm"
    report = suite.run(
        "gemm", lambda config: redline.device("gemm", config, memory_bytes=1 << 24), [CONFIG], any_build=False
    )
    assert report.ok, report.failures
    assert {result.state for result in report.results if result.check.group != "faults"} == {"pass"}


@pytest.mark.usefixtures("installed")
def test_the_pages_own_test_passes() -> None:
    gemm = importlib.import_module("gemm")
    exec(block("python", 1), {"GemmDevice": gemm.GemmDevice})


@pytest.mark.usefixtures("installed")
def test_verification_and_networks_run_on_it() -> None:
    report = verify(("reference", "gemm"), cases=8, seed=4, configs=(CONFIG,))
    assert report.ok, str(report)
    torch.manual_seed(0)
    net = redline.models.lenet5(pretrained=True)
    x = torch.rand(4, 1, 28, 28)
    outputs = [
        redline.attach(net, redline.device(name, CONFIG), calibrate=x)(x).detach().numpy()
        for name in ("gemm", "reference")
    ]
    np.testing.assert_array_equal(*outputs)


def test_the_command_finds_an_installed_package(installed: Path) -> None:
    command = ["conformance", "gemm", "--option", "lanes=4", "--option", "vec=4", "--cases", "2", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "host.cli", *command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{PAGE.parents[1]}"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["device"], found["ok"]) == ("gemm", True)


@pytest.mark.parametrize(
    ("right", "wrong", "check"),
    [
        ("a.astype(np.int32) @ b.astype(np.int32)", "(a @ b).astype(np.int32)", "programs_written_back"),
        ("self.place(address, nbytes).copy()", "self.place(address, nbytes)", "what_is_read_is_a_copy"),
        ("self.board = None\n", "pass\n", "a_closed_device"),
        ("        check_launch(self, launch)\n", "", "programs_of_another_accelerator"),
        ("        check_faults(self, launch)\n", "", "faults_without_instrumentation"),
    ],
)
def test_a_slip_in_it_is_found(tmp_path: Path, right: str, wrong: str, check: str) -> None:
    code = block("python")
    assert code.count(right) == 1
    namespace: dict[str, object] = {"__name__": "gemm"}
    exec(code.replace(right, wrong), namespace)
    make = namespace["GemmDevice"]
    report = suite.run("gemm", lambda config: make(config, memory_bytes=1 << 24), [CONFIG], any_build=False, cases=4)  # type: ignore[operator]
    assert check in {result.check.name for result in report.failures}
