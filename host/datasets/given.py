"""Data as users have it: `Labelled`, PyTorch's data sets and loaders, pairs of tensors; checked before it is used."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch.utils import data as torch_data

from host.datasets.data import DataError, Labelled

CALIBRATION = 512
"""Images that are taken of a data set for calibration."""
IDENTIFYING = 4096
"""Images of a data set that tell it from others; evenly spaced where there are more."""
AT_ONCE = 256
KINDS = "a redline.Dataset, a torch Dataset or DataLoader, a pair (images, labels), or an object as in redline.Labelled"

Batch = tuple[torch.Tensor, torch.Tensor]


class Given:
    """A data set whose batches are checked: float images, shape (n, C, H, W), and int64 labels, shape (n,).

    Raises
    ------
    DataError
        If `data` is no data set; by the methods: if it is empty, or a batch is none.
    """

    def __init__(self, data: object) -> None:
        if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, torch.Tensor) for part in data):
            images, labels = data
            if len(images) != len(labels):
                raise DataError(f"{len(images)} images but {len(labels)} labels: give a label for each image")
            data = torch_data.TensorDataset(images, labels)
        self.data: object = data
        self._own = all(hasattr(data, name) for name in ("batch", "batches", "__len__"))
        if not self._own and not isinstance(data, (torch_data.DataLoader, torch_data.Dataset)):
            raise DataError(f"a {type(data).__name__} is no data set: give {KINDS}")

    def __len__(self) -> int:
        """Images in all; 0 also where nobody knows."""
        data: Any = self.data
        if isinstance(data, torch_data.DataLoader):
            sampler = data.sampler if data.batch_size is not None else None
            data = data.dataset if sampler is None or isinstance(data.dataset, torch_data.IterableDataset) else sampler
        return len(data) if hasattr(data, "__len__") else 0

    def batches(self, size: int) -> Iterator[Batch]:
        """Consecutive batches, in order: of at most `size` images, or as a DataLoader makes them."""
        empty = True
        for batch in self._batches(size):
            checked = _pair(batch)
            if len(checked[1]):
                empty = False
                yield checked
        if empty:
            raise DataError("the data set is empty: give at least one image")

    def _batches(self, size: int) -> Iterable[Any]:
        data: Any = self.data
        if self._own:
            return cast(Labelled, data).batches(size) if len(data) else ()
        if isinstance(data, torch_data.DataLoader):
            return data
        if hasattr(data, "__len__") and not len(data):
            return ()
        return torch_data.DataLoader(data, batch_size=size)

    def batch(self, index: torch.Tensor) -> Batch:
        """Images and labels at `index`; of a DataLoader, by its data set and `collate_fn`."""
        data: Any = self.data
        if self._own:
            return _pair(cast(Labelled, data).batch(index))
        collate = torch_data.default_collate
        if isinstance(data, torch_data.DataLoader):
            data, collate = data.dataset, data.collate_fn
        if isinstance(data, torch_data.TensorDataset):
            return _pair([tensor[index] for tensor in data.tensors])
        return _pair(collate([data[int(at)] for at in index]))

    def random_access(self) -> int:
        """Images of which `batch` gives any.

        Raises
        ------
        DataError
            If there are none, or the order of images is not for us to choose.
        """
        data: Any = self.data
        if isinstance(data, torch_data.DataLoader):
            plain = (torch_data.SequentialSampler, torch_data.RandomSampler)
            if not isinstance(data.dataset, torch_data.IterableDataset) and not (
                data.batch_size is not None and isinstance(data.sampler, plain)
            ):
                raise DataError(
                    "training draws its own order and batches (Recipe.seed, Recipe.batch), which this DataLoader's "
                    f"{type(data.sampler if data.batch_size is not None else data.batch_sampler).__name__} would not "
                    "have a part in: give loader.dataset, or a Subset of it"
                )
            data = data.dataset
        if isinstance(data, torch_data.IterableDataset) or not hasattr(data, "__len__"):
            raise DataError("training needs any image at any time: give a data set with __getitem__ and __len__")
        if not len(data):
            raise DataError("the data set is empty: give at least one batch of images")
        return len(data)

    def identity(self) -> dict[str, Any]:
        """What tells the data set from others: its size, and a SHA-256 of images and labels.

        Images that come out differently each time (augmented ones) do not count, only their labels.
        """
        size = self.random_access()
        index = torch.arange(size) if size <= IDENTIFYING else torch.arange(IDENTIFYING) * size // IDENTIFYING
        with _random_state_kept():
            parts = [self.batch(some) for some in index.split(AT_ONCE)]
            x = self.batch(index[: min(size, 4)])[0]
        same = torch.equal(x, parts[0][0][: len(x)])
        sha = hashlib.sha256()
        for images, labels in parts:
            sha.update(labels.numpy().tobytes())
            sha.update(str(tuple(images.shape[1:])).encode())
            if same:
                sha.update(images.detach().cpu().to(torch.float32).contiguous().numpy().tobytes())
        return {"images": size, "sha256": sha.hexdigest()}


def calibration(data: object) -> object:
    """Images of a data set or loader, its first few hundred; anything else as it is."""
    own = all(hasattr(data, name) for name in ("batch", "batches", "__len__"))
    if not own and not isinstance(data, (torch_data.DataLoader, torch_data.Dataset)):
        return data
    found: list[torch.Tensor] = []
    source: Any = data
    if not own and not isinstance(data, torch_data.DataLoader):
        source = () if hasattr(source, "__len__") and not len(source) else torch_data.DataLoader(source, AT_ONCE)
    for batch in source.batches(AT_ONCE) if own else source:
        images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(images, torch.Tensor):
            raise DataError(
                f"a batch of the calibration data is a {type(batch).__name__}: batches must be tensors of images, or "
                "(images, labels)"
            )
        found.append(images)
        if sum(map(len, found)) >= CALIBRATION:
            break
    return torch.cat(found)[:CALIBRATION] if found else torch.zeros(0, 1, 1, 1)


def _pair(batch: Any) -> Batch:
    """Images and labels of a batch, checked."""
    if not isinstance(batch, Sequence) or len(batch) < 2:
        raise DataError(f"a batch must be (images, labels), not a {type(batch).__name__}; {KINDS} gives such")
    try:
        x, y = torch.as_tensor(batch[0]), torch.as_tensor(batch[1])
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"a batch must be tensors (images, labels), not ({type(batch[0]).__name__}, {type(batch[1]).__name__}): "
            "turn them into tensors in the data set"
        ) from error
    if y.dim() != 1 or y.is_floating_point() or y.is_complex() or y.dtype is torch.bool:
        raise DataError(f"labels must be one integer an image, shape (n,), not {y.dtype} of shape {tuple(y.shape)}")
    if x.dim() == 0 or len(x) != len(y):
        raise DataError(
            f"a batch has images of shape {tuple(x.shape)} and {len(y)} labels: give a label for each image"
        )
    return x, y.to("cpu", torch.int64)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """What augmentation draws here, training does not miss."""
    state, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 (other people's generator)
    try:
        with torch.random.fork_rng(devices=()):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)  # noqa: NPY002
