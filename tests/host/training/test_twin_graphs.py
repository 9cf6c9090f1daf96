"""The twin of a network that is a graph: gradients through additions, groups, averages and rearranged channels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from host.devices.reference import ReferenceDevice
from host.faults.models import SoftErrors
from host.program.layers import Normalisation, Pool
from host.training.autograd import DeviceLayer, Geometry, Recorded, through_activation
from host.training.protect import error_shares
from host.training.twin import Twin, attach
from hw.config import Config


class Residual(nn.Module):
    """A projection, an addition whose operands have other scales, a pooled copy, and an average."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.first = nn.Conv2d(6, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.short = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6 * 2 * 2, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, ceil_mode=True)
        x = F.relu(self.second(F.relu(self.first(x))) + x)
        y = F.relu(self.short(x))
        x = F.relu6(x + F.max_pool2d(y, 3, 1, 1))
        return self.fc(torch.flatten(F.avg_pool2d(x, 2), 1))


class Depthwise(nn.Module):
    """Inverted residual: depthwise, ReLU6, mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.widen, self.narrow = nn.Conv2d(4, 12, 1), nn.Conv2d(12, 4, 1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.grouped = nn.Conv2d(4, 8, 3, groups=2)
        self.relu = nn.ReLU6()
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.stem(x))
        x = x + self.narrow(self.relu(self.depthwise(self.relu(self.widen(x)))))
        return self.fc(self.relu(self.grouped(x)).mean((2, 3)))


class Shuffled(nn.Module):
    """Split, compute one half, concatenate, shuffle; then pool the concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.shuffle = nn.ChannelShuffle(2)
        self.fc = nn.Linear(12 * 4 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = F.relu(self.stem(x)).chunk(2, dim=1)
        x = self.shuffle(torch.cat((left, F.relu(self.branch(right))), 1))
        x = F.max_pool2d(torch.cat((x, self.other(x)), 1), 2)
        return self.fc(torch.flatten(x, 1))


def everything(twin: Twin) -> list[str]:
    return twin.layers


def exact(make: Callable[[], nn.Module]) -> tuple[nn.Module, torch.Tensor]:
    """A network of weights -1, 0 and 1 and images of 0 and 1 on which eight bits lose nothing."""
    generator = torch.Generator().manual_seed(4)
    net = make()
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                weight = torch.zeros(len(layer.weight), layer.weight[0].numel())
                for row in weight:
                    at = torch.randperm(len(row), generator=generator)[:2]
                    row[at] = torch.randint(0, 4, at.shape, generator=generator).clamp(max=2).float() - 1
                layer.weight.copy_(weight.reshape(layer.weight.shape))
                assert layer.bias is not None
                layer.bias.copy_(torch.randint(0, 2, layer.bias.shape, generator=generator).float())
    return net, torch.randint(0, 2, (48, 3, 8, 8), generator=generator).float()


def twin_of(net: nn.Module, x: torch.Tensor, **options: object) -> Twin:
    return attach(net, ReferenceDevice(Config(saboteur=True)), calibrate=x, **options)  # type: ignore[arg-type]


def gradients(net: nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    net.zero_grad()
    return found


@pytest.mark.parametrize("protect", [(), everything])
@pytest.mark.parametrize("make", [Residual, Depthwise, Shuffled])
def test_where_quantisation_is_exact_gradients_are_pytorchs_to_1e_5_layer_by_layer(
    make: Callable[[], nn.Module], protect: object
) -> None:
    net, x = exact(make)
    y = torch.arange(len(x)) % 5
    twin = twin_of(net, x, protect=protect)
    ours_x, theirs_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    value = twin(ours_x)
    assert torch.equal(value, net(x))
    F.cross_entropy(value, y).backward()
    found = gradients(net)
    F.cross_entropy(net(theirs_x), y).backward()
    for name, theirs in gradients(net).items():
        assert theirs.abs().max() > 0, name
        torch.testing.assert_close(found[name], theirs, rtol=1e-5, atol=1e-7, msg=name)
    torch.testing.assert_close(ours_x.grad, theirs_x.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", [Residual, Depthwise, Shuffled])
def test_at_eight_bits_gradients_point_like_pytorchs(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(6)
    net, x, y = make(), torch.rand(128, 3, 8, 8), torch.arange(128) % 5
    twin = twin_of(net, x, protect=everything)
    F.cross_entropy(twin(x), y).backward()
    ours = gradients(net)
    F.cross_entropy(net(x), y).backward()
    for name, theirs in gradients(net).items():
        cosine = F.cosine_similarity(ours[name].flatten(), theirs.flatten(), dim=0)
        assert cosine > 0.95, f"{name}: {float(cosine):.4f}"


def test_only_layers_with_weights_are_requantised() -> None:
    net, x = exact(Residual)
    twin = twin_of(net, x, protect=everything)
    assert twin.refresh() == ["stem", "first", "second", "short", "fc"]
    assert twin.refresh() == []
    with torch.no_grad():
        net.get_parameter("short.weight").mul_(2)
    assert twin.refresh() == ["short"]


def test_protecting_by_errors_walks_the_graph() -> None:
    net, x = exact(Shuffled)
    twin = twin_of(net, x, protect=everything)
    shares = error_shares(twin, SoftErrors(0.01, per="mac"), x)
    assert shares == dict.fromkeys(twin.layers, 0)


def test_relu6_stops_the_gradient_at_its_bound() -> None:
    values = np.array([[[[0, 1, 95], [96, 96, 5]]]], np.int8)
    geometry = Geometry(False, (1, 1), (0, 0), True, None, (1, 2, 3), 4, 4, upper=96)
    passed = through_activation(torch.ones(1, 1, 2, 3), Recorded(values, values, values), geometry)
    assert passed[0, 0].tolist() == [[0, 1, 1], [0, 0, 1]]


def test_windows_beyond_the_border_send_their_gradient_inside() -> None:
    values = np.array([[[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]], np.int8)
    geometry = Geometry(False, (1, 1), (0, 0), False, Pool(2, 2, ceil=True), (1, 3, 3), 0, 0)
    made = Recorded(values, values, np.array([[[[5, 6], [8, 9]]]], np.int8))
    passed = through_activation(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), made, geometry)
    assert passed[0, 0].tolist() == [[0, 0, 0], [0, 1, 2], [0, 3, 4]]


def test_response_normalisations_gradient_is_the_float_formulas_at_the_devices_input() -> None:
    how = Normalisation(3, 0.9, 0.75, 1.0)
    integers = np.random.default_rng(3).integers(-100, 100, (2, 5, 3, 3)).astype(np.int8)
    geometry = Geometry(False, (1, 1), (0, 0), False, None, (5, 3, 3), 4, 4, 5, normalisation=how)
    middle = integers // 2
    x = torch.zeros(2, 5, 3, 3, requires_grad=True)
    weights = torch.ones(5, 1, 1, 1)
    DeviceLayer.apply(x, weights, None, geometry, Recorded(integers, middle, middle), middle).square().sum().backward()
    real = (torch.from_numpy(integers).float() / 16).requires_grad_()
    upstream = 2 * torch.from_numpy(middle).float() / 16
    (wanted,) = torch.autograd.grad(F.local_response_norm(real, 3, 0.9), real, upstream)
    torch.testing.assert_close(x.grad, wanted, rtol=1e-5, atol=1e-7)
