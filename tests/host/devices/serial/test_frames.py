"""Frames: what is sent arrives, whatever its bytes and however it is cut; what was damaged does not."""

from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from host.devices.serial.frames import Deframer, decode, encode
from tests.host.devices.serial.model import stuff, unstuff

# Flags and escapes more often than by chance.
CONTENT = st.lists(st.one_of(st.integers(0, 255), st.sampled_from([0x7E, 0x7D, 0x5E, 0x5D])), min_size=1).map(bytes)


@given(CONTENT)
def test_frames_are_those_of_rfc_1662_with_pythons_crc(content: bytes) -> None:
    assert encode(content) == stuff(content)
    assert decode(stuff(content)[1:-1]) == content == unstuff(encode(content)[1:-1])


def test_a_frame_by_hand() -> None:
    # CRC-32's check value (of "123456789") is 0xCBF43926.
    assert zlib.crc32(b"123456789") == 0xCBF43926
    assert encode(b"123456789") == b"\x7e123456789\x26\x39\xf4\xcb\x7e"
    assert encode(b"\x7e\x7d")[1:5] == b"\x7d\x5e\x7d\x5d"


@given(st.lists(CONTENT, min_size=1, max_size=5), st.data())
def test_a_stream_may_be_cut_anywhere_and_hold_garbage_between_frames(frames: list[bytes], data: st.DataObject) -> None:
    garbage = [data.draw(st.binary(max_size=9)) for _ in frames]
    stream = b"".join(junk + encode(content) for junk, content in zip(garbage, frames, strict=True))
    deframer, found = Deframer(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += deframer.push(stream[:size])
        stream = stream[size:]
    assert [content for content in found if content is not None] == frames


@given(CONTENT, st.data())
def test_no_flipped_bit_goes_unnoticed(content: bytes, data: st.DataObject) -> None:
    frame = bytearray(encode(content))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    assert content not in Deframer().push(bytes(frame)) or bit < 8 or bit >= 8 * (len(frame) - 1)
    assert all(found in (None, content) for found in Deframer().push(bytes(frame)))
