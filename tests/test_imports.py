"""Imports run one way: as the table in docs/architecture.md says, and no circle of modules grows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]
TOPS = ("hw", "sim", "host")
TABLE = ROOT / "docs" / "architecture.md"
CIRCLES = (
    {"host.devices.checks", "host.devices.device", "host.devices.reference", "host.devices.runtime"}
    | {"host.schedule.launch"},
    {"host.faults.models", "host.faults.plan", "host.faults.spec", "host.faults.stream"},
    {f"host.devices.emulator.{name}" for name in ("cost", "device", "late", "maps", "native", "plan", "selftest")},
    {f"host.conformance.{name}" for name in ("contents", "faults", "launches", "numbers", "refusals", "suite")},
    {"host.campaign.cluster", "host.campaign.pool"},
)
"""Modules that import each other in a circle today, within functions or not. None may join."""


def modules() -> dict[str, Path]:
    """Every module of the packages, by its dotted name."""
    found = {}
    for top in TOPS:
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of ours that a file imports when it runs, in functions too; not those that only types need."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and isinstance(branch.test, ast.Name) and branch.test.id == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name:
                yield name


@pytest.fixture(scope="module")
def graph() -> nx.DiGraph:
    known = modules()
    found = nx.DiGraph()
    found.add_nodes_from(known)
    found.add_edges_from(
        (name, other) for name, path in known.items() for other in imported(path, known) if other != name
    )
    return found


def package(name: str) -> str:
    """hw, sim, or a sub-package of host; host's own modules are "host"."""
    top, *rest = name.split(".")
    if top != "host" or not rest:
        return top
    return f"host/{rest[0]}" if (ROOT / "host" / rest[0]).is_dir() else "host"


def allowed() -> dict[str, set[str]]:
    """The table: which package imports which."""
    rows = re.findall(r"^\| `([\w/]+)` \| (.*?) \|$", TABLE.read_text().partition("## Imports")[2], re.MULTILINE)
    return {name: set(re.findall(r"`([\w/]+)`", others)) for name, others in rows}


def test_packages_import_what_the_table_says_and_nothing_else(graph: nx.DiGraph) -> None:
    found: dict[str, set[str]] = {package(name): set() for name in graph}
    for name, other in graph.edges:
        if package(name) != package(other):
            found[package(name)].add(package(other))
    assert found == allowed()


def test_hw_and_sim_know_nothing_above_them() -> None:
    table = allowed()
    assert table["hw"] == set()
    assert table["sim"] == {"hw"}
    for top in ("hw", "sim"):
        for path in (ROOT / top).rglob("*.py"):
            assert not re.search(r"^\s*(import|from) torch\b", path.read_text(), re.MULTILINE), path


def test_no_module_joins_a_circle(graph: nx.DiGraph) -> None:
    circles = [circle for circle in nx.strongly_connected_components(graph) if len(circle) > 1]
    for circle in circles:
        assert any(circle <= known for known in CIRCLES), sorted(circle)
    assert len(circles) <= len(CIRCLES)
