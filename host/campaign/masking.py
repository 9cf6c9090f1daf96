"""Where faults died: the layer and the stage at which everything became what it is without them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from host.campaign.space import Place, plan_of
from host.devices.device import Int8
from host.devices.reference import accumulators, flip, stored_input
from host.faults.plan import EVERY_IMAGE, SITES, FaultPlan
from host.program.arrangement import arrange, gather
from host.program.integer import accumulate, max_pool, run_layer, wrap
from host.program.layers import INPUT, Layer
from host.program.program import Program
from hw.config import Config

Integers = npt.NDArray[np.int64]

STAGES = ("none", "protected", "unread", "dormant", "accumulate", "requantise", "clamp", "relu", "pool")
"""none: the plan has no fault for the image. protected: the layer runs on the CPU, so the fault does not happen.
unread: the network's output does not depend on the layer. dormant: no accumulator that a late or stuck bit could have
changed ended otherwise than without it. The others in the order of the data:

accumulate: the sums are equal (the wrong operand met zeros, or no window reads it). requantise: the shift rounds the
difference away. clamp: both saturate alike. relu: both are negative. pool: a larger neighbour hides it.
"""


def where_masked(
    program: Program, place: Place, clean: Mapping[str, Int8], faulty: Mapping[str, Int8]
) -> list[tuple[str, str]]:
    """(layer, stage) at which the fault disappeared, for each image.

    Parameters
    ----------
    program : Program
    place : Place
        The fault, in every image.
    clean : dict of int8 arrays, shape (n, ...)
        Final output of every layer, and the stored input (`INPUT`), without the fault.
    faulty : dict of int8 arrays
        Final output of every layer with the fault; the last layer's must be the clean one.
    """
    images = len(clean[INPUT])
    origin = program.layer(place.layer)
    if not images:
        return []
    if origin.placement == "cpu":
        return [(origin.name, "protected")] * images
    live = _live(program)
    if origin.name not in live:
        return [(origin.name, "unread")] * images
    faulty = {**faulty, INPUT: stored_input(program, clean[INPUT], plan_of(place, program.names, images), 0)}
    # The last tensor with a difference: whoever reads it masks it.
    last = np.full(images, -1)
    tensors = [INPUT, *(name for name in program.names if name in live)]
    for at, name in enumerate(tensors):
        last[(faulty[name] != clean[name]).reshape(images, -1).any(axis=1)] = at
    found = [("", "")] * images
    for at in np.unique(last):
        rows = np.flatnonzero(last == at)
        if at < 0:
            stages = _in_origin(program, place, {name: clean[name][rows] for name in tensors})
            for row, stage in zip(rows, stages, strict=True):
                found[row] = (origin.name, STAGES[stage])
            continue
        before = {name: clean[name][rows] for name in tensors}
        after = {name: faulty[name][rows] for name in tensors}
        readers = [name for name in program.readers(tensors[at]) if name in live]
        by_reader = np.stack([_in_reader(program, program.layer(name), before, after) for name in readers])
        latest = by_reader.argmax(axis=0)
        for column, row in enumerate(rows):
            found[row] = (readers[latest[column]], STAGES[by_reader[latest[column], column]])
    return found


def where_any_masked(
    program: Program, plan: FaultPlan, clean: Mapping[str, Int8], faulty: Mapping[str, Int8]
) -> list[tuple[str | None, str]]:
    """(layer, stage) at which the last trace of a plan's faults disappeared, for each image.

    For any flips and conditions, where `where_masked` is a quicker way for one flip: the layers are computed on the
    reference with and without faults, from the last to the first, until one is found whose input, or whose
    accumulators, are not the fault-free ones. The layer is None where no layer can be named.

    Parameters
    ----------
    program : Program
    plan : FaultPlan
        Image i of it is image i of the tensors.
    clean, faulty : dict of int8 arrays, shape (n, ...)
        As for `where_masked`.
    """
    images = len(clean[INPUT])
    faulty = {**faulty, INPUT: stored_input(program, clean[INPUT], plan, 0)}
    live = _live(program)
    found: list[tuple[str | None, str] | None] = [None] * images
    rows = np.arange(images)
    for at in reversed(range(len(program.layers))):
        layer = program.layers[at]
        if layer.name not in live or not len(rows):
            continue
        before, after = ({name: tensors[name][rows] for name in layer.sources} for tensors in (clean, faulty))
        stages, reached = _under_plan(program, at, plan.of_images(rows), before, after)
        for row, stage in zip(rows[reached], stages[reached], strict=True):
            found[row] = (layer.name, STAGES[stage])
            if not np.array_equal(clean[layer.name][row], faulty[layer.name][row]):
                # It left the layer, but its readers do not look there.
                readers = [name for name in program.readers(layer.name) if name in live]
                found[row] = (readers[-1], "accumulate")
        rows = rows[~reached]
    for row in rows:
        found[row] = _untraced(program, plan.of_images(np.array([row])), live)
    return [where for where in found if where is not None]


def _under_plan(
    program: Program, at: int, plan: FaultPlan, clean: Mapping[str, Int8], faulty: Mapping[str, Int8]
) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Stage at which a layer's faults, or those of its input, disappear; and the images in which there are any."""
    layer, config = program.layers[at], program.config
    inputs = gather(clean, layer), gather(faulty, layer)
    reached = (inputs[0] != inputs[1]).reshape(len(inputs[0]), -1).any(axis=1)
    if layer.placement == "cpu":
        return _in_reader(program, layer, clean, faulty), reached
    weight, bias = program.weights[layer.name], program.biases[layer.name]
    start = np.zeros_like(bias) if config.arithmetic == "pipecnn" else bias
    wrong = flip(weight[None], plan.at(at, "weight").counted_from(EVERY_IMAGE))[0]
    right_acc = accumulate(inputs[0], weight, start, layer.stride, layer.padding, layer.groups)
    wrong_acc = accumulators(inputs[1], wrong, start, layer, plan.at(at, "mac"), config)
    reached |= (right_acc != wrong_acc).reshape(len(right_acc), -1).any(axis=1)
    stages = _first_equal(
        right_acc.astype(np.int64), wrong_acc.astype(np.int64), layer, config, slice(None), bias.astype(np.int64)
    )
    return stages, reached


