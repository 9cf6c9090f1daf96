"""Random cases for verification: layers, networks, accelerators, operands, batches and fault plans, from a seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from host.compiler.limits import CompileError, check_layer
from host.faults.models import Fault, SoftErrors
from host.faults.plan import SITE_BITS, SITES, FaultPlan, extents
from host.program.arrangement import steps
from host.program.fold import folded
from host.program.layers import INPUT, Layer, Pool
from host.program.program import Program
from hw.config import Config
from hw.layout import ceil_div, output_groups

Int8 = npt.NDArray[np.int8]

CONFIGS = (
    Config(lanes=2, vec=4, feature_bytes=1024, weight_bytes=256, port_bits=32, pool_columns=16, saboteur=True),
    Config(lanes=4, vec=4, feature_bytes=4096, weight_bytes=1024, port_bits=128, pool_columns=32, saboteur=True),
    Config(lanes=8, vec=8, feature_bytes=8192, weight_bytes=4096, port_bits=64, pool_columns=32, saboteur=True),
    Config(lanes=16, vec=8, saboteur=True),
    Config(lanes=8, vec=16, feature_bytes=16384, weight_bytes=16384, port_bits=256, pool_columns=32, saboteur=True),
    Config(lanes=4, vec=4, feature_bytes=512, weight_bytes=1024, port_bits=64, pool_columns=32, saboteur=True),
    Config(lanes=4, vec=8, feature_bytes=4096, weight_bytes=2048, port_bits=64, pool_columns=32),
)
"""Few, since each costs a build of the simulator; small buffers, so that chunks and tensors that go through memory are
common, and with 512 bytes tiled layers too; the last without fault instrumentation."""

MOST_STEPS = 60_000
"""Array steps of one case: keeps a case on the RTL near a tenth of a second."""
MOST_EVENTS = 2_000


@dataclass(frozen=True)
class Case:
    """One random question to ask of every device."""

    seed: int
    number: int
    program: Program
    x: Int8
    """Quantised images, shape (N, C, H, W)."""
    writeback: bool
    units: int
    plan: FaultPlan | None
    first_image: int

    def __str__(self) -> str:
        config = self.program.config
        layers = ", ".join(
            f"{la.name} {'x'.join(map(str, la.in_shape))} -> {la.out_channels} k{la.kernel} s{la.stride} p{la.padding}"
            f"{f' pool{la.pool.kernel}/{la.pool.stride}/{la.pool.pad}' if la.pool else ''}"
            f"{' folded' if la.fold else ''}{' on the CPU' if la.placement == 'cpu' else ''}"
            for la in self.program.layers
        )
        faults = "no faults" if self.plan is None else f"{len(self.plan)} faults"
        return (
            f"case {self.number} of seed {self.seed}: {config.lanes}x{config.vec}, batch {len(self.x)}, {self.units} "
            f"unit(s), write-back {'on' if self.writeback else 'off'}, {faults}; {layers}"
        )


def random_case(seed: int, number: int, faults: Fault | None = None, configs: tuple[Config, ...] = CONFIGS) -> Case:
    """Case `number` of a seed; the same wherever it is made.

    Parameters
    ----------
    seed, number : int
    faults : Fault or None
        Fault model of every case; by default random soft errors, in two of three cases.
    configs : tuple of Config
        Accelerators to choose from.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number])))
    config = configs[int(rng.integers(len(configs)))]
    program = random_program(rng, config)
    steps = sum(_steps(layer, config) for layer in program.layers)
    batch = int(rng.integers(1, max(2, min(6, MOST_STEPS // max(1, steps)))))
    first_image = int(rng.integers(0, 1000))
    plan = None
    if faults is not None:
        plan = faults.draw(program, first_image, batch, int(rng.integers(1 << 32)))
    elif rng.random() < 0.67:
        plan = _random_plan(rng, program, first_image, batch)
    if plan is not None and not config.saboteur:
        plan = plan.where(np.isin(plan.site, [SITES.index("weight"), SITES.index("input")]))
    return Case(
        seed=seed,
        number=number,
        program=program,
        x=_operands(rng, (batch, *program.input_shape)),
        writeback=bool(rng.integers(2)),
        units=int(rng.integers(1, 3)),
        plan=plan,
        first_image=first_image,
    )


def random_program(rng: np.random.Generator, config: Config) -> Program:
    """A random chain of one to five layers that fits the accelerator."""
    while True:
        made = _chain(rng, config)
        if made is not None:
            return made


def _chain(rng: np.random.Generator, config: Config) -> Program | None:
    channels = int(rng.choice([1, 2, 3, config.vec, int(rng.integers(1, 3 * config.vec))]))
    h, w = int(rng.integers(1, 15)), int(rng.integers(1, 15))
    if rng.random() < 0.1:
        h, w = int(rng.integers(8, 29)), int(rng.integers(8, 29))
    shape, name, frac = (channels, h, w), INPUT, int(rng.integers(0, 9))
    input_shape, input_frac, budget = shape, frac, MOST_STEPS
    layers: list[Layer] = []
    linear = bool(rng.random() < 0.5)
    for at in range(int(rng.integers(1, 5))):
        layer: Layer | None = None
        for _ in range(20):
            fully_connected = linear and (at > 0 and bool(rng.random() < 0.4) or shape[1:] == (1, 1))
            tried = _layer(rng, f"layer{at}", name, shape, frac, fully_connected)
            if at == 0 and tried is not None and rng.random() < 0.6:
                tried = folded(tried, config.vec)
            if tried is not None and _fits(tried, config) and _steps(tried, config) <= budget:
                layer = tried
                break
        if layer is None:
            break
        if rng.random() < 0.07:
            layer = replace(layer, placement="cpu")
        budget -= _steps(layer, config)
        layers.append(layer)
        shape, name, frac = layer.out_shape, layer.name, layer.out_frac
    if not layers:
        return None
    weights = {layer.name: _operands(rng, layer.weight_shape) for layer in layers}
    biases = {layer.name: _biases(rng, layer.out_channels) for layer in layers}
    return Program(config, tuple(layers), weights, biases, input_shape, input_frac, {la.name: la.name for la in layers})


def _layer(
    rng: np.random.Generator, name: str, reads: str, shape: tuple[int, int, int], frac: int, fully_connected: bool
) -> Layer | None:
    _, h, w = shape
    kernel = (h, w)
    stride, padding = (1, 1), (0, 0)
    pool = None
    if not fully_connected:
        most = 12 if rng.random() < 0.15 else 6
        kernel = (int(rng.integers(1, most)), int(rng.integers(1, most)))
        if rng.random() < 0.5:
            kernel = (kernel[0], kernel[0])
        stride = (int(rng.integers(1, 4)), int(rng.integers(1, 4))) if rng.random() < 0.4 else (1, 1)
        if rng.random() < 0.5:
            padding = (int(rng.integers(0, kernel[0])), int(rng.integers(0, kernel[1])))
        if rng.random() < 0.45:
            edge = int(rng.integers(1, 4))
            pool = Pool(edge, int(rng.integers(1, 4)), int(rng.integers(0, edge)) if rng.random() < 0.3 else 0)
    channels = int(rng.choice([1, 2, 5, 8, 16, int(rng.integers(1, 41))]))
    # Shifts around the one that spreads typical sums over int8; now and then any.
    taps = shape[0] * kernel[0] * kernel[1]
    usual = int(np.log2(73.0 * np.sqrt(taps) + 1))
    shift = np.full(channels, usual + int(rng.integers(-2, 3)))
    if rng.random() < 0.4:
        shift = usual + rng.integers(-3, 4, channels)
    if rng.random() < 0.1:
        shift = rng.integers(0, 32, channels)
    out_frac = int(rng.integers(-2, 9))
    return Layer(
        name=name,
        sources=(reads,),
        in_shape=shape,
        out_channels=channels,
        kernel=kernel,
        stride=stride,
        padding=padding,
        relu=bool(rng.random() < 0.6),
        pool=pool,
        in_frac=frac,
        weight_frac=tuple(int(s) - frac + out_frac for s in np.clip(shift, 0, 31)),
        out_frac=out_frac,
    )


def _fits(layer: Layer, config: Config) -> bool:
    try:
        check_layer(layer, config)
    except CompileError:
        return False
    return True


def _steps(layer: Layer, config: Config) -> int:
    _, oh, ow = layer.conv_shape
    # Loading, pooling and writing cost about a cycle a word, too.
    words = int(np.prod(layer.in_shape)) + int(np.prod(layer.out_shape))
    return output_groups(layer.out_channels, config.lanes, config.vec) * oh * ow * steps(layer, config) + ceil_div(
        words, config.vec
    )


def _operands(rng: np.random.Generator, shape: tuple[int, ...]) -> Int8:
    """Random int8, in the mixtures that have found bugs: everything, extremes only, one value, mostly zeros, small."""
    kind = rng.random()
    if kind < 0.55:
        return rng.integers(-128, 128, shape).astype(np.int8)
    if kind < 0.7:
        return rng.choice(np.array([-128, -127, 127], np.int8), shape)
    if kind < 0.8:
        return np.full(shape, rng.choice(np.array([-128, 127, -1, 0, 1], np.int8)), np.int8)
    if kind < 0.9:
        return (rng.integers(-128, 128, shape) * (rng.random(shape) < 0.1)).astype(np.int8)
    return rng.integers(-3, 4, shape).astype(np.int8)


def _biases(rng: np.random.Generator, channels: int) -> npt.NDArray[np.int32]:
    kind = rng.random()
    if kind < 0.7:
        return rng.integers(-20_000, 20_000, channels).astype(np.int32)
    if kind < 0.85:
        return np.zeros(channels, np.int32)
    # At the edge of int32, so that sums wrap.
    return rng.choice(np.array([-(2**31), 2**31 - 1, 2**31 - 5000, 0], np.int64), channels).astype(np.int32)


def _random_plan(rng: np.random.Generator, program: Program, first_image: int, batch: int) -> FaultPlan:
    plan = FaultPlan.of(program.names)
    for site in SITES:
        if rng.random() < 0.5:
            continue
        places = sum(int(np.prod(extents(program, at, site))) for at in range(len(program.layers)))
        places *= SITE_BITS[site] if site != "mac" else 1
        if not places:
            continue
        wanted = 10 ** rng.uniform(0, 3)
        rate = min(1.0, wanted / places)
        if places * batch <= MOST_EVENTS and rng.random() < 0.05:
            rate = 1.0
        per = "mac" if site == "mac" else "bit"
        model = SoftErrors(rate, per=per, sites=(site,))  # type: ignore[arg-type]
        plan = plan + model.draw(program, first_image, batch, int(rng.integers(1 << 32)))
    return plan
