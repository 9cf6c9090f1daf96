"""From a PyTorch module to a graph of float layers: torch.fx tracing, batch norms folded, names kept."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from host.compiler.limits import CompileError
from host.compiler.network import ROOT, Snapshot, kind, known_function, marks, path_of, traced
from host.compiler.parameters import Origin, tensors
from host.program.layers import INPUT, Normalisation, Operator, Pool

SUPPORTED = (
    "Conv2d, Linear, BatchNorm after them, ReLU, ReLU6, MaxPool2d, AvgPool2d, additions, concatenation, splitting and "
    "shuffling of channels, LocalResponseNorm, Flatten, Dropout and Identity"
)


MISMATCH = 0.02
"""Largest relative error at which a trace counts as computing what the network does."""


@dataclass
class FloatLayer:
    """One layer with what follows it, in float; linear layers as the convolutions they are.

    `sources`, `source_channels`, `channels`, `groups`, `operator` and `normalisation` are as in
    `host.program.layers.Layer`.
    """

    name: str
    sources: tuple[str, ...]
    source_channels: tuple[int, ...]
    channels: tuple[int, ...] | None
    in_shape: tuple[int, int, int]
    weight: torch.Tensor
    """Shape (M, C / groups, KH, KW); of the constant operators: 1, or 1 / (KH * KW) of "average"."""
    bias: torch.Tensor
    """Shape (M,)."""
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    operator: Operator = "convolution"
    normalisation: Normalisation | None = None
    relu: bool = False
    upper: float | None = None
    """Largest output (ReLU6), or None."""
    pool: Pool | None = None
    origin: Origin | None = None
    """Where the network has its weights; None of the constant operators."""

    def accumulators(self, x: torch.Tensor) -> torch.Tensor:
        """The operator alone, on float input of shape (N, C, H, W)."""
        if self.normalisation is not None:
            return normalise(x, self.normalisation)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        """ReLU and bound of what `accumulators` gave."""
        if self.relu:
            y = y.relu()
        return y if self.upper is None else y.clamp(max=self.upper)

    def pooled(self, y: torch.Tensor) -> torch.Tensor:
        """Max pooling of what `finish` gave."""
        if self.pool is None:
            return y
        return F.max_pool2d(y, self.pool.kernel, self.pool.stride, self.pool.pad, ceil_mode=self.pool.ceil)

    def gather(self, values: dict[str, torch.Tensor]) -> torch.Tensor:
        """The layer's input, shape (N, C, H, W), from its sources' values."""
        whole = [values[name] for name in self.sources]
        stacked = whole[0] if len(whole) == 1 else torch.cat(whole, 1)
        return stacked if self.channels is None else stacked[:, list(self.channels)]

    @property
    def operands(self) -> tuple[tuple[str, ...], ...]:
        """Sources that are read at one fraction: all of them, or those of each operand of an addition."""
        if self.operator != "add":
            return (self.sources,)
        owner = [name for name, count in zip(self.sources, self.source_channels, strict=True) for _ in range(count)]
        chosen = range(len(owner)) if self.channels is None else self.channels
        names = [owner[channel] for channel in chosen]
        return tuple(dict.fromkeys(names[0::2])), tuple(dict.fromkeys(names[1::2]))

    @property
    def conv_extents(self) -> tuple[int, int]:
        """Rows and columns of the convolution's output."""
        return (
            (self.in_shape[1] + 2 * self.padding[0] - self.weight.shape[2]) // self.stride[0] + 1,
            (self.in_shape[2] + 2 * self.padding[1] - self.weight.shape[3]) // self.stride[1] + 1,
        )

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """(M, PH, PW) of the final output."""
        h, w = self.conv_extents
        return (len(self.weight), h, w) if self.pool is None else (len(self.weight), self.pool.out(h), self.pool.out(w))


def normalise(x: torch.Tensor, how: Normalisation) -> torch.Tensor:
    """Local response normalisation in float, on input of shape (N, C, H, W)."""
    return F.local_response_norm(x, how.size, how.alpha, how.beta, how.k)


