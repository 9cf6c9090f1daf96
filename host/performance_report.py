"""A performance estimate as people read it: sentences, JSON, CSV, and the roofline as a picture."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from host.schedule import roofline
from host.schedule.performance import LayerPerformance, Performance
from host.store.csv_text import csv_text
from host.store.files import write_atomic, write_json

FILES = ("roofline.png", "roofline.svg", "layers.csv", "estimate.json")
Floats = npt.NDArray[np.float64]

COLOURS = {"compute": "#00798c", "memory": "#d1495b", "latency": "#e08e0b"}
MARKERS = {"compute": "o", "memory": "s", "latency": "^"}
MEANINGS = {
    "compute": "compute-bound: the array's steps",
    "memory": "memory-bound: the moving of bytes",
    "latency": "latency-bound: waiting, neither of the two",
}


@dataclass(frozen=True)
class Comparison:
    """A network at a clock, chained on chip and with write-back; `shown` is the one of them that was asked for."""

    network: str
    mhz: float
    shown: Performance
    chained: Performance
    written: Performance


def write(folder: Path, found: Comparison) -> None:
    """Write `FILES`."""
    png, svg = plot(found)
    write_atomic(folder / "roofline.png", png)
    write_atomic(folder / "roofline.svg", svg)
    write_atomic(folder / "layers.csv", layers_csv(found.shown))
    write_json(folder / "estimate.json", as_dict(found))


def summary(found: Comparison) -> list[str]:
    """The answer in sentences, and what the table's columns mean."""
    shown, config = found.shown, found.shown.config
    rate = roofline.bandwidth(shown.memory, config)
    said = [
        f"{shown.images_per_second(found.mhz):,.1f} images/s at {found.mhz:g} MHz: {shown.cycles_per_image:,.0f} "
        f"cycles an image on {config.lanes}x{config.vec}, memory of {rate:g} bytes a cycle and "
        f"{shown.memory.latency} cycles latency; {shown.gmacs_per_second(found.mhz):,.2f} GMAC/s of at most "
        f"{config.lanes * config.vec * found.mhz * 1e-3:,.2f}."
    ]
    if shown.on_cpu:
        said.append(f"Not counted, since they run on the CPU: {', '.join(shown.on_cpu)}.")
    early = [layer.name for layer, ahead in zip(shown.layers, overlapped(shown), strict=True) if ahead]
    if early:
        said.append(f"Beyond the roofline, since bytes came while the layer before computed: {', '.join(early)}.")
    return [
        *said,
        "Figures are of one image. ideal: one step of the array a cycle. roofline: share of the cycles that steps or",
        "bytes alone, whichever is longer, would take. MAC: the layer's own. byte: of the memory's busier channel,",
        "read or write. bound: latency where neither steps nor bytes account for half of the cycles.",
    ]


def overlapped(mode: Performance) -> list[bool]:
    """Which layers take less than the roofline allows them: their bytes came while the layer before computed."""
    return [layer.fewest > 1.01 * layer.cycles for layer in mode.layers]


def as_dict(found: Comparison) -> dict[str, Any]:
    """For JSON; figures of one image, but for the totals of `batch`."""
    shown, config = found.shown, found.shown.config
    return {
        "network": found.network,
        "mhz": found.mhz,
        "batch": shown.batch,
        "writeback": shown.writeback,
        "config": asdict(config),
        "memory": {"bytes_per_cycle": roofline.bandwidth(shown.memory, config), "latency": shown.memory.latency},
        "on_cpu": list(shown.on_cpu),
        **_totals(shown, found.mhz),
        "modes": {"chained": _totals(found.chained, found.mhz), "writeback": _totals(found.written, found.mhz)},
        "layers": [_layer(layer, shown) for layer in shown.layers],
    }


def _totals(mode: Performance, mhz: float) -> dict[str, float]:
    return {
        "cycles_per_batch": round(mode.cycles),
        "cycles_per_image": round(mode.cycles_per_image, 1),
        "images_per_second": round(mode.images_per_second(mhz), 3),
        "gmacs_per_second": round(mode.gmacs_per_second(mhz), 4),
        "busy": round(mode.busy, 4),
        "bytes_read": round(mode.traffic.read / mode.batch, 1),
        "bytes_written": round(mode.traffic.written / mode.batch, 1),
    }


