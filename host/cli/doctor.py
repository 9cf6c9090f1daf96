"""`redline doctor`."""

from __future__ import annotations

import typer
from rich.markup import escape
from rich.table import Table

from host.cli.app import DataDir, app, console, fail


@app.command()
def doctor(data_dir: DataDir = None) -> None:
    """Look whether this machine has what Redline needs; says how to mend what is missing."""
    from host.doctor import examine

    marks = {"ok": "[green]ok[/]", "optional": "[yellow]optional[/]", "missing": "[red]missing[/]"}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    with console.status("looking"):
        findings = examine(data_dir)
    for finding in findings:
        table.add_row(marks[finding.state], finding.name, finding.found)
        if finding.remedy:
            table.add_row("", "", f"[bold]{escape(finding.remedy)}[/]")
    console.print(table)
    missing = [finding.name for finding in findings if finding.state == "missing"]
    if missing:
        raise typer.Exit(fail(f"missing: {', '.join(missing)}"))
    console.print("Everything needed is there.")
