"""Workers on the machines of a Ray cluster, as an alternative to processes on this one."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from host.campaign.pool import AHEAD, DEATHS, POLL_S, PoolError
from host.campaign.worker import Bench, Chunk, Setup

log = logging.getLogger("redline.campaign")

VERSIONS = ("redline", "numpy", "torch")
"""Packages that workers must have as this machine has them: they decide results."""


def run(
    setup: Setup, todo: Iterator[tuple[int, int]], workers: int | None, stop: Callable[[], bool] = lambda: False
) -> Iterator[Chunk]:
    """Run pieces of work on a Ray cluster; yields results as they come, in any order.

    The cluster is the one that Ray finds (the environment variable `RAY_ADDRESS`, else one that was started on this
    machine), or one that the caller has initialised; where there is none, Ray starts one here for as long as this runs.
    Workers are actors with one processor each. They are sent the campaign's files, so that nothing need be shared but
    an installation of the same Redline. If one dies, or its machine is lost, another does its work again.

    Parameters
    ----------
    todo : (first, count) of trials
    workers : int or None
        None: as many as the cluster has processors.
    stop : callable
        As for `pool.run`.

    Raises
    ------
    PoolError
        If Ray is not installed or cannot start, the cluster is too small, workers have other versions, or they die
        again and again.
    RedlineError
        What a worker met.
    """
    ray = load()
    own = not ray.is_initialized()
    if own:
        _connect(ray)
    try:
        yield from _Crew(ray, setup, _size(ray, workers), todo, stop).results()
    finally:
        if own:
            ray.shutdown()


def load() -> Any:
    """The package.

    Raises
    ------
    PoolError
        If it is not installed.
    """
    # Asked before the first import: it would report the use of Ray to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return import_module("ray")
    except ModuleNotFoundError as error:
        raise PoolError(
            "campaigns on many machines need Ray, which is not installed; run: pip install 'redline[ray]', or leave "
            "--executor at processes"
        ) from error


def _connect(ray: Any) -> None:
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, TimeoutError) as error:
        raise PoolError(
            f"Ray cannot start or find its cluster ({error}); look at RAY_ADDRESS and 'ray status', or leave "
            "--executor at processes"
        ) from error


def _size(ray: Any, workers: int | None) -> int:
    there = int(ray.cluster_resources().get("CPU", 0))
    wanted = there if workers is None else workers
    if not 1 <= wanted <= there:
        raise PoolError(
            f"the Ray cluster has {there} processors, for as many --workers at most; {wanted} were asked for"
        )
    return wanted


@dataclass
class _Crew:
    """The workers, what each is busy with, and what has to be done again."""

    ray: Any
    setup: Setup
    size: int
    todo: Iterator[tuple[int, int]]
    stop: Callable[[], bool]
    again: deque[tuple[int, int]] = field(default_factory=deque)
    actors: dict[int, Any] = field(default_factory=dict)
    running: dict[Any, tuple[int, tuple[int, int]]] = field(default_factory=dict)
    """By result to come: number of the worker, and its piece of work."""
    hired: int = 0
    deaths: int = 0
    """In a row, without any trial done between."""

    def results(self) -> Iterator[Chunk]:
        self.files = self.ray.put(_files(self.setup.folder))
        self.remote = self.ray.remote(num_cpus=1, max_restarts=0)(Remote)
        try:
            for _ in range(self.size):
                self._hire()
            while True:
                self._hand_out()
                if not self.running:
                    return
                ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=POLL_S)
                for result in ready:
                    chunk = self._collect(result)
                    if chunk is not None:
                        self.deaths = 0
                        yield chunk
        finally:
            for actor in self.actors.values():
                self.ray.kill(actor)

    def _hire(self) -> None:
        self.actors[self.hired] = self.remote.remote(self.setup, self.files, _versions())
        self.hired += 1

    def _hand_out(self) -> None:
        busy = [worker for worker, _ in self.running.values()]
        for waiting in range(AHEAD):
            for worker, actor in self.actors.items():
                if busy.count(worker) > waiting or self.stop():
                    continue
                piece = self.again.popleft() if self.again else next(self.todo, None)
                if piece is None:
                    return
                self.running[actor.work.remote(*piece)] = worker, piece

    def _collect(self, result: Any) -> Chunk | None:
        """A result; None if its worker died."""
        worker, piece = self.running.pop(result)
        try:
            return self.ray.get(result)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self.ray.exceptions.RayActorError as error:
            self.again.append(piece)
            # All that a dead worker was to do fails, each piece by itself; it died once.
            if self.actors.pop(worker, None) is not None:
                self._replace(error)
            return None

    def _replace(self, error: Exception) -> None:
        self.deaths += 1
        if self.deaths >= DEATHS * self.size:
            raise PoolError(
                f"workers died {self.deaths} times in a row without finishing a trial; the last: {error}"
            ) from error
        log.warning("a worker died; its trials are done again")
        self._hire()


class Remote:
    """A worker on one of the cluster's machines (a Ray actor)."""

    def __init__(self, setup: Setup, files: dict[str, bytes], versions: dict[str, str]) -> None:
        self.setup, self.files, self.versions = setup, files, versions
        self.bench: Bench | None = None

    def work(self, first: int, count: int) -> Chunk:
        """Run trials; the first call makes the bench."""
        if self.bench is None:
            self.bench = self._bench()
        return self.bench.run(first, count)

    def _bench(self) -> Bench:
        found = _versions()
        if found != self.versions:
            raise PoolError(
                f"{socket.gethostname()} has {_named(found)}, the campaign's machine {_named(self.versions)}: install "
                "the same on all, or results would depend on who computes them"
            )
        with tempfile.TemporaryDirectory(prefix="redline-") as folder:
            for name, content in self.files.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            return Bench(replace(self.setup, folder=Path(folder)))


def _files(folder: Path) -> dict[str, bytes]:
    """What workers read of a campaign's folder, by path within it."""
    paths = [folder / "data.safetensors", *sorted((folder / "programs").glob("*.safetensors"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in VERSIONS}


def _named(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
