"""Fault models as JSON values: whole, the same in every process, and refused where they cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from host.compiler.compile import compile as compile_network
from host.faults.count import FlipCount
from host.faults.models import Combined, Fault, Replay, SoftErrors
from host.faults.overclock import Overclock
from host.faults.plan import SITES, FaultPlan
from host.faults.spec import KINDS, OURS, SpecError, brief, name_of
from host.faults.stuck import StuckAt
from host.models import lenet5
from host.program.program import Program
from hw.config import Config
from hw.masks import MOST_GROUPS


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return compile_network(lenet5(), Config(saboteur=True, overclock=MOST_GROUPS), calibrate=torch.rand(4, 1, 28, 28))


def flips(count: int, last: int = 1) -> FaultPlan:
    names = ("conv1", "conv2", "fc1", "fc2", "fc3")
    bit = np.ones(count, int)
    bit[-1] = last
    return FaultPlan.of(names, np.arange(count), 1, SITES.index("mac"), 5, 3, bit)


@dataclass(frozen=True)
class Bursts(Fault):
    """A user's own model, with all kinds of values."""

    length: int
    rates: tuple[float, ...] = (0.5, 0.25)
    where: np.ndarray = field(default_factory=lambda: np.arange(5000.0))
    among: Fault = field(default_factory=lambda: SoftErrors(1e-5))
    sites = ("feature",)

    def draw(self, program: Program, first_image: int, images: int, seed: int) -> FaultPlan:
        return FaultPlan.of(program.names, range(first_image, first_image + images), 0, 2, self.length, 0, 7)


class Bare(Fault):
    """One that says nothing of itself."""

    sites = ("feature",)

    def draw(self, program: Program, first_image: int, images: int, seed: int) -> FaultPlan:
        return FaultPlan.of(program.names)


class Ordinary(Bare):
    """One that is no dataclass."""

    where: Any

    def __init__(self, strength: float) -> None:
        self.strength = strength


class Described(Bare):
    """One that is no dataclass and describes itself."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def spec(self) -> dict[str, Any]:
        return {"model": name_of(type(self)), "strength": self.strength}


MODELS: dict[str, Fault] = {
    "soft errors": SoftErrors(1e-4, sites=("weight", "feature")),
    "per mac": SoftErrors(1e-6, per="mac"),
    "count": FlipCount(12, "feature"),
    "clock": Overclock(mhz=188),
    "slow clock": Overclock(period_ns=5.123, voltage_scale=1.01),
    "stuck": StuckAt(3, 12, 1, "tree_2_1"),
    "replay": Replay(flips(3000)),
    "replay under a clock": Replay(flips(5).under(Overclock(mhz=190).conditions)),
    "sum": SoftErrors(1e-4) + Overclock(mhz=188) + StuckAt(1, 2, 0) + Replay(flips(7)) + FlipCount(2),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_made_of_its_description_draws_the_same(name: str, program: Program) -> None:
    model = MODELS[name]
    again = Fault.from_spec(json.loads(json.dumps(model.spec())))
    assert type(again) is type(model)
    assert again == model
    assert again.digest == model.digest
    assert again.draw(program, 0, 3, 5) == model.draw(program, 0, 3, 5)


def test_all_models_differ() -> None:
    assert len({model.digest for model in MODELS.values()}) == len(MODELS)


@pytest.mark.parametrize("count", [2, 999, 1001, 3000])
def test_plans_that_differ_in_one_bit_of_one_flip_differ(count: int) -> None:
    one, other = Replay(flips(count)), Replay(flips(count, last=2))
    assert one.digest != other.digest
    assert brief(one.spec()) != brief(other.spec())
    assert one != other


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (SoftErrors(1e-4), SoftErrors(1.0000001e-4)),
        (Overclock(mhz=188), Overclock(mhz=188, voltage_scale=1.0001)),
        (StuckAt(1, 2, 0), StuckAt(1, 2, 1)),
        (FlipCount(2), FlipCount(2, "feature")),
        (SoftErrors(1e-4) + SoftErrors(1e-5), SoftErrors(1e-5) + SoftErrors(1e-4)),
        (Bursts(3), Bursts(4)),
        (Bursts(3), Bursts(3, where=np.r_[np.arange(4999.0), 1.0])),
        (Bursts(3), Bursts(3, among=SoftErrors(1e-6))),
        (Described(1.0), Described(2.0)),
    ],
)
def test_what_decides_the_faults_decides_the_identity(one: Fault, other: Fault) -> None:
    assert one.digest != other.digest


def test_numbers_of_one_value_have_one_identity() -> None:
    assert SoftErrors(0).digest == SoftErrors(0.0).digest
    assert SoftErrors(np.float32(0.5)).digest == SoftErrors(0.5).digest  # type: ignore[arg-type]


def test_a_users_own_dataclass_is_described_by_its_values_and_made_again() -> None:
    model = Bursts(3, (0.1,))
    spec = json.loads(json.dumps(model.spec()))
    assert spec["model"] == f"{__name__}:Bursts"
    again = Fault.from_spec(spec)
    assert isinstance(again, Bursts)
    assert (again.length, again.rates, again.among) == (3, (0.1,), SoftErrors(1e-5))
    assert np.array_equal(again.where, model.where)
    assert brief(spec)["where"] == spec["where"]["sha256"]


def test_a_sum_with_a_users_own_model_is_made_again() -> None:
    both = Combined((SoftErrors(1e-4), Bursts(2)))
    assert Fault.from_spec(json.loads(json.dumps(both.spec()))).digest == both.digest


OWN = """
from dataclasses import dataclass
from host.faults.models import Fault
from host.faults.plan import FaultPlan

