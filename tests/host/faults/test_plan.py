"""Fault plans take whole numbers in range, and nothing else; files of them are looked at before they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from host.faults.plan import FORMAT, FORMAT_VERSION, FaultPlan, PlanError
from host.store.checked import tensors_digest

NAMES = ("a", "b")
GOOD: dict[str, Any] = {"image": 0, "layer": 1, "site": 3, "output": 5, "step": 2, "bit": 31}
LIMITS = {
    "image": (-1, 2**63 - 1),
    "layer": (0, 2**31 - 1),
    "site": (0, 3),
    "output": (0, 2**63 - 1),
    "step": (0, 2**31 - 1),
    "bit": (0, 31),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize(
    "value",
    [
        0.7, -0.5, float("nan"), float("inf"), 1e300, "3", None, True, 1 + 0j, b"1", [1, 2.5], ["1", 2],
        2**63, -(2**63) - 1, 2**70, np.uint64(2**63), np.float32(0.1), np.datetime64("2020-01-01"), {}, {1},
        [[1, 2], [3, 4]], np.zeros((1, 1), int), [[1], [2, 3]], [0, True], np.array([True]), [1, 0.5], -7,
        np.ma.masked_array([1, 2], [False, True]),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_whole_number_of_the_columns_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(PlanError, match=f"^{name}: "):
        FaultPlan.of(NAMES, **{**GOOD, name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("bit", 259), ("bit", -129), ("site", 256), ("layer", 2**32), ("step", 2**31)]
)
def test_what_a_cast_would_wrap_is_refused_with_the_range(name: str, value: int) -> None:
    low, high = LIMITS[name]
    with pytest.raises(PlanError, match=f"^{name}: from {low} to {high}, not {value}$"):
        FaultPlan.of(NAMES, **{**GOOD, name: value})
    with pytest.raises(PlanError, match=f"^{name}: from {low} to {high}, not {value}$"):
        FaultPlan.of(NAMES, **{**GOOD, name: np.array([1, value])})


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint32, np.int64, np.uint64, np.float32, np.float64])
def test_whole_numbers_of_any_type_are_taken(kind: type) -> None:
    assert FaultPlan.of(NAMES, **{name: np.array([value], kind) for name, value in GOOD.items()}) == FaultPlan.of(
        NAMES, **GOOD
    )


def test_large_numbers_among_floats_are_not_rounded() -> None:
    assert FaultPlan.of(NAMES, **{**GOOD, "output": [2**62 + 1, 0.0]}).output.tolist() == [0, 2**62 + 1]


def test_a_text_is_no_list_of_layers() -> None:
    with pytest.raises(PlanError, match="layers are names in a list, not the text 'conv1'"):
        FaultPlan.of("conv1")


def test_tensors_and_ranges_are_taken() -> None:
    plan = FaultPlan.of(NAMES, torch.arange(3), 1, 3, range(3), (1, 1, 1), [4, 5, 6])
    assert plan.bit.tolist() == [4, 5, 6]


@given(st.sampled_from(sorted(LIMITS)), st.data())
def test_every_value_in_range_is_kept_as_it_is(name: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(*LIMITS[name]), min_size=1, max_size=5, unique=True))
    plan = FaultPlan.of(NAMES, **{**GOOD, name: values})
    assert sorted(getattr(plan, name).tolist()) == sorted(values)


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(PlanError, match="different lengths: 2 of image, 1 of layer, 1 of site, 3 of output"):
        FaultPlan.of(NAMES, [0, 1], 0, 0, [1, 2, 3], 0, 0)


def test_a_plan_keeps_no_array_of_its_caller() -> None:
    mine = np.zeros(1, np.int64)
    plan = FaultPlan.of(NAMES, image=mine, layer=0, site=2, output=1, step=0, bit=0)
    mine[:] = 7
    assert plan.image.tolist() == [0]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bit": None}, "its columns bit are missing"),
        ({"bit": None, "step": None}, "its columns step, bit are missing"),
        ({"image": np.zeros((2, 2), np.int64)}, "image: one value a flip"),
        ({"image": np.zeros(2, np.int64), "output": np.zeros(3, np.int64)}, "different lengths"),
        ({"output": np.array([0.5])}, "output: whole numbers"),
        ({"bit": np.array([300], np.int64)}, "bit: from 0 to 31, not 300"),
        ({"conditions": np.frombuffer(b"{", np.uint8)}, "not conditions"),
        ({"conditions": np.frombuffer(b"[" * 100_000, np.uint8)}, "not conditions"),
        ({"conditions": np.frombuffer(b"\xff", np.uint8)}, "codec"),
        ({"conditions": np.frombuffer(b'{"clock": {"table": "' + b"[" * 50_000 + b'"}}', np.uint8)}, "not conditions"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_is_well_sealed_and_no_plan_is_refused(change: dict, why: str, tmp_path: Path) -> None:
    columns: dict[str, Any] = {name: np.array([value], np.int64) for name, value in GOOD.items()}
    tensors = {name: value for name, value in (columns | change).items() if value is not None}
    metadata = {"format": FORMAT, "version": str(FORMAT_VERSION), "layers": "a\nb"}
    path = tmp_path / "plan.safetensors"
    path.write_bytes(save(tensors, metadata | {"sha256": tensors_digest("a\nb", tensors)}))
    with pytest.raises(PlanError, match=rf"plan.safetensors: damaged.*{why}"):
        FaultPlan.load(path)
