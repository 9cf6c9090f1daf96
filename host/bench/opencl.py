"""Speed of the opencl device beside the others, what a launch costs, and how far transfers hide behind computing."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from host.bench.turns import in_turns
from host.compiler import compile as compiler
from host.devices import registry
from host.devices.opencl.device import OpenCLDevice
from host.devices.opencl.overlap import Overlapped, Span
from host.devices.runtime import Runtime
from host.faults.conditions import Clock, Conditions
from host.faults.models import SoftErrors
from host.faults.plan import FaultPlan
from host.models import lenet5
from host.program.program import Program
from hw.config import Config
from hw.masks import MOST_GROUPS
from sim.timing import shipped

BATCH = 64
ROUNDS = 9
STREAM = 12
"""Batches whose transfers overlap."""
RATE = 1e-5
"""Soft errors per MAC of the faulty measurement."""
OTHERS = ("emulator", "reference")
SHARES = (0.97, 0.91, 0.85, 0.8)
"""Clock periods, as shares of a delay table's safe one."""


def measure(
    config: Config | None = None, *, batch: int = BATCH, rounds: int = ROUNDS, stream: int = STREAM, **options: Any
) -> tuple[dict[str, Any], list[Span]]:
    """Measure everything in one run.

    Devices take turns, so that a machine's changing load meets all, and each is judged by its median.

    Parameters
    ----------
    config : Config, optional
    batch : int
        Images of one forward pass of LeNet-5.
    rounds : int
    stream : int
        Batches of the overlap measurement.
    **options
        Of the opencl device (`platform`, `device_name`, ...).

    Returns
    -------
    dict
        opencl_device, opencl_units : what it is
        images_per_second : by device, LeNet-5, written back, with transfers
        ratio_to : how many times as fast as each other device
        same_bytes : whether all gave the same
        conv_gmacs_per_second, conv_faulty_gmacs_per_second : AlexNet's conv2 in the kernel, by the device's own clock
        launch_overhead_us : wall time of a launch beyond its kernels' own
        overlap : of a stream of batches: `hidden_share` of the transfers' time during which some kernel ran,
            `busy_share` of the time from the first kernel to the last during which one did, and its `speedup` over one
            batch after the other
        late : LeNet-5, written back, with transfers, on a build with overclocking: how many times as long a pass takes
            in which nothing is late as on `config` (`in_time`), one at each share of the safe period as that
            (`SHARES`), and the last of these as on the emulator with as many threads (`emulator`)
    list of Span
        The stream's commands, for `plot`.
    """
    config = config or Config(saboteur=True)
    torch.manual_seed(0)
    with OpenCLDevice(config, **options) as device:
        result: dict[str, Any] = {
            "opencl_device": f"{device.opencl.name.strip()} ({device.opencl.platform.name.strip()})",
            "opencl_units": device.units,
            "batch": batch,
            **_networks(device, config, batch, rounds),
            **_kernel(device, config, rounds),
            "launch_overhead_us": _overhead(device, config, rounds),
            "late": _late(device, config, batch, rounds, options),
        }
    # A processor's transfers need a core: leave it one.
    with OpenCLDevice(config, **{**options, "units": max(1, result["opencl_units"] // 2)}) as device:
        overlap, spans = _overlap(device, config, stream, rounds)
    return {**result, "overlap": overlap}, spans


def _timed(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _networks(device: OpenCLDevice, config: Config, batch: int, rounds: int) -> dict[str, Any]:
    images = torch.rand(batch, 1, 28, 28)
    program = compiler.compile(lenet5(pretrained=True), config, calibrate=images)
    x = program.quantise_input(images)
    others = [name for name in OTHERS if name in registry.device_names()]
    runtimes: dict[str, Runtime] = {"opencl": device.runtime(program)}
    runtimes |= {name: registry.device(name, config).runtime(program) for name in others}
    try:
        outputs = {name: runtime.forward(x) for name, runtime in runtimes.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runtimes}
        for _ in range(rounds):
            for name, runtime in runtimes.items():
                seconds[name].append(_timed(lambda runtime=runtime: runtime.forward(x)))  # type: ignore[misc]
    finally:
        for name in others:
            runtimes[name].device.close()
    speed = {name: batch / statistics.median(times) for name, times in seconds.items()}
    first = outputs["opencl"]
    return {
        "images_per_second": speed,
        "ratio_to": {name: speed["opencl"] / speed[name] for name in others},
        "same_bytes": all(
            np.array_equal(first.out[layer], found.out[layer]) for found in outputs.values() for layer in program.names
        ),
    }


def _conv2(config: Config) -> Program:
    net = torch.nn.Sequential(torch.nn.Conv2d(96, 256, 5, padding=2), torch.nn.ReLU())
    return compiler.compile(net, config, calibrate=torch.randn(2, 96, 27, 27))


def _kernel(device: OpenCLDevice, config: Config, rounds: int) -> dict[str, float]:
    program, images = _conv2(config), 2 * device.units
    (layer,) = program.layers
    macs = images * int(np.prod(layer.conv_shape)) * layer.in_shape[0] * layer.kernel[0] * layer.kernel[1]
    runtime = Runtime(program, device)
    x = program.quantise_input(torch.randn(images, *program.input_shape))
    clean = runtime._schedule((0,), images, True)
    faulty = clean.with_faults(SoftErrors(RATE, per="mac").draw(program, 0, images, 1), 0)
    runtime.forward(x)
    found: dict[str, list[float]] = {"conv_gmacs_per_second": [], "conv_faulty_gmacs_per_second": []}
    for _ in range(rounds):
        for rates, launch in zip(found.values(), (clean, faulty), strict=True):
            running = device.begin(launch)
            device.finish(running)
            busy = max(e.profile.end for e in running.events) - min(e.profile.start for e in running.events)
            rates.append(macs / busy)
    return {name: statistics.median(rates) for name, rates in found.items()}


def _late(
    device: OpenCLDevice, config: Config, batch: int, rounds: int, options: Mapping[str, Any]
) -> dict[str, float]:
    images = torch.rand(batch, 1, 28, 28)
    table = shipped.load(config.lanes, config.vec)
    built = replace(config, overclock=MOST_GROUPS)
    plain, program = (compiler.compile(lenet5(pretrained=True), on, calibrate=images) for on in (config, built))
    x, none = program.quantise_input(images), FaultPlan.of(program.names)
    clocks = {f"{share:g}": Conditions(Clock(table, round(share * table.onset_ps), 1.0)) for share in SHARES}
    plans = {name: none.under(conditions) for name, conditions in clocks.items()}
    fastest = f"{SHARES[-1]:g}"
    with OpenCLDevice(built, **options) as late, registry.device("emulator", built, threads=device.units) as emulator:
        forward = late.runtime(program).forward
        passes: dict[str, Callable[[], Any]] = {
            "plain": partial(device.runtime(plain).forward, x),
            "in_time": partial(forward, x),
            **{name: partial(forward, x, plan=plan) for name, plan in plans.items()},
            "emulator": partial(emulator.runtime(program).forward, x, plan=plans[fastest]),
        }
        taken = in_turns(passes, rounds, clock=time.perf_counter, shuffled=True)
    return {
        "in_time": taken["in_time"] / taken["plain"],
        **{name: taken[name] / taken["in_time"] for name in plans},
        "emulator": taken[fastest] / taken["emulator"],
    }


def _overhead(device: OpenCLDevice, config: Config, rounds: int) -> float:
    net = torch.nn.Sequential(torch.nn.Conv2d(config.vec, config.lanes, 1))
    program = compiler.compile(net, config, calibrate=torch.randn(2, config.vec, 1, 1))
    runtime = Runtime(program, device)
    runtime.forward(program.quantise_input(torch.randn(1, config.vec, 1, 1)))
    launch = runtime._schedule((0,), 1, True)
    beyond = []
    for _ in range(20 * rounds):
        started = time.perf_counter()
        running = device.begin(launch)
        device.finish(running)
        wall = time.perf_counter() - started
        beyond.append(1e6 * wall - sum(e.profile.end - e.profile.start for e in running.events) / 1e3)
    return statistics.median(beyond)


def _overlap(device: OpenCLDevice, config: Config, stream: int, rounds: int) -> tuple[dict[str, float], list[Span]]:
    # A layer in the middle of a large network: much to move, and enough to compute to hide it.
    net = torch.nn.Sequential(torch.nn.Conv2d(64, 128, 3, padding=1), torch.nn.ReLU())
    program = compiler.compile(net, config, calibrate=torch.randn(2, 64, 56, 56))
    batches = [program.quantise_input(torch.randn(4, 64, 56, 56)) for _ in range(stream)]
    plain, overlapped = Runtime(program, device), Overlapped(program, device)
    plain.forward(batches[0])
    speedup, runs = [], []
    for _ in range(max(1, rounds // 2)):
        one_by_one = _timed(lambda: [plain.forward(x) for x in batches])
        together = _timed(lambda: list(overlapped.stream(batches)))
        speedup.append(one_by_one / together)
        runs.append(list(overlapped.spans))
    # The run in the middle is the one that is drawn.
    runs.sort(key=hidden_share)
    drawn = runs[len(runs) // 2]
    found = {"hidden_share": hidden_share(drawn), "busy_share": busy_share(drawn)}
    return {**found, "speedup": statistics.median(speedup)}, drawn


def _pieces(spans: list[Span]) -> Iterator[tuple[int, int, bool]]:
    """Time cut where anything begins or ends: (ns, transfers going on, whether a kernel runs)."""
    edges = sorted({edge for span in spans for edge in (span.start_ns, span.end_ns)})
    for start, end in itertools.pairwise(edges):
        here = [span.kind for span in spans if span.start_ns <= start and span.end_ns >= end]
        yield end - start, len(here) - here.count("compute"), "compute" in here


def hidden_share(spans: list[Span]) -> float:
    """Share of the transfers' time during which some kernel ran."""
    pieces = list(_pieces(spans))
    moved = sum(ns * transfers for ns, transfers, _ in pieces)
    return sum(ns * transfers for ns, transfers, computes in pieces if computes) / max(1, moved)


def busy_share(spans: list[Span]) -> float:
    """Share of the time from the first kernel's start to the last one's end during which a kernel ran."""
    kernels = [span for span in spans if span.kind == "compute"]
    whole = max(span.end_ns for span in kernels) - min(span.start_ns for span in kernels)
    return sum(ns for ns, _, computes in _pieces(kernels) if computes) / max(1, whole)


def plot(spans: list[Span], path: Path) -> None:
    """Timeline of a stream's commands, by the OpenCL device's clock.

    Parameters
    ----------
    path : Path
        A picture; the suffix says of which kind.
    """
    from matplotlib.figure import Figure

    kinds = ("write", "compute", "read")
    units = sorted({span.unit for span in spans if span.kind == "compute"})
    rows = [("write", 0), *(("compute", unit) for unit in units), ("read", 0)]
    first = min(span.start_ns for span in spans)
    least = (max(span.end_ns for span in spans) - first) / 1e6 / 400  # or short transfers would be invisible
    figure = Figure(figsize=(10, 1 + 0.5 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for span in spans:
        at = rows.index((span.kind, span.unit))
        start, length = (span.start_ns - first) / 1e6, (span.end_ns - span.start_ns) / 1e6
        colour = f"C{kinds.index(span.kind)}"
        axes.barh(at, max(least, length), left=start, height=0.8, color=colour, alpha=1 if span.batch % 2 else 0.6)
        if span.kind == "compute":
            axes.text(start + length / 2, at, str(span.batch), ha="center", va="center", color="white")
    names = {"write": "write (upload)", "read": "read (download)"}
    axes.set_yticks(range(len(rows)), [names.get(kind, f"compute unit {unit}") for kind, unit in rows])
    axes.invert_yaxis()
    axes.set_xlabel("ms, by the OpenCL device's clock; numbers are batches")
    axes.set_title(
        f"Transfers behind computing: {hidden_share(spans):.0%} of their time is hidden; "
        f"kernels run {busy_share(spans):.0%} of the time"
    )
    figure.savefig(path, dpi=150)
