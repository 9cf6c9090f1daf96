"""Plausible random delay tables, for tests that need one and not a particular one."""

from __future__ import annotations

import numpy as np

from hw.config import Config
from hw.delays import SIGNALS, Bank, Limit, Pins, Table, bank_names


def random_bank(rng: np.random.Generator, name: str, width: int, *, exceptions: int = 2) -> Bank:
    """A bank whose paths look like a routed ECP5's: 2 to 5 ns, 35 ps a carry bit, some pins late."""
    kind = "accumulator" if name == "accumulator" else "tree"
    pins = {}
    for signal in SIGNALS[kind]:
        late = np.where(rng.random(width) < 0.1, rng.integers(0, 1200, width), 0)
        carry = 1500 + rng.integers(0, 1000, width) + late
        own = carry + rng.integers(0, 500, width)
        # An entry further up the chain has less of it before it: the chain's own delay lies in the offsets.
        carry = carry - 35 * np.arange(width)
        pins[signal] = Pins(tuple(carry.tolist()), tuple(own.tolist()))
    offset = 700 + 35 * np.arange(width) + rng.integers(0, 100, width)
    odd = []
    for _ in range(exceptions if width > 1 else 0):
        i = int(rng.integers(1, width))
        odd.append((str(rng.choice(SIGNALS[kind])), int(rng.integers(0, i + 1)), i, int(rng.integers(1000, 5500))))
    return Bank(name, kind, width, tuple(offset.tolist()), pins, tuple(odd))


def random_table(seed: int, config: Config | None = None) -> Table:
    """A table for `config.lanes` lanes of `config.vec`."""
    config = config or Config()
    rng = np.random.default_rng(seed)
    names = bank_names(config.vec)

    def width(name: str) -> int:
        return 32 if name == "accumulator" else 16 + int(name.split("_")[1])

    lanes = tuple(tuple(random_bank(rng, name, width(name)) for name in names) for _ in range(config.lanes))
    return Table(
        part="LFE5U-85F",
        package="CABGA381",
        speed_grade="6",
        seed=seed,
        tools={"nextpnr": "none: a random table"},
        source_sha256="0" * 64,
        vec=config.vec,
        lanes=lanes,
        reported_ps={
            name: max(bank.onset_ps for banks in lanes for bank in banks if bank.name == name) for name in names
        },
        unmodelled={"multiplier": Limit(None, "a random table"), "requantiser": Limit(3000, "a random table")},
    )
