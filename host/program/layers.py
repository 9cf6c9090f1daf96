"""The integer layers a Program is made of: what each computes, in shapes, fractions and shifts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

Placement = Literal["accelerator", "cpu"]
Operator = Literal["convolution", "add", "average", "identity", "lrn"]
"""What a layer computes.

convolution
    Also grouped, depthwise, and fully connected (a convolution whose kernel is the whole input).
add, average, identity
    Element-wise sum of two tensors, average pooling, and a copy (to pool, clamp or rescale what has several readers):
    convolutions with constant weights, so that the array, the faults and the arithmetic are those of a convolution.
lrn
    Local response normalisation across channels (`host.program.lrn`); on the CPU only.
"""
INPUT = "input"
"""Name of the network's input tensor."""


@dataclass(frozen=True)
class Pool:
    """Max pooling: square window `kernel`, step `stride`, border `pad` of -infinity.

    Output extents are rounded down, or up with `ceil` (PyTorch's ceil_mode: windows that begin beyond the input and its
    upper border are left out; a window may reach below or to the right of the border, into more -infinity).
    """

    kernel: int
    stride: int
    pad: int = 0
    ceil: bool = False

    def out(self, size: int) -> int:
        """Pooled extent of an input extent, pixels."""
        span = size + 2 * self.pad - self.kernel
        if not self.ceil:
            return span // self.stride + 1
        windows = -(-span // self.stride) + 1
        return windows - 1 if (windows - 1) * self.stride >= size + self.pad else windows


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
class Normalisation:
    """Local response normalisation across channels: `y = x / (k + alpha / size * sum(x**2)) ** beta`."""

    size: int
    """Channels summed over, centred on the output's own."""
    alpha: float
    beta: float
    k: float


@dataclass(frozen=True)
class Layer:
    """One convolution, or an operator that is computed as one (`Operator`).

    Shapes are those the accelerator sees: after folding, for a folded first layer. A layer reads channels of one or
    several tensors (`sources`), all of one height and width: concatenation, splitting and shuffling of channels are
    nothing but the choice of these channels, and cost no operator of their own.
    """

    name: str
    sources: tuple[str, ...]
    """Names of the layers whose outputs this one reads, or `INPUT`; each once."""
    in_shape: tuple[int, int, int]
    """(C, H, W) of what the layer computes on: the channels chosen, in their order."""
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    relu: bool
    pool: Pool | None
    in_frac: int
    """Fraction of the sources. All have the same, but for "add": there, of the first operand."""
    weight_frac: tuple[int, ...]
    """One fraction per output channel (all equal for per-tensor)."""
    out_frac: int
    placement: Placement = "accelerator"
    fold: Fold | None = None
    channels: tuple[int, ...] | None = None
    """Input channel i is channel `channels[i]` of the sources' channels stacked in order; None: all of them, in order.

    For "add" the operands' channels alternate: a0, b0, a1, b1, ... (two of one group of `groups`)."""
    groups: int = 1
    """Groups of the convolution: output channel m reads the input channels of group `m * groups // out_channels`."""
    operator: Operator = "convolution"
    upper: int = 127
    """Largest output, 0 to 127: the saturation, or lower for ReLU6 (6 * 2**out_frac)."""
    normalisation: Normalisation | None = None
    """Of "lrn"."""
    source_channels: tuple[int, ...] = ()
    """Channels of each source, as stored; may be left out where the layer reads all of one source."""

    def __post_init__(self) -> None:
        if not self.source_channels:
            object.__setattr__(self, "source_channels", (self.in_shape[0],))

    @property
    def constant(self) -> bool:
        """Whether the weights are constants of the operator: nothing to train, nothing to requantise."""
        return self.operator != "convolution"

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
        """(M, C / groups, KH, KW) of the weights as the accelerator sees them."""
        return self.out_channels, self.in_shape[0] // self.groups, *self.kernel

    @cached_property
    def shift(self) -> tuple[int, ...]:
        """Requantisation shift per output channel: `in_frac + weight_frac - out_frac`."""
        return tuple(self.in_frac + frac - self.out_frac for frac in self.weight_frac)

    @cached_property
    def shifts(self) -> npt.NDArray[np.int32]:
        """`shift` as an array, shape (M,), which cannot be written to."""
        found = np.asarray(self.shift, np.int32)
        found.setflags(write=False)
        return found

    @cached_property
    def weight_fracs(self) -> npt.NDArray[np.int32]:
        """`weight_frac` as an array, shape (M,), which cannot be written to."""
        found = np.asarray(self.weight_frac, np.int32)
        found.setflags(write=False)
        return found

    @property
    def reads_whole(self) -> bool:
        """Whether the layer reads all channels of one source, in order."""
        return len(self.sources) == 1 and self.channels is None
