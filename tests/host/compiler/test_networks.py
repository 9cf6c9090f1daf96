"""Networks as users have them: what is understood, and what is refused by name with the way on."""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from host.compiler.compile import compile as compile_network
from host.compiler.limits import CompileError
from host.devices.reference import ReferenceDevice
from host.program.program import Program
from host.training.twin import Twin, attach
from hw.config import Config
from tests.host import straight_through

CONFIG = Config(lanes=4, vec=4)
X = torch.rand(8, 1, 10, 10, generator=torch.Generator().manual_seed(1))


def compiled(net: nn.Module) -> Program:
    return compile_network(net, CONFIG, calibrate=X)


def attached(net: nn.Module) -> Twin:
    return attach(net, ReferenceDevice(CONFIG), calibrate=X)


def base() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))


class Body(nn.Module):
    """A convolution, a batch norm, a linear layer, and a forward of the test's."""

    def __init__(self, body: Callable[[Body, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.other, self.norm = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        nn.init.uniform_(self.norm.running_mean, -0.3, 0.3)
        self.dropout, self.fc = nn.Dropout(0.5), nn.Linear(256, 3)
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self, x)


# -- understood


class Named(nn.Module):
    """Modules whose names mean something else here."""

    def __init__(self) -> None:
        super().__init__()
        self.input, self.output = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.net, self.network, self.add = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.network(self.net(self.output(self.input(x))))
        return F.relu(x + self.add(x))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, *more: object, **options: object) -> object:
        x = self.conv(x)
        return x if mask is None and not more else x * mask


class Overridden(nn.Sequential):
    """Whose `train` keeps its batch norm frozen, as in transfer learning."""

    def train(self, mode: bool = True) -> Overridden:
        super().train(mode)
        self[1].eval()
        return self


def averaged() -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(base())


def materialised() -> nn.Module:
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(3))
    net(X)
    return net


