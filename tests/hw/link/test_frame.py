"""Frames: taken off a stream of garbage and put on again; what is damaged, or has no room, leaves no trace."""

from __future__ import annotations

import os
import random
from typing import Any

import cocotb
import pytest
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from cocotb.triggers import RisingEdge

from hw.link.frame import PIECE, Deframer, Framer
from hw.link.inbox import Inbox
from sim.bench import component_verilog, run_bench
from sim.streams import start, stream_get, stream_put
from tests.hw.link.line import FLAG, framed, noise, pieces, strobes, unframed

DEPTH = 64
PAUSES = (0.0, 0.5)


class Arrivals(wiring.Component):
    """A deframer and an inbox: bytes to sound frames."""

    def __init__(self) -> None:
        super().__init__(
            {
                "bytes": In(stream.Signature(8)),
                "error": In(1),
                "content": Out(stream.Signature(PIECE)),
                "damaged": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.deframer = deframer = Deframer()
        m.submodules.inbox = inbox = Inbox(DEPTH)
        connect(m, flipped(self.bytes), deframer.bytes)
        connect(m, deframer.content, inbox.arriving)
        connect(m, inbox.content, flipped(self.content))
        m.d.comb += [
            deframer.error.eq(self.error),
            inbox.accept.eq(deframer.accept),
            inbox.reject.eq(deframer.reject),
            self.damaged.eq(inbox.damaged),
        ]
        return m


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("which", ["arrivals", "framer"])
def test_moves_frames(which: str, pause: float) -> None:
    component = Arrivals() if which == "arrivals" else Framer()
    parameters = {"WHICH": which, "PAUSE": pause}
    run_bench(component_verilog(component, "frames"), "frames", "tests.hw.link.test_frame", parameters=parameters)


def on(which: str) -> Any:
    """A cocotb test that runs only on that component."""
    return cocotb.test(skip=os.environ.get("WHICH") != which)


def set_up() -> tuple[float, random.Random]:
    return float(os.environ["PAUSE"]), random.Random(random.random())


@on("framer")
async def puts_content_into_frames(dut: Any) -> None:
    pause, rng = set_up()
    dut.content__valid.value = dut.bytes__ready.value = 0
    await start(dut)
    contents = [b"\x7e", b"\x7d\x7e", b"123456789"] + [noise(rng, rng.randrange(1, 40)) for _ in range(40)]
    wanted = b"".join(framed(content) for content in contents)
    sent = [piece for content in contents for piece in pieces(content)]
    cocotb.start_soon(stream_put(dut, "content", sent, rng=rng, pause=pause))
    assert bytes(await stream_get(dut, "bytes", len(wanted), rng=rng, pause=pause)) == wanted
    assert unframed(wanted) == contents


class Arrival:
    """The line's end of `Arrivals`, and the frames that come out of it."""

    def __init__(self, dut: Any, pause: float, rng: random.Random) -> None:
        self.dut, self.pause, self.rng = dut, pause, rng
        self.frames: list[bytes] = []
        self.damaged: list[int] = []
        self.taking = True

    async def begin(self) -> None:
        self.dut.bytes__valid.value = self.dut.error.value = self.dut.content__ready.value = 0
        await start(self.dut)
        cocotb.start_soon(self._take())
        cocotb.start_soon(strobes(self.dut, "damaged", "damaged", self.damaged))

    async def _take(self) -> None:
        frame = bytearray()
        while True:
            if not self.taking:
                await RisingEdge(self.dut.clk)
                continue
            (piece,) = await stream_get(self.dut, "content", 1, rng=self.rng, pause=self.pause)
            frame.append(piece & 0xFF)
            if piece >> 8:
                self.frames.append(bytes(frame))
                frame.clear()

    async def send(self, raw: bytes, error_at: int | None = None) -> None:
        """Bytes, as a line brings them: some cycles apart."""
        for at, byte in enumerate(raw):
            await stream_put(self.dut, "bytes", [byte])
            self.dut.error.value = int(at == error_at)
            await RisingEdge(self.dut.clk)
            self.dut.error.value = 0
            for _ in range(self.rng.randrange(4) if self.pause else 0):
                await RisingEdge(self.dut.clk)

    async def settle(self) -> None:
        """Until all that arrived has been taken."""
        for _ in range(8 * DEPTH):
            await RisingEdge(self.dut.clk)


@on("arrivals")
async def sound_frames_pass_and_no_others(dut: Any) -> None:
    """Garbage, cut frames, flipped bits and lost stop bits between sound frames."""
    pause, rng = set_up()
    arrival = Arrival(dut, pause, rng)
    await arrival.begin()
    wanted, damaged = [], 0
    for _ in range(150):
        content = noise(rng, rng.randrange(1, 20))
        frame = bytearray(framed(content))
        kind = rng.choice(["sound", "sound", "flip", "cut", "garbage", "error", "empty"])
        if kind == "sound":
            await arrival.send(bytes(frame))
            wanted.append(content)
        elif kind == "flip":
            frame[rng.randrange(1, len(frame) - 1)] ^= 1 << rng.randrange(8)
            await arrival.send(bytes(frame))
        elif kind == "cut":
            await arrival.send(bytes(frame[: rng.randrange(2, len(frame) - 1)]) + bytes([FLAG]))
        elif kind == "garbage":
            await arrival.send(noise(rng, rng.randrange(1, 20)) + bytes([FLAG]))
        elif kind == "error":
            await arrival.send(bytes(frame), error_at=rng.randrange(1, len(frame) - 1))
        else:
            await arrival.send(bytes([FLAG] * rng.randrange(1, 4)))
        if kind in ("flip", "cut", "error"):
            damaged += 1
            # Damage that looks like flags makes several broken frames of one, never none.
            assert arrival.damaged, kind
        if kind in ("sound", "empty"):
            assert not arrival.damaged, kind
        arrival.damaged.clear()
    await arrival.settle()
    assert arrival.frames == wanted
    assert damaged > 20


@on("arrivals")
async def a_frame_without_room_is_forgotten_whole(dut: Any) -> None:
    pause, rng = set_up()
    arrival = Arrival(dut, pause, rng)
    await arrival.begin()
    for _ in range(5):
        arrival.taking = False
        await arrival.settle()
        contents = [noise(rng, 20) for _ in range(5)]
        for content in contents:
            await arrival.send(framed(content))
        # Its 63 bytes hold three; and a frame that would fit behind them comes in.
        assert len(arrival.damaged) == 2
        arrival.taking = True
        await arrival.settle()
        await arrival.send(framed(b"afterwards"))
        await arrival.settle()
        assert arrival.frames == [*contents[:3], b"afterwards"]
        arrival.frames.clear()
        arrival.damaged.clear()
        await arrival.send(framed(noise(rng, DEPTH + 1)))
        assert len(arrival.damaged) == 1
        arrival.damaged.clear()
