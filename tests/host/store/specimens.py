"""A file of every kind that Redline reads, how it is read, and ways to damage it."""

from __future__ import annotations

import gzip
import pickle
import random
import re
import sqlite3
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from host import models
from host.boards import table as boards
from host.campaign.settings import Settings
from host.campaign.store import OutcomeRow, Store, TrialRow
from host.campaign.worker import Setup, data_file
from host.compiler.compile import compile as compile_network
from host.datasets import data, imagenet
from host.faults.models import SoftErrors
from host.faults.overclock import Overclock
from host.faults.plan import FaultPlan
from host.models.pickled_arrays import read_arrays
from host.program.program import Program
from host.run import Run
from host.training.checkpoint import checkpoint_weights, save_weights
from hw.config import Config
from hw.delays import Table
from sim.timing import shipped


@dataclass(frozen=True)
class Specimen:
    """A file in a folder of its own.

    Attributes
    ----------
    path : Path
    read : callable
        What the file holds, as something that can be compared; raises what the reader raises.
    checked : bool
        Whether the file carries a checksum, so that damage is an error; a user's own file can be another one.
    """

    path: Path
    read: Callable[[], Any]
    checked: bool = True


def small_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 6 * 6, 3))


def specimens(folder: Path) -> dict[str, Specimen]:
    """All kinds, by name."""
    net, found = small_net(), {}

    def place(name: str) -> Path:
        path = folder / name.split(".")[0] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    program = compile_network(net, Config(lanes=4, vec=4), calibrate=torch.rand(4, 1, 8, 8))
    path = place("program.safetensors")
    program.save(path)
    found["program"] = Specimen(path, lambda path=path: Program.load(path).digest)

    clock = Overclock(mhz=195, table=shipped.load(16, 8, 1))
    plan = SoftErrors(rate=1e-3).draw(program, 0, 4, 1).under(clock.conditions)
    for name, each in (("plan", plan.under(None)), ("clocked", plan)):
        path = place(f"{name}.safetensors")
        each.save(path)
        found[name] = Specimen(path, lambda path=path: FaultPlan.load(path).digest)

    path = place("delays.json")
    shipped.load(16, 8, 1).save(path)
    found["delays"] = Specimen(path, lambda path=path: Table.load(path).hash)

    path = place("checkpoint.safetensors")
    save_weights(path, net)
    found["checkpoint"] = Specimen(path, lambda path=path: _bytes(checkpoint_weights(path)))

    path = place("weights.safetensors")
    save_file(net.state_dict(), path)
    found["weights"] = Specimen(path, lambda path=path: _loaded(path), checked=False)
    path = place("torch.pth")
    torch.save(net.state_dict(), path)
    found["pth"] = Specimen(path, lambda path=path: _loaded(path), checked=False)
    path = place("old.pth")
    torch.save({"state_dict": net.state_dict()}, path, _use_new_zipfile_serialization=False)
    found["old pth"] = Specimen(path, lambda path=path: _loaded(path), checked=False)

    path = place("campaign.db")
    _store(path)
    found["campaign"] = Specimen(path, lambda path=path: _rows(path))

    path = place("settings.json")
    Settings(device="reference", rate=1e-3, layers=(), images=4).save(path.parent)
    found["settings"] = Specimen(path, lambda path=path: Settings(**Settings.stored(path.parent)))

    path = place("data.safetensors")
    images = np.arange(3 * 64, dtype=np.int8).reshape(3, 1, 8, 8)
    path.write_bytes(data_file(images, np.array([1, 2, 0])))
    setup = Setup(path.parent, ("a",), "reference", Config(), {}, SoftErrors(rate=1e-3), 0, 1)
    found["data"] = Specimen(path, lambda: tuple(part.tobytes() for part in setup.data()))

    made = {"a": 1, "nested": {"b": [1, 2]}}
    path = place("config.json")
    Run(path.parent, made, {})
    found["config"] = Specimen(path, lambda path=path: Run(path.parent, made, {}).resumed)
    run = Run(folder / "stage", {"a": 1}, {})
    run.stage("x", lambda: {"predicted": [1, 2, 3], "right": 2})
    found["stage"] = Specimen(run.state("x.json"), lambda run=run: run.stage("x", dict))

    raw = _idx(np.arange(28 * 28 * 2, dtype=np.uint8).reshape(2, 28, 28))
    labels = _idx(np.array([3, 9], np.uint8))
    for name, packed in (("raw", False), ("gz", True)):
        for split in data.FILES:
            for file, content in zip(data.FILES[split], (raw, labels), strict=True):
                path = folder / name / (f"{file}.gz" if packed else file)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(gzip.compress(content) if packed else content)
        for which, file in enumerate(data.FILES["train"]):
            path = folder / name / (f"{file}.gz" if packed else file)
            found[f"idx {name} {which}"] = Specimen(
                path, lambda path=path: data.load("mnist", "train", path.parent).images.sum(), checked=False
            )

    path = place("arrays.pkl")
    path.write_bytes(pickle.dumps({"conv": [np.ones((2, 3), np.float32), np.zeros(3, np.float32)]}, protocol=4))
    found["arrays"] = Specimen(path, lambda path=path: len(read_arrays(path.read_bytes())), checked=False)

    path = place("boards.json")
    path.write_bytes(boards.PATH.read_bytes())
    found["boards"] = Specimen(path, lambda path=path: len(boards.load(path)), checked=False)

    for kind in ("png", "jpg", "bmp"):
        path = place(f"{kind}.{kind}")
        Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3).repeat(8, 0).repeat(8, 1)).save(path)
        found[kind] = Specimen(path, lambda path=path: imagenet.read(path).shape, checked=False)
    return found


