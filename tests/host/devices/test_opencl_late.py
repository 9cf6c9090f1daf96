"""Late and stuck bits on the opencl device: the reference's bytes, and those that a hand can work out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from host.devices.device import Device, DeviceError, Int8
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Outputs, Runtime
from host.faults.conditions import Clock, Conditions, StuckBit
from host.faults.models import SoftErrors
from host.faults.plan import FaultPlan
from host.faults.stuck import StuckAt
from host.program.layers import Layer
from host.program.program import Program
from host.schedule.launch import Launch, schedule
from host.schedule.tiling import effort
from host.verification.cases import random_program
from host.verification.overclocked import OVERCLOCKED
from host.verification.verify import verify
from hw import masks
from hw.config import Config
from hw.delays import Table
from hw.descriptor import Flag
from hw.masks import BankMasks
from tests.host.opencl import available, needs_opencl
from tests.hw.tables import random_table

pytestmark = needs_opencl
if available():
    import pyopencl as cl

    from host.devices.opencl import device as module
    from host.devices.opencl import platforms
    from host.devices.opencl import program as programs
    from host.devices.opencl.device import OpenCLDevice
    from host.devices.opencl.overlap import Overlapped
    from host.devices.opencl.source import LATE, Shape, shape_for, source

TINY, CONFIG, PIPECNN = OVERCLOCKED[0], OVERCLOCKED[1], OVERCLOCKED[5]
"""In the first, many layers are computed output by output."""


def make(config: Config = CONFIG, **options: Any) -> OpenCLDevice:
    return OpenCLDevice(config, **{"memory_bytes": 1 << 24, "units": 1, **options})


def made(name: str, config: Config, units: int) -> Device:
    if name == "reference":
        return ReferenceDevice(config, memory_bytes=1 << 24, units=units)
    return make(config, units=units)


def late(table: Table, share: float, *stuck: StuckBit) -> Conditions:
    """A clock at a share of the safe period, and stuck bits."""
    return Conditions(Clock(table, round(share * table.onset_ps), 1.0), stuck)


def images(program: Program, count: int) -> Int8:
    return np.random.default_rng(3).integers(-128, 128, (count, *program.input_shape)).astype(np.int8)


def assert_same(found: Outputs, wanted: Outputs) -> None:
    for kind in ("conv", "out"):
        for name, right in getattr(wanted, kind).items():
            np.testing.assert_array_equal(getattr(found, kind)[name], right, err_msg=f"{kind} of {name}")
    assert found.report.faults_applied == wanted.report.faults_applied


def both(program: Program, x: Int8, *plans: FaultPlan | None) -> list[Outputs]:
    """Passes on one opencl device, each compared with the reference's."""
    with make(program.config) as device, ReferenceDevice(program.config, memory_bytes=1 << 24) as oracle:
        runtimes = Runtime(program, device), Runtime(program, oracle)
        passes = []
        for plan in plans:
            found, wanted = (runtime.forward(x, plan=plan) for runtime in runtimes)
            assert_same(found, wanted)
            passes.append(found)
        return passes


def one_layer(config: Config = CONFIG, **changes: Any) -> Program:
    """A convolution with random weights."""
    rng = np.random.default_rng(1)
    layer = Layer(
        name="l", sources=("input",), in_shape=(6, 5, 6), out_channels=6, kernel=(2, 3), stride=(1, 2), padding=(1, 1),
        relu=False, pool=None, in_frac=0, weight_frac=(6,) * 6, out_frac=0,
    )  # fmt: skip
    layer = replace(layer, source_channels=(), **changes)
    weight = rng.integers(-128, 128, layer.weight_shape).astype(np.int8)
    bias = rng.integers(-100, 100, layer.out_channels).astype(np.int32)
    return Program(config, (layer,), {"l": weight}, {"l": bias}, layer.in_shape, 0)


def identity(channels: int, width: int) -> Program:
    """Each channel is handed on, its number added: a step an output, and nothing is rounded."""
    program = one_layer(
        in_shape=(channels, 2, width),
        out_channels=channels,
        kernel=(1, 1),
        stride=(1, 1),
        padding=(0, 0),
        weight_frac=(0,) * channels,
    )
    weight = np.eye(channels, dtype=np.int8)[:, :, None, None]
    return replace(program, weights={"l": weight}, biases={"l": np.arange(channels, dtype=np.int32)})


