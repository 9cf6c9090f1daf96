"""The compiler reads networks in every common spelling, quantises them well, and says what it cannot do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from host.compiler.compile import compile as compile_network
from host.compiler.limits import CompileError
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.models import lenet5
from host.program.arrangement import steps
from host.program.fold import fold_columns, fold_features, fold_weights, folded, unfold_weights, worth_folding
from host.program.integer import accumulate
from host.program.layers import Fold, Pool
from host.program.program import Program, ProgramError
from host.program.quantisation import best_frac, largest_safe_frac, quantise
from host.verification.cases import CONFIGS
from hw.config import Config

CONFIG = Config()


def run(program: Program, x: torch.Tensor) -> torch.Tensor:
    """The program's output on the reference device, dequantised, shape (N, M)."""
    device = ReferenceDevice(program.config, memory_bytes=1 << 24)
    out = Runtime(program, device).forward(program.quantise_input(x)).out[program.names[-1]]
    return torch.from_numpy(np.ldexp(out.astype(np.float32), -program.out_frac))


class Functional(nn.Module):
    """Everything spelt with functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.conv(x).relu(), 2)
        x = F.dropout(x, 0.5, self.training)
        return torch.relu(self.fc(x.view(x.size(0), -1)))


class Reshaping(Functional):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(F.relu(self.conv(x)), kernel_size=2, stride=2)
        return F.relu(self.fc(torch.flatten(x, start_dim=1)))


class Methods(Functional):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.max_pool2d(self.conv(x), (2, 2)).relu().reshape(-1, 128)).relu()


class Deep(nn.Module):
    """Nested modules, batch norms, ReLU after pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding="same", bias=False), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.ReLU(),
            nn.Identity(), nn.Conv2d(8, 6, 3, stride=2), nn.BatchNorm2d(6),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(6, 7), nn.BatchNorm1d(7), nn.ReLU(inplace=True), nn.Dropout())
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
                module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


@pytest.mark.parametrize("make", [Functional, Reshaping, Methods, Deep])
@pytest.mark.parametrize("per_channel", [False, True])
def test_integers_follow_the_float_network(make: Callable[[], nn.Module], per_channel: bool) -> None:
    torch.manual_seed(1)
    net, x = make().eval(), torch.rand(32, 3, 8, 8)
    program = compile_network(net, CONFIG, calibrate=x, per_channel=per_channel)
    with torch.no_grad():
        wanted = net(x)
    found = run(program, x).reshape(wanted.shape)
    # A few units in the last place of an output that uses most of int8.
    assert float((found - wanted).abs().max()) < 6 * 2.0**-program.out_frac


def test_layers_have_their_modules_names_and_batch_norms_disappear() -> None:
    program = compile_network(Deep(), CONFIG, calibrate=torch.rand(4, 3, 8, 8))
    assert program.names == ("features.0", "features.5", "head.1")
    first, second, third = program.layers
    assert (first.relu, first.pool) == (True, Pool(2, 2))
    assert (second.relu, second.pool, third.relu) == (False, None, True)
    assert program.modules["head.1"] == "head.1"


def test_a_linear_layer_is_a_convolution_over_its_whole_input() -> None:
    program = compile_network(lenet5(), CONFIG, calibrate=torch.rand(4, 1, 28, 28))
    fc1 = program.layer("fc1")
    assert (fc1.in_shape, fc1.kernel, fc1.conv_shape) == ((16, 5, 5), (5, 5), (120, 1, 1))


def test_per_channel_fractions_are_no_worse() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1))
    with torch.no_grad():
        net[0].weight *= torch.logspace(-2, 0, 16).reshape(-1, 1, 1, 1)
    x = torch.rand(16, 8, 8, 8)
    with torch.no_grad():
        wanted = net(x)
    errors = [
        float(((run(compile_network(net, CONFIG, calibrate=x, per_channel=p), x) - wanted) ** 2).mean())
        for p in (False, True)
    ]
    assert errors[1] <= errors[0]


