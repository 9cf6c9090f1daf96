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
from host.program.layers import INPUT, Layer, Operator, Pool
from host.program.program import Program
from host.schedule.tiling import fits_on_chip, tiling
from hw import params
from hw.config import Config
from hw.layout import ceil_div, output_groups

Int8 = npt.NDArray[np.int8]


def _few_bits(config: Config) -> Config:
    return replace(config, address_bits=22, count_bits=16, extent_bits=8)


MICROCODE = Config(
    lanes=2,
    vec=4,
    feature_bytes=256,
    weight_bytes=256,
    port_bits=32,
    pool_columns=4,
    address_bits=32,
    control="microcode",
)
CONFIGS = (
    _few_bits(Config(lanes=2, vec=4, feature_bytes=256, weight_bytes=256, port_bits=32, pool_columns=4, saboteur=True)),
    Config(lanes=4, vec=4, feature_bytes=4096, weight_bytes=1024, port_bits=128, pool_columns=32, saboteur=True),
    Config(lanes=8, vec=8, feature_bytes=8192, weight_bytes=4096, port_bits=64, pool_columns=32, saboteur=True),
    Config(lanes=16, vec=8, saboteur=True),
    Config(lanes=8, vec=16, feature_bytes=16384, weight_bytes=16384, port_bits=256, pool_columns=32, saboteur=True),
    Config(lanes=4, vec=4, feature_bytes=512, weight_bytes=1024, port_bits=64, pool_columns=32, saboteur=True),
    _few_bits(Config(lanes=4, vec=8, feature_bytes=4096, weight_bytes=2048, port_bits=64, pool_columns=32)),
    Config(lanes=4, vec=4, feature_bytes=4096, weight_bytes=1024, saboteur=True, arithmetic="pipecnn"),
    replace(MICROCODE, lanes=4, feature_bytes=4096, weight_bytes=1024, pool_columns=32),
    _few_bits(MICROCODE),
)
"""Few, since each costs a build of the simulator; small buffers, so that chunks and tensors that go through memory are
common, and with 512 bytes tiled layers too; in 256 bytes many layers' windows do not fit. One is without fault
instrumentation, one in PipeCNN's arithmetic; two do what a microprogram says, like the smallest boards', and have no
fault instrumentation either. Three keep few bits of a descriptor."""

MOST_STEPS = 60_000
"""Array steps of one case: keeps a case on the RTL near a tenth of a second."""
DESCRIPTOR_STEPS = 60
"""Steps' worth of time that a job takes beside its steps."""
MOST_EVENTS = 2_000
CHAINS = 0.35
"""Share of the networks that are chains."""


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
    others: tuple[FaultPlan | None, ...] = ()
    """Plans of further passes of the same images, one after the other."""

    def __str__(self) -> str:
        config = self.program.config
        layers = ", ".join(_shown(layer) for layer in self.program.layers)
        faults = "no faults" if self.plan is None else f"{len(self.plan)} faults"
        for plan in (self.plan, *self.others):
            if plan is not None and plan.conditions is not None:
                faults += f", {plan.conditions}"
        return (
            f"case {self.number} of seed {self.seed}: {config.lanes}x{config.vec}, batch {len(self.x)}, {self.units} "
            f"unit(s), write-back {'on' if self.writeback else 'off'}, {faults}; {layers}"
        )


def kind_of(layer: Layer) -> str:
    """What a layer is, in a word or two: its operator, or which convolution."""
    if layer.operator != "convolution":
        return layer.operator
    if layer.groups == 1:
        return "convolution"
    return "depthwise convolution" if layer.groups == layer.in_shape[0] else "grouped convolution"


def view_of(layer: Layer) -> str:
    """How a layer chooses its input channels: "whole", "concat" (all of several tensors), "split" (some channels, in
    their order) or "shuffle" (in another order)."""
    if layer.channels is None:
        return "whole" if len(layer.sources) == 1 else "concat"
    return "split" if list(layer.channels) == sorted(layer.channels) else "shuffle"


