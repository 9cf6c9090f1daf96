"""Small random graphs of layers, made by hand: every way in which a layer reads its sources."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from host.program.layers import INPUT, Layer, Operator, Pool
from host.program.program import Program
from hw.config import Config


class Graph:
    """Collects layers with random weights; every tensor has the fraction 0."""

    def __init__(self, seed: int, shape: tuple[int, int, int]) -> None:
        self.rng = np.random.default_rng(seed)
        self.shapes = {INPUT: shape}
        self.layers: list[Layer] = []
        self.weights: dict[str, npt.NDArray[np.int8]] = {}
        self.biases: dict[str, npt.NDArray[np.int32]] = {}

    def program(self, config: Config) -> Program:
        return Program(config, tuple(self.layers), self.weights, self.biases, self.shapes[INPUT], 0)

    def layer(
        self,
        sources: tuple[str, ...],
        out_channels: int,
        kernel: int | tuple[int, int] = 1,
        *,
        channels: tuple[int, ...] | None = None,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        relu: bool = False,
        pool: Pool | None = None,
        upper: int = 127,
        operator: Operator = "convolution",
        ones: bool = False,
    ) -> str:
        name = f"{operator}{len(self.layers)}"
        sizes = tuple(self.shapes[source][0] for source in sources)
        _, h, w = self.shapes[sources[0]]
        count = sum(sizes) if channels is None else len(channels)
        edges = (kernel, kernel) if isinstance(kernel, int) else kernel
        taps = count // groups * edges[0] * edges[1]
        layer = Layer(
            name=name, sources=sources, in_shape=(count, h, w), out_channels=out_channels, kernel=edges,
            stride=(stride, stride), padding=(padding, padding), relu=relu, pool=pool, in_frac=0,
            weight_frac=(6 + int(np.log2(taps)) // 2,) * out_channels, out_frac=0, channels=channels, groups=groups,
            operator=operator, upper=upper, source_channels=sizes,
        )  # fmt: skip
        weight = self.rng.integers(-128, 128, layer.weight_shape)
        # No zeros: the executor trusts that what meets zero weights only is not needed.
        weight = np.full(layer.weight_shape, 64 + taps) if ones else np.where(weight == 0, 1, weight)
        self.layers.append(layer)
        self.weights[name] = np.clip(weight, -128, 127).astype(np.int8)
        self.biases[name] = self.rng.integers(-2000, 2000, out_channels).astype(np.int32)
        self.shapes[name] = layer.out_shape
        return name

    def add(self, a: str, b: str, *, first_a: int = 0, first_b: int = 0, count: int | None = None) -> str:
        """Sum of `count` channels of two tensors, from given channels on."""
        size = self.shapes[a][0]
        count = size if count is None else count
        chosen = tuple(v for i in range(count) for v in (first_a + i, size + first_b + i))
        relu = bool(self.rng.integers(2))
        return self.layer((a, b), count, channels=chosen, groups=count, relu=relu, operator="add", ones=True)

    def depthwise(self, source: str, kernel: int = 3, **how: object) -> str:
        count = self.shapes[source][0]
        return self.layer((source,), count, kernel, groups=count, **how)  # type: ignore[arg-type]


def residual(seed: int, shape: tuple[int, int, int] = (5, 9, 8)) -> Graph:
    """Blocks with additions; the second shortens by stride and a projection."""
    g = Graph(seed, shape)
    m = int(g.rng.integers(3, 20))
    stem = g.layer((INPUT,), m, 3, padding=1, relu=True)
    inner = g.layer((stem,), m, 3, padding=1, relu=True, upper=90)
    last = g.layer((inner,), m, 3, padding=1)
    total = g.add(last, stem)
    down = g.layer((total,), m + 3, 3, padding=1, stride=2)
    short = g.layer((total,), m + 3, 1, stride=2)
    total = g.add(down, short)
    _, h, w = g.shapes[total]
    average = g.layer((total,), m + 3, (h, w), groups=m + 3, operator="average", ones=True)
    hidden = g.layer((average,), 11)
    g.layer((hidden,), 7)
    return g


def concat(seed: int, shape: tuple[int, int, int] = (7, 8, 9)) -> Graph:
    """Branches of odd channel counts that are concatenated, sliced and concatenated again."""
    g = Graph(seed, shape)
    a, b, c = (int(v) for v in g.rng.integers(2, 14, 3))
    stem = g.layer((INPUT,), 6, 3, padding=1, relu=True)
    one = g.layer((stem,), a, 1, relu=True)
    two = g.layer((stem,), b, 3, padding=1)
    pooled = g.layer((stem,), 6, groups=6, operator="identity", pool=Pool(3, 1, 1), ones=True)
    three = g.layer((pooled,), c, 1)
    joined = g.layer((one, two, three), 9, 3, padding=1, relu=True)
    total = a + b + c + 9
    some = tuple(int(v) for v in np.sort(g.rng.choice(total, max(2, total // 2), replace=False)))
    mixed = g.layer((two, joined, one, three), 10, 1, channels=some)
    g.layer((joined, mixed), 5, g.shapes[mixed][1:])
    return g


def shuffle(seed: int, shape: tuple[int, int, int] = (6, 8, 8)) -> Graph:
    """Channels split in halves, one of them convolved depthwise, then shuffled."""
    g = Graph(seed, shape)
    half = int(g.rng.integers(3, 11))
    stem = g.layer((INPUT,), 2 * half, 3, padding=1, relu=True)
    right = g.layer((stem,), half, 1, channels=tuple(range(half, 2 * half)), relu=True)
    deep = g.depthwise(right, padding=1)
    left = g.layer((stem,), half, channels=tuple(range(half)), groups=half, operator="identity", ones=True)
    order = tuple(v for i in range(half) for v in (i, half + i))
    taken = g.layer((left, deep), half, 1, channels=order[half:])
    deep = g.layer((left, deep), 2 * half, 3, channels=order, groups=2, padding=1)
    g.layer((taken, deep), 4, 1)
    return g


def grouped(seed: int, shape: tuple[int, int, int] = (12, 8, 7)) -> Graph:
    """Groups of two and three, depthwise with a multiplier, and averages."""
    g = Graph(seed, shape)
    per = int(g.rng.integers(1, 8))
    two = g.layer((INPUT,), 6 * per, 3, groups=2, padding=1, relu=True, upper=96)
    three = g.layer((two,), 9 * per, 3, groups=3, padding=1)
    wide = g.layer((three,), 18 * per, 3, groups=9 * per, padding=1, pool=Pool(3, 2, ceil=True))
    more = g.layer((wide,), 6 * per, 1, groups=3 * per)
    average = g.layer((more,), 6 * per, 3, groups=6 * per, padding=1, stride=2, operator="average", ones=True)
    thirds = g.layer((average,), 3 * per, 1, groups=3)
    g.layer((thirds, average), 8, g.shapes[thirds][1:])
    return g


def mobile(seed: int, shape: tuple[int, int, int] = (3, 11, 10)) -> Graph:
    """Inverted residuals with ReLU6, pooled with windows that reach beyond the edge."""
    g = Graph(seed, shape)
    m = int(g.rng.integers(2, 10))
    stem = g.layer((INPUT,), m, 3, padding=1, relu=True, upper=48)
    for _ in range(2):
        wide = g.layer((stem,), 3 * m, 1, relu=True, upper=48)
        deep = g.depthwise(wide, padding=1, relu=True, upper=48)
        narrow = g.layer((deep,), m, 1)
        stem = g.add(narrow, stem)
    copy = g.layer((stem,), m, groups=m, operator="identity", ones=True, pool=Pool(3, 2, 1, ceil=True))
    last = g.layer((copy,), 13, 3, padding=1, pool=Pool(2, 2, ceil=True))
    g.layer((last,), 6, g.shapes[last][1:])
    return g


def views(seed: int, shape: tuple[int, int, int] = (10, 7, 7)) -> Graph:
    """Additions of channels that do not begin with a channel group, or lie in one tensor."""
    g = Graph(seed, shape)
    stem = g.layer((INPUT,), 14, 3, padding=1)
    other = g.layer((INPUT,), 14, 3, padding=1)
    n = int(g.rng.integers(2, 9))
    shifted = g.add(stem, other, first_a=int(g.rng.integers(1, 5)), first_b=int(g.rng.integers(0, 5)), count=n)
    aligned = g.add(stem, other, first_b=int(g.rng.integers(0, 2)) * 4, count=n)
    chosen = tuple(v for i in range(5) for v in (i, 8 + i))
    inside = g.layer((stem,), 5, channels=chosen, groups=5, operator="add", ones=True)
    g.layer((shifted, aligned, inside, INPUT), 6, 3)
    return g


GRAPHS = {made.__name__: made for made in (residual, concat, shuffle, grouped, mobile, views)}
