"""Outcomes on hand-made outputs, and the stage at which faults die on hand-made layers and whole networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from host.campaign.masking import STAGES, prefixes, where_any_masked, where_masked
from host.campaign.outcomes import outcomes
from host.campaign.space import FaultSpace, Place, plan_of
from host.compiler.compile import compile as compile_network
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.faults.plan import EVERY_IMAGE, SITES, FaultPlan
from host.faults.stuck import StuckAt
from host.models import lenet5, shufflenet_v2_x1_0
from host.program.arrangement import gather
from host.program.integer import accumulate
from host.program.layers import INPUT, Layer, Pool
from host.program.program import Program
from host.verification.cases import random_case
from hw.config import Config


def row(*values: int) -> np.ndarray:
    return np.array([values], np.int8)


CLEAN = row(50, 40, 30, 20, 10, 0)


@pytest.mark.parametrize(
    ("faulty", "label", "wanted"),
    [
        (row(50, 40, 30, 20, 10, 0), 0, (True, False, False, True, True)),
        (row(51, 40, 30, 20, 10, 0), 0, (False, False, False, True, True)),  # benign
        (row(50, 60, 30, 20, 10, 0), 0, (False, True, False, False, True)),  # another of the five
        (row(50, 40, 30, 20, 10, 90), 5, (False, True, True, True, True)),  # by luck right
        (row(40, 40, 30, 20, 10, 0), 1, (False, False, False, False, True)),  # a tie: the lower class
        (row(-9, 40, 30, 20, 10, 0), 0, (False, True, False, False, False)),
    ],
)
def test_outcomes_follow_their_definitions(faulty: np.ndarray, label: int, wanted: tuple[bool, ...]) -> None:
    found = outcomes(faulty, CLEAN, np.array([label]))
    assert tuple(bool(flag[0]) for flag in found) == wanted


# -- one layer of one channel whose accumulator is the input


def pixel_program(relu: bool, pool: bool, config: Config | None = None, shift: int = 4) -> Program:
    """Accumulator 16 * x, requantised by `shift`, then ReLU and 2x2 pooling."""
    layer = Layer(
        name="l", sources=("input",), in_shape=(1, 2, 2), out_channels=1, kernel=(1, 1), stride=(1, 1), padding=(0, 0),
        relu=relu, pool=Pool(2, 2) if pool else None, in_frac=0, weight_frac=(shift,), out_frac=0,
    )  # fmt: skip
    return Program(
        config or Config(), (layer,), {"l": np.full((1, 1, 1, 1), 16, np.int8)}, {"l": np.zeros(1, np.int32)},
        (1, 2, 2), 0,
    )  # fmt: skip


def stage(program: Program, place: Place, pixels: list[int]) -> tuple[str, str]:
    x = np.array(pixels, np.int8).reshape(1, 1, 2, 2)
    runtime = Runtime(program, ReferenceDevice(program.config))
    clean = runtime.forward(x)
    faulty = runtime.forward(x, plan=plan_of(place, program.names, 1))
    assert np.array_equal(clean.out["l"], faulty.out["l"]), "the fault must be masked"
    return where_masked(program, place, {INPUT: x, **clean.out}, faulty.out)[0]


@pytest.mark.parametrize(
    ("relu", "pool", "pixels", "bit", "wanted"),
    [
        (False, False, [5, 0, 0, 0], 0, "requantise"),  # 80 to 81: rounds to 5
        (False, False, [127, 0, 0, 0], 20, "clamp"),  # far above 127 either way: see shift below
        (True, False, [-3, 0, 0, 0], 5, "relu"),  # -48 to -16
        (True, True, [5, 9, 0, 0], 4, "pool"),  # 80 to 64 beside 144
    ],
)
def test_an_accumulator_fault_dies_where_arithmetic_says(
    relu: bool, pool: bool, pixels: list[int], bit: int, wanted: str
) -> None:
    program = pixel_program(relu, pool, shift=3 if wanted == "clamp" else 4)
    assert stage(program, Place("l", "mac", 0, 0, bit), pixels) == ("l", wanted)


def test_a_weight_fault_that_meets_zeros_dies_in_the_sum() -> None:
    assert stage(pixel_program(False, False), Place("l", "weight", 0, 0, 3), [0, 0, 0, 0]) == ("l", "accumulate")


def test_an_input_fault_dies_in_the_layer_that_reads_it() -> None:
    # 6 beside 9 becomes 4: pooling hides it.
    assert stage(pixel_program(True, True), Place("l", "input", 0, 0, 1), [6, 9, 0, 0]) == ("l", "pool")


def test_a_fault_in_a_protected_layer_does_not_happen() -> None:
    program = pixel_program(True, True).with_placement(cpu=["l"])
    assert stage(program, Place("l", "mac", 0, 0, 30), [5, 9, 0, 0]) == ("l", "protected")


def test_pipecnn_wraps_before_the_fault_can_die_by_clamping() -> None:
    program = pixel_program(False, False, Config(arithmetic="pipecnn"), shift=3)
    program.biases["l"][:] = 5
    # 2 * 100 = 200 > 127 saturates and is given no bias; so does 200 + 2**17.
    assert stage(program, Place("l", "mac", 0, 0, 20), [100, 0, 0, 0]) == ("l", "clamp")


# -- whole networks, against what the device wrote back


def reaches_the_output(program: Program, name: str) -> bool:
    return name == program.names[-1] or any(reaches_the_output(program, reader) for reader in program.readers(name))


def check_against_writeback(program: Program, x: np.ndarray, places: list[Place]) -> dict[str, int]:
    """Stage by stage against the tensors that the device gives; returns how often each stage masked."""
    runtime = Runtime(program, ReferenceDevice(program.config))
    clean = runtime.forward(x)
    stored = program.fold_input(x)
    values = {INPUT: stored, **clean.out}
    last = program.names[-1]
    seen = dict.fromkeys(STAGES, 0)
    for place in places:
        faulty = runtime.forward(x, plan=plan_of(place, program.names, len(x)))
        rows = np.flatnonzero((faulty.out[last] == clean.out[last]).reshape(len(x), -1).all(axis=1))
        found = where_masked(
            program, place, {n: v[rows] for n, v in values.items()}, {n: v[rows] for n, v in faulty.out.items()}
        )
        plan = plan_of(place, program.names, len(x)).of_images(rows)
        layerwise = where_any_masked(
            program, plan, {n: v[rows] for n, v in values.items()}, {n: v[rows] for n, v in faulty.out.items()}
        )
        for (name, stage), (again, other) in zip(found, layerwise, strict=True):
            # Where several layers read what is wrong, one names the latest stage, the other the last layer.
            readers = [name, *(r for s in program.layer(name).sources for r in program.readers(s))]
            assert again in readers or again is None
            assert other == stage or len(readers) > 2 or (place.site, stage) == ("mac", "pool")
        for at, (name, stage) in zip(rows, found, strict=True):
            seen[stage] += 1
            if stage == "unread":
                assert not reaches_the_output(program, name)
                continue
            # The named layer gives the clean output ...
            assert np.array_equal(faulty.out[name][at], clean.out[name][at])
            conv_same = np.array_equal(faulty.conv[name][at], clean.conv[name][at])
            # ... and its convolution's output differs exactly if pooling hid the fault.
            assert conv_same == (stage != "pool")
            # What it reads differs, or it is where the fault happened.
            inputs = program.layer(name).sources
            wrong = [s for s in inputs if s != INPUT and not np.array_equal(faulty.out[s][at], clean.out[s][at])]
            assert wrong or name == place.layer or (INPUT in inputs and place.site == "input")
    return seen


def test_masking_agrees_with_what_the_device_wrote_back() -> None:
    net = lenet5(pretrained=True)
    torch.manual_seed(1)
    pixels = torch.rand(6, 1, 28, 28)
    program = compile_network(net, Config(), calibrate=pixels)
    x = program.quantise_input(pixels)
    rng = np.random.default_rng(2)
    space = FaultSpace(program, SITES)
    places = [space.place(int(i)) for i in rng.integers(0, space.size, 150)]
    seen = check_against_writeback(program, x, places)
    assert all(seen[name] for name in ("accumulate", "requantise", "relu", "pool"))


@pytest.mark.parametrize("number", range(12))
def test_masking_agrees_on_random_networks_of_either_arithmetic(number: int) -> None:
    case = random_case(11, number)
    program = case.program
    rng = np.random.default_rng(number)
    x = rng.integers(-128, 128, (3, *program.input_shape)).astype(np.int8)
    fallback = [layer.name for layer in program.layers if layer.placement == "cpu"]
    assert len(fallback) < len(program.layers)
    space = FaultSpace(program, SITES, excluded=fallback)
    check_against_writeback(program, x, [space.place(int(i)) for i in rng.integers(0, space.size, 30)])


def test_prefixes_are_the_devices_accumulators_on_grouped_and_shuffled_channels() -> None:
    torch.manual_seed(0)
    pixels = torch.rand(1, 3, 32, 32)
    program = compile_network(shufflenet_v2_x1_0().eval(), Config(), calibrate=pixels, fallback="cpu")
    x = program.quantise_input(pixels)
    runtime = Runtime(program, ReferenceDevice(program.config))
    out = {INPUT: program.fold_input(x), **runtime.forward(x).out}
    rng = np.random.default_rng(3)
    for layer in program.layers[::7]:
        if layer.placement == "cpu":
            continue
        source = gather(out, layer)
        weight, bias = program.weights[layer.name], program.biases[layer.name]
        whole = accumulate(source, weight, bias, layer.stride, layer.padding, layer.groups).reshape(-1)
        for output in rng.integers(0, whole.size, 4):
            sums = prefixes(source, weight, layer, program.config, int(output))
            channel = output // int(np.prod(layer.conv_shape[1:]))
            assert sums[0, -1] + bias[channel] == whole[output]


def test_a_fault_before_a_branch_is_masked_by_all_its_readers() -> None:
    # Two layers read l; both must hide what differs in it.
    base = pixel_program(True, False)
    first = base.layers[0]
    second = replace(first, name="a", sources=("l",), weight_frac=(7,))
    third = replace(first, name="b", sources=("l",), weight_frac=(8,))
    join = replace(
        first, name="j", sources=("a", "b"), source_channels=(1, 1), in_shape=(2, 2, 2), out_channels=1,
        weight_frac=(4,),
    )  # fmt: skip
    weight = {name: np.full((1, 1, 1, 1), 16, np.int8) for name in ("l", "a", "b")}
    program = Program(
        Config(), (first, second, third, join),
        {**weight, "j": np.full((1, 2, 1, 1), 16, np.int8)},
        {name: np.zeros(1, np.int32) for name in ("l", "a", "b", "j")}, (1, 2, 2), 0,
    )  # fmt: skip
    x = np.full((1, 1, 2, 2), 16, np.int8)
    seen = check_against_writeback(program, x, [Place("l", "feature", 1, 0, 0), Place("l", "feature", 2, 0, 1)])
    assert seen["requantise"] == 2


# -- any faults


def trace(program: Program, plan: FaultPlan, pixels: list[int]) -> tuple[str | None, str]:
    x = np.array(pixels, np.int8).reshape(1, 1, 2, 2)
    runtime = Runtime(program, ReferenceDevice(program.config))
    clean, faulty = runtime.forward(x), runtime.forward(x, plan=plan)
    assert np.array_equal(clean.out["l"], faulty.out["l"]), "the faults must be masked"
    return where_any_masked(program, plan, {INPUT: x, **clean.out}, faulty.out)[0]


def stuck(bit: int, value: int, lane: int = 0) -> FaultPlan:
    return FaultPlan.of(("l",)).under(StuckAt(lane, bit, value).conditions)


@pytest.mark.parametrize(
    ("bit", "value", "relu", "pool", "pixels", "wanted"),
    [
        (4, 1, False, False, [5, 7, 1, 3], "dormant"),  # accumulators 80, 112, 16, 48: bit 4 is 1
        (20, 0, False, False, [5, 7, 1, 3], "dormant"),
        (0, 1, False, False, [5, 7, 1, 3], "requantise"),  # 1 of 16
        (31, 1, True, False, [-5, -7, 0, -3], "relu"),
        (4, 0, True, True, [5, 8, 1, 3], "pool"),  # 128 has no bit 4, and is the largest
    ],
)
def test_a_stuck_bit_dies_where_arithmetic_says(
    bit: int, value: int, relu: bool, pool: bool, pixels: list[int], wanted: str
) -> None:
    program = pixel_program(relu, pool, Config(overclock=32))
    assert trace(program, stuck(bit, value), pixels) == (None if wanted == "dormant" else "l", wanted)


def test_faults_that_do_not_happen_are_told_apart() -> None:
    program = pixel_program(False, False, Config(overclock=32))
    protected = program.with_placement(cpu=["l"])
    none, flip = FaultPlan.of(("l",)), FaultPlan.of(("l",), 0, 0, SITES.index("mac"), 0, 0, 9)
    assert trace(program, none, [5, 7, 1, 3]) == (None, "none")
    assert trace(program, flip.of_images(np.array([1])), [5, 7, 1, 3]) == (None, "none")  # another image's
    assert trace(protected, flip, [5, 7, 1, 3]) == ("l", "protected")
    assert trace(protected, stuck(9, 1), [5, 7, 1, 3]) == (None, "protected")
    # The channels of lane 3 are those of no layer here.
    assert trace(program, stuck(9, 1, lane=3), [5, 7, 1, 3]) == (None, "dormant")
    weight = FaultPlan.of(("l",), EVERY_IMAGE, 0, SITES.index("weight"), 0, 0, 3)
    assert trace(program, weight, [0, 0, 0, 0]) == ("l", "accumulate")


def test_two_flips_that_undo_each_other_die_in_the_sum() -> None:
    # Two flips after one step would cancel in the plan, so the accumulator takes two steps.
    config = Config(vec=4, lanes=4, port_bits=32)
    layer = replace(
        pixel_program(False, False).layers[0], in_shape=(8, 1, 1), weight_frac=(4,), source_channels=()
    )  # fmt: skip
    weight = np.zeros((1, 8, 1, 1), np.int8)
    weight[0, 0] = 16
    program = Program(config, (layer,), {"l": weight}, {"l": np.zeros(1, np.int32)}, (8, 1, 1), 0)
    x = np.full((1, 8, 1, 1), 5, np.int8)
    # 80 after both steps: bit 4 is flipped off after the first and on after the second.
    plan = FaultPlan.of(("l",), 0, 0, SITES.index("mac"), 0, [0, 1], 4)
    runtime = Runtime(program, ReferenceDevice(config))
    clean, faulty = runtime.forward(x), runtime.forward(x, plan=plan)
    assert np.array_equal(clean.out["l"], faulty.out["l"])
    assert where_any_masked(program, plan, {INPUT: x, **clean.out}, faulty.out) == [("l", "accumulate")]


def test_rows_of_a_plan_follow_the_images_that_are_asked_for() -> None:
    plan = FaultPlan.of(("l",), [EVERY_IMAGE, 1, 4, 4, 7], 0, [0, 3, 3, 3, 3], [2, 0, 0, 1, 0], 0, 1)
    part = plan.of_images(np.array([1, 3, 4]))
    assert part.image.tolist() == [EVERY_IMAGE, 0, 2, 2]
    assert part.output.tolist() == [2, 0, 0, 1]
