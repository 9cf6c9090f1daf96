"""A random order of very many places, of which any position can be asked for alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

ROUNDS = 8


@dataclass(frozen=True)
class Permutation:
    """A pseudo-random permutation of 0 to size - 1, keyed by words.

    A balanced Feistel network over the next larger even number of bits, its rounds keyed BLAKE2b, walked until the
    value is inside (Black and Rogaway 2002, cycle walking). So the first n values are n distinct places for every n,
    in no memory, and a campaign can be made longer later without changing what it began with.

    Attributes
    ----------
    size : int
        1 or more.
    key : tuple of int or str
    """

    size: int
    key: tuple[int | str, ...]

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a permutation needs at least one place, not {self.size}")

    def __call__(self, position: int) -> int:
        """The place at a position, 0 to size - 1."""
        if not 0 <= position < self.size:
            raise IndexError(f"position {position} of {self.size}")
        half = max(1, ((self.size - 1).bit_length() + 1) // 2)
        value = position
        while True:
            value = self._encrypt(value, half)
            if value < self.size:
                return value

    def _encrypt(self, value: int, half: int) -> int:
        mask = (1 << half) - 1
        left, right = value >> half, value & mask
        key = repr(self.key).encode()[:64]
        for number in range(ROUNDS):
            digest = hashlib.blake2b(right.to_bytes(16, "little") + bytes([number]), digest_size=8, key=key).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        return left << half | right
