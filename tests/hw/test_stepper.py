"""The stepper: the contract's loop nest, however weights, parameters and room stall it."""

from __future__ import annotations

from typing import Any

import cocotb
import pytest
from cocotb.triggers import ReadOnly, RisingEdge

from hw.config import Config
from hw.descriptor import Flag
from hw.stepper import Stepper
from sim.streams import start
from tests.hw.stage import DEEP, PAUSES, WIDE, in_bench, job, run_stage

FIRST, LAST, GROUP, PADDING, FLIP = (1 << bit for bit in range(5))


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("config", [WIDE, DEEP], ids=["wide", "deep"])
def test_issues_the_contracts_loop_nest(config: Config, pause: float) -> None:
    run_stage(Stepper, config, "tests.hw.test_stepper", pause)


CHOICES = (
    0,
    Flag.STREAM,
    Flag.PARTIAL,
    Flag.CONTINUE | Flag.PARTIAL,
    Flag.CONTINUE | Flag.MORE,
    Flag.RESUME,
)


def walk(geometry: dict[str, int]) -> list[tuple[int, int | None, int]]:
    """(flags, feature address or None for padding, weight word in the job) of every step, by the definition."""
    kept = FIRST * (not geometry["flags"] & Flag.CONTINUE) | LAST * (not geometry["flags"] & Flag.PARTIAL)
    kept |= GROUP | PADDING
    g, word = geometry, 0
    steps = []
    per_group = g["groups_in"] * g["kernel_h"] * g["kernel_w"]
    for group in range(g["groups_out"]):
        for image in range(g["images"]):
            for oy in range(g["out_h"]):
                for ox in range(g["out_w"]):
                    step = 0
                    for z in range(g["groups_in"]):
                        for ky in range(g["kernel_h"]):
                            for kx in range(g["kernel_w"]):
                                y, x = oy * g["stride_y"] - g["pad_y"] + ky, ox * g["stride_x"] - g["pad_x"] + kx
                                inside = 0 <= y < g["in_h"] and 0 <= x < g["in_w"]
                                flags = FIRST * (step == 0) | LAST * (step == per_group - 1) | PADDING * (not inside)
                                flags |= GROUP * (step == image == oy == ox == 0)
                                base = g["src_base"] + group // g["src_period"] * g["src_step"]
                                plane = base + image * g["src_image"] + z * g["src_plane"]
                                row = (oy * g["stride_y"] - g["pad_y"]) * g["in_w"] + ky * g["src_tap"]
                                address = (plane + row + x) % g["words"] if inside else None
                                own = word if g["flags"] & Flag.STREAM else group * per_group + step
                                steps.append((flags & kept, address, own))
                                step, word = step + 1, word + 1
    return steps


@cocotb.test()
async def follows_the_loop_nest(dut: Any) -> None:
    """Jobs after each other: the weight pointer runs on, words are given up only when no output needs them any more."""
    config, pause, rng = in_bench()
    inputs = ("start", "clear", "hold", "hit", "weight_ready", "room", "params_available", "arriving", "rows")
    for name in inputs:
        dut[name].value = 0
    await start(dut)
    dut.clear.value = 1
    await RisingEdge(dut.clk)
    dut.clear.value = 0
    modulus, base = 2 * config.weight_words, 0
    for _ in range(12):
        flags = rng.choice(CHOICES)
        one = bool(flags & Flag.ONE)
        kernel_h, kernel_w = rng.randrange(1, 4), rng.randrange(1, 4)
        in_h, in_w = rng.randrange(kernel_h, 7), rng.randrange(kernel_w, 7)
        pad_y, pad_x = rng.randrange(kernel_h), rng.randrange(kernel_w)
        stride_y, stride_x = rng.randrange(1, 4), rng.randrange(1, 4)
        groups_in = rng.randrange(1, 3)
        geometry = {
            "flags": flags,
            "in_h": in_h,
            "in_w": in_w,
            "out_h": (in_h + 2 * pad_y - kernel_h) // stride_y + 1,
            "out_w": (in_w + 2 * pad_x - kernel_w) // stride_x + 1,
            "kernel_h": kernel_h,
            "kernel_w": kernel_w,
            "stride_y": stride_y,
            "stride_x": stride_x,
            "pad_y": pad_y,
            "pad_x": pad_x,
            "groups_in": groups_in,
            "groups_out": 1 if one else rng.randrange(1, 6),
            "images": 1 if one else rng.randrange(1, 3),
            "src_base": rng.randrange(9),
            "src_plane": in_h * in_w,
            "src_image": groups_in * in_h * in_w + rng.randrange(3),
            "src_tap": rng.choice((in_w, rng.randrange(2**32))),
            "src_step": rng.choice((0, in_h * in_w, rng.randrange(2**32))),
            "src_period": rng.randrange(1, 4),
        }
        extents = {"out_h": 1, "out_w": 1} if one else {}
        expected = walk({**geometry, **extents, "words": config.feature_words})
        per_group = groups_in * kernel_h * kernel_w
        outputs = len(expected) // per_group // geometry["groups_out"]
        dut.job.value = job(config, **geometry)
        dut.start.value = 1
        await RisingEdge(dut.clk)
        dut.start.value = 0
        issued, address, was_hit = 0, None, False
        rows_there, arriving = 0, rng.random() < 0.5
        while True:
            allowed = rng.random() >= pause
            for name in ("weight_ready", "room", "params_available"):
                dut[name].value = int(allowed or rng.random() < 0.5)
            dut.hold.value = int(not allowed and rng.random() < 0.2)
            if rng.random() < 0.1:  # more features arrive, or the rest of them
                rows_there, arriving = rows_there + rng.randrange(3), arriving and rng.random() < 0.9
            dut.arriving.value, dut.rows.value = int(arriving), rows_there
            hit = rng.random() < 0.3
            dut.hit.value = int(hit)
            await ReadOnly()
            if int(dut.valid.value):  # the step issued in the cycle before
                flags, want, _ = expected[issued - 1]
                assert int(dut.flags.value) == flags | FLIP * was_hit, f"flags of step {issued - 1} of {geometry}"
                assert want is None or address == want, f"address of step {issued - 1} of {geometry}"
            busy, was_hit = int(dut.busy.value), hit
            if busy:
                flags, _, word = expected[issued]
                assert int(dut.slot.value) == issued
                assert int(dut.weight_ptr.value) == (base + word) % modulus
                group, output = word // per_group, issued // per_group % outputs
                kept = word if output == outputs - 1 or geometry["flags"] & Flag.STREAM else group * per_group
                assert int(dut.keep_ptr.value) == (base + kept) % modulus
                assert int(dut.issued_last.value) == bool(flags & LAST)
                assert int(dut.issued_group.value) == bool(flags & GROUP)
                assert int(dut.weight_ready.value)
                assert not flags & LAST or int(dut.room.value)
                assert not flags & GROUP or int(dut.params_available.value)
                assert not int(dut.hold.value)
                oy = issued // per_group % outputs // geometry["out_w"] % geometry["out_h"]
                assert not arriving or oy * stride_y - pad_y + kernel_h <= rows_there, (
                    "a row is read before it is there"
                )
                address, issued = int(dut.feature_addr.value), issued + 1
            finished = int(dut.done.value) and issued == len(expected) and not int(dut.valid.value)
            await RisingEdge(dut.clk)
            if finished:
                break
        base += len(expected) if geometry["flags"] & Flag.STREAM else geometry["groups_out"] * per_group
