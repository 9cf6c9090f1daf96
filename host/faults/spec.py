"""Fault models as JSON values: complete, so that a model can be made again and is known by the SHA-256 of all of it."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from host.faults.conditions import Conditions
from host.faults.plan import FaultPlan
from host.store.sealed import digest
from hw.delays import DelayError, Table
from hw.errors import RedlineError

Spec = dict[str, Any]
"""A model's name under "model", and the values of which it is made."""

KINDS = ("table", "plan", "conditions", "array")
"""Long values: an object with the kind as a key beside its `sha256`."""


class SpecError(RedlineError, ValueError):
    """A fault model cannot be described, or a description is of none; the message says why and what to do."""


def value_spec(value: Any, where: str) -> Any:
    """A value of a fault model as JSON.

    Parameters
    ----------
    value : number, text, None, path, array, tensor, FaultPlan, Conditions, delay table or fault model
        Or a list, tuple or mapping of these.
    where : str
        Of which model and field, for the error.

    Raises
    ------
    SpecError
        If it is of another type, or a number that JSON does not have.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise SpecError(f"{where}: {value} cannot be described; use a finite number")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [value_spec(each, where) for each in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: value_spec(each, where) for key, each in value.items()}
    if isinstance(value, Table):
        return {"table": value.to_json(), "sha256": value.hash}
    if isinstance(value, Conditions):
        return {"conditions": value.to_json(), "sha256": value.digest}
    if isinstance(value, FaultPlan):
        return {"plan": value_spec(value.columns, where), "layers": list(value.layers), "sha256": value.digest} | (
            {} if value.conditions is None else {"under": value_spec(value.conditions, where)}
        )
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if type(value) is np.ndarray and value.dtype.kind in "biuf":
        content: Spec = {
            "array": base64.b64encode(np.ascontiguousarray(value).tobytes()).decode(),
            "dtype": value.dtype.str,
            "shape": list(value.shape),
        }
        return content | {"sha256": digest(content)}
    spec = getattr(value, "spec", None)
    if callable(spec):
        return spec()
    raise SpecError(
        f"{where}: a {type(value).__name__} cannot be described; give the model spec() and from_spec() of its own"
    )


def value_from(spec: Any) -> Any:
    """The value that `value_spec` described; lists become tuples, tensors arrays.

    Raises
    ------
    SpecError
        If the description is damaged.
    """
    if isinstance(spec, list):
        return tuple(value_from(each) for each in spec)
    if not isinstance(spec, dict):
        return spec
    kind = next((kind for kind in KINDS if kind in spec and "sha256" in spec), None)
    try:
        if kind == "table":
            return _same(Table.from_json(spec["table"]), "hash", spec)
        if kind == "conditions":
            return _same(Conditions.from_json(spec["conditions"]), "digest", spec)
        if kind == "plan":
            columns = {name: value_from(column) for name, column in spec["plan"].items()}
            plan = FaultPlan.of(tuple(spec["layers"]), **columns)
            return _same(plan.under(value_from(spec["under"])) if "under" in spec else plan, "digest", spec)
        if kind == "array":
            content = {key: value for key, value in spec.items() if key != "sha256"}
            if digest(content) != spec["sha256"]:
                raise SpecError("an array's checksum does not match")
            raw = np.frombuffer(base64.b64decode(spec["array"]), np.dtype(spec["dtype"]))
            return raw.reshape(spec["shape"]).copy()
    except SpecError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, DelayError) as error:
        raise SpecError(f"a fault model's description is damaged: {error}") from error
    if "model" in spec:
        return model_from(spec)
    return {key: value_from(each) for key, each in spec.items()}


def register(model: type) -> None:
    """Make a class of fault models known to `model_from`, by `name_of` it."""
    _models[name_of(model)] = model


def name_of(model: type) -> str:
    """A class's name in descriptions: ours by their own, all others with their module."""
    ours = model.__module__.partition(".")[0] == __name__.partition(".")[0]
    return model.__name__ if ours else f"{model.__module__}:{model.__qualname__}"


