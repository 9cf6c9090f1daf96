"""A run's results as people read them: table, plot, and a report for browser and text editor."""

from __future__ import annotations

import base64
import csv
import html
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from host.devices.device import LaunchReport
from host.stats import Paired, Rate, paired
from host.store.files import write_atomic
from host.training.train import Evaluation

COLOURS = {"original": "#d1495b", "CLP": "#8d96a3", "TWA": "#edae49", "TWA+CLP": "#00798c"}
WORDS = {
    "float": "the pretrained network in float, without an accelerator",
    "int8, fault-free": "the same network in the accelerator's integers, no faults",
    "original": "the pretrained network on the faulty accelerator",
    "CLP": "the pretrained network on the faulty accelerator, its critical layer protected (on the CPU)",
    "TWA": "retrained with the faulty accelerator in its forward pass",
    "TWA+CLP": "retrained with the faulty accelerator, its critical layer protected",
}


@dataclass(frozen=True)
class Row:
    """One treatment at one fault rate (None: no faults)."""

    rate: float | None
    treatment: str
    protected: tuple[str, ...]
    accuracy: Rate
    against_name: str
    against: Paired | None
    evaluation: Evaluation
    choice: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        rate: float | None,
        treatment: str,
        evaluation: Evaluation,
        *,
        against: Evaluation | None = None,
        against_name: str = "float",
        protected: tuple[str, ...] = (),
        choice: dict[str, Any] | None = None,
    ) -> Row:
        """A row; `against` is what it is compared with, image by image."""
        comparison = None if against is None else paired(against.right, evaluation.right)
        name = "" if against is None else against_name
        accuracy = Rate.of(evaluation.right)
        return cls(rate, treatment, protected, accuracy, name, comparison, evaluation, choice)


@dataclass(frozen=True)
class WriteBack:
    """The same images with and without writing every layer's output back to memory."""

    images: int
    off: LaunchReport
    on: LaunchReport
    equal: bool


@dataclass(frozen=True)
class Summary:
    """Everything a report shows.

    Attributes
    ----------
    images : uint8 array, shape (n, H, W)
        The first test images, to look at.
    labels : list of str
        What they show.
    """

    title: str
    settings: dict[str, Any]
    versions: dict[str, str]
    rows: list[Row]
    writeback: WriteBack
    images: npt.NDArray[np.uint8]
    labels: list[str]
    classes: list[str]


def write(folder: Path, summary: Summary) -> None:
    """Write results.csv, plot.png, plot.svg, report.md and report.html."""
    write_atomic(folder / "results.csv", table_csv(summary))
    png, svg = plot(summary)
    write_atomic(folder / "plot.png", png)
    write_atomic(folder / "plot.svg", svg)
    write_atomic(folder / "report.md", markdown(summary))
    write_atomic(folder / "report.html", page(summary, svg))


# ---- tables

CSV_COLUMNS = (
    *("rate_per_mac", "treatment", "protected", "images", "right", "accuracy", "wilson95_low", "wilson95_high"),
    *("compared_with", "gained", "lost", "difference", "difference95_low", "difference95_high", "mcnemar_p"),
    *("faults_applied", "cycles", "mac_cycles", "stall_cycles", "bytes_read", "bytes_written"),
)

Table = tuple[list[str], list[list[str]]]


