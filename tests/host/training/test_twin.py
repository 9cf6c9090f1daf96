"""The twin: device values forward, float gradients backward, faults that leave no trace."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from host import models
from host.devices.device import Int8
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Outputs, Runtime
from host.faults.models import SoftErrors
from host.program.layers import Pool
from host.program.program import ProgramError
from host.training import protect
from host.training.autograd import DeviceLayer, Geometry, Recorded, through_activation
from host.training.protect import by_accuracy, by_error_distribution, error_shares
from host.training.twin import AttachError, Twin, attach
from hw.config import Config

FAULTS = SoftErrors(2e-3, per="mac")


def device() -> ReferenceDevice:
    return ReferenceDevice(Config(saboteur=True))


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(seed))


def lenet_twin(**options: object) -> Twin:
    return attach(models.lenet5(pretrained=True), device(), calibrate=images(64), **options)  # type: ignore[arg-type]


def sparse(shape: tuple[int, ...], taps: int, generator: torch.Generator) -> torch.Tensor:
    """Weights of -1, 0 and 1 with few taps an output, so that every sum is a small integer."""
    weight = torch.zeros(shape[0], int(np.prod(shape[1:])))
    for row in weight:
        at = torch.randperm(len(row), generator=generator)[:taps]
        row[at] = torch.randint(0, 2, (taps,), generator=generator).float() * 2 - 1
    return weight.reshape(shape)


def exact_lenet() -> tuple[nn.Module, torch.Tensor]:
    """A LeNet-5 and images on which eight bits lose nothing: quantisation as fine as it can be."""
    generator = torch.Generator().manual_seed(3)
    net = models.lenet5()
    with torch.no_grad():
        for name, taps in (("conv1", 3), ("conv2", 3), ("fc1", 3), ("fc2", 2), ("fc3", 2)):
            layer = net.get_submodule(name)
            layer.weight.copy_(sparse(tuple(layer.weight.shape), taps, generator))
            layer.bias.copy_(torch.randint(-1, 2, layer.bias.shape, generator=generator).float())
    return net, torch.randint(0, 2, (48, 1, 28, 28), generator=generator).float()


# ---- gradients


def gradients(net: nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    net.zero_grad()
    return found


def test_where_quantisation_is_exact_gradients_are_pytorchs_to_1e_5_layer_by_layer() -> None:
    net, x = exact_lenet()
    y = torch.arange(len(x)) % 10
    twin = attach(net, device(), calibrate=x)
    value = twin(x)
    assert torch.equal(value, net(x))
    F.cross_entropy(value, y).backward()
    ours = gradients(net)
    F.cross_entropy(net(x), y).backward()
    theirs = gradients(net)
    for name in theirs:
        assert theirs[name].abs().max() > 0, name
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-7, msg=name)


def test_at_eight_bits_gradients_point_within_15_degrees_of_pytorchs_layer_by_layer() -> None:
    # Rounding moves a pooling's choice or a ReLU's sign here and there, the more the deeper the gradient goes.
    twin = lenet_twin()
    x, y = images(256, seed=1), torch.arange(256) % 10
    F.cross_entropy(twin(x), y).backward()
    ours = gradients(twin.net)
    F.cross_entropy(twin.net(x), y).backward()
    for name, theirs in gradients(twin.net).items():
        cosine = F.cosine_similarity(ours[name].flatten(), theirs.flatten(), dim=0)
        assert cosine > np.cos(np.radians(15)), f"{name}: {float(cosine):.4f}"


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(F.relu(self.norm(self.conv(x))), 1))


def test_gradients_reach_batch_norm_through_the_folded_weights() -> None:
    torch.manual_seed(1)
    net = Normed()
    with torch.no_grad():
        net.norm.running_mean.normal_()
        net.norm.running_var.uniform_(0.5, 2)
        net.norm.weight.uniform_(0.5, 2)
    x, y = torch.randn(64, 3, 8, 8), torch.arange(64) % 5
    twin = attach(net, device(), calibrate=x, per_channel=True)
    F.cross_entropy(twin(x), y).backward()
    ours = gradients(net)
    F.cross_entropy(net.eval()(x), y).backward()
    for name, theirs in gradients(net).items():
        cosine = F.cosine_similarity(ours[name].flatten(), theirs.flatten(), dim=0)
        assert cosine > 0.98, f"{name}: {float(cosine):.4f}"


def geometry(*, relu: bool = False, pool: Pool | None = None) -> Geometry:
    return Geometry(False, (1, 1), (0, 0), relu, pool, (1, 2, 2), 0, 0)


def recorded(conv: list[list[int]]) -> Recorded:
    values = np.array([[conv]], np.int8)
    return Recorded(values, values, values)


def test_relu_and_saturation_stop_the_gradient_where_the_device_clamped() -> None:
    ones = torch.ones(1, 1, 2, 3)
    device_values = [[-128, -127, 0], [1, 126, 127]]
    plain = through_activation(ones, recorded(device_values), geometry())
    assert plain[0, 0].tolist() == [[0, 1, 1], [1, 1, 0]]
    relu = through_activation(ones, recorded(device_values), geometry(relu=True))
    assert relu[0, 0].tolist() == [[0, 0, 0], [1, 1, 0]]


def test_pooling_sends_the_gradient_to_the_first_largest_value_of_the_device() -> None:
    conv = np.array([[[[1, 5], [5, 2]]]], np.int8)
    made = Recorded(conv, conv, np.array([[[[5]]]], np.int8))
    spread = through_activation(torch.full((1, 1, 1, 1), 3.0), made, geometry(pool=Pool(2, 2)))
    assert spread[0, 0].tolist() == [[0, 3], [0, 0]]


def test_overlapping_pooling_windows_add_their_gradients() -> None:
    conv = np.array([[[[0, 0, 0], [0, 9, 0], [0, 0, 0]]]], np.int8)
    made = Recorded(conv, conv, np.full((1, 1, 2, 2), 9, np.int8))
    spread = through_activation(torch.ones(1, 1, 2, 2), made, geometry(pool=Pool(2, 1)))
    assert spread[0, 0].tolist() == [[0, 0, 0], [0, 4, 0], [0, 0, 0]]


def test_the_value_is_the_devices_whatever_the_float_input_holds() -> None:
    conv = np.array([[[[4]]]], np.int8)
    made = Recorded(conv, conv, conv)
    value = DeviceLayer.apply(
        torch.full((1, 1, 1, 1), float("nan")), torch.ones(1, 1, 1, 1, requires_grad=True), None, geometry(), made, conv
    )
    assert value.item() == 4


def test_clean_gradient_equals_straight_through_without_faults() -> None:
    x, y = images(16), torch.arange(16) % 10
    found = []
    for policy in ("straight_through", "clean"):
        twin = lenet_twin(gradient=policy)
        F.cross_entropy(twin(x), y).backward()
        found.append(gradients(twin.net))
    for name in found[0]:
        assert torch.equal(found[0][name], found[1][name])


def test_clean_gradient_has_the_faulty_value_but_goes_through_fault_free_activations() -> None:
    x, y = images(16), torch.arange(16) % 10
    values, found = {}, {}
    for policy in ("straight_through", "clean"):
        twin = lenet_twin(gradient=policy)
        with FAULTS.on(twin, seed=5):
            values[policy] = twin(x)
            F.cross_entropy(values[policy], y).backward()
        found[policy] = gradients(twin.net)
    assert torch.equal(values["straight_through"], values["clean"])
    assert not torch.equal(found["straight_through"]["conv2.weight"], found["clean"]["conv2.weight"])


# ---- forward


class Spy(Runtime):
    """A Runtime that notes what it is asked."""

    asked: list[bool]

    def forward(self, x: Int8, *, writeback: bool = True, **options: object) -> Outputs:  # type: ignore[override]
        self.asked.append(writeback)
        return super().forward(x, writeback=writeback, **options)  # type: ignore[arg-type]


def test_only_training_writes_layers_back_and_both_modes_give_the_same_value() -> None:
    twin = lenet_twin()
    spy = Spy(twin.program, twin.device)
    spy.asked = []
    twin.runtime = spy
    x = images(8)
    trained = twin.train()(x)
    tested = twin.eval()(x)
    assert spy.asked == [True, False]
    assert torch.equal(trained, tested)
    assert trained.requires_grad
    assert not tested.requires_grad


def test_changed_weights_are_seen_however_they_were_changed_and_only_they_are_requantised() -> None:
    twin = lenet_twin()
    twin.refresh()
    assert twin.refresh() == []
    with torch.no_grad():
        twin.net.get_parameter("fc2.weight").mul_(0.5)
    assert twin.refresh() == ["fc2"]
    twin.net.get_parameter("conv1.bias").data += 1
    assert twin.refresh() == ["conv1"]


def test_master_weights_stay_float_and_the_users() -> None:
    net = models.lenet5(pretrained=True)
    before = {name: p.clone() for name, p in net.named_parameters()}
    twin = attach(net, device(), calibrate=images(64))
    twin(images(4)).sum().backward()
    assert {id(p) for p in twin.parameters()} == {id(p) for p in net.parameters()}
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_attaching_does_not_change_the_networks_mode() -> None:
    net = models.lenet5(pretrained=True)
    net.conv1.eval()
    modes = {name: module.training for name, module in net.named_modules()}
    attach(net, device(), calibrate=images(8))
    assert {name: module.training for name, module in net.named_modules()} == modes


def test_wrong_image_size_is_refused() -> None:
    with pytest.raises(
        ProgramError, match=r"wrong image size: this network takes \(N, 1, 28, 28\), got \(2, 1, 32, 32\)"
    ):
        lenet_twin()(torch.zeros(2, 1, 32, 32))


def test_weights_that_became_nan_are_refused_with_their_layer() -> None:
    twin = lenet_twin()
    with torch.no_grad():
        twin.net.get_parameter("fc1.weight")[0, 0] = float("nan")
    with pytest.raises(ProgramError, match="layer 'fc1': its weights hold NaN"):
        twin(images(2))


def test_unknown_gradient_policy_lists_the_known() -> None:
    with pytest.raises(AttachError, match="unknown gradient policy 'magic'; known: straight_through, clean"):
        lenet_twin(gradient="magic")


# ---- faults


def test_leaving_the_context_restores_the_fault_free_bytes() -> None:
    twin = lenet_twin().eval()
    x = images(16)
    before = twin(x)
    faults = FAULTS + SoftErrors(1e-3, per="bit")
    with faults.on(twin, seed=7):
        during = twin(x)
    assert not torch.equal(before, during)
    assert torch.equal(before, twin(x))


def test_leaving_by_an_exception_restores_the_fault_free_bytes_too() -> None:
    twin = lenet_twin().eval()
    x = images(8)
    before = twin(x)
    with contextlib.suppress(KeyboardInterrupt), SoftErrors(1e-3, per="bit", sites=("weight",)).on(twin, seed=7):
        assert not torch.equal(before, twin(x))
        raise KeyboardInterrupt
    assert torch.equal(before, twin(x))


def test_any_batch_split_meets_the_same_faults() -> None:
    twin = lenet_twin().eval()
    x = images(30)
    found = []
    for split in (30, 7, 1):
        with FAULTS.on(twin, seed=7):
            found.append(torch.cat([twin(part) for part in x.split(split)]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_images_are_numbered_from_entering_the_context() -> None:
    twin = lenet_twin().eval()
    x = images(10)
    with FAULTS.on(twin, seed=7) as entered:
        whole = entered(x)
        assert twin.image_number == 10
    with FAULTS.on(twin, seed=7, first_image=6):
        assert torch.equal(twin(x[6:]), whole[6:])
    assert twin.image_number is None


def test_another_seed_gives_other_faults() -> None:
    twin = lenet_twin().eval()
    x = images(10)
    with FAULTS.on(twin, seed=7):
        first = twin(x)
    with FAULTS.on(twin, seed=8):
        assert not torch.equal(first, twin(x))


def test_contexts_do_not_nest() -> None:
    twin = lenet_twin()
    with (
        FAULTS.on(twin, seed=1),
        pytest.raises(AttachError, match=r"already on .* combine models with \+"),
        FAULTS.on(twin, seed=2),
    ):
        pass


# ---- protection


def test_protected_layers_have_no_faults() -> None:
    twin = lenet_twin(protect=["conv1", "conv2", "fc1", "fc2", "fc3"]).eval()
    x = images(8)
    before = twin(x)
    with SoftErrors(0.01, per="mac").on(twin, seed=1):
        assert torch.equal(before, twin(x))


def test_protection_alone_does_not_change_a_byte() -> None:
    x = images(8)
    assert torch.equal(lenet_twin().eval()(x), lenet_twin(protect=["conv2", "fc3"]).eval()(x))


def test_unknown_layer_in_protect_lists_the_known() -> None:
    with pytest.raises(
        AttachError, match="cannot protect 'fc9': no such layer; layers are conv1, conv2, fc1, fc2, fc3"
    ):
        lenet_twin(protect=["fc9"])


def test_protection_does_not_change_while_faults_are_on() -> None:
    twin = lenet_twin()
    with FAULTS.on(twin, seed=1), pytest.raises(AttachError, match="leave the context first"):
        twin.protect(["fc3"])


class OneLayer(SoftErrors):
    """Soft errors in one layer only."""

    layer: str = ""

    def draw(self, program, first_image, images, seed):  # type: ignore[no-untyped-def]
        plan = super().draw(program, first_image, images, seed)
        return plan.where(plan.layer == program.index(self.layer))


def in_layer(name: str, rate: float) -> OneLayer:
    faults = OneLayer(rate, per="mac")
    object.__setattr__(faults, "layer", name)
    return faults


@pytest.mark.parametrize("layer", ["conv1", "conv2", "fc1", "fc2", "fc3"])
def test_error_distribution_names_the_layer_that_makes_the_errors(layer: str) -> None:
    twin = lenet_twin()
    policy = by_error_distribution(in_layer(layer, 0.01), images(32), threshold=5)
    assert twin.protect(policy) == [layer]
    assert twin.protected == [layer]
    assert policy.choice is not None
    others = [share for name, share in policy.choice.scores.items() if name != layer]
    assert others == [0, 0, 0, 0]


def test_inherited_errors_count_only_when_asked_for() -> None:
    twin = lenet_twin()
    faults = in_layer("conv2", 0.05)
    assert error_shares(twin, faults, images(32))["fc3"] == 0
    assert error_shares(twin, faults, images(32), inherited=True)["fc3"] > 0


def test_a_higher_threshold_counts_fewer_errors() -> None:
    twin = lenet_twin()
    shares = [error_shares(twin, FAULTS, images(32), threshold=t)["conv2"] for t in (0, 5, 50)]
    assert shares[0] > shares[1] > shares[2] > 0


def test_accuracy_policy_protects_the_layer_whose_faults_hurt_and_restores_the_twin() -> None:
    twin = lenet_twin()
    x = images(64)
    labels = twin.eval()(x).argmax(1)
    policy = by_accuracy(in_layer("fc2", 0.1), x, labels)
    assert policy(twin) == ["fc2"]
    assert twin.protected == []
    assert policy.choice is not None
    assert policy.choice.scores["fc2"] == 1.0


def test_of_layers_whose_protection_helps_alike_the_first_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, labels = torch.rand(4, 1, 28, 28), torch.zeros(4, dtype=torch.long)
    twin = attach(models.lenet5(), ReferenceDevice(Config(saboteur=True)), calibrate=x)
    for accuracies, chosen in (
        ((0.5, 0.5, 0.5, 0.5, 0.5), "conv1"),
        ((0.1, 0.7, 0.7, 0.2, 0.7), "conv2"),
        ((0.1, 0.2, 0.3, 0.4, 0.4), "fc2"),
    ):
        given = iter(accuracies)
        monkeypatch.setattr(protect, "_accuracy", lambda *_, given=given: next(given))
        policy = by_accuracy(SoftErrors(1e-3), x, labels)
        assert policy(twin) == [chosen]
        assert policy.choice is not None
        assert policy.choice.scores == dict(zip(twin.layers, accuracies, strict=True))
