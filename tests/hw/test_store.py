"""The store: outputs land in the feature buffer in the layout that the next job reads, padding groups dropped."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import RisingEdge, Timer

from hw.config import Config
from hw.descriptor import Flag
from hw.layout import ceil_div, output_groups, reorder_features
from hw.store import Store
from sim.streams import start, stream_put
from tests.hw.stage import CONFIGS, PAUSES, in_bench, job, pack, pulse, run_stage


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("config", CONFIGS, ids=["wide", "deep", "narrow"])
def test_stores_in_the_feature_layout(config: Config, pause: float) -> None:
    run_stage(Store, config, "tests.hw.test_store", pause)


def output_stream(features: np.ndarray, lanes: int, vec: int) -> list[int]:
    """(N, C, H, W) as the array delivers it: output group, image, row, column; padding lanes carry rubbish."""
    images, channels, height, width = features.shape
    groups = output_groups(channels, lanes, vec)
    full = np.full((images, groups * lanes, height, width), 0x55, np.int8)
    full[:, :channels] = features
    order = full.reshape(images, groups, lanes, height, width).transpose(1, 0, 3, 4, 2)
    return [pack(pixel) for pixel in order.reshape(-1, lanes)]


async def watch(dut: Any, config: Config, buffer: np.ndarray) -> None:
    """Apply the write stream to a buffer of (words, vec) bytes, for ever."""
    bits = (config.feature_words - 1).bit_length()
    dut.write__ready.value = 1
    while True:
        await RisingEdge(dut.clk)
        if int(dut.write__valid.value):
            payload = int(dut.write__payload.value)
            addr, data, enable = payload & (1 << bits) - 1, payload >> bits, payload >> bits + 8 * config.vec
            for byte in range(config.vec):
                if enable >> byte & 1:
                    buffer[addr, byte] = data >> 8 * byte & 0xFF


@cocotb.test()
async def stores_every_output(dut: Any) -> None:
    """Jobs of random geometry; the buffer must hold the layout, and nothing else may change."""
    config, pause, rng = in_bench()
    await start(dut)
    numbers = np.random.default_rng(rng.randrange(2**32))
    for storing in (True, True, True, True, False, True):
        channels, images = rng.randrange(1, 2 * config.channel_align + 2), rng.randrange(1, 3)
        height, width = rng.randrange(1, 5), rng.randrange(1, 5)
        features = numbers.integers(-128, 128, (images, channels, height, width), np.int8)
        groups = ceil_div(channels, config.vec)
        base = rng.randrange(8)
        buffer = np.full((config.feature_words, config.vec), 0xA5, np.uint8)
        expected = buffer.copy()
        if storing:
            layout = reorder_features(features, config.vec).view(np.uint8).reshape(-1, config.vec)
            expected[base : base + len(layout)] = layout
        dut.job.value = job(
            config,
            flags=Flag.STORE if storing else 0,
            pool_h=height,
            pool_w=width,
            images=images,
            dst_base=base,
            dst_plane=height * width,
            dst_image=groups * height * width,
            dst_groups=groups,
        )
        await pulse(dut, "start")
        watching = cocotb.start_soon(watch(dut, config, buffer))
        outputs = output_stream(features, config.lanes, config.vec)
        await stream_put(dut, "input", outputs, rng=random.Random(rng.random()), pause=pause)
        await Timer(1, "ns")  # the watcher has seen the last edge too
        watching.cancel()
        # Channels beyond the last are padding that the array fills with its own zeros; here they carry rubbish.
        used = np.zeros((config.feature_words, config.vec), bool)
        mask = reorder_features(np.ones_like(features), config.vec).reshape(-1, config.vec)
        used[base : base + len(mask)] = mask.astype(bool)
        inside = np.zeros_like(used)
        inside[base : base + len(mask)] = storing
        assert np.array_equal(buffer[used & inside], expected[used & inside]), (channels, images, height, width)
        assert (buffer[~inside] == 0xA5).all(), "a word outside the output was written"
