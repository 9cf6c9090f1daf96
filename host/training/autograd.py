"""One autograd node per accelerated layer: its value is what the device produced, its gradient is in float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from host.compiler.trace import normalise
from host.devices.device import Device
from host.program.layers import Layer, Normalisation, Pool
from host.program.program import Program

Int8 = npt.NDArray[np.int8]
Unpool = Callable[[Int8, npt.NDArray[np.float32], Pool | None, int, int], npt.NDArray[np.float32] | None]


@dataclass(frozen=True)
class Geometry:
    """A layer as the network's own module has it (unfolded), which is what the gradient is taken of.

    Attributes
    ----------
    linear : bool
    stride, padding : (vertical, horizontal)
    relu : bool
    pool : Pool, optional
    in_shape : (C, H, W)
        Of the unfolded input.
    in_frac, out_frac : int
    groups : int
    upper : int
        Largest output, in integers.
    normalisation : Normalisation, optional
        Of a local response normalisation, which has no weights.
    """

    linear: bool
    stride: tuple[int, int]
    padding: tuple[int, int]
    relu: bool
    pool: Pool | None
    in_shape: tuple[int, int, int]
    in_frac: int
    out_frac: int
    groups: int = 1
    upper: int = 127
    normalisation: Normalisation | None = None
    unpool: Unpool | None = None
    """The device's way through pooling backwards (`Device.unpool`)."""
    to_float: Callable[[Int8, int], npt.NDArray[np.float32]] | None = None
    """The device's way to floats (`Device.dequantise`)."""

    @classmethod
    def of(cls, layer: Layer, program: Program, module: nn.Module | None, device: Device | None = None) -> Geometry:
        """Geometry of a Program's layer, unfolded; `module` is the network's module it came from, if it has weights."""
        linear = isinstance(module, nn.Linear)
        if layer.fold is None:
            stride, padding, in_shape = layer.stride, layer.padding, layer.in_shape
        else:
            stride = (layer.stride[0], layer.fold.stride_x)
            padding = (layer.padding[0], layer.fold.pad_x)
            in_shape = program.input_shape
        return cls(
            linear,
            stride,
            padding,
            layer.relu,
            layer.pool,
            in_shape,
            layer.in_frac,
            layer.out_frac,
            layer.groups,
            layer.upper,
            layer.normalisation,
            None if device is None else device.unpool,
            None if device is None else device.dequantise,
        )

    def dequantised(self, x: Int8, frac: int) -> torch.Tensor:
        """Int8 at scale `2**-frac` to float32, exact."""
        return dequantise(x, frac) if self.to_float is None else torch.from_numpy(self.to_float(x, frac))


@dataclass(frozen=True)
class Recorded:
    """What one layer read and produced in one launch, int8 NCHW.

    Its input (the channels chosen from its sources; at `in_frac`, but for an addition, whose backward does not read
    them), and its output before and after pooling.
    """

    inputs: Int8
    conv: Int8
    out: Int8


