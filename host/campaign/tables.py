"""What campaigns and their analyses write: CSV, and a figure of the same name as PNG and SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from host.store.csv_text import csv_text
from host.store.files import write_atomic
from host.studies.report.document import Figure


def write_csv(path: Path, head: list[str], rows: list[list[Any]]) -> Path:
    """A CSV file, in one step; numbers as Python prints them. Returns the file."""
    write_atomic(path, csv_text(head, rows))
    return path


def write_figure(folder: Path, drawn: Figure) -> list[Path]:
    """A figure's files, and which they are."""
    files = {folder / f"{drawn.name}.png": drawn.png, folder / f"{drawn.name}.svg": drawn.svg}
    for path, content in files.items():
        write_atomic(path, content)
    return list(files)
