"""Data as users have it, and what is said where it is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, WeightedRandomSampler
from torch.utils.data import Dataset as TorchDataset

from host.datasets.data import DataError
from host.devices.reference import ReferenceDevice
from host.program.program import ProgramError
from host.training.train import Recipe, evaluate, retrain
from host.training.twin import Twin, attach
from hw.config import Config
from tests.host.training.small import Few, images, network

FEW = Few()
PLAIN = TensorDataset(FEW.x, FEW.labels)


class Mapped(TorchDataset[tuple[torch.Tensor, int]]):
    def __len__(self) -> int:
        return len(FEW)

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        return FEW.x[at], int(FEW.labels[at])


class Flow(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return zip(FEW.x, FEW.labels, strict=True)


SAME: dict[str, Callable[[], Any]] = {
    "TensorDataset": lambda: PLAIN,
    "map-style": Mapped,
    "Subset": lambda: Subset(PLAIN, range(len(PLAIN))),
    "DataLoader": lambda: DataLoader(PLAIN, batch_size=7),
    "DataLoader of map-style": lambda: DataLoader(Mapped(), batch_size=7),
    "pair": lambda: (FEW.x, FEW.labels),
    "int32 labels": lambda: (FEW.x, FEW.labels.int()),
}
STREAMS: dict[str, Callable[[], Any]] = {
    "IterableDataset": Flow,
    "DataLoader of a stream": lambda: DataLoader(Flow(), batch_size=7),
    "DataLoader without batches": lambda: DataLoader(
        [(FEW.x[at : at + 6], FEW.labels[at : at + 6]) for at in range(0, 48, 6)], batch_size=None
    ),
}


def twin(calibrate: Any = None) -> Twin:
    device = ReferenceDevice(Config(lanes=4, vec=4))
    return attach(network(), device, calibrate=images() if calibrate is None else calibrate)


@pytest.mark.parametrize("kind", [*SAME, *STREAMS])
def test_evaluation_takes_data_as_users_have_it(kind: str) -> None:
    wanted = evaluate(twin(), FEW)
    found = evaluate(twin(), (SAME | STREAMS)[kind]())
    assert found.digest == wanted.digest
    assert found.labels.tolist() == wanted.labels.tolist()
    assert found.labels.dtype == np.int64


def test_a_shuffled_loader_is_evaluated_with_its_own_labels() -> None:
    loader = DataLoader(PLAIN, batch_size=7, shuffle=True, generator=torch.Generator().manual_seed(1))
    assert evaluate(twin(), loader).accuracy == evaluate(twin(), FEW).accuracy


@pytest.mark.parametrize("kind", SAME)
def test_retraining_takes_the_recipes_order_of_any_data(kind: str) -> None:
    recipe, found = Recipe(images=64, batch=8, seed=2), []
    for data in (FEW, SAME[kind]()):
        made = twin()
        retrain(made, data, recipe)
        found.append(torch.nn.utils.parameters_to_vector(made.net.parameters()).detach())
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", STREAMS)
def test_retraining_refuses_what_it_cannot_draw_from(kind: str) -> None:
    with pytest.raises(DataError, match=r"__getitem__|draws its own order"):
        retrain(twin(), STREAMS[kind](), Recipe(images=64, batch=8))


def test_retraining_refuses_a_sampler_that_would_be_ignored() -> None:
    loader = DataLoader(PLAIN, batch_size=8, sampler=WeightedRandomSampler([1.0] * 48, 48))
    with pytest.raises(DataError, match=r"WeightedRandomSampler would not have a part in: give loader.dataset"):
        retrain(twin(), loader, Recipe(images=64, batch=8))


@pytest.mark.parametrize(
    "data",
    [
        DataLoader(PLAIN, batch_size=5),
        PLAIN,
        FEW,
        DataLoader(FEW.x, batch_size=5),  # type: ignore[arg-type]
        Flow(),
        FEW.x.numpy(),
        FEW.x.double(),
        FEW.x.bfloat16().float(),
    ],
)
def test_calibration_takes_data_as_users_have_it(data: Any) -> None:
    x = FEW.x.bfloat16().float() if isinstance(data, torch.Tensor) and data.dtype is torch.float32 else FEW.x
    assert twin(data).program.digest == twin(x).program.digest


def test_calibration_takes_the_first_512_images_of_a_data_set() -> None:
    many = images(600)
    loader = DataLoader(TensorDataset(many, torch.zeros(600, dtype=torch.int64)), batch_size=100)
    assert twin(loader).program.digest == twin(many[:512]).program.digest


class Items(TorchDataset[Any]):
    """A data set of one kind of item."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return 4

    def __getitem__(self, at: int) -> Any:
        return self.item


