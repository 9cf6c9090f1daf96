"""The microscope: how many words of each layer faults make wrong, by how much, and in which bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from host.devices.reference import accumulators, flip, stored_input
from host.faults.models import Fault
from host.faults.plan import EVERY_IMAGE
from host.program.arrangement import gather
from host.program.integer import Int32, finish
from host.program.layers import INPUT
from host.stats import Rate
from host.training.twin import AttachError, Twin

BATCH = 64
"""Images a launch."""


@dataclass(frozen=True)
class WordErrors:
    """Errors in words of one kind.

    Attributes
    ----------
    words, wrong : int
    magnitude : float
        Mean |faulty - clean| of the wrong words, in units of the last place; 0 if none is wrong.
    bits : tuple of int
        For each bit position, in how many words it is wrong.
    """

    words: int
    wrong: int
    magnitude: float
    bits: tuple[int, ...]

    @property
    def rate(self) -> Rate:
        """Share of wrong words, with its interval."""
        return Rate(self.wrong, self.words)


@dataclass(frozen=True)
class LayerErrors:
    """What one layer does wrong on the input that it gets (which earlier layers may have spoiled).

    Attributes
    ----------
    layer : str
    accumulator : WordErrors
        After an output's last step; 32 bits.
    output : WordErrors
        After requantisation and ReLU, before pooling; 8 bits.
    """

    layer: str
    accumulator: WordErrors
    output: WordErrors


class _Count:
    """Adds up the errors of one kind of word."""

    def __init__(self, bits: int) -> None:
        self.words = self.wrong = 0
        self.total = 0.0
        self.bits = np.zeros(bits, np.int64)

    def add(self, faulty: npt.NDArray[np.integer], clean: npt.NDArray[np.integer]) -> None:
        different = faulty != clean
        a, b = faulty[different].astype(np.int64), clean[different].astype(np.int64)
        self.words += faulty.size
        self.wrong += len(a)
        self.total += float(np.abs(a - b).sum())
        for bit in range(len(self.bits)):
            self.bits[bit] += np.count_nonzero((a ^ b) >> bit & 1)

    def result(self) -> WordErrors:
        magnitude = self.total / self.wrong if self.wrong else 0.0
        return WordErrors(self.words, self.wrong, magnitude, tuple(self.bits.tolist()))


def layer_errors(twin: Twin, faults: Fault, images: torch.Tensor, *, seed: int = 0) -> list[LayerErrors]:
    """Errors of every layer that runs on the accelerator, in order.

    Outputs are what the device produced. Accumulators never leave a device: they are the reference's, for the input
    that the layer got on the device. Clean words are what the layer makes of the same input without faults.

    Parameters
    ----------
    twin : Twin
    faults : Fault
    images : float tensor, shape (N, C, H, W)
    seed : int
        Image i meets the faults of image i under it.

    Raises
    ------
    AttachError
        If there are no images.
    """
    if not len(images):
        raise AttachError("measuring errors needs at least one image")
    program, config = twin.program, twin.program.config
    layers = [(at, layer) for at, layer in enumerate(program.layers) if layer.placement == "accelerator"]
    counts = {layer.name: (_Count(32), _Count(8)) for _, layer in layers}
    quantised = program.quantise_input(images)
    with twin.faulty(faults, seed=seed):
        for first in range(0, len(quantised), BATCH):
            batch = quantised[first : first + BATCH]
            plan = faults.draw(program, first, len(batch), seed)
            outputs = twin.run(batch, writeback=True)
            values = {INPUT: program.fold_input(batch), **outputs.out}
            read = {**values, INPUT: stored_input(program, values[INPUT], plan, first)}
            for at, layer in layers:
                weight, bias = program.weights[layer.name], program.biases[layer.name]
                pipecnn = config.arithmetic == "pipecnn"
                start: Int32 = np.zeros_like(bias) if pipecnn else bias
                clean = accumulators(gather(values, layer), weight, start, layer, None, config)
                seen = gather(read, layer)
                hit = flip(weight[None], plan.at(at, "weight").counted_from(EVERY_IMAGE))[0]
                faulty = accumulators(seen, hit, start, layer, plan.at(at, "mac").counted_from(first), config)
                in_accumulator, in_output = counts[layer.name]
                in_accumulator.add(faulty, clean)
                right = finish(clean, layer, None, bias if pipecnn else None).conv
                in_output.add(outputs.conv[layer.name], right)
    return [LayerErrors(name, acc.result(), out.result()) for name, (acc, out) in counts.items()]
