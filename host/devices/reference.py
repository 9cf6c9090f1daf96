"""The reference device: plain, exact, layer by layer on its memory image; the oracle for all others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from host.devices import stepwise
from host.devices.checks import check_launch, check_range
from host.devices.device import Bytes, Device, DeviceError, Int8, LaunchReport
from host.faults.plan import FaultPlan
from host.program import arrangement
from host.program.arrangement import arrange_features, arrange_weights, gather, unpack_weights
from host.program.integer import Int32, LayerOutputs, accumulate, finish, wrap
from host.program.layers import Layer
from host.program.program import Program
from host.schedule import memory
from host.schedule.launch import Launch
from host.schedule.tiling import Band, column_axis, whole
from hw import layout, params
from hw.config import Config

CHUNK = 1 << 22
"""Products held at a time while walking the prefixes of faulted outputs."""


class ReferenceDevice(Device):
    """Computes what the accelerator must, with faults, in numpy and torch.

    Parameters
    ----------
    config : Config
        The accelerator it stands for.
    memory_bytes : int
        Size of its memory; only touched pages take room.
    units : int
        Compute units; changes how a batch is scheduled, not the results.
    """

    name = "reference"
    knows_conditions = True

    def __init__(self, config: Config | None = None, *, memory_bytes: int = 1 << 28, units: int = 1) -> None:
        self.config = config or Config()
        self.memory_bytes = memory_bytes
        self.units = units
        self._memory = np.zeros(memory_bytes, np.uint8)
        self._closed = False

    def write(self, address: int, array: npt.NDArray) -> None:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._check(address, len(raw))
        self._memory[address : address + len(raw)] = raw

    def read(self, address: int, nbytes: int) -> Bytes:
        self._check(address, nbytes)
        return self._memory[address : address + nbytes].copy()

    def _check(self, address: int, nbytes: int) -> None:
        if self._closed:
            raise DeviceError(f"this {self.name} device is closed; make a new one")
        check_range(self, address, nbytes)

    def close(self) -> None:
        self._closed = True
        self._memory = np.zeros(0, np.uint8)

    def launch(self, launch: Launch) -> LaunchReport:
        check_launch(self, launch)
        tensors: dict[str, Int8] = {}
        for name, channels in launch.inputs.items():
            tensors[name] = layout.recover_features(self._tensor(launch, memory.input_name(name)), channels)
        for position in launch.positions:
            layer = launch.program.layers[position]
            x = gather(tensors, layer)
            weight, bias, shift = self._stored_weights(launch, layer)
            added = None
            if self.config.arithmetic == "pipecnn":
                bias, added = np.zeros_like(bias), bias
            faults = None if launch.plan is None else self._faults(launch, position, "mac")
            m, channels = layer.out_channels, layer.out_channels
            if faults is not None and faults.conditions is not None and faults.conditions.stuck:
                # Channels that only fill up a word of memory are zero, unless a bit of their lane is stuck.
                channels = layout.ceil_div(m, self.config.vec) * self.config.vec
            bands = [
                (
                    columns,
                    finish(acc[:, :m], layer, shift, added),
                    finish(acc[:, m:], layer, np.zeros(channels - m, int)),
                )
                for columns, acc in band_accumulators(x, weight, bias, layer, faults, self.config, channels)
            ]
            conv, out = joined([(columns, made) for columns, made, _ in bands], layer)
            filling = joined([(columns, filled) for columns, _, filled in bands], layer)
            if launch.plan is not None:
                # Without pooling there is one tensor, and it is hit as it leaves.
                out = flip(out, self._faults(launch, position, "feature"))
                conv = conv if memory.conv_is_separate(layer) else out
            for name, tensor in ((memory.conv_name(layer.name), conv), (memory.out_name(layer.name), out)):
                if name in launch.written:
                    behind = filling.conv if name == memory.conv_name(layer.name) else filling.out
                    stored = np.concatenate([tensor, behind], axis=1) if channels > m else tensor
                    self.write(launch.memory[name].address, layout.reorder_features(stored, self.config.vec))
            tensors[layer.name] = out
        return LaunchReport(faults_applied=launch.faults)

    def _tensor(self, launch: Launch, name: str) -> Int8:
        region = launch.memory[name]
        return self.read(region.address, region.nbytes).view(np.int8).reshape(region.shape)

    def _stored_weights(self, launch: Launch, layer: Layer) -> tuple[Int8, Int32, npt.NDArray[np.integer]]:
        m = layer.out_channels
        weight = unpack_weights(self._tensor(launch, memory.weights_name(layer.name)), layer, self.config)
        region = launch.memory[memory.params_name(layer.name)]
        records = self.read(region.address, region.nbytes).view(params.DTYPE)[:m]
        return weight, records["bias"].copy(), records["shift"] & params.MAX_SHIFT

    @staticmethod
    def _faults(launch: Launch, position: int, site: str) -> FaultPlan:
        """A layer's flips, with images counted within the launch."""
        assert launch.plan is not None
        part = launch.plan.images(launch.first_image, launch.batch).at(position, site)
        return part.counted_from(launch.first_image)