def _layer(layer: LayerPerformance, mode: Performance) -> dict[str, Any]:
    each = mode.batch
    return {
        "layer": layer.name,
        "macs": layer.macs // each,
        "cycles": round(layer.cycles / each, 1),
        "share": round(layer.cycles / mode.cycles, 5),
        "ideal": round(layer.steps / each, 1),
        "roofline": round(layer.fewest / each, 1),
        "bound": layer.bound,
        "busy": round(layer.busy, 4),
        "bytes_read": round(layer.traffic.read / each, 1),
        "bytes_written": round(layer.traffic.written / each, 1),
        "macs_per_byte": round(layer.intensity, 4),
        "macs_per_cycle": round(layer.macs / layer.cycles, 4),
        "where": str(layer.buffers),
    }


def layers_csv(mode: Performance) -> str:
    """One layer a line; figures of one image."""
    rows = [_layer(layer, mode) for layer in mode.layers]
    return csv_text(list(rows[0]), [list(row.values()) for row in rows])


def plot(found: Comparison) -> tuple[bytes, bytes]:
    """The roofline as PNG and SVG: one point a layer, MACs a cycle over MACs a byte, and the two roofs.

    A point's area grows with the layer's share of all cycles. The slowest layers are named.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = found.shown
    style = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "redline"}
    style["text.parse_math"] = False  # a layer may be called $x$
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(10, 6.4), layout="constrained")
        x = np.array([layer.intensity for layer in shown.layers])
        y = np.array([layer.macs / layer.cycles for layer in shown.layers])
        _roofs(axes, shown, x, y)
        share = np.array([layer.cycles / shown.cycles for layer in shown.layers])
        for kind, colour in COLOURS.items():
            mask = np.array([layer.bound == kind for layer in shown.layers])
            if not mask.any():
                continue
            count = f"{mask.sum()} layer{'s' if mask.sum() > 1 else ''}, {share[mask].sum():.1%} of the cycles"
            axes.scatter(
                x[mask],
                y[mask],
                30 + 900 * share[mask],
                color=colour,
                marker=MARKERS[kind],
                alpha=0.75,
                edgecolor="white",
                linewidth=0.8,
                zorder=3,
                label=f"{MEANINGS[kind]} ({count})",
            )
        axes.set_xlabel("MACs a byte of the memory's busier channel (read or write)")
        axes.set_ylabel("MACs a cycle")
        if any(overlapped(shown)):
            axes.plot([], [], " ", label="above the slanted roof: weights came while the layer before computed")
        legend = axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.12), borderaxespad=0)
        for handle in legend.legend_handles:
            if hasattr(handle, "set_sizes"):
                handle.set_sizes([60])
        axes.set_title(
            f"{found.network}: {shown.images_per_second(found.mhz):,.1f} images/s at {found.mhz:g} MHz, "
            f"batch {shown.batch}, {'write-back' if shown.writeback else 'chained on chip'}",
            loc="left",
            fontweight="bold",
            fontsize=13,
        )
        figure.canvas.draw()
        _name_slanted_roof(axes, shown)
        _name(axes, shown, x, y)
        png, svg = io.BytesIO(), io.BytesIO()
        # No dates or versions inside: the same estimate gives the same files.
        figure.savefig(png, format="png", dpi=144, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return png.getvalue(), svg.getvalue()


def _roofs(axes: Any, shown: Performance, x: Floats, y: Floats) -> None:
    """Logarithmic axes that hold all points, and the two roofs with their labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    config = shown.config
    rate, peak = roofline.bandwidth(shown.memory, config), float(config.lanes * config.vec)
    ridge = peak / rate
    low_x, high_x = min(float(x.min()), ridge) / 3, max(float(x.max()), 4 * ridge) * 3
    low_y, high_y = min(float(y.min()) / 2.5, peak / 10), peak * 2
    axes.set(xscale="log", yscale="log", xlim=(low_x, high_x), ylim=(low_y, high_y))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major", color="#dde1e6", linewidth=0.6, zorder=1)
    places = [low_x, ridge, high_x]
    roof = [roofline.attainable(place, config, rate) for place in places]
    axes.plot(places, roof, color="#222222", linewidth=1.8, zorder=2)
    axes.fill_between(places, roof, high_y, color="#eef0f3", zorder=0)
    axes.text(high_x, peak * 1.08, f"{config.lanes}x{config.vec} array: {peak:g} MACs a cycle", ha="right", va="bottom")
    if ridge / max(low_x, low_y / rate) < 6:
        # Too little of the slanted roof to write on.
        axes.text(ridge, peak * 1.08, f"memory: {rate:g} bytes a cycle", ha="center", va="bottom")


