"""The compiler: a float network and calibration images in, a Program in the accelerator's integers out."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import nn

from host.compiler.limits import CompileError, check_layer, fits_on_chip
from host.compiler.trace import FloatLayer, trace
from host.program import quantisation
from host.program.fold import folded
from host.program.layers import INPUT, Layer, Placement
from host.program.program import Program, ProgramError, quantise_layer
from hw import params
from hw.config import Config

BATCH = 64
"""Calibration images evaluated at a time."""
UNUSED_FRAC = 7
"""Fraction given to a tensor that is zero everywhere, where any would do."""


def compile(
    model: nn.Module,
    config: Config,
    *,
    calibrate: torch.Tensor,
    per_channel: bool = False,
    fold: bool = True,
    fallback: Literal["error", "cpu"] = "error",
) -> Program:
    """Trace, fold and quantise a network for an accelerator.

    Parameters
    ----------
    model : nn.Module
        fx-traceable chain of convolutions and linear layers; evaluated as in `eval()`, not changed.
    config : Config
        The accelerator.
    calibrate : float tensor, shape (N, C, H, W)
        Images on which each activation's fraction is chosen by minimum squared error.
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
    images = _calibration(calibrate)
    chain = trace(model, images)
    for source in chain:
        if not (torch.isfinite(source.weight).all() and torch.isfinite(source.bias).all()):
            raise ProgramError(
                f"layer {source.name!r}: its weights or bias hold NaN or infinite values; training has diverged: "
                "restore earlier weights"
            )
    chosen = quantisation.best_frac(images.numpy())
    input_frac = UNUSED_FRAC if chosen is None else chosen
    layers: list[Layer] = []
    name, in_frac = INPUT, input_frac
    for source in chain:
        after_relu, images = _evaluate(source, images)
        layer = _choose_fractions(source, name, in_frac, after_relu, per_channel)
        if fold and not layers:
            layer = _folded_if_it_fits(layer, config)
        layers.append(_place(layer, config, fallback))
        name, in_frac = source.name, layer.out_frac
    weights, biases = {}, {}
    for layer, source in zip(layers, chain, strict=True):
        weights[layer.name], biases[layer.name] = quantise_layer(layer, source.weight, source.bias)
    c, h, w = chain[0].in_shape
    return Program(config, tuple(layers), weights, biases, (c, h, w), input_frac, {la.name: la.name for la in layers})


def _calibration(calibrate: torch.Tensor) -> torch.Tensor:
    images = torch.as_tensor(calibrate).detach().float().cpu()
    if images.dim() != 4:
        raise ProgramError(f"calibration images must have shape (N, C, H, W), got {tuple(images.shape)}")
    if images.numel() == 0:
        raise ProgramError("the calibration set is empty: pass at least one image, better some hundred")
    if not torch.isfinite(images).all():
        raise ProgramError("the calibration images hold NaN or infinite values: clean them first")
    return images


def _evaluate(source: FloatLayer, images: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
    """The layer in float: its values as they are requantised (after ReLU, before pooling), and its final output."""
    with torch.no_grad():
        y = torch.cat([source.accumulators(chunk) for chunk in images.split(BATCH)])
        if source.relu:
            y = y.relu_()
        out = y
        if source.pool is not None:
            pad = source.pool.pad
            bordered = torch.nn.functional.pad(y, (pad, pad, pad, pad), value=-float("inf")) if pad else y
            out = torch.nn.functional.max_pool2d(bordered, source.pool.kernel, source.pool.stride)
    return y.numpy(), out


def _choose_fractions(
    source: FloatLayer, reads: str, in_frac: int, activations: np.ndarray, per_channel: bool
) -> Layer:
    weight, bias = source.weight.numpy(), source.bias.numpy()
    channels = len(weight)
    groups = [weight[m : m + 1] for m in range(channels)] if per_channel else [weight]
    found = [quantisation.best_frac(group) for group in groups]
    bias_groups = [bias[m : m + 1] for m in range(channels)] if per_channel else [bias]
    chosen = quantisation.best_frac(activations)
    wanted = UNUSED_FRAC if chosen is None else chosen

    # A bias must fit int32 at scale in_frac + weight_frac.
    fracs = []
    for frac, biases in zip(found, bias_groups, strict=True):
        peak = float(np.max(np.abs(biases), initial=0.0))
        most = 10_000 if peak == 0 else int(np.floor(np.log2((2**31 - 1) / peak))) - in_frac
        fracs.append(None if frac is None else min(frac, most))
    real = [frac for frac in fracs if frac is not None]
    # A shift below zero cannot be done: the output takes a coarser scale, which loses less than saturating weights.
    out_frac = min([wanted, *(in_frac + frac for frac in real)])
    limit = params.MAX_SHIFT + out_frac - in_frac
    fallback = min(real, default=max(UNUSED_FRAC, out_frac - in_frac))
    # A shift above 31 means weights far below what the output can show: they take a coarser scale.
    per_group = [min(fallback if frac is None else frac, limit) for frac in fracs]
    weight_frac = tuple(per_group if per_channel else per_group * channels)
    return Layer(
        name=source.name,
        sources=(reads,),
        in_shape=source.in_shape,
        out_channels=channels,
        kernel=(weight.shape[2], weight.shape[3]),
        stride=source.stride,
        padding=source.padding,
        relu=source.relu,
        pool=source.pool,
        in_frac=in_frac,
        weight_frac=weight_frac,
        out_frac=out_frac,
    )


def _folded_if_it_fits(layer: Layer, config: Config) -> Layer:
    """Folding saves steps but takes more room on chip: a small accelerator may hold the plain layer only."""
    tight = folded(layer, config.vec)
    if fits_on_chip(layer, config) and not fits_on_chip(tight, config):
        return layer
    try:
        check_layer(tight, config)
    except CompileError:
        return layer
    return tight


def _place(layer: Layer, config: Config, fallback: str) -> Layer:
    placement: Placement = "accelerator"
    try:
        check_layer(layer, config)
    except CompileError as error:
        if error.where != "accelerator" or fallback != "cpu":
            raise
        placement = "cpu"
    return replace(layer, placement=placement)
