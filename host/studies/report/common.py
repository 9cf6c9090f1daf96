"""What the reports of all studies say in the same words."""

from __future__ import annotations

from typing import Any

from host.studies.report.document import Table
from host.studies.workbench import Settings


def device_words(settings: Settings) -> str:
    """Which device computed, in a sentence."""
    s = settings
    if s.device == "simulation":
        return (
            f"Every forward pass, in evaluation and in retraining, was computed by the accelerator's RTL "
            f"({s.lanes} lanes x vec {s.vec}) under Verilator and cocotb, in {s.units} simulator process(es)."
        )
    return (
        f"Forward passes were computed by the `{s.device}` device, not by the RTL: bit-exact in results, but it "
        f"counts no cycles or bytes."
    )


def settings_table(settings: dict[str, Any]) -> Table:
    """Settings as text."""

    def shown(value: Any) -> str:
        return ", ".join(f"{v:g}" for v in value) if isinstance(value, (list, tuple)) else str(value)

    return Table(["setting", "value"], [[key, shown(value)] for key, value in settings.items()])


def versions_table(versions: dict[str, str]) -> Table:
    """Versions of the software."""
    return Table(["software", "version"], [[key, value] for key, value in versions.items()])
