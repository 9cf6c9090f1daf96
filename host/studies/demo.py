"""The demo: a LeNet-5 is damaged by a faulty accelerator, learns its errors on it, and recovers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from host.studies import overclock, soft_errors
from host.studies.overclock import OverclockSettings
from host.studies.report import document
from host.studies.report import overclock as clock_shown
from host.studies.report import soft_errors as flips_shown
from host.studies.report.document import Document, Section
from host.studies.soft_errors import SoftErrorSettings

TITLE = "LeNet-5 on Fashion-MNIST, on a faulty accelerator"


@dataclass(frozen=True)
class Settings:
    """What the demo's studies depend on."""

    overclock: OverclockSettings = field(default_factory=OverclockSettings)
    soft_errors: SoftErrorSettings = field(default_factory=SoftErrorSettings)


@dataclass(frozen=True)
class Results:
    """What the demo's studies found."""

    overclock: overclock.Summary
    soft_errors: soft_errors.Summary


def run(
    folder: Path,
    settings: Settings,
    *,
    data_dir: str | None = None,
    console: Console | None = None,
) -> Results:
    """Run the demo's studies, each in a folder of its own, and write one report on them.

    Parameters
    ----------
    folder : Path
        An interrupted demo in it is taken up.

    Raises
    ------
    RunError
        If the folder holds a run with other settings; names the parameter.
    DataError, DeviceError
        If the data set or the device is missing.
    """
    console = console or Console(markup=False, emoji=False)
    console.print("1 of 2: the accelerator overclocked", style="bold")
    clocked = overclock.run(folder / "overclock", settings.overclock, data_dir=data_dir, console=console)
    console.print("2 of 2: the accelerator hit by soft errors", style="bold")
    flipped = soft_errors.run(folder / "soft-errors", settings.soft_errors, data_dir=data_dir, console=console)
    sections = [
        *_under("Overclocked", clock_shown.sections(clocked)),
        *_under("Hit by soft errors", flips_shown.sections(flipped)),
    ]
    document.write(folder, Document(TITLE, sections))
    return Results(clocked, flipped)


def _under(title: str, sections: list[Section]) -> list[Section]:
    """A study's sections, in a report on several."""
    first, *rest = sections
    return [replace(first, title=title), *(replace(part, title=f"{title}: {_lower(part.title)}") for part in rest)]


def _lower(title: str) -> str:
    return title[:1].lower() + title[1:]


def started(folder: Path) -> bool:
    """Whether a folder holds a demo, finished or not."""
    return any(folder.glob("*/config.json"))
