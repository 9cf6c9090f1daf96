# amaranth: UnusedElaboratable=no
# (What a constructor refuses is never used.)

"""A board's top level: memory and registers reached through its serial line, and what cannot be built."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ClockCycles, Timer

from hw.boards.top import BoardTop
from hw.config import INTERFACE_VERSION, Config, ConfigError
from hw.link import protocol
from hw.link.protocol import REQUEST, Op, Status
from hw.registers import OFFSET
from hw.verilog import without_zeroing
from sim.bench import component_verilog, run_bench
from sim.streams import start
from tests.hw.link.line import framed, noise, receive, send, unframed

CONFIG = Config(lanes=2, vec=4, feature_bytes=256, weight_bytes=256, port_bits=32, pool_columns=4)
MEMORY = 3 * 4096
CYCLES = 4


@pytest.mark.parametrize("single_port", [False, True], ids=["two ports", "one port"])
def test_a_host_reaches_memory_and_registers(single_port: bool) -> None:
    top = BoardTop(CONFIG, MEMORY, CYCLES * 1e6, 1_000_000, inbox_bytes=512, single_port=single_port)
    run_bench(without_zeroing(component_verilog(top, "board")), "board", "tests.hw.boards.test_top")


def test_refuses_what_cannot_be_built() -> None:
    with pytest.raises(ConfigError, match="memory_bytes must be a multiple of 4096 of at most 4 GiB, not 5000"):
        BoardTop(CONFIG, 5000, 12e6, 1_000_000)
    with pytest.raises(ConfigError, match="inbox_bytes must be a power of two, at least 512, not 1000"):
        BoardTop(CONFIG, MEMORY, 12e6, 1_000_000, inbox_bytes=1000)
    with pytest.raises(ConfigError, match=r"not 4e\+06"):
        BoardTop(CONFIG, MEMORY, 12e6, 4_000_000)


class Host:
    """The other end of the line, one request at a time."""

    def __init__(self, dut: Any) -> None:
        self.dut, self.heard, self.seq = dut, bytearray(), 77
        cocotb.start_soon(receive(dut.tx, CYCLES, self.heard))

    async def raw(self, sent: bytes, bits: int = 400) -> list[bytes]:
        """What comes back for some bytes, until the line has been silent for a while."""
        self.heard.clear()
        await send(self.dut.rx, sent, CYCLES)
        before = -1
        while before != len(self.heard):
            before = len(self.heard)
            await ClockCycles(self.dut.clk, bits * CYCLES)
        return unframed(bytes(self.heard))

    async def ask(self, op: Op, count: int = 0, address: int = 0, data: bytes = b"") -> tuple[int, bytes]:
        """A request's status and data."""
        self.seq = (self.seq + 1) % 256
        (answer,) = await self.raw(framed(REQUEST.pack(self.seq, op, count, address) + data))
        assert answer[:2] == bytes([self.seq, op])
        return answer[-1], answer[2:-1]


@cocotb.test()
async def does_as_it_is_told(dut: Any) -> None:
    rng = random.Random(random.random())
    dut.rx.value = 1
    await start(dut)
    await Timer(100, "ns")
    host = Host(dut)
    # Before a session, nothing is done.
    (answer,) = await host.raw(framed(REQUEST.pack(1, Op.RESET, 0, 0)))
    assert answer[-1] == Status.CLOSED
    assert await host.ask(Op.OPEN, 0, 0x12345678) == (Status.OK, bytes(4))
    assert int(dut.led_open.value) == 1

    words = {name: await host.ask(Op.GET, offset) for name, offset in protocol.OFFSET.items()}
    expected = {"magic": int.from_bytes(b"RLNK", "little"), "version": protocol.VERSION, "memory_bytes": MEMORY}
    expected |= {"clock_hz": 4_000_000, "baud": 1_000_000, "inbox_bytes": 511, "outside": 0}
    assert words == {name: (Status.OK, value.to_bytes(4, "little")) for name, value in expected.items()}
    own_hash = replace(CONFIG).hash.to_bytes(8, "little")
    assert await host.ask(Op.GET, OFFSET["config_hash_lo"]) == (Status.OK, own_hash[:4])
    assert await host.ask(Op.GET, OFFSET["config_hash_hi"]) == (Status.OK, own_hash[4:])
    version = INTERFACE_VERSION.to_bytes(4, "little")
    assert await host.ask(Op.GET, OFFSET["interface_version"]) == (Status.OK, version)
    assert await host.ask(Op.PUT, OFFSET["jobs"], 0xDEADBEEF) == (Status.OK, b"\xef\xbe\xad\xde")
    assert await host.ask(Op.GET, OFFSET["jobs"]) == (Status.OK, b"\xef\xbe\xad\xde")
    assert (await host.ask(Op.PUT, protocol.OFFSET["magic"], 0))[0] == Status.REFUSED
    assert (await host.ask(Op.GET, 0x1FC))[0] == Status.REFUSED

    model = bytearray(MEMORY)
    for low in range(0, MEMORY, protocol.MOST_DATA):
        model[low : low + protocol.MOST_DATA] = noise(rng, len(model[low : low + protocol.MOST_DATA]))
        data = bytes(model[low : low + protocol.MOST_DATA])
        assert await host.ask(Op.WRITE, len(data), low, data) == (Status.OK, b"")
    for _ in range(10):
        at, count = rng.randrange(MEMORY - 64), rng.randrange(64)
        model[at : at + count] = rng.randbytes(count)
        assert await host.ask(Op.WRITE, count, at, bytes(model[at : at + count])) == (Status.OK, b"")
    for at, count in ((0, 240), (1, 7), (MEMORY - 5, 5), (4093, 9)):
        assert await host.ask(Op.READ, count, at) == (Status.OK, bytes(model[at : at + count]))
    # Outside memory, and nothing inside changes.
    for at in (MEMORY, 1 << 20, (1 << 32) - 4):
        assert (await host.ask(Op.WRITE, 4, at, b"1234"))[0] == Status.REFUSED
        assert (await host.ask(Op.READ, 4, at))[0] == Status.REFUSED
    assert (await host.ask(Op.READ, 8, MEMORY - 4))[0] == Status.REFUSED
    assert await host.ask(Op.READ, 8, 0) == (Status.OK, bytes(model[:8]))

    # Garbage costs nothing but a word about it, whatever it is; then the link works on.
    assert not int(dut.led_error.value)
    for _ in range(5):
        for answer in await host.raw(noise(rng, 40) + b"\x7e"):
            assert answer[-1] == Status.DAMAGED
        assert await host.ask(Op.READ, 8, 0) == (Status.OK, bytes(model[:8]))
    assert int(dut.led_error.value)
    assert (await host.ask(Op.RESET))[0] == Status.OK
    assert not int(dut.led_error.value)
    assert await host.ask(Op.GET, OFFSET["jobs"]) == (Status.OK, bytes(4)), "the reset leaves arguments behind"
    assert await host.ask(Op.READ, 8, 0) == (Status.OK, bytes(model[:8])), "the reset changes memory"
