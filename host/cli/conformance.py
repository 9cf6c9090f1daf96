"""`redline conformance`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from host.cli.app import app, console, errors


@app.command()
def conformance(
    device: Annotated[str, typer.Argument(help="A device's name, also another package's.")],
    option: Annotated[
        list[str] | None,
        typer.Option(help="Of the device or its accelerator, e.g. platform=pocl or lanes=16.", metavar="KEY=VALUE"),
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="Random programs of each check.")] = 12,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Run a device through the conformance suite; status 1 if it does not keep the contract.

    If options name parameters of an accelerator, the device is of that build alone; else of two, one an arithmetic.
    """
    from rich.progress import Progress

    from host.conformance import suite
    from host.devices.registry import accelerator, device_names
    from host.verification.verify import make_device
    from hw.config import Config

    if device not in device_names():
        raise typer.BadParameter(f"no device {device!r}; there are {', '.join(device_names())}", param_hint="DEVICE")
    own, rest = accelerator(parsed(option or []))
    configs = (Config(**own),) if own else (suite.REDLINE, suite.PIPECNN)
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("starting", total=len(configs) * len(suite.checks()))

        def note(check: suite.Check, config: Config) -> None:
            progress.update(task, advance=1, description=f"{suite.label(config)}: {check.name}")

        report = suite.run(
            device,
            lambda config: make_device(device, config, 2, **rest),
            configs,
            any_build=not own,
            seed=seed,
            cases=cases,
            progress=note,
        )
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        _show(report)
    if not report.ok:
        raise typer.Exit(1)


def parsed(given: list[str]) -> dict[str, Any]:
    """Options given as KEY=VALUE, by key."""
    options: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--option")
        try:
            # Numbers, true and false; anything else is text.
            options[key] = json.loads(value)
        except (ValueError, RecursionError):
            options[key] = value
    return options


def _show(report: Any) -> None:
    from host.conformance import suite

    marks = {"pass": ("pass", "green"), "fail": ("FAIL", "red"), "skip": ("skip", "yellow")}
    table = Table("", "what holds", *(suite.label(config) for config in report.configs), title=report.device)
    group = ""
    for check in suite.checks():
        if group and check.group != group:
            table.add_section()
        shown, group = "" if check.group == group else check.group, check.group
        table.add_row(shown, check.claim, *(Text(*marks[result.state]) for result in report.of(check)))
    console.print(table)
    for result in report.failures:
        console.print(
            f"{suite.label(result.config)}: {result.check.claim}: {result.note}", highlight=False, markup=False
        )
    counts = report.as_dict()
    console.print(f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped")
