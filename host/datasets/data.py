"""Fashion-MNIST and MNIST from IDX files, checked before they are believed."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from hw.errors import RedlineError
from hw.files import ReadError, read_bytes

Split = Literal["train", "test"]

SYSTEM_DIRS = {
    "fashion-mnist": (Path("/usr/share/datasets/fashion-mnist"),),
    "mnist": (Path("/usr/share/datasets/mnist"),),
}
"""Where distributions install the data sets."""

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Fashion-MNIST: SHA-256 of the uncompressed files."""

FASHION_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

MOST_BYTES = 1 << 28
"""Of an uncompressed file: five times Fashion-MNIST's longest."""
BLOCK = 1 << 20
HEADER = 16
"""Bytes of the longest header."""
SIZE = 28
"""Rows and columns of every image."""


class DataError(RedlineError, RuntimeError):
    """A data set is missing or damaged; the message names the file, the cause and the remedy."""


class Labelled(Protocol):
    """Images with labels, as evaluation and retraining want them: `Dataset`, `imagenet.ImageFolder`, or yours."""

    @property
    def labels(self) -> torch.Tensor:
        """int64, shape (N,)."""
        ...

    def __len__(self) -> int: ...

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Float images, shape (n, C, H, W), and labels, shape (n,), at `index`."""
        ...

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Consecutive batches of at most `size` images, in order."""
        ...


@dataclass(frozen=True)
class Dataset:
    """Images and labels of one split.

    Attributes
    ----------
    name : str
        "fashion-mnist" or "mnist".
    images : uint8 tensor, shape (N, 1, 28, 28)
        Raw pixels; `batch` gives them as the networks want them.
    labels : int64 tensor, shape (N,)
        0 to 9.
    sha256 : dict of str
        SHA-256 of the uncompressed files that were read, by file name.
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    sha256: dict[str, str]

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, count: int) -> Dataset:
        """The first `count` images."""
        return Dataset(self.name, self.images[:count], self.labels[:count], self.sha256)

    @property
    def pixels(self) -> torch.Tensor:
        """All images as float32 in [0, 1], shape (N, 1, 28, 28)."""
        return self.images.to(torch.float32) / 255

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Float images in [0, 1], shape (n, 1, 28, 28), and labels, shape (n,), at `index`."""
        return self.images[index].to(torch.float32) / 255, self.labels[index]

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Consecutive batches of at most `size` images, in order."""
        for start in range(0, len(self), size):
            yield self.batch(torch.arange(start, min(start + size, len(self))))


def load(name: str, split: Split, data_dir: str | os.PathLike[str] | None = None, *, url: str | None = None) -> Dataset:
    """Load a data set.

    Looked for in `data_dir` (or `$REDLINE_DATA`); else where the distribution's package puts it; else in the download
    cache, which is filled from `url` (or `$REDLINE_DATA_URL`: the folder the four `.gz` files lie in) if one is given.

    Parameters
    ----------
    name : str
        "fashion-mnist" (files must have the published checksums) or "mnist" (IDX files of the same shape).
    split : str
        "train" (60,000 images) or "test" (10,000).
    data_dir : path, optional
        Folder with the IDX files, raw or gzipped.
    url : str, optional
        Where to download from when no folder has them.

    Raises
    ------
    DataError
        If files are missing, truncated, corrupt, of another image size, or not the published ones.
    """
    if name not in SYSTEM_DIRS:
        raise DataError(f"unknown data set {name!r}; known: {', '.join(SYSTEM_DIRS)}")
    folder = locate(name, data_dir, url=url)
    image_file, label_file = FILES[split]
    image_path, image_raw = _read(folder, image_file)
    label_path, label_raw = _read(folder, label_file)
    images = parse_idx(image_raw, image_path, dimensions=3)
    labels = parse_idx(label_raw, label_path, dimensions=1)
    if images.shape[1:] != (SIZE, SIZE):
        raise DataError(
            f"{image_path}: images are {images.shape[1]}x{images.shape[2]} pixels, not {SIZE}x{SIZE}; "
            f"this loader reads MNIST-like data only"
        )
    if len(images) != len(labels):
        raise DataError(f"{folder}: {len(images)} images but {len(labels)} labels; the files belong to different sets")
    if len(labels) == 0 or int(labels.max()) > 9:
        raise DataError(f"{label_path}: labels must be 0 to 9 and at least one; the file is not a label file of {name}")
    sums = {image_file: hashlib.sha256(image_raw).hexdigest(), label_file: hashlib.sha256(label_raw).hexdigest()}
    if name == "fashion-mnist":
        for path, key in ((image_path, image_file), (label_path, label_file)):
            if sums[key] != SHA256[key]:
                raise DataError(
                    f"{path}: SHA-256 of its content is {sums[key][:16]}..., Fashion-MNIST's is {SHA256[key][:16]}...; "
                    f"fetch it again (apt-get install --reinstall dataset-fashion-mnist), or load it as 'mnist' if it "
                    f"is other data in the same format"
                )
    return Dataset(
        name,
        torch.from_numpy(images.copy()).reshape(-1, 1, SIZE, SIZE),
        torch.from_numpy(labels.astype(np.int64)),
        sums,
    )


def locate(name: str, data_dir: str | os.PathLike[str] | None = None, *, url: str | None = None) -> Path:
    """Folder that holds the data set's four files, downloading them first if `url` says from where."""
    given = data_dir or os.environ.get("REDLINE_DATA")
    if given:
        folder = Path(given).expanduser()
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; --data-dir (or REDLINE_DATA) must name one with IDX files")
        absent = _absent(folder)
        if absent:
            raise DataError(f"{folder}: no {absent[0]} or {absent[0]}.gz in this folder")
        return folder
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "redline" / "data" / name
    for folder in (*SYSTEM_DIRS[name], cache):
        if folder.is_dir() and not _absent(folder):
            return folder
    source = url or os.environ.get("REDLINE_DATA_URL")
    if source:
        _download(source, cache)
        return cache
    package = "install it (apt-get install dataset-fashion-mnist), " if name == "fashion-mnist" else ""
    raise DataError(
        f"{name} is not on this machine: {package}name a folder with its four IDX files (--data-dir or REDLINE_DATA), "
        f"or a place to download them from (--data-url or REDLINE_DATA_URL)"
    )


