"""`redline kernel`: the package on disk, its JSON, and what is refused with a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from host import cli
from host.cli.conformance import parsed
from host.devices.registry import accelerator
from hw.config import Config
from tests.host.test_cli import redline

SMALL = ("--lanes", "2", "--vec", "4", "--feature-bytes", "256", "--weight-bytes", "256", "--pool-columns", "4")


def test_writes_a_package_and_says_so_in_json(tmp_path: Path) -> None:
    done = redline(
        *("kernel", "--out", str(tmp_path / "k"), "--board", "u50", "--mhz", "333", "--units", "2", "--keep-clock"),
        *(*SMALL, "--arithmetic", "pipecnn", "--saboteur", "--overclock", "3", "--json"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    config = Config(
        lanes=2, vec=4, feature_bytes=256, weight_bytes=256, pool_columns=4, port_bits=64,
        arithmetic="pipecnn", saboteur=True, overclock=3,
    )  # fmt: skip
    assert found["config_hash"] == f"{config.hash:#018x}"
    assert (found["platform"], found["mhz"], found["units"]) == ("xilinx_u50_gen3x16_xdma_5_202210_1", 333, 2)
    assert {Path(path).name for path in found["files"]} == {path.name for path in (tmp_path / "k").iterdir()}
    link = (tmp_path / "k" / "link.cfg").read_text()
    assert "kernel_frequency=0:333\n" in link
    assert "sp=redline_2.m_axi_gmem:HBM[0:3]\n" in link
    assert "skipTimingCheckAndFrequencyScaling=1" in link
    readme = (tmp_path / "k" / "README.md").read_text()
    assert "units=2, memory_bytes=1 << 27)" in readme, "a bank of HBM holds 256 MB"
    assert f"`{found['config_hash']}`" in readme
    # The README's calls name the same build.
    (line,) = [line for line in readme.splitlines() if line.startswith("accelerator = ")]
    said = eval(line.removeprefix("accelerator = "), {"dict": dict})
    assert Config(**said).hash == config.hash
    (line,) = [line for line in readme.splitlines() if line.startswith("redline conformance opencl ")]
    own, rest = accelerator(parsed(line.split()[4::2]))
    assert Config(**own).hash == config.hash
    assert rest == {"binary": "redline.xclbin", "platform": "xilinx"}


def test_tells_people_where_the_commands_are(tmp_path: Path) -> None:
    done = redline("kernel", "--out", str(tmp_path), *SMALL)
    assert done.returncode == 0, done.stderr
    assert "README.md has the commands for Vitis" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--board", "zcu104"), "no board 'zcu104'; there are u200, u250, u280, u50, u55c"),
        (("--lanes", "3"), "lanes must be a power of two from 2 to 64, not 3"),
        (("--arithmetic", "float"), "arithmetic must be one of redline, pipecnn, not 'float'"),
        (("--overclock", "33"), "overclock must be from 0 to 32, not 33"),
        (("--units", "0"), "units must be from 1 to 15"),
        (("--mhz", "0"), "mhz must be from 1 to 1000"),
    ],
)
def test_what_cannot_be_is_refused_with_a_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = redline("kernel", "--out", str(tmp_path / "k"), *arguments)
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "k").exists()


def test_needs_a_folder() -> None:
    assert CliRunner().invoke(cli.app, ["kernel"]).exit_code == 2
