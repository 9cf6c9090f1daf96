"""From a PyTorch module to a chain of float layers: torch.fx tracing, batch norms folded, names kept."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from host.compiler.limits import CompileError
from host.program.layers import Pool

SUPPORTED = "Conv2d, Linear, BatchNorm after them, ReLU, MaxPool2d, Flatten, Dropout and Identity"
_SKIPPED_MODULES = (nn.Flatten, nn.Dropout, nn.Dropout2d, nn.Identity)
_SHAPE_HELPERS = {"size", "getattr", "getitem"}


@dataclass
class FloatLayer:
    """One convolution or linear layer with what follows it, in float; linear layers as the convolutions they are."""

    name: str
    in_shape: tuple[int, int, int]
    weight: torch.Tensor
    """Shape (M, C, KH, KW)."""
    bias: torch.Tensor
    """Shape (M,)."""
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    relu: bool = False
    pool: Pool | None = None

    def accumulators(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution alone, on float input of shape (N, C, H, W)."""
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)

    @property
    def conv_extents(self) -> tuple[int, int]:
        """Rows and columns of the convolution's output."""
        return (
            (self.in_shape[1] + 2 * self.padding[0] - self.weight.shape[2]) // self.stride[0] + 1,
            (self.in_shape[2] + 2 * self.padding[1] - self.weight.shape[3]) // self.stride[1] + 1,
        )


def trace(model: nn.Module, example: torch.Tensor) -> list[FloatLayer]:
    """The chain of layers that `model` computes in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        Not changed.
    example : float tensor, shape (N, C, H, W)
        Images of the size the network will see.

    Raises
    ------
    CompileError
        If the network cannot be traced, has an unsupported operator, is not a chain, or does not take such images;
        names the node.
    """
    plain = copy.deepcopy(model).eval().float().cpu()
    try:
        graph_module = fx.symbolic_trace(plain)
    except Exception as error:  # fx raises many kinds, all from the model's own forward
        raise CompileError(
            type(model).__name__,
            f"its forward cannot be traced ({error})",
            "write it without control flow that depends on values",
        ) from error
    # Two images, so that a view that mixes images shows itself.
    pair = example[:1].detach().float().expand(2, *example.shape[1:]).contiguous()
    try:
        # ShapeProp prints a stack trace before it raises; the error below says it better.
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
            ShapeProp(graph_module).propagate(pair)
    except Exception as error:
        raise CompileError(
            _failing_node(error),
            f"the network does not take images of shape {tuple(example.shape[1:])} ({_first_line(error)})",
            "calibrate with images of the size the network was made for",
        ) from error
    return _Walk(graph_module, tuple(example.shape[1:])).layers


