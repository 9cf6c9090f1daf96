"""What a compiled network costs on its accelerator, layer by layer, and where each layer runs and why."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from host.compiler.limits import CompileError, check_accelerator, is_fully_connected
from host.program import arrangement
from host.program.layers import Layer, Operator, Placement
from host.program.program import Program
from host.schedule.tiling import MOST_EFFORT, effort, layer_words
from hw.config import Config
from hw.layout import output_groups


@dataclass(frozen=True)
class LayerCost:
    """One layer of a Program; figures are of one image.

    Attributes
    ----------
    kind : str
        In words: "fully connected", "convolution", "grouped convolution", "depthwise convolution", or the operator.
    operator : str
    sources : tuple of str
        Names of the layers it reads, or "input".
    groups : int
    input, output : three ints
        (C, H, W) as the network has them: before folding, after pooling.
    kernel : two ints
        Before folding.
    macs : int
        Multiplications of the layer itself, without padding to lanes and vec.
    steps : int
        Of the whole array: one a cycle when nothing stalls, so the layer's least cycles.
    folded : bool
        Whether its kernel columns became input channels (docs/architecture.md, Folding).
    utilisation : float
        Share of the array's multipliers that work on the layer's own products in these steps.
    parameter_bytes : int
        Weights (int8) and biases (int32).
    input_bytes, output_bytes : int
        Activations (int8).
    weight_fracs : tuple of int
        Lowest and highest over the output channels.
    why : str
        Why the layer runs where it does.
    """

    name: str
    kind: str
    operator: Operator
    sources: tuple[str, ...]
    groups: int
    input: tuple[int, int, int]
    output: tuple[int, int, int]
    kernel: tuple[int, int]
    macs: int
    steps: int
    folded: bool
    utilisation: float
    parameter_bytes: int
    input_bytes: int
    output_bytes: int
    in_frac: int
    weight_fracs: tuple[int, int]
    out_frac: int
    runs_on: Placement
    why: str


def costs(program: Program) -> list[LayerCost]:
    """One entry a layer, in order."""
    return [_cost(layer, program.config) for layer in program.layers]


def _cost(layer: Layer, config: Config) -> LayerCost:
    m, oh, ow = layer.conv_shape
    fold = layer.fold
    network_input, kernel = layer.in_shape, layer.kernel
    if fold is not None:
        network_input, kernel = (fold.channels, layer.in_shape[1], fold.width), (layer.kernel[0], fold.kernel_w)
    weights = m * (network_input[0] // layer.groups) * kernel[0] * kernel[1]
    macs = weights * oh * ow
    steps = output_groups(m, config.lanes, config.vec) * oh * ow * arrangement.steps(layer, config)
    return LayerCost(
        name=layer.name,
        kind=_kind(layer),
        operator=layer.operator,
        sources=layer.sources,
        groups=layer.groups,
        input=network_input,
        output=layer.out_shape,
        kernel=kernel,
        macs=macs,
        steps=steps,
        folded=fold is not None,
        utilisation=macs / (steps * config.lanes * config.vec),
        parameter_bytes=weights + 4 * m,
        input_bytes=math.prod(network_input),
        output_bytes=math.prod(layer.out_shape),
        in_frac=layer.in_frac,
        weight_fracs=(min(layer.weight_frac), max(layer.weight_frac)),
        out_frac=layer.out_frac,
        runs_on=layer.placement,
        why=_why(layer, config),
    )


def _kind(layer: Layer) -> str:
    if layer.operator != "convolution":
        return _OPERATORS[layer.operator]
    if layer.groups == 1:
        return "fully connected" if is_fully_connected(layer) else "convolution"
    return "depthwise convolution" if layer.groups == layer.in_shape[0] else "grouped convolution"


_OPERATORS = {
    "add": "addition",
    "average": "average pooling",
    "identity": "copy",
    "lrn": "local response normalisation",
}


def _why(layer: Layer, config: Config) -> str:
    try:
        check_accelerator(layer, config)
    except CompileError as error:
        return error.reason
    if layer.placement == "cpu":
        return "protected"
    reasons = ["kernel columns folded into channels"] if layer.fold else []
    if layer.constant:
        reasons.append(f"{_kind(layer)} as a convolution with constant weights, from {', '.join(layer.sources)}")
    elif len(layer.sources) > 1 or layer.channels is not None:
        rearranged = "" if layer.channels is None else f"{layer.in_shape[0]} channels chosen "
        reasons.append(f"reads {rearranged}{'of' if rearranged else 'all of'} {', '.join(layer.sources)}")
    cut = effort(layer, config)
    if cut:
        needed, width = layer_words(layer, config) * config.vec, layer.out_shape[2]
        how = "output by output" if cut == MOST_EFFORT else "in tiles"
        if needed > config.feature_bytes:
            reasons.append(f"{how}: its input takes {needed:,} bytes, a feature buffer holds {config.feature_bytes:,}")
        else:
            reasons.append(f"{how}: its pooled rows have {width} pixels, the line buffer holds {config.pool_columns}")
    return "; ".join(reasons) or "fits"


def headline(program: Program) -> str:
    """Totals in a line."""
    layers = costs(program)
    macs, parameters = sum(c.macs for c in layers), sum(c.parameter_bytes for c in layers)
    there = [c for c in layers if c.runs_on == "accelerator"]
    steps = sum(c.steps for c in there)
    on_cpu = [c.name for c in layers if c.runs_on == "cpu"]
    return (
        f"{macs:,} MACs and {parameters:,} bytes of parameters; the {program.config.lanes}x{program.config.vec} array "
        f"takes {steps:,} steps an image (one a cycle when nothing stalls) for {sum(c.macs for c in there):,} MACs"
        + (f"; on the CPU: {', '.join(on_cpu)}" if on_cpu else "")
    )


def as_dict(network: str, program: Program) -> dict[str, Any]:
    """For JSON."""
    layers = [asdict(cost) for cost in costs(program)]
    return {"network": network, "lanes": program.config.lanes, "vec": program.config.vec, "layers": layers}
