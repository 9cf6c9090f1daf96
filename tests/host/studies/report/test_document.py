"""Reports: the same content as Markdown and as one HTML file, whatever characters are in it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from host.studies.report import document, figure
from host.studies.report.document import Bullets, Document, Figure, Samples, Section, Table


class Reader(HTMLParser):
    """Collects text by tag, and refuses tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text[self.open[-1]][-1] += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


words = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(words, min_size=3, max_size=3), min_size=1, max_size=5), words)
def test_a_tables_cells_arrive_in_the_page_as_they_are(rows: list[list[str]], name: str) -> None:
    table = Table(["a", "b", "c"], rows, group=0)
    found = read(document.page(Document(name, [Section("s", [table, Bullets([name])])])))
    assert found.text["td"] == [cell for row in rows for cell in row]
    assert found.text["h1"] == [name]


def test_groups_are_separated_where_their_column_changes() -> None:
    table = Table(["a", "b"], [["1", "x"], ["1", "y"], ["2", "z"]], group=0)
    page = document.page(Document("t", [Section("", [table])]))
    assert page.count("<tr class=group>") == 1
    assert page.index("<tr class=group>") > page.index("<td>y</td>")


def test_markdown_tables_are_aligned_and_pipes_escaped() -> None:
    text = document.markdown(Document("t", [Section("s", [Table(["a", "long head"], [["x|y", "1"]])])]))
    lines = text.splitlines()
    assert lines[0] == "# t"
    assert "## s" in lines
    rows = [line for line in lines if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    assert "x\\|y" in rows[2]


def test_bullets_set_their_terms_apart_only_where_asked() -> None:
    block = ["TWA: retrained", "no term"]
    plain = document.markdown(Document("t", [Section("", [Bullets(block)])]))
    terms = document.markdown(Document("t", [Section("", [Bullets(block, terms=True)])]))
    assert "* TWA: retrained" in plain
    assert "* **TWA**: retrained" in terms
    assert "* no term" in terms


def test_writing_leaves_figures_beside_the_reports_and_inside_the_page(tmp_path: Path) -> None:
    with figure.pyplot() as plt:
        picture, axes = plt.subplots()
        axes.plot([1, 2], [3, 4], label="one")
        figure.legend(axes, 1)
        figure.title(axes, "panel")
        made = figure.render(picture, "curve", "a <curve>")
    samples = Samples(np.zeros((1, 4, 4), np.uint8), ["Bag"], [("TWA", ["="]), ("original", ["Coat"])])
    document.write(tmp_path, Document("t", [Section("", [made, samples]), Section("more", ["closed"], folded=True)]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.png", "curve.svg", "report.html", "report.md"]
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page
    assert "a &lt;curve&gt;" in page
    assert "<details><summary>more</summary>" in page
    found = read(page)
    assert "✓" in found.text["td"]
    assert "Coat" in found.text["td"]
    assert "![a <curve>](curve.png)" in (tmp_path / "report.md").read_text()


def test_the_same_figure_is_the_same_file() -> None:
    def made() -> Figure:
        with figure.pyplot() as plt:
            picture, axes = plt.subplots()
            axes.plot([1, 2], [3, 4])
            return figure.render(picture, "x", "x")

    assert made() == made()
