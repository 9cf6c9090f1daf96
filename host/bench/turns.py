"""How contenders are timed: in turns, each by its median."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def in_turns(
    contenders: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    clock: Callable[[], float] | None = None,
    shuffled: bool = False,
) -> dict[str, float]:
    """Median seconds of each; a round before the others warms up and does not count.

    Taking turns, all contenders meet the machine's changing load alike.

    Parameters
    ----------
    clock : callable, optional
        Seconds; processor time if not given.
    shuffled : bool
        Another order each round (the same ones every time): for contenders that find caches and cores as the one before
        leaves them.
    """
    clock = clock or time.process_time
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    orders = random.Random(0)
    for number in range(rounds + 1):
        if shuffled:
            orders.shuffle(order)
        for name in order:
            start = clock()
            contenders[name]()
            if number:
                times[name].append(clock() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}