def parse_idx(raw: bytes, path: Path, *, dimensions: int) -> npt.NDArray[np.uint8]:
    """Array of an uncompressed IDX file of unsigned bytes.

    Raises
    ------
    DataError
        If the magic number, the number of dimensions or the length is wrong.
    """
    header = 4 + 4 * dimensions
    if len(raw) < header:
        raise DataError(f"{path}: truncated: {len(raw)} bytes, less than an IDX header")
    zeros, kind, rank = struct.unpack(">HBB", raw[:4])
    if zeros != 0 or kind != 0x08 or rank != dimensions:
        raise DataError(
            f"{path}: not an IDX file of unsigned bytes with {dimensions} dimension(s) (starts with {raw[:4].hex()})"
        )
    shape = struct.unpack(f">{dimensions}I", raw[4:header])
    wanted = header + math.prod(shape)
    if len(raw) != wanted:
        cause = "truncated" if len(raw) < wanted else "too long"
        raise DataError(f"{path}: {cause}: {len(raw)} bytes, its header promises {wanted}; fetch it again")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _absent(folder: Path) -> list[str]:
    names = [name for pair in FILES.values() for name in pair]
    return [name for name in names if not (folder / name).is_file() and not (folder / f"{name}.gz").is_file()]


def _read(folder: Path, name: str) -> tuple[Path, bytes]:
    """Path and uncompressed content of one file; the raw file wins over the gzipped one."""
    path = folder / name
    try:
        if path.is_file():
            return path, read_bytes(path, MOST_BYTES)
        path = folder / f"{name}.gz"
        with gzip.open(path) as file:
            # What follows the header may unpack to any size.
            content = bytearray(file.read(HEADER))
            most = _promised(bytes(content), path) + 1
            while len(content) < most and (block := file.read(min(BLOCK, most - len(content)))):
                content += block
            return path, bytes(content)
    except ReadError as error:
        raise DataError(f"{error}; fetch it again") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: truncated or corrupt gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _promised(head: bytes, path: Path) -> int:
    """Bytes that an IDX file has, as its header says; 0 where it is none, which `parse_idx` says."""
    rank = head[3] if len(head) == HEADER else 0
    if not 1 <= rank <= 3:
        return 0
    promised = 4 + 4 * rank + math.prod(struct.unpack_from(f">{rank}I", head, 4))
    if promised > MOST_BYTES:
        raise DataError(f"{path}: its header promises {promised} bytes, more than the {MOST_BYTES} of any such file")
    return promised


def _download(source: str, folder: Path) -> None:
    """Fetch the four gzipped files into `folder`, each complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _absent(folder):
        address = f"{source.rstrip('/')}/{name}.gz"
        try:
            with (
                urllib.request.urlopen(address, timeout=60) as response,
                tempfile.NamedTemporaryFile(dir=folder, delete=False) as partial,
            ):
                try:
                    while block := response.read(1 << 20):
                        partial.write(block)
                except BaseException:
                    Path(partial.name).unlink(missing_ok=True)
                    raise
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise DataError(f"cannot download {address}: {error}") from error
        Path(partial.name).rename(folder / f"{name}.gz")
