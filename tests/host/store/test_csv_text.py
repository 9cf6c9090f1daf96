"""A spreadsheet finds no formula in a CSV of ours, and every number as it is."""

from __future__ import annotations

import csv
import io

import pytest

from host.store.csv_text import csv_text


@pytest.mark.parametrize("name", ["=cmd|calc", "+1+1", "-2+3|cmd", "@SUM(A1)", "\tx", "=1", "=", "-", "-conv"])
def test_what_a_spreadsheet_would_compute_is_text(name: str) -> None:
    for text in (csv_text([name], []), csv_text(["layer"], [[name]])):
        assert f"'{name}" in list(csv.reader(io.StringIO(text, newline="")))[-1]


def test_numbers_and_plain_names_are_untouched() -> None:
    row = ["conv1", -1, -0.25, "-0.250000", "+1.5", "-1e-3", "", "a=b", "a,b", 'say "x"', None, "-inf"]
    read = next(iter(csv.reader(io.StringIO(csv_text(["h"], [row]).split("\n", 1)[1]))))
    assert read == ["" if value is None else str(value) for value in row]


@pytest.mark.parametrize("text", ["a\r=1", "\r=1", "a\n=1", 'a"\n=1'])
def test_a_name_is_one_cell_whatever_is_in_it(text: str) -> None:
    head, row = csv.reader(io.StringIO(csv_text(["layer"], [[text]]), newline=""))
    assert head == ["layer"]
    assert row == [text.replace("\r", "\\r")]
