"""The integer layers a Program is made of: what each computes, in shapes, fractions and shifts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hw.layout import ceil_div

Placement = Literal["accelerator", "cpu"]
INPUT = "input"
"""Name of the network's input tensor."""


@dataclass(frozen=True)
class Pool:
    """Max pooling: square window `kernel`, step `stride`, border `pad` of -infinity, output extents rounded down."""

    kernel: int
    stride: int
    pad: int = 0

    def out(self, size: int) -> int:
        """Pooled extent of an input extent, pixels."""
        return (size + 2 * self.pad - self.kernel) // self.stride + 1


@dataclass(frozen=True)
class Fold:
    """How a first layer's kernel columns were folded into channels (docs/architecture.md, Folding)."""

    channels: int
    """Channels of the unfolded input."""
    width: int
    """Columns of the unfolded input."""
    kernel_w: int
    stride_x: int
    pad_x: int


@dataclass(frozen=True)
class Layer:
    """One convolution or fully connected layer (a convolution whose kernel is its whole input).

    Shapes are those the accelerator sees: after folding, for a folded first layer.
    """

    name: str
    input: str
    """Name of the layer whose output this one reads, or `INPUT`."""
    in_shape: tuple[int, int, int]
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    relu: bool
    pool: Pool | None
    in_frac: int
    weight_frac: tuple[int, ...]
    """One fraction per output channel (all equal for per-tensor)."""
    out_frac: int
    placement: Placement = "accelerator"
    fold: Fold | None = None

    @property
    def conv_shape(self) -> tuple[int, int, int]:
        """(M, OH, OW) of the convolution's output, before pooling."""
        _, h, w = self.in_shape
        (kh, kw), (sy, sx), (py, px) = self.kernel, self.stride, self.padding
        return self.out_channels, (h + 2 * py - kh) // sy + 1, (w + 2 * px - kw) // sx + 1

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """(M, PH, PW) of the layer's final output."""
        m, h, w = self.conv_shape
        return (m, h, w) if self.pool is None else (m, self.pool.out(h), self.pool.out(w))

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(M, C, KH, KW) of the weights as the accelerator sees them."""
        return self.out_channels, self.in_shape[0], *self.kernel

    @property
    def shift(self) -> tuple[int, ...]:
        """Requantisation shift per output channel: `in_frac + weight_frac - out_frac`."""
        return tuple(self.in_frac + frac - self.out_frac for frac in self.weight_frac)

    def steps(self, vec: int) -> int:
        """Accumulation steps per output."""
        return ceil_div(self.in_shape[0], vec) * self.kernel[0] * self.kernel[1]
