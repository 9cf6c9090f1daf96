"""The compiler: a float network and calibration images in, a Program in the accelerator's integers out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from host.compiler.limits import CompileError, check_layer
from host.compiler.trace import FloatLayer, Graph, trace
from host.datasets.given import calibration
from host.program import lrn, quantisation, sums
from host.program.fold import folded
from host.program.layers import INPUT, Layer, Placement
from host.program.program import Int8, Int32, Program, ProgramError, quantise_layer
from host.schedule.tiling import effort
from hw import params
from hw.config import Config

BATCH = 64
"""Calibration images evaluated at a time."""
MAX_ADD_BITS = 6
"""Most bits by which an addition's weight, a power of two in int8, scales an operand up."""
LEAST_FRAC = -100
"""Fractions below it are of no real network."""
AVERAGE_ERROR = 0.02
"""Largest relative error of an average's weight that sums of 32 bits may cost."""
UNUSED_FRAC = 7
"""Fraction given to a tensor that is zero everywhere, where any would do."""


def compile(
    model: nn.Module,
    config: Config,
    *,
    calibrate: Any,
    per_channel: bool = False,
    fold: bool = True,
    fallback: Literal["error", "cpu"] = "error",
) -> Program:
    """Trace, fold and quantise a network for an accelerator.

    Parameters
    ----------
    model : nn.Module
        fx-traceable; evaluated as in `eval()`, whatever mode it is in, and not changed. Weights may be computed by
        parametrisations, weight or spectral norm and pruning. Hooks are refused.
    config : Config
        The accelerator.
    calibrate : float tensor, shape (N, C, H, W), data set or DataLoader
        Images (the first 512 of a data set) on which each activation's fraction is chosen by minimum squared error.
    per_channel : bool
        Weight fractions per output channel instead of per tensor.
    fold : bool
        Fold the kernel columns of a first layer with few channels (docs/architecture.md).
    fallback : "error" or "cpu"
        What happens to a layer that does not fit the accelerator: `CompileError`, or the same integers on the CPU.

    Raises
    ------
    CompileError
        For an unsupported operator or a layer that does not fit; names layer, reason and remedy.
    ProgramError
        For unusable weights (NaN) or calibration data.
    """
    if fallback not in ("error", "cpu"):
        raise ValueError(f'fallback must be "error" or "cpu", not {fallback!r}')
    images = calibration_images(calibrate)
    return compile_graph(trace(model, images), config, images, per_channel=per_channel, fold=fold, fallback=fallback)


def compile_graph(
    traced: Graph,
    config: Config,
    images: torch.Tensor,
    *,
    per_channel: bool = False,
    fold: bool = True,
    fallback: Literal["error", "cpu"] = "error",
) -> Program:
    """Quantise a network that was traced for images of the size of these; the rest is as in `compile`."""
    images, graph = calibration_images(images), traced.layers
    for source in graph:
        if not (torch.isfinite(source.weight).all() and torch.isfinite(source.bias).all()):
            raise ProgramError(
                f"layer {source.name!r}: its weights or bias hold NaN or infinite values; training has diverged: "
                "restore earlier weights"
            )
    fractions = _Fractions(graph, _wanted(graph, images), per_channel, config.arithmetic == "pipecnn")
    layers: list[Layer] = []
    for source in graph:
        layer = fractions.layer(source)
        alone = not layers and all(INPUT not in other.sources for other in graph[1:])
        if fold and alone and layer.operator == "convolution" and layer.groups == 1 and layer.reads_whole:
            layer = _folded_if_it_fits(layer, config)
        layers.append(_place(layer, config, fallback))
    weights, biases = {}, {}
    for layer, source in zip(layers, graph, strict=True):
        quantised = (
            _constants(layer, fractions)
            if layer.constant
            else quantise_layer(layer, source.weight, source.bias, config.arithmetic)
        )
        weights[layer.name], biases[layer.name] = quantised
    c, h, w = images.shape[1:]
    modules = {source.name: source.origin.module for source in graph if source.origin is not None}
    return Program(config, tuple(layers), weights, biases, (c, h, w), fractions[INPUT], modules)


