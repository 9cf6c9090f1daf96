"""What a compiled network costs on its accelerator, layer by layer, and where each layer runs and why."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from host.compiler.limits import CompileError, check_accelerator, feature_words, is_fully_connected
from host.program import arrangement
from host.program.layers import Layer, Operator, Placement
from host.program.program import Program
from host.schedule.cycles import Memory
from host.schedule.performance import Buffers, LayerPerformance, multiplications, predict
from host.schedule.roofline import Bound
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
    stride : two ints
        Before folding.
    pool : int
        Edge of the max pooling window after it; 0 if there is none.
    macs : int
        Multiplications of the layer itself, without padding to lanes and vec.
    steps : int
        Of the whole array: one a cycle when nothing stalls, so the layer's least cycles. Layers in bands compute some
        rows twice, which `busy` counts and this does not.
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
    cycles : float or None
        What the cycle model predicts, the batch's share of one image; this and what follows is None on the CPU.
    busy : float or None
        Share of these cycles in which the array steps.
    bound : str or None
        "compute", "memory" or "latency" (`host.schedule.roofline.bound`).
    bytes_read, bytes_written : float or None
        Moved between accelerator and memory, the batch's share of one image.
    buffers : Buffers or None
        Where its tensors lie.
    """

    name: str
    kind: str
    operator: Operator
    sources: tuple[str, ...]
    groups: int
    input: tuple[int, int, int]
    output: tuple[int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pool: int
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
    cycles: float | None
    busy: float | None
    bound: Bound | None
    bytes_read: float | None
    bytes_written: float | None
    buffers: Buffers | None


def costs(
    program: Program, memory: Memory | None = None, *, batch: int = 1, writeback: bool = False
) -> list[LayerCost]:
    """One entry a layer, in order; cycles and bytes are predicted for this memory (default: `Memory()`) and batch."""
    found = predict(program, memory or Memory(), batch=batch, writeback=writeback)
    predicted = {layer.at: layer for layer in found.layers}
    return [_cost(layer, program.config, predicted.get(at), batch) for at, layer in enumerate(program.layers)]


def _cost(layer: Layer, config: Config, predicted: LayerPerformance | None, batch: int) -> LayerCost:
    m, oh, ow = layer.conv_shape
    fold = layer.fold
    network_input, kernel, stride = layer.in_shape, layer.kernel, layer.stride
    if fold is not None:
        network_input, kernel = (fold.channels, layer.in_shape[1], fold.width), (layer.kernel[0], fold.kernel_w)
        stride = (layer.stride[0], fold.stride_x)
    macs = multiplications(layer)
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
        stride=stride,
        pool=0 if layer.pool is None else layer.pool.kernel,
        macs=macs,
        steps=steps,
        folded=fold is not None,
        utilisation=macs / (steps * config.lanes * config.vec),
        parameter_bytes=macs // (oh * ow) + 4 * m,
        input_bytes=math.prod(network_input),
        output_bytes=math.prod(layer.out_shape),
        in_frac=layer.in_frac,
        weight_fracs=(min(layer.weight_frac), max(layer.weight_frac)),
        out_frac=layer.out_frac,
        runs_on=layer.placement,
        why=_why(layer, config),
        cycles=None if predicted is None else predicted.cycles / batch,
        busy=None if predicted is None else predicted.busy,
        bound=None if predicted is None else predicted.bound,
        bytes_read=None if predicted is None else predicted.traffic.read / batch,
        bytes_written=None if predicted is None else predicted.traffic.written / batch,
        buffers=None if predicted is None else predicted.buffers,
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
        reasons.append(f"{_kind(layer)} as a convolution with constant weights")
    elif layer.channels is not None:
        reasons.append(f"reads {layer.in_shape[0]} of {sum(layer.source_channels)} channels, where they lie")
    elif len(layer.sources) > 1:
        reasons.append("reads its sources where they lie: concatenation moves nothing")
    needed = feature_words(layer.in_shape, config.vec) * config.vec
    if needed > config.feature_bytes:
        reasons.append(f"in tiles: its input takes {needed:,} bytes, a feature buffer holds {config.feature_bytes:,}")
    return "; ".join(reasons) or "fits"


def operator_words(cost: LayerCost) -> str:
    """A layer's operator in a few letters: "conv 3x3/2 pool3", "fc", "depthwise 3x3", "add"."""
    kernel, stride = "x".join(map(str, cost.kernel)), max(cost.stride)
    shape = f"{kernel}{f'/{stride}' if stride > 1 else ''}"
    short = {
        "convolution": f"conv {shape}",
        "grouped convolution": f"conv {shape} in {cost.groups} groups",
        "depthwise convolution": f"depthwise {shape}",
        "fully connected": "fc",
        "average pooling": f"average {shape}",
        "local response normalisation": "lrn",
        "addition": "add",
    }
    return short.get(cost.kind, cost.kind) + (f" pool{cost.pool}" if cost.pool else "")


def headline(layers: list[LayerCost], config: Config) -> str:
    """Totals in a sentence. MACs are those of convolutions and fully connected layers, as the literature counts."""
    real = [c for c in layers if c.operator == "convolution"]
    macs, parameters = sum(c.macs for c in real), sum(c.parameter_bytes for c in real)
    there = [c for c in layers if c.runs_on == "accelerator"]
    steps, cycles = sum(c.steps for c in there), sum(c.cycles or 0.0 for c in there)
    on_cpu = [c.name for c in layers if c.runs_on == "cpu"]
    said = (
        f"{macs:,} MACs and {parameters:,} bytes of parameters; the {config.lanes}x{config.vec} array "
        f"takes {steps:,} steps an image (one a cycle when nothing stalls) for "
        f"{sum(c.macs for c in there if c.operator == 'convolution'):,} MACs"
    )
    if there:
        moved = sum(c.bytes_read or 0.0 for c in there), sum(c.bytes_written or 0.0 for c in there)
        said += f", {cycles:,.0f} cycles, {moved[0]:,.0f} bytes read and {moved[1]:,.0f} written"
    return said + (f"; on the CPU: {', '.join(on_cpu)}" if on_cpu else "")


def as_dict(network: str, program: Program, layers: list[LayerCost]) -> dict[str, Any]:
    """For JSON."""
    found = [asdict(cost) for cost in layers]
    return {"network": network, "lanes": program.config.lanes, "vec": program.config.vec, "layers": found}
