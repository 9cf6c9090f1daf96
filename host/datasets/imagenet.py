"""ImageNet-like folders: one folder of image files a class, read and prepared as the published networks expect."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from host.datasets.data import DataError

Interpolation = Literal["bilinear", "bicubic"]

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"))
"""Files that count as images."""
MEAN = (0.485, 0.456, 0.406)
"""Of ImageNet's red, green and blue, pixels in [0, 1]."""
STD = (0.229, 0.224, 0.225)
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocessing:
    """The standard path from a picture to a network's input; the defaults are those of torchvision's networks.

    Attributes
    ----------
    size : int
        Rows and columns of the input, pixels: the centre is cut out.
    resize : int
        The shorter side is scaled to this many pixels first, with an antialiasing filter.
    interpolation : str
        "bilinear" or "bicubic".
    mean, std : three floats
        Subtracted from, and dividing, red, green and blue in [0, 1].
    """

    size: int = 224
    resize: int = 256
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise ValueError(
                f"size must be 1 to resize ({self.resize}), not {self.size}: the centre of what was resized"
            )
        if self.interpolation not in _FILTERS:
            raise ValueError(f"interpolation must be one of {', '.join(_FILTERS)}, not {self.interpolation!r}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, not {self.std}")

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """A picture of any mode and size as a float32 tensor, shape (3, size, size).

        Raises
        ------
        ValueError
            For more than 8 bits a channel.
        """
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"more than 8 bits a channel (Pillow's mode {image.mode}); convert it")
        image = image.convert("RGB")
        short = min(image.size)
        width, height = (self.resize * side // short for side in image.size)
        image = image.resize((width, height), _FILTERS[self.interpolation])
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255).permute(2, 0, 1)
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        return ((pixels - mean) / std).contiguous()


@dataclass(frozen=True)
class ImageFolder:
    """Images and labels of an ImageNet-like folder; files are opened when a batch asks for them.

    Attributes
    ----------
    root : Path
    classes : tuple of str
        Names of the classes; a label is an index into them.
    files : tuple of Path
        Sorted by class, then by name.
    labels : int64 tensor, shape (N,)
    preprocessing : Preprocessing
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: torch.Tensor
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.files)

    def head(self, count: int) -> ImageFolder:
        """The first `count` images: of the first classes only (see `spread`)."""
        return replace(self, files=self.files[:count], labels=self.labels[:count])

    def spread(self, count: int) -> ImageFolder:
        """At most `count` images, evenly spaced over the folder and so over its classes: for calibration."""
        count = min(count, len(self))
        chosen = [place * len(self) // count for place in range(count)]
        return replace(self, files=tuple(self.files[i] for i in chosen), labels=self.labels[chosen])

    @property
    def pixels(self) -> torch.Tensor:
        """All images as the network wants them, float32, shape (N, 3, size, size): for few images (`spread`)."""
        return self._read(range(len(self)))

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images, float32, shape (n, 3, size, size), and labels, shape (n,), at `index`."""
        return self._read(index.tolist()), self.labels[index]

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Consecutive batches of at most `size` images, in order."""
        for start in range(0, len(self), size):
            yield self.batch(torch.arange(start, min(start + size, len(self))))

    def _read(self, index: Sequence[int]) -> torch.Tensor:
        size = self.preprocessing.size
        images = torch.empty(len(index), 3, size, size)
        for place, i in enumerate(index):
            images[place] = read(self.files[i], self.preprocessing)
        return images


def read(path: Path, preprocessing: Preprocessing | None = None) -> torch.Tensor:
    """One image file as a float32 tensor, shape (3, size, size).

    Raises
    ------
    DataError
        If the file is missing, truncated or not an image; names it.
    """
    prepare = preprocessing or Preprocessing()
    try:
        with warnings.catch_warnings():
            # A few of ImageNet's files have odd metadata, and some are huge; neither spoils the pixels.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return prepare(image)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except Exception as error:  # Pillow's decoders raise many kinds for broken files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{path}: broken or not an image ({reason}); fetch it again or remove it") from error


def load(
    folder: str | os.PathLike[str],
    preprocessing: Preprocessing | None = None,
    *,
    classes: Sequence[str] | None = None,
) -> ImageFolder:
    """Find the images of a folder, as in ImageNet's `val/n01440764/ILSVRC2012_val_00000293.JPEG`.

    Parameters
    ----------
    folder : path
        Has one folder of image files (at any depth) a class.
    preprocessing : Preprocessing, optional
        By default resize to 256, bilinear, and cut out the centre 224.
    classes : sequence of str, optional
        Names of the class folders in the order of the network's outputs; by default all there are, sorted. Give it when
        the folder holds some of the network's classes only.

    Raises
    ------
    DataError
        If there is no such folder, it has no class folders, one of them is empty or not among `classes`.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name one with a folder of images for each class")
    found = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        cause = "images lie in it directly" if any(_is_image(path) for path in root.iterdir()) else "it is empty"
        raise DataError(f"{root}: no class folders in it ({cause}); give each class a folder of images")
    names = tuple(path.name for path in found) if classes is None else tuple(classes)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"class {twice!r} is listed twice; list each once")
    files: list[Path] = []
    labels: list[int] = []
    for path in found:
        if path.name not in names:
            raise DataError(f"{path}: not one of the {len(names)} classes given; remove the folder or list it")
        inside = sorted(image for image in path.rglob("*") if _is_image(image))
        if not inside:
            raise DataError(
                f"{path}: no images in this class folder ({', '.join(sorted(SUFFIXES))}); fill or remove it"
            )
        files += inside
        labels += [names.index(path.name)] * len(inside)
    return ImageFolder(
        root, names, tuple(files), torch.tensor(labels, dtype=torch.int64), preprocessing or Preprocessing()
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
