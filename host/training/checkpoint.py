"""Checkpoints of a training: complete, checked, and of this training only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from host.devices.device import LaunchReport
from host.models.weights import differences
from host.program.program import Program, ProgramError
from host.store.files import write_atomic
from host.training.twin import Twin
from hw.errors import RedlineError
from hw.files import ReadError, parse_json

FORMAT = "redline checkpoint 2"
ENTRY, SEAL = "redline", "sha256"
"""Metadata: what the file says of itself in JSON, and the SHA-256 of that and of all tensors."""
RANGES = ("in_frac", "weight_frac", "out_frac", "upper")
"""What of a layer `Twin.recalibrate` changes."""
PLACED = ("placement", *RANGES)
ANEW = "choose another name or delete it"


class CheckpointError(RedlineError, RuntimeError):
    """A checkpoint is damaged or belongs to another run; the message says why and what to do."""


# ---- identity


def identity(twin: Twin, **settings: Any) -> dict[str, Any]:
    """What a training is, as JSON values: what it was asked for, and where it starts from."""
    program = twin.program
    layers = [{key: value for key, value in asdict(layer).items() if key not in PLACED} for layer in program.layers]
    device = {"name": twin.device.name} | asdict(program.config)
    found = settings | {
        "protected": twin.protected,
        "gradient": twin.gradient,
        "device": device,
        "network": _sha(json.dumps([layers, program.input_shape], sort_keys=True).encode()),
        "start": start(twin.net.state_dict(), ranges(program)),
    }
    return json.loads(json.dumps(found))


def start(state: Mapping[str, torch.Tensor], fractions: dict[str, Any]) -> dict[str, str]:
    """Where a training stands: its weights and its fractions, each by its SHA-256."""
    return {"weights": _sha(*_parts(state)), "ranges": _sha(json.dumps(fractions, sort_keys=True).encode())}


def ranges(program: Program) -> dict[str, Any]:
    """A Program's fractions and bounds, as JSON values."""
    layers = {layer.name: {key: getattr(layer, key) for key in RANGES} for layer in program.layers}
    return json.loads(json.dumps({"input_frac": program.input_frac, "layers": layers}))


def _with_ranges(program: Program, found: dict[str, Any], constants: Mapping[str, torch.Tensor]) -> Program:
    """The Program with these fractions; weights of layers that are trained are to be requantised."""
    layers = []
    for layer in program.layers:
        kept = found["layers"][layer.name]
        layers.append(replace(layer, **(kept | {"weight_frac": tuple(kept["weight_frac"])})))
    weights = program.weights | {name: constant.numpy() for name, constant in constants.items()}
    return replace(program, layers=tuple(layers), weights=weights, input_frac=found["input_frac"])


def _parts(tensors: Mapping[str, torch.Tensor]) -> Iterable[bytes | np.ndarray]:
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        yield f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode()
        yield tensor.reshape(-1).view(torch.uint8).numpy()


def _sha(*parts: bytes | np.ndarray) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part if isinstance(part, bytes) else part.data)
    return sha.hexdigest()


# ---- files


def save_checkpoint(
    path: Path, twin: Twin, optimiser: torch.optim.SGD, owner: dict[str, Any], step: int, report: LaunchReport
) -> None:
    """Write network, optimiser, fractions and random state as one file."""
    tensors = {f"net.{name}": tensor for name, tensor in twin.net.state_dict().items()}
    for name, parameter in twin.net.named_parameters():
        momentum = optimiser.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{name}"] = momentum
    for layer in twin.program.layers:
        if layer.constant:
            tensors[f"constant.{layer.name}"] = torch.from_numpy(twin.program.weights[layer.name].copy())
    tensors["rng"] = torch.get_rng_state()
    state = {"identity": owner, "step": step, "report": asdict(report), "ranges": ranges(twin.program)}
    _write(path, state, tensors)


def save_weights(path: Path, net: nn.Module) -> None:
    """Write a network's weights as a file that `checkpoint_weights` reads: a training that needs no resuming."""
    _write(path, {}, {f"net.{name}": tensor for name, tensor in net.state_dict().items()})


