"""Coroutines that drive and read Amaranth streams in cocotb benches, with random back-pressure."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from cocotb.clock import Clock
from cocotb.handle import SimHandleBase
from cocotb.triggers import ClockCycles, RisingEdge

PERIOD_NS = 10


class StreamError(AssertionError):
    """A stream broke the protocol: what it offered changed or vanished before it was taken."""


def port(dut: Any, stream: str, member: str) -> Any:
    """The port of one member of a stream (or of its payload): Amaranth flattens names with two underscores."""
    handle = dut[f"{stream}__{member}"]
    assert isinstance(handle, SimHandleBase)
    return handle


async def start(dut: Any, *, clock: str = "clk", reset: str = "rst", cycles: int = 3) -> None:
    """Start the clock and hold the (active high) reset for some cycles."""
    dut[reset].value = 1
    Clock(dut[clock], PERIOD_NS, "ns").start()
    await ClockCycles(dut[clock], cycles)
    dut[reset].value = 0
    await RisingEdge(dut[clock])


async def _pause(dut: Any, clock: str, rng: random.Random, probability: float) -> None:
    while rng.random() < probability:
        await RisingEdge(dut[clock])


async def stream_put(
    dut: Any,
    stream: str,
    items: Iterable[int],
    *,
    rng: random.Random | None = None,
    pause: float = 0.0,
    clock: str = "clk",
) -> None:
    """Offer items to an input stream, one after the other, and return when the last is taken.

    Parameters
    ----------
    dut : handle of the top level
    stream : str
        Name of the stream; its ports are `{stream}__payload`, `__valid` and `__ready`.
    items : iterable of int
        Payloads, as bit patterns.
    rng : random.Random, optional
        Decides the pauses.
    pause : float
        Probability, per cycle, of waiting before the next item.
    clock : str
        Name of the clock port.
    """
    rng = rng or random.Random(0)
    payload, valid, ready = (port(dut, stream, member) for member in ("payload", "valid", "ready"))
    for item in items:
        await _pause(dut, clock, rng, pause)
        payload.value = int(item)
        valid.value = 1
        await RisingEdge(dut[clock])
        while not int(ready.value):
            await RisingEdge(dut[clock])
        valid.value = 0


async def stream_get(
    dut: Any,
    stream: str,
    count: int,
    *,
    rng: random.Random | None = None,
    pause: float = 0.0,
    clock: str = "clk",
) -> list[int]:
    """Take `count` items from an output stream; their payloads as bit patterns.

    Checks while it makes the stream wait that what is offered stays, as the protocol demands.

    Parameters
    ----------
    dut, stream, rng, clock
        As for `stream_put`.
    count : int
    pause : float
        Probability, per cycle, of not being ready.

    Raises
    ------
    StreamError
        If an offer changes or vanishes before it is taken.
    """
    rng = rng or random.Random(0)
    payload, valid, ready = (port(dut, stream, member) for member in ("payload", "valid", "ready"))
    items: list[int] = []
    offered: int | None = None
    while len(items) < count:
        taking = rng.random() >= pause
        ready.value = int(taking)
        await RisingEdge(dut[clock])
        now = int(payload.value) if int(valid.value) else None
        if offered is not None and now != offered:
            what = "vanished" if now is None else f"changed to {now:#x}"
            raise StreamError(f"{stream} offered {offered:#x}, which {what} before it was taken (item {len(items)})")
        if taking and now is not None:
            items.append(now)
        offered = None if taking else now
    ready.value = 0
    return items
