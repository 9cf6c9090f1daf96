"""The memory port: arbiters keep every client's order under back-pressure, and bursts cover a region exactly."""

from __future__ import annotations

import os
import random
from typing import Any

import cocotb
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from cocotb.triggers import ReadOnly, RisingEdge

from hw.axi import BOUNDARY, MAX_BEATS, BurstReader, ReadArbiter, WriteArbiter
from hw.config import Config
from sim.streams import start, stream_get, stream_put
from tests.hw.stage import DEEP, PAUSES, WIDE, in_bench, run_stage, split, until

CLIENTS = 3
STAGES = ("read", "write", "bursts")


class FlatArbiter(wiring.Component):
    """An arbiter with its array of clients as members `client_0`, `client_1`, …: flat names for the bench."""

    def __init__(self, arbiter: wiring.Component) -> None:
        self._arbiter = arbiter
        members = dict(arbiter.signature.members)
        clients = members.pop("clients")  # its `signature` is as seen from inside: already flipped
        members |= {f"client_{index}": wiring.Out(clients.signature) for index in range(clients.dimensions[0])}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.arbiter = arbiter = self._arbiter
        for name, member in self.signature.members.items():
            outer = getattr(self, name)
            if name.startswith("client_"):
                wiring.connect(m, wiring.flipped(outer), arbiter.clients[int(name[-1])])
            elif member.is_port:
                inner = getattr(arbiter, name)
                m.d.comb += inner.eq(outer) if member.flow is wiring.In else outer.eq(inner)
            else:
                wiring.connect(m, getattr(arbiter, name), wiring.flipped(outer))
        return m


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("config", [WIDE, DEEP], ids=["wide", "deep"])
@pytest.mark.parametrize("which", STAGES)
def test_moves_everything_in_order(which: str, config: Config, pause: float) -> None:
    make = {
        "read": lambda config: FlatArbiter(ReadArbiter(config, CLIENTS)),
        "write": lambda config: FlatArbiter(WriteArbiter(config, CLIENTS)),
        "bursts": lambda config: BurstReader(config, MAX_BEATS, 9),
    }[which]
    run_stage(make, config, "tests.hw.test_axi", pause, WHICH=STAGES.index(which))


def on(which: str) -> Any:
    """A cocotb test that runs only on that stage."""
    return cocotb.test(skip=os.environ.get("WHICH") != str(STAGES.index(which)))


def requests(rng: random.Random, client: int, count: int) -> list[tuple[int, int]]:
    """(address, beats) of random bursts; the address tells the client and the burst apart."""
    return [(client << 32 | index << 12, rng.randrange(1, 9)) for index in range(count)]


def bursts(config: Config, asked: list[tuple[int, int]]) -> list[int]:
    return [addr | beats - 1 << config.address_bits for addr, beats in asked]


def beats_of(addr: int, beats: int, last_bit: int, strobes: int = 0) -> list[int]:
    """Read or write data that tells its burst and beat."""
    return [(addr >> 12) << 8 | beat | strobes | (beat == beats - 1) << last_bit for beat in range(beats)]


@on("read")
async def answers_reach_who_asked(dut: Any) -> None:
    """Each client's bursts are answered completely and in its order."""
    config, pause, rng = in_bench()
    dut.urgent.value = 0
    await start(dut)
    dut.urgent.value = rng.randrange(1 << CLIENTS)
    asked = [requests(rng, client, 20) for client in range(CLIENTS)]
    wanted = [bursts(config, each) for each in asked]
    for client in range(CLIENTS):
        cocotb.start_soon(
            stream_put(dut, f"client_{client}__request", wanted[client], rng=random.Random(client), pause=pause)
        )

    async def memory() -> None:
        other = random.Random(rng.random())
        for _ in range(20 * CLIENTS):
            (request,) = await stream_get(dut, "ar", 1, rng=other, pause=pause)
            addr, beats = split(config, request)
            queue.extend(beats_of(addr, beats, config.port_bits))

    async def answers() -> None:
        other = random.Random(rng.random())
        while True:
            if queue:
                await stream_put(dut, "r", [queue.pop(0)], rng=other, pause=pause)
            else:
                await RisingEdge(dut.clk)

    queue: list[int] = []
    cocotb.start_soon(memory())
    cocotb.start_soon(answers())
    expected = [
        [b for addr, beats in asked[client] for b in beats_of(addr, beats, config.port_bits)]
        for client in range(CLIENTS)
    ]
    taking = [
        cocotb.start_soon(
            stream_get(dut, f"client_{client}__data", len(expected[client]), rng=random.Random(client + 9), pause=pause)
        )
        for client in range(CLIENTS)
    ]
    for client in range(CLIENTS):
        assert await taking[client] == expected[client], f"client {client}"


