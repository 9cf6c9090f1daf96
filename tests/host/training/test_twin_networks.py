"""Twins of networks that are more than their modules' parameters: modes, hooks, parametrisations, later changes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from host.compiler.compile import compile as compile_network
from host.compiler.limits import CompileError
from host.devices.reference import ReferenceDevice
from host.training.twin import AttachError, Twin, attach
from hw.config import Config
from tests.host import straight_through
from tests.host.parametrised import COMPUTED

CONFIG = Config(lanes=4, vec=4)
X = torch.rand(8, 1, 10, 10, generator=torch.Generator().manual_seed(1))


def twin_of(net: nn.Module) -> Twin:
    return attach(net, ReferenceDevice(CONFIG), calibrate=X)


class Block(nn.Module):
    """A residual block that does something else in training; the batch norm is called by keyword."""

    def __init__(self, choose: Callable[[Block, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        nn.init.uniform_(self.norm.running_var, 0.05, 0.2)
        nn.init.uniform_(self.norm.running_mean, -0.5, 0.5)
        self.choose = choose

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.choose(self, x) if self.training else F.relu(x + self.norm(input=self.conv(input=x)))


BLOCKS: list[Callable[[Block, torch.Tensor], torch.Tensor]] = [
    lambda block, x: x,
    lambda block, x: block.conv(x),
    lambda block, x: F.relu(x + F.dropout(block.conv(x), 0.5)),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("choose", BLOCKS)
def test_what_is_computed_is_what_evaluation_mode_computes(
    choose: Callable[[Block, torch.Tensor], torch.Tensor], training: bool
) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), Block(choose), nn.Flatten(), nn.Linear(256, 3)).train(training)
    twin = twin_of(net)
    assert net.training is training
    compiled = compile_network(net, CONFIG, calibrate=X)
    assert twin.program.digest == compiled.digest
    twin.refresh()
    assert twin.program.digest == compiled.digest
    twin.train()(X).sum().backward()
    assert net[1].norm.weight.grad is not None
    straight_through.check(twin, X)


# -- weights that are computed


@pytest.mark.parametrize("forward", [None, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("at", [0, 3, 5])
@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights_have_their_value_and_their_parameters_the_rules_gradients(
    name: str, at: int, forward: Callable[[], torch.no_grad] | None
) -> None:
    torch.manual_seed(4)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten())
    net.append(nn.Linear(144, 3))
    nn.init.uniform_(net[1].running_mean, -0.3, 0.3)
    COMPUTED[name](net[at])
    if forward is not None:
        with forward():
            net(X)  # the usual validation before attaching
    state = {key: value.clone() for key, value in net.state_dict().items()}
    twin = twin_of(net)
    straight_through.check(twin, X)
    straight_through.check(copy.deepcopy(twin), X)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    # The twin follows training.
    optimiser = torch.optim.SGD([one for one in net.parameters() if one.requires_grad], 0.05)
    twin.train()
    for _ in range(3):
        optimiser.zero_grad()
        (twin(X) ** 2).sum().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
    straight_through.check(twin, X)


@pytest.mark.parametrize("at", [0, 3])
def test_pruning_after_attach_is_followed(at: int) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    twin = twin_of(net)
    straight_through.check(twin, X)
    prune.l1_unstructured(net[at], "weight", 0.5)
    straight_through.check(twin, X)
    prune.remove(net[at], "weight")
    straight_through.check(twin, X)
    assert float((net[at].weight == 0).float().mean()) >= 0.5


class Tied(nn.Module):
    """Two convolutions of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
        self.stem, self.norm = nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.fc(F.relu(self.norm(self.a(x)) + self.norm(self.b(F.relu(x)))).mean((2, 3)))


def test_tied_weights_and_shared_norms_get_the_sum_of_their_gradients() -> None:
    straight_through.check(twin_of(Tied()), X)


# -- what a module does besides


def double(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output * 2


def replaced_forward(module: nn.Module) -> None:
    before = module.forward
    module.forward = lambda x: before(x) * 2  # type: ignore[method-assign]


HOOKS: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "changes": (lambda module: module.register_forward_hook(double), r"it has a forward hook \(double\)"),
    "zeroes": (lambda module: module.register_forward_hook(lambda m, i, o: torch.zeros_like(o)), "a forward hook"),
    "in place": (lambda module: module.register_forward_hook(lambda m, i, o: o.mul_(2)), "a forward hook"),
    "observes": (lambda module: module.register_forward_hook(lambda m, i, o: None), "a forward hook"),
    "with keywords": (
        lambda module: module.register_forward_hook(lambda m, i, k, o: None, with_kwargs=True),
        "a forward hook",
    ),
    "before": (lambda module: module.register_forward_pre_hook(lambda m, i: (i[0] * 2,)), "a forward pre-hook"),
    "backward": (
        lambda module: module.register_full_backward_hook(lambda m, i, o: tuple(g and g * 2 for g in i)),
        "a backward hook",
    ),
    "before backward": (
        lambda module: module.register_full_backward_pre_hook(lambda m, o: (o[0] * 2,)),
        "a backward pre-hook",
    ),
    "forward of the instance": (replaced_forward, "its forward was replaced on the instance"),
}