UNDERSTOOD: dict[str, Callable[[], nn.Module]] = {
    "names": Named,
    "an optional argument": Masked,
    "one convolution": lambda: nn.Conv2d(1, 4, 3),
    "one linear layer in a Sequential": lambda: nn.Sequential(nn.Flatten(), nn.Linear(100, 3)),
    "a list of parameters": lambda: WithParameters(),
    "a graph module": lambda: fx.symbolic_trace(base()),
    "an averaged model": averaged,
    "lazy no longer": materialised,
    "its own train": lambda: Overridden(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
    "keywords": lambda: Body(
        lambda n, x: n.fc(
            input=torch.flatten(input=F.relu(input=torch.add(input=n.conv(input=x), other=n.other(x))), start_dim=1)
        )
    ),
    "norm by keyword": lambda: Body(lambda n, x: n.norm(input=n.conv(x))),
    "pools by keyword": lambda: Body(
        lambda n, x: F.avg_pool2d(input=F.max_pool2d(kernel_size=2, input=n.conv(x)), kernel_size=2)
    ),
    "means by keyword": lambda: Body(lambda n, x: torch.mean(input=n.conv(x), dim=(2, 3))),
    "dropout of p=0": lambda: Body(lambda n, x: F.dropout(n.conv(x), 0.5, n.training)),
    "random in training": lambda: Body(lambda n, x: n.conv(x) if not n.training or torch.rand(()) < 0.5 else x),
    "converted to what it is": lambda: Body(
        lambda n, x: F.dropout2d(n.conv(x.clone().float().to(n.conv.weight.dtype)), training=n.training)
    ),
    "a frozen stem": lambda: Body(lambda n, x: n.other.requires_grad_(False)(x) + n.conv(x)),
    "detached for a log": lambda: Body(lambda n, x: (n.conv(x).detach(), n.conv.weight.abs().sum(), n.other(x))[2]),
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", UNDERSTOOD)
def test_what_is_understood_follows_the_float_network_and_the_rule(name: str, training: bool) -> None:
    torch.manual_seed(3)
    net = UNDERSTOOD[name]().train(training)
    twin = attached(net)
    straight_through.check(twin, X)


def test_a_module_named_like_the_input_gives_its_layer_another_name() -> None:
    program = compiled(Named())
    assert program.names == ("input_1", "output", "net", "network", "add", "add_1")
    assert program.modules["input_1"] == "input"
    assert program.layer("input_1").sources == ("input",)
    assert program.layer("output").sources == ("input_1",)


def test_tracing_changes_neither_the_network_nor_the_generators() -> None:
    net = Body(lambda n, x: n.norm(n.conv(x)))
    before, states = {k: v.clone() for k, v in net.state_dict().items()}, (torch.get_rng_state(), random.getstate())
    compiled(net)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_compiling_is_the_same_in_every_gradient_mode(context: Callable[[], torch.no_grad]) -> None:
    net = Body(lambda n, x: n.norm(n.conv(x)))
    with context():
        found = compiled(net).digest
    assert found == compiled(net).digest


# -- refused


def compiled_by_torch() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        return torch.compile(base())


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and still everywhere
        return torch.jit.script(base())


def traced_by_jit() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(base(), X)


def meta() -> nn.Module:
    with torch.device("meta"):
        return base()


def of_dtype(change: Callable[[nn.Module], object], net: nn.Module | None = None) -> nn.Module:
    net = base() if net is None else net
    change(net)
    return net


class Two(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lock = nn.Conv2d(1, 4, 3), threading.Lock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class AlwaysDropping(nn.Module):
    """Monte Carlo dropout: on in evaluation, too."""

    def __init__(self, kind: type[nn.Module] = nn.Dropout) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(1, 4, 3), kind(0.5) if kind is nn.Dropout else kind(4)

    def train(self, mode: bool = True) -> AlwaysDropping:
        super().train(mode)
        self.drop.train()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.conv(x))


@fx.wrap
def relu(x: torch.Tensor) -> torch.Tensor:
    """Of that name, and something else."""
    return x * 3


def second_name(net: Body, x: torch.Tensor) -> torch.Tensor:
    y = kept = net.conv(x)
    y += net.other(x)
    return y + F.relu(kept)


def collected(net: Body, x: torch.Tensor) -> torch.Tensor:
    y = net.conv(x)
    features = [y]
    y += net.other(x)
    return torch.cat([*features, F.relu(y)], 1)


def out_of_place(net: Body, x: torch.Tensor) -> torch.Tensor:
    y = net.conv(x)
    torch.add(y, net.other(x), out=y)
    return y


def assigned(net: Body, x: torch.Tensor) -> torch.Tensor:
    y = net.conv(x)
    y.__setitem__((slice(None), slice(0, 1)), 0.0)
    return y


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, *, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def with_weight(dtype: torch.dtype) -> nn.Module:
    net = base()
    net[0].weight = nn.Parameter(net[0].weight.detach().to(dtype), requires_grad=False)
    return net


class WithParameters(nn.Module):
    """A list of parameters beside what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.more = nn.Conv2d(1, 4, 3), nn.ParameterList([torch.ones(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class Counting(nn.Module):
    """Computes something else every other time."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.calls = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.a(x) if self.calls % 2 else self.b(x)


def without_gradient(net: Body, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        x = net.conv(x)
    return net.fc(torch.flatten(x, 1))


def draws(how: Callable[[], float]) -> Callable[[], nn.Module]:
    return lambda: Body(lambda n, x: n.conv(x) if how() < 0.5 else n.other(x))


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: compiled_by_torch(), r"'network \(OptimizedModule\)': it wraps .*the wrapped module \(net._orig_mod\)"),
    (lambda: nn.DataParallel(base()), r"'network \(DataParallel\)': .*pass the wrapped module \(net.module\)"),
    (lambda: nn.Sequential(nn.DataParallel(base())), r"'0 \(DataParallel\)': .*the wrapped module \(net.0.module\)"),
    (lambda: nn.Sequential(compiled_by_torch()), r"'0 \(OptimizedModule\)': .*\(net.0._orig_mod\)"),
    (scripted, r"'network \(RecursiveScriptModule\)': it is a scripted module; pass the wrapped module"),
    (traced_by_jit, r"'network \(TopLevelTracedModule\)': it is a scripted module; pass the wrapped module"),
    (lambda: nn.Sequential(scripted()), r"'0 \(RecursiveScriptModule\)': it is a scripted module"),
    (lambda: torch.export.export(base(), (X,)).module(), r"GraphModule\)': it is an exported module; pass the wrapped"),
    (lambda: torch.export.export(base(), (X,)), "'ExportedProgram': it is no nn.Module; pass the module that"),
    (lambda: base().forward, "'method': it is no nn.Module; pass an nn.Module"),
    (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), r"'0 \(LazyConv2d\)': it is lazy: .* run the network once on images"),
    (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.LazyBatchNorm2d()), r"'1 \(LazyBatchNorm2d\)': it is lazy"),
    (meta, r"'0 \(Conv2d\)': its weight is on the meta device .* load its weights"),
    (lambda: nn.Sequential(nn.Conv2d(1, 4, 3, dtype=torch.complex64)), r"'0 \(Conv2d\)': its weight is complex"),
    (lambda: nn.Sequential(*base(), nn.LogSoftmax(1)), r"'4 \(LogSoftmax\)': .* remove it: argmax is the same"),
    (lambda: nn.Sequential(*base(), nn.Softmax(1)), r"'4 \(Softmax\)': .* remove it: argmax is the same"),
    (lambda: Body(lambda n, x: F.log_softmax(n.conv(x), 1)), "'log_softmax': .* remove it: argmax is the same"),
    (lambda: Body(lambda n, x: n.conv(x).softmax(1)), "'softmax': .* remove it: argmax is the same"),
    (lambda: Body(lambda n, x: F.softmax(n.conv(x), dim=1)), "'softmax': .* remove it: argmax is the same"),
    (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
     r"'1 \(BatchNorm2d\)': it has no running statistics.*track_running_stats=True"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(100, 4), nn.BatchNorm1d(4, track_running_stats=False)),
     r"'2 \(BatchNorm1d\)': it has no running statistics"),
    (Two, "the network takes several inputs; give it one"),
    (lambda: fx.symbolic_trace(Two()), "the network takes several inputs; give it one"),
    (Locked, "'Locked': it cannot be copied .*locks.*outside the network"),
    (AlwaysDropping, r"'drop \(Dropout\)': dropout that stays on in evaluation"),
    (lambda: AlwaysDropping(nn.BatchNorm2d), r"'drop \(BatchNorm2d\)': batch norm that stays in training"),
    (lambda: Body(lambda n, x: F.dropout(n.conv(x))), "'dropout': dropout that stays on in evaluation"),
    (lambda: Body(without_gradient), "under no_grad within forward.*requires_grad_"),
    (draws(lambda: float(torch.rand(()))), "'Body': its forward draws random numbers in evaluation mode"),
    (draws(random.random), "'Body': its forward draws random numbers in evaluation mode"),
    (draws(np.random.rand), "'Body': its forward draws random numbers in evaluation mode"),
    (lambda: Body(lambda n, x: relu(n.conv(x))), "'relu': this operator is not supported"),
    (lambda: nn.ModuleList([nn.Conv2d(1, 4, 3)]), "'ModuleList': it has no forward; pass a module that"),
    (ByKeyword, "'ByKeyword': its forward takes no images; let its first argument"),
    (lambda: with_weight(torch.int8), r"'0 \(Conv2d\)': its weight is torch.int8; use floating-point weights"),
    (lambda: Body(second_name), "'Body': its trace computes something else than the network itself .* second name"),
    (lambda: Body(collected), "'Body': its trace computes something else than the network itself"),
    (Counting, "'Counting': its trace computes something else than the network itself .* no count"),
    (lambda: Body(out_of_place), "'add': it writes into another tensor"),
    (lambda: Body(assigned), "__setitem__.*: it writes into another tensor"),
    (lambda: Body(lambda n, x: n.conv(x).half().float()), "'half': this operator is not supported"),
    (lambda: Body(lambda n, x: n.conv(x).to(torch.float64)), "'to': it changes the type of values"),
    (lambda: Body(lambda n, x: n.fc(F.softmax(n.conv(x), 1).flatten(1))), "'softmax': .*supported; use Conv2d"),
    (lambda: Body(lambda n, x: n.conv(x).detach()), "'detach': this operator is not supported"),
    (lambda: Body(lambda n, x: n.conv(n.dropout(x)) + 1), "an addition of something that is no tensor"),
    (lambda: Body(lambda n, x: F.conv2d(x, n.conv.weight)), "'conv.weight': forward computes with this tensor"),
    (lambda: Body(lambda n, x: n.fc(n.conv(x).flatten(1)) @ n.fc.weight), "'fc.weight': forward computes with"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSED)
@pytest.mark.parametrize("enter", [compiled, attached])
def test_what_is_not_understood_is_refused_by_name_with_the_way_on(
    enter: Callable[[nn.Module], object], make: Callable[[], nn.Module], message: str
) -> None:
    net = make()
    with pytest.raises(CompileError, match=message) as caught:
        enter(net)
    assert str(caught.value).endswith(caught.value.remedy)