# -- fractions


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-6, 1e6), st.integers(0, 2**31))
def test_the_chosen_fraction_has_the_least_squared_error(scale: float, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal(500) * scale
    chosen = best_frac(x)
    assert chosen is not None

    def error(frac: int) -> float:
        return float(np.sum((np.ldexp(quantise(x, frac).astype(float), -frac) - x) ** 2))

    assert error(chosen) <= min(error(frac) for frac in range(chosen - 6, chosen + 4))


def test_nothing_saturates_at_the_largest_safe_fraction() -> None:
    for peak in (0.01, 0.99, 1.0, 127.0, 127.4, 300.0):
        frac = largest_safe_frac(np.array([peak, -peak]))
        assert frac is not None
        assert np.ldexp(peak, frac) <= 127.5 < np.ldexp(peak, frac + 1)
    assert best_frac(np.zeros(3)) is None


def test_quantisation_rounds_ties_up_and_saturates() -> None:
    assert quantise(np.array([0.5, -0.5, 1.5, 2.5, 200.0, -200.0, -128.5]), 0).tolist() == [1, 0, 2, 3, 127, -128, -128]


@pytest.mark.parametrize(
    ("weight", "bias", "image"),
    [(1e-9, 0.0, 1.0), (0.0, 0.0, 1.0), (1e9, 0.0, 1.0), (1.0, 1e8, 1.0), (1e-3, 1e5, 1e-3), (1.0, 1.0, 0.0),
     (1e-6, 1.0, 1e6), (1e6, 1.0, 1e-6)],
)  # fmt: skip
@pytest.mark.parametrize("per_channel", [False, True])
def test_fractions_stay_legal_at_extreme_scales(weight: float, bias: float, image: float, per_channel: bool) -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.randn_like(net[0].weight) * weight)
        net[0].weight[1] *= 1e-4
        net[0].bias.fill_(bias)
    program = compile_network(net, CONFIG, calibrate=torch.rand(4, 2, 6, 6) * image, per_channel=per_channel)
    assert all(0 <= shift <= 31 for layer in program.layers for shift in layer.shift)


# -- folding


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 7), st.integers(1, 12), st.integers(1, 12), st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(0, 3), st.integers(0, 3), st.integers(0, 2**31),
)  # fmt: skip
def test_folding_changes_no_sum(
    c: int, h: int, w: int, kernel: tuple[int, int], stride: tuple[int, int], py: int, px: int, seed: int
) -> None:
    kernel = (min(kernel[0], h), min(kernel[1], w))
    py, px = min(py, kernel[0] - 1), min(px, kernel[1] - 1)
    rng = np.random.default_rng(seed)
    x = rng.integers(-128, 128, (2, c, h, w)).astype(np.int8)
    weight = rng.integers(-128, 128, (3, c, *kernel)).astype(np.int8)
    bias = rng.integers(-1000, 1000, 3).astype(np.int32)
    how = Fold(c, w, kernel[1], stride[1], px)
    plain = accumulate(x, weight, bias, stride, (py, px))
    tight = accumulate(fold_features(x, how), fold_weights(weight), bias, (stride[0], 1), (py, 0))
    assert np.array_equal(plain, tight)
    assert np.array_equal(unfold_weights(fold_weights(weight), how), weight)
    assert fold_columns(how) == plain.shape[3]


def test_folding_follows_its_definition() -> None:
    x = np.arange(2 * 3 * 5).reshape(1, 2, 3, 5).astype(np.int8)
    how = Fold(channels=2, width=5, kernel_w=3, stride_x=2, pad_x=1)
    y = fold_features(x, how)
    for kx in range(3):
        for c in range(2):
            for row in range(3):
                for column in range(fold_columns(how)):
                    at = column * 2 + kx - 1
                    assert y[0, kx * 2 + c, row, column] == (x[0, c, row, at] if 0 <= at < 5 else 0)


def test_only_layers_that_gain_are_folded() -> None:
    assert worth_folding(1, 5, 8)
    assert worth_folding(3, 11, 16)
    assert not worth_folding(8, 5, 8)
    assert not worth_folding(3, 1, 8)
    assert not worth_folding(7, 2, 8)
    images = torch.rand(4, 1, 28, 28)
    tight, plain = (compile_network(lenet5(), CONFIG, calibrate=images, fold=f) for f in (True, False))
    assert (steps(tight.layers[0], CONFIG), steps(plain.layers[0], CONFIG)) == (5, 25)
    assert plain.layers[0].fold is None


def test_folded_and_plain_networks_give_the_same_bytes() -> None:
    net, images = lenet5(), torch.rand(4, 1, 28, 28)
    tight, plain = (compile_network(net, CONFIG, calibrate=images, fold=f) for f in (True, False))
    assert torch.equal(run(tight, images), run(plain, images))


def test_folding_a_folded_layer_again_changes_nothing() -> None:
    program = compile_network(lenet5(), CONFIG, calibrate=torch.rand(4, 1, 28, 28))
    assert folded(program.layers[0], 8) == program.layers[0]


# -- what cannot be done


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if x.sum() > 0 else x


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.conv(x))


class Unfinished(Twice):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        y = self.conv(x)
        return y, x


