"""Fault plans: drawn uniformly, the same for any split, cancelling in pairs, and replayed exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from host.compiler.compile import compile as compile_network
from host.devices.reference import ReferenceDevice, apply_mac_faults
from host.devices.runtime import Runtime
from host.faults.models import Fault, Replay, SoftErrors, hits
from host.faults.plan import EVERY_IMAGE, SITES, FaultPlan, PlanError, extents
from host.models import lenet5
from host.program.integer import accumulate
from host.program.layers import Layer
from host.program.program import Program
from host.schedule.launch import schedule
from host.verification.cases import CONFIGS, random_case
from hw.config import Config


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return compile_network(lenet5(), Config(), calibrate=torch.rand(4, 1, 28, 28))


MODELS = [
    SoftErrors(1e-3),
    SoftErrors(1e-5, per="mac"),
    SoftErrors(1e-3, sites=("feature",)),
    SoftErrors(1e-4) + SoftErrors(1e-5, per="mac") + SoftErrors(1e-4),
]


# -- drawing


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_the_same_seed_gives_the_same_plan_however_the_images_are_split(model: Fault, program: Program) -> None:
    whole = model.draw(program, 0, 12, 7)
    parts = [model.draw(program, first, 4, 7) for first in (0, 4, 8)]
    assert len(whole) > 0
    assert model.draw(program, 0, 12, 7) == whole
    assert model.draw(program, 0, 12, 8) != whole
    for first, part in zip((0, 4, 8), parts, strict=True):
        assert part == whole.images(first, 4)


def test_plans_are_sorted_and_fit_the_program(program: Program) -> None:
    for model in MODELS:
        plan = model.draw(program, 5, 6, 3)
        plan.check(program)
        keys = list(zip(plan.image, plan.layer, plan.site, plan.output, plan.step, plan.bit, strict=True))
        assert keys == sorted(set(keys))


@pytest.mark.parametrize("per", ["bit", "mac"])
def test_rates_zero_and_one_are_legal_and_exact(program: Program, per: str) -> None:
    assert len(SoftErrors(0.0, per=per).draw(program, 0, 5, 1)) == 0  # type: ignore[arg-type]
    plan = SoftErrors(1.0, per=per).draw(program, 0, 1, 1)  # type: ignore[arg-type]
    wanted = 0
    for at in range(len(program.layers)):
        for site in ("mac",) if per == "mac" else ("weight", "input", "feature"):
            outputs, steps = extents(program, at, site)
            wanted += outputs * steps * (1 if site == "mac" else 8)
    assert len(plan) == wanted


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_rates_outside_zero_to_one_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate must be from 0 to 1"):
        SoftErrors(rate)


def test_sites_must_suit_what_the_rate_is_per() -> None:
    with pytest.raises(ValueError, match="a rate per mac has the sites mac, not 'weight'"):
        SoftErrors(0.1, per="mac", sites=("weight",))
    with pytest.raises(ValueError, match="a rate per bit has the sites weight, input, feature, not 'mac'"):
        SoftErrors(0.1, sites="mac")
    with pytest.raises(ValueError, match='per must be "bit" or "mac"'):
        SoftErrors(0.1, per="byte")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed must be 0 or more"):
        SoftErrors(0.1).draw(random_case(0, 0).program, 0, 1, -1)
    assert (SoftErrors(0.1) + SoftErrors(0.1, per="mac")).sites == SITES


def test_hits_are_uniform_over_the_whole_space() -> None:
    size, bins = 1_000_000, 50
    found = hits(size, 0.02, np.random.Generator(np.random.Philox(1)))
    counts = np.bincount(found * bins // size, minlength=bins)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert len(np.unique(found)) == len(found)


def test_gaps_between_hits_are_geometric() -> None:
    rate = 0.3
    gaps = np.diff(hits(200_000, rate, np.random.Generator(np.random.Philox(2))))
    observed = np.bincount(np.minimum(gaps, 12), minlength=13)[1:]
    wanted = np.array([rate * (1 - rate) ** (k - 1) for k in range(1, 12)] + [(1 - rate) ** 11]) * len(gaps)
    assert stats.chisquare(observed, wanted).pvalue > 1e-3


@pytest.mark.parametrize("rate", [1e-6, 1e-4, 0.01, 0.5, 0.999])
def test_the_number_of_hits_is_binomial(rate: float) -> None:
    size = 2_000_000
    found = len(hits(size, rate, np.random.Generator(np.random.Philox(3))))
    assert stats.binomtest(found, size, rate).pvalue > 1e-3


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 300), st.floats(0, 1), st.integers(0, 2**31))
def test_hits_are_sorted_distinct_and_inside(size: int, rate: float, seed: int) -> None:
    found = hits(size, rate, np.random.Generator(np.random.Philox(seed)))
    assert (np.diff(found) > 0).all()
    assert ((found >= 0) & (found < size)).all()


def test_layers_are_hit_in_proportion_to_their_places(program: Program) -> None:
    plan = SoftErrors(2e-4, per="mac").draw(program, 0, 60, 5)
    places = np.array([np.prod(extents(program, at, "mac")) for at in range(len(program.layers))], float)
    counts = np.bincount(plan.layer, minlength=len(places))
    assert stats.chisquare(counts, places / places.sum() * len(plan)).pvalue > 1e-3
    assert stats.chisquare(np.bincount(plan.bit, minlength=32)).pvalue > 1e-3


# -- plans


def test_two_flips_at_one_place_cancel(program: Program) -> None:
    plan = SoftErrors(1e-4).draw(program, 0, 4, 1)
    assert len(plan + plan) == 0
    assert plan + plan + plan == plan
    assert plan + FaultPlan.of(program.names) == plan
    twice = FaultPlan.of(program.names, 0, [0, 0, 1], 3, [5, 5, 5], [2, 2, 2], 7)
    assert (len(twice), int(twice.layer[0])) == (1, 1)


def test_equal_models_added_do_not_cancel(program: Program) -> None:
    one = SoftErrors(1e-3)
    assert len((one + one).draw(program, 0, 2, 1)) > 1.5 * len(one.draw(program, 0, 2, 1))


def test_a_saved_plan_is_replayed_exactly(program: Program, tmp_path: Path) -> None:
    model = MODELS[-1]
    plan = model.draw(program, 3, 5, 9)
    plan.save(tmp_path / "plan")
    loaded = FaultPlan.load(tmp_path / "plan")
    assert loaded == plan
    assert loaded.digest == plan.digest
    assert hash(loaded) == hash(plan)
    x = np.random.default_rng(0).integers(-128, 128, (5, 1, 28, 28)).astype(np.int8)
    runtime = Runtime(program, ReferenceDevice())
    a = runtime.forward(x, plan=plan, first_image=3)
    clean = runtime.forward(x)
    b = runtime.forward(x, plan=Replay(loaded).draw(program, 3, 5, 1234), first_image=3)
    assert all(np.array_equal(a.out[name], b.out[name]) for name in program.names)
    assert any(not np.array_equal(a.out[name], clean.out[name]) for name in program.names)


def test_damaged_plans_are_refused(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "plan"
    SoftErrors(1e-4).draw(program, 0, 2, 1).save(path)
    raw = path.read_bytes()
    path.write_bytes(raw[:-5])
    with pytest.raises(PlanError, match="damaged or truncated"):
        FaultPlan.load(path)
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(PlanError, match="checksum"):
        FaultPlan.load(path)
    with pytest.raises(PlanError, match="no such file"):
        FaultPlan.load(tmp_path / "missing")
    program.save(path)
    with pytest.raises(PlanError, match="not a redline-plan file"):
        FaultPlan.load(path)


def test_plans_of_another_network_are_refused(program: Program) -> None:
    plan = FaultPlan.of(("a", "b"), 0, 0, 3, 0, 0, 0)
    with pytest.raises(PlanError, match="drawn for layers a, b; this network has conv1"):
        plan.check(program)
    with pytest.raises(PlanError, match="plans of different networks"):
        plan + FaultPlan.of(program.names)
    for columns in ((0, 0, 3, 6 * 28 * 28, 0, 0), (0, 0, 3, 0, 5, 0), (0, 0, 2, 0, 0, 8), (0, 1, 1, 0, 0, 0),
                    (0, 0, 0, 0, 0, 0), (-1, 0, 3, 0, 0, 0)):  # fmt: skip
        with pytest.raises(PlanError, match=r"layer 'conv[12]' has no (mac|feature|input|weight) site at"):
            FaultPlan.of(program.names, *columns).check(program)
    with pytest.raises(PlanError, match="names layer 9"):
        FaultPlan.of(program.names, 0, 9, 3, 0, 0, 0).check(program)


def test_weight_faults_belong_to_every_image(program: Program) -> None:
    plan = SoftErrors(1e-3, sites=("weight",)).draw(program, 0, 3, 1)
    assert (plan.image == EVERY_IMAGE).all()
    assert plan.images(100, 1) == plan


# -- effects


def stepwise(x: np.ndarray, w: np.ndarray, bias: np.ndarray, layer: Layer, plan: FaultPlan, vec: int) -> np.ndarray:
    """Accumulators by a plain loop over steps, with each flip where it happens."""
    m, oh, ow = layer.conv_shape
    masks: dict[tuple[int, int, int], int] = {}
    for image, output, step, bit in zip(plan.image, plan.output, plan.step, plan.bit, strict=True):
        key = (int(image), int(output), int(step))
        masks[key] = masks.get(key, 0) ^ 1 << int(bit)
    (kh, kw), (sy, sx), (py, px) = layer.kernel, layer.stride, layer.padding
    c, h, width = layer.in_shape
    result = np.zeros((len(x), m, oh, ow), np.int64)
    for n, channel, oy, ox in np.ndindex(*result.shape):
        acc, step = int(bias[channel]), 0
        for z in range(-(-c // vec)):
            for ky in range(kh):
                for kx in range(kw):
                    iy, ix = oy * sy + ky - py, ox * sx + kx - px
                    if 0 <= iy < h and 0 <= ix < width:
                        taps = slice(z * vec, min(c, (z + 1) * vec))
                        acc += int(x[n, taps, iy, ix].astype(int) @ w[channel, taps, ky, kx].astype(int))
                    acc = (acc + 2**31) % 2**32 - 2**31
                    mask = masks.get((n, (channel * oh + oy) * ow + ox, step), 0)
                    acc = ((acc ^ mask) + 2**31) % 2**32 - 2**31
                    step += 1
        result[n, channel, oy, ox] = acc
    return result


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_prefix_walk_equals_a_loop_over_steps(rate: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = random_case(seed, 0, configs=(CONFIGS[2],))
    layer = replace(
        case.program.layers[0], name="l", in_shape=(11, 4, 5), source_channels=(), out_channels=3, kernel=(2, 3),
        stride=(1, 2), padding=(1, 2), pool=None, fold=None,
        in_frac=0, out_frac=0, weight_frac=(8, 8, 8), placement="accelerator",
    )  # fmt: skip
    x = rng.integers(-128, 128, (2, *layer.in_shape)).astype(np.int8)
    w = rng.integers(-128, 128, layer.weight_shape).astype(np.int8)
    bias = np.array([2**31 - 1, -(2**31), 5], np.int32)
    shape = layer.conv_shape
    program = Program(Config(), (replace(layer, sources=("input",)),), {"l": w}, {"l": bias}, layer.in_shape, 0)
    plan = SoftErrors(rate, per="mac").draw(program, 0, 2, seed)
    # Several bits in one accumulator after one step, too.
    extra = rng.integers(0, np.prod(shape), 20)
    plan = plan + FaultPlan.of(("l",), 1, 0, 3, np.repeat(extra, 3), 4, rng.integers(0, 32, 60))
    acc = accumulate(x, w, bias, layer.stride, layer.padding)
    apply_mac_faults(acc, x, w, bias, layer, plan, Config(vec=8))
    assert np.array_equal(acc, stepwise(x, w, bias, layer, plan, 8))


def test_a_feature_flip_reaches_memory_and_the_next_layer(program: Program) -> None:
    x = np.random.default_rng(0).integers(-128, 128, (2, 1, 28, 28)).astype(np.int8)
    runtime = Runtime(program, ReferenceDevice())
    clean = runtime.forward(x)
    plan = FaultPlan.of(program.names, 1, 1, SITES.index("feature"), 37, 0, 6)
    faulty = runtime.forward(x, plan=plan)
    different = faulty.out["conv2"] ^ clean.out["conv2"]
    assert np.count_nonzero(different) == 1
    assert int(different.reshape(2, -1)[1, 37]) == 64
    assert np.array_equal(
        faulty.conv["conv2"], clean.conv["conv2"]
    )  # the convolution's output, before pooling, is not hit
    assert not np.array_equal(faulty.out["fc1"], clean.out["fc1"])
    assert np.array_equal(faulty.out["fc1"][0], clean.out["fc1"][0])
    assert np.array_equal(runtime.forward(x).out["fc3"], clean.out["fc3"])


def test_weight_and_input_flips_are_what_they_say(program: Program) -> None:
    x = np.random.default_rng(0).integers(-128, 128, (2, 1, 28, 28)).astype(np.int8)
    runtime = Runtime(program, ReferenceDevice())
    plan = FaultPlan.of(program.names, EVERY_IMAGE, 2, SITES.index("weight"), 1234, 0, 7)
    faulty = runtime.forward(x, plan=plan)
    changed = program.with_placement([])
    weight = changed.weights["fc1"].copy()
    weight.reshape(-1).view(np.uint8)[1234] ^= 0x80
    changed.weights["fc1"] = weight
    assert np.array_equal(faulty.out["fc1"], Runtime(changed, ReferenceDevice()).forward(x).out["fc1"])
    plan = FaultPlan.of(program.names, 1, 0, SITES.index("input"), 2 * 28 * 28 + 5 * 28 + 9, 0, 7)
    faulty, clean = runtime.forward(x, plan=plan), runtime.forward(x)
    assert np.array_equal(faulty.out["conv1"][0], clean.out["conv1"][0])
    assert np.count_nonzero(faulty.conv["conv1"][1] != clean.conv["conv1"][1]) > 0
    columns = np.nonzero(faulty.conv["conv1"][1] != clean.conv["conv1"][1])[2]
    assert set(columns.tolist()) == {9}  # one folded copy: one output column


def test_faults_in_layers_on_the_cpu_do_not_happen(program: Program) -> None:
    x = np.random.default_rng(0).integers(-128, 128, (2, 1, 28, 28)).astype(np.int8)
    plan = (SoftErrors(0.02) + SoftErrors(1e-3, per="mac")).draw(program, 0, 2, 1)
    everything = program.with_placement(program.names)
    device = ReferenceDevice()
    clean = Runtime(everything, device).forward(x)
    faulty = Runtime(everything, device).forward(x, plan=plan)
    assert all(np.array_equal(clean.out[name], faulty.out[name]) for name in program.names)
    protected = program.with_placement(["conv1", "conv2", "fc1", "fc2"])
    faulty = Runtime(protected, device).forward(x, plan=plan)
    assert np.array_equal(faulty.out["fc2"], clean.out["fc2"])
    assert not np.array_equal(faulty.out["fc3"], clean.out["fc3"])


def test_every_mac_and_feature_fault_of_the_batch_becomes_one_event(program: Program) -> None:
    plan = (SoftErrors(1e-3) + SoftErrors(1e-4, per="mac")).draw(program, 10, 9, 1)
    launch = schedule(program, range(5), 9, writeback=True, units=2).with_faults(plan, 10)
    wanted = np.isin(plan.site, [SITES.index("mac"), SITES.index("feature")]).sum()
    assert launch.faults == wanted
    for unit in launch.units:
        for records in (unit.mac_events, unit.feature_events):
            keys = list(zip(records["job"], records["slot"], records["lane"], records["bit"], strict=True))
            assert keys == sorted(set(keys))
            assert (records["job"] < len(unit.descriptors)).all()
