"""What protecting a layer costs: the accelerator's cycles without it, from the cycle model, and its time on the CPU."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from host.campaign.tables import write_csv, write_figure
from host.program.arrangement import gather
from host.program.integer import run_layer
from host.program.layers import INPUT
from host.program.program import Program
from host.schedule.cycles import Memory, estimate
from host.schedule.launch import schedule
from host.studies.report import figure
from host.studies.report.document import Figure, Table

REPEATS = 7
"""Timed runs of each layer on the CPU; the median counts, the extremes are told."""


@dataclass(frozen=True)
class LayerCost:
    """Of protecting one layer, a batch of images.

    Attributes
    ----------
    layer : str
    rest_cycles : float
        Accelerator cycles of all other layers (`host.schedule.cycles`).
    cpu_s, cpu_fastest_s, cpu_slowest_s : float
        CPU time of the layer here, one thread: median and extremes.
    relative : float
        Run time over that of the unprotected network, accelerator and CPU taking turns.
    """

    layer: str
    rest_cycles: float
    cpu_s: float
    cpu_fastest_s: float
    cpu_slowest_s: float
    relative: float


@dataclass(frozen=True)
class Cost:
    """Of protecting each layer alone.

    Attributes
    ----------
    images : int
        The batch.
    mhz : float
        The accelerator's clock.
    cycles : float
        Of the unprotected network.
    layers : list of LayerCost
    """

    images: int
    mhz: float
    cycles: float
    layers: list[LayerCost]

    def table(self) -> Table:
        """As people read it."""
        body = [
            [
                c.layer, f"{c.rest_cycles:,.0f}", f"{1e3 * c.rest_cycles / (1e6 * self.mhz):.2f}",
                f"{1e3 * c.cpu_s:.2f} [{1e3 * c.cpu_fastest_s:.2f}, {1e3 * c.cpu_slowest_s:.2f}]", f"{c.relative:.2f}",
            ]
            for c in self.layers
        ]  # fmt: skip
        total = f"{1e3 * self.cycles / (1e6 * self.mhz):.2f}"
        return Table(
            ["protected", "cycles of the rest", "ms", "CPU, ms [fastest, slowest]", "relative run time"],
            [["none", f"{self.cycles:,.0f}", total, "", "1.00"], *body],
        )


def measure(program: Program, images: np.ndarray, mhz: float, memory: Memory | None = None) -> Cost:
    """Cost of protecting each layer that the accelerator runs.

    Parameters
    ----------
    program : Program
    images : int8 array, shape (N, C, H, W)
        A batch; quantised.
    mhz : float
        The accelerator's clock: its cycles become time by it, and so comparable with the CPU's.
    """
    memory = memory or Memory()
    fallback = [layer.name for layer in program.layers if layer.placement == "cpu"]
    whole = _cycles(program, len(images), memory)
    values = {INPUT: program.fold_input(images)}
    found = []
    for layer in program.layers:
        integers = program.weights[layer.name], program.biases[layer.name]
        x = gather(values, layer)
        values[layer.name] = run_layer(x, *integers, layer, program.config.arithmetic).out
        if layer.name in fallback:
            continue
        times = []
        for _ in range(REPEATS):
            start = time.thread_time()
            run_layer(x, *integers, layer, program.config.arithmetic)
            times.append(time.thread_time() - start)
        rest = _cycles(program.with_placement(cpu=[*fallback, layer.name]), len(images), memory)
        cpu = float(np.median(times))
        relative = (rest / (1e6 * mhz) + cpu) / (whole / (1e6 * mhz))
        found.append(LayerCost(layer.name, rest, cpu, min(times), max(times), relative))
    return Cost(len(images), mhz, whole, found)


def _cycles(program: Program, images: int, memory: Memory) -> float:
    """Cycles of all launches of a forward pass, one compute unit."""
    return sum(
        estimate(schedule(program, positions, images, writeback=False), memory).cycles
        for placement, positions in program.segments()
        if placement == "accelerator"
    )


def write(folder: Path, found: Cost) -> list[Path]:
    """cost.csv and the figure; returns the files."""
    head = ["protected", "images", "mhz", "rest_cycles", "cpu_s", "cpu_fastest_s", "cpu_slowest_s", "relative"]
    rows: list[list[object]] = [["", found.images, found.mhz, found.cycles, 0, 0, 0, 1.0]]
    rows += [
        [c.layer, found.images, found.mhz, c.rest_cycles, c.cpu_s, c.cpu_fastest_s, c.cpu_slowest_s, c.relative]
        for c in found.layers
    ]
    return [write_csv(folder / "cost.csv", head, rows), *write_figure(folder, draw(found))]


def draw(found: Cost) -> Figure:
    """Relative run time by protected layer, split into accelerator and CPU."""
    names = ["none", *(c.layer for c in found.layers)]
    whole = found.cycles / (1e6 * found.mhz)
    rest = [1.0, *(c.rest_cycles / found.cycles for c in found.layers)]
    cpu = [0.0, *(c.cpu_s / whole for c in found.layers)]
    with figure.pyplot(mathematics=False) as plt:
        drawn, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
        axes.bar(names, rest, color="#00798c", label=f"accelerator at {found.mhz:g} MHz (cycle model)")
        axes.bar(names, cpu, bottom=rest, color="#edae49", label="CPU, one thread (measured)")
        axes.axhline(1, color=figure.INK, linewidth=0.8)
        axes.set_xlabel("protected layer")
        axes.set_ylabel("run time relative to no protection")
        axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
        return figure.render(drawn, "cost", "Relative run time by protected layer")