def conv(**options: object) -> nn.Conv2d:
    return nn.Conv2d(3, 6, 3, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(conv(), nn.Sigmoid()), r"layer '1 \(Sigmoid\)': this operator is not supported; use Conv2d"),
        (nn.Sequential(conv(), nn.Softmax(1)), "Softmax"),
        (nn.Sequential(conv(dilation=2)), "dilation"),
        (nn.Sequential(conv(padding=1, padding_mode="reflect")), "padding_mode='reflect'"),
        (nn.Sequential(conv(), nn.MaxPool2d((2, 1))), "not square"),
        (nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(6)), "batch norm that does not directly follow"),
        (nn.Sequential(nn.Flatten()), "no convolution or linear layer"),
        (nn.Sequential(conv(), nn.Linear(6, 4)), "unflattened image"),
        (Branching(), "its forward cannot be traced"),
        (Twice(), "the same module is called twice|does not take images"),
        (Unfinished(), "its output is not one tensor"),
    ],
)
def test_what_is_not_supported_is_named_with_reason_and_remedy(net: nn.Module, message: str) -> None:
    with pytest.raises(CompileError, match=message) as caught:
        compile_network(net, CONFIG, calibrate=torch.rand(2, 3, 8, 8))
    assert caught.value.reason
    assert caught.value.remedy
    assert str(caught.value).endswith(caught.value.remedy)


def test_wrong_image_size_names_the_layer_where_it_shows() -> None:
    with pytest.raises(CompileError, match=r"layer 'fc1': the network does not take images of shape \(1, 32, 32\)"):
        compile_network(lenet5(), CONFIG, calibrate=torch.rand(2, 1, 32, 32))
    with pytest.raises(CompileError, match="layer 'conv1': the network does not take images"):
        compile_network(lenet5(), CONFIG, calibrate=torch.rand(2, 3, 28, 28))


def test_unusable_calibration_is_refused() -> None:
    with pytest.raises(ProgramError, match="the calibration set is empty"):
        compile_network(lenet5(), CONFIG, calibrate=torch.rand(0, 1, 28, 28))
    with pytest.raises(ProgramError, match=r"shape \(N, C, H, W\)"):
        compile_network(lenet5(), CONFIG, calibrate=torch.rand(28, 28))
    with pytest.raises(ProgramError, match="calibration images hold NaN"):
        compile_network(lenet5(), CONFIG, calibrate=torch.full((1, 1, 28, 28), float("nan")))


def test_nan_in_weights_is_refused_by_name() -> None:
    net = lenet5()
    with torch.no_grad():
        net.fc2.weight[0, 0] = float("nan")
    with pytest.raises(ProgramError, match="layer 'fc2': its weights or bias hold NaN"):
        compile_network(net, CONFIG, calibrate=torch.rand(2, 1, 28, 28))


@pytest.mark.parametrize(
    ("net", "config", "message"),
    [
        (nn.Conv2d(3, 4, 3, padding=17), CONFIG, "padding 17x17 is not smaller than the kernel 3x3"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(4)), CONFIG, "pooling window 4"),
        (nn.Conv2d(3, 4, 3, padding=3), CONFIG, "padding 3x3 is not smaller than the kernel 3x3"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2, padding=1)), Config(pool_columns=1), "pool_columns=2 or"),
    ],
)
def test_layers_that_do_not_fit_are_refused_or_run_on_the_cpu(net: nn.Module, config: Config, message: str) -> None:
    torch.manual_seed(0)
    wrapped = net if isinstance(net, nn.Sequential) else nn.Sequential(net)
    first = next(module for module in wrapped if isinstance(module, nn.Conv2d))
    x = torch.rand(3, first.in_channels, 18, 18)
    with pytest.raises(CompileError, match=message) as caught:
        compile_network(wrapped, config, calibrate=x, fold=False)
    assert caught.value.layer == "0"
    assert "CPU" in caught.value.remedy
    program = compile_network(wrapped, config, calibrate=x, fold=False, fallback="cpu")
    assert program.layers[0].placement == "cpu"
    with torch.no_grad():
        # The mean: the rarest values may be clipped, since that is what least squared error asks for.
        assert float((run(program, x) - wrapped(x)).abs().mean()) < 2.0**-program.out_frac


def test_an_unknown_fallback_is_refused() -> None:
    with pytest.raises(ValueError, match="fallback"):
        compile_network(lenet5(), CONFIG, calibrate=torch.rand(2, 1, 28, 28), fallback="gpu")  # type: ignore[arg-type]


def test_kernels_up_to_11_and_stride_heavy_first_layers_compile() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2))
    x = torch.rand(4, 3, 35, 35)
    program = compile_network(net, CONFIG, calibrate=x)
    assert program.layers[0].fold is not None
    with torch.no_grad():
        assert float((run(program, x) - net(x)).abs().max()) < 4 * 2.0**-program.out_frac


@pytest.mark.parametrize("number", [at for at, c in enumerate(CONFIGS) if c.arithmetic == CONFIG.arithmetic])
def test_lenet_gives_the_same_integers_on_every_accelerator(number: int) -> None:
    torch.manual_seed(0)
    net, x = lenet5().eval(), torch.rand(3, 1, 28, 28)
    found = [run(compile_network(net, c, calibrate=x, fallback="cpu"), x) for c in (CONFIG, CONFIGS[number])]
    assert torch.equal(found[0], found[1])