@dataclass(frozen=True)
class Graph:
    """What a network computes in evaluation mode.

    Attributes
    ----------
    layers : list of FloatLayer
        In execution order; the last one's output is the network's.
    out_shape : ints
        Of one image's result, as the network itself gives it.
    """

    layers: list[FloatLayer]
    out_shape: tuple[int, ...]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the layers compute, on images of shape (N, C, H, W), in the dtype of these."""
        values = {INPUT: x}
        for layer in self.layers:
            layer = replace(layer, weight=layer.weight.to(x.dtype), bias=layer.bias.to(x.dtype))
            values[layer.name] = layer.pooled(layer.finish(layer.accumulators(layer.gather(values))))
        return values[self.layers[-1].name]

    @property
    def structure(self) -> tuple[Any, ...]:
        """All but the values of the weights; equal for networks that compute the same of their parameters."""
        each = [
            tuple(value for key, value in vars(layer).items() if key not in ("weight", "bias")) for layer in self.layers
        ]
        shapes = [tuple(layer.weight.shape) for layer in self.layers]
        return tuple(each), tuple(shapes), self.out_shape


class Follower:
    """The layers' weights as functions of a live network's parameters, for as long as it computes what was traced.

    Parameters
    ----------
    net : nn.Module
    graph : Graph
        Of this network (`trace`).
    input_shape : (C, H, W)
    """

    def __init__(self, net: nn.Module, graph: Graph, input_shape: tuple[int, int, int]) -> None:
        self.out_shape = graph.out_shape
        self.origins = {layer.name: layer.origin for layer in graph.layers if layer.origin is not None}
        self._structure, self._input_shape = graph.structure, input_shape
        self._marks: tuple[Any, ...] | None = marks(net)
        self._snapshot: Snapshot | None = Snapshot(net)

    def __getstate__(self) -> dict[str, Any]:
        # Marks are of one network in one process; without them the next check traces anew.
        return {**vars(self), "_marks": None, "_snapshot": None}

    def check(self, net: nn.Module) -> None:
        """Raise `CompileError` if the network no longer computes what was traced, or what a trace does not show."""
        if self._snapshot is not None and self._snapshot.holds():
            return
        found = marks(net)
        if found == self._marks:
            self._snapshot = Snapshot(net)
            return
        # Attributes that a forward sets for itself change without changing the graph.
        graph = trace(net, some_image(self._input_shape))
        if graph.structure != self._structure:
            raise CompileError(
                _difference(graph.structure, self._structure),
                "the network was changed after it was attached, and computes something else",
                "attach it again",
            )
        self._marks, self._snapshot = found, Snapshot(net)

    def forget(self) -> None:
        """Compare with what was traced at the next `check`: after the network was copied."""
        self._marks, self._snapshot = (), None

    def weights(self, net: nn.Module, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Float weight and bias of a layer (`Origin.read`)."""
        return self.origins[name].read(net)


def some_image(shape: tuple[int, int, int]) -> torch.Tensor:
    """An image of noise to trace with, shape (1, C, H, W)."""
    return torch.rand(1, *shape, generator=torch.Generator("cpu").manual_seed(1), dtype=torch.float32, device="cpu")


def _difference(found: tuple[Any, ...], before: tuple[Any, ...]) -> str:
    """Name of the first layer that differs."""
    for (*new, shape), (*old, old_shape) in zip(
        zip(*found[:2], strict=True), zip(*before[:2], strict=True), strict=False
    ):
        if new != old or shape != old_shape:
            return str(new[0][0])
    return "network"


def trace(model: nn.Module, example: torch.Tensor) -> Graph:
    """What `model` computes in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        In any mode; not changed.
    example : float tensor, shape (N, C, H, W)
        Images of the size the network will see.

    Raises
    ------
    CompileError
        If the network cannot be traced, does what a trace does not show (hooks), has an unsupported operator, or does
        not take such images; names the node.
    """
    plain, graph_module = traced(model)
    # Two images, so that a view that mixes images shows itself.
    pair = _pair_of_images(example)
    try:
        # ShapeProp prints a stack trace before it raises; the error below says it better.
        with torch.inference_mode(False), torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
            ShapeProp(graph_module).propagate(pair)
    except Exception as error:
        raise CompileError(
            _failing_node(error),
            f"the network does not take images of shape {tuple(example.shape[1:])} ({_first_line(error)})",
            "calibrate with images of the size the network was made for",
        ) from error
    c, h, w = example.shape[1:]
    walk = _Walk(graph_module, (int(c), int(h), int(w)))
    for layer in walk.layers:
        if layer.origin is not None:
            weight, bias = layer.origin.read(model)
            layer.weight = weight.detach().to("cpu", torch.float32).reshape(layer.weight.shape).clone()
            layer.bias = torch.zeros(len(weight)) if bias is None else bias.detach().to("cpu", torch.float32).clone()
    graph = Graph(walk.layers, walk.out_shape)
    _compare(plain, graph, pair)
    return graph