def joined(bands: list[tuple[Band, LayerOutputs]], layer: Layer) -> LayerOutputs:
    """The outputs of all bands of columns, as they stay in memory: where two wrote, the later one's."""
    if len(bands) == 1:
        return bands[0][1]
    (_, oh, ow), (_, ph, pw) = layer.conv_shape, layer.out_shape
    n, m = bands[0][1].conv.shape[:2]
    conv, out = np.empty((n, m, oh, ow), np.int8), np.empty((n, m, ph, pw), np.int8)
    for columns, made in bands:
        conv[..., columns.conv_first : columns.conv_end] = made.conv
        # The first windows of a band may lack what lies before it: they are another's.
        complete = slice(columns.kept_first - columns.out_first, columns.out_size)
        out[..., columns.kept_first : columns.out_end] = made.out[..., complete]
    return LayerOutputs(conv, out)


def accumulators(
    x: Int8,
    weight: Int8,
    start: Int32,
    layer: Layer,
    faults: FaultPlan | None,
    config: Config,
    channels: int | None = None,
) -> Int32:
    """A layer's accumulators after the last step, int32 of shape (N, M, OH, OW), under a plan.

    What a tiled layer computes twice is what is computed last.
    """
    m, oh, ow = layer.conv_shape
    bands = band_accumulators(x, weight, start, layer, faults, config, channels)
    if len(bands) == 1:
        return bands[0][1]
    acc = np.empty((len(x), channels or m, oh, ow), np.int32)
    for columns, values in bands:
        acc[..., columns.conv_first : columns.conv_end] = values
    return acc


def band_accumulators(
    x: Int8,
    weight: Int8,
    start: Int32,
    layer: Layer,
    faults: FaultPlan | None,
    config: Config,
    channels: int | None = None,
) -> list[tuple[Band, Int32]]:
    """Accumulators after the last step, under a plan, by bands of columns in the order in which they are computed.

    Without conditions, one band with all columns: how a layer is tiled does not matter then.

    Parameters
    ----------
    x : int8 array, shape (N, C, H, W)
    weight : int8 array, shape (M, C / groups, KH, KW)
    start : int32 array, shape (M,)
        The bias, or zeros in PipeCNN's arithmetic.
    faults : FaultPlan or None
        The layer's accumulator flips, images counted within the batch, and the plan's conditions.
    config : Config
    channels : int, optional
        With stuck bits: M, more than the layer has, to see what the lanes behind the last channel compute.
    """
    if faults is not None and faults.conditions is not None:
        banks = faults.conditions.banks(config)
        if banks:
            return stepwise.accumulate(x, weight, start, layer, faults, banks, config, channels)
    acc = accumulate(x, weight, start, layer.stride, layer.padding, layer.groups)
    if faults is not None:
        apply_mac_faults(acc, x, weight, start, layer, faults, config)
    return [(whole(column_axis(layer)), acc)]


def flip(x: Int8, faults: FaultPlan) -> Int8:
    """Copy of int8 tensors, shape (N, ...), with bits flipped at (image, flat index within the image)."""
    if not len(faults):
        return x
    flat = x.copy().reshape(len(x), -1).view(np.uint8)
    np.bitwise_xor.at(flat, (faults.image, faults.output), (1 << faults.bit.astype(np.uint8)).astype(np.uint8))
    return flat.view(np.int8).reshape(x.shape)


def stored_input(program: Program, folded: Int8, plan: FaultPlan | None, first_image: int) -> Int8:
    """The network's input as every layer that reads it finds it: with the plan's flips in its stored bits.

    The bits are those that the first layer's launch reads from the accelerator's memory. If that layer runs on the CPU,
    the input is not stored there and has no faults; else whatever reads the input, on the CPU too, reads the same bits.

    Parameters
    ----------
    program : Program
    folded : int8 array, shape (N, C, H, W)
        Fault-free (`Program.fold_input`).
    plan : FaultPlan or None
        Image `first_image + i` of the plan is image i.
    first_image : int
    """
    if plan is None or program.layers[0].placement == "cpu":
        return folded
    return flip(folded, plan.at(0, "input").counted_from(first_image))


