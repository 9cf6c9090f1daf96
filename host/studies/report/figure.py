"""The look that all figures share, and their rendering as PNG and SVG."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from host.studies.report.document import Figure

COLOURS = {
    "original": "#d1495b",
    "CLP": "#8d96a3",
    "TWA": "#edae49",
    "TWA+CLP": "#00798c",
    "retrained fault-free": "#6a4c93",
    "noise": "#80b918",
    "dropout": "#a47148",
}
"""A treatment has the same colour in every figure."""
INK = "#222222"
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "redline",
    "figure.facecolor": "white",
}


@contextmanager
def pyplot(*, mathematics: bool = True) -> Iterator[Any]:
    """matplotlib's pyplot in the shared style, without a screen.

    Without `mathematics`, a dollar sign is one: in names of a user's layers.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context({**STYLE, "text.parse_math": mathematics}):
        yield plt


def render(figure: Any, name: str, alt: str) -> Figure:
    """PNG and SVG of a matplotlib figure; no dates or versions inside: the same run gives the same files."""
    from matplotlib import pyplot as plt

    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=144, metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return Figure(name, alt, png.getvalue(), svg.getvalue())


def title(axes: Any, text: str) -> None:
    """A panel's title, above its legend."""
    axes.text(0, 1.12, text, transform=axes.transAxes, fontweight="bold", fontsize=13)


def legend(axes: Any, columns: int) -> None:
    """A panel's legend, in a row above it."""
    axes.legend(
        frameon=False,
        ncols=columns,
        loc="upper left",
        bbox_to_anchor=(0, 1.1),
        borderaxespad=0,
        handlelength=1.2,
        handletextpad=0.4,
        columnspacing=1.0,
    )
