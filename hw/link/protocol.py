"""The host link's protocol: frames, commands, answers and board registers, for gateware and host alike.

A frame is `FLAG, bytes, CRC-32, FLAG`, in asynchronous HDLC-like framing (RFC 1662): FLAG and ESCAPE within it are sent
as ESCAPE and the byte with bit 5 flipped, so that FLAG means the end of a frame wherever it is seen, and a receiver is
in step again after any garbage. The CRC (CRC-32/ISO-HDLC, low byte first) is over the bytes before they are escaped.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

VERSION = 1
"""Raised whenever frames, commands or board registers change meaning."""
MAGIC = int.from_bytes(b"RLNK", "little")

FLAG, ESCAPE, FLIP = 0x7E, 0x7D, 0x20
CRC_BYTES = 4

REQUEST = struct.Struct("<BBHI")
"""Head of a request: sequence number, `Op`, count, address. Data follows, for WRITE."""
RESPONSE = struct.Struct("<BB")
"""Head of an answer: sequence number and `Op` of the request. Data follows, then one byte `Status`."""
VALUE = struct.Struct("<I")
"""Data of an answer to OPEN, GET, PUT and RESET (of the latter two it means nothing)."""
MOST_DATA = 240
"""Most bytes of memory in a frame."""


class Op(IntEnum):
    """Commands.

    A request is executed if its number follows that of the last one executed. One at or before the last (by less than
    half of all numbers) has been executed already, and is answered again: a READ reads again, a WRITE, PUT or RESET
    does nothing, a GET gives the value that it gave if it was the very last. OPEN is always executed.
    """

    OPEN = 1
    """Begin a session: the address becomes its token, the number the last one executed. Gives the token before."""
    READ = 2
    """`count` bytes of memory from the address on."""
    WRITE = 3
    """The data, to memory from the address on."""
    GET = 4
    """The register at offset `count`."""
    PUT = 5
    """The address field's value, to the register at offset `count`."""
    RESET = 6
    """Reset the accelerator, whatever it is doing. Memory keeps what it holds."""


class Status(IntEnum):
    """What became of a request."""

    OK = 0
    DAMAGED = 1
    """A frame came damaged (or did not fit the inbox) and was dropped; the number is that of the last one executed."""
    OUT_OF_ORDER = 2
    """A request before this one is missing; it was dropped."""
    CLOSED = 3
    """No session has been opened since the board was reset; it was dropped."""
    REFUSED = 4
    """There is no such command or register, or part of it was outside memory. The part inside was executed."""


class Register(NamedTuple):
    """One 32-bit register of the board, read-only, beside those of the accelerator (`hw.registers`)."""

    name: str
    offset: int
    meaning: str


REGISTERS = (
    Register("magic", 0x100, "MAGIC"),
    Register("version", 0x104, "VERSION"),
    Register("memory_bytes", 0x108, "size of device memory"),
    Register("clock_hz", 0x10C, "the accelerator's clock"),
    Register("baud", 0x110, "of the serial line"),
    Register("inbox_bytes", 0x114, "requests (heads and data) that may be on their way at a time"),
    Register("outside", 0x118, "1 if the accelerator has touched memory that is not there, since its last reset"),
)

OFFSET = {register.name: register.offset for register in REGISTERS}
"""Byte offset by register name."""
SPAN_BITS = 9
"""Bits of an offset that the bridge decodes; the upper half is the board's own."""
