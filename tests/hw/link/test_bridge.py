"""The bridge: requests are executed in order and once, whatever is repeated, missing or damaged before it."""

from __future__ import annotations

import os
import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import FallingEdge, RisingEdge

from hw.link.bridge import Bridge
from hw.link.protocol import OFFSET, REQUEST, Op, Status
from hw.registers import AP_START
from hw.registers import OFFSET as CONTROL
from sim.bench import component_verilog, run_bench
from sim.streams import start, stream_get, stream_put
from tests.hw.link.line import pieces

MEMORY = 64
IDENTITY = {"magic": 0x11223344, "version": 9, "memory_bytes": MEMORY, "clock_hz": 5, "baud": 6, "inbox_bytes": 7}


@pytest.mark.parametrize("pause", [0.0, 0.5])
def test_executes_requests(pause: float) -> None:
    run_bench(
        component_verilog(Bridge(IDENTITY), "bridge"),
        "bridge",
        "tests.hw.link.test_bridge",
        parameters={"PAUSE": pause},
    )


class Board:
    """What lies behind a bridge: memory, a register file, and a count of what is done to them."""

    def __init__(self, dut: Any) -> None:
        self.dut, self.pause, self.rng = dut, float(os.environ["PAUSE"]), random.Random(random.random())
        self.memory, self.registers = bytearray(MEMORY), {}
        self.done: list[tuple[Any, ...]] = []
        self.starts = self.resets = 0

    async def begin(self) -> None:
        dut = self.dut
        for name in ("request__valid", "response__ready", "damaged", "outside", "beyond", "peeked"):
            dut[name].value = 0
        for name in ("aw__ready", "w__ready", "ar__ready", "b__valid", "b__payload", "r__valid"):
            dut[f"control__{name}"].value = 0
        dut.poke__ready.value = dut.peek__ready.value = 0
        await start(dut)
        for task in (self._bytes(), self._writes(), self._reads(), self._pulses()):
            cocotb.start_soon(task)

    async def _bytes(self) -> None:
        """Memory, as `Ram` answers: a byte to read in the cycle after its address."""
        dut = self.dut
        while True:
            dut.poke__ready.value = int(self.rng.random() >= self.pause)
            dut.peek__ready.value = int(self.rng.random() >= self.pause)
            # `beyond` is of this cycle's address, which is settled in its middle.
            await FallingEdge(dut.clk)
            poke, peek = int(dut.poke__payload.value), int(dut.peek__payload.value)
            poking = int(dut.poke__valid.value) and int(dut.poke__ready.value)
            peeking = int(dut.peek__valid.value) and int(dut.peek__ready.value)
            at = (poke & 0xFFFFFFFF) if int(dut.poke__valid.value) else peek
            dut.beyond.value = int(at >= MEMORY)
            await RisingEdge(dut.clk)
            dut.peeked.value = self.rng.randrange(256)
            if poking:
                self.done.append(("poke", poke & 0xFFFFFFFF))
                if at < MEMORY:
                    self.memory[at] = poke >> 32
            elif peeking:
                dut.peeked.value = self.memory[at] if at < MEMORY else 0

    async def _writes(self) -> None:
        dut = self.dut
        while True:
            await RisingEdge(dut.clk)
            take = self.rng.random() >= self.pause
            if not (take and int(dut.control__aw__valid.value) and int(dut.control__w__valid.value)):
                continue
            dut.control__aw__ready.value = dut.control__w__ready.value = 1
            await RisingEdge(dut.clk)
            dut.control__aw__ready.value = dut.control__w__ready.value = 0
            word = int(dut.control__w__payload.value)
            assert word >> 32 == 0xF
            self.done.append(("put", int(dut.control__aw__payload.value), word & 0xFFFFFFFF))
            self.registers[int(dut.control__aw__payload.value)] = word & 0xFFFFFFFF
            await stream_put(dut, "control__b", [0], rng=self.rng, pause=self.pause)

    async def _reads(self) -> None:
        """Every read of a register gives another value, so that a second one would show."""
        while True:
            (offset,) = await stream_get(self.dut, "control__ar", 1, rng=self.rng, pause=self.pause)
            self.done.append(("get", offset))
            value = self.registers.get(offset, 0)
            self.registers[offset] = value + 1
            await stream_put(self.dut, "control__r", [value], rng=self.rng, pause=self.pause)

    async def _pulses(self) -> None:
        while True:
            await RisingEdge(self.dut.clk)
            self.starts += int(self.dut.started.value)
            self.resets += int(self.dut.reset_accelerator.value)

    async def ask(self, seq: int, op: int, count: int = 0, address: int = 0, data: bytes = b"") -> tuple[int, ...]:
        """A request's answer: number, command, data, status."""
        content = REQUEST.pack(seq % 256, op, count, address) + data
        cocotb.start_soon(stream_put(self.dut, "request", pieces(content), rng=self.rng, pause=self.pause))
        return await self.answer()

    async def answer(self) -> Any:
        """The next answer."""
        raw = bytearray()
        while True:
            (piece,) = await stream_get(self.dut, "response", 1, rng=self.rng, pause=self.pause)
            raw.append(piece & 0xFF)
            if piece >> 8:
                return raw[0], raw[1], bytes(raw[2:-1]), raw[-1]

    async def damage(self) -> None:
        """Tell of a damaged frame."""
        self.dut.damaged.value = 1
        await RisingEdge(self.dut.clk)
        self.dut.damaged.value = 0


def word(value: int) -> bytes:
    return value.to_bytes(4, "little")