X = torch.rand(1, 8, 8)
NONE: dict[str, tuple[Any, str]] = {
    "empty": (TensorDataset(X[None][:0], torch.zeros(0, dtype=torch.int64)), "the data set is empty"),
    "empty protocol": (Few(0), "the data set is empty"),
    "empty pair": ((X[None][:0], torch.zeros(0, dtype=torch.int64)), "the data set is empty"),
    "empty loader": (DataLoader(Subset(PLAIN, [])), "the data set is empty"),
    "no labels": (Items(X), r"a batch must be \(images, labels\)"),
    "one tensor": (TensorDataset(X.expand(4, 1, 8, 8)), r"a batch must be \(images, labels\)"),
    "dictionaries": (Items({"x": X, "y": 1}), r"a batch must be \(images, labels\), not a dict"),
    "one-hot labels": (Items((X, torch.eye(3)[0])), "labels must be one integer an image"),
    "labels with an axis": (Items((X, torch.tensor([1]))), "labels must be one integer an image"),
    "float labels": (Items((X, 1.5)), "labels must be one integer an image"),
    "names as labels": (Items((X, "cat")), "a batch must be tensors"),
    "unequal pair": ((X[None].expand(3, 1, 8, 8), torch.zeros(2, dtype=torch.int64)), "3 images but 2 labels"),
    "a number": (3, "an? int is no data set: give a redline.Dataset"),
    "a path": ("train.csv", "a str is no data set"),
    "nothing": (None, "a NoneType is no data set"),
}


@pytest.mark.parametrize("kind", NONE)
@pytest.mark.parametrize("use", ["evaluate", "retrain"])
def test_what_is_no_data_is_refused(kind: str, use: str) -> None:
    data, said = NONE[kind]
    with pytest.raises(DataError, match=said):
        evaluate(twin(), data) if use == "evaluate" else retrain(twin(), data, Recipe(images=8, batch=2))


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 9, 8), (8, 8)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    data = TensorDataset(torch.rand(8, *shape), torch.zeros(8, dtype=torch.int64))
    for use in (lambda: evaluate(twin(), data), lambda: retrain(twin(), data, Recipe(images=8, batch=2))):
        with pytest.raises(ProgramError, match="wrong image size"):
            use()


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_labels_without_an_output_are_refused_in_training(label: int) -> None:
    data = TensorDataset(images(8), torch.full((8,), label))
    with pytest.raises(DataError, match="do not fit the network's result"):
        retrain(twin(), data, Recipe(images=8, batch=2))


@pytest.mark.parametrize(
    "data",
    [
        DataLoader(Subset(PLAIN, [])),
        TensorDataset(X[None][:0], torch.zeros(0)),
        Items({"x": X}),
        "images",
        object(),
        X.to_sparse(),
        torch.zeros(2, 1, 8, 8, dtype=torch.complex64),
        torch.zeros(2, 1, 8, 8, device="meta"),
        [X, X[:, :3]],
    ],
)
def test_what_cannot_be_calibrated_with_is_refused(data: Any) -> None:
    with pytest.raises((ProgramError, DataError)):
        twin(data)
