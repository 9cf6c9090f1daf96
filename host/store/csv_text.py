"""CSV whose cells are read as what they are, also by spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

STARTS = ("=", "+", "-", "@", "\t")
"""A text that begins so is a formula to a spreadsheet (OWASP, CSV Injection)."""


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A head and rows as CSV; numbers as Python prints them.

    A text that a spreadsheet would take for a formula gets an apostrophe before it, unless it is a number.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_cell(value) for value in head])
    writer.writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # The writer does not quote it, and readers end a row there.
    value = value.replace("\r", "\\r")
    if not value.startswith(STARTS):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
