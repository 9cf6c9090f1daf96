"""Random cases under conditions: delay tables, clocks that change between launches, stuck bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from host.faults.conditions import Clock, Conditions, StuckBit
from host.faults.plan import FaultPlan
from host.verification.cases import CONFIGS, Case, random_case
from hw.config import Config
from hw.delays import SIGNALS, WORD, Bank, Limit, Pins, Table, bank_names
from hw.masks import MOST_GROUPS

OVERCLOCKED = tuple(replace(CONFIGS[at], overclock=MOST_GROUPS) for at in (0, 2, 3, 4, 6, 7))
"""Few, since each costs a build of the simulator; one without saboteurs, one in PipeCNN's arithmetic."""

FASTEST = 0.6
"""Of a table's safe period: what clocks reach down to."""


def overclocked_case(
    seed: int, number: int, configs: tuple[Config, ...] = OVERCLOCKED, tables: Sequence[Table] = ()
) -> Case:
    """Case `number` of a seed, under random conditions; the same wherever it is made.

    Every case has a clock, beyond the safe one in most; some have stuck bits, too, or only these, and two of three soft
    errors. A second and sometimes a third pass of the same images follow, at another clock or none.

    Parameters
    ----------
    seed, number : int
    configs : tuple of Config
        Accelerators to choose from, all with `overclock`.
    tables : sequence of Table
        Routed arrays to use beside random ones, where they fit the accelerator.
    """
    case = random_case(seed, number, configs=configs)
    config = case.program.config
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number, 1])))
    fitting = [table for table in tables if table.vec == config.vec and len(table.lanes) >= config.lanes]
    table = random_table(rng, config)
    if fitting and rng.random() < 0.5:
        table = fitting[int(rng.integers(len(fitting)))]
    flips = case.plan or FaultPlan.of(case.program.names)
    plans = [flips.under(random_conditions(rng, config, table)) for _ in range(int(rng.integers(1, 3)))]
    if rng.random() < 0.5:
        plans.insert(int(rng.integers(len(plans) + 1)), flips)
    return replace(case, plan=plans[0], others=tuple(plans[1:]))


def random_conditions(rng: np.random.Generator, config: Config, table: Table) -> Conditions:
    """A clock on a table, up to three stuck bits, or both."""
    stuck = {}
    kind = rng.random()
    for _ in range(int(rng.integers(1, 4)) if kind < 0.35 else 0):
        bank = str(rng.choice(bank_names(config.vec)))
        lane = int(rng.integers(config.lanes))
        where = lane, bank, int(rng.integers(table.bank(lane, bank).width))
        stuck[where] = int(rng.integers(2))
    clock = None
    if kind > 0.1:
        scale = float(rng.uniform(0.8, 1.3)) if rng.random() < 0.3 else 1.0
        # Most near the safe period, where few bits are late.
        period = round(table.onset_ps * scale * (1.03 - (1.03 - FASTEST) * rng.random() ** 2))
        clock = Clock(table, period, scale)
    return Conditions(clock, tuple(sorted(StuckBit(*where, value) for where, value in stuck.items())))


def random_table(rng: np.random.Generator, config: Config) -> Table:
    """A table that no place and route made: now and then without any order, so that every bit is a group of its own."""
    wild = bool(rng.random() < 0.2)
    names = bank_names(config.vec)
    lanes = tuple(tuple(_bank(rng, name, wild) for name in names) for _ in range(config.lanes))
    longest = {name: max(bank.onset_ps for lane in lanes for bank in lane if bank.name == name) for name in names}
    return Table(
        part="none",
        package="none",
        speed_grade="none",
        seed=0,
        tools={},
        source_sha256="0" * 64,
        vec=config.vec,
        lanes=lanes,
        reported_ps=longest,
        unmodelled={"multiplier": Limit(None, "a random table")},
    )


def _bank(rng: np.random.Generator, name: str, wild: bool) -> Bank:
    accumulator = name == "accumulator"
    width = WORD if accumulator else 16 + int(name.split("_")[1])
    kind = "accumulator" if accumulator else "tree"
    spread, step = (3000, 0) if wild else (400, int(rng.integers(20, 60)))
    start = int(rng.integers(800, 1800))
    along = step * np.arange(width)
    pins = {}
    for signal in SIGNALS[kind]:
        late = np.where(rng.random(width) < 0.1, rng.integers(0, 1500, width), 0)
        entry = start + rng.integers(0, spread, width) + late
        pins[signal] = Pins(tuple((entry - along).tolist()), tuple((entry + rng.integers(0, spread, width)).tolist()))
    offset = 700 + along + rng.integers(0, spread, width)
    odd = []
    for _ in range(int(rng.integers(0, 4))):
        i = int(rng.integers(width))
        odd.append((str(rng.choice(SIGNALS[kind])), int(rng.integers(i + 1)), i, int(rng.integers(1000, 6000))))
    return Bank(name, kind, width, tuple(offset.tolist()), pins, tuple(odd))
