"""The Program: a network in the accelerator's integers, with everything a device needs to run it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save as serialise

from host.compiler.limits import check_layer
from host.program import fold, pipecnn, quantisation, sums
from host.program.layers import INPUT, Fold, Layer, Normalisation, Placement, Pool
from host.store.checked import read_checked, tensors_digest
from host.store.files import write_atomic
from hw.config import Config
from hw.errors import RedlineError

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]

Quantise = Callable[[npt.NDArray[Any], int | npt.NDArray[np.integer]], Int8 | None]
ShortWay = Callable[[Layer, npt.NDArray[Any], npt.NDArray[Any]], tuple[Int8, Int32] | None]

FORMAT = "redline-program"
FORMAT_VERSION = 2


class ProgramError(RedlineError, ValueError):
    """A Program cannot be used as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Program:
    """A graph of integer layers with its weights.

    Attributes
    ----------
    config : Config
        The accelerator it was compiled for.
    layers : tuple of Layer
        In execution order; `Layer.sources` names where each reads from. The last one's output is the network's.
    weights : dict of int8 arrays, shape (M, C / groups, KH, KW)
        As the accelerator sees them: folded, for a folded first layer.
    biases : dict of int32 arrays, shape (M,)
        At scale `in_frac + weight_frac`; in PipeCNN's arithmetic as it is added to an output (`pipecnn.stored_bias`).
    input_shape : (C, H, W)
        Of the network's input, unfolded.
    input_frac : int
    modules : dict of str
        Qualified name of the module each layer came from.

    Raises
    ------
    CompileError, ProgramError
        If a layer cannot be computed exactly where it is placed, or the parts do not fit each other.
    """

    config: Config
    layers: tuple[Layer, ...]
    weights: dict[str, Int8]
    biases: dict[str, Int32]
    input_shape: tuple[int, int, int]
    input_frac: int
    modules: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers:
            raise ProgramError(
                "a Program needs at least one layer: compile a network with a convolution or linear layer"
            )
        known = {INPUT: (self.stored_input_shape, self.input_frac)}
        for layer in self.layers:
            if layer.name in known:
                raise ProgramError(f"two layers have the same name ({layer.name!r})")
            check_layer(layer, self.config)
            self._check_sources(layer, known)
            for kind, tensors, wanted in (
                (np.int8, self.weights, layer.weight_shape),
                (np.int32, self.biases, (layer.out_channels,)),
            ):
                tensor = tensors.get(layer.name)
                if tensor is None or tensor.shape != wanted or tensor.dtype != kind:
                    found = "nothing" if tensor is None else f"{tensor.dtype} of shape {tensor.shape}"
                    raise ProgramError(f"layer {layer.name!r} needs {kind.__name__} of shape {wanted}, found {found}")
            known[layer.name] = (layer.out_shape, layer.out_frac)

    def _check_sources(self, layer: Layer, known: dict[str, tuple[tuple[int, int, int], int]]) -> None:
        """Raise `ProgramError` unless what the layer reads exists, in the shapes and fractions that it expects."""
        if not layer.sources or len(set(layer.sources)) != len(layer.sources):
            raise ProgramError(f"layer {layer.name!r} must read one or several different tensors, not {layer.sources}")
        if layer.fold is not None and (layer != self.layers[0] or self.readers(INPUT) != (layer.name,)):
            raise ProgramError(f"layer {layer.name!r} is folded, but not the only reader of the network's input")
        if len(layer.sources) != len(layer.source_channels):
            raise ProgramError(
                f"layer {layer.name!r}: {len(layer.sources)} sources, {len(layer.source_channels)} sizes"
            )
        c, h, w = layer.in_shape
        for source, channels in zip(layer.sources, layer.source_channels, strict=True):
            if source not in known:
                raise ProgramError(f"layer {layer.name!r} reads {source!r}, which no layer before it gives")
            shape, frac = known[source]
            same_frac = frac == layer.in_frac or layer.operator == "add"
            if shape != (channels, h, w) or not same_frac:
                raise ProgramError(
                    f"layer {layer.name!r} reads {source!r} as {(channels, h, w)} at fraction {layer.in_frac}, "
                    f"but it is {shape} at {frac}"
                )
        stacked = sum(layer.source_channels)
        chosen = range(stacked) if layer.channels is None else layer.channels
        if len(chosen) != c or (c and not 0 <= min(chosen) <= max(chosen) < stacked):
            raise ProgramError(f"layer {layer.name!r} takes {c} channels, and chooses {len(chosen)} of {stacked}")

    @property
    def stored_input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the network's input as the accelerator sees it: folded, if the first layer is."""
        folded = self.layers[0].fold
        if folded is None:
            return self.input_shape
        channels, height, _ = self.input_shape
        return folded.kernel_w * channels, height, fold.fold_columns(folded)

    def readers(self, source: str) -> tuple[str, ...]:
        """Names of the layers that read a tensor, in execution order."""
        return tuple(layer.name for layer in self.layers if source in layer.sources)

    def tensor_shape(self, source: str) -> tuple[int, int, int]:
        """(C, H, W) of a layer's final output, or of the stored input."""
        return self.stored_input_shape if source == INPUT else self.layer(source).out_shape

    # -- looking things up

    def index(self, name: str) -> int:
        """Position of a layer; `ProgramError` with the known names if there is none."""
        for at, layer in enumerate(self.layers):
            if layer.name == name:
                return at
        raise ProgramError(f"no layer {name!r}; this network has {', '.join(self.names)}")

    def layer(self, name: str) -> Layer:
        """The layer of that name."""
        return self.layers[self.index(name)]

    @property
    def names(self) -> tuple[str, ...]:
        """Layer names in execution order."""
        return tuple(layer.name for layer in self.layers)

    @property
    def out_frac(self) -> int:
        """Fraction of the network's output."""
        return self.layers[-1].out_frac

    def segments(self) -> list[tuple[Placement, tuple[int, ...]]]:
        """Runs of consecutive layers with one placement, as layer positions."""
        runs: list[tuple[Placement, tuple[int, ...]]] = []
        for at, layer in enumerate(self.layers):
            if runs and runs[-1][0] == layer.placement:
                runs[-1] = (layer.placement, (*runs[-1][1], at))
            else:
                runs.append((layer.placement, (at,)))
        return runs

    # -- changing things

    def with_placement(self, cpu: Iterable[str] = ()) -> Program:
        """The same network with exactly the named layers on the CPU and all others on the accelerator.

        Weights are shared until one of the two is requantised.
        """
        names = [cpu] if isinstance(cpu, str) else list(cpu)
        for name in names:
            self.index(name)
        layers = tuple(replace(la, placement="cpu" if la.name in names else "accelerator") for la in self.layers)
        return replace(
            self, layers=layers, weights=dict(self.weights), biases=dict(self.biases), modules=dict(self.modules)
        )

    def requantise(
        self,
        name: str,
        weight: Any,
        bias: Any = None,
        quantise: Quantise = quantisation.quantise_finite,
        short: ShortWay | None = None,
    ) -> None:
        """Replace a layer's weights by float ones, folded and quantised at the layer's fixed fractions.

        Parameters
        ----------
        name : str
        weight : float array or tensor, shape (M, C, KH, KW) unfolded, or (M, features) of a linear layer
        bias : float array or tensor, shape (M,), or None for zeros
        quantise : callable (values, fractions) -> int8 array or None
            Does what `host.program.quantisation.quantise_finite` does; a device may do it faster.
        short : callable, optional
            `Device.quantise_layer` of a device.

        Raises
        ------
        ProgramError
            If a value is NaN or infinite, a shape does not fit, or the layer's sums could exceed 32 bits.
        """
        layer = self.layer(name)
        self.weights[name], self.biases[name] = quantise_layer(
            layer, weight, bias, self.config.arithmetic, quantise, short
        )

    # -- inputs

    def quantise_input(self, x: Any, quantise: Quantise = quantisation.quantise_finite) -> Int8:
        """Float images, shape (N, C, H, W), to int8 at `input_frac`.

        Parameters
        ----------
        x : float array or tensor
        quantise : callable, as for `requantise`

        Raises
        ------
        ProgramError
            If the images are of another size, or hold NaN.
        """
        values = as_array(x)
        self.check_input(values.shape)
        found = quantise(values, self.input_frac)
        if found is None:
            raise ProgramError("the images hold NaN or infinite values: clean them before quantising")
        return found

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise `ProgramError` unless `shape` is (N, *input_shape)."""
        if tuple(shape[1:]) != self.input_shape or len(shape) != 4:
            c, h, w = self.input_shape
            raise ProgramError(
                f"wrong image size: this network takes (N, {c}, {h}, {w}), got {tuple(shape)}; resize the images or "
                "compile for theirs"
            )

    def fold_input(self, x: Int8) -> Int8:
        """Int8 input NCHW to what the first layer reads: folded, if it is a folded layer."""
        first = self.layers[0]
        return x if first.fold is None else fold.fold_features(x, first.fold)

    # -- files

    @property
    def digest(self) -> str:
        """SHA-256 over structure and weights, hexadecimal: equal for equal Programs."""
        return tensors_digest(self._structure(), self._tensors())

    def _structure(self) -> str:
        content = {
            "config": asdict(self.config),
            "layers": [asdict(layer) for layer in self.layers],
            "input_shape": self.input_shape,
            "input_frac": self.input_frac,
            "modules": self.modules,
        }
        return json.dumps(content, sort_keys=True)

    def _tensors(self) -> dict[str, npt.NDArray[Any]]:
        tensors: dict[str, npt.NDArray[Any]] = {}
        for name in self.names:
            tensors[f"weight:{name}"] = np.ascontiguousarray(self.weights[name])
            tensors[f"bias:{name}"] = np.ascontiguousarray(self.biases[name])
        return tensors

    def save(self, path: str | Path) -> None:
        """Write the Program to a safetensors file, in one step."""
        metadata = {
            "format": FORMAT,
            "version": str(FORMAT_VERSION),
            "program": self._structure(),
            "sha256": self.digest,
        }
        write_atomic(Path(path), serialise(self._tensors(), metadata))

    @staticmethod
    def load(path: str | Path) -> Program:
        """Read a Program back.

        Raises
        ------
        ProgramError
            If the file is missing, damaged, truncated, or of another kind or version.
        """
        metadata, tensors = read_checked(
            Path(path), FORMAT, FORMAT_VERSION, "program", "compile and save the network again", ProgramError
        )
        try:
            content = json.loads(metadata["program"])
            layers = tuple(_layer(entry) for entry in content["layers"])
            return Program(
                config=Config(**content["config"]),
                layers=layers,
                weights={layer.name: tensors[f"weight:{layer.name}"] for layer in layers},
                biases={layer.name: tensors[f"bias:{layer.name}"] for layer in layers},
                input_shape=tuple(content["input_shape"]),
                input_frac=content["input_frac"],
                modules=content["modules"],
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ProgramError(f"{path}: not a usable Program ({error}); compile and save the network again") from error


def as_array(x: Any) -> npt.NDArray[Any]:
    """A tensor (detached, on the CPU) or array as a numpy array of real numbers.

    Raises
    ------
    ProgramError
        If its values cannot be read, or are complex.
    """
    if hasattr(x, "detach"):
        try:
            x = x.detach().cpu()
            # Types that numpy lacks (bfloat16) fit float32.
            x = (x.float() if x.is_floating_point() and x.element_size() < 4 else x).numpy()
        except (TypeError, RuntimeError, NotImplementedError) as error:
            raise ProgramError(
                f"a tensor's values cannot be read ({str(error).splitlines()[0]}): give a dense tensor with values, "
                "outside of torch.func and torch.export"
            ) from error
    values = np.asarray(x)
    if values.dtype.kind not in "biuf":
        raise ProgramError(f"values must be real numbers, not {values.dtype}")
    return values


def quantise_layer(
    layer: Layer,
    weight: Any,
    bias: Any,
    arithmetic: str = "redline",
    quantise: Quantise = quantisation.quantise_finite,
    short: ShortWay | None = None,
) -> tuple[Int8, Int32]:
    """Float weights and bias of a layer to its integers, which cannot be written to; see `Program.requantise`."""
    w = as_array(weight)
    b = np.zeros(layer.out_channels, np.float32) if bias is None else as_array(bias)
    if layer.constant:
        raise ProgramError(
            f"layer {layer.name!r} ({layer.operator}) has constant weights: there is nothing to requantise"
        )
    m, c, kh, kw = layer.weight_shape
    unfolded = (m, c, kh, kw) if layer.fold is None else (m, layer.fold.channels, kh, layer.fold.kernel_w)
    if w.shape != unfolded and w.shape != (m, math.prod(unfolded[1:])):
        raise ProgramError(f"layer {layer.name!r}: weights have shape {w.shape}, expected {unfolded}")
    if b.shape != (m,):
        raise ProgramError(f"layer {layer.name!r}: bias has shape {b.shape}, expected {(m,)}")
    w = w.reshape(unfolded)
    found = None if short is None else short(layer, w, b)
    if found is not None:
        quantised, stored = found
        _check_sums(layer, quantised, stored, arithmetic)
        return frozen(quantised if layer.fold is None else fold.fold_weights(quantised)), frozen(stored)
    frac = layer.weight_fracs
    whole = quantise(w, frac[:, None, None, None])
    if whole is None or not quantisation.finite(b):
        raise ProgramError(
            f"layer {layer.name!r}: its {'weights' if whole is None else 'bias'} hold NaN or infinite values; training "
            "has diverged: lower the learning rate or restore earlier weights"
        )
    quantised = whole
    if layer.fold is not None:
        quantised = fold.fold_weights(quantised)
    if arithmetic == "pipecnn":
        stored = pipecnn.stored_bias(quantisation.quantise(b, frac).astype(np.int32), frac, layer.out_frac)
    else:
        stored = quantisation.quantise_bias(b, frac + layer.in_frac)
    _check_sums(layer, quantised, stored, arithmetic)
    return frozen(quantised), frozen(stored)


def _check_sums(layer: Layer, weight: Int8, bias: Int32, arithmetic: str) -> None:
    """Raise `ProgramError` if the accumulators could wrap on some input."""
    found = sums.overflowing(weight, None if arithmetic == "pipecnn" else bias)
    if found is not None:
        channel, reached = found
        raise ProgramError(
            f"layer {layer.name!r}: with these weights its sums can reach {reached:,} at output channel {channel} "
            f"(|bias| + 128 * sum|w|), where 32 bits end at {sums.LIMIT:,}; compile or attach the network anew, which "
            "chooses coarser fractions, or lower its weights and bias"
        )


def frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same values, contiguous, where nobody can change them: known by identity, they need no comparing."""
    own = np.ascontiguousarray(array)
    own = own if own.base is None else own.copy()
    own.setflags(write=False)
    return own


def _layer(entry: dict[str, Any]) -> Layer:
    pool, folded, normalisation = entry.pop("pool"), entry.pop("fold"), entry.pop("normalisation")
    for key in ("sources", "source_channels", "in_shape", "kernel", "stride", "padding", "weight_frac", "channels"):
        entry[key] = entry[key] if entry[key] is None else tuple(entry[key])
    return Layer(
        **entry,
        pool=pool and Pool(**pool),
        fold=folded and Fold(**folded),
        normalisation=normalisation and Normalisation(**normalisation),
    )
