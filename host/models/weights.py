"""Weights of a network: those that come with Redline, and a user's `.pth` or `.safetensors` file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from hw.errors import RedlineError
from hw.files import ReadError, parse_json

PRETRAINED = Path(__file__).parents[1] / "pretrained"
SHIPPED = ("lenet5",)
"""Networks whose weights come with Redline."""
MAKE_IT = "make it with 'redline pretrain'"
"""What to do when a file that comes with Redline is missing or damaged."""
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Where training scripts put the weights beside an optimiser's state."""

Net = TypeVar("Net", bound=nn.Module)


class ModelError(RedlineError, RuntimeError):
    """A network's weights are missing or do not fit; the message says why and what to do."""


def pretrained_file(name: str) -> Path:
    """Where the weights that come with Redline lie."""
    return PRETRAINED / f"{name}-fashion-mnist.safetensors"


def with_weights(net: Net, name: str, pretrained: bool | str | Path) -> Net:
    """The network, with weights loaded as a model function's `pretrained` asks (see `load_weights` for errors)."""
    if pretrained is True and name not in SHIPPED:
        raise ModelError(
            f"no weights of {name} come with Redline: name a file with torchvision's keys (pretrained=PATH), or leave "
            "them random (pretrained=False)"
        )
    if pretrained is not False:
        path = pretrained_file(name) if pretrained is True else Path(pretrained)
        if name in SHIPPED:
            load_weights(net, path, missing=MAKE_IT, damaged="make it anew with 'redline pretrain'")
        else:
            load_weights(net, path)
    return net


def load_weights(
    net: nn.Module, path: str | Path, *, missing: str = "check the path", damaged: str = "fetch or save it again"
) -> None:
    """Load a file of weights into a network, all tensors or none.

    Parameters
    ----------
    net : nn.Module
        Keeps its dtype and device.
    path : path
        `.safetensors`, or what `torch.save` made of a `state_dict` (`.pth`; tensors only, no code is run). A training
        checkpoint's `state_dict`, `model_state_dict` or `model` entry is taken, and DataParallel's `module.` removed.
    missing, damaged : str
        What the error tells the user to do when the file is missing or damaged.

    Raises
    ------
    ModelError
        If the file is missing, damaged, holds more than tensors, or is of another network (keys missing or
        unexpected, other shapes): names the key.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such file; {missing}")
    state = _safetensors(path, damaged) if path.suffix == ".safetensors" else _torch_file(path, damaged)
    own = net.state_dict()
    trouble = differences(own, state)
    if trouble:
        raise ModelError(f"{path}: weights of another network: {'; '.join(trouble)}")
    # Counters that old files lack stay as they are; nothing else is missing.
    net.load_state_dict({key: state.get(key, value) for key, value in own.items()})


def metadata(path: Path) -> dict[str, Any]:
    """How a weights file was made: accuracy, seed, versions, data checksums."""
    try:
        with safe_open(path, framework="pt") as file:
            found = parse_json((file.metadata() or {}).get("redline", "{}"), str(path))
    except (SafetensorError, OSError, ReadError) as error:
        raise ModelError(f"{path}: damaged ({error}); {MAKE_IT}") from error
    return found if isinstance(found, dict) else {}


def _safetensors(path: Path, remedy: str) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: damaged ({error}); {remedy}") from error


def _torch_file(path: Path, remedy: str) -> dict[str, torch.Tensor]:
    """The tensors of a file that `torch.save` made, mapped from disk where its format allows."""
    try:
        zipped = zipfile.is_zipfile(path)
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a broken pickle breaks in any way
        text = str(error)
        if "Unsupported global" in text or "Unsupported class" in text:
            raise ModelError(
                f"{path}: holds more than tensors, and loading it could run code; save the network's state_dict alone: "
                "torch.save(net.state_dict(), PATH)"
            ) from error
        first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        raise ModelError(f"{path}: damaged or not a file of torch.save ({first}); {remedy}") from error
    if isinstance(held, Mapping):
        held = next((held[key] for key in WRAPPERS if isinstance(held.get(key), Mapping)), held)
    if not isinstance(held, Mapping):
        raise ModelError(
            f"{path}: holds a {type(held).__name__}, not a state_dict; save it with torch.save(net.state_dict(), PATH)"
        )
    for key, value in held.items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"{path}: its entry {key!r} is of type {type(value).__name__}, not a tensor; save the network's "
                "state_dict alone: torch.save(net.state_dict(), PATH)"
            )
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            what = "complex" if value.is_complex() else "quantised" if value.is_quantized else str(value.layout)
            raise ModelError(
                f"{path}: its entry {key!r} is no plain tensor ({'meta' if value.is_meta else what}); make it dense "
                "(value.to_dense()) and save it again"
            )
    prefix = "module." if held and all(str(key).startswith("module.") for key in held) else ""
    return {str(key).removeprefix(prefix): value for key, value in held.items()}


def differences(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> list[str]:
    """In words, why tensors are not a network's; empty if they are."""
    # Files saved before PyTorch 0.4.1 do not have these counters, which inference does not read.
    absent = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    strange = [key for key in state if key not in own]
    trouble = []
    if absent:
        trouble.append(f"it lacks {_named(absent)}")
    if strange:
        trouble.append(f"the network has no {_named(strange)}")
    common = [key for key in own if key in state]
    other = [key for key in common if own[key].shape != state[key].shape]
    if other:
        key = other[0]
        more = f" (and {len(other) - 1} more differ)" if len(other) > 1 else ""
        trouble.append(f"{key!r} has shape {_shape(state[key])}, the network's has {_shape(own[key])}{more}")
    kinds = [key for key in common if own[key].is_floating_point() != state[key].is_floating_point()]
    if kinds:
        trouble.append(
            f"{kinds[0]!r} holds {state[kinds[0]].dtype}, not {own[kinds[0]].dtype}; save it before quantising"
        )
    if trouble:
        heads = {_classes(state[key].shape, own[key].shape) for key in other}
        if not absent and not strange and not kinds and len(heads) == 1 and None not in heads:
            trouble.append(f"for a network of {heads.pop()} classes, construct it with as many (classes=)")
        else:
            trouble.append("give the file of this network, its keys as in torchvision")
    return trouble


def _classes(found: torch.Size, wanted: torch.Size) -> int | None:
    """How many outputs the file's tensor has, where that is all it differs in."""
    return found[0] if len(found) > 0 and len(wanted) > 0 and found[1:] == wanted[1:] else None


def _named(keys: list[str]) -> str:
    return repr(keys[0]) + (f" (and {len(keys) - 1} more)" if len(keys) > 1 else "")


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "()"
