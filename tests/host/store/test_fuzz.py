"""Whatever is done to a file that is read: a clear error, or what it held; never a traceback, never another value."""

from __future__ import annotations

import os
import random
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from hw.errors import RedlineError
from tests.host.store.specimens import Specimen, damaged, specimens

FIXED = 2_026
MOST_BYTES = 1 << 24
"""Far more than any of these files needs, far less than damaged ones promise."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Specimen]:
    return specimens(tmp_path_factory.mktemp("specimens"))


def test_every_specimen_is_read(files: dict[str, Specimen]) -> None:
    for specimen in files.values():
        assert specimen.read() == specimen.read()


def cases(files: dict[str, Specimen], count: int, seed: int) -> Iterator[tuple[str, bytes, str, str]]:
    """What to damage, how, whose value it may have then, and how to get the same case again.

    Every kind in turn; now and then the file of another kind, which may be of the same format.
    """
    names, whole = sorted(files), {name: specimen.path.read_bytes() for name, specimen in files.items()}
    for number in range(count):
        name, rng = names[number % len(names)], random.Random(f"{seed} {number}")
        other = rng.choice(names) if rng.random() < 0.03 else name
        content = damaged(whole[name], rng) if other == name else whole[other]
        yield name, content, other, f"{name}, seed {seed}, number {number}"


def trouble(files: dict[str, Specimen], count: int, seed: int) -> list[str]:
    """What went wrong, a line each."""
    whole = {name: (specimen.path.read_bytes(), specimen.read()) for name, specimen in files.items()}
    found = []
    for name, content, other, which in cases(files, count, seed):
        specimen = files[name]
        specimen.path.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = specimen.read()
        except RedlineError as error:
            if not str(error).strip() or "\n\n" in str(error):
                found.append(f"{which}: says {str(error)!r}")
        except Exception as error:
            found.append(f"{which}: {type(error).__name__}: {str(error)[:100]}")
        else:
            if specimen.checked and value != whole[other][1]:
                found.append(f"{which}: another value")
        finally:
            specimen.path.write_bytes(whole[name][0])
    return found


def test_some_damage(files: dict[str, Specimen]) -> None:
    assert trouble(files, 250, FIXED) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [FIXED + 1, None])
def test_five_thousand_damaged_files(seed: int | None, files: dict[str, Specimen]) -> None:
    fresh = int.from_bytes(os.urandom(4)) if seed is None else seed
    assert trouble(files, 2_500, fresh) == []


def test_what_a_file_promises_takes_no_memory(files: dict[str, Specimen], tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        assert trouble(files, 60, FIXED + 2) == []
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
