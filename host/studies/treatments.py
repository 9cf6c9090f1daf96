"""What a study does with the network at each level of its faults: as it is, protected, retrained, and both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from host.faults.models import Fault
from host.studies.results import Row
from host.studies.workbench import Meter, Workbench
from host.training.train import Evaluation
from host.training.twin import Twin


def images(bench: Workbench, seeds: int, *, clp: bool) -> int:
    """Images through the device at one level, for the progress bar."""
    s = bench.settings
    tested = len(bench.test)
    return (2 if clp else 1) * tested + s.probe_images + 2 * seeds * (tested + s.images_per_retraining)


def measure(
    bench: Workbench,
    level: float,
    faults: Fault,
    clean: Evaluation,
    meter: Meter,
    seeds: Sequence[int],
    *,
    clp: bool = False,
) -> list[Row]:
    """Original, TWA and TWA+CLP at one level: the same test images under the same faults in each.

    Parameters
    ----------
    level : float
        Of the faults, as tables show it.
    clean : Evaluation
        Of the network without faults.
    seeds : sequence of int
        Of the retrainings; each is repeated with every one.
    clp : bool
        Also protect the critical layer without retraining.
    """
    tag = f"{level:g}"
    original = bench.tested(f"original {tag}", bench.twin, faults, meter)
    choice = bench.protection(f"protection {tag}", faults, meter)
    names = tuple(choice["names"])
    rows = [Row.of(level, "original", original, against=clean, against_name="int8, fault-free", choice=choice)]
    if clp:
        found = bench.tested(f"CLP {tag}", lambda: bench.twin(protect=names), faults, meter)
        rows.append(Row.of(level, "CLP", found, against=original, against_name="original", protected=names))
    for seed in seeds:
        for treatment, protect in (("TWA", ()), ("TWA+CLP", names)):
            stage = f"{treatment} {tag} seed {seed}"
            weights = bench.retrained(f"{stage} retraining", faults, protect, meter, seed)
            found = bench.tested(stage, twin_of(bench, weights, protect), faults, meter)
            rows.append(
                Row.of(level, treatment, found, against=original, against_name="original", protected=protect, seed=seed)
            )
    return rows


def twin_of(bench: Workbench, weights: Path, protect: tuple[str, ...] = ()) -> Callable[[], Twin]:
    """What makes the network with retrained weights, when it is needed."""
    return lambda: bench.twin(weights, protect)