def _shown(layer: Layer) -> str:
    view = "" if layer.reads_whole or layer.operator == "add" else f" {view_of(layer)}"
    if layer.channels is not None and layer.operator != "add":
        view += str(list(layer.channels)).replace(" ", "")
    pool = layer.pool
    return "".join(
        (
            f"{layer.name} = {kind_of(layer)}({'+'.join(layer.sources)}{view}) ",
            f"{'x'.join(map(str, layer.in_shape))} -> {layer.out_channels} k{layer.kernel} s{layer.stride} "
            f"p{layer.padding}",
            f" g{layer.groups}" if layer.groups > 1 and layer.operator == "convolution" else "",
            f" pool{pool.kernel}/{pool.stride}/{pool.pad}{' ceil' if pool.ceil else ''}" if pool else "",
            f" upper {layer.upper}" if layer.upper < 127 else "",
            " folded" if layer.fold else "",
            " on the CPU" if layer.placement == "cpu" else "",
        )
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
    """A random network that fits the accelerator: a chain of one to four layers, or (more often) a graph."""
    plain = replace(config, arithmetic="redline")
    while True:
        made = random_chain(rng, plain) if rng.random() < CHAINS else _Graph(rng, plain).program()
        if made is not None:
            return made if config == plain else _for_pipecnn(rng, made, config)


def _for_pipecnn(rng: np.random.Generator, program: Program, config: Config) -> Program:
    """The same network within the preconditions of PipeCNN's arithmetic: shifts of at least 1, biases of 8 bits."""
    down = 16  # no activation's fraction is above it, so that every weight's is above its output's

    def changed(layer: Layer) -> Layer:
        in_frac, out_frac = layer.in_frac - down, layer.out_frac - down
        weight_frac = tuple(max(1, shift) - in_frac + out_frac for shift in layer.shift)
        return replace(layer, in_frac=in_frac, out_frac=out_frac, weight_frac=weight_frac)

    layers = tuple(changed(layer) for layer in program.layers)
    biases = {layer.name: rng.integers(-128, 128, layer.out_channels).astype(np.int32) for layer in layers}
    return replace(program, config=config, layers=layers, biases=biases, input_frac=program.input_frac - down)


def random_chain(rng: np.random.Generator, config: Config) -> Program | None:
    """A random chain of one to four dense layers; None if the first does not fit."""
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
    return _with_weights(rng, config, layers, input_shape, input_frac)


def _with_weights(
    rng: np.random.Generator, config: Config, layers: list[Layer], shape: tuple[int, int, int], frac: int
) -> Program:
    weights = {layer.name: _weights(rng, layer) for layer in layers}
    biases = {layer.name: _biases(rng, layer.out_channels) for layer in layers}
    return Program(config, tuple(layers), weights, biases, shape, frac, {la.name: la.name for la in layers})


def _weights(rng: np.random.Generator, layer: Layer) -> Int8:
    """Any weights, also for operators whose weights a compiler would choose: more is tested that way."""
    if layer.operator == "add":
        both = np.array([1 << int(rng.integers(0, 7)), 1 << int(rng.integers(0, 7))], np.int8)
        return np.broadcast_to(both[None, :, None, None], layer.weight_shape).copy()
    if layer.operator != "convolution" and rng.random() < 0.3:
        one = 1 if layer.operator == "identity" else int(rng.integers(1, 128))
        return np.full(layer.weight_shape, one, np.int8)
    return _operands(rng, layer.weight_shape)


def _layer(
    rng: np.random.Generator, name: str, reads: str, shape: tuple[int, int, int], frac: int, fully_connected: bool
) -> Layer | None:
    """A random dense convolution of all of one tensor."""
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
        pool = _pool(rng, 0.45)
    channels = _channels(rng)
    out_frac = int(rng.integers(-2, 9))
    shift = _shifts(rng, channels, 73.0 * np.sqrt(shape[0] * kernel[0] * kernel[1]))
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
        weight_frac=tuple(int(s) - frac + out_frac for s in shift),
        out_frac=out_frac,
        upper=_upper(rng),
    )


def _channels(rng: np.random.Generator) -> int:
    return int(rng.choice([1, 2, 5, 8, 16, int(rng.integers(1, 41))]))


