"""Random modules that torch.fx can trace: operators, spellings, modes, types, computed weights, hooks, sharing."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.host.parametrised import COMPUTED

Shape = tuple[int, int, int]


class Subclass(nn.Conv2d):
    """A convolution that is only constructed otherwise."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.remark = "a user's own"


class Scaled(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 0.5


class Network(nn.Module):
    """Carries out a plan: (function, source, module's name) line by line."""

    def __init__(self) -> None:
        super().__init__()
        self.plan: list[tuple[Callable[..., torch.Tensor], tuple[int, ...], str]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [x]
        for function, sources, name in self.plan:
            module = [getattr(self, name)] if name else []
            values.append(function(*module, *(values[at] for at in sources)))
        return values[-1]


class OnlyInEvaluation(nn.Module):
    """Stochastic depth: in training it may do nothing."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and torch.rand(()) < 0.9:
            return x
        return F.relu(x + self.inner(x))


def _iadd(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a = F.relu(a) if a is b else a
    b += a
    return b


RELUS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    F.relu,
    torch.relu,
    lambda x: x.relu(),
    lambda x: F.relu(input=x),
    F.relu6,
    lambda x: F.hardtanh(x, 0.0, 6.0),
]
ADDITIONS: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = [
    lambda a, b: a + b,
    torch.add,
    lambda a, b: a.add(b),
    lambda a, b: torch.add(input=b, other=a),
    _iadd,
]
FLATTENINGS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda x: torch.flatten(x, 1),
    lambda x: x.view(x.size(0), -1),
    lambda x: x.reshape(x.shape[0], -1),
    lambda x: x.flatten(1),
]


STEPS = (
    *("plain", "plain", "residual", "dense", "split", "depth", "norm", "training", "drop"),
    *("parts", "nested", "shared norm", "average", "beside", "reshaped"),
)


@dataclass
class Made:
    """A random network and what may be wrong with it."""

    net: Network
    images: torch.Tensor
    dtype: torch.dtype = torch.float32
    """The network's, once it is attached, or before."""
    refusable: list[str] = field(default_factory=list)
    """What it has that may be refused by name; without any it must compile."""
    features: list[str] = field(default_factory=list)


class _Maker:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        self.net = Network()
        channels, extent = self.random.choice((1, 2, 3, 4)), self.random.randint(7, 12)
        self.shapes: list[Shape] = [(channels, extent, self.random.choice((extent, extent - 1)))]
        self.made = Made(self.net, torch.rand(12, *self.shapes[0]) - self.random.choice((0.0, 0.5)))

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    @property
    def last(self) -> int:
        return len(self.shapes) - 1

    def line(
        self, function: Callable[..., torch.Tensor], shape: Shape, *sources: int, module: nn.Module | None = None
    ) -> int:
        name = ""
        if module is not None:
            name = f"m{len(self.net.plan)}" if self.net.plan or self.chance(0.9) else "input"
            self.net.add_module(name, module)
        self.net.plan.append((function, sources or (self.last,), name))
        self.shapes.append(shape)
        return self.last

    def called(self, module: nn.Module, shape: Shape, *sources: int) -> int:
        if self.chance(0.2):
            module = nn.Sequential(module, *([nn.Identity()] if self.chance(0.5) else []))
        how = (lambda m, x: m(input=x)) if self.chance(0.2) and not isinstance(module, nn.Sequential) else _call
        return self.line(how, shape, *sources, module=module)

    # -- parts

    def norm(self, channels: int, kind: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
        norm: Any = kind(channels, affine=self.chance(0.8), eps=self.random.choice((1e-5, 1e-3)))
        nn.init.uniform_(norm.running_mean, -0.3, 0.3)
        nn.init.uniform_(norm.running_var, 0.3, 1.5)
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.6, 1.4)
            nn.init.uniform_(norm.bias, -0.3, 0.3)
        return norm

    def convolution(self, source: int, outputs: int, *, keep: bool = False) -> int:
        """A convolution of a tensor; with `keep`, its extents stay."""
        c, h, w = self.shapes[source]
        kernel = self.random.choice([k for k in (1, 2, 3, 5) if k <= min(h, w) and (k % 2 or not keep)])
        groups = self.random.choice([g for g in (1, 1, 1, 2, c) if c % g == 0 and outputs % g == 0])
        stride = 1 if keep else self.random.choice((1, 1, 2))
        padding: Any = kernel // 2 if keep else self.random.randint(0, kernel // 2)
        if keep and self.chance(0.2):
            padding = "same"
        kind: type[nn.Conv2d] = Subclass if self.chance(0.15) else nn.Conv2d
        module = kind(c, outputs, kernel, stride, padding, groups=groups, bias=self.chance(0.7))
        at = self.called(module, (outputs, h, w) if keep else _extents(outputs, h, w, kernel, stride, padding), source)
        if self.chance(0.5):
            at = self.called(self.norm(outputs), self.shapes[at])
        return at

    def activated(self) -> None:
        shape = self.shapes[-1]
        if self.chance(0.4):
            inplace = self.chance(0.2)
            if inplace:
                self.made.refusable.append("in place")
            self.line(_call, shape, module=self.random.choice((nn.ReLU, nn.ReLU6))(inplace=inplace))
        else:
            self.line(self.random.choice(RELUS), shape)

    def pooled(self) -> None:
        c, h, w = self.shapes[-1]
        if min(h, w) < 4:
            return
        kernel, stride = self.random.choice(((2, 2), (3, 2), (3, 1), (2, 1)))
        padding, ceil = self.random.choice((0, 0, 1)), self.chance(0.3)
        if self.chance(0.6):
            sample = F.max_pool2d(torch.zeros(1, c, h, w), kernel, stride, padding, 1, ceil)
            shape = _shape(sample)
            if self.chance(0.5):
                self.called(nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil), shape)
            else:
                self.line(lambda x: F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil), shape)
        else:
            self.called(nn.AvgPool2d(kernel, stride, padding), _extents(c, h, w, kernel, stride, padding))

    def grown(self) -> None:
        """One random step of the network."""
        last, (c, h, w) = self.last, self.shapes[-1]
        step = self.random.choice(STEPS)
        self.made.features.append(step)
        if step == "plain":
            self.convolution(last, self.random.choice((2, 4, 6)))
        elif step == "residual":
            branch = self.convolution(last, c, keep=True)
            if last == 0 or self.chance(0.3):
                last = self.convolution(last, c, keep=True)
            self.line(self.random.choice(ADDITIONS), self.shapes[branch], last, branch)
        elif step == "dense":
            branch = self.convolution(last, 2, keep=True)
            self.line(lambda a, b: torch.cat((a, b), 1), (c + 2, h, w), last, branch)
        elif step == "split" and c % 2 == 0:
            half = self.line(lambda x: x.chunk(2, 1)[0], (c // 2, h, w), last)
            other = self.line(lambda x: x[:, c // 2 :], (c // 2, h, w), last)
            branch = self.convolution(other, c // 2, keep=True)
            self.line(lambda a, b: torch.cat([a, b], dim=1), (c, h, w), half, branch)
            self.line(_call, (c, h, w), module=nn.ChannelShuffle(2))
        elif step == "training":
            self.convolution(last, 4)
            inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), self.norm(4))
            self.line(_call, self.shapes[-1], module=OnlyInEvaluation(inner))
        elif step == "depth" and last:
            self.called(nn.Conv2d(c, 2 * c, 1, groups=c), (2 * c, h, w))
        elif step == "norm" and last:
            self.called(nn.LocalResponseNorm(self.random.choice((2, 3)), alpha=0.1), (c, h, w))
        elif step == "parts" and c >= 4:
            parts = [(slice(0, 1), 1), (slice(2, c), c - 2)]
            (first, one), (second, other) = parts if self.chance(0.5) else parts[::-1]
            branch = self.convolution(last, 2, keep=True)
            self.line(lambda a, b: torch.cat((a[:, second], b, a[:, first]), 1), (one + other + 2, h, w), last, branch)
        elif step == "nested":
            inner = nn.Sequential(nn.Sequential(nn.Conv2d(c, 4, 1), nn.ReLU()), nn.Identity(), nn.Conv2d(4, 2, 1))
            self.line(_call, (2, h, w), module=inner)
        elif step == "shared norm":
            norm = self.norm(4)
            a, b = (self.called(nn.Conv2d(c, 4, 1), (4, h, w), last) for _ in range(2))
            self.net.add_module("norm", norm)
            self.net.plan.append((_call, (a,), "norm"))
            self.net.plan.append((_call, (b,), "norm"))
            self.shapes += [(4, h, w)] * 2
            self.line(self.random.choice(ADDITIONS[:4]), (4, h, w), self.last - 1, self.last)
        elif step == "average" and last:
            size = self.random.choice([s for s in (1, 2, h) if h % s == 0 and w % s == 0] or [1])
            functional = self.chance(0.5)
            if functional:
                self.line(lambda x: F.adaptive_avg_pool2d(x, size), (c, size, size))
            else:
                self.called(nn.AdaptiveAvgPool2d((size, size)), (c, size, size))
        elif step == "beside" and last:
            self.line(lambda x: torch.cat((x, F.relu(x)), 1), (2 * c, h, w))
        elif step == "reshaped" and last:
            self.line(lambda x: x.flatten(1).view(x.size(0), c, h, w).contiguous(), (c, h, w))
        elif step == "drop":
            self.line(_call, (c, h, w), module=self.random.choice((nn.Dropout, nn.Dropout2d))(0.5))
        if self.chance(0.6) and self.last > 0 and any(isinstance(m, nn.Conv2d) for m in self.net.modules()):
            self.activated()
        if self.chance(0.3) and self.last > 0:
            self.pooled()

    def head(self) -> None:
        c, h, w = self.shapes[-1]
        if self.chance(0.2):
            return
        if self.chance(0.3):
            self.line(self.random.choice((lambda x: x.mean((2, 3)), lambda x: torch.mean(x, dim=[2, 3]))), (c, 1, 1))
            h = w = 1
        elif self.chance(0.5):
            self.line(self.random.choice(FLATTENINGS), (c * h * w, 1, 1))
        else:
            self.line(_call, (c * h * w, 1, 1), module=nn.Flatten())
        outputs = self.random.choice((2, 5))
        self.called(nn.Linear(c * h * w, 6, bias=self.chance(0.8)), (6, 1, 1))
        if self.chance(0.3):
            self.line(_call, (6, 1, 1), module=self.norm(6, nn.BatchNorm1d))
        self.activated()
        self.called(nn.Linear(6, outputs), (outputs, 1, 1))

    # -- what else networks have

    def weights(self) -> list[nn.Module]:
        return [module for module in self.net.modules() if type(module) in (nn.Conv2d, nn.Linear, Subclass)]

    def computed(self) -> None:
        for module in self.weights():
            if self.chance(0.2):
                name = self.random.choice(sorted(COMPUTED))
                if module.bias is None and ("bias" in name or "several" in name):
                    continue
                self.made.features.append(name)
                COMPUTED[name](module)

    def tied(self) -> None:
        owners: dict[torch.Size, nn.Module] = {}
        for module in self.weights():
            first = owners.setdefault(module.weight.shape, module)
            if first is not module and self.chance(0.5) and isinstance(module.weight, nn.Parameter):
                module.weight = first.weight
                self.made.features.append("tied")

    def disturbed(self) -> None:
        """One of the things that may be refused."""
        net, what = self.net, self.random.choice(sorted(_DISTURBANCES))
        _DISTURBANCES[what](net, self.random)
        self.made.refusable.append(what)


def _call(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return module(x)


def _extents(channels: int, h: int, w: int, kernel: int, stride: int, padding: int) -> Shape:
    return channels, (h + 2 * padding - kernel) // stride + 1, (w + 2 * padding - kernel) // stride + 1


def _shape(x: torch.Tensor) -> Shape:
    return int(x.shape[1]), int(x.shape[2]), int(x.shape[3])


def _any(net: Network, generator: random.Random) -> nn.Module:
    return generator.choice([module for name, module in net.named_modules() if "parametrizations" not in name])


def _shared(net: Network, generator: random.Random) -> None:
    """The last convolution that keeps its shape is called twice."""
    for at, (function, sources, name) in enumerate(net.plan):
        module = getattr(net, name) if name else None
        if isinstance(module, nn.Conv2d) and module.in_channels == module.out_channels and module.padding == "same":
            net.plan[at] = (lambda m, x, f=function: f(m, f(m, x)), sources, name)


def _own_forward(net: Network, generator: random.Random) -> None:
    for module in net.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = Scaled
            return


def _instance(net: Network, generator: random.Random) -> None:
    module = _any(net, generator)
    before = module.forward
    module.forward = lambda *args, **options: before(*args, **options) * 0.5  # type: ignore[method-assign]


def _without_statistics(net: Network, generator: random.Random) -> None:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = None
            module.track_running_stats = False


def _then(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Network, random.Random], None]:
    return lambda net, generator: net.plan.append((function, (len(net.plan),), ""))


def _no_grad(net: Network, generator: random.Random) -> None:
    function, sources, name = net.plan[0]
    net.plan[0] = (torch.no_grad()(lambda *args: function(*args)), sources, name)


_DISTURBANCES: dict[str, Callable[[Network, random.Random], object]] = {
    "forward hook": lambda net, r: _any(net, r).register_forward_hook(lambda m, i, o: o * 0.5),
    "observing hook": lambda net, r: _any(net, r).register_forward_hook(lambda m, i, o: None),
    "pre-hook": lambda net, r: _any(net, r).register_forward_pre_hook(lambda m, i: tuple(one * 0.5 for one in i)),
    "backward hook": lambda net, r: _any(net, r).register_full_backward_hook(
        lambda m, i, o: tuple(None if g is None else g * 0.5 for g in i)
    ),
    "forward of its own": _own_forward,
    "forward of the instance": _instance,
    "shared": _shared,
    "norm of the batch": _without_statistics,
    "no_grad": _no_grad,
    "softmax": _then(lambda x: F.softmax(x, 1)),
    "scaled": _then(lambda x: x * 0.5),
    "shifted": _then(lambda x: x + 1),
    "doubled": _then(lambda x: x + x),
    "random": _then(lambda x: x if float(torch.rand(())) < 0.5 else F.relu(x)),
    "dropout that stays": _then(lambda x: F.dropout(x, 0.5, True)),
    "clamped": _then(lambda x: x.clamp(-0.1, 0.1)),
    "detached": _then(lambda x: x.detach()),
}


def make(seed: int) -> Made:
    """The random network of a seed."""
    maker = _Maker(seed)
    if maker.chance(0.8):
        maker.convolution(0, maker.random.choice((2, 4, 6)))
    for _ in range(maker.random.randint(1, 4)):
        maker.grown()
    if not maker.weights():
        maker.convolution(maker.last, 4)
    maker.head()
    maker.tied()
    maker.computed()
    if maker.chance(0.25):
        maker.disturbed()
    made = maker.made
    for parameter in made.net.parameters():
        if maker.chance(0.1):
            parameter.requires_grad_(False)
    made.net.train(maker.chance(0.5))
    if maker.chance(0.3):
        # PyTorch has no response norm and no orthogonal weights in half precision on the CPU.
        halves = () if {"norm", "orthogonal"} & {*made.features} else (torch.float16, torch.bfloat16)
        made.dtype = maker.random.choice((torch.float64, *halves))
    return made