def model_from(spec: Any) -> Any:
    """The fault model that its `spec()` described.

    Only classes that this program has defined or imported are made: a description is data, and no module of its choice
    is loaded.

    Raises
    ------
    SpecError
        If it is none, of a class that is not known here, or its values are none that the class takes.
    """
    found = class_of(spec)
    if found is None:
        name = spec.get("model") if isinstance(spec, dict) else None
        raise SpecError(
            f"faults of {name} cannot be drawn again: no such fault model is known here; import the module that "
            "defines it first"
        )
    values = {key: value_from(value) for key, value in spec.items() if key != "model"}
    try:
        made = found.made_from(values)
        same = digest(made.spec()) == digest(spec)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise SpecError(f"the description of {spec['model']} is damaged: {error}") from error
    if not same:
        raise SpecError(f"the description of {spec['model']} is damaged: it says something else than what it makes")
    return made


def class_of(spec: Any) -> Any:
    """The class that a description is of; None if it is not known here."""
    name = spec.get("model") if isinstance(spec, dict) else None
    if not isinstance(name, str):
        return None
    if name in OURS:
        import_module(OURS[name])
    return _models.get(name)


OURS = {
    "Combined": "host.faults.models",
    "FlipCount": "host.faults.count",
    "Overclock": "host.faults.overclock",
    "Replay": "host.faults.models",
    "SingleFault": "host.campaign.trials",
    "SoftErrors": "host.faults.models",
    "StuckAt": "host.faults.stuck",
}
"""Where our own models register themselves."""
_models: dict[str, type] = {}


def brief(spec: Any) -> Any:
    """A description with each long value's SHA-256 in its place: for people, and to compare."""
    if isinstance(spec, list):
        return [brief(each) for each in spec]
    if not isinstance(spec, dict):
        return spec
    if "sha256" in spec and any(kind in spec for kind in KINDS):
        return spec["sha256"]
    return {key: brief(each) for key, each in spec.items()}


def words(described: Spec) -> str:
    """A brief description as a reader is told it; of a class that is not known here, its values."""
    found = class_of(described)
    return found.words(described) if found else ", ".join(f"{key} {value}" for key, value in described.items())


def fields_spec(model: Any, name: str) -> Spec:
    """The description of an object by what it holds: its fields, if it is a dataclass, and its attributes.

    Raises
    ------
    SpecError
        If it holds something that cannot be described.
    """
    held = {
        slot: getattr(model, slot)
        for kind in type(model).__mro__
        for slot in (vars(kind).get("__slots__") or ())
        if slot not in ("__dict__", "__weakref__") and hasattr(model, slot)
    }
    held |= vars(model) if hasattr(model, "__dict__") else {}
    if dataclasses.is_dataclass(model):
        held = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)} | held
    for key in [key for key in held if isinstance(getattr(type(model), key, None), cached_property)]:
        del held[key]  # follows from the rest
    if "model" in held:
        raise SpecError(f"{name} has an attribute 'model', where a description has the class's name: rename it")
    return {"model": name} | {key: value_spec(value, f"{name}, {key}") for key, value in held.items()}


def made_of(cls: type[Any], values: dict[str, Any]) -> Any:
    """An object of a class that holds these values."""
    taken = {field.name for field in dataclasses.fields(cls) if field.init} if dataclasses.is_dataclass(cls) else set()
    made = cls(**{key: value for key, value in values.items() if key in taken}) if taken else object.__new__(cls)
    for key, value in values.items():
        if key not in taken:  # also what the class computed of the others, and may have been changed since
            object.__setattr__(made, key, value)
    return made


def _same(value: Any, hashed: str, spec: Spec) -> Any:
    if getattr(value, hashed) != spec["sha256"]:
        raise SpecError(f"a {type(value).__name__}'s checksum does not match")
    return value
