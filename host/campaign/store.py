"""A campaign's results: one SQLite file that survives whatever happens to the processes that write it."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from host.run import differences
from hw.errors import RedlineError
from hw.files import ReadError, parse_json

SCHEMA = 3
"""Raised whenever the tables change meaning."""
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE trial (
  number INTEGER PRIMARY KEY,
  flips INTEGER NOT NULL,
  digest TEXT NOT NULL,  -- SHA-256 of the fault plan
  layer TEXT, site TEXT, output INTEGER, step INTEGER, bit INTEGER,  -- of a single fault, else NULL
  lane INTEGER, bank TEXT, value INTEGER  -- of a single stuck bit, which has a site and a bit, too
);
CREATE TABLE outcome (
  number INTEGER NOT NULL REFERENCES trial ON DELETE CASCADE,
  arm TEXT NOT NULL,
  position INTEGER NOT NULL,  -- in the trial
  image INTEGER NOT NULL,  -- in the data
  masked INTEGER NOT NULL, layer TEXT, stage TEXT,  -- where, if it is
  sdc1 INTEGER NOT NULL, sdc5 INTEGER NOT NULL,
  top1 INTEGER NOT NULL, top5 INTEGER NOT NULL,
  clean_top1 INTEGER NOT NULL, clean_top5 INTEGER NOT NULL,
  PRIMARY KEY (number, arm, position)
) WITHOUT ROWID;
CREATE TABLE seal (
  number INTEGER PRIMARY KEY REFERENCES trial ON DELETE CASCADE,
  sha256 TEXT NOT NULL  -- of the trial and its outcomes
);
CREATE TABLE session (
  id INTEGER PRIMARY KEY, started REAL NOT NULL, ended REAL, trials INTEGER, reason TEXT
);
"""
OUTCOMES = {
    "masked": "masked",
    "benign": "1 - masked - sdc1",
    "sdc1": "sdc1",
    "sdc5": "sdc5",
    "top1": "top1",
    "top5": "top5",
    "clean_top1": "clean_top1",
    "clean_top5": "clean_top5",
}
"""What can be counted, as an expression over `outcome`."""


class StoreError(RedlineError, RuntimeError):
    """A campaign's file cannot be used as asked; the message says why and what to do."""


REMEDIES = {
    sqlite3.SQLITE_BUSY: "another process is writing to it: wait until it has ended, and run this again",
    sqlite3.SQLITE_LOCKED: "another process is writing to it: wait until it has ended, and run this again",
    sqlite3.SQLITE_FULL: "free some space and run this again: every trial that was stored is there",
    sqlite3.SQLITE_READONLY: "mend the permissions of the file and its folder, and run this again",
    sqlite3.SQLITE_CANTOPEN: "look at the path and its permissions",
    sqlite3.SQLITE_PERM: "mend the permissions of the file and its folder, and run this again",
    sqlite3.SQLITE_IOERR: "look at the disk and the space on it, and run this again",
    sqlite3.SQLITE_NOMEM: "there is too little memory: use fewer --workers, and run this again",
}
"""What to do, by SQLite's kind of error: none of these loses a trial."""
DAMAGED = "if the file is damaged, delete it (--restart) and run anew"
SEAL = "sha256"
"""The entry of `meta` with the checksum of the others."""


class TrialRow(NamedTuple):
    """A row of `trial`."""

    number: int
    flips: int
    digest: str
    layer: str | None = None
    site: str | None = None
    output: int | None = None
    step: int | None = None
    bit: int | None = None
    lane: int | None = None
    bank: str | None = None
    value: int | None = None


class OutcomeRow(NamedTuple):
    """A row of `outcome`."""

    number: int
    arm: str
    position: int
    image: int
    masked: int
    layer: str | None
    stage: str | None
    sdc1: int
    sdc5: int
    top1: int
    top5: int
    clean_top1: int
    clean_top5: int


def _marks(row: type[TrialRow | OutcomeRow]) -> str:
    return ", ".join("?" * len(row._fields))


@dataclass(frozen=True)
class Counted:
    """Successes of each trial, in the order of their numbers.

    Attributes
    ----------
    numbers, successes, sizes : int64 arrays, shape (trials,)
    """

    numbers: npt.NDArray[np.int64]
    successes: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    def first(self, trials: int) -> Counted:
        """Only trials with a number below `trials`."""
        keep = self.numbers < trials
        return Counted(self.numbers[keep], self.successes[keep], self.sizes[keep])


