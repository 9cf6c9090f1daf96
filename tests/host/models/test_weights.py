"""A user's weights load whole or not at all, and errors name the key and the remedy."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from host import models


class Small(nn.Module):
    """A network with every kind of entry: weights, biases, statistics, a counter."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.bn = nn.BatchNorm2d(2)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.bn(self.conv(x)), 1))


def trained(classes: int = 3) -> Small:
    torch.manual_seed(5)
    net = Small(classes)
    net.bn.running_mean.normal_()
    net.bn.num_batches_tracked.fill_(9)
    return net


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def save_legacy(state: object, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


WRITERS: list[tuple[str, Callable[..., None]]] = [
    ("net.pth", torch.save),
    ("legacy.pth", save_legacy),
    ("net.safetensors", save_file),
]


@pytest.mark.parametrize(("name", "write"), WRITERS, ids=[name for name, _ in WRITERS])
def test_every_format_gives_back_every_tensor(tmp_path: Path, name: str, write: Callable[..., None]) -> None:
    write(trained().state_dict(), tmp_path / name)
    net = Small()
    models.load_weights(net, tmp_path / name)
    assert same(net, trained())


def test_weights_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(trained().state_dict(), path)
    net = Small()
    models.load_weights(net, path)
    path.write_bytes(bytes(path.stat().st_size))
    assert same(net, trained())


def test_a_model_function_takes_a_path(tmp_path: Path) -> None:
    torch.manual_seed(3)
    given = models.squeezenet1_1(classes=2)
    torch.save(given.state_dict(), tmp_path / "squeeze.pth")
    assert same(models.squeezenet1_1(classes=2, pretrained=tmp_path / "squeeze.pth"), given)


@pytest.mark.parametrize("entry", ["state_dict", "model_state_dict", "model"])
def test_checkpoints_of_training_scripts_load(tmp_path: Path, entry: str) -> None:
    wrapped = {f"module.{key}": value for key, value in trained().state_dict().items()}
    torch.save({"epoch": 3, entry: wrapped, "optimizer": {"lr": 0.1}}, tmp_path / "checkpoint.pth")
    net = Small()
    models.load_weights(net, tmp_path / "checkpoint.pth")
    assert same(net, trained())


def test_half_precision_files_load_into_float_networks(tmp_path: Path) -> None:
    save_file(trained().half().state_dict(), tmp_path / "half.safetensors")
    net = Small()
    models.load_weights(net, tmp_path / "half.safetensors")
    assert net.conv.weight.dtype == torch.float32
    assert torch.equal(net.conv.weight, trained().conv.weight.half().float())


def test_files_older_than_the_batch_norm_counter_load(tmp_path: Path) -> None:
    state = {k: v for k, v in trained().state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "old.safetensors")
    net = Small()
    models.load_weights(net, tmp_path / "old.safetensors")
    assert torch.equal(net.bn.running_mean, trained().bn.running_mean)


@pytest.mark.parametrize("name", ["absent.pth", "absent.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(models.ModelError, match=f"{name}: no such file; check the path"):
        models.load_weights(Small(), tmp_path / name)


@pytest.mark.parametrize(("name", "write"), WRITERS, ids=[name for name, _ in WRITERS])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.9])
def test_truncated_files_are_rejected(tmp_path: Path, name: str, write: Callable[..., None], kept: float) -> None:
    path = tmp_path / name
    write(trained().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    net = trained()
    with pytest.raises(models.ModelError, match=rf"{name}: damaged.*; fetch or save it again"):
        models.load_weights(net, path)
    assert same(net, trained())


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors"])
def test_files_of_another_kind_are_rejected(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("<!DOCTYPE html><title>404 Not Found</title>")
    with pytest.raises(models.ModelError, match=f"{name}: damaged"):
        models.load_weights(Small(), tmp_path / name)


def test_a_whole_pickled_network_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(trained(), tmp_path / "whole.pth")
    with pytest.raises(models.ModelError, match=r"whole.pth: holds more than tensors.*torch.save\(net.state_dict\(\)"):
        models.load_weights(Small(), tmp_path / "whole.pth")


class Mine:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return eval, ("(_ for _ in ()).throw(SystemExit)",)


@pytest.mark.parametrize("raw", [False, True], ids=["torch.save", "bare pickle"])
def test_code_in_a_file_is_never_run(tmp_path: Path, raw: bool) -> None:
    path = tmp_path / "evil.pth"
    if raw:
        path.write_bytes(pickle.dumps(Mine()))
    else:
        torch.save({"conv.weight": Mine()}, path)
    with pytest.raises(models.ModelError, match=r"evil.pth: (holds more than tensors|damaged)"):
        models.load_weights(Small(), path)


def test_something_else_than_a_state_dict_is_named(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(models.ModelError, match="holds a list, not a state_dict"):
        models.load_weights(Small(), tmp_path / "list.pth")


def test_an_entry_that_is_no_tensor_is_named(tmp_path: Path) -> None:
    torch.save({**trained().state_dict(), "epoch": 3}, tmp_path / "mixed.pth")
    with pytest.raises(models.ModelError, match="its entry 'epoch' is of type int, not a tensor"):
        models.load_weights(Small(), tmp_path / "mixed.pth")


def refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> str:
    """What the error says; the network is as it was."""
    torch.save(state, tmp_path / "other.pth")
    torch.manual_seed(6)
    net = Small()
    untouched = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(models.ModelError, match="weights of another network") as caught:
        models.load_weights(net, tmp_path / "other.pth")
    assert all(torch.equal(value, untouched[key]) for key, value in net.state_dict().items())
    return str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    state = trained().state_dict()
    del state["bn.running_var"]
    assert "it lacks 'bn.running_var'; give the file of this network" in refused(tmp_path, state)


def test_an_unexpected_key_is_named(tmp_path: Path) -> None:
    state = trained().state_dict()
    said = refused(tmp_path, {**state, "fc2.weight": torch.zeros(1), "fc2.bias": torch.zeros(1)})
    assert "the network has no 'fc2.weight' (and 1 more); give the file of this network" in said


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    said = refused(tmp_path, {**trained().state_dict(), "conv.weight": torch.zeros(2, 3, 3, 3)})
    assert "'conv.weight' has shape 2x3x3x3, the network's has 2x1x3x3" in said
    assert "classes" not in said


def test_another_number_of_classes_says_how_to_construct_the_network(tmp_path: Path) -> None:
    said = refused(tmp_path, dict(trained(classes=5).state_dict()))
    assert "'fc.weight' has shape 5x8, the network's has 3x8 (and 1 more differ)" in said
    assert "for a network of 5 classes, construct it with as many (classes=)" in said


def test_quantised_weights_are_not_taken_for_float(tmp_path: Path) -> None:
    said = refused(tmp_path, {**trained().state_dict(), "fc.weight": torch.zeros(3, 8, dtype=torch.int8)})
    assert "'fc.weight' holds torch.int8, not torch.float32" in said
