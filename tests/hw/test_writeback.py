"""Write-back: bursts that are legal, at any alignment, and leave exactly the feature layout in memory."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import numpy as np
import pytest

from hw.axi import BOUNDARY
from hw.config import Config
from hw.layout import ceil_div, output_groups, reorder_features
from hw.writeback import CHUNK, WriteBack
from sim.streams import start, stream_put
from tests.hw.stage import CONFIGS, PAUSES, in_bench, pack, pulse, run_stage, serve_writes, until


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("config", CONFIGS, ids=["wide", "deep", "narrow"])
def test_writes_the_feature_layout_in_legal_bursts(config: Config, pause: float) -> None:
    run_stage(WriteBack, config, "tests.hw.test_writeback", pause)


@cocotb.test()
async def writes_every_output(dut: Any) -> None:
    """Jobs of random geometry, across 4 KB boundaries and longer than a chunk; of some columns, from within a word."""
    config, pause, rng = in_bench()
    memory = bytearray()
    await start(dut)
    numbers = np.random.default_rng(rng.randrange(2**32))
    sizes = [
        (1, 1),
        (5, CHUNK // 4),
        (CHUNK, 1),
        (3, CHUNK),
        *((rng.randrange(1, 8), rng.randrange(1, 8)) for _ in range(3)),
    ]
    memory.extend(b"\xa5" * 8 * BOUNDARY)
    serving = cocotb.start_soon(serve_writes(dut, "port", memory, config, random.Random(rng.random()), pause))
    for enabled in (True, False):
        for height, width in sizes:
            memory[:] = b"\xa5" * len(memory)
            channels, images = rng.randrange(1, config.channel_align + 2), rng.randrange(1, 3)
            # Padding channels are zero, as the array delivers them: their weights and bias are.
            computed = output_groups(channels, config.lanes, config.vec) * config.lanes
            features = np.zeros((images, computed, height, width), np.int8)
            features[:, :channels] = numbers.integers(-128, 128, (images, channels, height, width))
            beyond = rng.choice((0, 0, rng.randrange(1, 5)))  # columns that the job leaves out
            layout = reorder_features(features[:, :channels], config.vec)
            layout = np.pad(layout, ((0, 0), (0, 0), (0, 0), (0, beyond), (0, 0)), constant_values=-0x5B)
            # With several outputs a word, a job may begin with any of them.
            within = config.lanes * rng.randrange(max(1, config.vec // config.lanes))
            layout[:, 0, :, :, :within] = -0x5B
            base = BOUNDARY - config.vec * rng.randrange(1, 12)
            expected = bytearray(memory)
            if enabled:
                expected[base : base + layout.nbytes] = layout.tobytes()
            geometry = {"enable": enabled, "width": width, "height": height, "images": images, "base": base + within}
            geometry["gap"] = beyond * config.vec
            geometry |= {
                "groups": ceil_div(channels, config.vec),
                "plane": layout.strides[1],
                "image": layout.strides[0],
            }
            for name, value in geometry.items():
                dut[name].value = int(value)
            await pulse(dut, "start")
            order = features.reshape(images, -1, config.lanes, height, width).transpose(1, 0, 3, 4, 2)
            order = order[within // config.lanes :]
            outputs = [pack(pixel) for pixel in order.reshape(-1, config.lanes)]
            await stream_put(dut, "input", outputs, rng=random.Random(rng.random()), pause=pause)
            await until(dut, "idle")
            for _ in range(8):  # what the port handed over last is in memory a few cycles later
                await until(dut, "idle")
            assert memory == expected, (enabled, channels, images, height, width, base)
    serving.cancel()
