"""AlexNet with local response normalisation at full size: the device's bytes against an independent computation.

Convolutions are summed by ONNX Runtime's ConvInteger, pooled by its MaxPool; requantisation is done in exact rational
arithmetic on those sums; normalisation follows its definition, channel by channel, in float64.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from onnx import TensorProto, helper

from host.compiler.compile import compile as compile_network
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.models import alexnet
from host.program.layers import INPUT, Layer
from host.program.lrn import FACTOR_FRAC
from hw.config import Config
from tests.host.compiler.test_reference_onnx import onnx_accumulate, run

Int8 = npt.NDArray[np.int8]
CONFIG = Config(feature_bytes=1 << 19, weight_bytes=1 << 19, pool_columns=128)


def requantised(sums: npt.NDArray[np.int64], layer: Layer) -> Int8:
    """`floor(sum / 2**shift + 1/2)`, saturated: int64 division of twice the sum by twice the power, rounding down."""
    shift = np.asarray(layer.shift)[:, None, None]
    rounded = np.where(shift > 0, (2 * sums + (1 << shift)) // (2 << shift), sums)
    return np.clip(rounded, 0 if layer.relu else -128, layer.upper).astype(np.int8)


def normalised(x: Int8, layer: Layer) -> tuple[Int8, npt.NDArray[np.float64]]:
    """Normalisation by its definition, one channel after the other, and its exact real values before rounding."""
    how = layer.normalisation
    assert how is not None
    real = x.astype(np.float64) * 2.0**-layer.in_frac
    out = np.empty_like(real)
    exact = np.empty_like(real)
    half = how.size // 2
    for channel in range(real.shape[1]):
        low, high = max(0, channel - half), min(real.shape[1], channel - half + how.size)
        total = (real[:, low:high] ** 2).sum(1)
        power = (how.k + how.alpha / how.size * total) ** -how.beta
        factor = np.floor(power * 2.0**FACTOR_FRAC + 0.5) * 2.0**-FACTOR_FRAC
        out[:, channel], exact[:, channel] = real[:, channel] * factor, real[:, channel] * power
    scaled = np.floor(out * 2.0**layer.out_frac + 0.5)
    return np.clip(scaled, 0 if layer.relu else -128, layer.upper).astype(np.int8), exact


def pooled(x: Int8, layer: Layer) -> Int8:
    if layer.pool is None:
        return x
    k, s, p = layer.pool.kernel, layer.pool.stride, layer.pool.pad
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[k] * 2, strides=[s] * 2, pads=[p] * 4)
    return np.asarray(run([node], x, {}, TensorProto.INT8), np.int8)


@pytest.mark.slow
def test_alexnet_with_normalisation_equals_an_independent_computation_at_full_size() -> None:
    torch.manual_seed(3)
    net = alexnet(lrn=True).eval()
    # Constants of Caffe's that bite at the size of random weights' activations, too.
    for module in net.modules():
        if isinstance(module, torch.nn.LocalResponseNorm):
            module.alpha = 2.0
    images = torch.randn(2, 3, 224, 224)
    program = compile_network(net, CONFIG, calibrate=images, fallback="cpu")
    kinds = [(layer.operator, layer.placement) for layer in program.layers]
    assert kinds.count(("lrn", "cpu")) == 2
    assert all(placement == ("cpu" if operator == "lrn" else "accelerator") for operator, placement in kinds)
    x = program.quantise_input(images[:1])
    with ReferenceDevice(CONFIG, memory_bytes=1 << 29) as device:
        found = Runtime(program, device).forward(x)

    values: dict[str, Int8] = {INPUT: program.fold_input(x)}
    changed = []
    for layer in program.layers:
        # One tensor after the other: nothing in this network reads two.
        (source,) = layer.sources
        taken = values[source].reshape(1, *layer.in_shape)
        if layer.operator == "lrn":
            wanted, exact = normalised(taken, layer)
            # And the integers are the real value, rounded, to half a unit and the factor's own rounding.
            unit = 2.0**-layer.out_frac
            inside = np.abs(exact) < 126 * unit
            assert np.abs(wanted * unit - exact)[inside].max() <= 0.5001 * unit
            changed.append(float((np.abs(exact - taken * 2.0**-layer.in_frac) > unit).mean()))
        else:
            weight, bias = program.weights[layer.name], program.biases[layer.name]
            sums = onnx_accumulate(taken, weight, layer.stride, layer.padding, layer.groups).astype(np.int64)
            wanted = requantised(sums + bias.astype(np.int64)[:, None, None], layer)
        assert np.array_equal(found.conv[layer.name], wanted), layer.name
        values[layer.name] = pooled(wanted, layer)
        assert np.array_equal(found.out[layer.name], values[layer.name]), layer.name
        assert np.unique(values[layer.name]).size > 8, layer.name
    # The normalisation was no mere copy.
    assert min(changed) > 0.01
    assert found.out[program.names[-1]].shape == (1, 1000, 1, 1)
