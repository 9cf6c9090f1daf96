"""A board in Python behind a pseudo-terminal: the link's protocol from its documentation, and the tests' executor."""

from __future__ import annotations

import os
import select
import struct
import threading
import tty
import zlib
from typing import Any, Self

import numpy as np

from hw.config import INTERFACE_VERSION, Config
from hw.registers import OFFSET
from tests.host.executor import Executor

OPEN, READ, WRITE, GET, PUT, RESET = range(1, 7)
OK, DAMAGED, OUT_OF_ORDER, CLOSED, REFUSED = range(5)


def stuff(content: bytes) -> bytes:
    """A frame as docs/link.md draws it."""
    raw = content + struct.pack("<I", zlib.crc32(content))
    return b"\x7e" + b"".join(bytes([0x7D, b ^ 0x20]) if b in (0x7D, 0x7E) else bytes([b]) for b in raw) + b"\x7e"


def unstuff(piece: bytes) -> bytes | None:
    """What lay between two flags; None if it is damaged."""
    raw, at = bytearray(), 0
    while at < len(piece):
        if piece[at] == 0x7D:
            at += 1
            if at == len(piece) or piece[at] == 0x7D:
                return None
            raw.append(piece[at] ^ 0x20)
        else:
            raw.append(piece[at])
        at += 1
    sound = len(raw) > 4 and struct.pack("<I", zlib.crc32(bytes(raw[:-4]))) == bytes(raw[-4:])
    return bytes(raw[:-4]) if sound else None


class Board:
    """A board; `path` is its serial port.

    Parameters
    ----------
    config : Config
    memory_bytes : int
    registers : dict of int to int
        Instead of what a register of this offset should say.
    """

    def __init__(self, config: Config, memory_bytes: int = 1 << 17, registers: dict[int, int] | None = None) -> None:
        self.config = config
        self.executor = Executor(config, memory_bytes=memory_bytes)
        self.hash, self.starts, self.polls_left, self.outside, self.stuck = config.hash, 0, 0, 0, False
        self.executed: list[tuple[int, ...]] = []
        self.overrides = registers or {}
        self.power_on()
        self._host, self._line = os.openpty()
        tty.setraw(self._line)
        self.path = os.ttyname(self._line)
        self._ended, self._end = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def power_on(self) -> None:
        """As after loading the bitstream: memory is what it happens to be."""
        self.open, self.token, self.last, self.value = False, 0, 0, 0
        self.registers = dict.fromkeys(OFFSET.values(), 0)
        self.running = self.done = False
        self.executor.memory[:] = np.random.default_rng(1).integers(0, 256, len(self.executor.memory))

    def close(self) -> None:
        """Hang up."""
        os.write(self._end, b"x")
        self._thread.join()
        # Only now: a number that is free again may be another board's at once.
        for fd in (self._line, self._host, self._ended, self._end):
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _serve(self) -> None:
        rest = b""
        while self._ended not in select.select([self._host, self._ended], [], [])[0]:
            *pieces, rest = (rest + os.read(self._host, 4096)).split(b"\x7e")
            for piece in pieces:
                if piece:
                    os.write(self._host, stuff(self.answer(unstuff(piece))))

    def answer(self, content: bytes | None) -> bytes:
        """What a request's content is answered with."""
        if content is None or len(content) < 8:
            return bytes([self.last, 0, DAMAGED])
        seq, op, count, address = struct.unpack_from("<BBHI", content)
        ahead = (seq - self.last) % 256
        if op == OPEN:
            before, self.open, self.token, self.last = self.token, True, address, seq
            return bytes([seq, op]) + struct.pack("<I", before) + bytes([OK])
        if not self.open:
            return bytes([seq, 0, CLOSED])
        if 1 < ahead < 128 or (op == GET and ahead > 128):
            return bytes([self.last, 0, OUT_OF_ORDER])
        fresh = ahead == 1
        if fresh:
            self.last = seq
            self.executed.append((op, count, address))
        status, data = self.execute(op, count, address, content[8:], fresh)
        return bytes([seq, op]) + data + bytes([status])

    def execute(self, op: int, count: int, address: int, data: bytes, fresh: bool) -> tuple[int, bytes]:
        """Status and data of a request's answer."""
        if op == READ:
            return OK, self.executor.read(address, count).tobytes()
        if op == WRITE:
            if fresh:
                self.executor.write(address, np.frombuffer(data, np.uint8))
            return OK, b""
        if op == GET and fresh:
            self.value = self.get(count)
        if op == PUT and fresh:
            self.put(count, address)
        if op == RESET and fresh:
            self.registers = dict.fromkeys(self.registers, 0)
            self.running = self.done = False
            self.outside = 0
        if op not in (GET, PUT, RESET):
            return REFUSED, b""
        return OK, struct.pack("<I", self.value)

    def get(self, offset: int) -> int:
        """A register."""
        board: dict[int, Any] = {
            0x100: int.from_bytes(b"RLNK", "little"),
            0x104: 1,
            0x10C: 25_000_000,
            0x110: 1_000_000,
        }
        board |= {0x108: self.executor.memory_bytes, 0x114: 2047, 0x118: self.outside}
        board |= {OFFSET["config_hash_lo"]: self.hash & 0xFFFFFFFF, OFFSET["config_hash_hi"]: self.hash >> 32}
        board |= {OFFSET["interface_version"]: INTERFACE_VERSION}
        if offset == OFFSET["ap_ctrl"]:
            if self.running and not self.stuck:
                self.polls_left -= 1
                if self.polls_left < 0:
                    self.finish()
            value = int(self.running) | 2 * self.done | 4 * (not self.running)
            self.done = False
            return value
        if offset == OFFSET["cycles_lo"] and self.running:
            self.registers[offset] += 1000
        return int(self.overrides.get(offset, board.get(offset, self.registers.get(offset, 0))))

    def put(self, offset: int, value: int) -> None:
        """Write a register."""
        self.registers[offset] = value
        if offset == OFFSET["ap_ctrl"] and value & 1:
            assert not self.running, "started while it runs"
            self.starts += 1
            self.running, self.done, self.polls_left = True, False, 2

    def finish(self) -> None:
        """Do what the launch asks for."""
        wide = {
            name: self.registers[OFFSET[f"{name}_lo"]] | self.registers[OFFSET[f"{name}_hi"]] << 32
            for name in ("descriptors", "mac_events", "feature_events")
        }
        counts = {name: self.registers[OFFSET[name]] for name in ("jobs", "mac_event_count", "feature_event_count")}
        applied = self.executor.run(
            wide["descriptors"],
            counts["jobs"],
            (wide["mac_events"], counts["mac_event_count"]),
            (wide["feature_events"], counts["feature_event_count"]),
        )
        self.registers[OFFSET["faults_applied"]] = applied
        self.running, self.done = False, True
