"""Recomputed forward passes meet the faults that they met before, or are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from host.devices.reference import ReferenceDevice
from host.faults.models import SoftErrors
from host.training.recompute import RecomputeError
from host.training.twin import Twin, attach
from hw.config import Config
from tests.host.training.small import images, network

FAULTS = SoftErrors(5e-3, per="mac") + SoftErrors(2e-3, per="bit", sites=("feature", "input"))
MODES = [True, False]


def twin(**options: object) -> Twin:
    device = ReferenceDevice(Config(lanes=4, vec=4, saboteur=True))
    return attach(network(), device, calibrate=images(), **options).train()  # type: ignore[arg-type]


def gradients(made: Twin) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in made.net.parameters() if p.grad is not None])
    made.zero_grad()
    return found


def batch(number: int) -> torch.Tensor:
    return images(8, seed=number).requires_grad_()


@pytest.mark.parametrize("gradient", ["straight_through", "clean"])
@pytest.mark.parametrize("reentrant", MODES)
def test_images_meet_the_same_faults_again(reentrant: bool, gradient: str) -> None:
    found = []
    for checkpointed in (False, True):
        made = twin(gradient=gradient)
        steps = []
        with FAULTS.on(made, seed=3):
            for number in range(3):
                x = batch(number)
                value = checkpoint(made, x, use_reentrant=reentrant) if checkpointed else made(x)
                value.square().sum().backward()
                assert x.grad is not None
                steps += [value.detach().flatten(), gradients(made), x.grad.flatten()]
            assert made.image_number == 24
        found.append(torch.cat(steps))
    assert torch.equal(*found)


@pytest.mark.parametrize("reentrant", MODES)
def test_two_batches_before_backward_each_meet_their_own(reentrant: bool) -> None:
    found = []
    for checkpointed in (False, True):
        made = twin()
        with FAULTS.on(made, seed=3):
            values = [
                checkpoint(made, batch(number), use_reentrant=reentrant) if checkpointed else made(batch(number))
                for number in range(2)
            ]
            (values[0].square().sum() + values[1].sum()).backward()
        found.append(gradients(made))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("reentrant", MODES)
def test_backward_after_the_context_still_meets_the_faults_of_forward(reentrant: bool) -> None:
    found = []
    for checkpointed in (False, True):
        made = twin()
        with FAULTS.on(made, seed=3):
            value = checkpoint(made, batch(0), use_reentrant=reentrant) if checkpointed else made(batch(0))
        value.square().sum().backward()
        found.append(gradients(made))
    assert torch.equal(*found)


@pytest.mark.parametrize("reentrant", MODES)
def test_backward_of_a_clean_forward_within_a_context_stays_clean(reentrant: bool) -> None:
    made = twin()
    made(batch(0)).square().sum().backward()
    right = gradients(made)
    value = checkpoint(made, batch(0), use_reentrant=reentrant)
    with FAULTS.on(made, seed=3):
        value.square().sum().backward()
        assert made.image_number == 0
    assert torch.equal(gradients(made), right)


@pytest.mark.parametrize("reentrant", MODES)
def test_the_same_images_in_the_next_step_meet_the_next_faults(reentrant: bool) -> None:
    found = []
    for checkpointed in (False, True):
        made = twin()
        steps = []
        with FAULTS.on(made, seed=3):
            for _ in range(3):
                x = batch(0)
                (checkpoint(made, x, use_reentrant=reentrant) if checkpointed else made(x)).square().sum().backward()
                steps.append(gradients(made))
        found.append(torch.stack(steps))
    assert torch.equal(*found)
    assert not torch.equal(found[0][0], found[0][1])


@pytest.mark.parametrize("reentrant", MODES)
def test_the_same_images_twice_before_backward_are_refused(reentrant: bool) -> None:
    made = twin()
    with FAULTS.on(made, seed=3):
        values = [checkpoint(made, batch(0), use_reentrant=reentrant) for _ in range(2)]
        with pytest.raises(RecomputeError, match=r"computed several times .* images 0, 8: call backward after each"):
            (values[0] + values[1]).sum().backward()


@pytest.mark.parametrize("reentrant", MODES)
def test_a_part_of_a_larger_network_may_be_checkpointed(reentrant: bool) -> None:
    class Larger(nn.Module):
        def __init__(self, inner: Twin) -> None:
            super().__init__()
            self.inner, self.last = inner, nn.Linear(3, 2)

        def part(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.inner(x * 0.5))

        def forward(self, x: torch.Tensor, checkpointed: bool) -> torch.Tensor:
            return checkpoint(self.part, x, use_reentrant=reentrant) if checkpointed else self.part(x)

    found = []
    for checkpointed in (False, True):
        torch.manual_seed(5)
        made = twin()
        net = Larger(made).train()
        torch.manual_seed(6)
        nn.init.normal_(net.last.weight)
        nn.init.zeros_(net.last.bias)
        with FAULTS.on(made, seed=3):
            for number in range(2):
                net(batch(number), checkpointed).square().sum().backward()
        found.append(gradients(made))
    assert torch.equal(*found)


def test_new_images_within_backward_are_refused_while_faults_are_on() -> None:
    made = twin()
    with FAULTS.on(made, seed=3):
        value = made(batch(0))
        value.register_hook(lambda grad: made(batch(7)).sum() * grad)
        with pytest.raises(RecomputeError, match="whose images have not been computed before"):
            value.sum().backward()
