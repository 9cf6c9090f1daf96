"""No 32-bit sum of anything that compiles wraps without faults: whatever the input, and after training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from host.compiler.compile import compile as compile_network
from host.compiler.limits import CompileError
from host.devices.reference import ReferenceDevice
from host.program import sums
from host.program.integer import accumulate
from host.program.program import Program, ProgramError
from host.training.twin import attach
from hw.config import Config

CONFIG = Config(lanes=4, vec=4, feature_bytes=1 << 20, weight_bytes=1 << 20)
PIPECNN = Config(lanes=4, vec=4, feature_bytes=1 << 20, weight_bytes=1 << 20, arithmetic="pipecnn")


def filled(layer: nn.Conv2d | nn.Linear, weight: float, bias: float | list[float] = 0.0) -> nn.Conv2d | nn.Linear:
    with torch.no_grad():
        layer.weight.fill_(weight)
        if layer.bias is not None:
            layer.bias.copy_(torch.as_tensor(bias))
    return layer


class Mean(nn.Module):
    """The mean of a whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = filled(nn.Conv2d(1, 1, 1), 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


def one_channel() -> nn.Module:
    """Per channel, only one has a large bias on small weights, and one no weights at all."""
    net = nn.Conv2d(1, 3, 3)
    with torch.no_grad():
        net.weight[1] *= 1e-9
        net.weight[2] = 0.0
        net.bias.copy_(torch.tensor([0.1, 3e3, -2e5]))
    return nn.Sequential(net)


BRIGHT = torch.full((2, 1, 64, 64), 1.0) - torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.05
NETS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "large FC": (
        lambda: nn.Sequential(nn.Flatten(), filled(nn.Linear(3 * 224 * 224, 2), 1.4e-5)),
        torch.full((2, 3, 224, 224), 0.99),
    ),
    "bias fills int32": (lambda: nn.Sequential(nn.Flatten(), filled(nn.Linear(4096, 1), 4e-5, 7.99)), BRIGHT),
    "negative bias": (lambda: nn.Sequential(nn.Flatten(), filled(nn.Linear(4096, 1), -4e-5, -7.99)), BRIGHT),
    "zero weights": (lambda: nn.Sequential(filled(nn.Conv2d(1, 2, 1), 0.0, [5.0, -3.0])), BRIGHT * 1e-6),
    "tiny weights": (lambda: nn.Sequential(filled(nn.Conv2d(1, 2, 1), 1e-12, [5.0, -3.0])), BRIGHT * 1e-6),
    "one channel": (one_channel, BRIGHT[:, :, :8, :8] * 1e-3),
    "mean": (Mean, torch.full((1, 1, 600, 600), 0.98)),
}


