"""Every kind of kernels gives the contract's integers: checked by the executor, by plain loops, by the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from host.devices.device import Device
from host.devices.emulator import native
from host.devices.emulator.device import EmulatorDevice
from host.devices.emulator.native import Kernels
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.faults.models import SoftErrors
from host.faults.plan import SITES, FaultPlan
from host.program import quantisation
from host.program.arrangement import steps
from host.program.integer import run_layer
from host.program.layers import INPUT, Layer, Pool
from host.program.program import Program
from host.training.autograd import Geometry, Recorded, through_activation
from host.verification.cases import CONFIGS, random_case
from host.verification.verify import make_device, verify
from hw.config import Config
from tests.host.verification import golden

LIBRARY = native.library(native.build())
LEVELS = [name for name in native.available_levels() if native.supported(LIBRARY, name)]
MEMORY = 1 << 24
CONFIG = Config()


@pytest.fixture(scope="module", params=LEVELS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return Kernels(LIBRARY, request.param)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 5, 17]))
    channels = groups * draw(st.integers(1, 40 // groups if groups < 17 else 1))
    outputs = groups * draw(st.integers(1, 150 // groups if groups < 17 else 1))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = (draw(st.integers(0, kernel[0] - 1)), draw(st.integers(0, kernel[1] - 1)))
    size = (draw(st.integers(kernel[0], 9)), draw(st.integers(kernel[1], 9)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    # All activations at fraction 0: the weights' fractions are the shifts.
    shifts = tuple(draw(st.sampled_from([0, 1, 7, 9, 12, 31])) for _ in range(outputs))
    layer = Layer(
        "layer", (INPUT,), (channels, *size), outputs, kernel, stride, padding, draw(st.booleans()), None, 0, shifts, 0,
        groups=groups, upper=draw(st.sampled_from([127, 127, 96, 0])),
    )  # fmt: skip
    _, oh, ow = layer.conv_shape
    if draw(st.booleans()) and min(oh, ow) >= 2:
        pool = Pool(draw(st.integers(2, min(3, oh, ow))), draw(st.integers(1, 3)), draw(st.integers(0, 1)))
        layer = replace(layer, pool=pool)
    return layer


def data(kind: str, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Random, or of random largest values: 16-bit sums would saturate on those."""
    rng = np.random.default_rng(seed)
    if kind == "random":
        return rng.integers(-128, 128, shape).astype(np.int8)
    if kind == "extreme":
        return rng.choice(np.array([-128, 127], np.int8), shape)
    return np.full(shape, -128, np.int8)


KINDS = st.sampled_from(["random", "extreme", "lowest"])


def program_of(layer: Layer, weight: np.ndarray, bias: np.ndarray, config: Config = CONFIG) -> Program:
    return Program(config, (layer,), {"layer": weight}, {"layer": bias}, layer.in_shape, 0)


@settings(deadline=None, max_examples=60)
@given(layer=layers(), x_kind=KINDS, w_kind=KINDS, seed=st.integers(0, 1 << 30), images=st.integers(1, 3))
def test_random_layers_give_the_contracts_integers(
    kernels: Kernels, layer: Layer, x_kind: str, w_kind: str, seed: int, images: int
) -> None:
    x, weight = data(x_kind, seed, (images, *layer.in_shape)), data(w_kind, seed + 1, layer.weight_shape)
    # Biases over all 32 bits: accumulators wrap.
    bias = np.random.default_rng(seed).integers(-(1 << 31), 1 << 31, layer.out_channels).astype(np.int32)
    device = EmulatorDevice(CONFIG, memory_bytes=MEMORY, kernels=kernels)
    found = Runtime(program_of(layer, weight, bias), device).forward(x)
    wanted = run_layer(x, weight, bias, layer)
    assert np.array_equal(found.conv["layer"], wanted.conv)
    assert np.array_equal(found.out["layer"], wanted.out)


@pytest.mark.parametrize("number", range(16))
def test_random_networks_give_what_plain_loops_give(kernels: Kernels, number: int) -> None:
    case = random_case(515, number)
    conv, out = golden.forward(case.program, case.x)
    device = EmulatorDevice(case.program.config, memory_bytes=MEMORY, kernels=kernels)
    found = Runtime(case.program, device).forward(case.x)
    for name in case.program.names:
        assert np.array_equal(found.conv[name], conv[name])
        assert np.array_equal(found.out[name], out[name])


