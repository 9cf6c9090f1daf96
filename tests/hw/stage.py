"""What the stage benches share: running one on a component, descriptors as bit patterns, and a memory behind a port."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from amaranth.lib import wiring
from cocotb.triggers import RisingEdge

from hw import descriptor
from hw.axi import BOUNDARY
from hw.config import Config
from sim.bench import component_verilog, run_bench
from sim.streams import stream_get, stream_put

WIDE = Config(lanes=8, vec=4, port_bits=64, feature_bytes=4096, weight_bytes=1024, pool_columns=16, saboteur=True)
"""Two feature words an output, two words a beat."""
DEEP = Config(lanes=4, vec=8, port_bits=128, feature_bytes=4096, weight_bytes=2048, pool_columns=16, saboteur=True)
"""Two outputs a feature word, two words a beat."""
NARROW = Config(
    lanes=4,
    vec=4,
    port_bits=32,
    feature_bytes=1024,
    weight_bytes=512,
    pool_columns=16,
    address_bits=17,
    count_bits=12,
    extent_bits=7,
)
"""A word a beat, and less than a parameter record; few bits of everything."""
CONFIGS = (WIDE, DEEP, NARROW)
MICROCODE = replace(NARROW, feature_bytes=256, weight_bytes=256, pool_columns=4, address_bits=20, control="microcode")
PIPECNN = replace(WIDE, arithmetic="pipecnn")
PAUSES = (0.5, pytest.param(0.0, marks=pytest.mark.slow))
"""How likely each stream pauses. Without pauses is how the whole accelerator runs in many fast tests."""


def run_stage(
    make: Callable[[Config], wiring.Component], config: Config, module: str, pause: float, **extra: int
) -> None:
    """Run the cocotb tests in `module` on `make(config)`, with streams paused at the given probability."""
    parameters = {"CONFIG": json.dumps(asdict(config)), "PAUSE": pause, **extra}
    run_bench(component_verilog(make(config), "stage"), "stage", module, parameters=parameters)


def in_bench() -> tuple[Config, float, random.Random]:
    """Inside a bench: its configuration, pause probability and random generator."""
    return Config(**json.loads(os.environ["CONFIG"])), float(os.environ["PAUSE"]), random.Random(random.random())


def kept(config: Config, values: Mapping[str, Any]) -> int:
    """A descriptor as the bit pattern of a `job` port: of each field the bits that the build keeps."""
    widths = {64: config.address_bits, 32: config.count_bits, 16: config.extent_bits, 8: 8}
    pattern = at = 0
    for field in descriptor.FIELDS:
        if field.name != "reserved0":
            width = 15 if field.name == "flags" else widths[field.bits]
            pattern |= (int(values[field.name]) & (1 << width) - 1) << at
            at += width
    return pattern


def job(config: Config, **values: int) -> int:
    """The pattern of a descriptor with these values, which the build must hold; what is not given is zero."""
    record = np.zeros((), descriptor.DTYPE)
    for name, value in values.items():
        record[name] = value
    assert descriptor.too_wide(record.reshape(1), config) is None, values
    return kept(config, {name: record[name] for name in descriptor.DTYPE.names or ()})


def split(config: Config, request: int) -> tuple[int, int]:
    """(address, beats) of a burst as a `request` port has it."""
    return request & (1 << config.address_bits) - 1, (request >> config.address_bits) + 1


async def pulse(dut: Any, name: str) -> None:
    """Raise a port for one cycle."""
    dut[name].value = 1
    await RisingEdge(dut["clk"])
    dut[name].value = 0


async def serve_reads(dut: Any, prefix: str, memory: bytes, config: Config, rng: random.Random, pause: float) -> None:
    """Answer a ReadPort from `memory`, for ever; asserts that bursts are legal."""
    while True:
        (request,) = await stream_get(dut, f"{prefix}__request", 1, rng=rng, pause=pause)
        addr, beats = split(config, request)
        size = config.port_bytes
        assert addr % size == 0, f"burst at {addr:#x} is not aligned to a beat of {size} bytes"
        assert addr // BOUNDARY == (addr + beats * size - 1) // BOUNDARY, f"burst at {addr:#x} x{beats} crosses 4 KB"
        answer = []
        for beat in range(beats):
            data = int.from_bytes(memory[addr + beat * size : addr + (beat + 1) * size].ljust(size, b"\0"), "little")
            answer.append(data | (beat == beats - 1) << config.port_bits)
        await stream_put(dut, f"{prefix}__data", answer, rng=rng, pause=pause)


async def serve_writes(
    dut: Any, prefix: str, memory: bytearray, config: Config, rng: random.Random, pause: float
) -> None:
    """Take a WritePort's bursts into `memory`, for ever; asserts that bursts are legal."""
    size = config.port_bytes
    while True:
        (request,) = await stream_get(dut, f"{prefix}__request", 1, rng=rng, pause=pause)
        addr, beats = split(config, request)
        assert addr % size == 0, f"burst at {addr:#x} is not aligned to a beat of {size} bytes"
        assert addr // BOUNDARY == (addr + beats * size - 1) // BOUNDARY, f"burst at {addr:#x} x{beats} crosses 4 KB"
        for beat in range(beats):
            (word,) = await stream_get(dut, f"{prefix}__data", 1, rng=rng, pause=pause)
            strobe, last = word >> config.port_bits & ((1 << size) - 1), word >> config.port_bits + size
            assert last == (beat == beats - 1), f"beat {beat} of {beats} has last={last}"
            for byte in range(size):
                if strobe >> byte & 1:
                    memory[addr + beat * size + byte] = word >> 8 * byte & 0xFF


async def until(dut: Any, name: str, value: int = 1, cycles: int = 20000) -> None:
    """Wait until a port has a value."""
    for _ in range(cycles):
        await RisingEdge(dut["clk"])
        if int(dut[name].value) == value:
            return
    raise AssertionError(f"{name} has not become {value} within {cycles} cycles")


def pack(values: Any, bits: int = 8) -> int:
    """Signed values, first in the low bits, as one bit pattern."""
    pattern = 0
    for index, value in enumerate(values):
        pattern |= (int(value) & ((1 << bits) - 1)) << bits * index
    return pattern


def unpack(pattern: int, count: int, bits: int = 8) -> list[int]:
    """The signed values of a bit pattern."""
    values = [pattern >> bits * index & ((1 << bits) - 1) for index in range(count)]
    return [value - (1 << bits) if value >> bits - 1 else value for value in values]


def wrap32(value: int) -> int:
    """Two's complement in 32 bits."""
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def requantised(accumulator: int, shift: int, relu: bool, upper: int) -> int:
    """The contract's requantisation in exact integers."""
    half = 1 << shift - 1 if shift else 0
    return min(max((accumulator + half) >> shift, 0 if relu else -128), upper)


def requantised_as_pipecnn(accumulator: int, shift: int, bias: int, relu: bool, upper: int) -> int:
    """PipeCNN's requantisation in exact integers: an 8-bit bias after the shift, unless that saturated."""
    half = 1 << shift - 1 if shift else 0
    value = (accumulator + half) >> shift
    value = min(max(value, -128), 127) if not -128 <= value <= 127 else (value + bias + 128) % 256 - 128
    return min(max(value, 0) if relu else value, upper)
