"""`redline doctor`."""

from __future__ import annotations

import typer
from rich.table import Table
from rich.text import Text

from host.cli.app import DataDir, app, console, fail


@app.command()
def doctor(data_dir: DataDir = None) -> None:
    """Look whether this machine has what Redline needs; says how to mend what is missing."""
    from host.doctor import examine

    styles = {"ok": "green", "optional": "yellow", "missing": "red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    with console.status("looking"):
        findings = examine(data_dir)
    for finding in findings:
        table.add_row(Text(finding.state, styles[finding.state]), finding.name, finding.found)
        if finding.remedy:
            table.add_row("", "", Text(finding.remedy, "bold"))
    console.print(table)
    missing = [finding.name for finding in findings if finding.state == "missing"]
    if missing:
        raise typer.Exit(fail(f"missing: {', '.join(missing)}"))
    console.print("Everything needed is there.")
