"""Overclock and StuckAt as faults: what they refuse, how they combine, that they are deterministic and replayable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from host.compiler.compile import compile as compile_network
from host.devices.checks import check_faults
from host.devices.device import DeviceError
from host.devices.reference import ReferenceDevice, accumulators
from host.devices.runtime import Runtime
from host.devices.simulation import SimulationDevice
from host.faults import canary
from host.faults.canary import CanaryError
from host.faults.conditions import ConditionError, Conditions
from host.faults.models import Fault, Replay, SoftErrors
from host.faults.overclock import BeyondModel, Overclock
from host.faults.plan import FaultPlan, PlanError
from host.faults.stuck import StuckAt
from host.models import lenet5
from host.program.program import Program
from host.training.twin import attach
from host.verification.cases import random_case
from hw.config import Config
from hw.delays import Limit, Table, bank_names
from hw.masks import MOST_GROUPS
from sim.timing import shipped
from tests.hw.tables import random_table

CONFIG = Config(lanes=8, vec=8)


@pytest.fixture(scope="module")
def table() -> Table:
    return replace(random_table(5, CONFIG), unmodelled={"requantiser": Limit(3000, "x"), "control": Limit(None, "y")})


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return compile_network(lenet5(), CONFIG, calibrate=torch.rand(4, 1, 28, 28))


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).integers(-128, 128, (3, 1, 28, 28)).astype(np.int8)


def at(table: Table, share: float, **options: object) -> Overclock:
    return Overclock(table=table, period_ns=share * table.onset_ps / 1000, **options)  # type: ignore[arg-type]


def forward(program: Program, x: np.ndarray, fault: Fault | None, first_image: int = 0) -> dict[str, np.ndarray]:
    plan = None if fault is None else fault.draw(program, first_image, len(x), 1)
    device = ReferenceDevice(program.config, memory_bytes=1 << 24)
    return Runtime(program, device).forward(x, plan=plan, first_image=first_image).out


# -- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give the clock as mhz= or as period_ns=, one of the two"),
        ({"mhz": 100, "period_ns": 10}, "one of the two"),
        ({"mhz": 0}, "mhz must be positive, not 0"),
        ({"period_ns": float("nan")}, "period_ns must be positive, not nan"),
        ({"mhz": 100, "voltage_scale": -1}, "voltage_scale must be positive, not -1"),
        ({"period_ns": 1e-4}, "at least 1 ps"),
    ],
)
def test_an_impossible_clock_is_refused(table: Table, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Overclock(table=table, **options)  # type: ignore[arg-type]


def test_a_period_is_whole_picoseconds_and_a_path_as_long_arrives(table: Table) -> None:
    assert Overclock(table=table, mhz=200).period_ps == 5000
    assert Overclock(table=table, period_ns=4.1).period_ps == 4100
    assert Overclock(table=table, mhz=300).period_ps == 3333
    assert not Overclock(table=table, period_ns=table.onset_ps / 1000).conditions.banks(CONFIG)
    assert Overclock(table=table, period_ns=(table.onset_ps - 1) / 1000).conditions.banks(CONFIG)


def test_a_clock_beyond_what_is_modelled_needs_to_be_asked_for(table: Table) -> None:
    with pytest.raises(BeyondModel, match=r"at 334\.4 MHz, .*requantiser above 333\.3 MHz.*beyond_model=True"):
        Overclock(table=table, period_ns=2.99)
    Overclock(table=table, period_ns=2.99, beyond_model=True)
    Overclock(table=table, period_ns=3.0)
    # At a lower voltage it fails earlier.
    with pytest.raises(BeyondModel, match="requantiser above 303"):
        Overclock(table=table, period_ns=3.2, voltage_scale=1.1)


def test_a_table_must_fit_the_accelerator(program: Program, table: Table) -> None:
    with pytest.raises(ConditionError, match="table has 8 lanes, this accelerator 16"):
        at(table, 0.9).conditions.check(Config(lanes=16))
    with pytest.raises(ConditionError, match="8 products a step, this accelerator adds 4"):
        at(table, 0.9).conditions.check(Config(lanes=8, vec=4, port_bits=64))
    at(table, 0.9).conditions.check(Config(lanes=4, vec=8))
    plan = FaultPlan.of(program.names).under(at(random_table(1, Config(lanes=4, vec=8)), 0.9).conditions)
    with pytest.raises(ConditionError, match="at least as many"):
        plan.check(program)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 0), "lane must be 0 or more, not -1"),
        ((0, 32, 0), "bit must be from 0 to 31, not 32"),
        ((0, 3, 2), "stuck at 0 or 1, not 2"),
    ],
)
def test_an_impossible_stuck_bit_is_refused(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StuckAt(*arguments)


def test_a_stuck_bit_that_the_accelerator_lacks_is_refused(program: Program) -> None:
    with pytest.raises(ConditionError, match="no lane 8 to be stuck; this accelerator has 8"):
        StuckAt(8, 0, 1).draw(program, 0, 1, 0)
    with pytest.raises(ConditionError, match="no register bank 'product' to be stuck; there are tree_1_0, "):
        StuckAt(0, 0, 1, site="product").draw(program, 0, 1, 0)
    with pytest.raises(ConditionError, match="tree_1_2 has bits 0 to 16, not 17"):
        StuckAt(0, 17, 1, site="tree_1_2").draw(program, 0, 1, 0)


def test_contradictions_are_refused(table: Table) -> None:
    with pytest.raises(ConditionError, match="one clock, not two"):
        (at(table, 0.9) + at(table, 0.8)).conditions  # noqa: B018
    with pytest.raises(ConditionError, match="cannot be stuck at both 0 and 1"):
        (StuckAt(0, 3, 1) + StuckAt(0, 3, 0)).conditions  # noqa: B018
    assert (at(table, 0.9) + at(table, 0.9)).conditions == at(table, 0.9).conditions


# -- what they do


def test_by_default_it_is_the_clock_of_a_routed_array_that_comes_with_redline(x: np.ndarray) -> None:
    routed = shipped.load()
    config = Config()
    torch.manual_seed(0)
    program = compile_network(lenet5(), config, calibrate=torch.rand(4, 1, 28, 28))
    fault = at(routed, 0.85, beyond_model=True)
    assert fault == Overclock(period_ns=0.85 * routed.onset_ps / 1000, beyond_model=True)
    banks = fault.conditions.banks(config)
    assert "accumulator" in banks
    assert banks["accumulator"].groups > 1
    clean, late = forward(program, x, None), forward(program, x, fault)
    assert any(not np.array_equal(clean[name], late[name]) for name in clean)
    safe = Overclock(period_ns=routed.onset_ps / 1000, beyond_model=True)
    assert not safe.conditions.banks(config)


def test_below_the_limit_nothing_is_wrong_and_beyond_it_the_same_bits_each_time(
    program: Program, table: Table, x: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = forward(program, x, None)
    safe = forward(program, x, at(table, 1.0))
    assert all(np.array_equal(clean[name], safe[name]) for name in clean)

    def wrong_bits(share: float) -> set[tuple[int, ...]]:
        """(image, channel, y, x, bit) of every wrong accumulator bit of the first layer."""
        layer = program.layers[0]
        arguments = program.fold_input(x), program.weights[layer.name], program.biases[layer.name], layer
        plan = at(table, share).draw(program, 0, len(x), 0)
        difference = accumulators(*arguments, plan, CONFIG) ^ accumulators(*arguments, None, CONFIG)
        return {(*map(int, place), bit) for place in np.argwhere(difference) for bit in range(32)
                if difference[tuple(place)] >> bit & 1}  # fmt: skip

    assert wrong_bits(1.0) == set()
    counts = []
    for share in (0.92, 0.85, 0.75):
        found = wrong_bits(share)
        assert found == wrong_bits(share)
        counts.append(len(found))
        shown = sorted(found)[:5]
        print(f"period {share} of the safe one: {len(found)} wrong bits, the first {shown}")
    assert counts == sorted(counts)
    assert counts[-1] > 100
    assert "wrong bits" in capsys.readouterr().out


def test_slower_silicon_is_a_faster_clock(program: Program, table: Table, x: np.ndarray) -> None:
    period = table.onset_ps / 1000
    clean = forward(program, x, None)["fc3"]
    assert np.array_equal(forward(program, x, Overclock(table=table, period_ns=period))["fc3"], clean)
    slow = Overclock(table=table, period_ns=period, voltage_scale=1.3)
    assert not np.array_equal(forward(program, x, slow)["fc3"], clean)


def test_errors_do_not_depend_on_seed_image_numbers_or_batches(program: Program, table: Table, x: np.ndarray) -> None:
    fault = at(table, 0.8) + StuckAt(2, 5, 1)
    whole = forward(program, x, fault)
    assert np.array_equal(forward(program, x, fault, first_image=77)["fc3"], whole["fc3"])
    parts = [forward(program, x[i : i + 1], fault, first_image=i)["fc3"] for i in range(3)]
    assert np.array_equal(np.concatenate(parts), whole["fc3"])
    assert fault.draw(program, 0, 3, 1).conditions == fault.draw(program, 0, 3, 2).conditions


def test_a_stuck_accumulator_bit_is_in_every_sum_of_its_lane(program: Program, x: np.ndarray) -> None:
    layer = program.layers[1]
    inputs = np.random.default_rng(1).integers(-128, 128, (2, *layer.in_shape)).astype(np.int8)
    arguments = inputs, program.weights[layer.name], program.biases[layer.name], layer
    clean = accumulators(*arguments, None, CONFIG)
    for value in (0, 1):
        plan = StuckAt(3, 2, value).draw(program, 0, 2, 0)
        acc = accumulators(*arguments, plan, CONFIG)
        assert (acc[:, 3::8] >> 2 & 1 == value).all()
        others = [channel for channel in range(acc.shape[1]) if channel % 8 != 3]
        assert np.array_equal(acc[:, others], clean[:, others])


def test_a_stuck_sign_bit_of_the_tree_makes_sums_negative(program: Program) -> None:
    layer = program.layers[1]
    inputs = np.ones((1, *layer.in_shape), np.int8)
    weight = np.ones(layer.weight_shape, np.int8)
    plan = StuckAt(1, 18, 1, site="tree_3_0").draw(program, 0, 1, 0)
    bias = np.zeros(layer.out_channels, np.int32)
    acc = accumulators(inputs, weight, bias, layer, plan, CONFIG)
    steps = layer.kernel[0] * layer.kernel[1]  # six channels: one group of eight
    assert (acc[0, 0] == 6 * steps).all()
    assert (acc[0, 1] == (6 - 2**18) * steps).all()


def test_it_combines_with_soft_errors(program: Program, table: Table, x: np.ndarray) -> None:
    clock, soft = at(table, 0.85), SoftErrors(1e-4, per="mac") + SoftErrors(1e-4)
    both = clock + soft + StuckAt(0, 1, 0)
    assert both.sites == ("clock", "mac", "weight", "input", "feature", "stuck")
    plan = both.draw(program, 0, 3, 1)
    assert len(plan) > 0
    assert plan.sites == ("weight", "input", "feature", "mac", "clock", "stuck")
    found = forward(program, x, both)["fc3"]
    assert not np.array_equal(found, forward(program, x, clock)["fc3"])
    assert not np.array_equal(found, forward(program, x, soft)["fc3"])


def test_layers_on_the_cpu_have_no_errors(program: Program, table: Table, x: np.ndarray) -> None:
    deep = Overclock(table=table, period_ns=0.6 * table.onset_ps / 1000, beyond_model=True)
    clean = forward(program, x, None)
    protected = forward(program.with_placement(program.names), x, deep)
    assert all(np.array_equal(clean[name], protected[name]) for name in clean)
    partly = forward(program.with_placement(["conv1"]), x, deep)
    assert np.array_equal(partly["conv1"], clean["conv1"])
    assert not np.array_equal(partly["conv2"], clean["conv2"])


def test_pipecnn_starts_from_zero(table: Table, x: np.ndarray) -> None:
    torch.manual_seed(0)
    program = compile_network(lenet5(), replace(CONFIG, arithmetic="pipecnn"), calibrate=torch.rand(4, 1, 28, 28))
    changed = program.with_placement([])
    changed.biases["conv1"] = np.zeros_like(changed.biases["conv1"])
    layer = program.layers[0]
    assert program.biases["conv1"].any()
    # The bias is added behind the accumulator, where nothing is late: the sums do not know it.
    device = ReferenceDevice(program.config, memory_bytes=1 << 24)
    plan = at(table, 0.8).draw(program, 0, 3, 0)
    with_bias = Runtime(program, device).forward(x, plan=plan).conv["conv1"]
    start = np.zeros_like(program.biases["conv1"])
    acc = accumulators(program.fold_input(x), program.weights["conv1"], start, layer, plan, program.config)
    from host.program.integer import finish

    assert np.array_equal(with_bias, finish(acc, layer, None, program.biases["conv1"]).conv)
    assert not np.array_equal(with_bias, forward(program, x, None)["conv1"])


def test_a_device_that_knows_no_conditions_refuses_them(program: Program, table: Table, x: np.ndarray) -> None:
    class Simple(ReferenceDevice):
        name = "simple"
        knows_conditions = False

    runtime = Runtime(program, Simple(CONFIG, memory_bytes=1 << 24))
    with pytest.raises(DeviceError, match="the simple device has no model of late or stuck bits"):
        runtime.forward(x, plan=at(table, 0.9).draw(program, 0, 3, 0))


def test_its_text_says_the_clock_and_not_the_table(program: Program, table: Table, tmp_path: Path) -> None:
    table.save(tmp_path / "table.json")
    fault = Overclock(table=tmp_path / "table.json", mhz=250)
    text = f"period 4000 ps, safe from {table.onset_ps} ps, delay table {table.hash[:12]}"
    assert str(fault) == f"Overclock({text})"
    assert fault == Overclock(table=table, period_ns=4.0)
    assert hash(fault) == hash(Overclock(table=table, period_ns=4.0))
    assert fault != Overclock(table=table, period_ns=4.1)
    assert len(str(fault.draw(program, 0, 1, 0))) < 1000


def test_a_twin_trains_under_it_and_leaving_the_context_leaves_no_trace(table: Table) -> None:
    torch.manual_seed(2)
    pictures = torch.rand(4, 1, 28, 28)
    twin = attach(lenet5(pretrained=True), ReferenceDevice(CONFIG), calibrate=pictures)
    fault = at(table, 0.75, beyond_model=True) + StuckAt(3, 6, 1)
    twin.eval()
    clean = twin(pictures)
    with fault.on(twin, seed=1):
        late = twin(pictures)
    with fault.on(twin, seed=2):
        split = torch.cat([twin(pictures[:1]), twin(pictures[1:])])
    assert not torch.equal(late, clean)
    assert torch.equal(split, late)
    assert torch.equal(twin(pictures), clean)
    twin.train()
    with fault.on(twin, seed=1):
        torch.nn.functional.cross_entropy(twin(pictures), torch.arange(4)).backward()
    gradients = [parameter.grad for parameter in twin.net.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    assert any(gradient.abs().sum() > 0 for gradient in gradients if gradient is not None)


# -- plans


def test_a_saved_plan_brings_its_table_and_is_replayed(
    program: Program, table: Table, x: np.ndarray, tmp_path: Path
) -> None:
    fault = at(table, 0.8, voltage_scale=1.02) + StuckAt(1, 3, 1) + SoftErrors(1e-5, per="mac")
    plan = fault.draw(program, 0, 3, 4)
    plan.save(tmp_path / "plan")
    loaded = FaultPlan.load(tmp_path / "plan")
    assert loaded == plan
    assert loaded.conditions == plan.conditions
    assert hash(loaded) == hash(plan)
    assert loaded != plan.under(None)
    assert plan.under(at(table, 0.81).conditions) != plan
    device = ReferenceDevice(CONFIG, memory_bytes=1 << 24)
    first = Runtime(program, device).forward(x, plan=plan).out["fc3"]
    again = Runtime(program, device).forward(x, plan=Replay(loaded).draw(program, 0, 3, 9)).out["fc3"]
    assert np.array_equal(first, again)
    assert Replay(loaded).conditions == plan.conditions
    assert set(Replay(loaded).sites) == {"mac", "clock", "stuck"}


def test_parts_of_a_plan_keep_its_conditions(program: Program, table: Table) -> None:
    plan = (at(table, 0.8) + SoftErrors(1e-4)).draw(program, 0, 4, 1)
    assert plan.images(1, 2).conditions == plan.conditions
    assert plan.at(0, "feature").counted_from(1).conditions == plan.conditions
    assert not FaultPlan.of(program.names).under(plan.conditions).empty
    assert FaultPlan.of(program.names).empty
    assert (FaultPlan.of(program.names) + plan).conditions == plan.conditions


def test_damaged_conditions_are_refused() -> None:
    for text in ("", "{}", "[]", '{"clock": {"table": "{}"}, "stuck": []}', '{"clock": null, "stuck": [[1]]}'):
        with pytest.raises(ConditionError, match="not conditions"):
            Conditions.from_json(text)
    assert Conditions.from_json('{"clock": null, "stuck": [[1, "accumulator", 2, 0]]}') == StuckAt(1, 2, 0).conditions


def test_a_plan_with_damaged_conditions_is_refused(program: Program, tmp_path: Path) -> None:
    from safetensors.numpy import save

    from host.store.checked import tensors_digest

    plan = StuckAt(1, 2, 0).draw(program, 0, 1, 0)
    tensors = {name: getattr(plan, name).copy() for name in ("image", "layer", "site", "output", "step", "bit")}
    tensors["conditions"] = np.frombuffer(b"\xff", np.uint8)
    structure = "\n".join(program.names)
    metadata = {"format": "redline-plan", "version": "2", "layers": structure}
    metadata["sha256"] = tensors_digest(structure, tensors)
    (tmp_path / "plan").write_bytes(save(tensors, metadata))
    with pytest.raises(PlanError, match="damaged"):
        FaultPlan.load(tmp_path / "plan")


# -- the canary


class Deaf(ReferenceDevice):
    """Ignores conditions, as a build without instrumentation might."""

    def launch(self, launch):  # type: ignore[no-untyped-def]
        plan = launch.plan
        return super().launch(replace(launch, plan=None if plan is None else plan.under(None)))


@pytest.mark.parametrize("fault", ["clock", "stuck"])
def test_the_canary_notices_a_device_that_ignores_conditions(
    program: Program, table: Table, x: np.ndarray, fault: str
) -> None:
    # Also where the run's own clock is safe, and its own stuck bit hides.
    chosen = at(table, 1.0) if fault == "clock" else StuckAt(7, 31, 0)
    canary.check(Runtime(program, ReferenceDevice(CONFIG)), x, chosen.sites, chosen.conditions)
    with pytest.raises(CanaryError, match=f"a {fault} fault that must change the output did not, .*overclock=32"):
        canary.check(Runtime(program, Deaf(CONFIG)), x, chosen.sites, chosen.conditions)


def test_a_build_without_room_for_the_clock_is_refused_with_the_remedy(program: Program, table: Table) -> None:
    """`check_faults` alone: it needs no simulator."""
    from host.schedule.launch import schedule

    plan = at(table, 0.7).draw(program, 0, 1, 0)
    launch = schedule(program, range(5), 1, writeback=False).with_faults(plan, 0)
    groups = int(launch.units[0].late_masks["group"].max()) + 1
    device = SimulationDevice.__new__(SimulationDevice)
    device.units = 1
    for room, fits in ((0, False), (groups - 1, False), (groups, True)):
        device.config = replace(CONFIG, overclock=room)
        here = launch.with_program(replace(program, config=device.config))
        if fits:
            check_faults(device, here)
            continue
        with pytest.raises(DeviceError, match=rf"late or stuck bits in {groups} groups.*Config\(overclock=32\)"):
            check_faults(device, here)


@pytest.mark.parametrize(
    ("clock", "period"),
    [
        ({"mhz": 150}, 6666),
        ({"mhz": 175}, 5714),
        ({"mhz": 188}, 5319),
        ({"mhz": 200}, 5000),
        ({"period_ns": 5.0009}, 5000),
    ],
    ids=str,
)
def test_a_period_is_rounded_down(clock: dict[str, float], period: int) -> None:
    # 1e6 / 150 = 6666.67, 1e6 / 175 = 5714.29
    assert Overclock(**clock, beyond_model=True).period_ps == period


@pytest.mark.parametrize("bank", [name for name in bank_names(8) if name != "accumulator"])
def test_a_tree_bank_adds_the_products_that_the_contract_says(bank: str) -> None:
    # One channel at a time is 8, its weight 1: the sum loses bit 3 where the bank lies on the channel's way.
    config = Config(lanes=8, vec=8, overclock=MOST_GROUPS)
    layer = replace(
        random_case(0, 0).program.layers[0], name="l", sources=("input",), source_channels=(8,), in_shape=(8, 1, 8),
        out_channels=1, kernel=(1, 1), stride=(1, 1), padding=(0, 0), in_frac=0, weight_frac=(0,), out_frac=0,
        channels=None, groups=1, operator="convolution", relu=False, pool=None, fold=None, upper=127,
        placement="accelerator",
    )  # fmt: skip
    one, zero = np.ones((1, 8, 1, 1), np.int8), np.zeros(1, np.int32)
    program = Program(config, (layer,), {"l": one}, {"l": zero}, layer.in_shape, 0)
    x = np.zeros((1, 8, 1, 8), np.int8)
    x[0, range(8), 0, range(8)] = 8
    plan = StuckAt(0, 3, 0, bank).draw(program, 0, 1, 0)
    found = Runtime(program, ReferenceDevice(config)).forward(x, plan=plan).out["l"].reshape(-1)
    level, at = (int(part) for part in bank.split("_")[1:])
    assert found.tolist() == [0 if element >> level == at else 8 for element in range(8)]
