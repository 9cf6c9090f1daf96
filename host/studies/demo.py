"""The demo: a LeNet-5 is damaged by a faulty accelerator, learns its errors on it, and recovers."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from host.studies import soft_errors
from host.studies.report import document
from host.studies.report import soft_errors as shown
from host.studies.report.document import Document
from host.studies.soft_errors import SoftErrorSettings

TITLE = "LeNet-5 on Fashion-MNIST, on a faulty accelerator"


@dataclass(frozen=True)
class Settings:
    """What the demo's studies depend on."""

    soft_errors: SoftErrorSettings = field(default_factory=SoftErrorSettings)


@dataclass(frozen=True)
class Results:
    """What the demo's studies found."""

    soft_errors: soft_errors.Summary


def run(
    folder: Path,
    settings: Settings,
    *,
    data_dir: str | None = None,
    restart: bool = False,
    console: Console | None = None,
) -> Results:
    """Run the demo's studies, each in a folder of its own, and write one report on them.

    Parameters
    ----------
    folder : Path
        An interrupted demo in it is taken up.
    restart : bool
        Throw away what the folder holds.

    Raises
    ------
    RunError
        If the folder holds a run with other settings; names the parameter.
    DataError, DeviceError
        If the data set or the device is missing.
    """
    if restart and started(folder):
        shutil.rmtree(folder)
    results = Results(soft_errors.run(folder / "soft-errors", settings.soft_errors, data_dir=data_dir, console=console))
    document.write(folder, Document(TITLE, shown.sections(results.soft_errors)))
    return results


def started(folder: Path) -> bool:
    """Whether a folder holds a demo, finished or not."""
    return any(folder.glob("*/config.json"))
