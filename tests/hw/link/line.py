"""What the link's benches share: a serial line, and frames by RFC 1662 and Python's own CRC."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable
from typing import Any

from cocotb.triggers import RisingEdge, Timer

from sim.streams import PERIOD_NS

FLAG, ESCAPE = 0x7E, 0x7D


def framed(content: bytes) -> bytes:
    """A frame on the line."""
    sent = bytearray([FLAG])
    for byte in content + zlib.crc32(content).to_bytes(4, "little"):
        sent += bytes([ESCAPE, byte ^ 0x20]) if byte in (FLAG, ESCAPE) else bytes([byte])
    return bytes([*sent, FLAG])


def unframed(sent: bytes) -> list[bytes]:
    """Content of the frames on a line; asserts that each is sound."""
    found = []
    for piece in sent.split(bytes([FLAG])):
        if not piece:
            continue
        raw = bytearray()
        escaped = False
        for byte in piece:
            if byte == ESCAPE:
                escaped = True
                continue
            raw.append(byte ^ (0x20 if escaped else 0))
            escaped = False
        content, crc = bytes(raw[:-4]), bytes(raw[-4:])
        assert zlib.crc32(content).to_bytes(4, "little") == crc, f"a frame of {piece.hex()} has a wrong CRC"
        found.append(content)
    return found


async def send(
    pin: Any, content: bytes, cycles: float, *, rng: random.Random | None = None, gap: float = 0.0, stop: int = 1
) -> None:
    """Bytes onto a line, `cycles` clock cycles a bit, up to `gap` bits apart; `stop` 0 breaks their stop bits."""
    rng = rng or random.Random(0)
    bit_ps = round(cycles * PERIOD_NS * 1000)
    for byte in content:
        for bit in (0, *(byte >> at & 1 for at in range(8)), stop):
            pin.value = bit
            await Timer(bit_ps, "ps")
        pin.value = 1
        if gap or not stop:
            await Timer(round(bit_ps * (gap * rng.random() + (2 if not stop else 0))) + 1, "ps")


async def receive(pin: Any, cycles: float, into: bytearray) -> None:
    """Bytes off a line, for ever; asserts that their stop bits are there."""
    bit_ps = round(cycles * PERIOD_NS * 1000)
    while True:
        while int(pin.value):
            await pin.value_change
        await Timer(round(1.5 * bit_ps), "ps")
        byte = 0
        for at in range(8):
            byte |= int(pin.value) << at
            await Timer(bit_ps, "ps")
        assert int(pin.value), "a byte has no stop bit"
        into.append(byte)


async def strobes(dut: Any, payload: str, valid: str, into: list[int]) -> None:
    """Payloads of a stream that is always ready, for ever."""
    while True:
        await RisingEdge(dut["clk"])
        if int(dut[valid].value):
            into.append(int(dut[payload].value))


def noise(rng: random.Random, count: int) -> bytes:
    """Random bytes, flags and escapes among them more often than by chance."""
    return bytes(rng.choice([rng.randrange(256), FLAG, ESCAPE, rng.randrange(256)]) for _ in range(count))


def pieces(content: Iterable[int]) -> list[int]:
    """Bytes as payloads of a stream of PIECE."""
    every = list(content)
    return [byte | (at == len(every) - 1) << 8 for at, byte in enumerate(every)]
