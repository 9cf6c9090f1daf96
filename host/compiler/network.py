"""Networks as they run: traced once, in evaluation mode; what a trace would overlook is refused by name."""

from __future__ import annotations

import copy
import inspect
import random
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy

from host.compiler.limits import CompileError
from host.compiler.parameters import PARAMETRISING

ROOT = "net"
"""Name of the network within the module that is traced."""
WEIGHTED = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
"""Modules whose parameters are read from them."""
WITHOUT_WEIGHTS = (
    nn.ReLU,
    nn.Hardtanh,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.LocalResponseNorm,
    nn.ChannelShuffle,
    nn.Flatten,
    nn.Unflatten,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
)
_HOOKS = {
    "_forward_pre_hooks": "a forward pre-hook",
    "_forward_hooks": "a forward hook",
    "_backward_pre_hooks": "a backward pre-hook",
    "_backward_hooks": "a backward hook",
}
_GLOBAL_HOOKS = tuple(f"_global{kind}" for kind in _HOOKS)
_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}


class _Root(nn.Module):
    """Calls the network as its users do, so that default arguments count."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)


class _Tracer(fx.Tracer):
    """Leaves are modules that do exactly what their class in torch does; everything else is traced through."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, WEIGHTED) or kind(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if m is not self.root:
            check_called(m, path_of(self.path_of_module(m)))
        return super().call_module(m, forward, args, kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        if node.op != "output" and not torch.is_grad_enabled():
            raise CompileError(
                node.name,
                "it is computed under no_grad within forward, which a trace does not show",
                "set requires_grad_(False) on the parameters that are not to be trained instead",
            )
        return node


def path_of(target: object) -> str:
    """The network's own name of a module of the trace; "" is the network itself."""
    return str(target).removeprefix(ROOT).removeprefix(".")


def kind(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch that a module does exactly the same as; None if there is none that is known here."""
    for base in (*WEIGHTED, *WITHOUT_WEIGHTS):
        if isinstance(module, base):
            same = type(module).forward is base.forward
            if base is nn.Conv2d:
                same = same and type(module)._conv_forward is nn.Conv2d._conv_forward  # type: ignore[union-attr]
            return base if same else None
    return None


def check_called(module: nn.Module, path: str) -> None:
    """Refuse what a module does besides its class's forward: hooks, and a forward of the instance.

    Raises
    ------
    CompileError
        Names the module, what it has, and the remedy.
    """
    what = f"{path or 'network'} ({type(module).__name__})"
    for attribute, word in _HOOKS.items():
        for hook in getattr(module, attribute).values():
            if not (attribute == "_forward_pre_hooks" and isinstance(hook, PARAMETRISING)):
                raise CompileError(
                    what,
                    f"it has {word} ({_called(hook)}), which does not run on a device",
                    "remove the hook (handle.remove()); weight norm, spectral norm and pruning may stay",
                )
    if "forward" in vars(module):
        raise CompileError(
            what,
            "its forward was replaced on the instance, which a trace does not see",
            "put the new forward into a class of its own",
        )
    if isinstance(module, WEIGHTED) and kind(module) is None:
        base = next(base.__name__ for base in WEIGHTED if isinstance(module, base))
        raise CompileError(
            what,
            f"it is a {base} whose class has a forward of its own ({type(module).__qualname__})",
            f"use a plain {base}; what it does to its weights can be a parametrisation (torch.nn.utils.parametrize)",
        )


def _called(hook: object) -> str:
    return str(getattr(hook, "__name__", type(hook).__name__))


def traced(net: nn.Module) -> tuple[nn.Module, fx.GraphModule]:
    """A copy of `net` in evaluation mode, float32 on the CPU, and the graph that it computes.

    Names of modules in the graph begin with `ROOT`.

    Raises
    ------
    CompileError
        If the network cannot be traced, or does what a trace does not show.
    """
    _check_kinds(net)
    with torch.inference_mode(False), torch.enable_grad():
        root = _Root(_copied(net).eval().float().cpu()).eval()
        tracer, before = _Tracer(), _random_state()
        try:
            graph = tracer.trace(root)
        except CompileError:
            raise
        except Exception as error:  # fx raises many kinds, all from the model's own forward
            raise CompileError(
                type(net).__name__,
                f"its forward cannot be traced ({error})",
                "write it without control flow that depends on values",
            ) from error
        if _random_state() != before:
            raise CompileError(
                type(net).__name__,
                "its forward draws random numbers in evaluation mode",
                "draw them only while self.training is true",
            )
    return root.net, fx.GraphModule(root, graph)


def _check_kinds(net: nn.Module) -> None:
    """Refuse networks that are no plain modules with plain parameters, with the way to one that is."""
    if not isinstance(net, nn.Module):
        remedy = "pass the module that was exported" if hasattr(net, "graph_module") else "pass an nn.Module"
        raise CompileError(type(net).__name__, "it is no nn.Module", remedy)
    for attribute in _GLOBAL_HOOKS:
        if getattr(torch_module, attribute):
            raise CompileError(
                "network",
                f"a hook of all modules is registered ({attribute}), which does not run on a device",
                "remove it (handle.remove())",
            )
    for name, module in net.named_modules():
        what = f"{name or 'network'} ({type(module).__name__})"
        wrapped = next((_WRAPPERS[base.__name__] for base in type(module).__mro__ if base.__name__ in _WRAPPERS), None)
        if wrapped is not None and type(module).__module__.startswith("torch."):
            at = f"{name}.{wrapped}" if name else wrapped
            raise CompileError(what, "it wraps another module", f"pass the wrapped module (net.{at})")
        if isinstance(module, torch.jit.ScriptModule):
            raise CompileError(what, "it is a scripted module", "pass the wrapped module: the one that was scripted")
        if isinstance(module, fx.GraphModule) and any(
            isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
        ):
            raise CompileError(what, "it is an exported module", "pass the wrapped module: the one that was exported")
        own_call = type(module).__call__ is not nn.Module.__call__
        if own_call and not isinstance(module, fx.GraphModule) and not type(module).__module__.startswith("torch."):
            raise CompileError(what, "its class has a __call__ of its own", "give it a forward instead")
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for tensor_name, tensor in own:
            if is_lazy(tensor):
                raise CompileError(
                    what,
                    f"it is lazy: its {tensor_name} has no shape yet",
                    "run the network once on images before, net(images)",
                )
            if tensor.is_meta:
                raise CompileError(
                    what,
                    f"its {tensor_name} is on the meta device and has no values",
                    'make the network on the CPU, or net.to_empty(device="cpu") and load its weights',
                )
            if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
                kind_of = "complex" if tensor.is_complex() else "quantised" if tensor.is_quantized else "sparse"
                raise CompileError(what, f"its {tensor_name} is {kind_of}", "use dense floating-point tensors")
            if isinstance(module, WEIGHTED) and tensor_name in ("weight", "bias") and not tensor.is_floating_point():
                raise CompileError(what, f"its {tensor_name} is {tensor.dtype}", "use floating-point weights")
    _check_arguments(net)


def _check_arguments(net: nn.Module) -> None:
    """Refuse a forward that cannot be given one tensor of images, and nothing else."""
    if type(net).forward is nn.Module.forward:
        raise CompileError(type(net).__name__, "it has no forward", "pass a module that computes something of images")
    if isinstance(net, fx.GraphModule):
        needed = [node.name for node in net.graph.nodes if node.op == "placeholder" and not node.args]
    else:
        parameters = list(inspect.signature(type(net).forward).parameters.values())[1:]
        if not any(
            one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD, one.VAR_POSITIONAL) for one in parameters
        ):
            raise CompileError(
                type(net).__name__, "its forward takes no images", "let its first argument be the images, by position"
            )
        needed = [
            one.name
            for one in parameters
            if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        ]
    if len(needed) > 1:
        raise CompileError(str(needed), "the network takes several inputs", "give it one")


def _copied(net: nn.Module) -> nn.Module:
    """A copy for tracing, which may change as it runs."""
    try:
        return copy.deepcopy(net, computed_tensors(net))
    except Exception as error:  # whatever the attributes of the network's own classes raise
        raise CompileError(
            type(net).__name__,
            f"it cannot be copied ({error})",
            "keep what cannot be copied (locks, generators, open files) outside the network",
        ) from error


def computed_tensors(net: nn.Module) -> dict[int, Any]:
    """Copies of a network's tensors that are no leaves (hooks computed them), as a memo: deepcopy refuses them."""
    memo: dict[int, Any] = {}
    for module in net.modules():
        for value in vars(module).values():
            memo |= {id(tensor): tensor.detach().clone() for tensor in _held(value) if not tensor.is_leaf}
    return memo


def _held(value: object) -> Iterator[torch.Tensor]:
    """Tensors in an attribute, also in containers."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _held(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _held(part)


def _random_state() -> tuple[Any, ...]:
    """State of the generators that a forward may draw from, comparable."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 (other people's generator, only looked at)
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), name, np.asarray(keys).tobytes(), rest


_SIMPLE = (int, float, str, bool, type(None), torch.dtype, torch.device)
_PLAIN = frozenset(_SIMPLE)
_UNWATCHED = {"training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_modules", *_HOOKS}


def marks(net: nn.Module) -> tuple[Any, ...]:
    """What the shape of a network's computation can depend on: equal marks, equal graph.

    Classes, children, hooks and attributes of all modules; no values of tensors. Other marks may be the same graph.
    """
    found: list[Any] = [_global_hooks()]
    for name, module in net.named_modules():
        own = vars(module)
        found.append((name, type(module), id(type(module).forward)))
        found.append(tuple(tuple(own[hooks]) for hooks in _HOOKS))
        found.append(tuple((child, id(value)) for child, value in own["_modules"].items()))
        found.append(tuple((key, _mark(value)) for key, value in own.items() if key not in _UNWATCHED))
    return tuple(found)


class Snapshot:
    """Finds out quickly that a network's marks are what they were: nearly always, before every forward pass.

    Keeps copies of the modules' attributes and compares them as dicts, which looks at identities first. What cannot be
    compared so (containers of more than plain values) makes it say no, and then `marks` decide.
    """

    def __init__(self, net: nn.Module) -> None:
        self._hooks = _global_hooks()
        self._modules: list[tuple[nn.Module, type, Any, dict[str, Any]]] | None = []
        for module in net.modules():
            own = {key: _copied_plain(value) for key, value in vars(module).items() if key not in _FOLLOWED}
            if any(value is _NO_COPY for value in own.values()):
                self._modules = None
                return
            self._modules.append((module, type(module), type(module).forward, own))

    def holds(self) -> bool:
        """Whether nothing has changed; False also means that it cannot be told."""
        if self._modules is None or self._hooks != _global_hooks():
            return False
        try:
            for module, kind, forward, own in self._modules:
                now = vars(module)
                for key in _FOLLOWED:
                    if key in now:
                        own[key] = now[key]
                if type(module) is not kind or kind.forward is not forward or now != own:
                    return False
        except Exception:  # comparing attributes of other people's classes may raise anything
            return False
        return True


_FOLLOWED = ("training", "_parameters", "_buffers", "_non_persistent_buffers_set")
"""Attributes whose values are read anew at each pass."""
_NO_COPY = object()


def _global_hooks() -> tuple[Any, ...]:
    return tuple(tuple(getattr(torch_module, attribute)) for attribute in _GLOBAL_HOOKS)


def _copied_plain(value: Any) -> Any:
    """A value to compare with later: containers copied, since they may change in place."""
    if isinstance(value, (list, tuple, set)):
        plain = all(isinstance(part, _SIMPLE) for part in value)
    elif isinstance(value, dict):
        plain = all(isinstance(part, (*_SIMPLE, nn.Module)) or callable(part) for part in value.values())
    else:
        return value
    return copy.copy(value) if plain else _NO_COPY


def _mark(value: Any) -> Any:
    if type(value) in _PLAIN or isinstance(value, _SIMPLE):  # the first is faster, and nearly always so
        return value
    if isinstance(value, torch.Tensor):
        return "tensor"
    if isinstance(value, (tuple, list)):
        return type(value), tuple(_mark(part) for part in value)
    if isinstance(value, dict):
        return tuple((key if isinstance(key, _SIMPLE) else id(key), _mark(part)) for key, part in value.items())
    return id(value)


def known_function(target: object) -> bool:
    """Whether a function that a node calls is torch's or the language's: `fx.wrap` makes nodes of others."""
    return not isinstance(target, types.FunctionType) or target.__module__.split(".")[0] == "torch"
