"""The pooling stage under back-pressure: every window, stride and border, several planes after each other."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import numpy as np
import pytest

from hw.config import Config
from hw.descriptor import Flag
from hw.pool import Pool
from sim.streams import start, stream_get, stream_put
from tests.hw.stage import DEEP, PAUSES, WIDE, in_bench, job, pack, pulse, run_stage, unpack, until


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("config", [WIDE, DEEP], ids=["wide", "deep"])
def test_pools_like_numpy_for_every_window(config: Config, pause: float) -> None:
    run_stage(Pool, config, "tests.hw.test_pool", pause)


def pooled(plane: np.ndarray, kernel: int, stride: int, pad: int) -> np.ndarray:
    """Max pooling of (H, W, LANES), by definition."""
    height, width, _ = plane.shape
    rows, columns = ((size + 2 * pad - kernel) // stride + 1 for size in (height, width))
    padded = np.pad(plane, ((pad, pad), (pad, pad), (0, 0)), constant_values=-128)
    return np.array(
        [
            [
                padded[stride * y : stride * y + kernel, stride * x : stride * x + kernel].max((0, 1))
                for x in range(columns)
            ]
            for y in range(rows)
        ]
    )


@cocotb.test()
async def pools_every_plane(dut: Any) -> None:
    """Jobs of random geometry, each with several (group, image) planes."""
    config, pause, rng = in_bench()
    await start(dut)
    numbers = np.random.default_rng(rng.randrange(2**32))
    windows = [(kernel, stride, pad) for kernel in (2, 3) for stride in (1, 2, 3) for pad in (0, 1)]
    for window in [*windows, None, *rng.sample(windows, 3)]:
        kernel, stride, pad = window or (1, 1, 0)
        height, width = (max(rng.randrange(1, 10), kernel - 2 * pad) for _ in range(2))
        groups, images = rng.randrange(1, 3), rng.randrange(1, 3)
        planes = numbers.integers(-128, 128, (groups * images, height, width, config.lanes), np.int8)
        planes[rng.randrange(len(planes))] = -128
        expected = [pooled(plane, kernel, stride, pad) for plane in planes]
        dut.job.value = job(
            config,
            flags=Flag.POOL if window else 0,
            pool_kernel=kernel,
            pool_stride=stride,
            pool_pad=pad,
            out_h=height,
            out_w=width,
            pool_h=expected[0].shape[0],
            pool_w=expected[0].shape[1],
            groups_out=groups,
            images=images,
        )
        await pulse(dut, "start")
        pixels = [pack(pixel) for pixel in planes.reshape(-1, config.lanes)]
        outputs = [pixel.tolist() for plane in expected for pixel in plane.reshape(-1, config.lanes)]
        putting = cocotb.start_soon(stream_put(dut, "input", pixels, rng=random.Random(rng.random()), pause=pause))
        got = await stream_get(dut, "output", len(outputs), rng=random.Random(rng.random()), pause=pause)
        await putting
        await until(dut, "done")
        assert [unpack(pixel, config.lanes) for pixel in got] == outputs, (window, height, width)
