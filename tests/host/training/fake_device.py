"""A device of PyTorch's that is not the CPU: tensors live in main memory, but mixing them with others is an error."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "fake"
aten = torch.ops.aten
CROSSING = (aten._to_copy.default, aten.copy_.default)
"""Operators that bring values from one device to another."""


class Fake(torch.Tensor):
    """A tensor on the device."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> Fake:
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), dtype=raw.dtype, device=f"{NAME}:0", requires_grad=raw.requires_grad
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def plain(x: Any) -> Any:
            if isinstance(x, Fake):
                return x.raw
            if isinstance(x, torch.Tensor) and x.dim() and func not in CROSSING:
                raise RuntimeError(f"{func} got tensors of the CPU and of {NAME}")
            return x

        kwargs = dict(kwargs or {})
        home = func is aten._to_copy.default and kwargs.get("device") is not None and kwargs["device"].type == "cpu"
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        found = func(*tree_map(plain, args), **tree_map(plain, kwargs))
        if func._schema.name.endswith("_") and isinstance(args[0], torch.Tensor):
            return args[0]
        return found if home else tree_map(lambda x: Fake(x) if isinstance(x, torch.Tensor) else x, found)


_setup_privateuseone_for_python_backend(NAME)
_library = torch.library.Library("aten", "IMPL")


def _empty(size: Any, *, dtype: Any = None, **more: Any) -> Fake:
    return Fake(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **more: Any) -> Fake:
    return Fake(torch.empty_strided(size, stride, dtype=dtype))


_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("empty_strided", _empty_strided, "PrivateUse1")


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    ours, theirs = (x.raw if isinstance(x, Fake) else x for x in (source, target))
    theirs.copy_(ours)
    return target


_library.impl("_copy_from", _copy_from, "PrivateUse1")