@on("read")
async def the_urgent_win(dut: Any) -> None:
    """An urgent client's burst goes out before all others; among equals, the lower index."""
    await start(dut)
    dut.urgent.value = 0
    for client in range(CLIENTS):
        dut[f"client_{client}__request__payload"].value = client << 12
    dut.ar__ready.value = 1
    for asking in range(1, 1 << CLIENTS):
        for urgent in range(1 << CLIENTS):
            dut.urgent.value = urgent
            for client in range(CLIENTS):
                dut[f"client_{client}__request__valid"].value = asking >> client & 1
            await ReadOnly()
            taken = [client for client in range(CLIENTS) if int(dut[f"client_{client}__request__ready"].value)]
            among = asking & urgent or asking
            assert taken == [next(client for client in range(CLIENTS) if among >> client & 1)], (asking, urgent)
            await RisingEdge(dut.clk)
            for client in range(CLIENTS):
                dut[f"client_{client}__request__valid"].value = 0
            # Answer it, so that the queue of bursts in flight does not fill.
            dut.r__valid.value, dut.r__payload.value = 1, 1 << len(dut.r__payload) - 1
            for client in range(CLIENTS):
                dut[f"client_{client}__data__ready"].value = 1
            await RisingEdge(dut.clk)
            await RisingEdge(dut.clk)
            dut.r__valid.value = 0
            await RisingEdge(dut.clk)


@on("write")
async def bursts_stay_whole(dut: Any) -> None:
    """The data of a burst follows its address unmixed, and `idle` comes with the last response."""
    config, pause, rng = in_bench()
    dut.b.value = 0
    await start(dut)
    last_bit, strobes = config.port_bits + config.port_bytes, (1 << config.port_bytes) - 1 << config.port_bits
    asked = [requests(rng, client, 12) for client in range(CLIENTS)]
    wanted = [bursts(config, each) for each in asked]
    for client in range(CLIENTS):
        data = [b for addr, beats in asked[client] for b in beats_of(addr, beats, last_bit, strobes)]
        cocotb.start_soon(
            stream_put(dut, f"client_{client}__request", wanted[client], rng=random.Random(client), pause=pause)
        )
        cocotb.start_soon(stream_put(dut, f"client_{client}__data", data, rng=random.Random(client + 5), pause=pause))
    seen: list[list[tuple[int, int]]] = [[] for _ in range(CLIENTS)]
    for _ in range(12 * CLIENTS):
        (request,) = await stream_get(dut, "aw", 1, rng=rng, pause=pause)
        addr, beats = split(config, request)
        seen[addr >> 32].append((addr, beats))
        assert await stream_get(dut, "w", beats, rng=rng, pause=pause) == beats_of(addr, beats, last_bit, strobes)
        assert not int(dut.idle.value), "a response is missing"
        dut.b.value = 1
        await RisingEdge(dut.clk)
        dut.b.value = 0
    assert seen == asked
    await until(dut, "idle")


@on("bursts")
async def cover_the_region(dut: Any) -> None:
    """Legal bursts that cover each region exactly, none before there is room for all of it."""
    config, pause, rng = in_bench()
    dut.room.value = 0
    await start(dut)
    room, asked = 0, 0

    async def give() -> None:
        nonlocal room
        while True:
            dut.room.value = min(room, 511)
            await RisingEdge(dut.clk)
            room -= int(dut.taken.value)
            assert room >= 0, "a burst without room"
            if rng.random() < 0.5:
                room += rng.randrange(4)

    cocotb.start_soon(give())
    size = config.port_bytes
    for beats in (1, 2, MAX_BEATS, MAX_BEATS + 1, 300, rng.randrange(1, 600)):
        addr = rng.randrange(3 * BOUNDARY // size) * size
        await stream_put(dut, "start", [addr | beats << config.address_bits])
        at, left = addr, beats
        while left:
            (request,) = await stream_get(dut, "request", 1, rng=rng, pause=pause)
            start_addr, count = split(config, request)
            assert start_addr == at
            assert count <= min(left, MAX_BEATS)
            assert at // BOUNDARY == (at + count * size - 1) // BOUNDARY
            at, left, asked = at + count * size, left - count, asked + count
        await until(dut, "idle")