# -- against the reference


@pytest.mark.parametrize(
    ("config", "cases", "wrong"),
    [
        pytest.param(CONFIG, 30, 15, id="8x8"),
        pytest.param(TINY, 25, 5, id="buffers of 256 bytes"),
        pytest.param(PIPECNN, 25, 10, id="in PipeCNN's arithmetic"),
        pytest.param(OVERCLOCKED[4], 25, 10, id="without saboteurs"),
        pytest.param(Config(lanes=32, vec=16, overclock=32, saboteur=True), 8, 2, id="lanes beyond one vector"),
    ],
)
def test_random_clocks_stuck_bits_and_flips_give_the_references_bytes(config: Config, cases: int, wrong: int) -> None:
    report = verify(("reference", "opencl"), cases=cases, seed=6, make=made, configs=(config,), overclock=True)
    assert report.ok, str(report)
    assert report.wrong_cases >= wrong
    assert report.clock_changes >= wrong


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((4, 2, False), id="a GPU's: bytes, several work-items, a row at a time"),
        pytest.param((16, 8, True), id="more work-items than rows"),
        pytest.param((1, 32, True), id="more rows together than there are"),
    ],
)
def test_how_rows_are_shared_changes_no_byte(shape: tuple[int, int, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "shape_for", lambda *_, **__: Shape(*shape))
    report = verify(("reference", "opencl"), cases=15, seed=8, make=made, configs=(CONFIG,), overclock=True)
    assert report.ok, str(report)
    assert report.wrong_cases > 5


@pytest.mark.parametrize("config", [TINY, PIPECNN], ids=["redline", "pipecnn"])
def test_jobs_of_one_output_begin_with_a_history_of_zeros_and_go_on_from_their_accumulators(config: Config) -> None:
    config = replace(config, feature_bytes=256)
    program = one_layer(config, in_shape=(6, 6, 8), kernel=(5, 7))
    assert effort(program.layers[0], config) == 3
    flags = schedule(program, [0], 1, writeback=True).units[0].descriptors["flags"]
    assert (flags & Flag.CONTINUE).any()
    conditions = late(random_table(7, config), 0.65, StuckBit(0, "accumulator", 9, 1))
    plan = SoftErrors(0.01, per="mac").draw(program, 0, 2, 5)
    hit, missed, clean = both(program, images(program, 2), plan.under(conditions), plan, None)
    assert hit.report.faults_applied == missed.report.faults_applied > 0
    assert not np.array_equal(hit.out["l"], missed.out["l"])
    assert not np.array_equal(missed.out["l"], clean.out["l"])


def test_one_clock_after_the_other_leaves_nothing_behind() -> None:
    program, table = one_layer(), random_table(2, CONFIG)
    few, many = (sum(bank.groups for bank in late(table, at).banks(CONFIG).values()) for at in (0.9, 0.6))
    assert many > few > 1
    none = FaultPlan.of(program.names)
    plans = [none.under(late(table, at)) for at in (0.6, 0.9, 1.0)]
    faster, fast, met, clean = both(program, images(program, 3), *plans, None)
    assert np.array_equal(met.out["l"], clean.out["l"])
    assert not np.array_equal(fast.out["l"], clean.out["l"])
    assert not np.array_equal(fast.out["l"], faster.out["l"])


@pytest.mark.parametrize("bank", ["accumulator", "tree_1_3", "tree_2_0", "tree_3_0"])
def test_a_stuck_bit_of_any_bank_beside_flips_and_a_clock_that_is_met(bank: str) -> None:
    program = one_layer()
    bit = 31 if bank == "accumulator" else 16 + int(bank.split("_")[1]) - 1
    conditions = Conditions(None, (StuckBit(1, bank, bit, 1), StuckBit(2, bank, 6, 0)))
    flips = SoftErrors(0.01, per="mac").draw(program, 0, 3, 5)
    hit, missed = both(program, images(program, 3), flips.under(conditions), flips)
    assert not np.array_equal(hit.out["l"][:, 1], missed.out["l"][:, 1])
    assert np.array_equal(hit.out["l"][:, 3:], missed.out["l"][:, 3:])


def test_batches_that_overlap_meet_the_same_late_bits_as_single_passes() -> None:
    program = random_program(np.random.default_rng(27), CONFIG).with_placement(())
    plan = SoftErrors(1e-2, per="mac").draw(program, 5, 9, 3).under(late(random_table(1, CONFIG), 0.7))
    given = np.split(images(program, 9), (2, 5))
    with make(units=2) as device:
        streamed = list(Overlapped(program, device).stream(given, plan=plan, first_image=5))
        at = 5
        for x, found in zip(given, streamed, strict=True):
            assert_same(found, Runtime(program, device).forward(x, plan=plan, first_image=at))
            at += len(x)


# -- against what a hand can work out


def with_masks(launch: Launch, records: np.ndarray) -> Launch:
    units = [replace(unit, late_masks=records) for unit in launch.units]
    return replace(launch, units=units)


def all_late(lanes: int, *, stuck: int = 0) -> BankMasks:
    """No operand bit arrives in time, and one bit of lane 0 is stuck."""
    none, one_group = np.zeros((lanes, 1), np.uint32), np.full((lanes, 1), 0xFFFFFFFF, np.uint32)
    ones, force = np.full(lanes, 0xFFFFFFFF, np.uint32), np.zeros(lanes, np.uint32)
    force[0] = stuck
    return BankMasks(none, none, one_group, none, none, ones, force, np.zeros(lanes, np.uint32))


def on_opencl(program: Program, x: Int8, records: np.ndarray) -> Int8:
    """The layer's output under a list of masks."""
    launch = schedule(program, [0], len(x), writeback=True)
    with make(program.config) as device:
        runtime = Runtime(program, device)
        runtime.forward(x)  # everything is in memory now
        region = launch.memory["out/l"]
        device.launch(with_masks(launch, records))
        return device.read_features(region, program.layers[0].out_channels)


def test_where_every_bit_is_late_each_output_is_the_one_before_and_a_rows_first_is_zero() -> None:
    program = identity(4, 5)
    x = (images(program, 2) // 4).astype(np.int8)
    clean = x + np.arange(4, dtype=np.int8)[:, None, None]
    records = masks.encode({"accumulator": all_late(CONFIG.lanes)}, CONFIG.vec)
    expected = np.zeros_like(clean)
    expected[..., 1:] = clean[..., :-1]
    np.testing.assert_array_equal(on_opencl(program, x, records[:0]), clean)
    np.testing.assert_array_equal(on_opencl(program, x, records), expected)


def test_the_stuck_bit_comes_after_the_late_ones() -> None:
    program = identity(4, 5)
    x = (images(program, 2) // 4).astype(np.int8)
    records = masks.encode({"accumulator": all_late(CONFIG.lanes, stuck=1 << 4)}, CONFIG.vec)
    found = on_opencl(program, x, records)
    assert (found[:, 0, :, 0] == 1 << 4).all()
    # What is late in the next output is operands, not what was captured: the bit shows once in each.
    np.testing.assert_array_equal(found[:, 0, :, 1:], x[:, 0, :, :-1] | 1 << 4)
    assert (found[:, 1:, :, 0] == 0).all()


@pytest.mark.parametrize("config", [CONFIG, PIPECNN], ids=["redline", "pipecnn"])
def test_a_channel_that_only_fills_up_a_word_saturates_as_any_other(config: Config) -> None:
    program = one_layer(config, out_channels=2, weight_frac=(6, 6))
    x = images(program, 2)
    stuck = StuckAt(lane=config.vec - 1, bit=7, value=1)
    plan = stuck.draw(program, 0, 2, 1)
    with make(config) as device:
        runtime = Runtime(program, device)
        launch = schedule(program, [0], 2, writeback=True)
        runtime.forward(x, plan=plan)
        region = launch.memory["out/l"]
        words = device.read(region.address, region.nbytes).view(np.int8).reshape(region.shape)
    # Its weights are zero, and so is its shift: the sum is 128.
    assert (words[..., -1] == 127).all()
    assert (words[..., 2:-1] == 0).all()


def test_masks_for_lanes_and_banks_that_there_are_not_harm_nothing() -> None:
    program = identity(4, 5)
    x = (images(program, 1) // 4).astype(np.int8)
    records = masks.encode({"accumulator": all_late(CONFIG.lanes)}, CONFIG.vec)
    wrong = np.concatenate([records] * 3)
    for name, at in (("lane", 0), ("bank", len(records)), ("operand", 2 * len(records))):
        wrong[name][at : at + len(records)] = 255
    np.testing.assert_array_equal(on_opencl(program, x, wrong), on_opencl(program, x, records[:0]))


# -- what a launch without masks, and a build without overclocking, have of it


def test_a_build_without_overclocking_is_compiled_without_it() -> None:
    text = LATE.read_text()
    for config in (CONFIG, replace(CONFIG, overclock=0)):
        assert (text in source(config, shape_for(config, processor=True))) == bool(config.overclock)
        with make(config) as device:
            assert device.session.program.kernel.num_args == programs.SOURCE_ARGUMENTS + bool(config.overclock)


def test_a_launch_without_masks_goes_the_way_of_a_build_without_overclocking(monkeypatch: pytest.MonkeyPatch) -> None:
    slip(monkeypatch, "leave(job, &shared, (first + r) * width + x, rows.running[r], conv, status)", "")
    report = verify(("reference", "opencl"), cases=10, seed=4, make=made, configs=(CONFIG,))
    assert report.ok, str(report)
    report = verify(
        ("reference", "opencl"), cases=10, seed=4, make=made, configs=(CONFIG,), overclock=True, most_mismatches=1
    )
    assert report.mismatches


def test_a_binary_from_before_there_were_late_bits_is_refused(tmp_path: Any) -> None:
    plain = source(CONFIG, shape_for(CONFIG, processor=True)).replace("#if LATE_GROUPS", "#if 0")
    built = cl.Program(cl.Context([platforms.find()]), plain).build(["-cl-std=CL1.2"])
    (tmp_path / "old.bin").write_bytes(built.get_info(cl.program_info.BINARIES)[0])
    with pytest.raises(DeviceError, match="takes 14 arguments .* rebuild it with this Redline"):
        make(binary=tmp_path / "old.bin")


def test_a_build_with_too_few_groups_refuses_the_clock() -> None:
    config = replace(CONFIG, overclock=1)
    program = one_layer(config)
    plan = FaultPlan.of(program.names).under(late(random_table(2, config), 0.6))
    with make(config) as device, pytest.raises(DeviceError, match=r"built for 1; use Config.overclock=32"):
        Runtime(program, device).forward(images(program, 1), plan=plan)
    stuck = StuckAt(lane=0, bit=4, value=1).draw(program, 0, 1, 1)
    both(program, images(program, 1), stuck)


# -- that the comparison would notice


def slip(monkeypatch: pytest.MonkeyPatch, right: str, wrong: str) -> None:
    """The kernel is compiled with one expression otherwise."""
    whole = programs.source

    def slipped(config: Config, shape: Shape) -> str:
        text = whole(config, shape)
        assert text.count(right) == 1
        return text.replace(right, wrong)

    monkeypatch.setattr(programs, "source", slipped)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        pytest.param("a[bank][q] = left;", "", id="the tree forgets"),
        pytest.param("(HELD(masks, q, total) ^ sign) - sign", "HELD(masks, q, total)", id="no copies of the sign"),
        pytest.param("rows->loaded = first;", "", id="the select is never late"),
        pytest.param("rows->begins ? (sums_t)(0) : bias", "bias", id="the bias is never late"),
        pytest.param("rows->a[r][q] = rows->running[r][q];", "", id="accumulators forget"),
        pytest.param("const bool one = job->flags & FLAG_ONE, continues = job->flags & FLAG_CONTINUE",
                     "const bool one = job->flags & FLAG_ONE, continues = false", id="jobs start anew"),
        pytest.param("sum[r][q] ^= flips.wide[q]", "", id="no flips beside late bits"),
        pytest.param("used[ACCUMULATOR] ? HELD(masks, q, sum[r][q]) : sum[r][q]", "sum[r][q]", id="nothing is stuck"),
        pytest.param("banks[bank * BANK_WORDS + OPERAND_USED * LANES] = 0", "", id="the last launch's masks stay"),
    ],
)  # fmt: skip
def test_verification_finds_a_slip_in_the_kernel(right: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slip(monkeypatch, right, wrong)
    # Jobs that go on from another's accumulators are frequent where buffers are smallest.
    config = TINY if "continues" in right else CONFIG
    report = verify(
        ("reference", "opencl"), cases=80, seed=1, make=made, configs=(config,), overclock=True, most_mismatches=1
    )
    assert report.mismatches