def _untraced(program: Program, plan: FaultPlan, live: set[str]) -> tuple[str | None, str]:
    """Why an image's faults left no trace in any layer on which the output depends."""
    on_device = [layer.name for layer in program.layers if layer.placement == "accelerator"]
    if plan.conditions is not None:
        return (None, "dormant") if any(name in live for name in on_device) else (None, "protected")
    if not len(plan):
        return None, "none"
    hit = [program.names[at] for at in np.unique(plan.layer)]
    active = [name for name in hit if name in on_device and name in live]
    if active:
        return active[-1], "accumulate"  # a wrong weight met zeros
    unread = [name for name in hit if name in on_device]
    return (unread[-1], "unread") if unread else (hit[-1], "protected")


def _live(program: Program) -> set[str]:
    """Layers on which the network's output depends."""
    live = {program.names[-1]}
    for layer in reversed(program.layers):
        if layer.name in live:
            live.update(layer.sources)
    return live


def _in_origin(program: Program, place: Place, clean: Mapping[str, Int8]) -> Integers:
    """Stage, by image, at which a wrong accumulator or weight disappears within its own layer."""
    layer, config = program.layer(place.layer), program.config
    x = gather(clean, layer)
    weight, bias = program.weights[layer.name], program.biases[layer.name].astype(np.int64)
    start = np.zeros_like(bias) if config.arithmetic == "pipecnn" else bias
    if place.site == "mac":
        channel = place.output // int(np.prod(layer.conv_shape[1:]))
        sums = prefixes(x, weight, layer, config, place.output) + start[channel]
        before = sums[:, place.step] & 0xFFFFFFFF
        changed = sums[:, -1] + (before ^ (1 << place.bit)) - before
        clean_acc, faulty_acc = (wrap(v)[:, None, None, None].astype(np.int64) for v in (sums[:, -1], changed))
        return _first_equal(clean_acc, faulty_acc, layer, config, channel, bias, alone=True)
    channel = place.output // int(np.prod(layer.weight_shape[1:]))
    group = channel * layer.groups // layer.out_channels
    width = layer.weight_shape[1]
    x = x[:, group * width : (group + 1) * width]
    hit = FaultPlan.of(("",), EVERY_IMAGE, 0, SITES.index("weight"), place.output, 0, place.bit)
    wrong = flip(weight[None], hit.counted_from(EVERY_IMAGE))[0]
    own = start[channel : channel + 1].astype(np.int32)
    clean_acc, faulty_acc = (
        accumulate(x, w[channel : channel + 1], own, layer.stride, layer.padding).astype(np.int64)
        for w in (weight, wrong)
    )
    return _first_equal(clean_acc, faulty_acc, layer, config, channel, bias)