def apply_mac_faults(
    acc: Int32, x: Int8, weight: Int8, bias: Int32, layer: Layer, faults: FaultPlan, config: Config
) -> None:
    """Change final accumulators, in place, to what they are when bits of the accumulator flip after given steps.

    Each faulted output is walked: with `p` the fault-free prefix sum after a step and `d` the error carried so far, a
    flip mask `b` turns `v = p + d` into `v ^ b`, so the error becomes `d + (v ^ b) - v`; what is added later is not
    affected.

    Parameters
    ----------
    acc : int32 array, shape (N, M, OH, OW)
        Fault-free.
    x : int8 array, shape (N, C, H, W)
    weight : int8 array, shape (M, C, KH, KW)
    bias : int32 array, shape (M,)
    faults : FaultPlan
        The layer's accumulator flips, images counted within the batch.
    config : Config
        The accelerator; its lanes and channels per step decide the order of the sum.
    """
    if not len(faults):
        return
    n, m, oh, ow = acc.shape
    # One word an output, one mask a (word, step).
    word = faults.image * (m * oh * ow) + faults.output
    steps = arrangement.steps(layer, config)
    key, place = np.unique(word * steps + faults.step, return_inverse=True)
    mask = np.zeros(len(key), np.uint32)
    np.bitwise_xor.at(mask, place, np.uint32(1) << faults.bit.astype(np.uint32))
    words, step = np.divmod(key, steps)
    outputs, first, count = np.unique(words, return_index=True, return_counts=True)
    operands = _Operands(x, weight, layer, config)
    delta = np.zeros(len(outputs), np.int64)
    per_chunk = max(1, CHUNK // (steps * config.vec))
    for start in range(0, len(outputs), per_chunk):
        some = slice(start, start + per_chunk)
        prefixes = operands.prefixes(outputs[some], (m, oh, ow), bias)
        at, left, error = first[some], count[some], delta[some]
        for turn in range(int(left.max())):
            live = np.flatnonzero(left > turn)
            event = at[live] + turn
            value = (prefixes[live, step[event]] + error[live]) & 0xFFFFFFFF
            error[live] += (value ^ mask[event]) - value
    flat = acc.reshape(-1)
    flat[outputs] = wrap(flat[outputs].astype(np.int64) + delta)


class _Operands:
    """Gathers the operands of single outputs, step by step."""

    def __init__(self, x: Int8, weight: Int8, layer: Layer, config: Config) -> None:
        (kh, kw), (self.sy, self.sx), (py, px) = layer.kernel, layer.stride, layer.padding
        features = arrange_features(x, layer, config)
        # The zero border reaches as far as any window does.
        _, oh, ow = layer.conv_shape
        below = max(0, (oh - 1) * self.sy + kh - py - x.shape[2])
        right = max(0, (ow - 1) * self.sx + kw - px - x.shape[3])
        self.features = np.pad(features, ((0, 0), (0, 0), (py, below), (px, right), (0, 0)))
        # [M][span][KH][KW][VEC]: steps in their order.
        weights = arrange_weights(weight, layer, config)
        self.weights = weights.reshape(len(weights), -1, config.vec)
        how = arrangement.arrange(layer, config)
        self.first = np.repeat(np.asarray(how.first), config.lanes)
        z, ky, kx = np.meshgrid(np.arange(how.span), np.arange(kh), np.arange(kw), indexing="ij")
        self.z, self.ky, self.kx = z.reshape(-1), ky.reshape(-1), kx.reshape(-1)

    def gather(
        self, outputs: npt.NDArray[np.int64], shape: tuple[int, int, int]
    ) -> tuple[Int8, Int8, npt.NDArray[np.int64]]:
        """Features and weights, int8 of shape (len(outputs), steps, VEC), and channels, of flat NCHW outputs."""
        image, channel, y, x = np.unravel_index(outputs, (len(self.features), *shape))
        rows = y[:, None] * self.sy + self.ky
        columns = x[:, None] * self.sx + self.kx
        return (
            self.features[image[:, None], self.first[channel][:, None] + self.z, rows, columns],
            self.weights[channel],
            channel,
        )

    def prefixes(
        self, outputs: npt.NDArray[np.int64], shape: tuple[int, int, int], bias: Int32
    ) -> npt.NDArray[np.int64]:
        """Accumulators after every step, not yet wrapped, shape (len(outputs), steps)."""
        features, weights, channel = self.gather(outputs, shape)
        products = np.einsum("osv,osv->os", features, weights, dtype=np.int64, casting="safe")
        return np.cumsum(products, axis=1) + bias[channel].astype(np.int64)[:, None]