def hooked() -> nn.Sequential:
    torch.manual_seed(5)
    inner = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), inner, nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.parametrize("where", ["0", "1", "2", "2.0", "3", "4", ""])
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_are_refused_by_name_before_and_after_attaching(name: str, where: str) -> None:
    hang, message = HOOKS[name]
    net = hooked()
    hang(net.get_submodule(where))
    named = rf"layer '{where or 'network'} \(\w+\)': .*{message}"
    with pytest.raises(CompileError, match=named):
        twin_of(net)
    with pytest.raises(CompileError, match=named):
        compile_network(net, CONFIG, calibrate=X)
    net = hooked()
    twin = twin_of(net)
    hang(net.get_submodule(where))
    with pytest.raises(CompileError, match=named):
        twin(X)
    with pytest.raises(CompileError, match=named):
        twin.eval()(X)


def test_a_hook_that_was_removed_is_forgotten() -> None:
    net = hooked()
    twin = twin_of(net)
    handle = net[0].register_forward_hook(double)
    with pytest.raises(CompileError, match="a forward hook"):
        twin(X)
    handle.remove()
    straight_through.check(twin, X)


def test_hooks_on_parameters_are_autograds_and_stay() -> None:
    net = hooked()
    twin = twin_of(net).train()
    twin(X).sum().backward()
    before = net[0].weight.grad.clone()
    net.zero_grad()
    net[0].weight.register_hook(lambda gradient: gradient * 2)
    twin(X).sum().backward()
    assert torch.allclose(net[0].weight.grad, 2 * before)


def test_hooks_on_all_modules_are_refused() -> None:
    twin = twin_of(hooked())
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    try:
        for attempt in (lambda: twin_of(hooked()), twin.refresh):
            with pytest.raises(CompileError, match="a hook of all modules is registered"):
                attempt()
    finally:
        handle.remove()
    twin(X)


class Conv3x3(nn.Conv2d):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3)


class OwnForward(Conv3x3):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class OwnConvolution(Conv3x3):
    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return super()._conv_forward(x, 2 * weight, bias)


class OwnCall(Conv3x3):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x) * 2


class OwnLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.sign(), self.bias)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class OwnReLU(nn.ReLU):
    """Traced through, since it is no leaf."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu6(x)


def test_a_subclass_that_only_constructs_otherwise_is_its_class() -> None:
    net = nn.Sequential(Conv3x3(1, 4), OwnReLU(), nn.Flatten(), nn.Linear(256, 3))
    with torch.no_grad():
        net[0].weight *= 20
    straight_through.check(twin_of(net), X)


def quantisation_aware() -> list[nn.Module]:
    from torch.ao.nn import intrinsic, qat
    from torch.ao.quantization import default_qat_qconfig

    return [
        qat.Conv2d(1, 4, 3, qconfig=default_qat_qconfig),
        intrinsic.qat.ConvReLU2d(1, 4, 3, qconfig=default_qat_qconfig),
        intrinsic.qat.ConvBn2d(1, 4, 3, qconfig=default_qat_qconfig),
    ]


@pytest.mark.parametrize(
    "first",
    [
        lambda: OwnForward(1, 4),
        lambda: OwnConvolution(1, 4),
        *(lambda at=at: quantisation_aware()[at] for at in range(3)),
    ],
)
def test_a_leaf_with_a_forward_of_its_own_is_refused_by_name(first: Callable[[], nn.Module]) -> None:
    with pytest.raises(
        CompileError, match=r"layer '0 \(\w+\)': it is a Conv2d whose class has a forward of its own .*plain"
    ):
        twin_of(nn.Sequential(first(), nn.Flatten(), nn.Linear(256, 3)))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: nn.Sequential(OwnCall(1, 4)), r"'0 \(OwnCall\)': its class has a __call__ of its own"),
        (lambda: nn.Sequential(nn.Flatten(), OwnLinear(100, 3)), r"'1 \(OwnLinear\)': it is a Linear whose class"),
        (lambda: nn.Sequential(Conv3x3(1, 4), OwnNorm(4)), r"'1 \(OwnNorm\)': it is a BatchNorm2d whose class"),
    ],
)
def test_other_leaves_with_a_way_of_their_own_are_refused_by_name(net: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        twin_of(net())


# -- what changes after attaching


class Changing(nn.Module):
    """Its forward depends on an attribute, and it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(64, 3)
        nn.init.uniform_(self.norm.running_mean, -0.3, 0.3)
        self.skip, self.calls, self.seen = False, 0, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen = [self.calls]
        x = self.conv(x) if self.skip else self.norm(self.conv(x))
        return self.fc(torch.flatten(self.pool(self.relu(x)), 1))


