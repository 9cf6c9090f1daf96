"""What the accelerator's probes must show for each job: operands, accumulators, results, in the steps' order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from host.devices import stepwise
from host.program.arrangement import arrange, arrange_features, pack_weights
from host.program.integer import max_pool, wrap
from host.program.layers import Layer
from host.schedule.launch import Job, Unit
from hw.config import Config
from hw.masks import BankMasks

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]
Records = npt.NDArray[np.void]


@dataclass(frozen=True)
class Expected:
    """The records of one job, in job order: (output group, image, row, column[, step])."""

    layer: Layer
    job: Job
    loaded: bool
    """Whether the job reads what was loaded from memory for it; else what an earlier job stored on chip."""
    features: Int8
    """Shape (steps of the job, VEC)."""
    read: npt.NDArray[np.bool_]
    """Which of `features` some lane's weights can make count, same shape; the others may be anything."""
    weights: Int8
    """Shape (steps of the job, LANES, VEC)."""
    acc: Int32
    """After each step, flips included, shape (steps of the job, LANES)."""
    requant: Int8
    """Shape (outputs, LANES)."""
    pool: Int8
    """Final outputs, flips included, shape (final outputs, LANES)."""
    first_group: int
    groups: int
    """Output groups of the job."""
    steps: int
    """Per output."""

    def output(self, slot: int) -> tuple[int, int, int, int, int]:
        """(group, image in the launch, row, column, step) of a step of the job."""
        band = self.job.band
        group, image, y, x = self._place(slot // self.steps, band.conv_rows, self.layer.conv_shape[2])
        return group, image, band.conv_first + y, x, slot % self.steps

    def final(self, at: int) -> tuple[int, int, int, int]:
        """(group, image in the launch, row, column) of a final output."""
        band = self.job.band
        group, image, y, x = self._place(at, band.out_rows, self.layer.out_shape[2])
        return group, image, band.out_first + y, x

    def _place(self, at: int, rows: int, columns: int) -> tuple[int, int, int, int]:
        group, image, y, x = np.unravel_index(at, (self.groups, self.job.images, rows, columns))
        return self.first_group + int(group), self.job.first + int(image), int(y), int(x)

    def step_of(self, index: int) -> tuple[int, int, int]:
        """(z, ky, kx) of a step of an output."""
        kh, kw = self.layer.kernel
        return index // (kh * kw), index // kw % kh, index % kw

    def completed(self, at: int) -> int:
        """The output of the convolution with which a final output's window is complete."""
        oh, ow = self.job.band.conv_rows, self.layer.conv_shape[2]
        if self.layer.pool is None:
            return at
        pool = self.layer.pool
        ph, pw = self.job.band.out_rows, self.layer.out_shape[2]
        plane, pixel = divmod(at, ph * pw)
        y, x = divmod(pixel, pw)
        last_y = min(y * pool.stride - pool.pad + pool.kernel, oh) - 1
        last_x = min(x * pool.stride - pool.pad + pool.kernel, ow) - 1
        return (plane * oh + last_y) * ow + last_x


def expected_job(
    unit: Unit,
    number: int,
    layer: Layer,
    x: Int8,
    weight: Int8,
    bias: Int32,
    shift: npt.NDArray[np.integer],
    config: Config,
    loaded: bool,
    banks: Mapping[str, BankMasks] | None = None,
) -> Expected:
    """The records of job `number` of a unit.

    Parameters
    ----------
    unit : Unit
    number : int
    layer : Layer
        What the job computes.
    x : int8 array, shape (N, C, H, W)
        The layer's input for all images of the launch.
    weight : int8 array, shape (M, C / groups, KH, KW)
        As they lie in memory, flips included.
    bias : int32 array, shape (M,)
    shift : integer array, shape (M,)
    config : Config
    loaded : bool
        Whether the job reads what was loaded for it.
    banks : mapping of bank name to BankMasks, optional
        Those in which something is late or stuck.
    """
    job, vec, lanes = unit.jobs[number], config.vec, config.lanes
    features = arrange_features(x[job.first : job.first + job.images], layer, config)
    (kh, kw), (sy, sx), (py, px) = layer.kernel, layer.stride, layer.padding
    oh, ow = job.band.conv_rows, layer.conv_shape[2]
    how = arrange(layer, config)
    steps = how.span * kh * kw
    # Room for every window, whether or not it reaches beyond the padding.
    features = np.pad(features, ((0, 0), (0, 0), (py, kh + sy), (px, kw + sx), (0, 0)))
    z, ky, kx = (a.reshape(-1) for a in np.meshgrid(range(how.span), range(kh), range(kw), indexing="ij"))
    rows = (job.band.conv_first + np.arange(oh))[:, None] * sy + ky
    columns = np.arange(ow)[:, None] * sx + kx
    # (groups, images, OH, OW, steps, VEC)
    chosen = slice(job.first_group, job.first_group + job.groups)
    planes = [first + z for first in how.first[chosen]]
    patches = np.stack([features[:, here, rows[:, None, :], columns[None, :, :]] for here in planes])

    groups = job.groups
    taps = pack_weights(weight, layer, config)[chosen].reshape(groups, steps, lanes, vec)
    # A weight that the layer has is one that counts, whatever its value.
    read = pack_weights(np.ones(layer.weight_shape, np.int8), layer, config)[chosen].any(axis=4)
    read = read.reshape(groups, 1, 1, 1, steps, vec)
    stored = _by_lane(bias, len(how.first), lanes)[chosen]
    pipecnn = config.arithmetic == "pipecnn"
    start = np.zeros_like(stored) if pipecnn else stored
    events = unit.mac_events[unit.mac_events["job"] == number]
    if banks:
        acc = _stepwise(patches, taps, start, events, banks)
    else:
        sums = np.einsum("gnyxsv,gslv->gnyxsl", patches.astype(np.int32), taps.astype(np.int32), dtype=np.int64)
        acc = np.cumsum(sums, axis=4) + start.reshape(groups, 1, 1, 1, 1, lanes)
        acc = wrap(acc).astype(np.int64).reshape(-1, lanes)
        for event in events:
            slot, lane = int(event["slot"]), int(event["lane"])
            before = int(acc[slot, lane])
            change = int(wrap(np.array(before ^ (1 << int(event["bit"])), np.int64))) - before
            rest = slice(slot, (slot // steps + 1) * steps)
            acc[rest, lane] = wrap(acc[rest, lane] + change)

    final = acc.reshape(groups, job.images, oh, ow, steps, lanes)[..., -1, :]
    s = _by_lane(shift, len(how.first), lanes)[chosen].reshape(groups, 1, 1, 1, lanes)
    half = np.where(s > 0, np.int64(1) << np.maximum(s - 1, 0), 0)
    value = (final + half) >> s
    if pipecnn:
        wrapped = (value + stored.reshape(s.shape) + 128) % 256 - 128
        value = np.where(value > 127, 127, np.where(value < -128, -128, wrapped))
    conv = np.clip(value, 0 if layer.relu else -128, layer.upper).astype(np.int8)
    out = conv
    if layer.pool is not None:
        nchw = conv.transpose(0, 1, 4, 2, 3).reshape(groups * job.images, lanes, oh, ow)
        pooled = max_pool(nchw, layer.pool)
        out = pooled.transpose(0, 2, 3, 1)[:, : job.band.out_rows]
    flat = np.ascontiguousarray(out).reshape(-1, lanes).copy()
    for event in unit.feature_events[unit.feature_events["job"] == number]:
        flat.view(np.uint8)[int(event["slot"]), int(event["lane"])] ^= np.uint8(1 << int(event["bit"]))

    shape = (groups, job.images, oh, ow, steps)
    return Expected(
        layer=layer,
        job=job,
        loaded=loaded,
        features=patches.reshape(-1, vec),
        read=np.broadcast_to(read, patches.shape).reshape(-1, vec),
        weights=np.broadcast_to(taps[:, None, None, None], (*shape, lanes, vec)).reshape(-1, lanes, vec),
        acc=acc.astype(np.int32),
        requant=np.ascontiguousarray(conv).reshape(-1, lanes),
        pool=flat,
        first_group=job.first_group,
        groups=groups,
        steps=steps,
    )


def _stepwise(
    patches: Int8, taps: Int8, start: npt.NDArray[np.int64], events: Records, banks: Mapping[str, BankMasks]
) -> npt.NDArray[np.int64]:
    """Accumulators after every step with late or stuck bits, shape (steps of the job, LANES), in job order.

    Parameters
    ----------
    patches : int8 array, shape (groups, images, OH, OW, steps, VEC)
    taps : int8 array, shape (groups, steps, LANES, VEC)
    start : int array, shape (groups, LANES)
    events : records of `hw.events.DTYPE`
    """
    groups, images, oh, ow, steps, vec = patches.shape
    lanes = taps.shape[2]
    flips = np.zeros((groups, images, oh, ow, steps, lanes), np.uint32)
    np.bitwise_xor.at(
        flips.reshape(-1, lanes), (events["slot"], events["lane"]), np.uint32(1) << events["bit"].astype(np.uint32)
    )

    def operands(pixel: int, step: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.uint32]]:
        features = patches[:, :, :, pixel, step].reshape(groups, -1, vec).transpose(1, 0, 2)
        masks = flips[:, :, :, pixel, step].reshape(groups, -1, lanes).transpose(1, 0, 2).reshape(-1, groups * lanes)
        weights = taps[:, step].reshape(groups * lanes, vec)
        return np.repeat(features, lanes, axis=1).astype(np.int32), weights.astype(np.int32), masks

    lane = np.tile(np.arange(lanes), groups)
    acc = np.empty(flips.shape, np.int64)
    first = wrap(start.reshape(-1))
    for pixel, step, after in stepwise.run(banks, lane, first, images * oh, ow, steps, operands):
        values = after.view(np.int32).reshape(images, oh, groups, lanes)
        acc[:, :, :, pixel, step] = values.transpose(2, 0, 1, 3)
    return acc.reshape(-1, lanes)


def _by_lane(values: npt.NDArray[np.integer], groups: int, lanes: int) -> npt.NDArray[np.int64]:
    """One value per output channel, as output groups, zeros behind the last; shape (groups, lanes)."""
    spread = np.zeros(groups * lanes, np.int64)
    spread[: len(values)] = values
    return spread.reshape(groups, lanes)
