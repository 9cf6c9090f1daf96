"""The straight-through rule of the twin's gradients in plain PyTorch, and the noise that quantisation makes."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from host.compiler.trace import FloatLayer, trace
from host.program.layers import INPUT
from host.training.twin import Twin


def snr(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Signal to quantisation noise, dB."""
    signal, noise = float((wanted.double() ** 2).sum()), float(((found.double() - wanted.double()) ** 2).sum())
    return math.inf if noise == 0 else -math.inf if signal == 0 else 10 * math.log10(signal / noise)


def value(twin: Twin, x: torch.Tensor) -> torch.Tensor:
    """The device's output, whose gradients autograd takes: at the master weights and at what the device produced.

    Each layer is PyTorch's own function of PyTorch's own weights (the modules' attributes after a forward in evaluation
    mode), its value replaced by the device's; ReLU and saturation pass where that lies strictly between the bounds.
    """
    net, layers = twin.net, trace(twin.net, x).layers
    dtype = next((one.dtype for one in net.parameters()), x.dtype)
    training = net.training
    images = twin.program.quantise_input(x)
    outputs = twin.runtime.forward(images, writeback=True)
    net.eval()
    with torch.enable_grad():
        net(x[:2].detach().to(dtype))  # what hooks compute is there afterwards
        known = {INPUT: _replaced(x, torch.from_numpy(images), twin.program.input_frac)}
        for source in layers:
            layer = twin.program.layer(source.name)
            y = _computed(net, source, source.gather(known))
            conv = torch.from_numpy(outputs.conv[layer.name])
            low = 0 if layer.relu else -128
            y = _replaced(y.reshape(conv.shape) * ((conv > low) & (conv < layer.upper)), conv, layer.out_frac)
            known[layer.name] = source.pooled(y)
    net.train(training)
    return known[layers[-1].name]


def _replaced(y: torch.Tensor, integers: torch.Tensor, frac: int) -> torch.Tensor:
    return (y - y.detach()) + integers * 2.0**-frac


def _computed(net: nn.Module, source: FloatLayer, x: torch.Tensor) -> torch.Tensor:
    if source.origin is None:
        return source.accumulators(x)
    module = net.get_submodule(source.origin.module)
    weight, bias = module.weight, module.bias
    assert isinstance(weight, torch.Tensor)
    assert bias is None or isinstance(bias, torch.Tensor)
    weight, bias = weight.float(), None if bias is None else bias.float()
    if isinstance(module, nn.Linear):
        y = F.linear(x.flatten(1), weight, bias)
    else:
        y = F.conv2d(x, weight, bias, source.stride, source.padding, groups=source.groups)
    if source.origin.norm is None:
        return y
    norm = net.get_submodule(source.origin.norm)
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    return F.batch_norm(
        y,
        *(None if one is None else one.float() for one in (norm.running_mean, norm.running_var)),
        *(None if one is None else one.float() for one in (norm.weight, norm.bias)),
        False,
        0.0,
        norm.eps,
    )


def gradients(net: nn.Module, output: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of every parameter of a weighted sum of the output; those that have none are left out."""
    net.zero_grad()
    (output.flatten().float() * weights.flatten()).sum().backward()
    return {name: one.grad.float().clone() for name, one in net.named_parameters() if one.grad is not None}


def _gradient(x: torch.Tensor) -> torch.Tensor:
    assert x.grad is not None
    return x.grad


TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Relative errors of gradients, which have the type of their parameters."""


def check(twin: Twin, x: torch.Tensor) -> None:
    """Assert that the twin's values are near the float network's, and its gradients those of the rule."""
    net = twin.net
    with torch.no_grad():
        dtype = next((one.dtype for one in net.parameters()), x.dtype)
        training = net.training
        wanted = net.eval()(x.to(dtype)).float()
        net.train(training)
        found = twin.eval()(x).float()
    twin.train()
    assert found.shape == wanted.shape
    assert snr(found, wanted) >= 20, f"{snr(found, wanted):.1f} dB"
    weights = torch.randn(wanted.numel(), generator=torch.Generator().manual_seed(0))
    by_rule, by_twin = x.clone().requires_grad_(), x.clone().requires_grad_()
    rule, made = value(twin, by_rule), twin(by_twin)
    assert torch.equal(rule.flatten().float(), made.flatten().float())
    theirs, ours = gradients(net, rule, weights), gradients(net, made, weights)
    theirs["the images"], ours["the images"] = _gradient(by_rule), _gradient(by_twin)
    assert set(ours) == set(theirs)
    largest = max((float(gradient.norm()) for gradient in theirs.values()), default=0.0)
    for name, gradient in theirs.items():
        error = float((ours[name] - gradient).norm())
        assert error <= TOLERANCE[dtype] * (float(gradient.norm()) + 1e-2 * largest), f"{name}: off by {error}"
