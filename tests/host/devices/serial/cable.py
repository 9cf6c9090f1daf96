"""A cable that damages what passes through it, and can be pulled."""

from __future__ import annotations

import os
import random
import select
import threading
import tty
from typing import Self

FLAG = 0x7E


class Cable:
    """From a host, at `path`, to a board's port.

    Parameters
    ----------
    board : str
        The board's port.
    seed : int
    frames : float
        Probability that a frame has one of its bits flipped.
    lost, added : float
        Probability that a byte is lost, and that a random one comes before it.

    Attributes
    ----------
    damaged : int
        Frames and bytes that it has damaged so far.
    passed : int
        Flags that have passed: two a frame.
    """

    def __init__(
        self, board: str, seed: int = 1, *, frames: float = 0.0, lost: float = 0.0, added: float = 0.0
    ) -> None:
        self.frames, self.lost, self.added = frames, lost, added
        self.damaged = self.passed = 0
        self.cut_after: int | None = None
        self._rng = random.Random(seed)
        self._board = os.open(board, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self._board)
        self._host, self._line = os.openpty()
        tty.setraw(self._line)
        self.path = os.ttyname(self._line)
        self._pulled, self._pull = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def pull(self) -> None:
        """Pull it out, at the host's end."""
        os.write(self._pull, b"x")
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._thread.is_alive():
            self.pull()
        for fd in (self._board, self._pulled, self._pull):
            os.close(fd)

    def _carry(self) -> None:
        other = {self._host: self._board, self._board: self._host}
        # A byte of the frame under way that will be damaged, by where it comes from.
        chosen: dict[int, int | None] = dict.fromkeys(other)
        try:
            while True:
                ready, _, _ = select.select([*other, self._pulled], [], [])
                if self._pulled in ready:
                    return
                for fd in ready:
                    sent = bytearray()
                    for byte in os.read(fd, 4096):
                        self._pass(byte, fd, chosen, sent)
                        if self.cut_after is not None and self.passed >= self.cut_after:
                            return
                    os.write(other[fd], sent)
        except OSError:
            return
        finally:
            os.close(self._line)
            os.close(self._host)

    def _pass(self, byte: int, fd: int, chosen: dict[int, int | None], sent: bytearray) -> None:
        rng, draw = self._rng, self._rng.random
        if byte == FLAG:
            self.passed += 1
            if chosen[fd] is None and draw() < self.frames:
                chosen[fd] = rng.randrange(12)
        waiting = chosen[fd]
        if waiting is not None:
            chosen[fd] = waiting - 1 if waiting else None
            if not waiting:
                byte ^= 1 << rng.randrange(8)
                self.damaged += 1
        if self.added and draw() < self.added:
            self.damaged += 1
            sent.append(rng.randrange(256))
        if self.lost and draw() < self.lost:
            self.damaged += 1
            return
        sent.append(byte)
