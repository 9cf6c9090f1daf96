"""The networks that come with Redline, and their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from host import models
from host.datasets import data
from host.training.pretrain import accuracy
from tests.needs import needs_fashion


def test_lenet5_has_61706_parameters() -> None:
    assert sum(p.numel() for p in models.lenet5().parameters()) == 61706


@needs_fashion
def test_pretrained_lenet5_reaches_the_accuracy_its_file_states() -> None:
    made = models.metadata(models.pretrained_file("lenet5"))
    test = data.load("fashion-mnist", "test")
    assert made["sha256"]["t10k-images-idx3-ubyte"] == test.sha256["t10k-images-idx3-ubyte"]
    measured = accuracy(models.lenet5(pretrained=True), test)
    # Another processor's float sums may tip a few images.
    assert measured == pytest.approx(made["test_accuracy"], abs=5e-4)
    assert measured > 0.9


def test_missing_weights_say_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(models.ModelError, match="no such file; make it with 'redline pretrain'"):
        models.lenet5(pretrained=tmp_path / "absent.safetensors")


def test_damaged_weights_are_rejected(tmp_path: Path) -> None:
    whole = models.pretrained_file("lenet5").read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(models.ModelError, match="damaged"):
        models.lenet5(pretrained=damaged)


def test_weights_of_another_network_are_rejected(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"conv1.weight": torch.zeros(3)}, other)
    with pytest.raises(models.ModelError, match="weights of another network"):
        models.lenet5(pretrained=other)