@dataclass(frozen=True)
class Rays(Fault):
    flux: float
    sites = ("mac",)
    def draw(self, program, first_image, images, seed):
        return FaultPlan.of(program.names)
"""


def test_a_users_model_has_the_same_identity_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "cosmos.py").write_text(OWN)
    said = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", "import cosmos; f = cosmos.Rays(2.5); print(f.digest, f.spec())"],
            env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}", "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        said.append(done.stdout)
    assert said[0] == said[1]
    assert "{'model': 'cosmos:Rays', 'flux': 2.5}" in said[0]


def test_a_description_loads_no_module() -> None:
    with pytest.raises(SpecError, match="no such fault model is known here; import the module that defines it first"):
        Fault.from_spec({"model": "antigravity:Fly"})
    assert "antigravity" not in sys.modules


def test_an_ordinary_class_is_described_by_what_it_holds() -> None:
    model = Ordinary(0.5)
    model.where = [1, 2]
    spec = json.loads(json.dumps(model.spec()))
    assert spec == {"model": f"{__name__}:Ordinary", "strength": 0.5, "where": [1, 2]}
    again = Fault.from_spec(spec)
    assert isinstance(again, Ordinary)
    assert (again.strength, again.where, again.digest) == (0.5, (1, 2), model.digest)
    assert Ordinary(0.25).digest != Ordinary(0.5).digest
    assert Bare().digest == Bare().digest != Ordinary(0.5).digest


class Slotted(Bare):
    """One that keeps its values in slots."""

    __slots__ = ("rate",)

    def __init__(self, rate: float) -> None:
        self.rate = rate


@dataclass
class Computed(Bare):
    """One whose last field is not given."""

    rate: float
    inner: float = field(init=False, default=1.0)


def test_slots_and_fields_that_are_not_given_count() -> None:
    assert Slotted(0.1).digest != Slotted(0.2).digest
    again = Fault.from_spec(Slotted(0.2).spec())
    assert isinstance(again, Slotted)
    assert again.rate == 0.2
    one, other = Computed(0.1), Computed(0.1)
    other.inner = 2.0
    assert one.digest != other.digest
    made = Fault.from_spec(other.spec())
    assert isinstance(made, Computed)
    assert made.inner == 2.0


def test_what_a_class_adds_to_a_model_of_ours_counts() -> None:
    class Louder(SoftErrors):
        volume = 1

    model, other = Louder(1e-3), Louder(1e-3)
    object.__setattr__(other, "volume", 11)
    assert model.digest != other.digest
    again = Fault.from_spec(other.spec())
    assert isinstance(again, Louder)
    assert (again.volume, again.rate) == (11, 1e-3)


def test_a_site_that_is_named_twice_is_hit_once(program: Program) -> None:
    twice = SoftErrors(1e-3, sites=("weight", "feature", "weight"))
    assert twice.sites == ("weight", "feature")
    assert twice.draw(program, 0, 2, 1) == SoftErrors(1e-3, sites=("weight", "feature")).draw(program, 0, 2, 1)


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_own_models_are_found_in_a_process_that_has_not_imported_them(name: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from host.faults.spec import class_of; print(class_of({{'model': {name!r}}}).__name__)",
        ],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == name


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (lambda: 1, "a function cannot be described"),
        ({1, 2}, "a set cannot"),
        (float("nan"), "nan cannot"),
        (np.ma.masked_array([1.0], [True]), "a MaskedArray cannot"),
    ],
    ids=["function", "set", "nan", "masked"],
)
def test_values_that_cannot_be_described_are_named(value: Any, why: str) -> None:
    with pytest.raises(SpecError, match=f"Bursts, rates: {why}"):
        Bursts(1, value).spec()


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        [],
        "SoftErrors",
        {},
        {"model": None},
        {"model": ["SoftErrors"]},
        {"model": "SoftErrors"},
        {"model": "SoftErrors", "rate": 2},
        {"model": "SoftErrors", "rate": "much"},
        {"model": "SoftErrors", "rate": 0.5, "per": "week"},
        {"model": "StuckAt", "lane": 1},
        {"model": "Overclock"},
        {"model": "Overclock", "period_ps": 0, "voltage_scale": 1, "delay_table": None},
        {"model": "Replay", "plan": {"plan": {}, "sha256": "", "layers": []}},
        {"model": "Combined", "parts": 3},
        {"model": "SoftErrors", "rate": True},
        {"model": "SoftErrors", "rate": 0.5, "per": "bit", "sites": ["weight", "weight"]},
        {"model": "FlipCount", "count": 3.0, "site": "mac"},
        {"model": "SingleFault", "sites": ["mac"], "layers": []},
    ],
    ids=str,
)
def test_damaged_descriptions_are_refused(damaged: Any) -> None:
    with pytest.raises(SpecError):
        Fault.from_spec(damaged)


@pytest.mark.parametrize("name", ["clock", "replay", "replay under a clock", "own"])
def test_a_changed_long_value_is_noticed(name: str) -> None:
    text = json.dumps((MODELS | {"own": Bursts(1)})[name].spec())
    spec = json.loads(text)
    key = next(key for key, value in spec.items() if isinstance(value, dict) and "sha256" in value)
    kind = next(kind for kind in KINDS if kind in spec[key])
    content = spec[key][kind]
    if kind == "table":
        spec[key][kind] = content.replace('"seed": 1', '"seed": 2')
    elif kind == "plan":
        spec[key]["layers"][0] = "conv9"
    else:
        spec[key][kind] = "AAAA" + content[4:] if content[:4] != "AAAA" else "BAAA" + content[4:]
    assert json.dumps(spec) != text
    with pytest.raises(SpecError, match="checksum does not match"):
        Fault.from_spec(spec)