@settings(deadline=None, max_examples=25)
@given(
    layer=layers(),
    seed=st.integers(0, 1 << 30),
    config=st.sampled_from([CONFIG, CONFIGS[0], CONFIGS[4]]),
    dense=st.booleans(),
    events=st.sampled_from([1, 30, 3000]),
)
def test_accumulator_flips_walked_or_step_by_step_give_the_references_bytes(
    kernels: Kernels, layer: Layer, seed: int, config: Config, dense: bool, events: int
) -> None:
    layer = replace(layer, pool=None)
    rng = np.random.default_rng(seed)
    x, weight = data("random", seed, (2, *layer.in_shape)), data("extreme", seed + 1, layer.weight_shape)
    program = program_of(layer, weight, rng.integers(-999, 999, layer.out_channels).astype(np.int32), config)
    plan = FaultPlan.of(
        program.names,
        rng.integers(0, 2, events),
        0,
        SITES.index("mac"),
        rng.integers(0, int(np.prod(layer.conv_shape)), events),
        rng.integers(0, steps(layer, config), events),
        rng.integers(0, 32, events),
    )
    device = EmulatorDevice(config, memory_bytes=MEMORY, kernels=kernels, dense_from=0.0 if dense else 1.0)
    found = Runtime(program, device).forward(x, plan=plan)
    wanted = Runtime(program, ReferenceDevice(config, memory_bytes=MEMORY)).forward(x, plan=plan)
    assert np.array_equal(found.out["layer"], wanted.out["layer"])
    assert found.report.faults_applied == wanted.report.faults_applied


def maker(kernels: Kernels) -> Callable[[str, Config, int], Device]:
    def make(name: str, config: Config, units: int) -> Device:
        if name == "emulator":
            return EmulatorDevice(config, memory_bytes=MEMORY, units=units, kernels=kernels)
        return make_device(name, config, units)

    return make


@pytest.mark.parametrize("overclock", [False, True])
def test_verification_finds_no_difference(kernels: Kernels, overclock: bool) -> None:
    report = verify(("reference", "emulator"), 12, 2_001, make=maker(kernels), overclock=overclock)
    assert report.ok, str(report)
    assert report.faults > 0


@pytest.mark.slow
@pytest.mark.parametrize("overclock", [False, True])
def test_verification_finds_no_difference_in_many_cases(kernels: Kernels, overclock: bool) -> None:
    report = verify(("reference", "emulator"), 300, 2_002, make=maker(kernels), overclock=overclock)
    assert report.ok, str(report)


@pytest.mark.parametrize("writeback", [False, True])
def test_threads_do_not_matter(kernels: Kernels, writeback: bool) -> None:
    case = random_case(516, 3)
    x = np.concatenate([case.x] * 3)
    plan = SoftErrors(1e-3, per="mac").draw(case.program, 0, len(x), 5)
    results = []
    for threads in (1, 2, 5):
        with EmulatorDevice(case.program.config, memory_bytes=MEMORY, kernels=kernels, threads=threads) as device:
            results.append(Runtime(case.program, device).forward(x, writeback=writeback, plan=plan))
    for other in results[1:]:
        for name, tensor in results[0].out.items():
            assert np.array_equal(other.out[name], tensor)


@settings(deadline=None, max_examples=40)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    fracs=st.lists(st.integers(-20, 40), min_size=1, max_size=4),
)
def test_quantising_is_the_contracts(kernels: Kernels, values: list[float], fracs: list[int]) -> None:
    # Ties, and what lies beside them, too.
    ties = np.ldexp(np.arange(-300, 300) / 2, -fracs[0]).astype(np.float32)
    x = np.concatenate(
        [np.float32(values), ties, np.nextafter(ties, np.float32(9)), np.nextafter(ties, np.float32(-9))]
    )
    x = np.tile(x, (len(fracs), 1))
    frac = np.array(fracs)
    assert np.array_equal(kernels.quantise(x, frac), quantisation.quantise(x, frac[:, None]))


