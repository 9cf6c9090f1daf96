"""Feature maps as the kernels keep them: height, width, channels, value + 128, inside a border of zeros."""

from __future__ import annotations

import numpy as np

from host.devices.device import Bytes
from host.devices.emulator.memory import Features, Int8
from host.devices.emulator.native import Kernels, Tensor
from hw import layout
from hw.layout import ceil_div

ZERO = 128
QUAD = 4
"""Channels are padded to a multiple of this: what one instruction reads."""
SLACK = 128
"""Bytes behind the last pixel that may be read: they meet weights of zero."""


class FeatureMap(Features):
    """Room for the feature maps of some images.

    Parameters
    ----------
    kernels : Kernels
    vec : int
        Of the accelerator whose layout the map takes when its bytes are read.
    images : int
    shape : (C, H, W)
    border : (vertical, horizontal)
        Zeros around each image, pixels.
    shared : bool
        All images take turns in one place.
    filled : bool
        Channels that fill up the last word of memory are part of the map; otherwise they are zero.
    """

    def __init__(
        self,
        kernels: Kernels,
        vec: int,
        images: int,
        shape: tuple[int, int, int],
        border: tuple[int, int] = (0, 0),
        shared: bool = False,
        filled: bool = False,
    ) -> None:
        super().__init__(vec)
        self.shape = (images, *shape)
        self._kernels = kernels
        channels, height, width = shape
        self.stored = ceil_div(channels, vec) * vec if filled else channels
        pixel = ceil_div(self.stored, QUAD) * QUAD
        row = (width + 2 * border[1]) * pixel
        image = (height + 2 * border[0]) * row
        self._buffer = np.full((1 if shared else images) * image + SLACK, ZERO, np.uint8)
        inside = self._buffer.ctypes.data + border[0] * row + border[1] * pixel
        self.tensor = Tensor(inside, 0 if shared else image, row, pixel)

    def load(self, x: Int8) -> None:
        """Fill it with int8 images, shape (N, C, H, W)."""
        self._kernels.load(np.ascontiguousarray(x), self.tensor)

    def images(self) -> Int8:
        return self._kernels.store(self.tensor, self.shape)

    def render(self) -> Bytes:
        images, _, height, width = self.shape
        x = self._kernels.store(self.tensor, (images, self.stored, height, width))
        return layout.reorder_features(x, self.vec).reshape(-1).view(np.uint8)

    def from_channel(self, first: int) -> Tensor:
        """The map without its channels before `first`."""
        t = self.tensor
        return Tensor(t.at + first, t.image, t.row, t.pixel)