def worst(program: Program, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Accumulators of a layer on the inputs that drive each of its outputs furthest, in 32 bits and in many."""
    layer, weight = program.layer(name), program.weights[name]
    bias = program.biases[name] * (program.config.arithmetic != "pipecnn")
    shape = (1, *layer.in_shape) if layer.groups == 1 else (1, weight.shape[1], *layer.in_shape[1:])
    kernel = weight.shape[2:]
    x = np.zeros((2 * len(weight), shape[1], *kernel), np.int8)
    for m, row in enumerate(weight):
        x[2 * m] = np.where(row > 0, 127, -128)
        x[2 * m + 1] = np.where(row > 0, -128, 127)
    found = accumulate(x, weight, bias, (1, 1), (0, 0))
    wide = np.tensordot(x.astype(np.int64), weight.astype(np.int64), ((1, 2, 3), (1, 2, 3))) + bias
    return found.reshape(wide.shape).astype(np.int64), wide


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("config", [CONFIG, PIPECNN], ids=["redline", "pipecnn"])
@pytest.mark.parametrize("name", NETS)
def test_the_worst_input_of_every_output_stays_within_32_bits(name: str, config: Config, per_channel: bool) -> None:
    make, x = NETS[name]
    program = compile_network(make(), config, calibrate=x, per_channel=per_channel, fallback="cpu")
    for layer in program.names:
        found, wide = worst(program, layer)
        assert np.array_equal(found, wide)
        assert np.abs(wide).max() <= sums.LIMIT


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_the_twin_follows_the_float_network_where_sums_are_large(name: str, per_channel: bool) -> None:
    make, x = NETS[name]
    torch.manual_seed(2)
    net = make().eval()
    twin = attach(net, ReferenceDevice(CONFIG), calibrate=x, per_channel=per_channel, fallback="cpu").eval()
    with torch.no_grad():
        wanted, found = net(x), twin(x)
    assert float((found - wanted).abs().max()) <= 0.03 * float(wanted.abs().max())


def test_an_average_whose_sums_do_not_fit_is_refused_with_the_layer_and_the_remedy() -> None:
    x = torch.full((1, 1, 3000, 1500), 0.98)
    with pytest.raises(CompileError, match=r"layer 'mean': sums over its window of 3000x1500 .* in two steps"):
        compile_network(Mean(), CONFIG, calibrate=x, fallback="cpu")


@pytest.mark.parametrize("grown", ["bias", "weight"])
def test_training_that_makes_sums_too_large_is_refused_where_weights_are_requantised(grown: str) -> None:
    net = nn.Sequential(nn.Flatten(), filled(nn.Linear(4096, 2), 4e-5, 7.99))
    twin = attach(net, ReferenceDevice(CONFIG), calibrate=BRIGHT)
    twin(BRIGHT)
    with torch.no_grad():
        net[1].bias[1] *= 3.9
        if grown == "bias":
            net[1].bias[1] *= 2
        else:
            net[1].weight[1].fill_(1e-3)
    with pytest.raises(ProgramError, match=r"layer '1': .* at output channel 1 .* attach the network anew"):
        twin(BRIGHT)
    # Anew it is possible.
    again = attach(net, ReferenceDevice(CONFIG), calibrate=BRIGHT).eval()
    assert torch.allclose(again(BRIGHT), net(BRIGHT), rtol=0.03)


def test_there_is_room_for_a_bias_to_double() -> None:
    net = nn.Sequential(nn.Flatten(), filled(nn.Linear(4096, 1), 4e-5, 7.99))
    twin = attach(net, ReferenceDevice(CONFIG), calibrate=BRIGHT)
    with torch.no_grad():
        net[1].bias *= 1.9
    twin(BRIGHT)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"size": 140_000}, "squares of 140000 channels"),
        ({"size": 3, "k": 1e-30, "beta": 5.0}, "its (factors reach|values on the calibration)"),
        ({"size": 3, "k": 1e12}, "its (factors reach|values on the calibration)"),
        ({"size": 3, "k": 1.0, "alpha": 1e30, "beta": -5.0}, "its (factors reach|values on the calibration)"),
    ],
)
def test_normalisation_that_64_bits_do_not_hold_is_refused(how: dict[str, float], message: str) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.LocalResponseNorm(**how))  # type: ignore[arg-type]
    with pytest.raises(CompileError, match=f"layer '1': .*{message}"):
        compile_network(net, CONFIG, calibrate=torch.rand(1, 1, 1, 1), fallback="cpu")


class Sum(nn.Module):
    """An addition of what is large and what is small."""

    def __init__(self, large: float, small: float) -> None:
        super().__init__()
        self.a, self.b = filled(nn.Conv2d(1, 2, 1), large, large), filled(nn.Conv2d(1, 2, 1), small, small)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.a(x) + self.b(x))


@pytest.mark.parametrize("small", [1.0, 1e-3, 1e-9, 0.0])
def test_additions_stay_far_within_32_bits(small: float) -> None:
    program = compile_network(Sum(1e3, small), CONFIG, calibrate=torch.rand(2, 1, 8, 8))
    for name in program.names:
        assert sums.reach(program.weights[name], program.biases[name]).max() < sums.LIMIT


def test_the_reach_is_that_of_python_integers() -> None:
    weight = np.array([[[[-128, 127]]], [[[3, 0]]]], np.int8)
    assert sums.reach(weight, np.array([-5, 7])).tolist() == [128 * 255 + 5, 128 * 3 + 7]
    assert sums.overflowing(weight, np.array([-5, 7], np.int32)) is None
    edge = np.array([0, sums.LIMIT - 1 - 128 * 3], np.int32)
    assert sums.overflowing(weight, edge) is None
    assert sums.overflowing(weight, edge + np.array([0, 2], np.int32)) == (1, sums.LIMIT + 1)
