"""Reads a pickle of float arrays in plain containers without running anything that it names.

A pickle is a program: it may name any function and call it. Here only the three names that a numpy array needs are
admitted, and each stands for a record of our own: a file can do nothing but describe arrays, and all else is refused.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt

from hw.errors import RedlineError

Float32 = npt.NDArray[np.float32]


class PickleRefused(RedlineError, ValueError):
    """The file holds something else than float arrays in plain containers."""


class _Kind:
    """Stands for `numpy.dtype`: only little-endian float32 passes."""

    def __init__(self, text: str, *flags: object) -> None:
        if text != "f4":
            raise PickleRefused(f"an array of kind {text!r}, not float32")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] != "<":
            raise PickleRefused(f"an array of byte order {state[1]!r}, not little-endian")


class _Array:
    """Stands for an array: what `numpy.ndarray.__setstate__` would be given."""

    value: Float32

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, columns_first, raw = state
        if not isinstance(kind, _Kind) or not isinstance(raw, bytes):
            raise PickleRefused("an array of objects")
        self.value = np.frombuffer(raw, "<f4").reshape(shape, order="F" if columns_first else "C").copy()


def _empty(*_: object) -> _Array:
    """Stands for `numpy.core.multiarray._reconstruct`."""
    return _Array()


_ADMITTED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("numpy.core.multiarray", "_reconstruct"): _empty,
    ("numpy._core.multiarray", "_reconstruct"): _empty,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise PickleRefused(f"it names {module}.{name}, which could run code") from None


def read_arrays(raw: bytes) -> dict[str, list[Float32]]:
    """A pickled dict of lists (or tuples) of float32 arrays.

    Raises
    ------
    PickleRefused
        If the pickle names anything but numpy's arrays, holds other things, or is damaged.
    """
    try:
        held = _Reader(io.BytesIO(raw)).load()
        return {_text(key): [_value(item) for item in items] for key, items in held.items()}
    except PickleRefused:
        raise
    except Exception as error:  # a broken pickle breaks in any way
        raise PickleRefused(f"damaged, or no dict of lists of arrays ({type(error).__name__}: {error})") from error


def _text(key: object) -> str:
    if not isinstance(key, str):
        raise PickleRefused(f"a key of type {type(key).__name__}, not str")
    return key


def _value(item: object) -> Float32:
    if not isinstance(item, _Array):
        raise PickleRefused(f"a {type(item).__name__} where an array is expected")
    return item.value