def _pair_of_images(example: torch.Tensor) -> torch.Tensor:
    """The first image, and one of noise of the same range, on which little is the same by accident."""
    first = example[:1].detach().float().cpu()
    low, high = float(first.min()), float(first.max())
    noise = torch.rand(first.shape, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu")
    return torch.cat((first, low + (high - low) * noise))


def _compare(plain: nn.Module, graph: Graph, images: torch.Tensor) -> None:
    """Raise `CompileError` if the graph does not compute what the network itself does on these images.

    A trace follows values, not tensors: what changes a tensor in place behind a second name is lost in it.
    """
    error = _mismatch(plain, graph, images)
    if error > MISMATCH:
        # What only float32 loses, float64 shows; twice, since a network may count its calls.
        error = max(_mismatch(plain.double(), graph, images.double()) for _ in range(2))
    if error > MISMATCH:
        raise CompileError(
            type(plain).__name__,
            f"its trace computes something else than the network itself ({100 * error:.1f} % off)",
            "in forward, change no tensor in place that has a second name (+=, slices), and depend on no count",
        )


def _mismatch(plain: nn.Module, graph: Graph, images: torch.Tensor) -> float:
    """Relative error of the graph's result; 0 where one is not finite, which calibration refuses."""
    with torch.inference_mode(False), torch.no_grad():
        found, wanted = graph.forward(images).flatten(), plain(images.clone()).flatten()
    error = float((found - wanted).norm()) / max(float(wanted.norm()), torch.finfo(torch.float32).tiny)
    return error if math.isfinite(error) else 0.0


@dataclass(frozen=True)
class _View:
    """A tensor of the graph: which channels of which layers' outputs it shows, in order."""

    channels: tuple[tuple[str, int], ...]
    """(layer name or `INPUT`, channel)."""
    extents: tuple[int, int]
    flat: bool = False
    grid: tuple[int, int] | None = None
    """Channels laid out as (groups, channels of a group), in the middle of a shuffle."""

    @property
    def names(self) -> set[str]:
        """The layers it shows channels of."""
        return {name for name, _ in self.channels}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W), unflattened."""
        return len(self.channels), *self.extents


class _Walk:
    """Reads the graph node by node: layers are made where something is computed, all else only permutes channels."""

    def __init__(self, graph_module: fx.GraphModule, shape: tuple[int, int, int]) -> None:
        self.modules = dict(graph_module.named_modules())
        self.paths = {path_of(name) for name in self.modules}
        self.shape = shape
        self.layers: list[FloatLayer] = []
        self.makers: set[fx.Node] = set()
        """Nodes that computed a layer from what they read, and so read it as it was."""
        self.views: dict[fx.Node, _View | list[_View]] = {}
        graph = graph_module.graph
        # What works in place is needed by whoever reads the tensor it changes.
        self.needed: set[fx.Node] = set()
        for node in reversed(graph.nodes):
            if (
                node.op == "output"
                or self.writes(node)
                or (self.carries_tensor(node) and (self.in_place(node) or self.needed & {*node.users}))
            ):
                self.needed.add(node)
        for node in graph.nodes:
            self.visit(node)

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            c, h, w = self.shape
            self.views[node] = _View(tuple((INPUT, channel) for channel in range(c)), (h, w))
        elif node.op == "output":
            self.output(node)
        elif node in self.needed:
            self.views[node] = self.handle(node)

    @staticmethod
    def carries_tensor(node: fx.Node) -> bool:
        """Whether its value holds tensors; otherwise it computes sizes for a view."""
        return "tensor_meta" in node.meta

    @staticmethod
    def writes(node: fx.Node) -> bool:
        """Whether it changes a tensor without giving it."""
        return node.op.startswith("call") and (
            _target_name(node) in ("setitem", "__setitem__") or node.kwargs.get("out") is not None
        )

    def in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.modules[str(node.target)], "inplace", False))
        name = _target_name(node)
        return name.endswith("_") or name == "iadd" or bool(node.kwargs.get("inplace", False))

    def output(self, node: fx.Node) -> None:
        result = node.args[0]
        view = self.views.get(result) if isinstance(result, fx.Node) else None
        if not isinstance(view, _View) or view.grid is not None:
            raise self.unsupported(node, "its output is not one tensor", "return one tensor from forward")
        if not any(layer.operator == "convolution" for layer in self.layers):
            raise CompileError("network", "it has no convolution or linear layer", f"use {SUPPORTED}")
        if view.channels != self.whole(self.layers[-1]).channels:
            self.constant(self.name("output"), "identity", view, node)
        assert isinstance(result, fx.Node)
        self.out_shape = tuple(result.meta["tensor_meta"].shape[1:])

    def unsupported(self, node: fx.Node, reason: str, remedy: str = f"use {SUPPORTED}") -> CompileError:
        if node.op == "call_module":
            path = path_of(node.target) or "network"
            return CompileError(f"{path} ({type(self.modules[str(node.target)]).__name__})", reason, remedy)
        what = _target_name(node)
        return CompileError(f"{node.name} ({what})" if what != node.name else what, reason, remedy)

    def handle(self, node: fx.Node) -> _View | list[_View]:
        module: nn.Module | None = None
        method: Callable[..., _View | list[_View]] | None = None
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            known = kind(module)
            method = None if known is None else _MODULES[known]
        elif node.op == "call_method" or (node.op == "call_function" and known_function(node.target)):
            name = _target_name(node)
            method = _FUNCTIONS.get(name) or _FUNCTIONS.get(name.removesuffix("_"))
        elif node.op == "get_attr":
            raise CompileError(
                path_of(node.target),
                "forward computes with this tensor outside a module",
                "let a Conv2d or Linear of its own compute with it, or a parametrisation (torch.nn.utils.parametrize)",
            )
        if self.writes(node):
            raise self.unsupported(node, "it writes into another tensor", "let it give a tensor of its own")
        if method is None:
            name = type(module).__name__ if module is not None else _target_name(node)
            last = any(user.op == "output" for user in node.users)
            remedy = _REMEDIES.get(name.lower().replace("_", "")) if last else None
            raise self.unsupported(node, "this operator is not supported", *([] if remedy is None else [remedy]))
        return method(self, node, module)

    # -- views

    def view(self, node: fx.Node, *, grid: bool = False) -> _View:
        """The view of the node's (first) operand."""
        return self.view_of(node, argument(node, 0, "input"), grid=grid)

    def view_of(self, node: fx.Node, operand: Any, *, grid: bool = False) -> _View:
        view = self.views.get(operand) if isinstance(operand, fx.Node) else None
        if not isinstance(view, _View):
            raise self.unsupported(node, f"its operand {operand} is not a tensor that the network computed")
        if view.grid is not None and not grid:
            raise self.unsupported(node, "it works on channels in groups", "bring them back to (N, C, H, W) first")
        return view

    def channel_dim(self, node: fx.Node, dim: Any, view: _View) -> None:
        if dim not in ((1, -1) if view.flat else (1, -3)):
            raise self.unsupported(node, f"it works along dimension {dim}", "only channels (dim=1) can be rearranged")

    def whole(self, layer: FloatLayer, flat: bool = False) -> _View:
        m, h, w = layer.out_shape
        return _View(tuple((layer.name, channel) for channel in range(m)), (h, w), flat)

    def reshape(self, node: fx.Node, module: nn.Module | None = None) -> _View:
        view, target = self.view(node, grid=True), tuple(node.meta["tensor_meta"].shape)
        c, h, w = view.shape
        if target == (2, c * h * w) and view.grid is None:
            return replace(view, flat=True)
        if target == (2, c, h, w):
            return replace(view, flat=False, grid=None)
        if len(target) == 5 and target[1] * target[2] == c and target[3:] == (h, w):
            return replace(view, flat=False, grid=(target[1], target[2]))
        raise self.unsupported(
            node, f"it reshapes to {target[1:]}", "only flattening each image and shuffling channels are supported"
        )

    def transpose(self, node: fx.Node, module: nn.Module | None = None) -> _View:
        view = self.view(node, grid=True)
        order = node.args[1:]
        if _target_name(node) == "permute":
            dims = order[0] if len(order) == 1 and isinstance(order[0], (tuple, list)) else order
            swaps = tuple(dims) == (0, 2, 1, 3, 4)
        else:
            swaps = {argument(node, 1, "dim0"), argument(node, 2, "dim1")} == {1, 2}
        if view.grid is None or not swaps:
            raise self.unsupported(node, "it transposes", "only the two halves of a channel shuffle can be transposed")
        return self.swapped(view, view.grid)

    @staticmethod
    def swapped(view: _View, grid: tuple[int, int]) -> _View:
        groups, each = grid
        channels = tuple(view.channels[g * each + at] for at in range(each) for g in range(groups))
        return replace(view, channels=channels, grid=(each, groups))

    def shuffle(self, node: fx.Node, module: nn.Module | None = None) -> _View:
        view = self.view(node)
        groups = module.groups if isinstance(module, nn.ChannelShuffle) else argument(node, 1, "groups")
        return replace(self.swapped(view, (groups, len(view.channels) // groups)), grid=None)

    def skip(self, node: fx.Node, module: nn.Module | None = None) -> _View:
        """Nothing happens in evaluation mode."""
        if isinstance(module, (nn.Dropout, nn.Dropout2d)) and module.training and module.p > 0:
            raise self.unsupported(node, "dropout that stays on in evaluation", "let eval() switch it off")
        return self.view(node, grid=True)

    def cast(self, node: fx.Node, module: nn.Module | None = None) -> _View:
        """A conversion that converts nothing."""
        if node.meta["tensor_meta"].dtype != torch.float32:
            raise self.unsupported(node, "it changes the type of values", "let the network compute in one type")
        return self.view(node, grid=True)

    def functional_dropout(self, node: fx.Node, module: nn.Module | None = None) -> _View:
        if argument(node, 2, "training", True):
            raise self.unsupported(node, "dropout that stays on in evaluation", "pass training=self.training")
        return self.view(node)

    def concatenate(self, node: fx.Node, module: nn.Module | None = None) -> _View:
        parts = argument(node, 0, "tensors")
        if not isinstance(parts, (tuple, list)):
            raise self.unsupported(node, "its operands are not a list of tensors")
        views = [self.view_of(node, part) for part in parts]
        first = views[0]
        self.channel_dim(node, argument(node, 1, "dim", 0), first)
        if any(view.extents != first.extents or view.flat != first.flat for view in views):
            raise self.unsupported(
                node, "it concatenates tensors of different extents", "give them one height and width"
            )
        return replace(first, channels=tuple(channel for view in views for channel in view.channels))

    def split(self, node: fx.Node, module: nn.Module | None = None) -> list[_View]:
        view = self.view(node)
        self.channel_dim(node, argument(node, 2, "dim", 0), view)
        if view.flat and view.extents != (1, 1):
            raise self.unsupported(node, "it splits flattened images", "split before flattening")
        sizes = [meta.shape[1] for meta in node.meta["tensor_meta"]]
        starts = [sum(sizes[:at]) for at in range(len(sizes))]
        return [
            replace(view, channels=view.channels[start : start + size])
            for start, size in zip(starts, sizes, strict=True)
        ]

    def item(self, node: fx.Node, module: nn.Module | None = None) -> _View:
        operand, index = node.args
        held = self.views.get(operand) if isinstance(operand, fx.Node) else None
        if isinstance(held, list) and isinstance(index, int):
            return held[index]
        view = self.view(node)
        parts = index if isinstance(index, tuple) else (index,)
        everything = slice(None)
        others = [part for at, part in enumerate(parts) if at != 1 and part is not Ellipsis]
        chosen: Any = parts[1] if len(parts) > 1 else everything
        plain = isinstance(chosen, slice) and all(
            bound is None or isinstance(bound, int) for bound in (chosen.start, chosen.stop, chosen.step)
        )
        if any(part != everything for part in others) or not plain or (view.flat and view.extents != (1, 1)):
            raise self.unsupported(
                node, "it picks a part of the images", "only slices of channels, x[:, a:b], are views"
            )
        return replace(view, channels=view.channels[chosen])

    # -- layers

    def name(self, wanted: str) -> str:
        """A layer name that is not taken, nor may be by a module."""
        taken = {layer.name for layer in self.layers} | {INPUT}
        modules = self.paths - {wanted}
        candidate, number = wanted, 1
        while candidate in taken or candidate in modules:
            candidate, number = f"{wanted}_{number}", number + 1
        return candidate

    def operator_name(self, node: fx.Node) -> str:
        """Of a layer that is not a module with weights: its module, or the function in the module that calls it."""
        if node.op == "call_module":
            return self.name(path_of(node.target) or "network")
        inside = [path for path in map(path_of, node.meta.get("nn_module_stack", {})) if path]
        own = _target_name(node).removesuffix("_")
        own = "add" if own == "iadd" else own
        return self.name(f"{inside[-1]}.{own}" if inside else own)

    def append(
        self,
        node: fx.Node,
        name: str,
        view: _View,
        weight: torch.Tensor,
        bias: torch.Tensor,
        **rest: Any,
    ) -> FloatLayer:
        """A new layer that reads a view."""
        if len(set(view.channels)) != len(view.channels):
            raise self.unsupported(
                node,
                "it reads one channel of a tensor twice",
                "give each use a tensor of its own, or scale the weights",
            )
        counts = {INPUT: self.shape[0]} | {layer.name: len(layer.weight) for layer in self.layers}
        sources = tuple(dict.fromkeys(name for name, _ in view.channels))
        sizes = tuple(counts[source] for source in sources)
        starts = dict(zip(sources, (sum(sizes[:at]) for at in range(len(sizes))), strict=True))
        chosen = tuple(starts[source] + channel for source, channel in view.channels)
        channels = None if chosen == tuple(range(sum(sizes))) else chosen
        layer = FloatLayer(name, sources, sizes, channels, view.shape, weight, bias, **rest)
        self.layers.append(layer)
        self.makers.add(node)
        return layer

    def constant(self, name: str, operator: Operator, view: _View, node: fx.Node, **rest: Any) -> FloatLayer:
        """A new layer of weights that are constants, one group a channel."""
        channels = len(view.channels)
        kernel = rest.pop("kernel", (1, 1))
        inputs = 2 if operator == "add" else 1
        weight = torch.full((channels // inputs, inputs, *kernel), 1 / math.prod(kernel), dtype=torch.float32)
        bias = torch.zeros(len(weight), dtype=torch.float32)
        return self.append(node, name, view, weight, bias, groups=len(weight), operator=operator, **rest)

    def convolution(self, node: fx.Node, module: nn.Conv2d) -> _View:
        view = self.view(node)
        if view.flat:
            raise self.unsupported(node, "a convolution after flattening")
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
        layer = self.append(
            node,
            self.module_name(node),
            view,
            *self.parameters(module),
            origin=Origin(path_of(node.target)),
            stride=(module.stride[0], module.stride[1]),
            padding=(int(padding[0]), int(padding[1])),
            groups=module.groups,
        )
        return self.whole(layer)

    def linear(self, node: fx.Node, module: nn.Linear) -> _View:
        view = self.view(node)
        if not view.flat:
            raise self.unsupported(node, "a linear layer on an unflattened image", "flatten first")
        weight, bias = self.parameters(module)
        origin = Origin(path_of(node.target))
        weight = weight.reshape(len(weight), *view.shape)
        return self.whole(self.append(node, self.module_name(node), view, weight, bias, origin=origin), flat=True)

    @staticmethod
    def parameters(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a module of the traced copy: their shapes count, the values are read from the network afterwards."""
        weight, bias = tensors(module, "weight", "bias")
        assert weight is not None
        return weight.detach(), torch.zeros(len(weight)) if bias is None else bias.detach()

    def module_name(self, node: fx.Node) -> str:
        path = path_of(node.target)
        if any(layer.origin is not None and layer.origin.module == path for layer in self.layers):
            raise self.unsupported(node, "the same module is called twice", "give each call a module of its own")
        return self.name(path or "network")

    def batch_norm(self, node: fx.Node, module: nn.BatchNorm1d | nn.BatchNorm2d) -> _View:
        view = self.view(node)
        layer = next((layer for layer in self.layers if layer.name in view.names), None)
        if (
            layer is None
            or layer.origin is None
            or layer.origin.norm is not None
            or layer.relu
            or layer.pool is not None
            or (view.flat and view.extents != (1, 1))
        ):
            raise self.unsupported(node, "a batch norm that does not directly follow a convolution or linear layer")
        if view.channels != self.whole(layer).channels:
            raise self.unsupported(
                node, "a batch norm of channels that were rearranged", "normalise before splitting or shuffling"
            )
        if self.other_readers(node, view):
            raise self.unsupported(
                node, f"others read what {layer.name!r} gives to this batch norm", "normalise before branching"
            )
        if module.training:
            raise self.unsupported(node, "batch norm that stays in training in evaluation", "let eval() switch it")
        layer.origin = replace(layer.origin, norm=path_of(node.target))
        layer.origin.read(self.modules[ROOT])
        return view

    def add(self, node: fx.Node, module: nn.Module | None = None) -> _View:
        operands = argument(node, 0, "input"), argument(node, 1, "other")
        if node.kwargs.get("alpha", 1) != 1 or len(node.args) > 2:
            raise self.unsupported(node, "an addition with a factor", "add two tensors")
        if not all(isinstance(arg, fx.Node) and arg in self.views for arg in operands):
            raise self.unsupported(node, "an addition of something that is no tensor", "add two tensors")
        a, b = (self.view_of(node, arg) for arg in operands)
        if a.shape != b.shape or a.flat != b.flat:
            raise self.unsupported(node, f"it adds tensors of shapes {a.shape} and {b.shape}", "give them one shape")
        if self.in_place(node) and self.other_readers(node, a):
            raise self.changed_in_place(node)
        if set(a.channels) & set(b.channels):
            raise self.unsupported(
                node, "it adds a tensor to itself", "scale the weights before it instead, or add different tensors"
            )
        both = replace(
            a, channels=tuple(channel for pair in zip(a.channels, b.channels, strict=True) for channel in pair)
        )
        return self.whole(self.constant(self.operator_name(node), "add", both, node), a.flat)

    # -- averages

    def average(self, node: fx.Node, module: nn.AvgPool2d | None = None) -> _View:
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        if module is not None:
            given = [getattr(module, name) for name in names]
        else:
            defaults = (None, None, 0, False, True, None)
            given = [argument(node, at + 1, names[at], defaults[at]) for at in range(len(names))]
        kernel = _pair(given[0])
        stride, padding = _pair(given[1] or given[0]), _pair(given[2])
        if given[3] or given[5] is not None:
            raise self.unsupported(
                node, "average pooling with ceil_mode or divisor_override", "leave these at their defaults"
            )
        if padding != (0, 0) and not given[4]:
            raise self.unsupported(
                node, "average pooling whose divisor changes at the border", "use count_include_pad=True or padding=0"
            )
        return self.averaged(node, kernel, stride, padding)

    def adaptive_average(self, node: fx.Node, module: nn.AdaptiveAvgPool2d | None = None) -> _View:
        view = self.view(node)
        size = (int(node.meta["tensor_meta"].shape[2]), int(node.meta["tensor_meta"].shape[3]))
        h, w = view.extents
        if size == (h, w):
            # AlexNet and VGG have one for images of other sizes; at the size they are made for it changes nothing.
            return view
        if h % size[0] or w % size[1]:
            raise self.unsupported(
                node, f"it averages {h}x{w} to {size[0]}x{size[1]}, windows of uneven size", "choose a divisor"
            )
        kernel = (h // size[0], w // size[1])
        return self.averaged(node, kernel, kernel, (0, 0))

    def mean(self, node: fx.Node, module: nn.Module | None = None) -> _View:
        dims, keep = argument(node, 1, "dim"), bool(argument(node, 2, "keepdim", False))
        if not isinstance(dims, (tuple, list)) or {dim % 4 for dim in dims} != {2, 3} or self.view(node).flat:
            raise self.unsupported(node, f"a mean over dimensions {dims}", "average over height and width, (2, 3)")
        view = self.averaged(node, self.view(node).extents, (1, 1), (0, 0))
        return replace(view, flat=not keep)

    def averaged(
        self, node: fx.Node, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
    ) -> _View:
        view = self.view(node)
        if view.flat:
            raise self.unsupported(node, "an average after flattening")
        name = self.operator_name(node)
        return self.whole(self.constant(name, "average", view, node, kernel=kernel, stride=stride, padding=padding))

    # -- normalisation

    def response_norm(self, node: fx.Node, module: nn.LocalResponseNorm | None = None) -> _View:
        view = self.view(node)
        if view.flat:
            raise self.unsupported(node, "local response normalisation after flattening")
        if module is not None:
            values = (module.size, module.alpha, module.beta, module.k)
        else:
            defaults = (("size", None), ("alpha", 1e-4), ("beta", 0.75), ("k", 1.0))
            values = tuple(argument(node, at + 1, *given) for at, given in enumerate(defaults))
        how = Normalisation(int(values[0]), float(values[1]), float(values[2]), float(values[3]))
        if how.k <= 0 or how.alpha < 0:
            raise self.unsupported(
                node, "local response normalisation that may divide by zero", "use k > 0, alpha >= 0"
            )
        return self.whole(self.constant(self.operator_name(node), "lrn", view, node, normalisation=how))

    # -- what follows a layer

    def relu(self, node: fx.Node, module: nn.Module | None = None) -> _View:
        # ReLU and max pooling commute, so either order is the accelerator's.
        view, layers = self.followed(node)
        for layer in layers:
            layer.relu = True
        return view

    def relu6(self, node: fx.Node, module: nn.Hardtanh | None = None) -> _View:
        if module is not None:
            bounds = (module.min_val, module.max_val)
        elif _target_name(node).startswith("relu6"):
            bounds = (0, 6)
        else:
            bounds = (argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0))
        if bounds != (0, 6):
            raise self.unsupported(node, f"clamping to {bounds}", "use ReLU or ReLU6")
        view, layers = self.followed(node)
        for layer in layers:
            layer.relu, layer.upper = True, 6.0
        return view

    def pool(self, node: fx.Node, module: nn.MaxPool2d | None = None) -> _View:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        if module is not None:
            given = [getattr(module, name) for name in names]
        else:
            defaults = (None, None, 0, 1, False, False)
            given = [argument(node, at + 1, names[at], defaults[at]) for at in range(len(names))]
        kernel, stride, padding, dilation, ceil_mode, indices = given
        sizes = []
        for what, value in (("kernel", kernel), ("stride", stride or kernel), ("padding", padding)):
            pair = _pair(value)
            if pair[0] != pair[1]:
                raise self.unsupported(node, f"pooling {what} {pair} is not square", "use a square window")
            sizes.append(pair[0])
        if _pair(dilation) != (1, 1) or indices:
            raise self.unsupported(node, "pooling with dilation or indices", "leave these at their defaults")
        view, layers = self.followed(node, pooling=True)
        how = Pool(sizes[0], sizes[1], sizes[2], bool(ceil_mode))
        for layer in layers:
            layer.pool = how
        return replace(view, extents=(how.out(view.extents[0]), how.out(view.extents[1])))

    def followed(self, node: fx.Node, *, pooling: bool = False) -> tuple[_View, list[FloatLayer]]:
        """Where a ReLU or pooling goes: into the layers before it, or into a copy if these have other readers."""
        view = self.view(node)
        if pooling and view.flat:
            raise self.unsupported(node, "pooling after flattening")
        others = self.other_readers(node, view)
        if others and self.in_place(node):
            raise self.changed_in_place(node)
        layers = [layer for layer in self.layers if layer.name in view.names]
        shown = set(view.channels)
        entire = INPUT not in view.names and all(
            (layer.name, channel) in shown for layer in layers for channel in range(len(layer.weight))
        )
        if others or not entire or (pooling and any(layer.pool is not None for layer in layers)):
            copied = self.constant(self.operator_name(node), "identity", view, node)
            return self.whole(copied, view.flat), [copied]
        return view, layers

    def other_readers(self, node: fx.Node, view: _View) -> bool:
        """Whether something else than `node` reads the layers that a view shows, as they are before `node`."""
        names = view.names
        shown = {other for other, held in self.views.items() if names & _names(held)}
        return any(
            user is not node and user in self.needed and (user not in shown or user in self.makers)
            for other in shown
            for user in other.users
        )

    def changed_in_place(self, node: fx.Node) -> CompileError:
        return self.unsupported(node, "it changes in place what others read", "use inplace=False")


_MODULES: dict[type[nn.Module], Callable[..., _View | list[_View]]] = {
    nn.Conv2d: _Walk.convolution,
    nn.Linear: _Walk.linear,
    nn.BatchNorm1d: _Walk.batch_norm,
    nn.BatchNorm2d: _Walk.batch_norm,
    nn.ReLU: _Walk.relu,
    nn.Hardtanh: _Walk.relu6,
    nn.MaxPool2d: _Walk.pool,
    nn.AvgPool2d: _Walk.average,
    nn.AdaptiveAvgPool2d: _Walk.adaptive_average,
    nn.LocalResponseNorm: _Walk.response_norm,
    nn.ChannelShuffle: _Walk.shuffle,
    nn.Flatten: _Walk.reshape,
    nn.Unflatten: _Walk.reshape,
    nn.Dropout: _Walk.skip,
    nn.Dropout2d: _Walk.skip,
    nn.Identity: _Walk.skip,
}
_FUNCTIONS: dict[str, Callable[..., _View | list[_View]]] = {
    "relu": _Walk.relu,
    "relu6": _Walk.relu6,
    "hardtanh": _Walk.relu6,
    "max_pool2d": _Walk.pool,
    "avg_pool2d": _Walk.average,
    "adaptive_avg_pool2d": _Walk.adaptive_average,
    "mean": _Walk.mean,
    "local_response_norm": _Walk.response_norm,
    "add": _Walk.add,
    "iadd": _Walk.add,
    "cat": _Walk.concatenate,
    "concat": _Walk.concatenate,
    "concatenate": _Walk.concatenate,
    "chunk": _Walk.split,
    "split": _Walk.split,
    "getitem": _Walk.item,
    "channel_shuffle": _Walk.shuffle,
    "transpose": _Walk.transpose,
    "permute": _Walk.transpose,
    "flatten": _Walk.reshape,
    "unflatten": _Walk.reshape,
    "view": _Walk.reshape,
    "reshape": _Walk.reshape,
    "contiguous": _Walk.skip,
    "clone": _Walk.cast,
    "float": _Walk.cast,
    "to": _Walk.cast,
    "dropout": _Walk.functional_dropout,
    "dropout2d": _Walk.functional_dropout,
}


_MONOTONE = "remove it: argmax is the same"
_REMEDIES = {
    "softmax": f"{_MONOTONE}, and cross_entropy takes what is before it",
    "logsoftmax": f"{_MONOTONE}, and CrossEntropyLoss of what is before it is NLLLoss of this",
}
"""For operators that are commonly at a network's end."""


def _target_name(node: fx.Node) -> str:
    """Name of what a node calls."""
    if node.target is F.max_pool2d:
        return "max_pool2d"
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, wherever it stands."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _pair(value: Any) -> tuple[int, int]:
    """PyTorch's sizes: one number for both directions, or two."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    return int(pair[0]), int(pair[-1])


def _names(held: _View | list[_View]) -> set[str]:
    return held.names if isinstance(held, _View) else set().union(*(view.names for view in held))


def _failing_node(error: BaseException) -> str:
    """ShapeProp's message begins with the node it failed at."""
    text = str(error)
    if "node=" in text:
        name = text.split("node=", 1)[1].split(" ", 1)[0].lstrip("%")
        return name.removeprefix(f"{ROOT}_")
    return "network"


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
