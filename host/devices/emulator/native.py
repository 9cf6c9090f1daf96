"""The emulator's kernels: built once with the user's compiler, chosen by what the processor has, and tested at load."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import subprocess
from collections.abc import Mapping
from ctypes import POINTER, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from host.program.layers import Pool
from hw.errors import RedlineError
from sim.cache import BuildError, cached, digest
from sim.tools import ToolError, find_ccache, find_compiler

log = logging.getLogger("redline.emulator")

VARIABLE = "REDLINE_KERNELS"
"""Environment variable that names the kernels to use."""
LEVELS: Mapping[str, tuple[str, ...]] = {
    "vnni": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx2"),
    "avx2": ("-mavx2",),
    "portable": (),
}
"""Compiler flags of each kind of kernels, the fastest first."""
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fwrapv", "-fno-trapping-math", "-w")
"""Without warnings: GCC 12 finds some in its own headers. `-fwrapv`: accumulators wrap. `-fno-trapping-math` changes no
value: nobody asks for floating-point exceptions, and without them comparisons can be vectorised."""
SOURCES = Path(__file__).parent / "kernels"
X86 = ("x86_64", "AMD64", "i686", "i386")
LOG_LINES = 20


class KernelError(RedlineError, RuntimeError):
    """The emulator's kernels cannot be built or used; the message says why and what to do."""


class Tensor(ctypes.Structure):
    """`Tensor` of engine.h."""

    _fields_ = [("at", c_void_p), ("image", c_int64), ("row", c_int64), ("pixel", c_int64)]


class Events(ctypes.Structure):
    """`Events` of engine.h."""

    _fields_ = [
        ("image", c_void_p),
        ("output", c_void_p),
        ("step", c_void_p),
        ("bit", c_void_p),
        ("count", c_int64),
    ]


class Adder(ctypes.Structure):
    """`Adder` of engine.h."""

    _fields_ = [("groups", c_int64), *((name, c_void_p) for name in ("masks", "sign", "keep", "set"))]


class Late(ctypes.Structure):
    """`Late` of engine.h."""

    _fields_ = [
        ("partial", c_int64),
        ("x", Tensor),
        ("sources", POINTER(Tensor)),
        ("runs", c_void_p),
        ("run_count", c_int64),
        ("blocks", c_int64),
        *((name, c_void_p) for name in ("channel", "count", "rows", "place", "plane", "offsets", "weights", "sums")),
        *((name, c_void_p) for name in ("start", "shift", "added")),
        ("groups", c_int64),
        *((name, c_void_p) for name in ("masks", "keep", "set")),
        ("adders", POINTER(Adder)),
    ]


class Layer(ctypes.Structure):
    """`Layer` of engine.h."""

    _fields_ = [
        ("kind", c_int64),
        ("batched", c_int64),
        ("x", Tensor),
        ("second", Tensor),
        ("sources", POINTER(Tensor)),
        ("runs", c_void_p),
        *((name, c_int64) for name in ("run_count", "in_h", "in_w", "channels", "outputs", "groups", "out_h", "out_w")),
        *((name, c_int64) for name in ("kernel_h", "kernel_w", "stride_y", "stride_x", "pad_y", "pad_x")),
        ("offsets", c_void_p),
        ("quads", c_int64),
        *((name, c_void_p) for name in ("weights", "start", "shift", "added")),
        *((name, c_int64) for name in ("low", "upper", "pipecnn", "stored")),
        ("conv", Tensor),
        *((name, c_int64) for name in ("pool_kernel", "pool_stride", "pool_pad", "pool_h", "pool_w")),
        ("out", Tensor),
        *((name, c_void_p) for name in ("plain", "bias", "slots", "first")),
        *((name, c_int64) for name in ("planes", "span", "lanes", "vec", "in_order")),
        *((name, c_void_p) for name in ("ordered_offsets", "ordered", "ordered_sums", "rows")),
        ("late", POINTER(Late)),
        ("mac", Events),
        ("feature", Events),
    ]