@cocotb.test()
async def nothing_is_done_before_a_session(dut: Any) -> None:
    board = Board(dut)
    await board.begin()
    for op in (Op.READ, Op.WRITE, Op.GET, Op.PUT, Op.RESET, 99):
        assert (await board.ask(1, op, 4, 0, b"data" if op == Op.WRITE else b""))[1:] == (0, b"", Status.CLOSED)
    assert not board.done
    assert not board.resets
    assert not int(dut.opened.value)
    assert await board.ask(200, Op.OPEN, 0, 0xABCD1234) == (200, Op.OPEN, word(0), Status.OK)
    assert await board.ask(7, Op.OPEN, 0, 5) == (7, Op.OPEN, word(0xABCD1234), Status.OK)
    assert await board.ask(7, Op.OPEN, 0, 5) == (7, Op.OPEN, word(5), Status.OK)
    assert int(dut.opened.value)


@cocotb.test()
async def requests_are_executed_in_order_and_once(dut: Any) -> None:
    """Random requests, some repeated, some too early, against a model."""
    board = Board(dut)
    await board.begin()
    rng, last = board.rng, 250
    await board.ask(last, Op.OPEN, 0, 1)
    memory, model = bytearray(MEMORY), {}
    for _ in range(150):
        op = rng.choice([Op.READ, Op.WRITE, Op.GET, Op.PUT])
        before = len(board.done)
        if rng.random() < 0.2:
            ahead = rng.randrange(2, 128)
            data = rng.randbytes(3) if op == Op.WRITE else b""
            answer = await board.ask(last + ahead, op, 4, 0, data)
            assert answer == (last % 256, 0, b"", Status.OUT_OF_ORDER)
            assert len(board.done) == before
            continue
        last += 1
        low = rng.randrange(MEMORY)
        count = rng.randrange(0, MEMORY - low + 1)
        offset, value = rng.choice([0x10, 0x14, 0x1C]), rng.getrandbits(32)
        data = rng.randbytes(count)
        if op == Op.READ:
            request, wanted = (op, count, low), bytes(memory[low : low + count])
        elif op == Op.WRITE:
            request, wanted = (op, count, low, data), b""
            memory[low : low + count] = data
        elif op == Op.GET:
            request, wanted = (op, offset), word(model.get(offset, 0))
            model[offset] = model.get(offset, 0) + 1
        else:
            request, wanted = (op, offset, value), word(value)
            model[offset] = value
        for again in range(rng.choice([1, 1, 2, 3])):
            found = await board.ask(last, *request)
            assert found == (last % 256, op, wanted, Status.OK), f"time {again + 1}"
        if rng.random() < 0.2 and last > 255:
            # Older ones, too, but not what their registers said.
            old = last - rng.randrange(1, 5)
            before = len(board.done)
            assert (await board.ask(old, Op.WRITE, 2, 0, b"ab")) == (old % 256, Op.WRITE, b"", Status.OK)
            assert (await board.ask(old, Op.GET, 0x10))[1:] == (0, b"", Status.OUT_OF_ORDER)
            assert len(board.done) == before
        assert board.memory == memory
        assert {name: board.registers[name] for name in model} == model
    assert last > 256, "the numbers have not wrapped"


@cocotb.test()
async def registers_of_board_and_accelerator(dut: Any) -> None:
    board = Board(dut)
    await board.begin()
    await board.ask(0, Op.OPEN)
    for seq, (name, value) in enumerate(IDENTITY.items(), 1):
        assert await board.ask(seq, Op.GET, OFFSET[name]) == (seq, Op.GET, word(value), Status.OK)
    assert await board.ask(7, Op.GET, OFFSET["outside"]) == (7, Op.GET, word(0), Status.OK)
    dut.outside.value = 1
    assert await board.ask(8, Op.GET, OFFSET["outside"]) == (8, Op.GET, word(1), Status.OK)
    assert (await board.ask(9, Op.GET, 0x1F0))[-1] == Status.REFUSED
    assert (await board.ask(10, Op.PUT, OFFSET["magic"], 1))[-1] == Status.REFUSED
    assert (await board.ask(11, 77))[-1] == Status.REFUSED
    assert not board.done
    assert (await board.ask(12, Op.PUT, CONTROL["ap_ctrl"], AP_START))[-1] == Status.OK
    assert (await board.ask(13, Op.RESET))[-1] == Status.OK
    for _ in range(3):
        assert (await board.ask(13, Op.RESET))[-1] == Status.OK
        assert (await board.ask(12, Op.PUT, CONTROL["ap_ctrl"], AP_START))[-1] == Status.OK
    assert (board.starts, board.resets) == (1, 1)
    assert (await board.ask(14, Op.PUT, CONTROL["ap_ctrl"], 0))[-1] == Status.OK
    assert board.starts == 1


@cocotb.test()
async def what_is_outside_memory_is_told(dut: Any) -> None:
    board = Board(dut)
    await board.begin()
    await board.ask(0, Op.OPEN)
    assert (await board.ask(1, Op.WRITE, 4, MEMORY - 2, b"abcd"))[-1] == Status.REFUSED
    assert (await board.ask(2, Op.READ, 4, MEMORY - 2)) == (2, Op.READ, b"ab\0\0", Status.REFUSED)
    assert (await board.ask(3, Op.READ, 2, MEMORY - 2)) == (3, Op.READ, b"ab", Status.OK)


@cocotb.test()
async def damage_is_told_once_requests_are_done(dut: Any) -> None:
    board = Board(dut)
    await board.begin()
    await board.ask(41, Op.OPEN)
    await board.damage()
    assert await board.answer() == (41, 0, b"", Status.DAMAGED)
    # A frame too short to be a request is passed over.
    await stream_put(dut, "request", pieces(b"1234567"), rng=board.rng, pause=board.pause)
    assert (await board.ask(42, Op.PUT, 0x10, 3)) == (42, Op.PUT, word(3), Status.OK)
    assert board.done == [("put", 0x10, 3)]