class DeviceLayer(torch.autograd.Function):
    """A layer with ReLU and max pooling, executed by a device.

    Forward: the device's final output, dequantised (the float input is not read, only its place in the graph is used).
    Backward, the straight-through estimator (Bengio et al. 2013, section 4) for the rounding, exact for the rest:
    pooling sends the gradient to the largest of the device's values (the first, where several are); ReLU and saturation
    pass it where the device's value lies strictly between the bounds; the convolution differentiates at the float
    master weights and the device's (dequantised) input; an addition, average or copy at the constants it stands for (1,
    1 / window, 1); local response normalisation by its float formula at the device's input.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        geometry: Geometry,
        recorded: Recorded,
        value: Int8 | None,
    ) -> torch.Tensor:
        """Value of the layer.

        Parameters
        ----------
        x : float32, shape (N, C, H, W)
            The layer's input, gathered from its sources' values.
        weight, bias : float tensor
            Master weights, as the module has them; of other operators, their constants (`constant_weight`). Where the
            weight is, the layer's value is, and backward runs.
        geometry : Geometry
        recorded : Recorded
            What backward goes through.
        value : int8 array, shape (N, M, PH, PW), or None
            What the device produced; None where nobody reads the value, only other layers its place in the graph.

        Returns
        -------
        float32 (float64 if the weight is), shape (N, M, PH, PW); zeros without a value
        """
        kind = torch.float64 if weight.dtype is torch.float64 else torch.float32
        ctx.save_for_backward(weight)
        ctx.geometry, ctx.recorded, ctx.x_shape = geometry, recorded, x.shape
        if value is None:
            return torch.zeros(1, dtype=kind, device=weight.device).expand(recorded.out.shape)
        return geometry.dequantised(value, geometry.out_frac).to(weight.device, kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of input, weight and bias; the rest has none."""
        (weight,) = ctx.saved_tensors
        geometry, recorded = ctx.geometry, ctx.recorded
        grad_acc = through_activation(grad.reshape(recorded.out.shape), recorded, geometry)
        # Half precision is for the weights' storage: gradients are summed in float32, and autograd rounds them last.
        weight = weight.to(grad_acc.dtype)
        inputs = geometry.dequantised(recorded.inputs, geometry.in_frac).to(grad_acc.device, grad_acc.dtype)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_bias = None
        if geometry.normalisation is not None:
            with torch.enable_grad():
                at = inputs.requires_grad_()
                (grad_x,) = torch.autograd.grad(normalise(at, geometry.normalisation), at, grad_acc)
        elif geometry.linear:
            flat = grad_acc.flatten(1)
            grad_x = flat @ weight if wants_x else None
            grad_weight = flat.T @ inputs.flatten(1) if wants_weight else None
            grad_bias = flat.sum(0) if wants_bias else None
        else:
            grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
                grad_acc,
                inputs,
                weight,
                [weight.shape[0]],
                geometry.stride,
                geometry.padding,
                [1, 1],
                False,
                [0, 0],
                geometry.groups,
                [wants_x, wants_weight, wants_bias],
            )
        grad_x = grad_x.reshape(ctx.x_shape) if grad_x is not None else None
        return grad_x, grad_weight, grad_bias, None, None, None


def through_activation(grad: torch.Tensor, recorded: Recorded, geometry: Geometry) -> torch.Tensor:
    """Gradient of the final output, shape (N, M, PH, PW), to that of the convolution's sum, shape (N, M, OH, OW)."""
    low = 0 if geometry.relu else -128
    pool = geometry.pool
    if geometry.unpool is not None and grad.device.type == "cpu" and grad.dtype is torch.float32:
        found = geometry.unpool(recorded.conv, grad.contiguous().numpy(), pool, low, geometry.upper)
        if found is not None:
            return torch.from_numpy(found)
    conv = torch.from_numpy(recorded.conv).to(grad.device)
    if pool is None:
        return grad * ((conv > low) & (conv < geometry.upper))
    # int8 values are exact in float32, and padding counts as -infinity there.
    value, chosen = F.max_pool2d(
        conv.float(), pool.kernel, pool.stride, pool.pad, ceil_mode=pool.ceil, return_indices=True
    )
    # Only chosen values pass a gradient, so only they need to be looked at.
    grad = grad * ((value > low) & (value < geometry.upper))
    n, m = conv.shape[:2]
    spread = grad.new_zeros(n, m, conv.shape[2] * conv.shape[3])
    return spread.scatter_add_(2, chosen.flatten(2), grad.flatten(2)).reshape(conv.shape)


def constant_weight(layer: Layer) -> torch.Tensor:
    """Float weights that an operator without parameters stands for."""
    value = 1.0 / (layer.kernel[0] * layer.kernel[1]) if layer.operator == "average" else 1.0
    return torch.full(layer.weight_shape, value, dtype=torch.float32)


def dequantise(x: Int8, frac: int) -> torch.Tensor:
    """Int8 at scale `2**-frac` to float32, exact."""
    integers = torch.from_numpy(np.ascontiguousarray(x))
    if torch.get_default_dtype() is not torch.float32:
        integers = integers.to(torch.float32)
    # In one pass: an integer tensor times a number is of the default type.
    return integers * 2.0**-frac