def table_csv(summary: Summary) -> str:
    """The results, one treatment a line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in summary.rows:
        low, high = row.accuracy.interval
        pair = row.against
        compared = (
            ["", "", "", "", "", "", ""]
            if pair is None
            else [
                row.against_name,
                pair.gained,
                pair.lost,
                f"{pair.difference:.6f}",
                f"{pair.interval[0]:.6f}",
                f"{pair.interval[1]:.6f}",
                f"{pair.p_value:.3g}",
            ]
        )
        counted = row.evaluation.report
        writer.writerow(
            [
                "" if row.rate is None else f"{row.rate:g}",
                row.treatment,
                " ".join(row.protected),
                row.accuracy.trials,
                row.accuracy.successes,
                f"{row.accuracy.value:.6f}",
                f"{low:.6f}",
                f"{high:.6f}",
                *compared,
                counted.faults_applied,
                counted.cycles,
                counted.mac_cycles,
                counted.stall_cycles,
                counted.bytes_read,
                counted.bytes_written,
            ]
        )
    return out.getvalue()


def results_table(summary: Summary) -> Table:
    """Accuracy with its interval, and the paired comparison."""
    body = []
    for row in summary.rows:
        low, high = row.accuracy.interval
        pair = row.against
        faults = row.evaluation.report.faults_applied
        if pair is None:
            compared = ["", "", ""]
        else:
            ends = f"[{100 * pair.interval[0]:+.1f}, {100 * pair.interval[1]:+.1f}]"
            compared = [
                f"{100 * pair.difference:+.2f} {ends} vs {row.against_name}",
                f"{pair.gained} / {pair.lost}",
                p_value(pair.p_value),
            ]
        body.append(
            [
                "none" if row.rate is None else f"{row.rate:g}",
                row.treatment + (f" ({', '.join(row.protected)})" if row.protected else ""),
                f"{100 * row.accuracy.value:.2f} %",
                f"{100 * low:.2f} to {100 * high:.2f} %",
                *compared,
                "" if row.rate is None else f"{faults / row.accuracy.trials:.1f}",
            ]
        )
    head = [
        "faults per MAC",
        "network",
        "accuracy",
        "95 % interval",
        "change, points [95 %]",
        "gained / lost",
        "p",
        "faults / image",
    ]
    return head, body


def short_table(summary: Summary) -> Table:
    """The results for a terminal."""
    body = []
    for row in summary.rows:
        low, high = row.accuracy.interval
        change = "" if row.against is None else f"{100 * row.against.difference:+.2f} vs {row.against_name}"
        body.append(
            [
                "none" if row.rate is None else f"{row.rate:g}",
                row.treatment + (f" ({', '.join(row.protected)})" if row.protected else ""),
                f"{100 * row.accuracy.value:.2f} % ({100 * low:.1f}-{100 * high:.1f})",
                change,
                "" if row.against is None else p_value(row.against.p_value),
            ]
        )
    return ["per MAC", "network", "accuracy (95 %)", "change, points", "p"], body


def writeback_table(summary: Summary) -> Table:
    """Cycles and bytes an image."""
    wb = summary.writeback
    body = []
    for name, counted in (("off (inference)", wb.off), ("on (training)", wb.on)):
        per = [counted.cycles, counted.mac_cycles, counted.stall_cycles, counted.bytes_read, counted.bytes_written]
        busy = f"{100 * counted.mac_cycles / counted.cycles:.1f} %" if counted.cycles else ""
        body.append([name, *(f"{value / wb.images:,.1f}" for value in per), busy])
    head = ["write-back", "cycles", "MAC cycles", "stalled", "bytes read", "bytes written", "MAC busy"]
    return head, body


def protection_table(summary: Summary) -> Table | None:
    """Share of badly wrong outputs of every layer, per fault rate."""
    chosen = [(row.rate, row.choice) for row in summary.rows if row.choice is not None]
    if not chosen:
        return None
    layers = list(chosen[0][1]["scores"]) if chosen[0][1] else []
    body = []
    for rate, choice in chosen:
        assert choice is not None
        shares = [f"{100 * choice['scores'][name]:.2f} %" for name in layers]
        body.append([f"{rate:g}", *shares, ", ".join(choice["names"])])
    return ["faults per MAC", *layers, "protected"], body


def predictions_table(summary: Summary) -> Table:
    """What each treatment takes the first test images for; only rows worth comparing."""
    rows = [row for row in summary.rows if row.treatment != "float"]
    head = ["network", *summary.labels]
    body = []
    for row in rows:
        name = row.treatment if row.rate is None else f"{row.treatment}, {row.rate:g}"
        guesses = [summary.classes[i] for i in row.evaluation.predicted[: len(summary.labels)].tolist()]
        marks = ["=" if guess == label else guess for guess, label in zip(guesses, summary.labels, strict=True)]
        body.append([name, *marks])
    return head, body


def p_value(p: float) -> str:
    """A p-value as people write it."""
    return "< 1e-12" if p < 1e-12 else f"{p:.2g}"


# ---- plot


def plot(summary: Summary) -> tuple[bytes, bytes]:
    """Accuracy against fault rate, and errors by layer: PNG and SVG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    faulty = [row for row in summary.rows if row.rate is not None]
    rates = sorted({row.rate for row in faulty if row.rate is not None})
    base = {row.treatment: row for row in summary.rows if row.rate is None}
    style = {
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "redline",
        "figure.facecolor": "white",
    }
    with plt.rc_context(style):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(12, 5), gridspec_kw={"width_ratios": [3, 2]}, layout="constrained"
        )
        clean = base["int8, fault-free"].accuracy
        left.axhline(100 * clean.value, color="#222222", linewidth=1, linestyle=(0, (6, 3)))
        left.annotate(
            f"fault-free int8: {100 * clean.value:.1f} %",
            (1, 100 * clean.value),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 4),
            textcoords="offset points",
            ha="right",
            color="#222222",
        )
        treatments = [name for name in COLOURS if any(row.treatment == name for row in faulty)]
        width = 0.8 / len(treatments)
        for at, name in enumerate(treatments):
            rows = sorted((row for row in faulty if row.treatment == name), key=lambda row: row.rate or 0)
            x = np.arange(len(rates)) + (at - (len(treatments) - 1) / 2) * width
            y = np.array([100 * row.accuracy.value for row in rows])
            ends = np.array([row.accuracy.interval for row in rows]) * 100
            bars = left.bar(x, y, width * 0.92, color=COLOURS[name], label=name)
            left.errorbar(
                x, y, [y - ends[:, 0], ends[:, 1] - y], fmt="none", ecolor="#222222", capsize=2.5, linewidth=1
            )
            left.bar_label(bars, [f"{value:.0f}" for value in y], label_type="center", color="white", fontsize=10)
        left.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        left.set_xlabel("soft errors per MAC (bit flips in the accumulator, per accumulation step)")
        left.set_ylabel(f"accuracy on {summary.writeback.images:,} test images, %")
        left.set_ylim(0, 108)
        left.set_yticks(range(0, 101, 20))
        left.legend(frameon=False, ncols=len(treatments), loc="upper left", bbox_to_anchor=(0, 1.1), borderaxespad=0)
        left.text(0, 1.12, "Damage and recovery", transform=left.transAxes, fontweight="bold", fontsize=13)

        chosen = [(row.rate, row.choice) for row in faulty if row.choice is not None]
        layers = list(chosen[0][1]["scores"]) if chosen and chosen[0][1] else []
        shades = ["#f3b7be", "#d1495b", "#7d1f2d", "#3b0d14"]
        for at, (rate, choice) in enumerate(chosen):
            assert choice is not None
            height = 0.8 / len(chosen)
            y = np.arange(len(layers)) + (at - (len(chosen) - 1) / 2) * height
            shares = [100 * choice["scores"][name] for name in layers]
            bars = right.barh(y, shares, height * 0.9, color=shades[at % len(shades)], label=f"{rate:g}")
            labels = ["protected" if name in choice["names"] else "" for name in layers]
            right.bar_label(bars, labels, padding=3, fontsize=9)
        right.set_yticks(range(len(layers)), layers)
        right.invert_yaxis()
        right.margins(x=0.2)
        right.set_xlabel(f"outputs off by more than {summary.settings.get('threshold', 5)} units, %")
        right.legend(frameon=False, ncols=4, loc="upper left", bbox_to_anchor=(0, 1.1), borderaxespad=0)
        right.text(0, 1.12, "Which layer makes the errors", transform=right.transAxes, fontweight="bold", fontsize=13)

        png, svg = io.BytesIO(), io.BytesIO()
        # No dates or versions inside: the same run gives the same files.
        figure.savefig(png, format="png", dpi=144, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return png.getvalue(), svg.getvalue()


# ---- reports


def headline(summary: Summary) -> list[str]:
    """The result in sentences, one a fault rate."""
    by = {(row.rate, row.treatment): row for row in summary.rows}
    clean = by[(None, "int8, fault-free")].accuracy
    said = []
    for rate in sorted({row.rate for row in summary.rows if row.rate is not None}):
        original, twa, both = (by[(rate, name)].accuracy.value for name in ("original", "TWA", "TWA+CLP"))
        lost = clean.value - original
        regained = (both - original) / lost if lost > 0 else 0.0
        said.append(
            f"At {rate:g} faults per MAC, accuracy falls from {100 * clean.value:.1f} % to {100 * original:.1f} %; "
            f"retraining with the accelerator (TWA) brings it to {100 * twa:.1f} %, and with the critical layer "
            f"protected (TWA+CLP) to {100 * both:.1f} %: {100 * regained:.0f} % of the loss is recovered."
        )
    return said


def how(summary: Summary) -> list[str]:
    """What was done, in sentences."""
    s = summary.settings
    if s["device"] == "simulation":
        device = (
            f"Every forward pass, in evaluation and in retraining, was computed by the accelerator's RTL "
            f"({s['lanes']} lanes x vec {s['vec']}) under Verilator and cocotb, in {s['units']} simulator process(es)."
        )
    else:
        device = (
            f"Forward passes were computed by the `{s['device']}` device, not by the RTL: bit-exact in results, but it "
            f"counts no cycles or bytes."
        )
    return [
        device,
        "Faults flip one bit of a lane's 32-bit accumulator after an accumulation step, drawn uniformly over all "
        "steps, outputs, images and bits; all networks at one rate meet the same faults.",
        f"Each retraining saw {s['train_images']:,} training images in batches of {s['batch']} (SGD, learning "
        f"rate {s['lr']:g}), under faults other than those of the test.",
        f"The protected layer is the one with the largest share of outputs more than {s['threshold']} units off "
        f"(measured on {s['probe_images']} training images); it runs on the CPU in the same integers.",
        "Intervals are Wilson's at 95 %; changes are paired image by image (Newcombe's interval, exact McNemar test).",
    ]


def writeback_words(summary: Summary) -> str:
    """What the write-back table shows."""
    wb = summary.writeback
    same = (
        "Both gave the same outputs, byte for byte."
        if wb.equal
        else "THE OUTPUTS DIFFER: the accelerator has a defect."
    )
    if not wb.off.cycles:
        return f"{same} This device counts no cycles; use the simulation for those."
    cycles = wb.on.cycles / wb.off.cycles
    return (
        f"{same} Writing every layer's output back takes {cycles:.2f}x the cycles of inference and "
        f"{wb.on.bytes_written / max(1, wb.off.bytes_written):.0f}x the written bytes. Figures are per image."
    )


def markdown(summary: Summary) -> str:
    """The report for a text editor."""
    protection = protection_table(summary)
    parts = [
        f"# {summary.title}",
        "\n".join(f"* {line}" for line in headline(summary)),
        "![Accuracy against fault rate, and errors by layer](plot.png)",
        "## Results",
        _markdown_table(results_table(summary)),
        "\n".join(
            f"* **{name}**: {text}" for name, text in WORDS.items() if any(r.treatment == name for r in summary.rows)
        ),
    ]
    if protection is not None:
        parts += ["## The protected layer", _protection_words(summary), _markdown_table(protection)]
    parts += [
        "## Write-back",
        writeback_words(summary),
        _markdown_table(writeback_table(summary)),
        "## How",
        "\n".join(f"* {line}" for line in how(summary)),
        "## Settings",
        _markdown_table((["setting", "value"], [[k, _shown(v)] for k, v in summary.settings.items()])),
        _markdown_table((["software", "version"], [[k, v] for k, v in summary.versions.items()])),
    ]
    return "\n\n".join(parts) + "\n"


def _protection_words(summary: Summary) -> str:
    return (
        f"Share of each layer's outputs that are more than {summary.settings['threshold']} units off, compared with "
        "what the layer makes of the same input without faults; the layer with the largest share is protected."
    )


def _shown(value: Any) -> str:
    return ", ".join(f"{v:g}" for v in value) if isinstance(value, (list, tuple)) else str(value)


def _markdown_table(table: Table) -> str:
    head, body = table
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [head, *body]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5c6675; --line: #d9dee5; --paper: #ffffff; --bad: #d1495b;
  --good: #00798c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #343c48; --paper: #14181f;
  --bad: #f08a97; --good: #56c4d6; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 80rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
tr.group td { border-top: 2px solid var(--line); }
figure { margin: 1.5rem 0; background: #fff; border-radius: 6px; padding: .5rem; }
figure svg { width: 100%; height: auto; }
.wrong { color: var(--bad); } .right { color: var(--good); }
img.sample { width: 44px; height: 44px; image-rendering: pixelated; display: block; }
details { margin-top: 1rem; }
"""


def page(summary: Summary, svg: bytes) -> str:
    """The report for a browser: one file that needs nothing else."""
    picture = svg.decode()
    picture = picture[picture.index("<svg") :]
    protection = protection_table(summary)
    say = html.escape
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{say(summary.title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{say(summary.title)}</h1>",
        "".join(f"<p>{say(line)}</p>" for line in headline(summary)),
        f'<figure role="img" aria-label="Accuracy against fault rate, and errors by layer">{picture}</figure>',
        "<h2>Results</h2>",
        _html_table(results_table(summary), group=0),
        "<ul>",
        *(
            f"<li><b>{say(name)}</b>: {say(text)}</li>"
            for name, text in WORDS.items()
            if any(r.treatment == name for r in summary.rows)
        ),
        "</ul>",
        "<h2>The first test images, and what each network takes them for</h2>",
        _html_samples(summary),
    ]
    if protection is not None:
        parts += [
            "<h2>The protected layer</h2>",
            f"<p>{say(_protection_words(summary))}</p>",
            _html_table(protection),
        ]
    parts += [
        "<h2>Write-back</h2>",
        f"<p>{say(writeback_words(summary))}</p>",
        _html_table(writeback_table(summary)),
        "<h2>How</h2><ul>",
        *(f"<li>{say(line)}</li>" for line in how(summary)),
        "</ul><details><summary>Settings and versions</summary>",
        _html_table((["setting", "value"], [[k, _shown(v)] for k, v in summary.settings.items()])),
        _html_table((["software", "version"], [[k, v] for k, v in summary.versions.items()])),
        "</details></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _html_table(table: Table, group: int | None = None) -> str:
    """A table; with `group`, a line above each row whose cell of that column differs from the one before."""
    head, body = table
    out = [
        "<div class=scroll><table><thead><tr>",
        *(f"<th>{html.escape(c)}</th>" for c in head),
        "</tr></thead><tbody>",
    ]
    before = None
    for row in body:
        mark = " class=group" if group is not None and before is not None and row[group] != before else ""
        before = row[group] if group is not None else None
        out.append(f"<tr{mark}>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>")
    out.append("</tbody></table></div>")
    return "".join(out)


def _html_samples(summary: Summary) -> str:
    head, body = predictions_table(summary)
    out = ["<div class=scroll><table><thead><tr><th></th>"]
    for image, label in zip(summary.images, summary.labels, strict=True):
        out.append(
            f'<th><img class=sample alt="{html.escape(label)}" src="data:image/png;base64,{_png(image)}">'
            f"{html.escape(label)}</th>"
        )
    out.append("</tr></thead><tbody>")
    for row in body:
        cells = [
            "<td class=right>&#10003;</td>" if c == "=" else f"<td class=wrong>{html.escape(c)}</td>" for c in row[1:]
        ]
        out.append(f"<tr><td>{html.escape(row[0])}</td>{''.join(cells)}</tr>")
    out.append("</tbody></table></div>")
    return "".join(out)


def _png(image: npt.NDArray[np.uint8]) -> str:
    """A grey image as base64 PNG, dark on light."""
    from matplotlib import image as images

    out = io.BytesIO()
    images.imsave(out, 255 - image, cmap="gray", vmin=0, vmax=255, format="png", metadata={"Software": ""})
    return base64.b64encode(out.getvalue()).decode()