def calibration_images(calibrate: Any) -> torch.Tensor:
    """Calibration images as float32 on the CPU; `ProgramError` if they cannot be used."""
    given = calibration(calibrate)
    try:
        tensor = torch.as_tensor(given).detach()
        if tensor.is_complex():
            raise TypeError("complex numbers")
        images = tensor.float().cpu()
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise ProgramError(
            f"calibration images cannot be read from a {type(calibrate).__name__} "
            f"({(str(error).splitlines() or [''])[0]}): give a float tensor of shape (N, C, H, W), a data set or a "
            "DataLoader"
        ) from error
    if images.dim() != 4:
        raise ProgramError(f"calibration images must have shape (N, C, H, W), got {tuple(images.shape)}")
    if images.numel() == 0:
        raise ProgramError("the calibration set is empty: pass at least one image, better some hundred")
    if not torch.isfinite(images).all():
        raise ProgramError("the calibration images hold NaN or infinite values: clean them first")
    return images


def _wanted(graph: list[FloatLayer], images: torch.Tensor) -> dict[str, int | None]:
    """The best fraction of every tensor on the calibration images: as it is requantised, after ReLU, before pooling.

    None where a tensor is zero everywhere.
    """
    wanted = {INPUT: quantisation.best_frac(images.numpy())}
    values = {INPUT: images}
    last_reader = {source: at for at, layer in enumerate(graph) for source in layer.sources}
    for at, layer in enumerate(graph):
        y, values[layer.name] = _evaluate(layer, values, len(images))
        if not quantisation.finite(y.numpy()):
            raise CompileError(
                layer.name,
                "its values on the calibration images are NaN or infinite in float32",
                "lower its weights, or normalise before it",
            )
        wanted[layer.name] = quantisation.best_frac(y.numpy())
        for source in layer.sources:
            if last_reader[source] == at:
                del values[source]
    return wanted


