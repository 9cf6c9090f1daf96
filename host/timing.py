"""The validation of the timing model as a page and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hw.errors import RedlineError
from sim.timing.validate import REJECTS, Point

BEGIN, END = "<!-- validation: written by `redline timing validate` -->", "<!-- end of validation -->"
PAGE, PLOT = "timing.md", "timing-validation.png"


class PageError(RedlineError, ValueError):
    """The page that the validation is written into is missing or has no place for it."""


def has_page(folder: Path) -> bool:
    """Whether the folder has the page, with its place for the validation."""
    page = folder / PAGE
    if not page.is_file():
        return False
    text = page.read_text(errors="replace")
    return BEGIN in text and END in text


def check_page(folder: Path) -> None:
    """Raise `PageError` unless the folder has the page, with its place for the validation."""
    if not has_page(folder):
        raise PageError(
            f"{folder / PAGE} is missing or has no place for the validation: name Redline's docs with --docs"
        )


def write(folder: Path, points: Sequence[Point], summary: dict[str, Any]) -> None:
    """Put the validation's table into `timing.md` and its plot beside it.

    Raises
    ------
    PageError
        If the page has no place for it.
    """
    check_page(folder)
    page = folder / PAGE
    text = page.read_text()
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    page.write_text(f"{before}{BEGIN}\n\n{markdown(points, summary)}\n{END}{after}")
    plot(folder / PLOT, points)


def markdown(points: Sequence[Point], summary: dict[str, Any]) -> str:
    """The figures, then every point."""
    lines = [
        f"Placement seeds {', '.join(map(str, summary['seeds']))}; {len(summary['lanes'])} lanes; operand streams of "
        f"LeNet-5 ({'; '.join(summary['streams'])}), {summary['steps']} steps each.",
        "",
        "| oracle | model | wrong steps | points | rate, model / oracle | bit F1 |",
        "|---|---|---|---|---|---|",
    ]
    for reject in REJECTS:
        for which in ("model", "majority", "naive"):
            for band, entry in summary[f"reject_{reject}_ps"][which].items():
                if entry["points"]:
                    span = f"{entry['lowest_rate_factor']:.3f} to {entry['highest_rate_factor']:.3f}"
                    lines.append(
                        f"| {_oracle(reject)} | {_NAMES[which]} | {_BANDS[band]} | {entry['points']} | {span} | "
                        f"{_number(entry['bit_f1'])} |"
                    )
    same = {reject: summary[f"reject_{reject}_ps"]["free_running_identical"] for reject in REJECTS}
    lines += [
        "",
        "Within the limits that were set beforehand (`sim.timing.validate.ACCEPTED`): "
        f"{'yes' if summary['accepted'] else 'NO'}.",
        "",
        "Free-running accumulators, model and oracle without pulse rejection, every step of every point: "
        f"{'identical' if same[0] else 'NOT IDENTICAL'}.",
        "",
        "| seed | lane | stream | period, ps | of longest | oracle 0 ps | model | F1 | oracle 100 ps | F1 | naive |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    with_rejection = {_place(point): point for point in points if point.reject_ps == REJECTS[1]}
    for point in points:
        other = with_rejection.get(_place(point))
        if point.reject_ps or other is None:
            continue
        lines.append(
            f"| {point.seed} | {point.lane} | {point.stream.split(',')[0]} | {point.period_ps} | "
            f"{point.period_ps / point.onset_ps:.3f} | {point.oracle_rate:.4f} | {point.model.rate:.4f} | "
            f"{_number(point.model.bit_f1)} | {other.oracle_rate:.4f} | {_number(other.model.bit_f1)} | "
            f"{point.naive.rate:.4f} |"
        )
    return "\n".join([*lines, ""])


_BANDS = {"many": "5 % and more", "few": "1 to 5 %"}
_NAMES = {"model": "capture formula", "majority": "with the majority filter", "naive": "naive old value"}


def _oracle(reject: int) -> str:
    return "every pulse counts" if not reject else f"pulses under {reject} ps are swallowed"


def _place(point: Point) -> tuple[int, int, int]:
    return point.seed, point.lane, point.period_ps


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def plot(path: Path, points: Sequence[Point]) -> None:
    """Wrong steps over the clock period: a panel for each lane, with the oracle's points and the models' lines."""
    from matplotlib.figure import Figure

    places = sorted({(point.seed, point.lane) for point in points})
    columns = min(3, len(places))
    rows = -(-len(places) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axis in axes.flat[len(places) :]:
        axis.set_visible(False)
    for axis, (seed, lane) in zip(axes.flat, places, strict=False):
        here = sorted(
            (point for point in points if (point.seed, point.lane) == (seed, lane)), key=lambda point: point.period_ps
        )
        plain, rejecting = ([point for point in here if point.reject_ps == reject] for reject in REJECTS)
        periods = [point.period_ps / 1000 for point in plain]
        axis.plot(periods, [100 * point.naive.rate for point in plain], "--", color="tab:gray", label="naive old value")
        axis.plot(periods, [100 * point.model.rate for point in plain], color="tab:blue", label="capture formula")
        axis.plot(
            periods,
            [100 * point.oracle_rate for point in plain],
            "o",
            color="tab:orange",
            label="gate-level, every pulse",
        )
        axis.plot(
            [point.period_ps / 1000 for point in rejecting],
            [100 * point.oracle_rate for point in rejecting],
            "x",
            color="tab:red",
            label=f"gate-level, {REJECTS[1]} ps rejection",
        )
        axis.axvline(here[0].onset_ps / 1000, color="black", linewidth=0.8, linestyle=":")
        axis.set_yscale("symlog", linthresh=0.1)
        axis.set_ylim(0, 130)
        axis.set_title(f"seed {seed}, lane {lane}: {here[0].stream.split(',')[0]}", fontsize=9)
        axis.set_xlabel("clock period, ns (dotted: longest path)", fontsize=8)
    for row in axes:
        row[0].set_ylabel("wrong steps, %")
    axes[0][0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