class Store:
    """A campaign's file. Each trial with all its outcomes is written in one transaction, or not at all.

    Parameters
    ----------
    path : Path
    fingerprint : dict or None
        What decides the results, JSON values. A file of another campaign is refused, and the parameter that changed
        named. None: take the file as it is; it must exist.
    about : dict
        Recorded when the file is made, not compared.

    Raises
    ------
    StoreError
        If the file is missing, damaged, of another version or of another campaign.
    """

    def __init__(
        self, path: Path, fingerprint: dict[str, Any] | None = None, about: dict[str, Any] | None = None
    ) -> None:
        self.path = path
        new = not path.exists()
        if new and fingerprint is None:
            raise StoreError(f"{path}: no campaign there; 'redline campaign run' makes one")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit: transactions are begun and ended here, by name.
            self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path}: cannot be opened: {error}") from error
        try:
            with self._errors():
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA foreign_keys=ON")
                # A file made by a process that was killed before it had tables is as good as none.
                if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    if fingerprint is None:
                        raise StoreError(f"{path}: no campaign there; 'redline campaign run' makes one")
                    self._make(fingerprint, about or {})
                self._check(fingerprint)
        except BaseException:
            self._db.close()
            raise

    def _make(self, fingerprint: dict[str, Any], about: dict[str, Any]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        for statement in TABLES.split(";\n"):
            self._db.execute(statement)
        meta = {"schema": SCHEMA, "fingerprint": fingerprint, "about": about, "settled": 0}
        self._db.executemany("INSERT INTO meta VALUES (?, ?)", [(k, json.dumps(v)) for k, v in meta.items()])
        self._seal_meta()
        self._db.execute("COMMIT")

    def _seal_meta(self) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (SEAL, json.dumps(self._meta_digest())))

    def _meta_digest(self) -> str:
        return _sha256(self._db.execute("SELECT * FROM meta WHERE key != ? ORDER BY key", (SEAL,)).fetchall())

    def _verify(self) -> None:
        """Raise unless all that is in the file, at one moment, is what was put there."""
        self._db.execute("BEGIN")
        try:
            self._compare()
        finally:
            self._db.execute("ROLLBACK")

    def _compare(self) -> None:
        there = self._db.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name")
        if there.fetchall() != _schema():
            raise self._damaged("its tables are others")
        if self.meta(SEAL) != self._meta_digest():
            raise self._damaged("the checksum of its description does not match")
        trials = self._db.execute(
            f"SELECT seal.sha256, {', '.join(f'trial.{name}' for name in TrialRow._fields)} FROM trial "
            "LEFT JOIN seal ON seal.number = trial.number ORDER BY trial.number"
        )
        rows = self._db.execute(f"SELECT {', '.join(OutcomeRow._fields)} FROM outcome ORDER BY number, arm, position")
        groups = groupby(rows, key=lambda row: row[0])
        number, outcomes = next(groups, (None, iter(())))
        for seal, *trial in trials:
            mine = list(outcomes) if number == trial[0] else []
            if seal != seal_of(tuple(trial), mine):
                raise self._damaged(f"the checksum of trial {trial[0]} does not match")
            if mine:
                number, outcomes = next(groups, (None, iter(())))
        if number is not None:
            raise self._damaged(f"it has outcomes of trial {number}, which is not there")

    def _damaged(self, why: str) -> StoreError:
        return StoreError(f"{self.path}: damaged: {why}; restore a copy, or run anew (--restart deletes the file)")

    def _check(self, fingerprint: dict[str, Any] | None) -> None:
        schema = self.meta("schema")
        if schema != SCHEMA:
            raise StoreError(f"{self.path}: version {schema}, this Redline reads {SCHEMA}; use another name")
        self._verify()
        if fingerprint is None:
            return
        changed = differences(self.meta("fingerprint"), json.loads(json.dumps(fingerprint)))
        if changed:
            listed = "; ".join(f"{key} was {old!r}, now {new!r}" for key, old, new in changed)
            raise StoreError(
                f"{self.path} holds a campaign with other parameters: {listed}. Use those, another name, or --restart"
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            kind = getattr(error, "sqlite_errorcode", None)
            remedy = DAMAGED if kind is None else REMEDIES.get(kind & 0xFF, DAMAGED)
            raise StoreError(f"{self.path}: {error}; {remedy}") from error
        except UnicodeError as error:
            raise self._damaged("it has texts that are none") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All that is written within, or nothing."""
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    # -- what is known about the campaign

    def meta(self, key: str) -> Any:
        """A recorded value ("schema", "fingerprint", "about", "settled"); None if there is none."""
        rows = self.query("SELECT value FROM meta WHERE key = ?", (key,))
        try:
            return parse_json(rows[0][0], str(self.path)) if rows else None
        except (ReadError, TypeError) as error:
            raise self._damaged(f"its {key} cannot be read") from error

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What decides the results."""
        return self.meta("fingerprint")

    @property
    def arms(self) -> list[str]:
        """Names of what is compared, in order."""
        return list(self.fingerprint["arms"])

    def begin_session(self) -> int:
        """Note that a run begins; its number."""
        with self._errors():
            return int(self._db.execute("INSERT INTO session (started) VALUES (?)", (time.time(),)).lastrowid or 0)

    def end_session(self, session: int, trials: int, reason: str, *, settled: int | None = None) -> None:
        """Note how a run ended; `settled`: up to where stop rules have decided."""
        with self._transaction():
            self._db.execute(
                "UPDATE session SET ended = ?, trials = ?, reason = ? WHERE id = ?",
                (time.time(), trials, reason, session),
            )
            if settled is not None:
                self._db.execute("DELETE FROM trial WHERE number >= ?", (settled,))
                self._db.execute("UPDATE meta SET value = ? WHERE key = 'settled'", (json.dumps(settled),))
                self._seal_meta()

    def sessions(self) -> list[tuple[float, float | None, int | None, str | None]]:
        """(started, ended, trials then, reason) of each run."""
        return self.query("SELECT started, ended, trials, reason FROM session ORDER BY id")

    # -- trials

    def add(self, trials: list[TrialRow], outcomes: list[OutcomeRow]) -> None:
        """Store trials with all their outcomes, at once; trials that are there already are left as they are."""
        of: dict[int, list[OutcomeRow]] = defaultdict(list)
        for row in outcomes:
            of[row.number].append(row)
        with self._transaction():
            there = {
                number
                for trial in trials
                for (number,) in self._db.execute("SELECT number FROM trial WHERE number = ?", (trial.number,))
            }
            self._db.executemany(
                f"INSERT INTO trial VALUES ({_marks(TrialRow)})", [t for t in trials if t.number not in there]
            )
            self._db.executemany(
                f"INSERT INTO outcome VALUES ({_marks(OutcomeRow)})", [o for o in outcomes if o.number not in there]
            )
            seals = [(t.number, seal_of(t, of[t.number])) for t in trials if t.number not in there]
            self._db.executemany("INSERT INTO seal VALUES (?, ?)", seals)

    def done(self) -> npt.NDArray[np.int64]:
        """Numbers of the trials that are there, ascending."""
        return np.array([n for (n,) in self.query("SELECT number FROM trial ORDER BY number")], np.int64)

    def complete(self) -> int:
        """Trials 0 to this number (excluded) are all there."""
        done = self.done()
        gaps = np.flatnonzero(done != np.arange(len(done)))
        return int(gaps[0]) if len(gaps) else len(done)

    def count(self, outcome: str, arm: str, where: str = "1", parameters: tuple[Any, ...] = ()) -> Counted:
        """Successes of each trial: images with an outcome of `OUTCOMES`.

        Parameters
        ----------
        where : str
            SQL condition on `trial` (as t) and `outcome` (as o).
        """
        rows = self.query(
            f"SELECT o.number, SUM({OUTCOMES[outcome]}), COUNT(*) FROM outcome o "
            f"JOIN trial t ON t.number = o.number WHERE o.arm = ? AND {where} GROUP BY o.number ORDER BY o.number",
            (arm, *parameters),
        )
        columns = np.array(rows, np.int64).reshape(-1, 3)
        return Counted(columns[:, 0], columns[:, 1], columns[:, 2])

    def query(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Rows of a SELECT."""
        with self._errors():
            return self._db.execute(sql, parameters).fetchall()

    def rows(self) -> list[tuple[Any, ...]]:
        """Every trial and outcome, in order: what an interrupted and an uninterrupted campaign have in common."""
        return [
            *self.query("SELECT * FROM trial ORDER BY number"),
            *self.query("SELECT * FROM outcome ORDER BY number, arm, position"),
        ]

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def seal_of(trial: Sequence[Any], outcomes: Sequence[Sequence[Any]]) -> str:
    """SHA-256 of a row of `trial` and its rows of `outcome`, in whatever order, hexadecimal."""
    # By arm and position.
    return _sha256([tuple(trial), *sorted((tuple(row) for row in outcomes), key=lambda row: (str(row[1]), row[2]))])


def _sha256(rows: list[tuple[Any, ...]]) -> str:
    return hashlib.sha256(repr(rows).encode(errors="surrogatepass")).hexdigest()


@cache
def _schema() -> list[tuple[str, str, str]]:
    """What SQLite says of `TABLES`."""
    with sqlite3.connect(":memory:") as db:
        db.executescript(TABLES)
        found = db.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
    db.close()
    return found