def _name_slanted_roof(axes: Any, shown: Performance) -> None:
    """The slanted roof's label along it, at the middle of what can be seen; needs the final layout."""
    rate = roofline.bandwidth(shown.memory, shown.config)
    ridge = shown.config.lanes * shown.config.vec / rate
    start = max(axes.get_xlim()[0], axes.get_ylim()[0] / rate)
    if ridge / start < 6:
        return
    middle = (start * ridge) ** 0.5
    (x0, y0), (x1, y1) = axes.transData.transform([(start, start * rate), (ridge, ridge * rate)])
    axes.annotate(
        f"memory: {rate:g} bytes a cycle",
        (middle, middle * rate),
        xytext=(-4, 4),
        textcoords="offset points",
        ha="center",
        va="bottom",
        rotation=float(np.degrees(np.arctan2(y1 - y0, x1 - x0))),
        rotation_mode="anchor",
    )


def _name(axes: Any, shown: Performance, x: Floats, y: Floats, most: int = 12) -> None:
    """Names of the layers that take longest, beside their points; layers at one place share a label.

    A label that finds no free place is left out: the table has them all.
    """
    from matplotlib.transforms import Bbox

    config, rate = shown.config, roofline.bandwidth(shown.memory, shown.config)
    points = axes.transData.transform(np.stack([x, y], axis=1))
    groups: list[list[int]] = []
    for at in sorted(range(len(x)), key=lambda at: -shown.layers[at].cycles)[:most]:
        near = [group for group in groups if np.abs(points[group[0]] - points[at]).max() < 16]
        if near:
            near[0].append(at)
        else:
            groups.append([at])
    taken = [Bbox.from_extents(px - 6, py - 6, px + 6, py + 6) for px, py in points]
    taken += [text.get_window_extent() for text in axes.texts if not text.get_rotation()]
    frame = axes.get_window_extent()
    places = np.geomspace(axes.get_xlim()[0], axes.get_xlim()[1], 400)
    roof = axes.transData.transform([(place, roofline.attainable(float(place), config, rate)) for place in places])
    for group in groups:
        names = [shown.layers[at].name for at in group]
        words = "\n".join(names[:3] + ([f"+{len(names) - 3}"] if len(names) > 3 else []))
        first = group[0]
        radius = ((30 + 900 * shown.layers[first].cycles / shown.cycles) / np.pi) ** 0.5 + 4
        for dx, dy, ha, va in (
            (0, -radius, "center", "top"),
            (radius, 0, "left", "center"),
            (-radius, 0, "right", "center"),
            (radius, -radius, "left", "top"),
            (-radius, -radius, "right", "top"),
            (0, -radius - 28, "center", "top"),
            (0, radius, "center", "bottom"),
        ):
            label = axes.annotate(
                words,
                (x[first], y[first]),
                xytext=(dx, dy),
                textcoords="offset points",
                ha=ha,
                va=va,
                fontsize=9,
                linespacing=1.05,
                zorder=4,
            )
            box = label.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            crosses = any(box.contains(px, py) for px, py in roof)
            if inside and not crosses and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                if abs(dy) > radius:
                    line = {"arrowstyle": "-", "color": "#9aa5b4", "linewidth": 0.6}
                    axes.annotate("", (x[first], y[first]), (dx, dy), textcoords="offset points", arrowprops=line)
                break
            label.remove()
