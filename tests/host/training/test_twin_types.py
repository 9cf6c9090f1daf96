"""Networks and images of any floating-point type, in any mode, on any device of PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from host.devices.device import Device
from host.devices.emulator.device import EmulatorDevice
from host.devices.reference import ReferenceDevice
from host.program.program import ProgramError
from host.training.autograd import Geometry, Recorded, through_activation
from host.training.twin import AttachError, Twin, attach
from hw.config import Config
from tests.host.training.small import images, network

CONFIG = Config(lanes=4, vec=4, saboteur=True)
DEVICES = [ReferenceDevice, EmulatorDevice]
TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LABELS = torch.arange(16) % 3


def twin(kind: torch.dtype = torch.float32, device: type[Device] = ReferenceDevice) -> Twin:
    return attach(network().to(kind), device(CONFIG), calibrate=images())  # type: ignore[call-arg]


def trained(made: Twin, x: torch.Tensor, steps: int = 3) -> None:
    optimiser = torch.optim.SGD(made.net.parameters(), 0.1)
    made.train()
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(made(x), LABELS).backward()
        optimiser.step()


@contextmanager
def default(kind: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# ---- inference mode


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, nullcontext])
@pytest.mark.parametrize("attached_in", [torch.inference_mode, nullcontext])
def test_evaluating_in_any_mode_leaves_training_as_it_is(
    mode: type[AbstractContextManager[None]], attached_in: type[AbstractContextManager[None]]
) -> None:
    plain = twin()
    trained(plain, images())
    net = network()
    with attached_in():
        made = attach(net, ReferenceDevice(CONFIG), calibrate=images())
    for _ in range(2):
        with mode():
            before = made.eval()(images())
        assert not before.is_inference() or mode is torch.inference_mode
        trained(made, images(), steps=1)
    trained(made, images(), steps=1)
    assert torch.equal(plain.eval()(images()), made.eval()(images()))


# ---- types


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("image_kind", TYPES)
@pytest.mark.parametrize("kind", TYPES)
def test_types_of_network_and_images_may_differ(
    kind: torch.dtype, image_kind: torch.dtype, device: type[Device]
) -> None:
    # Values that all types hold.
    x = (images() * 16).round() / 16
    made = twin(kind, device)
    value = made.train()(x.to(image_kind))
    assert value.dtype is (torch.float64 if kind is torch.float64 else torch.float32)
    assert torch.equal(value.float(), made.eval()(x).float())
    F.cross_entropy(value, LABELS).backward()
    assert {p.grad.dtype for p in made.net.parameters() if p.grad is not None} == {kind}
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made.net.parameters())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", TYPES)
def test_gradients_are_those_of_float32_rounded(kind: torch.dtype, device: type[Device]) -> None:
    made, plain = twin(kind, device), twin()
    # The same values of the weights in both.
    plain.net.load_state_dict({name: value.float() for name, value in made.net.state_dict().items()})
    for one in (made, plain):
        F.cross_entropy(one.train()(images()), LABELS).backward()
    for ours, theirs in zip(made.net.parameters(), plain.net.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad.to(kind), rtol=max(1e-4, torch.finfo(kind).eps), atol=1e-6)


@pytest.mark.parametrize("kind", TYPES)
def test_a_twin_may_be_converted_after_it_was_attached_and_used(kind: torch.dtype) -> None:
    made = twin()
    made.eval()(images())
    made.to(kind)
    trained(made, images().to(kind))
    again = attach(made.net, ReferenceDevice(CONFIG), calibrate=images())
    assert {p.dtype for p in again.net.parameters()} == {kind}
    made.float()
    trained(made, images())


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_the_default_type_changes_nothing(kind: torch.dtype) -> None:
    plain = twin()
    trained(plain, images())
    net, x = network(), images()
    with default(kind):
        made = attach(net, EmulatorDevice(CONFIG), calibrate=x)
        trained(made, x)
        value = made.eval()(x)
    assert value.dtype is torch.float32
    assert torch.equal(value, plain.eval()(x))


def test_pooling_backwards_is_the_same_for_double_gradients() -> None:
    conv = np.random.default_rng(0).integers(-128, 128, (2, 3, 6, 6)).astype(np.int8)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d(2))
    made = attach(net, EmulatorDevice(CONFIG), calibrate=images(4))
    geometry: Geometry = made._geometry["0"]
    out = conv.reshape(2, 3, 3, 2, 3, 2).max((3, 5))
    grad = torch.randn(2, 3, 3, 3)
    recorded = Recorded(conv, conv, out)
    wanted = through_activation(grad, recorded, geometry)
    found = through_activation(grad.double(), recorded, geometry)
    assert found.dtype is torch.float64
    torch.testing.assert_close(found.float(), wanted)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(2, 1, 8, 8, dtype=torch.complex64), "real numbers, not complex64"),
        (torch.zeros(2, 1, 8, 8, device="meta"), "cannot be read"),
        (torch.zeros(2, 1, 8, 8).to_sparse(), "cannot be read"),
        (torch.zeros(2, 1, 8), "wrong image size"),
        (torch.zeros(2, 3, 8, 8), "wrong image size"),
        (torch.full((2, 1, 8, 8), torch.nan, dtype=torch.bfloat16), "NaN or infinite"),
        ("images", "a str is no images"),
        (object(), "a object is no images"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_images_that_are_none_are_refused(x: torch.Tensor, said: str, training: bool) -> None:
    with pytest.raises(ProgramError, match=said):
        twin().train(training)(x)


# ---- gradients of the images


@pytest.mark.parametrize("device", DEVICES)
def test_images_that_want_gradients_get_them_in_evaluation_mode_too(device: type[Device]) -> None:
    made, found = twin(device=device), []
    for training in (True, False):
        x = images().requires_grad_()
        F.cross_entropy(made.train(training)(x), LABELS).backward()
        assert x.grad is not None
        found.append(x.grad)
    assert found[0].abs().max() > 0
    assert torch.equal(found[0], found[1])


def test_images_of_another_type_get_gradients_of_theirs() -> None:
    x = images().half().requires_grad_()
    F.cross_entropy(twin().eval()(x), LABELS).backward()
    assert x.grad is not None
    assert x.grad.dtype is torch.float16


def test_evaluation_of_images_that_want_nothing_has_no_graph() -> None:
    assert not twin().eval()(images()).requires_grad
    with torch.no_grad():
        assert not twin().train()(images().requires_grad_()).requires_grad


# ---- recorders


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated:DeprecationWarning")
def test_recorders_that_would_take_the_result_for_a_constant_are_refused() -> None:
    with pytest.raises(AttachError, match="cannot be traced or exported: .* trace twin.net"):
        torch.jit.trace(twin().eval(), images())
    with pytest.raises(ProgramError, match="a Proxy is no images"):
        torch.fx.symbolic_trace(twin().eval())
    with pytest.raises(ProgramError, match="outside of torch.func"):
        torch.func.vmap(twin().eval())(images()[None])