def _pool(rng: np.random.Generator, share: float) -> Pool | None:
    if rng.random() >= share:
        return None
    edge = int(rng.integers(1, 4))
    pad = int(rng.integers(0, edge)) if rng.random() < 0.3 else 0
    return Pool(edge, int(rng.integers(1, 4)), pad, ceil=bool(rng.random() < 0.3))


def _upper(rng: np.random.Generator) -> int:
    return int(rng.integers(0, 128)) if rng.random() < 0.2 else 127


def _shifts(rng: np.random.Generator, channels: int, spread: float) -> list[int]:
    """Shifts around the one that spreads sums of that size over int8; now and then any."""
    usual = int(np.log2(spread + 1))
    shift = np.full(channels, usual + int(rng.integers(-2, 3)))
    if rng.random() < 0.4:
        shift = usual + rng.integers(-3, 4, channels)
    if rng.random() < 0.1:
        shift = rng.integers(0, 32, channels)
    return [int(s) for s in np.clip(shift, 0, params.MAX_SHIFT)]


@dataclass(frozen=True)
class _Tensor:
    """What later layers can read."""

    shape: tuple[int, int, int]
    frac: int


@dataclass(frozen=True)
class _View:
    """Channels chosen from tensors, as a layer's fields."""

    sources: tuple[str, ...]
    source_channels: tuple[int, ...]
    channels: tuple[int, ...] | None
    shape: tuple[int, int, int]
    frac: int