def _evaluate(layer: FloatLayer, values: dict[str, torch.Tensor], images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer in float: its values as they are requantised (after ReLU, before pooling), and its final output."""
    y = torch.empty(images, len(layer.weight), *layer.conv_extents, dtype=torch.float32)
    out = y if layer.pool is None else torch.empty(images, *layer.out_shape, dtype=torch.float32)
    with torch.no_grad():
        for at in range(0, images, BATCH):
            some = slice(at, at + BATCH)
            x = layer.gather({name: values[name][some] for name in layer.sources})
            y[some] = layer.finish(layer.accumulators(x))
            if layer.pool is not None:
                out[some] = layer.pooled(y[some])
    return y, out


class _Fractions:
    """Chooses the fraction of every tensor and weight, such that each layer can be computed exactly.

    Tensors that a layer reads together share a fraction, and a copy has that of what it copies: such tensors form a
    class, whose fraction begins at the least that its members want and is lowered until every layer's shift is legal.
    PipeCNN's arithmetic needs shifts of at least 1, also for the bias.
    """

    def __init__(
        self, graph: list[FloatLayer], wanted: dict[str, int | None], per_channel: bool, pipecnn: bool
    ) -> None:
        self.least = int(pipecnn)
        self.sources = {layer.name: layer for layer in graph}
        self.head = {name: name for name in wanted}
        for layer in graph:
            for operand in layer.operands:
                for other in operand[1:]:
                    self._unite(operand[0], other)
            if layer.operator == "identity":
                self._unite(layer.sources[0], layer.name)
        self.value: dict[str, int] = {}
        for name, frac in wanted.items():
            head = self._find(name)
            if frac is not None:
                self.value[head] = min(frac, self.value.get(head, frac))
        for head in {self._find(name) for name in wanted}:
            self.value.setdefault(head, UNUSED_FRAC)
        self.weights = {
            layer.name: _Weights(layer, per_channel, pipecnn) for layer in graph if layer.operator == "convolution"
        }
        lowered = True
        while lowered:
            lowered = False
            for layer in graph:
                for name, most in self._limits(layer):
                    if self[name] > most:
                        self._lower(layer.name, name, most)
                        lowered = True

    def __getitem__(self, name: str) -> int:
        return self.value[self._find(name)]

    def _find(self, name: str) -> str:
        while self.head[name] != name:
            name = self.head[name]
        return name

    def _unite(self, a: str, b: str) -> None:
        self.head[self._find(b)] = self._find(a)

    def _lower(self, layer: str, name: str, frac: int) -> None:
        if frac < LEAST_FRAC:
            raise CompileError(
                layer,
                "its values are too large for any scale that it can share with what it is concatenated or added to",
                "lower its weights, or normalise before it",
            )
        self.value[self._find(name)] = frac

    def _limits(self, layer: FloatLayer) -> list[tuple[str, int]]:
        """Tensors whose fraction a layer bounds, with the bound."""
        in_frac = self[layer.sources[0]]
        if layer.operator == "convolution":
            # A shift below zero cannot be done: the output takes a coarser scale, which loses less than saturating
            # weights.
            weights = self.weights[layer.name]
            fracs = [
                most if frac is None else frac
                for frac, most in zip(weights.fracs(in_frac), weights.bounds(in_frac), strict=True)
            ]
            bias = [(layer.name, frac - self.least) for frac in fracs] if self.least else []
            return [(layer.name, in_frac + frac - self.least) for frac in fracs] + bias
        if layer.operator == "average":
            return [(layer.name, in_frac + _average(layer)[1] - self.least)]
        if layer.operator == "lrn":
            return [(layer.name, in_frac + lrn.FACTOR_FRAC)]
        if layer.operator == "add":
            a, b = (operand[0] for operand in layer.operands)
            coarse, fine = sorted((a, b), key=self.__getitem__)
            return [(fine, self[coarse] + MAX_ADD_BITS), (layer.name, self[coarse] + MAX_ADD_BITS - self.least)]
        return []

    def added(self, layer: FloatLayer) -> tuple[int, int, int]:
        """Fractions of an addition's operands and of its accumulator."""
        a, b = (self[operand[0]] for operand in layer.operands)
        return a, b, max(a, b, self[layer.name] + self.least)

    def layer(self, source: FloatLayer) -> Layer:
        """The integer layer of a float one."""
        channels = len(source.weight)
        in_frac, out_frac = self[source.operands[0][0]], self[source.name]
        if source.operator == "convolution":
            weight_frac = self.weights[source.name].chosen(in_frac, out_frac)
        else:
            each = {
                "average": lambda: _average(source)[1],
                "lrn": lambda: lrn.FACTOR_FRAC,
                "identity": lambda: self.least,
            }
            one = self.added(source)[2] - in_frac if source.operator == "add" else each[source.operator]()
            weight_frac = (one,) * channels
        upper = 127
        if source.upper is not None:
            bound = source.upper * 2.0**out_frac
            if bound != int(bound):
                raise CompileError(
                    source.name,
                    f"its bound {source.upper} is no integer at fraction {out_frac}, shared with larger values",
                    "use ReLU",
                )
            upper = min(127, int(bound))
        return Layer(
            name=source.name,
            sources=source.sources,
            in_shape=source.in_shape,
            out_channels=channels,
            kernel=(source.weight.shape[2], source.weight.shape[3]),
            stride=source.stride,
            padding=source.padding,
            relu=source.relu,
            pool=source.pool,
            in_frac=in_frac,
            weight_frac=weight_frac,
            out_frac=out_frac,
            channels=source.channels,
            groups=source.groups,
            operator=source.operator,
            upper=upper,
            normalisation=source.normalisation,
            source_channels=source.source_channels,
        )


class _Weights:
    """Fractions that a convolution's weights want, per tensor or per output channel."""

    def __init__(self, source: FloatLayer, per_channel: bool, pipecnn: bool) -> None:
        self.pipecnn = pipecnn
        weight, bias = source.weight.numpy(), source.bias.numpy()
        self.channels, self.per_channel = len(weight), per_channel
        self.groups = [weight[m : m + 1] for m in range(len(weight))] if per_channel else [weight]
        self.biases = [bias[m : m + 1] for m in range(len(bias))] if per_channel else [bias]
        self.wanted = [quantisation.best_frac(group) for group in self.groups]
        # A bias must fit int32 at scale in_frac + weight_frac; PipeCNN's, int8 at weight_frac.
        largest = 127 if pipecnn else sums.LIMIT // 2
        peaks = [float(np.max(np.abs(biases), initial=0.0)) for biases in self.biases]
        self.most = [10_000 if peak == 0 else int(np.floor(np.log2(largest / peak))) for peak in peaks]
        self.found: dict[int, list[int | None]] = {}

    def fracs(self, in_frac: int) -> list[int | None]:
        """What each group's weights want, and its biases and sums allow; None where all weights are zero."""
        if in_frac not in self.found:
            bounds = zip(self.wanted, self.bounds(in_frac), strict=True)
            self.found[in_frac] = [
                None if frac is None else self.summable(group, min(frac, most), in_frac)
                for group, (frac, most) in enumerate(bounds)
            ]
        return self.found[in_frac]

    def bounds(self, in_frac: int) -> list[int]:
        """The largest fraction that each group's biases allow, its weights aside."""
        return [most if self.pipecnn else most - in_frac for most in self.most]

    def summable(self, group: int, frac: int, in_frac: int) -> int:
        """The largest fraction up to `frac` at which no sum reaches 32 bits, with a bit to grow into in training."""
        weight, bias = self.groups[group], self.biases[group]
        while True:
            start = None if self.pipecnn else np.ceil(np.ldexp(np.abs(bias.astype(np.float64)), frac + in_frac))
            most = 0.0 if start is None else 2 * float(start.max(initial=0.0))
            if most + weight[0].size * sums.MOST <= sums.LIMIT:
                return frac
            if 2 * sums.reach(quantisation.quantise(weight, frac), start).max() <= sums.LIMIT:
                return frac
            frac -= 1

    def chosen(self, in_frac: int, out_frac: int) -> tuple[int, ...]:
        """One fraction an output channel."""
        fracs = self.fracs(in_frac)
        limit = params.MAX_SHIFT + out_frac - in_frac
        unused = max(UNUSED_FRAC, out_frac - in_frac)
        if self.pipecnn:
            unused = max(unused, out_frac, out_frac - in_frac) + 1
        fallback = min((frac for frac in fracs if frac is not None), default=unused)
        # A shift above 31 means weights far below what the output can show: they take a coarser scale.
        per_group = [
            min(min(fallback, most) if frac is None else frac, limit)
            for frac, most in zip(fracs, self.bounds(in_frac), strict=True)
        ]
        return tuple(per_group if self.per_channel else per_group * self.channels)


def _average(layer: FloatLayer) -> tuple[int, int]:
    """Integer weight of an average and its fraction: 1 / (KH * KW), as fine as int8 and sums of 32 bits hold it."""
    window = layer.weight.shape[2] * layer.weight.shape[3]

    def weight(frac: int) -> int:
        return (2 ** (frac + 1) + window) // (2 * window)

    def error(frac: int) -> float:
        return abs(weight(frac) * window / 2**frac - 1)

    frac = 0
    while weight(frac + 1) <= 127:
        frac += 1
    if 128 * window * weight(frac) > sums.LIMIT:
        smaller = [at for at in range(frac, -1, -1) if 128 * window * weight(at) <= sums.LIMIT]
        frac = min(smaller, key=error)
        if error(frac) > AVERAGE_ERROR:
            kh, kw = layer.weight.shape[2:]
            raise CompileError(
                layer.name,
                f"sums over its window of {kh}x{kw} do not fit 32 bits (128 * sum|w| is at most {sums.LIMIT}), unless "
                f"the weight is {100 * error(frac):.1f} % off",
                "average in two steps: AvgPool2d with a small window, then the rest",
            )
    return weight(frac), frac


def _constants(layer: Layer, fractions: _Fractions) -> tuple[Int8, Int32]:
    """Integer weights and biases of an operator that has nothing to train."""
    weight = np.full(layer.weight_shape, 1 << fractions.least, np.int8)
    source = fractions.sources[layer.name]
    if layer.operator == "average":
        weight[:] = _average(source)[0]
    if layer.operator == "add":
        a, b, accumulator = fractions.added(source)
        weight[:, 0], weight[:, 1] = 2 ** (accumulator - a), 2 ** (accumulator - b)
    return weight, np.zeros(layer.out_channels, np.int32)


def _folded_if_it_fits(layer: Layer, config: Config) -> Layer:
    """Folding saves steps but takes more room on chip: a small accelerator may hold the plain layer only."""
    tight = folded(layer, config.vec)
    try:
        check_layer(tight, config)
    except CompileError:
        return layer
    return layer if effort(tight, config) > effort(layer, config) else tight


def _place(layer: Layer, config: Config, fallback: str) -> Layer:
    placement: Placement = "accelerator"
    try:
        check_layer(layer, config)
    except CompileError as error:
        if error.where != "accelerator" or fallback != "cpu":
            raise
        placement = "cpu"
    return replace(layer, placement=placement)