def _in_reader(program: Program, layer: Layer, clean: Mapping[str, Int8], faulty: Mapping[str, Int8]) -> Integers:
    """Stage, by image, at which wrong input disappears in a layer."""
    config, weight, bias = program.config, program.weights[layer.name], program.biases[layer.name]
    inputs = gather(clean, layer), gather(faulty, layer)
    if layer.operator == "lrn":
        # It has no accumulators: what its own rounding does not hide, pooling does.
        conv = [run_layer(x, weight, bias, layer, config.arithmetic).conv for x in inputs]
        equal = (conv[0] == conv[1]).reshape(len(conv[0]), -1).all(axis=1)
        return np.where(equal, STAGES.index("requantise"), STAGES.index("pool"))
    start = np.zeros_like(bias) if config.arithmetic == "pipecnn" else bias
    clean_acc, faulty_acc = (
        accumulate(x, weight, start, layer.stride, layer.padding, layer.groups).astype(np.int64) for x in inputs
    )
    return _first_equal(clean_acc, faulty_acc, layer, config, slice(None), bias.astype(np.int64))


def _first_equal(
    clean: Integers,
    faulty: Integers,
    layer: Layer,
    config: Config,
    channel: int | slice,
    bias: Integers,
    *,
    alone: bool = False,
) -> Integers:
    """First stage, by image, after which two accumulators of shape (n, channels, H, W) give the same.

    `alone`: they are single outputs, whose neighbours are not known; what survives ReLU is hidden by pooling.
    """
    pick = slice(channel, channel + 1) if isinstance(channel, int) else channel
    shift = np.asarray(layer.shift, np.int64)[pick][:, None, None]
    added = bias[pick][:, None, None] if config.arithmetic == "pipecnn" else None
    found = np.full(len(clean), STAGES.index("pool"))
    undecided = np.ones(len(clean), bool)
    steps = zip(_stages(clean, layer, shift, added, alone), _stages(faulty, layer, shift, added, alone), strict=True)
    for (stage, a), (_, b) in steps:
        equal = (a == b).reshape(len(a), -1).all(axis=1)
        found[undecided & equal] = STAGES.index(stage)
        undecided &= ~equal
    return found


def _stages(
    acc: Integers, layer: Layer, shift: Integers, added: Integers | None, alone: bool
) -> list[tuple[str, npt.NDArray[np.integer]]]:
    """A layer's values after each stage, as `host.program.integer` and `host.program.pipecnn` define them."""
    half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0)
    shifted = (acc + half) >> shift
    low = 0 if layer.relu else -128
    if added is None:
        clamped = np.clip(shifted, -128, layer.upper)
    else:
        wrapped = (shifted + added + 128) % 256 - 128
        clamped = np.where(shifted > 127, 127, np.where(shifted < -128, -128, wrapped))
    rectified = np.clip(clamped, low, layer.upper).astype(np.int8)
    found = [("accumulate", acc), ("requantise", shifted), ("clamp", clamped), ("relu", rectified)]
    if layer.pool is not None and not alone:
        found.append(("pool", max_pool(rectified, layer.pool)))
    return found


def prefixes(x: Int8, weight: Int8, layer: Layer, config: Config, output: int) -> Integers:
    """Sums after every step of one output, without bias and not wrapped, int64 of shape (n, steps).

    Parameters
    ----------
    x : int8 array, shape (n, C, H, W)
    weight : int8 array, shape (M, C / groups, KH, KW)
    output : int
        Flat CHW index of the convolution's output.
    """
    how = arrange(layer, config)
    (kh, kw), (sy, sx), (py, px) = layer.kernel, layer.stride, layer.padding
    channel, oy, ox = (int(i) for i in np.unravel_index(output, layer.conv_shape))
    own = channel * layer.groups // layer.out_channels * layer.weight_shape[1]
    # Steps run over planes, then kernel rows, then kernel columns.
    z, ky, kx = (a.reshape(-1) for a in np.meshgrid(range(how.span), range(kh), range(kw), indexing="ij"))
    plane = how.first[channel // config.lanes] + z
    slots = np.full((len(z), config.vec), -1, np.int64)
    there = plane < len(how.planes)
    slots[there] = how.slots[plane[there]]
    row, column = oy * sy + ky - py, ox * sx + kx - px
    inside = (row >= 0) & (row < layer.in_shape[1]) & (column >= 0) & (column < layer.in_shape[2])
    read = (slots >= own) & (slots < own + layer.weight_shape[1]) & inside[:, None]
    step, element = np.nonzero(read)
    chosen = slots[step, element]
    products = x[:, chosen, row[step], column[step]].astype(np.int64) * weight[
        channel, chosen - own, ky[step], kx[step]
    ].astype(np.int64)
    sums = np.zeros((len(z), len(x)), np.int64)
    np.add.at(sums, step, products.T)
    return np.cumsum(sums.T, axis=1)
