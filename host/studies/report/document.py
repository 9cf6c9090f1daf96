"""A report, written once and rendered twice: Markdown for a text editor, one self-contained page for a browser."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from host.store.files import write_atomic


@dataclass(frozen=True)
class Table:
    """Cells as text; a line is drawn above each row whose cell of column `group` differs from the one before."""

    head: list[str]
    body: list[list[str]]
    group: int | None = None


@dataclass(frozen=True)
class Figure:
    """A picture, written as NAME.png and NAME.svg beside the report."""

    name: str
    alt: str
    png: bytes
    svg: bytes


@dataclass(frozen=True)
class Bullets:
    """A list; the part of a line before ": " is set in bold where `terms` is true."""

    lines: Sequence[str]
    terms: bool = False


@dataclass(frozen=True)
class Samples:
    """Grey images, uint8 of shape (n, H, W), what they show, and what rows of guesses take them for ("=": right)."""

    images: npt.NDArray[np.uint8]
    labels: list[str]
    guesses: list[tuple[str, list[str]]]


Block = str | Table | Figure | Bullets | Samples


@dataclass(frozen=True)
class Section:
    """A heading (none if empty) and what stands under it; a folded section is closed until clicked at."""

    title: str
    blocks: list[Block]
    folded: bool = False


@dataclass(frozen=True)
class Document:
    """A title and sections."""

    title: str
    sections: list[Section]


def write(folder: Path, document: Document) -> None:
    """Write report.md, report.html and the figures."""
    for section in document.sections:
        for block in section.blocks:
            if isinstance(block, Figure):
                write_atomic(folder / f"{block.name}.png", block.png)
                write_atomic(folder / f"{block.name}.svg", block.svg)
    write_atomic(folder / "report.md", markdown(document))
    write_atomic(folder / "report.html", page(document))


# ---- for a text editor


def markdown(document: Document) -> str:
    """The report as Markdown; figures are links to the files beside it, samples are left out."""
    parts = [f"# {document.title}"]
    for section in document.sections:
        if section.title:
            parts.append(f"## {section.title}")
        parts += [text for block in section.blocks if (text := _markdown(block))]
    return "\n\n".join(parts) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, str):
        return block
    if isinstance(block, Figure):
        return f"![{block.alt}]({block.name}.png)"
    if isinstance(block, Bullets):
        lines = [line.split(": ", 1) for line in block.lines]
        return "\n".join(
            f"* **{parts[0]}**: {parts[1]}" if block.terms and len(parts) == 2 else "* " + ": ".join(parts)
            for parts in lines
        )
    if isinstance(block, Table):
        return _markdown_table(block)
    return ""


def _markdown_table(table: Table) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [table.head, *table.body]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.head))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


# ---- for a browser

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


def page(document: Document) -> str:
    """The report as one HTML file that needs nothing else."""
    say = html.escape
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{say(document.title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{say(document.title)}</h1>",
    ]
    for section in document.sections:
        blocks = [_html(block) for block in section.blocks]
        if section.folded:
            parts += [f"<details><summary>{say(section.title)}</summary>", *blocks, "</details>"]
        else:
            parts += ([f"<h2>{say(section.title)}</h2>"] if section.title else []) + blocks
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _html(block: Block) -> str:
    say = html.escape
    if isinstance(block, str):
        return f"<p>{say(block)}</p>"
    if isinstance(block, Figure):
        picture = block.svg.decode()
        return f'<figure role="img" aria-label="{say(block.alt)}">{picture[picture.index("<svg") :]}</figure>'
    if isinstance(block, Bullets):
        lines = [say(line).split(": ", 1) for line in block.lines]
        items = [
            f"<b>{parts[0]}</b>: {parts[1]}" if block.terms and len(parts) == 2 else ": ".join(parts) for parts in lines
        ]
        return "<ul>" + "\n".join(f"<li>{item}</li>" for item in items) + "</ul>"
    if isinstance(block, Table):
        return _html_table(block)
    return _html_samples(block)


def _html_table(table: Table) -> str:
    out = [
        "<div class=scroll><table><thead><tr>",
        *(f"<th>{html.escape(cell)}</th>" for cell in table.head),
        "</tr></thead><tbody>",
    ]
    before = None
    for row in table.body:
        mine = None if table.group is None else row[table.group]
        out.append("<tr class=group>" if before is not None and mine != before else "<tr>")
        before = mine
        out.append("".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    out.append("</tbody></table></div>")
    return "".join(out)


def _html_samples(samples: Samples) -> str:
    out = ["<div class=scroll><table><thead><tr><th></th>"]
    for image, label in zip(samples.images, samples.labels, strict=True):
        out.append(
            f'<th><img class=sample alt="{html.escape(label)}" src="data:image/png;base64,{_png(image)}">'
            f"{html.escape(label)}</th>"
        )
    out.append("</tr></thead><tbody>")
    for name, guesses in samples.guesses:
        cells = [
            "<td class=right>&#10003;</td>" if guess == "=" else f"<td class=wrong>{html.escape(guess)}</td>"
            for guess in guesses
        ]
        out.append(f"<tr><td>{html.escape(name)}</td>{''.join(cells)}</tr>")
    out.append("</tbody></table></div>")
    return "".join(out)


def _png(image: npt.NDArray[np.uint8]) -> str:
    """A grey image as base64 PNG, dark on light."""
    from matplotlib import image as images

    out = io.BytesIO()
    images.imsave(out, 255 - image, cmap="gray", vmin=0, vmax=255, format="png", metadata={"Software": ""})
    return base64.b64encode(out.getvalue()).decode()
