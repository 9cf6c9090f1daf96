"""Evaluates lanes one step at a time, with late operand bits and stuck bits: where the reference meets conditions.

Output rows are independent of each other (each begins with a history of zeros), so all rows, images and channels go
through the steps of a row together; only pixels of a row and the steps of a pixel come one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from host.faults.plan import FaultPlan
from host.program import arrangement
from host.program.arrangement import arrange_features, arrange_weights
from host.program.layers import Layer
from hw.config import Config
from hw.masks import BankMasks

Words = npt.NDArray[np.uint32]
Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]

CHUNK = 1 << 18
"""Accumulators evaluated at a time: few enough that their operands stay in the processor's caches."""


@dataclass
class _Adder:
    """One bank, for some channels: its masks and what it saw in the step before."""

    masks: BankMasks
    lane: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        def spread(words: Words | None) -> list[Words]:
            """By group: one mask a channel."""
            return [] if words is None else [words[self.lane, group] for group in range(self.masks.groups)]

        self.a, self.s, self.outputs = spread(self.masks.a), spread(self.masks.s), spread(self.masks.outputs)
        self.bias, self.select = spread(self.masks.bias), spread(self.masks.select)
        self.keep, self.set, self.sign = (
            words[self.lane] for words in (self.masks.keep, self.masks.set, self.masks.sign)
        )
        self.restart()

    def restart(self) -> None:
        """Forget the step before: all its operands were zero."""
        self.before: dict[str, Words] = {}

    def see(self, name: str, now: Words, seen: Words) -> Words:
        """An operand, its late bits still those of the step before."""
        late = ~seen
        if name not in self.before:
            return now & seen
        return (now & seen) | (self.before[name] & late)

    def tree(self, a: Words, s: Words) -> Words:
        """What a bank of the tree captures."""
        total = np.zeros_like(a)
        for group, outputs in enumerate(self.outputs):
            total |= (self.see("a", a, self.a[group]) + self.see("s", s, self.s[group])) & outputs
        self.before = {"a": a, "s": s}
        value = (total & self.keep) | self.set
        return (value ^ self.sign) - self.sign

    def accumulator(self, running: Words, bias: Words, first: bool, s: Words, flips: Words | None) -> Words:
        """What the accumulators take; `first`: their load multiplexer selects the bias."""
        select = np.full(1, 0xFFFFFFFF if first else 0, np.uint32)
        total = np.zeros_like(s)
        for group, outputs in enumerate(self.outputs):
            chosen = self.see("select", select, self.select[group])
            loaded = self.see("bias", bias, self.bias[group])
            kept = self.see("a", running, self.a[group])
            operand = (chosen & loaded) | (~chosen & kept)
            total |= (operand + self.see("s", s, self.s[group])) & outputs
        self.before = {"a": running, "s": s, "bias": bias, "select": select}
        if flips is not None:
            total ^= flips
        return (total & self.keep) | self.set


Operands = Callable[[int, int], tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Words | None]]


def run(
    banks: Mapping[str, BankMasks],
    lane: npt.NDArray[np.int64],
    start: Int32,
    rows: int,
    pixels: int,
    steps: int,
    operands: Operands,
) -> Iterator[tuple[int, int, Words]]:
    """Execute rows of outputs; yields (pixel, step, accumulators after it, shape (rows, channels)).

    Parameters
    ----------
    banks : mapping of bank name to BankMasks
        Those in which something is late or stuck.
    lane : int array, shape (channels,)
        Which lane computes each channel.
    start : int32 array, shape (channels,)
        What the accumulators start from: the bias.
    rows, pixels, steps : int
        Rows, outputs of a row, steps of an output.
    operands : callable (pixel, step)
        Gives features, int32 of shape (rows, 1 or channels, VEC); weights, int32 of shape (channels, VEC); and the
        mask of the accumulators' flips after this step, uint32 of shape (rows, channels), or None.
    """
    adders = {name: _Adder(masks, lane) for name, masks in banks.items()}
    whole_tree = set(adders) <= {"accumulator"}
    bias = np.broadcast_to(start.view(np.uint32), (rows, len(lane)))
    accumulator = np.zeros((rows, len(lane)), np.uint32)
    for pixel in range(pixels):
        for step in range(steps):
            features, weights, flips = operands(pixel, step)
            if whole_tree:
                total = (features * weights).sum(axis=2, dtype=np.int32).view(np.uint32)
            else:
                total = _tree(adders, features, weights)
            adder, first = adders.get("accumulator"), step == 0
            if adder is not None:
                accumulator = adder.accumulator(accumulator, bias, first, total, flips)
            else:
                accumulator = (bias if first else accumulator) + total
                if flips is not None:
                    accumulator ^= flips
            yield pixel, step, accumulator


