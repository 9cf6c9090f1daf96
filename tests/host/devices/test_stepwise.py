"""The reference's stepwise evaluation against a lane evaluated one bit at a time, and what its errors may depend on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from host.devices import stepwise
from host.devices.reference import ReferenceDevice, accumulators
from host.devices.runtime import Runtime
from host.faults.conditions import Clock, Conditions, StuckBit
from host.faults.models import SoftErrors
from host.faults.plan import FaultPlan
from host.program import integer
from host.program.arrangement import arrange_weights
from host.program.layers import Layer
from host.program.program import Program
from host.verification.cases import random_case
from host.verification.overclocked import OVERCLOCKED
from hw.config import Config
from tests.hw.golden import GoldenLane
from tests.hw.tables import random_table

CONFIG = Config(lanes=4, vec=4, port_bits=32)
LAYER = Layer(
    name="l", sources=("input",), in_shape=(6, 5, 6), out_channels=6, kernel=(2, 3), stride=(1, 2), padding=(1, 1),
    relu=False, pool=None, in_frac=0, weight_frac=(6,) * 6, out_frac=0,
)  # fmt: skip


def a_program(layer: Layer = LAYER, config: Config = CONFIG) -> Program:
    rng = np.random.default_rng(1)
    weight = rng.integers(-128, 128, layer.weight_shape).astype(np.int8)
    bias = rng.integers(-5000, 5000, layer.out_channels).astype(np.int32)
    return Program(config, (layer,), {"l": weight}, {"l": bias}, layer.in_shape, 0)


def images(count: int, layer: Layer = LAYER) -> np.ndarray:
    return np.random.default_rng(2).integers(-128, 128, (count, *layer.in_shape)).astype(np.int8)


def golden(program: Program, x: np.ndarray, plan: FaultPlan) -> np.ndarray:
    """Accumulators after the last step, by plain loops over rows, pixels, steps and bits."""
    layer, config = program.layers[0], program.config
    m, oh, ow = layer.conv_shape
    (kh, kw), (sy, sx), (py, px) = layer.kernel, layer.stride, layer.padding
    weights = arrange_weights(program.weights["l"], layer, config)  # (M, span, KH, KW, VEC)
    flips: dict[tuple[int, int, int], int] = {}
    for image, output, step, bit in zip(plan.image, plan.output, plan.step, plan.bit, strict=True):
        flips[int(image), int(output), int(step)] = flips.get((int(image), int(output), int(step)), 0) ^ 1 << int(bit)
    conditions = plan.conditions
    assert conditions is not None
    assert conditions.clock is not None
    stuck = {tuple(bit)[:3]: bit.value for bit in conditions.stuck}
    table, period = conditions.clock.delays, conditions.clock.period_ps
    result = np.zeros((len(x), m, oh, ow), np.int64)
    for n in range(len(x)):
        for channel in range(m):
            lane = GoldenLane(table, channel % config.lanes, period, stuck)  # type: ignore[arg-type]
            for oy in range(oh):
                lane.restart()
                for ox in range(ow):
                    step = 0
                    for z in range(weights.shape[1]):
                        for ky in range(kh):
                            for kx in range(kw):
                                y, c = oy * sy + ky - py, ox * sx + kx - px
                                inside = 0 <= y < x.shape[2] and 0 <= c < x.shape[3]
                                products = [
                                    int(x[n, z * config.vec + v, y, c]) * int(weights[channel, z, ky, kx, v])
                                    if inside and z * config.vec + v < x.shape[1]
                                    else 0
                                    for v in range(config.vec)
                                ]
                                flip = flips.get((n, (channel * oh + oy) * ow + ox, step), 0)
                                bias = int(program.biases["l"][channel])
                                result[n, channel, oy, ox] = lane.step(products, bias, step == 0, flip)
                                step += 1
    return result


@pytest.mark.parametrize("share", [1.0, 0.9, 0.75, 0.6])
def test_late_stuck_and_flipped_bits_are_those_of_the_golden_lane(share: float) -> None:
    program, x = a_program(), images(2)
    table = random_table(7, CONFIG)
    stuck = (StuckBit(0, "accumulator", 9, 1), StuckBit(1, "tree_1_1", 16, 0), StuckBit(2, "tree_2_0", 3, 1))
    conditions = Conditions(Clock(table, round(share * table.onset_ps), 1.0), stuck if share < 0.8 else ())
    plan = SoftErrors(0.01, per="mac").draw(program, 0, 2, 5).under(conditions)
    assert len(plan)
    found = accumulators(x, program.weights["l"], program.biases["l"], LAYER, plan, CONFIG)
    assert np.array_equal(found, golden(program, x, plan))
    safe = accumulators(x, program.weights["l"], program.biases["l"], LAYER, plan.under(None), CONFIG)
    assert np.array_equal(found, safe) == (share == 1.0)


def test_without_late_bits_it_is_the_plain_sum() -> None:
    program, x = a_program(), images(3)
    plan = SoftErrors(0.02, per="mac").draw(program, 0, 3, 1)
    stepped = stepwise.accumulate(x, program.weights["l"], program.biases["l"], LAYER, plan, {}, CONFIG)
    assert np.array_equal(stepped, accumulators(x, program.weights["l"], program.biases["l"], LAYER, plan, CONFIG))


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    program, x = a_program(), images(3)
    table = random_table(3, CONFIG)
    conditions = Conditions(Clock(table, round(0.7 * table.onset_ps), 1.0))
    plan = SoftErrors(0.02, per="mac").draw(program, 0, 3, 1).under(conditions)
    arguments = x, program.weights["l"], program.biases["l"], LAYER, plan, CONFIG
    whole = accumulators(*arguments)
    monkeypatch.setattr(stepwise, "CHUNK", 20)
    assert np.array_equal(accumulators(*arguments), whole)


def test_the_first_pixel_of_a_row_remembers_nothing() -> None:
    """One row of a picture alone gives the errors that it has within the picture."""
    layer = replace(LAYER, padding=(0, 0), stride=(1, 1))
    program, x = a_program(layer), images(2)
    table = random_table(3, CONFIG)
    plan = FaultPlan.of(("l",)).under(Conditions(Clock(table, round(0.65 * table.onset_ps), 1.0)))
    arguments = program.weights["l"], program.biases["l"]
    whole = accumulators(x, *arguments, layer, plan, CONFIG)
    for row in range(layer.conv_shape[1]):
        band = x[:, :, row : row + layer.kernel[0]]
        alone = replace(layer, in_shape=band.shape[1:], source_channels=())
        assert np.array_equal(accumulators(band, *arguments, alone, plan, CONFIG)[:, :, 0], whole[:, :, row])
    assert not np.array_equal(whole, integer.accumulate(x, *arguments, layer.stride, layer.padding))


@pytest.mark.parametrize("number", range(6))
def test_errors_depend_on_neither_batch_split_nor_units_nor_write_back(number: int) -> None:
    config = OVERCLOCKED[2]
    case = random_case(11, number, configs=(config,))
    x = np.concatenate([case.x] * 3)[:5]
    table = random_table(number, config)
    conditions = Conditions(Clock(table, round(0.75 * table.onset_ps), 1.0), (StuckBit(1, "accumulator", 4, 1),))
    plan = FaultPlan.of(case.program.names).under(conditions)
    last = case.program.names[-1]

    def run(images: np.ndarray, units: int, writeback: bool) -> np.ndarray:
        device = ReferenceDevice(config, memory_bytes=1 << 24, units=units)
        return Runtime(case.program, device).forward(images, plan=plan, writeback=writeback).out[last]

    whole = run(x, 1, True)
    assert np.array_equal(run(x, 2, False), whole)
    assert np.array_equal(np.concatenate([run(x[:2], 1, True), run(x[2:], 2, False)]), whole)