class _Walk:
    """Reads the graph node by node, attaching what follows a layer to it."""

    def __init__(self, graph_module: fx.GraphModule, shape: tuple[int, ...]) -> None:
        self.modules = dict(graph_module.named_modules())
        self.shape = shape
        self.layers: list[FloatLayer] = []
        self.flat = False
        self.current: fx.Node | None = None
        inputs = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise CompileError(str([node.name for node in inputs]), "the network takes several inputs", "give it one")
        for node in graph_module.graph.nodes:
            self.visit(node)
        if not self.layers:
            raise CompileError("network", "it has no convolution or linear layer", f"use {SUPPORTED}")

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.current = node
            return
        if node.op == "output":
            if node.args[0] is not self.current:
                raise self.unsupported(node, "its output is not the end of the chain")
            return
        if self.is_shape_helper(node):
            return
        tensors = [a for a in node.all_input_nodes if not self.is_shape_helper(a)]
        if tensors != [self.current]:
            names = ", ".join(f"'{a.name}'" for a in tensors) or "nothing"
            raise self.unsupported(node, f"it reads {names}, and only chains of layers are supported")
        self.handle(node)
        self.current = node

    @staticmethod
    def is_shape_helper(node: fx.Node) -> bool:
        """Nodes that compute sizes for a view: they carry no tensor data."""
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return node.op in ("call_method", "call_function") and name in _SHAPE_HELPERS and "tensor_meta" not in node.meta

    def unsupported(self, node: fx.Node, reason: str, remedy: str = f"use {SUPPORTED}") -> CompileError:
        kind = type(self.modules[node.target]).__name__ if node.op == "call_module" else node.target
        kind = getattr(kind, "__name__", kind)
        name = str(node.target) if node.op == "call_module" else node.name
        return CompileError(f"{name} ({kind})" if str(kind) != name else name, reason, remedy)

    def handle(self, node: fx.Node) -> None:
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            for kinds, method in _MODULES:
                if isinstance(module, kinds):
                    method(self, node, module)
                    return
        else:
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
            if node.target is F.max_pool2d:
                name = "max_pool2d"
            function = _FUNCTIONS.get(name.removesuffix("_") if name != "max_pool2d" else name)
            if function is not None and node.op in ("call_function", "call_method"):
                function(self, node)
                return
        raise self.unsupported(node, "this operator is not supported")

    # -- layers

    def add(self, node: fx.Node, layer: FloatLayer) -> None:
        if any(other.name == layer.name for other in self.layers):
            raise self.unsupported(node, "the same module is called twice", "give each call a module of its own")
        self.layers.append(layer)

    def convolution(self, node: fx.Node, module: nn.Conv2d) -> None:
        if self.flat:
            raise self.unsupported(node, "a convolution after flattening")
        if module.groups != 1:
            raise self.unsupported(node, f"grouped convolution (groups={module.groups})", "use groups=1")
        if module.dilation != (1, 1):
            raise self.unsupported(node, f"dilation {module.dilation}", "use dilation=1")
        if module.padding_mode != "zeros":
            raise self.unsupported(node, f"padding_mode={module.padding_mode!r}", 'use padding_mode="zeros"')
        if isinstance(module.padding, str):
            if module.padding == "same" and any(k % 2 == 0 for k in module.kernel_size):
                raise self.unsupported(node, 'padding="same" of an even kernel is uneven', "give the padding in pixels")
            padding = (0, 0) if module.padding == "valid" else tuple(k // 2 for k in module.kernel_size)
        else:
            padding = tuple(module.padding)
        channels, h, w = self.input_shape()
        layer = FloatLayer(
            str(node.target),
            (channels, h, w),
            module.weight.detach(),
            _bias(module),
            (module.stride[0], module.stride[1]),
            (int(padding[0]), int(padding[1])),
        )
        self.add(node, layer)

    def linear(self, node: fx.Node, module: nn.Linear) -> None:
        shape = self.input_shape()
        if not self.flat and shape[1:] != (1, 1):
            raise self.unsupported(node, "a linear layer on an unflattened image", "flatten first")
        weight = module.weight.detach().reshape(module.out_features, *shape)
        self.add(node, FloatLayer(str(node.target), shape, weight, _bias(module)))
        self.flat = True

    def batch_norm(self, node: fx.Node, module: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        layer = self.last(node)
        if layer.relu or layer.pool is not None:
            raise self.unsupported(node, "a batch norm that does not directly follow a convolution or linear layer")
        assert self.current is not None
        before = self.modules.get(str(self.current.target))
        if isinstance(before, nn.Conv2d) and isinstance(module, nn.BatchNorm2d):
            fused: nn.Module = fuse_conv_bn_eval(before, module)
        elif isinstance(before, nn.Linear) and isinstance(module, nn.BatchNorm1d):
            fused = fuse_linear_bn_eval(before, module)
        else:
            raise self.unsupported(node, "a batch norm that does not directly follow a convolution or linear layer")
        assert isinstance(fused, (nn.Conv2d, nn.Linear))
        layer.weight, layer.bias = fused.weight.detach().reshape(layer.weight.shape), _bias(fused)

    # -- what follows a layer

    def relu(self, node: fx.Node, module: nn.Module | None = None) -> None:
        # ReLU and max pooling commute, so either order is the accelerator's.
        self.last(node).relu = True

    def pool(self, node: fx.Node, module: nn.MaxPool2d) -> None:
        self.max_pool(
            node,
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.ceil_mode,
            module.return_indices,
        )

    def pool_function(self, node: fx.Node) -> None:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
        given = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False} | given
        self.max_pool(node, *(given[name] for name in names))

    def max_pool(
        self, node: fx.Node, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any, indices: Any
    ) -> None:
        layer = self.last(node)
        if layer.pool is not None:
            raise self.unsupported(node, "a second pooling after one layer", "put a convolution between them")
        sizes = []
        for what, value in (("kernel", kernel), ("stride", stride or kernel), ("padding", padding)):
            pair = (value, value) if isinstance(value, int) else tuple(value)
            if pair[0] != pair[-1]:
                raise self.unsupported(node, f"pooling {what} {pair} is not square", "use a square window")
            sizes.append(int(pair[0]))
        if dilation not in (1, (1, 1)) or ceil_mode or indices:
            raise self.unsupported(node, "pooling with dilation, ceil_mode or indices", "leave these at their defaults")
        layer.pool = Pool(sizes[0], sizes[1], sizes[2])

    def flatten(self, node: fx.Node, module: nn.Module | None = None) -> None:
        meta = node.meta["tensor_meta"].shape
        flat = (2, math.prod(self.input_shape()))
        if tuple(meta) == flat:
            self.flat = True
        elif tuple(meta) != (2, *self.input_shape()):
            raise self.unsupported(node, f"it reshapes to {tuple(meta[1:])}", "only flattening each image is supported")

    def skip(self, node: fx.Node, module: nn.Module | None = None) -> None:
        """Nothing happens in evaluation mode."""

    def adaptive_average(self, node: fx.Node, module: nn.AdaptiveAvgPool2d) -> None:
        """AlexNet and VGG have one for images of other sizes; at the size they are made for it changes nothing."""
        if node.meta["tensor_meta"].shape[2:] != self.input_shape()[1:]:
            raise self.unsupported(node, "this operator is not supported where it averages")

    def functional_dropout(self, node: fx.Node) -> None:
        training = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
        if training:
            raise self.unsupported(node, "dropout that stays on in evaluation", "pass training=self.training")

    # -- where we are

    def last(self, node: fx.Node) -> FloatLayer:
        if not self.layers:
            raise self.unsupported(node, "it comes before the first layer", "begin with a convolution or linear layer")
        return self.layers[-1]

    def input_shape(self) -> tuple[int, int, int]:
        """Shape of the current tensor, unflattened."""
        if not self.layers:
            c, h, w = self.shape
            return c, h, w
        layer = self.layers[-1]
        h, w = layer.conv_extents
        if layer.pool is not None:
            h, w = layer.pool.out(h), layer.pool.out(w)
        return layer.weight.shape[0], h, w


_MODULES: tuple[tuple[Any, Callable[..., None]], ...] = (
    (nn.Conv2d, _Walk.convolution),
    (nn.Linear, _Walk.linear),
    ((nn.BatchNorm1d, nn.BatchNorm2d), _Walk.batch_norm),
    (nn.ReLU, _Walk.relu),
    (nn.MaxPool2d, _Walk.pool),
    (nn.Flatten, _Walk.flatten),
    (nn.AdaptiveAvgPool2d, _Walk.adaptive_average),
    (_SKIPPED_MODULES, _Walk.skip),
)
_FUNCTIONS: dict[str, Callable[..., None]] = {
    "relu": _Walk.relu,
    "max_pool2d": _Walk.pool_function,
    "flatten": _Walk.flatten,
    "view": _Walk.flatten,
    "reshape": _Walk.flatten,
    "contiguous": _Walk.skip,
    "dropout": _Walk.functional_dropout,
}
_SHAPE_HELPERS |= {operator.getitem.__name__}


def _bias(module: nn.Conv2d | nn.Linear) -> torch.Tensor:
    return torch.zeros(module.weight.shape[0]) if module.bias is None else module.bias.detach()


def _failing_node(error: BaseException) -> str:
    """ShapeProp's message begins with the node it failed at."""
    text = str(error)
    if "node=" in text:
        return text.split("node=", 1)[1].split(" ", 1)[0].lstrip("%")
    return "network"


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