class _Graph:
    """Draws a network in which layers read whatever earlier tensors fit together."""

    OPERATORS = ("dense", "grouped", "depthwise", "add", "average", "identity")
    SHARES = (0.3, 0.17, 0.15, 0.18, 0.1, 0.1)

    def __init__(self, rng: np.random.Generator, config: Config) -> None:
        self.rng, self.config = rng, config
        self.budget = MOST_STEPS
        self.frac = int(rng.integers(-2, 9))
        """That of most tensors, so that they fit together."""
        self.layers: list[Layer] = []
        self.tensors: dict[str, _Tensor] = {}

    def program(self) -> Program | None:
        """The network; None if nothing fitted."""
        rng = self.rng
        channels = int(rng.choice([1, 2, 3, self.config.vec, int(rng.integers(1, 3 * self.config.vec))]))
        largest = 21 if rng.random() < 0.1 else 11
        shape = channels, int(rng.integers(1, largest)), int(rng.integers(1, largest))
        self.tensors[INPUT] = _Tensor(shape, self.frac)
        for _ in range(int(rng.integers(2, 8))):
            self._grow()
        if not self.layers:
            return None
        if rng.random() < 0.9:
            self._drop_unread()
        layers = [replace(la, placement="cpu") if rng.random() < 0.05 else la for la in self.layers]
        return _with_weights(rng, self.config, layers, shape, self.frac)

    def _grow(self) -> None:
        """Add a layer, if one of a few tries fits; an addition may bring the operand that it lacks."""
        rng = self.rng
        for _ in range(10):
            operator = str(rng.choice(self.OPERATORS, p=self.SHARES))
            if not self.layers and rng.random() < 0.25:
                tried = self._convolution(self._view(plain=True), 1)
                fold = tried if tried is None else folded(tried, self.config.vec)
                if fold is not None and fold.fold is not None and self._add(fold):
                    # A folded input has one reader.
                    del self.tensors[INPUT]
                    return
            made = self._sum() if operator == "add" else self._layer(operator)
            if made is not None and self._add(made):
                return

    def _add(self, layer: Layer) -> bool:
        if not _fits(layer, self.config) or _steps(layer, self.config) > self.budget:
            return False
        self.budget -= _steps(layer, self.config)
        self.layers.append(layer)
        self.tensors[layer.name] = _Tensor(layer.out_shape, layer.out_frac)
        return True

    def _drop_unread(self) -> None:
        """Leave out what the last layer's output does not depend on."""
        kept, wanted = [], {self.layers[-1].name}
        for layer in reversed(self.layers):
            if layer.name in wanted:
                kept.append(layer)
                wanted.update(layer.sources)
        # The first layer's place is that of the input's faults, and of the fold.
        self.layers = kept[::-1]

    def _pick(self, names: list[str]) -> str:
        """One of these tensors, rather a late one, and rather one that nothing reads yet."""
        read = {source for layer in self.layers for source in layer.sources}
        weights = np.array([(1 + at) * (1 if name in read else 3) for at, name in enumerate(names)], float)
        return names[int(self.rng.choice(len(names), p=weights / weights.sum()))]

    def _view(self, plain: bool = False) -> _View:
        """All of one tensor, all of several, or some channels in some order."""
        rng = self.rng
        first = self._pick(list(self.tensors))
        tensor = self.tensors[first]
        fitting = [
            name
            for name, other in self.tensors.items()
            if name != first and other.shape[1:] == tensor.shape[1:] and other.frac == tensor.frac
        ]
        sources = [first]
        if fitting and not plain and rng.random() < 0.45:
            more = rng.permutation(len(fitting))[: int(rng.integers(1, 3))]
            sources += [fitting[int(at)] for at in more]
        sizes = [self.tensors[name].shape[0] for name in sources]
        stacked = sum(sizes)
        chosen: list[int] | None = None
        if not plain and stacked > 1 and rng.random() < 0.35:
            chosen = self._some(stacked)
            # Only sources that something is read of.
            starts = np.cumsum([0, *sizes])
            used = [at for at in range(len(sizes)) if any(starts[at] <= c < starts[at + 1] for c in chosen)]
            moved = np.cumsum([0, *(sizes[at] for at in used)])
            chosen = [
                int(c - starts[at] + moved[place])
                for c in chosen
                for place, at in enumerate(used)
                if starts[at] <= c < starts[at + 1]
            ]
            sources, sizes = [sources[at] for at in used], [sizes[at] for at in used]
            if chosen == list(range(sum(sizes))):
                chosen = None
        _, h, w = tensor.shape
        count = sum(sizes) if chosen is None else len(chosen)
        channels = None if chosen is None else tuple(chosen)
        return _View(tuple(sources), tuple(sizes), channels, (count, h, w), tensor.frac)

    def _some(self, stacked: int) -> list[int]:
        """A part of the channels in a row, a shuffle of two or more groups, or any of them in any order."""
        rng, kind = self.rng, self.rng.random()
        if kind < 0.4:
            first = int(rng.integers(0, stacked))
            return list(range(first, int(rng.integers(first + 1, stacked + 1))))
        divisors = [d for d in range(2, stacked) if stacked % d == 0]
        if kind < 0.7 and divisors:
            return [int(c) for c in np.arange(stacked).reshape(int(rng.choice(divisors)), -1).T.reshape(-1)]
        return [int(c) for c in rng.permutation(stacked)[: int(rng.integers(1, stacked + 1))]]

    def _layer(self, operator: str) -> Layer | None:
        view = self._view()
        c = view.shape[0]
        if operator in ("average", "identity"):
            return self._constant(view, "average" if operator == "average" else "identity")
        if operator == "dense" or c == 1:
            return self._convolution(view, 1)
        if operator == "depthwise":
            return self._convolution(view, c)
        divisors = [d for d in range(2, c + 1) if c % d == 0]
        return self._convolution(view, int(self.rng.choice(divisors[:3])))

    def _convolution(self, view: _View, groups: int, keep: bool = False) -> Layer | None:
        """A convolution; with `keep` its output has its input's shape."""
        rng, (c, h, w) = self.rng, view.shape
        same = keep or rng.random() < 0.55
        stride, padding, pool = (1, 1), (0, 0), None
        if same:
            edges = [edge for edge in (1, 3, 5) if edge // 2 < min(h, w)]
            kernel = (int(rng.choice(edges)),) * 2
            padding = (kernel[0] // 2, kernel[1] // 2)
        elif rng.random() < 0.2:
            kernel = (h, w)
        else:
            kernel = int(rng.integers(1, 6)), int(rng.integers(1, 6))
            stride = (int(rng.integers(1, 4)), int(rng.integers(1, 4))) if rng.random() < 0.5 else (1, 1)
            if rng.random() < 0.6:
                padding = int(rng.integers(0, kernel[0])), int(rng.integers(0, kernel[1]))
        if not keep and kernel != (h, w):
            pool = _pool(rng, 0.1 if same else 0.35)
        channels = int(rng.choice([_channels(rng), *(t.shape[0] for t in self.tensors.values())]))
        if groups > 1:
            channels = groups * max(1, min(round(channels / groups), 64 // groups))
        if keep:
            channels = c
        spread = 73.0 * np.sqrt(c // groups * kernel[0] * kernel[1])
        return self._finished(view, "convolution", channels, kernel, stride, padding, pool, groups, spread)

    def _constant(self, view: _View, operator: Operator) -> Layer | None:
        rng, (c, h, w) = self.rng, view.shape
        kernel, stride, padding = (1, 1), (1, 1), (0, 0)
        if operator == "average":
            if rng.random() < 0.3:
                kernel = (h, w)
            else:
                kernel = (int(rng.integers(1, 5)),) * 2
                stride = (int(rng.integers(1, 4)),) * 2
                if rng.random() < 0.4:
                    padding = (int(rng.integers(0, kernel[0])),) * 2
        pool = _pool(rng, 0.5 if operator == "identity" else 0.1)
        return self._finished(
            view, operator, c, kernel, stride, padding, pool, c, 73.0 * np.sqrt(kernel[0] * kernel[1])
        )

    def _sum(self) -> Layer | None:
        """An addition; the second operand may have to be made first."""
        rng, names = self.rng, list(self.tensors)
        first = self._pick(names)
        shape = self.tensors[first].shape
        c, h, w = shape
        others = [name for name in names if name != first and self.tensors[name].shape == shape]
        if not others:
            view = _View((first,), (c,), None, shape, self.tensors[first].frac)
            made = self._convolution(view, c if rng.random() < 0.3 else 1, keep=True)
            if made is None or not self._add(made):
                return None
            others = [made.name]
        second = self._pick(others)
        if rng.random() < 0.5:
            first, second = second, first
        pairs = tuple(int(at) for at in np.arange(2 * c).reshape(2, c).T.reshape(-1))
        view = _View((first, second), (c, c), pairs, (2 * c, h, w), self.tensors[first].frac)
        pool = _pool(rng, 0.1)
        return self._finished(view, "add", c, (1, 1), (1, 1), (0, 0), pool, c, float(1 << int(rng.integers(1, 8))))

    def _finished(
        self,
        view: _View,
        operator: Operator,
        channels: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        pool: Pool | None,
        groups: int,
        spread: float,
    ) -> Layer | None:
        out_frac = self.frac if self.rng.random() < 0.93 else int(self.rng.integers(-2, 9))
        return Layer(
            name=f"layer{len(self.layers)}",
            sources=view.sources,
            source_channels=view.source_channels,
            in_shape=view.shape,
            out_channels=channels,
            kernel=kernel,
            stride=stride,
            padding=padding,
            relu=bool(self.rng.random() < 0.5),
            pool=pool,
            in_frac=view.frac,
            weight_frac=tuple(s - view.frac + out_frac for s in _shifts(self.rng, channels, spread)),
            out_frac=out_frac,
            channels=view.channels,
            groups=groups,
            operator=operator,
            upper=_upper(self.rng),
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
    computed = output_groups(layer.out_channels, config.lanes, config.vec) * oh * ow * steps(layer, config)
    if steps(layer, config) > config.weight_words and oh * ow > 1:
        # Every step's weights are fetched.
        computed *= max(1, config.lanes * config.vec // config.port_bytes)
    return computed + ceil_div(words, config.vec) + DESCRIPTOR_STEPS * _descriptors(layer, config)


def _descriptors(layer: Layer, config: Config) -> int:
    """About how many an image of a layer takes."""
    if fits_on_chip(layer, config):
        return 1
    how = tiling(layer, config)
    if how.parts:
        return sum(tile.rows.conv_size * tile.columns.conv_size for tile in how.tiles) * 2 * len(how.parts)
    return len(how.tiles) * (1 + ceil_div(layer.in_shape[0], config.vec))


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
