"""The fault plan: the concrete faults of one run, bit flips and conditions, the same for every device."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save as serialise

from host.faults.conditions import ConditionError, Conditions
from host.program import arrangement
from host.store.checked import read_checked, tensors_digest
from host.store.files import write_atomic
from hw.errors import RedlineError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from host.program.program import Program
    from host.training.twin import Twin

FORMAT = "redline-plan"
FORMAT_VERSION = 2
SITES = ("weight", "input", "feature", "mac")
"""Where a bit can flip; a plan stores the position in this tuple."""
SITE_BITS = {"weight": 8, "input": 8, "feature": 8, "mac": 32}
"""Bits of the value at each site."""
EVERY_IMAGE = -1
"""The image index of faults in weights: they last for the whole run."""

_COLUMNS: dict[str, type] = {
    "image": np.int64,
    "layer": np.int32,
    "site": np.int8,
    "output": np.int64,
    "step": np.int32,
    "bit": np.int8,
}


_RANGES = {
    "image": (EVERY_IMAGE, 2**63 - 1),
    "layer": (0, 2**31 - 1),
    "site": (0, len(SITES) - 1),
    "output": (0, 2**63 - 1),
    "step": (0, 2**31 - 1),
    "bit": (0, max(SITE_BITS.values()) - 1),
}
"""Least and largest value of each column; what a network has of them is for `FaultPlan.check`."""


class PlanError(RedlineError, ValueError):
    """A fault plan is damaged, or does not fit the network it should be used with."""


@dataclass(frozen=True, eq=False)
class FaultPlan:
    """Bit flips as parallel arrays, sorted by (image, layer, site, output, step, bit), each place at most once.

    Make one with `FaultPlan.of`; two flips at one place cancel there, so that every device agrees.

    Attributes
    ----------
    layers : tuple of str
        Names of the network's layers; `layer` counts in them.
    image : int64 array
        Index of the image in the data set, or `EVERY_IMAGE` for weights.
    layer : int32 array
    site : int8 array
        Position in `SITES`.
    output : int64 array
        weight: flat OIHW index of the stored weights. input: flat CHW index of the stored (folded) input. feature:
        flat CHW index of the layer's final output. mac: flat CHW index of the convolution's output, before pooling.
    step : int32 array
        mac: the accumulator is hit after this step. Otherwise 0.
    bit : int8 array
        0 to 31 for mac, otherwise 0 to 7.
    conditions : Conditions or None
        What holds for the whole run: its clock, stuck bits.
    """

    layers: tuple[str, ...]
    image: npt.NDArray[np.int64]
    layer: npt.NDArray[np.int32]
    site: npt.NDArray[np.int8]
    output: npt.NDArray[np.int64]
    step: npt.NDArray[np.int32]
    bit: npt.NDArray[np.int8]
    conditions: Conditions | None = None

    @staticmethod
    def of(
        layers: Sequence[str],
        image: npt.ArrayLike = (),
        layer: npt.ArrayLike = (),
        site: npt.ArrayLike = (),
        output: npt.ArrayLike = (),
        step: npt.ArrayLike = (),
        bit: npt.ArrayLike = (),
    ) -> FaultPlan:
        """A plan from unsorted flips (scalars broadcast); places hit an even number of times drop out.

        Raises
        ------
        PlanError
            If a value is no whole number or is out of its column's range, or columns are of different lengths.
        """
        if isinstance(layers, str):
            raise PlanError(f"layers are names in a list, not the text {layers!r}")
        each = zip(_COLUMNS.items(), (image, layer, site, output, step, bit), strict=True)
        checked = [_column(name, kind, values) for (name, kind), values in each]
        try:
            given = np.broadcast_arrays(*checked)
        except ValueError as error:
            lengths = ", ".join(f"{len(a)} of {name}" for name, a in zip(_COLUMNS, checked, strict=True))
            raise PlanError(f"a plan's columns have different lengths: {lengths}") from error
        columns: dict[str, npt.NDArray[Any]] = {name: a.copy() for name, a in zip(_COLUMNS, given, strict=True)}
        count = len(columns["image"])
        if not _ascending(list(columns.values())):
            order = np.lexsort([columns[name] for name in reversed(_COLUMNS)])
            columns = {name: a[order] for name, a in columns.items()}
            new = np.ones(count, bool)
            new[1:] = np.any([a[1:] != a[:-1] for a in columns.values()], axis=0)
            if not new.all():
                starts = np.flatnonzero(new)
                odd = np.diff(np.append(starts, count)) % 2 == 1
                columns = {name: a[starts[odd]] for name, a in columns.items()}
        for a in columns.values():
            a.setflags(write=False)
        return FaultPlan(tuple(layers), **columns, conditions=None)

    @property
    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The flips' columns by name: what `of` takes."""
        return {name: getattr(self, name) for name in _COLUMNS}

    def __len__(self) -> int:
        return len(self.image)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FaultPlan):
            return NotImplemented
        return self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __add__(self, other: FaultPlan) -> FaultPlan:
        """Both plans' flips; those at one place cancel."""
        if other.layers != self.layers:
            raise PlanError(f"plans of different networks: {', '.join(self.layers)} and {', '.join(other.layers)}")
        flips = FaultPlan.of(
            self.layers, *(np.concatenate([getattr(self, name), getattr(other, name)]) for name in _COLUMNS)
        )
        both = [plan.conditions for plan in (self, other) if plan.conditions is not None]
        return flips.under(both[0] + both[1] if len(both) == 2 else both[0] if both else None)

    def under(self, conditions: Conditions | None) -> FaultPlan:
        """The same flips under other conditions."""
        return replace(self, conditions=conditions)

    @property
    def empty(self) -> bool:
        """Whether it changes nothing: no flips, no conditions."""
        return not len(self) and self.conditions is None

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the layers' names, all flips and the conditions, hexadecimal."""
        sha = hashlib.sha256("\0".join(self.layers).encode())
        for name in _COLUMNS:
            sha.update(getattr(self, name).tobytes())
        if self.conditions is not None:
            sha.update(self.conditions.digest.encode())
        return sha.hexdigest()

    # -- parts

    def where(self, mask: npt.NDArray[np.bool_] | slice) -> FaultPlan:
        """The flips that a mask selects, still sorted."""
        return FaultPlan(
            self.layers, **{name: getattr(self, name)[mask] for name in _COLUMNS}, conditions=self.conditions
        )

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that it hits, and of its conditions."""
        conditions = () if self.conditions is None else self.conditions.sites
        return (*(SITES[code] for code in np.unique(self.site)), *conditions)

    def on(self, twin: Twin, *, first_image: int = 0) -> AbstractContextManager[Twin]:
        """Context in which the twin's forward passes meet exactly these faults."""
        from host.faults.models import Replay  # it imports FaultPlan

        return Replay(self).on(twin, seed=0, first_image=first_image)

    def images(self, first: int, count: int) -> FaultPlan:
        """The flips that concern images `first` to `first + count - 1`, and those in weights."""
        stored = int(np.searchsorted(self.image, EVERY_IMAGE, side="right"))
        low, high = np.searchsorted(self.image, [first, first + count])
        if stored == low and high == len(self):
            return self
        if stored == low:
            return self.where(slice(0, int(high)))
        return self.where(np.r_[0:stored, low:high])

    def of_images(self, images: npt.NDArray[np.int64]) -> FaultPlan:
        """The flips of some images, ascending, which count from 0 in that order, and those in weights."""
        part = self.where(np.isin(self.image, images) | (self.image == EVERY_IMAGE))
        place = np.where(part.image == EVERY_IMAGE, EVERY_IMAGE, np.searchsorted(images, part.image))
        return replace(part, image=place)

    def at(self, layer: int, site: str) -> FaultPlan:
        """The flips of one layer (by position) and site."""
        return self.where((self.layer == layer) & (self.site == SITES.index(site)))

    def counted_from(self, first: int) -> FaultPlan:
        """The same flips with images counted from `first`."""
        return replace(self, image=self.image - first)

    # -- use

    def check(self, program: Program) -> None:
        """Raise `PlanError` unless every flip names a place that the program has; `ConditionError` for conditions."""
        if self.layers != program.names:
            raise PlanError(
                f"the plan was drawn for layers {', '.join(self.layers)}; this network has {', '.join(program.names)}"
            )
        if self.conditions is not None:
            self.conditions.check(program.config)
        if not len(self):
            return
        if self.layer.min() < 0 or self.layer.max() >= len(program.layers):
            raise PlanError(f"the plan names layer {int(self.layer.max())} of {len(program.layers)}")
        if self.site.min() < 0 or self.site.max() >= len(SITES):
            raise PlanError(f"the plan names site {int(self.site.max())} of {len(SITES)}")
        # One row a (layer, site); looking at all flips at once, since plans have many and networks have many layers.
        limits = np.asarray(
            [(*extents(program, at, site), SITE_BITS[site]) for at in range(len(program.layers)) for site in SITES]
        )
        outputs, steps, bits = limits[self.layer.astype(np.int64) * len(SITES) + self.site].T
        bad = (
            (self.output < 0)
            | (self.output >= outputs)
            | (self.step < 0)
            | (self.step >= steps)
            | (self.bit < 0)
            | (self.bit >= bits)
            | ((self.image < 0) != (self.site == SITES.index("weight")))
        )
        if bad.any():
            i = int(np.argmax(bad))
            raise PlanError(
                f"layer {program.layers[self.layer[i]].name!r} has no {SITES[self.site[i]]} site at image "
                f"{self.image[i]}, output {self.output[i]}, step {self.step[i]}, bit {self.bit[i]} (it has "
                f"{outputs[i]} outputs, {steps[i]} steps, {bits[i]} bits)"
            )

    # -- files

    def save(self, path: str | Path) -> None:
        """Write the plan to a safetensors file, in one step."""
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _COLUMNS}
        if self.conditions is not None:
            tensors["conditions"] = np.frombuffer(self.conditions.to_json().encode(), np.uint8)
        structure = "\n".join(self.layers)
        metadata = {
            "format": FORMAT,
            "version": str(FORMAT_VERSION),
            "layers": structure,
            "sha256": tensors_digest(structure, tensors),
        }
        write_atomic(Path(path), serialise(tensors, metadata))

    @staticmethod
    def load(path: str | Path) -> FaultPlan:
        """Read a plan back; `PlanError` if the file is missing, damaged or of another kind."""
        metadata, tensors = read_checked(
            Path(path), FORMAT, FORMAT_VERSION, "layers", "draw and save the plan again", PlanError
        )
        remedy = "draw and save the plan again"
        missing = [name for name in _COLUMNS if name not in tensors]
        if missing:
            raise PlanError(f"{path}: damaged, its columns {', '.join(missing)} are missing; {remedy}")
        try:
            plan = FaultPlan.of(metadata["layers"].split("\n"), **{name: tensors[name] for name in _COLUMNS})
        except PlanError as error:
            raise PlanError(f"{path}: damaged ({error}); {remedy}") from error
        if "conditions" not in tensors:
            return plan
        try:
            return plan.under(Conditions.from_json(tensors["conditions"].tobytes().decode()))
        except (ConditionError, UnicodeDecodeError) as error:
            raise PlanError(f"{path}: damaged ({error}); {remedy}") from error


