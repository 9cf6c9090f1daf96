"""Device memory whose tensors are brought into the accelerator's layout only when somebody reads their bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from host.devices.device import Bytes
from host.program.arrangement import pack_weights
from host.program.layers import Layer
from host.schedule.memory import Region
from hw import layout
from hw.config import Config

Int8 = npt.NDArray[np.int8]


class Content(ABC):
    """What a region of memory holds, in another form than its bytes."""

    @abstractmethod
    def render(self) -> Bytes:
        """The region's bytes in the accelerator's layout."""


class Features(Content):
    """Feature maps in some form of their own."""

    def __init__(self, vec: int) -> None:
        self.vec = vec

    @abstractmethod
    def images(self) -> Int8:
        """int8, shape (N, C, H, W)."""

    def render(self) -> Bytes:
        return layout.reorder_features(self.images(), self.vec).reshape(-1).view(np.uint8)


class Images(Features):
    """Feature maps as they were given."""

    def __init__(self, x: Int8, vec: int) -> None:
        super().__init__(vec)
        self._x = x

    def images(self) -> Int8:
        return self._x


class Weights(Content):
    """A layer's weights, OIHW; they do not change."""

    def __init__(self, weight: Int8, layer: Layer, config: Config) -> None:
        self.weight = weight
        self._layer, self._config = layer, config

    def render(self) -> Bytes:
        return pack_weights(self.weight, self._layer, self._config).reshape(-1).view(np.uint8)


class Params(Content):
    """A layer's biases and shifts, int32 of shape (M,) each; they do not change."""

    def __init__(self, bias: npt.NDArray[np.int32], shift: npt.NDArray[np.int32], config: Config) -> None:
        self.bias, self.shift = bias, shift
        self._config = config

    def render(self) -> Bytes:
        records = layout.pack_params(self.bias, self.shift, self._config.lanes, self._config.vec)
        return records.reshape(-1).view(np.uint8)


class Memory:
    """Bytes, and contents that stand for some of them until they are asked for.

    Contents never overlap. A content stays as a second form of its bytes until one of them is overwritten.
    """

    def __init__(self, nbytes: int) -> None:
        self._bytes = np.zeros(nbytes, np.uint8)
        self._contents: dict[int, tuple[int, Content]] = {}
        self._pending: set[int] = set()
        """Addresses of contents whose bytes are not there yet."""

    def __len__(self) -> int:
        return len(self._bytes)

    def write(self, address: int, raw: Bytes) -> None:
        """Overwrite bytes."""
        self._make_room(address, len(raw))
        self._bytes[address : address + len(raw)] = raw

    def view(self, address: int, nbytes: int) -> Bytes:
        """The bytes themselves, for reading."""
        for at, (size, _) in list(self._contents.items()):
            if at < address + nbytes and address < at + size:
                self._settle(at)
        return self._bytes[address : address + nbytes]

    def put(self, region: Region, content: Content) -> None:
        """Let a content stand for a region."""
        known = self._contents.get(region.address)
        if known is None or known[0] != region.nbytes:
            self._make_room(region.address, region.nbytes)
        self._contents[region.address] = (region.nbytes, content)
        self._pending.add(region.address)

    def add_form(self, region: Region, content: Content) -> None:
        """Remember another form of bytes that are there already."""
        if region.address not in self._contents:
            self._make_room(region.address, region.nbytes)
            self._contents[region.address] = (region.nbytes, content)

    def content(self, region: Region) -> Content | None:
        """What stands for a region, if it is exactly that one."""
        nbytes, content = self._contents.get(region.address, (0, None))
        return content if nbytes == region.nbytes else None

    def _make_room(self, address: int, nbytes: int) -> None:
        """Forget contents that are overwritten; of those that are so in part, the bytes are kept."""
        for at, (size, _) in list(self._contents.items()):
            if at < address + nbytes and address < at + size:
                if at < address or at + size > address + nbytes:
                    self._settle(at)
                del self._contents[at]
                self._pending.discard(at)

    def _settle(self, at: int) -> None:
        if at in self._pending:
            nbytes, content = self._contents[at]
            self._bytes[at : at + nbytes] = content.render()
            self._pending.remove(at)