def _tree(adders: Mapping[str, _Adder], features: npt.NDArray[np.int32], weights: npt.NDArray[np.int32]) -> Words:
    """The adder tree's result, shape (rows, channels)."""
    level = [(features[:, :, at] * weights[:, at]).view(np.uint32) for at in range(weights.shape[1])]
    depth = 0
    while len(level) > 1:
        depth += 1
        pairs = zip(level[::2], level[1::2], strict=True)
        level = [
            adders[name].tree(a, s) if (name := f"tree_{depth}_{index}") in adders else a + s
            for index, (a, s) in enumerate(pairs)
        ]
    return level[0]


def accumulate(
    x: Int8,
    weight: Int8,
    start: Int32,
    layer: Layer,
    faults: FaultPlan,
    banks: Mapping[str, BankMasks],
    config: Config,
    channels: int | None = None,
) -> Int32:
    """Final accumulators of a layer under late bits, stuck bits and flips, shape (N, M, OH, OW).

    Parameters
    ----------
    x : int8 array, shape (N, C, H, W)
    weight : int8 array, shape (M, C / groups, KH, KW)
    start : int32 array, shape (M,)
        The bias, or zeros in PipeCNN's arithmetic.
    faults : FaultPlan
        The layer's accumulator flips, images counted within the batch.
    banks : mapping of bank name to BankMasks
    config : Config
    channels : int, optional
        More than the layer has: those behind the last, which the array computes to fill its lanes, too.
    """
    m, oh, ow = layer.conv_shape
    channels = channels or m
    result = np.empty((len(x) * oh, ow, channels), np.uint32)
    per_chunk = max(1, CHUNK // channels)
    features = _Features(x, layer, config, channels)
    weights = arrange_weights(weight, layer, config)[:channels]
    weights = weights.reshape(channels, -1, config.vec)
    start = np.pad(start, (0, channels - m))
    steps = weights.shape[1]
    for low in range(0, len(result), per_chunk):
        high = min(low + per_chunk, len(result))
        flips = _flips(faults, (low, high), (m, oh, ow), channels, steps)
        rows = np.arange(low, high)

        def operands(
            pixel: int, step: int, rows: npt.NDArray[np.int64] = rows, flips: Mapping[int, Words] = flips
        ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Words | None]:
            return features.at(rows, pixel, step), weights[:, step].astype(np.int32), flips.get(pixel * steps + step)

        lane = np.arange(channels) % config.lanes
        for pixel, step, acc in run(banks, lane, start, high - low, ow, steps, operands):
            if step == steps - 1:
                result[low:high, pixel] = acc
    return np.ascontiguousarray(result.reshape(len(x), oh, ow, channels).transpose(0, 3, 1, 2)).view(np.int32)


class _Features:
    """Gathers the features of a step, for rows of outputs."""

    def __init__(self, x: Int8, layer: Layer, config: Config, channels: int) -> None:
        (self.kh, self.kw), (self.sy, self.sx), (py, px) = layer.kernel, layer.stride, layer.padding
        _, self.oh, ow = layer.conv_shape
        how = arrangement.arrange(layer, config)
        below = max(0, (self.oh - 1) * self.sy + self.kh - py - x.shape[2])
        right = max(0, (ow - 1) * self.sx + self.kw - px - x.shape[3])
        border = ((0, 0), (0, 0), (py, below), (px, right), (0, 0))
        self.features = np.pad(arrange_features(x, layer, config), border).astype(np.int32)
        first = np.repeat(np.asarray(how.first), config.lanes)[:channels]
        # Most layers' channels all read the same planes.
        self.first = first[:1] if (first == first[0]).all() else first

    def at(self, rows: npt.NDArray[np.int64], pixel: int, step: int) -> npt.NDArray[np.int32]:
        """Shape (rows, 1 or channels, VEC)."""
        plane, tap = divmod(step, self.kh * self.kw)
        ky, kx = divmod(tap, self.kw)
        image, y = np.divmod(rows, self.oh)
        taken: npt.NDArray[np.int32] = self.features[
            image[:, None], self.first[None, :] + plane, (y * self.sy + ky)[:, None], pixel * self.sx + kx
        ]
        return taken


def _flips(
    faults: FaultPlan, rows: tuple[int, int], shape: tuple[int, int, int], channels: int, steps: int
) -> dict[int, Words]:
    """Masks of flips in some rows, by `pixel * steps + step`; each of shape (rows, channels)."""
    _, oh, _ = shape
    channel, y, x = np.unravel_index(faults.output, shape)
    row = faults.image * oh + y
    here = np.flatnonzero((row >= rows[0]) & (row < rows[1]))
    found: dict[int, Words] = {}
    key = x * steps + faults.step
    for at in here:
        mask = found.setdefault(int(key[at]), np.zeros((rows[1] - rows[0], channels), np.uint32))
        mask[row[at] - rows[0], channel[at]] ^= np.uint32(1) << np.uint32(faults.bit[at])
    return found
