"""The random streams of fault models, one for each purpose, by identities that are written down and never change."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

IDS = {"weight": 0, "input": 1, "feature": 2, "mac": 3, "part": 4, "count": 5, "purpose": 6}
"""What a stream is for, as it enters its key: faults of a site, a part of combined models, a count of flips, a purpose.

An identity is given once. A new site or use takes the next number, so that draws that exist stay as they are.
"""
Purpose = Literal["evaluation", "training", "protection"]
PURPOSES: dict[Purpose, int] = {"evaluation": 0, "training": 1, "protection": 2}
"""Identities of what faults are met for. As those above: never changed."""


class Streams:
    """Counter-based random streams: one key a (seed, use, key), one range of 2**192 counters a block (image).

    Parameters
    ----------
    seed : int
        0 or more.
    use : str
        One of `IDS`.
    key : int
        What tells streams of one use apart (the layer).

    Raises
    ------
    ValueError
        If the seed is negative.
    """

    def __init__(self, seed: int, use: str, key: int) -> None:
        words = np.random.SeedSequence([_checked(seed), IDS[use], key]).generate_state(2, np.uint64)
        self._bits = np.random.Philox(key=words)
        self._start: Any = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def of(self, block: int) -> np.random.Generator:
        """The stream of one block, from its beginning; valid until the next call."""
        # Moving the counter costs a tenth of making a generator, and images are many.
        self._start["state"]["counter"][:] = (0, 0, 0, block)
        self._bits.state = self._start
        return self._generator


def seed_for(purpose: Purpose, seed: int) -> int:
    """The seed under which faults are drawn for a purpose: training never meets the faults of the test.

    Of "evaluation" it is `seed` itself: what `Fault.draw` gives under a seed is what `evaluate` meets under it. Others'
    are 62 random bits, a function of purpose and seed.

    Raises
    ------
    ValueError
        If the seed is negative or the purpose unknown.
    """
    if purpose not in PURPOSES:
        raise ValueError(f"faults are met for {', '.join(PURPOSES)}, not for {purpose!r}")
    if purpose == "evaluation":
        return _checked(seed)
    return int(Streams(seed, "purpose", PURPOSES[purpose]).of(0).integers(1 << 62))


def _checked(seed: int) -> int:
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, not {seed}")
    return seed