def _column(name: str, kind: type, values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Values as a column of that integer type, none of them changed by that."""
    if isinstance(values, np.ma.MaskedArray):
        raise PlanError(f"{name}: a masked array is no list of whole numbers")
    if isinstance(values, (list, tuple)) and any(isinstance(value, (bool, np.bool_, float)) for value in values):
        # Among whole numbers, numpy would make ones and rounded values of them.
        values = np.asarray(values, object)
    try:
        a = np.atleast_1d(np.asarray(values))
    except (ValueError, TypeError, OverflowError) as error:
        raise PlanError(f"{name}: not a list of whole numbers ({error})") from error
    if a.ndim != 1:
        raise PlanError(f"{name}: one value a flip is wanted, not an array of shape {a.shape}")
    if not a.size:
        return a.astype(kind)
    if a.dtype.kind == "O" and all(_is_whole(value) for value in a):
        a = np.asarray([int(value) for value in a], object)
        low, high = min(a), max(a)
    elif a.dtype.kind in "iu" or (a.dtype.kind == "f" and bool((np.isfinite(a) & (a == np.floor(a))).all())):
        low, high = int(a.min()), int(a.max())
    else:
        raise PlanError(f"{name}: whole numbers are wanted, not {a.reshape(-1)[:3].tolist()} of type {a.dtype}")
    least, most = _RANGES.get(name, (np.iinfo(kind).min, np.iinfo(kind).max))
    if low < least or high > most:
        raise PlanError(f"{name}: from {least} to {most}, not {low if low < least else high}")
    return a if a.dtype == kind else a.astype(kind)


def _is_whole(value: object) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return False
    return isinstance(value, (int, np.integer)) or (
        isinstance(value, (float, np.floating)) and float(value).is_integer()
    )


def _ascending(columns: list[npt.NDArray[Any]]) -> bool:
    """Whether rows, compared column by column, are in order and all different."""
    later = np.zeros(max(len(columns[0]) - 1, 0), bool)
    equal = ~later
    for a in columns:
        later |= equal & (a[1:] > a[:-1])
        equal &= a[1:] == a[:-1]
    return bool(later.all())


def extents(program: Program, layer: int, site: str) -> tuple[int, int]:
    """(outputs, steps) of a layer's fault space at a site, per image; (0, 1) where the layer has no such site."""
    it = program.layers[layer]
    if site == "weight":
        return math.prod(it.weight_shape), 1
    if site == "input":
        return (math.prod(program.stored_input_shape) if layer == 0 else 0), 1
    if site == "feature":
        return math.prod(it.out_shape), 1
    if site == "mac":
        return math.prod(it.conv_shape), arrangement.steps(it, program.config)
    raise ValueError(f"unknown fault site {site!r}; there are {', '.join(SITES)}")


def no_faults(program: Program) -> FaultPlan:
    """The empty plan."""
    return FaultPlan.of(program.names)