def _bytes(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in state.items()}


def _loaded(path: Path) -> dict[str, bytes]:
    net = small_net()
    models.load_weights(net, path)
    return _bytes(net.state_dict())


FINGERPRINT = {"arms": {"a": {}, "b": {}}, "seed": 1}


def _store(path: Path) -> None:
    with Store(path, FINGERPRINT) as store:
        trials = [TrialRow(n, 1, f"{n:064}", "conv1", "mac", 3 * n, 4, n % 32) for n in range(12)]
        outcomes = [
            OutcomeRow(n, arm, at, 7 * n + at, n % 2, "conv1" if n % 2 else None, None, 0, 0, 1, 1, 1, 1)
            for n in range(12)
            for arm in "ab"
            for at in range(4)
        ]
        store.add(trials, outcomes)
        store.end_session(store.begin_session(), 12, "done", settled=12)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode=DELETE")
    db.close()


def _rows(path: Path) -> list[tuple[Any, ...]]:
    for suffix in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    with Store(path) as store:
        return [*store.rows(), *store.meta("fingerprint"), store.meta("settled"), *store.done().tolist()]


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


# ---- damage

TOKENS = (
    b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"[]", b"{}", b'""', b"1099511627776", b"0.5", b'"\\ud800"',
    b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"-9223372036854775809",
)  # fmt: skip


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content, changed in one to three ways."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(WAYS)(content, rng)
    return content


def _flip(content: bytes, rng: random.Random) -> bytes:
    # Headers are short and have most of what can be wrong.
    at = rng.randrange(min(len(content), rng.choice((64, 600, len(content))))) if content else 0
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :] if content else b"\0"


def _byte(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + bytes([rng.choice((0, 0xFF, 0x7F, rng.randrange(256)))]) + content[at + 1 :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _longer(content: bytes, rng: random.Random) -> bytes:
    return content + rng.randbytes(rng.choice((1, 8, 4096)))


def _zero(content: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(content) + 1), rng.choice((4, 64, 512))
    return content[:at] + bytes(min(size, len(content) - at)) + content[at + size :]


def _moved(content: bytes, rng: random.Random) -> bytes:
    a, b, size = rng.randrange(len(content) + 1), rng.randrange(len(content) + 1), rng.choice((1, 16, 512))
    return content[:a] + content[b : b + size] + content[a + size :]


def _doubled(content: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(content) + 1), rng.choice((1, 16, 512))
    return content[: at + size] + content[at:]


def _missing(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + content[at + rng.choice((1, 16, 512)) :]


def _token(content: bytes, rng: random.Random) -> bytes:
    """Another JSON value in the place of one."""
    values = rb'-?\d+(\.\d+)?|"[^"\\]{0,40}"|\[[^\[\]]{0,80}\]|true|null'
    places = [match.span() for match in re.finditer(values, content)]
    if not places:
        return _flip(content, rng)
    start, end = rng.choice(places)
    return content[:start] + rng.choice(TOKENS) + content[end:]


def _key(content: bytes, rng: random.Random) -> bytes:
    """A JSON entry left out."""
    places = [match.span() for match in re.finditer(rb'"\w+": ?("[^"\\]*"|[\d.]+|\[[^\[\]]*\]),? ?', content)]
    if not places:
        return _cut(content, rng)
    start, end = rng.choice(places)
    return content[:start] + content[end:]


WAYS = (_flip, _flip, _byte, _cut, _longer, _zero, _moved, _doubled, _missing, _token, _token, _key)