@pytest.mark.parametrize("frac", [-120, -30, 0, 7, 60, 120, 149])
def test_floats_are_the_contracts(kernels: Kernels, frac: int) -> None:
    every = np.arange(-128, 128, dtype=np.int8).reshape(4, 64)
    with EmulatorDevice(CONFIG, memory_bytes=MEMORY, kernels=kernels) as device:
        found = device.dequantise(every, frac)
    assert found.dtype == np.float32
    assert np.array_equal(found, ReferenceDevice(CONFIG, memory_bytes=MEMORY).dequantise(every, frac))


@settings(deadline=None, max_examples=40)
@given(fracs=st.lists(st.integers(-30, 40), min_size=1, max_size=9), seed=st.integers(0, 1 << 30))
def test_a_layers_integers_are_the_contracts(kernels: Kernels, fracs: list[int], seed: int) -> None:
    rng, frac = np.random.default_rng(seed), np.array(fracs)
    # Values around the ends of the range, ties among them.
    weight = np.ldexp(rng.integers(-600, 600, (len(fracs), 37)) / 4, -frac[:, None]).astype(np.float32)
    bias = np.ldexp(rng.uniform(-1.5, 1.5, len(fracs)) * 2.0**31, -frac - 3).astype(np.float32)
    found = kernels.quantise_layer(weight, np.ldexp(1.0, frac), bias, np.ldexp(1.0, frac + 3))
    assert found is not None
    assert np.array_equal(found[0], quantisation.quantise(weight, frac[:, None]))
    assert np.array_equal(found[1], quantisation.quantise_bias(bias, frac + 3))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["weight", "bias"])
def test_a_layers_integers_are_refused_where_a_value_is_not_finite(kernels: Kernels, bad: float, where: str) -> None:
    values = {"weight": np.zeros((3, 50), np.float32), "bias": np.zeros(3, np.float32)}
    values[where].reshape(-1)[2] = bad
    assert kernels.quantise_layer(values["weight"], np.ones(3), values["bias"], np.ones(3)) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_quantising_says_what_is_not_finite(kernels: Kernels, bad: float) -> None:
    x = np.zeros((3, 50), np.float32)
    x[1, 17] = bad
    assert kernels.quantise(x, np.zeros(3, int)) is None


@settings(deadline=None, max_examples=40)
@given(
    size=st.tuples(st.integers(3, 9), st.integers(3, 75)),
    kernel=st.integers(2, 3),
    stride=st.integers(1, 3),
    pad=st.integers(0, 1),
    ceil=st.booleans(),
    bounds=st.sampled_from([(0, 127), (-128, 127), (0, 4)]),
    seed=st.integers(0, 1 << 30),
)
def test_going_backwards_through_pooling_gives_the_bits_of_the_trainings_own_way(
    kernels: Kernels,
    size: tuple[int, int],
    kernel: int,
    stride: int,
    pad: int,
    ceil: bool,
    bounds: tuple[int, int],
    seed: int,
) -> None:
    rng, pool = np.random.default_rng(seed), Pool(kernel, stride, pad, ceil)
    # Few different values: many windows hold their largest more than once.
    conv = rng.choice(np.array([-128, -1, 0, 1, 3, 4, 127], np.int8), (2, 3, *size))
    shape = (2, 3, pool.out(size[0]), pool.out(size[1]))
    grad = rng.standard_normal(shape).astype(np.float32)
    low, upper = bounds
    plain = Geometry(False, (1, 1), (0, 0), low == 0, pool, (3, *size), 0, 0, upper=upper)
    recorded = Recorded(conv, conv, np.zeros(shape, np.int8))
    wanted = through_activation(torch.from_numpy(grad), recorded, plain)
    assert np.array_equal(kernels.unpool(conv, grad, pool, low, upper), wanted.numpy())


@pytest.mark.parametrize("low", [0, -128])
def test_going_backwards_where_nothing_was_pooled_gives_the_bits_of_a_product(kernels: Kernels, low: int) -> None:
    values = np.arange(-128, 128, dtype=np.int8).reshape(1, 2, 4, 32)
    grad = np.random.default_rng(1).standard_normal(values.shape).astype(np.float32)
    grad[0, 0, 0, :4] = np.inf, -np.inf, np.nan, -0.0
    plain = Geometry(False, (1, 1), (0, 0), low == 0, None, (2, 4, 32), 0, 0, upper=100)
    wanted = through_activation(torch.from_numpy(grad), Recorded(values, values, values), plain).numpy()
    found = kernels.unpool(values, grad, None, low, 100)
    assert np.isnan(found).any()
    assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32))
