"""Frames on the line, as `hw.link.protocol` defines them: made, and taken off a stream of bytes."""

from __future__ import annotations

import zlib

from hw.link.protocol import CRC_BYTES, ESCAPE, FLAG, FLIP, MOST_DATA

_FLAG, _ESCAPE = bytes([FLAG]), bytes([ESCAPE])
_ESCAPED = {byte: bytes([ESCAPE, byte ^ FLIP]) for byte in (FLAG, ESCAPE)}

MOST_FRAME = 2 * (MOST_DATA + 64)
"""Bytes between two flags; every one may have to be escaped."""


def encode(content: bytes) -> bytes:
    """A frame as it is sent, with the flags around it."""
    raw = content + zlib.crc32(content).to_bytes(CRC_BYTES, "little")
    # Escapes first: those that stand for flags are not to be escaped again.
    return _FLAG + raw.replace(_ESCAPE, _ESCAPED[ESCAPE]).replace(_FLAG, _ESCAPED[FLAG]) + _FLAG


def decode(piece: bytes) -> bytes | None:
    """Content of what lay between two flags; None if it is damaged."""
    first, *others = piece.split(_ESCAPE)
    if not all(others):  # an escape with nothing, or with another escape after it
        return None
    raw = first + b"".join(bytes([part[0] ^ FLIP]) + part[1:] for part in others)
    content, crc = raw[:-CRC_BYTES], raw[-CRC_BYTES:]
    if not content or zlib.crc32(content).to_bytes(CRC_BYTES, "little") != crc:
        return None
    return content


class Deframer:
    """Takes frames off a stream of bytes, whatever lies between them."""

    def __init__(self) -> None:
        self._rest = b""

    def push(self, received: bytes) -> list[bytes | None]:
        """Frames that these bytes complete, in order: their content, None for a damaged one."""
        *pieces, self._rest = (self._rest + received).split(_FLAG)
        if len(self._rest) > MOST_FRAME:
            self._rest = _ESCAPE  # whatever follows up to the next flag is damaged
        return [decode(piece) for piece in pieces if piece]

    def clear(self) -> None:
        """Forget the frame under way."""
        self._rest = b""