def _write(path: Path, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    text = json.dumps({"format": FORMAT} | state, sort_keys=True)
    # Each in memory of its own: shared ones (tied weights) are refused.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(tensors, {ENTRY: text, SEAL: _sha(text.encode(), *_parts(tensors))}))


def restore(path: Path, twin: Twin, optimiser: torch.optim.SGD, owner: dict[str, Any]) -> tuple[int, LaunchReport]:
    """Load a checkpoint into network, optimiser, fractions and random state; returns the steps done and their report.

    Raises
    ------
    CheckpointError
        If it is damaged, holds weights only, or is of another training. Nothing is loaded then.
    """
    state, tensors = _read(path)
    if "step" not in state:
        raise CheckpointError(f"{path}: holds a network's weights, and no training to take up; {ANEW}")
    net = _named(tensors, "net.")
    try:
        _check_owner(path, state, owner, net)
        step, report = int(state["step"]), LaunchReport(**state["report"])
        trouble = differences(twin.net.state_dict(), net)
        if trouble:
            raise CheckpointError(f"{path}: holds another network: {'; '.join(trouble)}; {ANEW}")
        program = twin.program
        if state["ranges"] != ranges(program):
            program = _with_ranges(program, state["ranges"], _named(tensors, "constant."))
        rng = tensors["rng"]
        buffers = _named(tensors, "momentum.")
    except (KeyError, TypeError, ValueError, AttributeError, ProgramError) as error:
        raise CheckpointError(f"{path}: damaged ({error!r}); delete it to start this training anew") from error
    twin.net.load_state_dict(net)
    for name, parameter in twin.net.named_parameters():
        if name in buffers:
            optimiser.state[parameter]["momentum_buffer"] = buffers[name].to(parameter.device)
    if program is not twin.program:
        twin.install(program)
    torch.set_rng_state(rng)
    return step, report


def _check_owner(path: Path, state: dict[str, Any], owner: dict[str, Any], net: dict[str, torch.Tensor]) -> None:
    """Raise `CheckpointError` if a checkpoint is of another training than `owner`."""
    held = state["identity"]
    for key, value in owner.items():
        was = held.get(key)
        if was == value:
            continue
        if key == "start":
            # Also that of a twin which still stands where the checkpoint was written.
            if value == start(net, state["ranges"]):
                continue
            what = "weights" if value["weights"] != was["weights"] else "ranges (calibration images)"
            raise CheckpointError(
                f"{path}: belongs to another run: it began with other {what} of the network; attach the network as it "
                f"was then, {ANEW}"
            )
        if isinstance(was, dict) and isinstance(value, dict):
            differing = [name for name in {**was, **value} if was.get(name) != value.get(name)]
            was, value = ({name: one.get(name) for name in differing} for one in (was, value))
        raise CheckpointError(f"{path}: belongs to another run: {key} was {was}, now {value}; {ANEW}")


def checkpoint_weights(path: Path) -> dict[str, torch.Tensor]:
    """The network's `state_dict` in a checkpoint.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged or no checkpoint.
    """
    return _named(_read(path)[1], "net.")


def load_checkpoint(net: nn.Module, path: Path) -> None:
    """Load the weights of a checkpoint, or of `save_weights`, into a network: all or none.

    Raises
    ------
    CheckpointError
        As for `checkpoint_weights`, or if it is of another network.
    """
    found = checkpoint_weights(path)
    trouble = differences(net.state_dict(), found)
    if trouble:
        raise CheckpointError(f"{path}: weights of another network: {'; '.join(trouble)}")
    net.load_state_dict(found)


def _named(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """State and tensors of a checkpoint file, its SHA-256 checked."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: {'not a plain file' if path.exists() else 'no such file'}; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        if ENTRY not in metadata:
            raise CheckpointError(
                f"{path}: not a checkpoint, but other tensors ({len(tensors)}); weights are loaded with "
                f"redline.models; {ANEW}"
            )
        text = metadata[ENTRY]
        state = parse_json(text, str(path))
        found = state.get("format") if isinstance(state, dict) else None
        if found != FORMAT:
            if isinstance(found, str) and found.startswith(FORMAT.rpartition(" ")[0]):
                raise CheckpointError(f"{path}: a checkpoint of another version; delete it to start this training anew")
            raise CheckpointError(f"{path}: not a checkpoint, but a file of another kind; {ANEW}")
        whole = metadata.get(SEAL) == _sha(text.encode(), *_parts(tensors))
    except (SafetensorError, OSError, ValueError, ReadError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: damaged ({error}); delete it to start this training anew") from error
    if not whole:
        raise CheckpointError(
            f"{path}: damaged (the SHA-256 of its content is another); delete it to start this training anew"
        )
    return state, tensors
