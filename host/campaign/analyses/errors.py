"""How wrong each layer's outputs are: shares of values off by 0, by 1 to T, and by more (after Xu et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from host.campaign.tables import write_csv, write_figure
from host.faults.models import Fault
from host.stats import Clustered
from host.studies.report import figure
from host.studies.report.document import Figure
from host.training.protect import distances
from host.training.twin import Twin

CLASSES = ("exact", "small", "large")
"""|faulty - clean| is 0, from 1 to T, more than T."""


@dataclass(frozen=True)
class Distribution:
    """Shares of each layer's final outputs.

    Attributes
    ----------
    threshold : int
        T, in the layer's integers.
    inherited : bool
        Errors count from a fault-free network; otherwise from the layer's fault-free output on the input it got.
    layers : dict of dict of Clustered
        By layer and class; clusters are images.
    """

    threshold: int
    inherited: bool
    layers: dict[str, dict[str, Clustered]]


def measure(
    twin: Twin, faults: Fault, images: torch.Tensor, *, threshold: int = 5, inherited: bool = False, seed: int = 0
) -> Distribution:
    """Compare every layer's output with and without faults.

    Parameters
    ----------
    images : float tensor, shape (N, C, H, W)

    Raises
    ------
    AttachError
        If there are no images.
    """
    counts: dict[str, list[np.ndarray]] = {name: [] for name in twin.layers}
    for name, distance in distances(twin, faults, images, inherited=inherited, seed=seed):
        off = distance.reshape(len(distance), -1)
        small, large = ((off > 0) & (off <= threshold)).sum(axis=1), (off > threshold).sum(axis=1)
        counts[name].append(np.stack([off.shape[1] - small - large, small, large]))
    layers = {}
    for name, parts in counts.items():
        columns = np.concatenate(parts, axis=1)
        sizes = columns.sum(axis=0)
        layers[name] = {kind: Clustered.of(columns[i], sizes) for i, kind in enumerate(CLASSES)}
    return Distribution(threshold, inherited, layers)


def write(folder: Path, found: Distribution) -> list[Path]:
    """errors.csv and the figure; returns the files."""
    head = ["layer", "threshold", "class", "share", "low", "high", "values", "images", "design_effect"]
    rows = [
        [name, found.threshold, kind, r.value, *r.interval, r.trials, r.clusters, r.design_effect]
        for name, shares in found.layers.items()
        for kind, r in shares.items()
    ]
    return [write_csv(folder / "errors.csv", head, rows), *write_figure(folder, draw(found))]


def draw(found: Distribution) -> Figure:
    """Shares of wrong values by layer, small and large errors."""
    names, t = list(found.layers), found.threshold
    with figure.pyplot(mathematics=False) as plt:
        drawn, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
        below = np.zeros(len(names))
        for kind, colour, label in (("small", "#edae49", f"1 to {t}"), ("large", "#d1495b", f"more than {t}")):
            rates = [found.layers[name][kind] for name in names]
            shares = np.array([100 * r.value for r in rates])
            error = [
                [100 * (r.value - r.interval[0]) for r in rates],
                [100 * (r.interval[1] - r.value) for r in rates],
            ]
            axes.bar(names, shares, bottom=below, yerr=error, color=colour, label=f"|error| {label}", capsize=3)
            below += shares
        axes.set_ylabel("share of the layer's outputs, %")
        axes.legend(frameon=False)
        return figure.render(drawn, "errors", "Share of each layer's outputs with small and large errors")