def in_place(net: Changing, **attributes: object) -> None:
    for path, value in attributes.items():
        *parents, name = path.split("__")
        setattr(net.get_submodule(".".join(parents)), name, value)


def another_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(4)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm


FOLLOWED: dict[str, Callable[[Changing], None]] = {
    "bias removed": lambda net: in_place(net, conv__bias=None, fc__bias=None),
    "bias added": lambda net: in_place(net, conv__bias=nn.Parameter(torch.full((4,), 0.2))),
    "weight replaced": lambda net: in_place(net, fc__weight=nn.Parameter(net.fc.weight.detach() * 0.7)),
    "module replaced": lambda net: in_place(net, conv=nn.Conv2d(1, 4, 3)),
    "norm replaced": lambda net: in_place(net, norm=another_norm()),
    "norm's epsilon": lambda net: in_place(net, norm__eps=0.3),
    "norm's statistics": lambda net: in_place(net, norm__running_mean=torch.full((4,), -0.1)),
    "norm's parameters": lambda net: in_place(net, norm__weight=None, norm__bias=None),
    "ReLU in place": lambda net: in_place(net, relu__inplace=True),
    "dropout between": lambda net: in_place(net, pool=nn.Sequential(nn.Dropout(), net.pool)),
    "loaded": lambda net: net.load_state_dict({k: v * 0.9 for k, v in net.state_dict().items()}) and None,
    "parametrised": lambda net: parametrizations.weight_norm(net.fc) and None,
    "counted": lambda net: (net(X), None)[1],
}
REFUSED: dict[str, Callable[[Changing], None]] = {
    "stride": lambda net: in_place(net, conv__stride=(2, 2)),
    "padding": lambda net: in_place(net, conv__padding=(1, 1)),
    "dilation": lambda net: in_place(net, conv__dilation=(2, 2)),
    "groups": lambda net: in_place(net, conv__groups=2),
    "smaller": lambda net: in_place(net, conv=nn.Conv2d(1, 4, 1)),
    "norm removed": lambda net: in_place(net, norm=nn.Identity()),
    "norm without statistics": lambda net: in_place(net, norm=nn.BatchNorm2d(4, track_running_stats=False)),
    "statistics removed": lambda net: in_place(net, norm__running_mean=None, norm__running_var=None),
    "ReLU removed": lambda net: in_place(net, relu=nn.Identity()),
    "ReLU6": lambda net: in_place(net, relu=nn.ReLU6()),
    "another pool": lambda net: in_place(net, pool=nn.AvgPool2d(2)),
    "pool's window": lambda net: in_place(net, pool__kernel_size=3),
    "pool rounds up": lambda net: in_place(net, pool=nn.MaxPool2d(3, 2, ceil_mode=True)),
    "control flow": lambda net: in_place(net, skip=True),
    "layer added": lambda net: in_place(net, fc=nn.Sequential(net.fc, nn.ReLU())),
    "lazy": lambda net: in_place(net, fc=nn.LazyLinear(3)),
    "class": lambda net: setattr(net.conv, "__class__", OwnForward),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_changes_after_attaching_is_followed(name: str) -> None:
    torch.manual_seed(6)
    net = Changing()
    twin = attach(net, ReferenceDevice(CONFIG), calibrate=X)
    straight_through.check(twin, X)
    FOLLOWED[name](net)
    straight_through.check(twin, X)


@pytest.mark.parametrize("name", REFUSED)
def test_what_computes_something_else_after_attaching_is_refused(name: str) -> None:
    torch.manual_seed(6)
    net = Changing()
    twin = twin_of(net)
    twin(X)
    REFUSED[name](net)
    for _ in range(2):
        with pytest.raises(CompileError):
            twin(X)
    with pytest.raises(CompileError):
        twin.eval()(X)


def test_a_change_names_the_layer_and_the_remedy() -> None:
    net = Changing()
    twin = twin_of(net)
    net.pool.stride = 1
    with pytest.raises(CompileError, match="layer '.*': the network .*"):
        twin(X)
    net.pool.stride = 2
    net.relu = nn.ReLU6()
    with pytest.raises(CompileError, match="layer 'conv': the network was changed after it was attached"):
        twin(X)


@pytest.mark.parametrize(
    "other",
    [
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(256, 3)),
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)),
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)),
        lambda: nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)),
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()),
    ],
)
def test_a_program_of_another_network_is_refused(other: Callable[[], nn.Module]) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    program = compile_network(net, CONFIG, calibrate=X)
    Twin(net, program, ReferenceDevice(CONFIG))(X)
    with pytest.raises(AttachError, match="the program was compiled from another network: they differ at layer '.*'"):
        Twin(other(), program, ReferenceDevice(CONFIG))