class Kernels:
    """The functions of one kind of kernels (`LEVELS`); each leaves Python's lock while it runs."""

    def __init__(self, library: ctypes.CDLL, level: str) -> None:
        self.level = level
        self._run = _function(library, "run", level, POINTER(Layer), c_int64, c_int64, c_int64)
        self._pack = _function(library, "pack", level, c_void_p, c_int64, c_int64, c_int64, c_int64, c_void_p, c_void_p)
        self._sums = _function(library, "prefix_sums", level, c_void_p, c_int64, c_int64, c_int64, c_void_p)
        shape = (c_int64, c_int64, c_int64, c_int64)
        self._load = _function(library, "load", level, c_void_p, *shape, POINTER(Tensor))
        self._store = _function(library, "store", level, POINTER(Tensor), *shape, c_void_p)
        self._quantise = _function(library, "quantise", level, c_void_p, c_int64, c_int64, c_void_p, c_void_p)
        self._quantise.restype = ctypes.c_int
        self._dequantise = _function(library, "dequantise", level, c_void_p, c_int64, c_float, c_void_p)
        rounding = (c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)
        self._quantise_layer = _function(library, "quantise_layer", level, *rounding)
        self._quantise_layer.restype = ctypes.c_int
        self._unpool = _function(library, "unpool", level, c_void_p, c_void_p, *(c_int64,) * 10, c_void_p)
        self._pass = _function(library, "pass", level, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p)

    def run(self, layers: ctypes.Array[Layer], first: int, end: int) -> None:
        """Images `first` to `end - 1` through layers."""
        self._run(layers, len(layers), first, end)

    def pack(
        self, weight: npt.NDArray[np.int8], groups: int, per_step: int = 0
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32]]:
        """OIHW weights to the kernels' order, and the sum of each output's.

        `per_step` > 0: in the order of steps of that many quads of channels.
        """
        m, c, kh, kw = weight.shape
        per_group, quads = m // groups, -(-c // 4)
        if per_step:
            quads = -(-quads // per_step) * per_step
        size = -(-per_group // 16) * 16 * quads * 4 * kh * kw
        packed, sums = np.empty((groups, size), np.int8), np.empty(m, np.int32)
        for g in range(groups):
            rows = weight[g * per_group : (g + 1) * per_group]
            part = sums[g * per_group : (g + 1) * per_group]
            self._pack(rows.ctypes.data, per_group, c, kh * kw, per_step, packed[g].ctypes.data, part.ctypes.data)
        return packed, sums

    def prefix_sums(
        self, packed: npt.NDArray[np.int8], outputs: int, steps: int, per_step: int
    ) -> npt.NDArray[np.int32]:
        """128 times the sums of the weights of the steps up to each, shape (blocks of 16 outputs, steps, 16)."""
        sums = np.empty((-(-outputs // 16), steps, 16), np.int32)
        self._sums(packed.ctypes.data, outputs, steps, per_step, sums.ctypes.data)
        return sums

    def load(self, x: npt.NDArray[np.int8], to: Tensor) -> None:
        """int8 images, shape (N, C, H, W), contiguous, to a feature map."""
        self._load(x.ctypes.data, *x.shape, ctypes.byref(to))

    def store(self, tensor: Tensor, shape: tuple[int, int, int, int]) -> npt.NDArray[np.int8]:
        """A feature map to int8 images, shape (N, C, H, W)."""
        x = np.empty(shape, np.int8)
        self._store(ctypes.byref(tensor), *shape, x.ctypes.data)
        return x

    def unpool(
        self, conv: npt.NDArray[np.int8], grad: npt.NDArray[np.float32], pool: Pool | None, low: int, upper: int
    ) -> npt.NDArray[np.float32]:
        """Gradient of max-pooled values, shape (N, M, PH, PW), to that of what they were chosen from, (N, M, OH, OW).

        It passes where the chosen value, the first largest of a window, lies strictly between the bounds. Without
        pooling, every value is its own window.
        """
        n, m, h, w = conv.shape
        result = np.empty(conv.shape, np.float32)
        if pool is None:
            self._pass(conv.ctypes.data, grad.ctypes.data, conv.size, low, upper, result.ctypes.data)
            return result
        window = (pool.kernel, pool.stride, pool.pad, *grad.shape[2:])
        self._unpool(conv.ctypes.data, grad.ctypes.data, n * m, h, w, *window, low, upper, result.ctypes.data)
        return result

    def quantise(self, x: npt.NDArray[np.float32], frac: npt.NDArray[np.integer]) -> npt.NDArray[np.int8] | None:
        """float32, contiguous, to int8 at one fraction for all or one for each of the first axis.

        None if a value is NaN or infinite.
        """
        scale = np.ldexp(1.0, np.reshape(frac, -1)).astype(np.float64)
        result = np.empty(x.shape, np.int8)
        finite = self._quantise(x.ctypes.data, len(scale), x.size // len(scale), scale.ctypes.data, result.ctypes.data)
        return result if finite else None

    def dequantise(self, x: npt.NDArray[np.int8], scale: float) -> npt.NDArray[np.float32]:
        """int8, contiguous, times a scale that is a float32."""
        result = np.empty(x.shape, np.float32)
        self._dequantise(x.ctypes.data, x.size, scale, result.ctypes.data)
        return result

    def quantise_layer(
        self,
        weight: npt.NDArray[np.float32],
        scale: npt.NDArray[np.float64],
        bias: npt.NDArray[np.float32],
        bias_scale: npt.NDArray[np.float64],
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32]] | None:
        """A layer's weights, contiguous, to int8, and its biases, shape (M,), to int32, at scales of shape (M,).

        None if a value is NaN or infinite.
        """
        found, biases = np.empty(weight.shape, np.int8), np.empty(bias.shape, np.int32)
        rows = len(weight)
        weights = (weight.ctypes.data, rows, weight.size // rows, scale.ctypes.data, found.ctypes.data)
        finite = self._quantise_layer(*weights, bias.ctypes.data, bias_scale.ctypes.data, biases.ctypes.data)
        return (found, biases) if finite else None


def _function(library: ctypes.CDLL, name: str, level: str, *arguments: Any) -> Any:
    function = getattr(library, f"{name}_{level}")
    function.argtypes, function.restype = arguments, None
    return function


def build(
    *,
    sources: Path = SOURCES,
    directory: Path | None = None,
    compiler: str | None = None,
    levels: tuple[str, ...] | None = None,
) -> Path:
    """The shared object with all kinds of kernels that this sort of processor may have; built if it is not cached.

    Parameters
    ----------
    sources : Path
    directory : Path, optional
        The cache instead of `sim.cache.cache_directory()`.
    compiler : str, optional
        Search path for the compiler instead of PATH.
    levels : tuple of str, optional
        Only these.

    Raises
    ------
    KernelError
        If there is no compiler, or it fails.
    """
    try:
        tool = find_compiler(path=compiler)
    except ToolError as error:
        raise KernelError(str(error)) from error
    texts = {path.name: path.read_text() for path in sorted(sources.iterdir()) if path.suffix in (".cpp", ".h")}
    levels = available_levels() if levels is None else levels
    flags = {level: LEVELS[level] for level in levels}
    key = digest(
        {
            "sources": texts,
            "flags": [FLAGS, flags],
            "compiler": f"{tool.path} {tool.version}",
            "machine": platform.machine(),
        }
    )

    def make(folder: Path) -> None:
        log.info("building the emulator's kernels; this takes some seconds")
        for name, text in texts.items():
            (folder / name).write_text(text)
        ccache = find_ccache()
        objects: list[tuple[str, str, tuple[str, ...]]] = [("supported", "supported.cpp", ())]
        objects += [
            (level, "engine.cpp", (*LEVELS[level], f"-DLEVEL={level}", f"-DLEVEL_{level.upper()}")) for level in levels
        ]
        for name, source, extra in objects:
            command = [*([str(ccache)] if ccache else []), str(tool.path), *FLAGS, *extra, "-c", source]
            _compile([*command, "-o", f"{name}.o"], folder)
        names = [f"{name}.o" for name, _, _ in objects]
        _compile([str(tool.path), "-shared", "-o", "kernels.so", *names], folder)
        for name in names:
            (folder / name).unlink()

    try:
        return cached("kernels", key, make, directory=directory) / "kernels.so"
    except BuildError as error:
        raise KernelError(str(error)) from error


def available_levels() -> tuple[str, ...]:
    """Kinds of kernels that can be compiled for this sort of processor, the fastest first."""
    return tuple(LEVELS) if platform.machine() in X86 else ("portable",)


def _compile(command: list[str], folder: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("CXXFLAGS", "CPPFLAGS", "LDFLAGS")}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-LOG_LINES:])
        raise KernelError(f"the emulator's kernels cannot be compiled ({' '.join(command)}); its last lines:\n{tail}")


def supported(library: ctypes.CDLL, level: str) -> bool:
    """Whether this processor has a level's instructions."""
    return level in available_levels() and bool(getattr(library, f"supported_{level}")())


@cache
def library(path: Path) -> ctypes.CDLL:
    """A shared object, loaded once."""
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"the emulator's kernels cannot be loaded ({error}); delete {path.parent}") from error


def asked(level: str | None = None) -> str | None:
    """The kernels that an option or else the environment variable `REDLINE_KERNELS` names."""
    return level or os.environ.get(VARIABLE) or None


def load(level: str | None = None, *, directory: Path | None = None, compiler: str | None = None) -> Kernels:
    """The kernels to use, built and tested.

    Parameters
    ----------
    level : str, optional
        One of `LEVELS`; by default what the environment variable `REDLINE_KERNELS` names, else the fastest that this
        processor has.
    directory, compiler : as for `build`

    Raises
    ------
    KernelError
        If they cannot be built, the processor lacks the instructions asked for, or they do not compute exactly.
    """
    chosen = asked(level)
    if chosen is not None and chosen not in LEVELS:
        raise KernelError(
            f"no kernels {chosen!r} (option kernels= or {VARIABLE}); there are {', '.join(LEVELS)}, reference"
        )
    return _tested(build(directory=directory, compiler=compiler), chosen)


@cache
def _tested(path: Path, chosen: str | None) -> Kernels:
    from host.devices.emulator.selftest import check  # it runs layers, which need this module

    shared = library(path)
    levels = [chosen] if chosen else [name for name in available_levels() if supported(shared, name)]
    for level in levels:
        if not supported(shared, level):
            raise KernelError(
                f"this processor lacks the instructions of the {level} kernels; choose others with {VARIABLE}, or none"
            )
        kernels = Kernels(shared, level)
        try:
            check(kernels)
        except KernelError as error:
            if level == levels[-1]:
                raise
            log.warning("%s; trying slower ones", error)
            continue
        return kernels
    raise KernelError("there are no kernels for this processor")
