"""A pool of workers that loses no trial when one of them dies."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Literal, get_args

from host.campaign import worker
from host.campaign.worker import Bench, Chunk, Setup
from hw.errors import RedlineError

log = logging.getLogger("redline.campaign")

Executor = Literal["processes", "ray"]
"""Where workers are: processes on this machine, or a Ray cluster (`host.campaign.cluster`)."""

CHUNK = 5
"""Trials of one piece of work."""
AHEAD = 2
"""Pieces of work that wait for each worker."""
DEATHS = 3
"""Deaths in a row, without any trial done between, after which the pool gives up."""
POLL_S = 0.2


class PoolError(RedlineError, RuntimeError):
    """Workers die again and again."""


def pieces(missing: Iterable[int], size: int = CHUNK) -> Iterator[tuple[int, int]]:
    """(first, count) of runs of consecutive trials, none longer than `size` nor across a multiple of it."""
    first = count = 0
    for number in missing:
        if count and number == first + count and number % size:
            count += 1
            continue
        if count:
            yield first, count
        first, count = number, 1
    if count:
        yield first, count


def run(
    setup: Setup,
    missing: Iterable[int],
    workers: int | None,
    stop: Callable[[], bool] = lambda: False,
    executor: Executor = "processes",
) -> Iterator[Chunk]:
    """Run trials; yields results as they come, in any order.

    Workers are processes started anew (not forked), each with its own device and one thread of torch. When one dies,
    whatever was being worked on is done again.

    Parameters
    ----------
    missing : numbers of trials
        Only drawn as far as there is work to hand out.
    workers : int or None
        0: in this process. None: as many as there are processors, here or in the cluster.
    stop : callable
        Asked now and then; once it says so, nothing new is begun, and what is being worked on is finished.
    executor : "processes" or "ray"

    Raises
    ------
    PoolError
        If workers die again and again, or there is no such executor.
    RedlineError
        What a worker met.
    """
    todo = pieces(missing)
    if executor not in get_args(Executor):
        raise PoolError(f"no executor {executor!r}; there are {', '.join(get_args(Executor))}")
    if workers == 0:
        yield from _here(setup, todo, stop)
        return
    if executor == "ray":
        from host.campaign import cluster  # it needs what is defined here

        yield from cluster.run(setup, todo, workers, stop)
        return
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    again: deque[tuple[int, int]] = deque()
    deaths = 0
    processes = _processes(setup, workers)
    running: dict[Future[Chunk], tuple[int, int]] = {}
    try:
        while True:
            while len(running) < workers * AHEAD and not stop():
                piece = again.popleft() if again else next(todo, None)
                if piece is None:
                    break
                try:
                    running[processes.submit(worker.work, *piece)] = piece
                except BrokenProcessPool:
                    again.append(piece)
                    break
            if not running and (stop() or not again):
                return
            broken = not running
            for future in wait(running, POLL_S, FIRST_COMPLETED).done:
                piece = running.pop(future)
                try:
                    chunk = future.result()
                except BrokenProcessPool:
                    broken = True
                    again.append(piece)
                    continue
                deaths = 0
                yield chunk
            if broken:
                deaths += 1
                again.extend(running.values())
                running.clear()
                processes.shutdown(wait=True, cancel_futures=True)
                if deaths >= DEATHS:
                    raise PoolError(
                        f"workers died {deaths} times in a row without finishing a trial, the last time at trials "
                        f"{', '.join(str(first) for first, _ in again)} and following: too little memory? Use fewer "
                        "--workers"
                    )
                log.warning("a worker died; its trials are done again")
                processes = _processes(setup, workers)
    finally:
        processes.shutdown(wait=True, cancel_futures=True)


def _processes(setup: Setup, workers: int) -> ProcessPoolExecutor:
    # Read by the numeric libraries when a worker first imports them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=worker.start, initargs=(setup,)
    )


def _here(setup: Setup, todo: Iterator[tuple[int, int]], stop: Callable[[], bool]) -> Iterator[Chunk]:
    bench = Bench(setup)
    try:
        for piece in todo:
            if stop():
                return
            yield bench.run(*piece)
    finally:
        bench.close()
