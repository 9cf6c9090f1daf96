"""Which layers and which bits matter: outcomes of single faults by where they hit."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from host.campaign.campaign import STORE, CampaignError
from host.campaign.space import STUCK
from host.campaign.store import Store
from host.campaign.tables import write_csv, write_figure
from host.faults.plan import SITES
from host.stats import Clustered
from host.studies.report import figure
from host.studies.report.document import Figure
from hw.delays import bank_names

OUTCOMES = ("sdc1", "sdc5", "masked")


@dataclass(frozen=True)
class Sensitivity:
    """Outcomes of an arm's single faults by (layer, site, bit).

    Of stuck bits, the bank of registers is in the layer's place, and the site tells the value.

    Attributes
    ----------
    layers : list of str
        Those that were hit, in the network's order; banks in the order of the data.
    cells : dict of dict of Clustered
        By (layer, site, bit) and outcome.
    by_layer, by_bit : dict of dict of Clustered
        By layer, or (site, bit), and outcome.
    """

    arm: str
    layers: list[str]
    cells: dict[tuple[str, str, int], dict[str, Clustered]]
    by_layer: dict[str, dict[str, Clustered]]
    by_bit: dict[tuple[str, int], dict[str, Clustered]]


def measure(folder: Path, arm: str | None = None) -> Sensitivity:
    """Count a campaign's outcomes by place.

    Raises
    ------
    StoreError, CampaignError
        If there is no campaign of single faults, or no such arm.
    """
    with Store(folder / STORE) as store:
        arm = store.arms[0] if arm is None else arm
        if arm not in store.arms:
            raise CampaignError(f"no arm {arm!r}; there are {', '.join(store.arms)}")
        if store.fingerprint["faults"]["model"] != "SingleFault":
            raise CampaignError(
                f"{folder}: sensitivity is that of single faults; in this campaign, every trial has the same rate, "
                "clock or stuck bits"
            )
        # A stuck bit is in no layer.
        rows = store.query(
            "SELECT COALESCE(t.layer, t.bank), t.site || COALESCE(' at ' || t.value, ''), t.bit, SUM(o.sdc1), "
            "SUM(o.sdc5), SUM(o.masked), COUNT(*) FROM outcome o JOIN trial t ON t.number = o.number "
            "WHERE o.arm = ? AND o.number < ? GROUP BY o.number",
            (arm, store.complete()),
        )
        stuck = store.fingerprint["faults"]["sites"] == [STUCK]
        vec = store.fingerprint["device"]["config"]["vec"]
    if not rows:
        raise CampaignError(f"{folder}: no trials yet; 'redline campaign run' runs them")
    order = list(bank_names(vec)) if stuck else _order(folder, arm)
    groups: dict[object, list[tuple[int, ...]]] = defaultdict(list)
    for layer, site, bit, *counts in rows:
        for key in ((layer, site, bit), layer, (site, bit)):
            groups[key].append(tuple(counts))
    shares = {key: _shares(values) for key, values in groups.items()}
    layers = [name for name in order if name in shares]
    sites = sorted({(str(site), int(bit)) for _, site, bit, *_ in rows})
    return Sensitivity(
        arm,
        layers,
        {(a, s, b): shares[a, s, b] for a in layers for s, b in sites if (a, s, b) in shares},
        {name: shares[name] for name in layers},
        {key: shares[key] for key in sites},
    )


def _order(folder: Path, arm: str) -> list[str]:
    from host.program.program import Program

    return list(Program.load(folder / "programs" / f"{arm}.safetensors").names)


def _shares(counts: list[tuple[int, ...]]) -> dict[str, Clustered]:
    columns = np.array(counts, np.int64)
    return {name: Clustered.of(columns[:, at], columns[:, -1]) for at, name in enumerate(OUTCOMES)}


def write(folder: Path, found: Sensitivity) -> list[Path]:
    """sensitivity.csv and the figure; returns the files."""
    head = ["arm", "layer", "site", "bit", "faults", "images"]
    for name in OUTCOMES:
        head += [name, f"{name}_low", f"{name}_high"]

    def row(layer: str, site: str, bit: object, shares: dict[str, Clustered]) -> list[object]:
        first = next(iter(shares.values()))
        cells: list[object] = [found.arm, layer, site, bit, first.clusters, first.trials]
        for rate in shares.values():
            cells += [rate.value, *rate.interval]
        return cells

    rows = [row(layer, "", "", shares) for layer, shares in found.by_layer.items()]
    rows += [row("", site, bit, shares) for (site, bit), shares in found.by_bit.items()]
    rows += [row(layer, site, bit, shares) for (layer, site, bit), shares in found.cells.items()]
    return [write_csv(folder / "sensitivity.csv", head, rows), *write_figure(folder, draw(found))]


def draw(found: Sensitivity) -> Figure:
    """SDC-1 by layer, by bit, and by both."""
    sites = sorted({site for site, _ in found.by_bit})
    with figure.pyplot(mathematics=False) as plt:
        drawn, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
        _bars(left, found.layers, [found.by_layer[name]["sdc1"] for name in found.layers])
        left.set_xlabel("layer" if set(sites) <= set(SITES) else "register bank")
        left.tick_params(axis="x", rotation=0 if len(found.layers) < 8 else 60)
        left.set_ylabel("SDC-1, %; 95 % interval")
        for site in sites:
            bits = sorted(bit for s, bit in found.by_bit if s == site)
            rates = [found.by_bit[site, bit]["sdc1"] for bit in bits]
            low = [100 * (r.value - r.interval[0]) for r in rates]
            high = [100 * (r.interval[1] - r.value) for r in rates]
            middle.errorbar(
                bits, [100 * r.value for r in rates], yerr=[low, high], fmt="o-", markersize=3, capsize=2, label=site
            )
        middle.set_xlabel("bit")
        middle.set_ylabel("SDC-1, %")
        middle.legend(frameon=False)
        bits = sorted({bit for _, bit in found.by_bit})
        grid = np.full((len(found.layers), len(bits)), np.nan)
        for i, layer in enumerate(found.layers):
            for j, bit in enumerate(bits):
                here = [cell["sdc1"] for site in sites if (cell := found.cells.get((layer, site, bit)))]
                if here:
                    grid[i, j] = 100 * sum(r.successes for r in here) / sum(r.trials for r in here)
        shown = right.imshow(grid, aspect="auto", cmap="magma_r", vmin=0)
        right.set_yticks(range(len(found.layers)), found.layers)
        right.set_xticks(range(0, len(bits), max(1, len(bits) // 8)), bits[:: max(1, len(bits) // 8)])
        right.set_xlabel("bit (white: no fault there)")
        drawn.colorbar(shown, ax=right, label="SDC-1, %")
        return figure.render(drawn, "sensitivity", "SDC-1 by layer, by bit, and by layer and bit")


def _bars(axes: object, names: list[str], rates: list[Clustered]) -> None:
    low = [100 * (r.value - r.interval[0]) for r in rates]
    high = [100 * (r.interval[1] - r.value) for r in rates]
    axes.bar(names, [100 * r.value for r in rates], yerr=[low, high], color="#00798c", capsize=3)  # type: ignore[attr-defined]
