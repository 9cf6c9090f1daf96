# amaranth: UnusedElaboratable=no
# (What a constructor refuses is never used.)

"""On-chip memory: bursts and single bytes agree with a plain array, under random back-pressure on all of them."""

from __future__ import annotations

import os
import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import FallingEdge, ReadWrite, RisingEdge

from hw.axi import MAX_BEATS
from hw.boards.ram import PAGE_BYTES, Ram
from hw.config import Config, ConfigError
from hw.verilog import without_zeroing
from sim.bench import component_verilog, run_bench
from sim.streams import start, stream_get, stream_put

MEMORY = 3 * PAGE_BYTES
CONFIGS = (
    Config(lanes=2, vec=4, feature_bytes=256, weight_bytes=256, port_bits=32, pool_columns=4, address_bits=24),
    Config(lanes=4, vec=4, feature_bytes=4096, weight_bytes=1024, port_bits=128, pool_columns=32),
)


@pytest.mark.parametrize("single_port", [False, True], ids=["two ports", "one port"])
@pytest.mark.parametrize("config", CONFIGS, ids=["narrow", "wide"])
def test_agrees_with_an_array(config: Config, single_port: bool) -> None:
    verilog = without_zeroing(component_verilog(Ram(config, MEMORY, single_port=single_port), "ram"))
    for pause in (0.0, 0.5):
        parameters = {"BYTES": config.port_bytes, "ADDRESS_BITS": config.address_bits, "PAUSE": pause}
        run_bench(verilog, "ram", "tests.hw.boards.test_ram", parameters=parameters)


def test_refuses_sizes_that_are_not_whole_pages() -> None:
    for size in (0, 1000, PAGE_BYTES + 4, 1 << 33):
        with pytest.raises(ConfigError, match=f"multiple of 4096 of at most 4 GiB, not {size}"):
            Ram(CONFIGS[0], size)


class Memory:
    """The ram's ports, and the array that it should be."""

    def __init__(self, dut: Any) -> None:
        self.dut, self.pause, self.size = dut, float(os.environ["PAUSE"]), int(os.environ["BYTES"])
        self.address_bits = int(os.environ["ADDRESS_BITS"])
        self.rng = random.Random(random.random())
        self.model = bytearray(self.rng.randbytes(MEMORY))
        self.responses = self.outside = 0

    async def begin(self) -> None:
        dut = self.dut
        for name in ("ar", "aw", "w", "poke", "peek"):
            dut[f"{name}__valid"].value = 0
        dut.r__ready.value = 0
        await start(dut)
        cocotb.start_soon(self._pulses())

    async def _pulses(self) -> None:
        while True:
            await RisingEdge(self.dut.clk)
            self.responses += int(self.dut.b.value)
            self.outside += int(self.dut.outside.value)

    def burst(self, low: int, high: int) -> tuple[int, int]:
        """A legal burst within pages: address, beats."""
        at = self.rng.randrange(low, high, self.size)
        most = min(MAX_BEATS, (PAGE_BYTES - at % PAGE_BYTES) // self.size, (high - at) // self.size)
        return at, self.rng.randrange(1, most + 1)

    async def put(self, name: str, *items: int) -> None:
        await stream_put(self.dut, name, items, rng=self.rng, pause=self.pause)

    async def write(self, at: int, beats: int, keep: bool = True) -> None:
        """A burst of random data and strobes."""
        before = self.responses
        await self.put("aw", at | beats - 1 << self.address_bits)
        for beat in range(beats):
            data = self.rng.randbytes(self.size)
            strobes = self.rng.choice([(1 << self.size) - 1, self.rng.getrandbits(self.size)])
            last = (beat == beats - 1) << 9 * self.size
            await self.put("w", int.from_bytes(data, "little") | strobes << 8 * self.size | last)
            for byte in range(self.size if keep else 0):
                if strobes >> byte & 1:
                    self.model[at + beat * self.size + byte] = data[byte]
        await RisingEdge(self.dut.clk)
        await RisingEdge(self.dut.clk)
        assert self.responses == before + 1

    async def read(self, at: int, beats: int) -> bytes:
        """A burst."""
        await self.put("ar", at | beats - 1 << self.address_bits)
        found = await stream_get(self.dut, "r", beats, rng=self.rng, pause=self.pause)
        assert [beat >> 8 * self.size for beat in found] == [0] * (beats - 1) + [1]
        mask = (1 << 8 * self.size) - 1
        return b"".join((beat & mask).to_bytes(self.size, "little") for beat in found)

    async def peek(self, at: int) -> int:
        """A byte; it is there in the cycle after its address is taken."""
        await self.put("peek", at)
        await ReadWrite()
        return int(self.dut.peeked.value)

    async def poke(self, at: int, byte: int) -> None:
        await self.put("poke", at | byte << 32)


@cocotb.test()
async def bursts_and_bytes_side_by_side(dut: Any) -> None:
    memory = Memory(dut)
    await memory.begin()
    rng, third = memory.rng, MEMORY // 3
    for at, byte in enumerate(memory.model):
        if memory.pause == 0 or at < 200:
            await memory.put("poke", at | byte << 32)
    if memory.pause:
        for at in range(200, MEMORY):
            dut.poke__payload.value = at | memory.model[at] << 32
            dut.poke__valid.value = 1
            await RisingEdge(dut.clk)
        dut.poke__valid.value = 0

    # Each of three works on a page of its own, all at a time.
    async def reads() -> None:
        for _ in range(60):
            at, beats = memory.burst(0, third)
            assert await memory.read(at, beats) == memory.model[at : at + beats * memory.size]

    async def writes() -> None:
        for _ in range(60):
            await memory.write(*memory.burst(third, 2 * third))

    async def bytes_() -> None:
        for _ in range(400):
            at = rng.randrange(2 * third, 3 * third)
            if rng.random() < 0.5:
                memory.model[at] = rng.randrange(256)
                await memory.poke(at, memory.model[at])
            else:
                assert await memory.peek(at) == memory.model[at], f"byte {at:#x}"

    tasks = [cocotb.start_soon(task) for task in (reads(), writes(), bytes_())]
    for task in tasks:
        await task
    assert not memory.outside
    for at in range(0, MEMORY, 16 * memory.size):
        assert await memory.read(at, 16) == memory.model[at : at + 16 * memory.size]


@cocotb.test()
async def what_is_outside_is_written_nowhere_and_told(dut: Any) -> None:
    memory = Memory(dut)
    await memory.begin()
    memory.model = bytearray(await memory.read(0, 16) + await memory.read(MEMORY - 16 * memory.size, 16))
    for number, at in enumerate((MEMORY, MEMORY + PAGE_BYTES, 1 << 20, (1 << memory.address_bits) - PAGE_BYTES), 1):
        await memory.write(at, 4, keep=False)
        assert memory.outside == 2 * number - 1
        await memory.read(at, 4)
        assert memory.outside == 2 * number
    for at in (MEMORY, 1 << 20, (1 << 32) - 1):
        dut.poke__payload.value = at | 0x5A << 32
        dut.poke__valid.value = 1
        await FallingEdge(dut.clk)
        assert int(dut.beyond.value)
        await RisingEdge(dut.clk)
        dut.poke__valid.value = 0
        await FallingEdge(dut.clk)
        assert not int(dut.beyond.value)
    assert memory.model == await memory.read(0, 16) + await memory.read(MEMORY - 16 * memory.size, 16)
