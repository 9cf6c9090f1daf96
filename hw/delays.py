"""Delay tables: when, after a clock edge, each operand bit of each adder reaches each bit of the register behind it.

Made from place and route (`redline timing build`); read by everything that must agree on timing errors: the gateware's
instrumentation, the reference and the emulator. All times are whole picoseconds from the launching edge to the
register's input, clock-to-output included.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hw.errors import RedlineError
from hw.files import MOST_JSON, ReadError, parse_json, read_bytes

SCHEMA = 1
"""Raised whenever the file's meaning changes."""
WORD = 32
NO_PATH = -1
PRODUCT_BITS = 16
"""Of two int8; the sums of tree level d have d bits more."""
MOST_VEC = 64
"""Products of a lane, of which there are as many banks."""
LONGEST_PS = 10**9
"""A millisecond: no path of a chip comes near."""

SIGNALS = {"tree": ("a", "b"), "accumulator": ("accumulator", "bias", "select", "sum")}
"""What reaches a bank, in order. A tree adder: its two operands, as `hw.lane` writes them. The accumulator: the running
sum and the bias, which its load multiplexer chooses between; the multiplexer's select, a single wire that reaches every
bit's multiplexer on its own; and the tree's sum."""


class DelayError(RedlineError, ValueError):
    """A delay table is malformed, or made by another version; the message names the field."""


@dataclass(frozen=True)
class Pins:
    """When one word of a bank's inputs arrives, by operand bit j.

    Attributes
    ----------
    carry : tuple of int, length `width`
        At the entry of the carry chain: the path to output bit i > j takes `carry[j] + Bank.offset[i]`, ps.
    own : tuple of int, length `width`
        The whole path to output bit j, ps.
    """

    carry: tuple[int, ...]
    own: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Output bits of a bank that see the same operand bits in time.

    Attributes
    ----------
    output : int
        Mask of the output bits.
    seen : tuple of int
        For each of the bank's signals, in order, the mask of the operand bits that arrive; the others are still those
        of the step before.
    """

    output: int
    seen: tuple[int, ...]


@dataclass(frozen=True)
class Bank:
    """One two-operand adder between registers.

    Attributes
    ----------
    name : str
        Of its register in `hw.lane`: `tree_1_0` is level 1, first adder; `accumulator`.
    kind : str
        "tree" or "accumulator".
    width : int
        Bits the register really has. Synthesis merges equal registers: the word's bits from `width` on are copies of
        bit `width - 1`, whatever that captured. Operand bits beyond the operand's own width are copies likewise, but
        each has a wire and so an arrival of its own.
    offset : tuple of int, length `width`
        From the entry of the carry chain to output bit i, ps; `offset[0]` is not used.
    pins : dict of str to Pins
        For each of `SIGNALS[kind]`. The select has an entry for every bit's multiplexer.
    exceptions : tuple of (str, int, int, int)
        Paths that are not `carry[j] + offset[i]`: (signal, operand bit j, output bit i, ps).
    """

    name: str
    kind: str
    width: int
    offset: tuple[int, ...]
    pins: Mapping[str, Pins]
    exceptions: tuple[tuple[str, int, int, int], ...] = ()
    _arrivals: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        where = f"bank {self.name}"
        if self.kind not in SIGNALS:
            raise DelayError(f"{where}: kind must be one of {', '.join(SIGNALS)}, not {self.kind!r}")
        if not (_is_int(self.width) and 1 <= self.width <= WORD):
            raise DelayError(f"{where}: width must be from 1 to {WORD}, not {self.width!r}")
        if set(self.pins) != set(SIGNALS[self.kind]):
            raise DelayError(f"{where}: pins must be {', '.join(SIGNALS[self.kind])}, not {', '.join(self.pins)}")
        _check_delays(f"{where}: offset", self.offset, self.width)
        for name, pins in self.pins.items():
            _check_delays(f"{where}: carry of {name}", pins.carry, self.width)
            _check_delays(f"{where}: own of {name}", pins.own, self.width)
        for entry in self.exceptions:
            if not (
                len(entry) == 4
                and entry[0] in self.pins
                and all(_is_int(value) for value in entry[1:])
                and 0 <= entry[1] <= entry[2] < self.width
                and 0 <= entry[3] <= LONGEST_PS
            ):
                raise DelayError(f"{where}: exception {entry!r} is not (signal, operand bit, output bit, ps)")

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of what reaches the bank, in the order of `masks` and `groups`."""
        return SIGNALS[self.kind]

    def arrival(self, signal: str) -> npt.NDArray[np.int64]:
        """Path delays in ps, int64 of shape (width, width): [output bit i][operand bit j], `NO_PATH` for j > i."""
        if signal not in self._arrivals:
            pins = self.pins[signal]
            table = np.asarray(self.offset, np.int64)[:, None] + np.asarray(pins.carry, np.int64)[None, :]
            table[np.arange(self.width), np.arange(self.width)] = pins.own
            for name, j, i, delay in self.exceptions:
                if name == signal:
                    table[i, j] = delay
            table[np.triu_indices(self.width, 1)] = NO_PATH
            table.setflags(write=False)
            self._arrivals[signal] = table
        return self._arrivals[signal]

    @property
    def onset_ps(self) -> int:
        """The longest path: a clock period of at least this is safe whatever the operands."""
        return max(int(self.arrival(signal).max()) for signal in self.signals)

    def masks(self, period_ps: int) -> dict[str, npt.NDArray[np.uint32]]:
        """For each signal, uint32 of shape (width,): bit j of element i: operand bit j reaches output i in time.

        A path as long as the period still arrives (the set-up time is part of the path). Bits that have no path to the
        output (j > i) are set.
        """
        weights = np.uint32(1) << np.arange(self.width, dtype=np.uint32)
        above = np.uint32(((1 << WORD) - 1) & ~((1 << self.width) - 1))
        return {
            signal: ((self.arrival(signal) <= period_ps) * weights).sum(axis=1, dtype=np.uint32) | above
            for signal in self.signals
        }

    def groups(self, period_ps: int) -> tuple[Group, ...]:
        """The output bits 0 to width - 1, by what they see; one group with full masks if nothing is late.

        Operand bits above the highest output bit of a group do not matter to it and are set in its masks.
        """
        masks = self.masks(period_ps)
        # Two outputs may share one addition if they see the same of all bits that reach both: extending the lower
        # output's masks upwards by those of the higher changes nothing for the lower.
        late = [tuple(~int(masks[signal][i]) & 0xFFFFFFFF for signal in self.signals) for i in range(self.width)]
        found: list[tuple[int, tuple[int, ...]]] = []
        for i in reversed(range(self.width)):
            reach = (2 << i) - 1
            for position, (output, other) in enumerate(found):
                if all(mine == theirs & reach for mine, theirs in zip(late[i], other, strict=True)):
                    found[position] = (output | 1 << i, other)
                    break
            else:
                found.append((1 << i, late[i]))
        return tuple(
            Group(output, tuple(~missing & 0xFFFFFFFF for missing in other)) for output, other in reversed(found)
        )

    def scaled(self, factor: float) -> Bank:
        """The bank with every path `factor` times as long, rounded to whole ps.

        Carry entries and offsets are rounded apart, so that a path may be off by one from the rounded whole.
        """

        def scale(delays: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(round(delay * factor) for delay in delays)

        return replace(
            self,
            offset=scale(self.offset),
            pins={name: Pins(scale(pins.carry), scale(pins.own)) for name, pins in self.pins.items()},
            exceptions=tuple((name, j, i, round(delay * factor)) for name, j, i, delay in self.exceptions),
            _arrivals={},
        )


@dataclass(frozen=True)
class Limit:
    """The shortest clock period of something that the model does not cover.

    Attributes
    ----------
    period_ps : int or None
        None: the tools give no figure.
    reason : str
        Where the figure comes from, or why there is none.
    """

    period_ps: int | None
    reason: str

    def __post_init__(self) -> None:
        if self.period_ps is not None and not (_is_int(self.period_ps) and self.period_ps > 0):
            raise DelayError(f"limit: period_ps must be a positive number of ps or null, not {self.period_ps!r}")
        if not isinstance(self.reason, str) or not self.reason:
            raise DelayError("limit: the reason is missing")


@dataclass(frozen=True)
class Table:
    """The delays of one placed and routed array.

    Attributes
    ----------
    part, package, speed_grade : str
        What it was routed for.
    seed : int
        Of the placement.
    tools : dict of str to str
        Name and version of each tool.
    source_sha256 : str
        Of the gateware that was routed, the harness included.
    vec : int
        Products a lane adds in a step.
    lanes : tuple of tuple of Bank
        For each lane its banks: tree levels first, the accumulator last.
    reported_ps : dict of str to int
        For each bank name, the longest path over all lanes in nextpnr's own report.
    unmodelled : dict of str to Limit
        What else would fail, and when: multiplier, requantiser, control, memories.
    scale : float
        Factor that the delays were multiplied by since (`derated`).
    """

    part: str
    package: str
    speed_grade: str
    seed: int
    tools: Mapping[str, str]
    source_sha256: str
    vec: int
    lanes: tuple[tuple[Bank, ...], ...]
    reported_ps: Mapping[str, int]
    unmodelled: Mapping[str, Limit]
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("part", "package", "speed_grade", "source_sha256"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise DelayError(f"{name} must be a text, not {getattr(self, name)!r}")
        for name in ("seed", "vec"):
            if not _is_int(getattr(self, name)):
                raise DelayError(f"{name} must be a whole number, not {getattr(self, name)!r}")
        if not 2 <= self.vec <= MOST_VEC or self.vec & (self.vec - 1):
            raise DelayError(f"vec must be a power of two from 2 to {MOST_VEC}, not {self.vec}")
        if not self.lanes:
            raise DelayError("lanes: there are none")
        names = bank_names(self.vec)
        for number, banks in enumerate(self.lanes):
            if tuple(bank.name for bank in banks) != names:
                raise DelayError(f"lane {number}: banks must be {', '.join(names)}")
            for bank in banks:
                if bank.kind == "tree" and bank.width < register_bits(bank.name):
                    raise DelayError(
                        f"lane {number}: bank {bank.name} has {bank.width} bits, its sums have "
                        f"{register_bits(bank.name)}: they would be cut off where something is late, and nowhere else; "
                        "route the lanes anew: redline timing build"
                    )
                wanted = "accumulator" if bank.name == "accumulator" else "tree"
                if bank.kind != wanted:
                    raise DelayError(f"lane {number}: bank {bank.name} must be of kind {wanted}, not {bank.kind}")
        if set(self.reported_ps) != set(names):
            raise DelayError(f"reported_ps must have {', '.join(names)}")
        for name, delay in self.reported_ps.items():
            _check_delays(f"reported_ps of {name}", (delay,), 1)
        if not all(isinstance(text, str) for text in self.tools.values()):
            raise DelayError("tools must be names with versions")
        number = isinstance(self.scale, (int, float)) and not isinstance(self.scale, bool)
        if not (number and self.scale > 0 and math.isfinite(self.scale)):
            raise DelayError(f"scale must be positive, not {self.scale!r}")

    def bank(self, lane: int, name: str) -> Bank:
        """A lane's bank by name.

        Raises
        ------
        DelayError
            If there is no such lane or bank.
        """
        if not 0 <= lane < len(self.lanes):
            raise DelayError(f"no lane {lane}; the table has {len(self.lanes)}")
        for bank in self.lanes[lane]:
            if bank.name == name:
                return bank
        raise DelayError(f"no bank {name!r}; there are {', '.join(bank_names(self.vec))}")

    def __iter__(self) -> Iterator[tuple[int, Bank]]:
        """Every bank with its lane."""
        for lane, banks in enumerate(self.lanes):
            for bank in banks:
                yield lane, bank

    @property
    def onset_ps(self) -> int:
        """The shortest period that is safe for every modelled bank of every lane."""
        return max(bank.onset_ps for _, bank in self)

    @property
    def limit_ps(self) -> int | None:
        """The shortest period at which nothing unmodelled fails; None if the tools give no figure at all."""
        known = [limit.period_ps for limit in self.unmodelled.values() if limit.period_ps is not None]
        return max(known, default=None)

    def static_fmax_mhz(self, name: str | None = None) -> float:
        """The highest clock that is safe for a bank, by name, or for all, over the lanes."""
        return 1e6 / max(bank.onset_ps for _, bank in self if name in (None, bank.name))

    def derated(self, voltage_scale: float) -> Table:
        """The table with every delay times `voltage_scale`: above 1 for lower voltage or slower silicon.

        Raises
        ------
        DelayError
            If the scale is not positive.
        """
        if not (voltage_scale > 0 and math.isfinite(voltage_scale)):
            raise DelayError(f"voltage_scale must be positive, not {voltage_scale!r}")
        if voltage_scale == 1:
            return self

        def scaled(limit: Limit) -> Limit:
            if limit.period_ps is None:
                return limit
            return replace(limit, period_ps=max(1, round(limit.period_ps * voltage_scale)))

        return replace(
            self,
            lanes=tuple(tuple(bank.scaled(voltage_scale) for bank in banks) for banks in self.lanes),
            reported_ps={name: round(delay * voltage_scale) for name, delay in self.reported_ps.items()},
            unmodelled={name: scaled(limit) for name, limit in self.unmodelled.items()},
            scale=self.scale * voltage_scale,
        )

    @property
    def hash(self) -> str:
        """SHA-256 of everything in the table."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The file's text: one bank a line."""
        head = {
            "schema": SCHEMA,
            **{name: getattr(self, name) for name in ("part", "package", "speed_grade", "seed")},
            "tools": dict(self.tools),
            "source_sha256": self.source_sha256,
            "vec": self.vec,
            "scale": self.scale,
            "reported_ps": dict(self.reported_ps),
            "unmodelled": {name: asdict(limit) for name, limit in self.unmodelled.items()},
        }
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
        lanes = []
        for banks in self.lanes:
            rows = ",\n".join("      " + json.dumps(_bank_dict(bank), separators=(",", ":")) for bank in banks)
            lanes.append(f"    [\n{rows}\n    ]")
        return "\n".join(["{", *lines, '  "lanes": [', ",\n".join(lanes), "  ]", "}", ""])

    def save(self, path: Path) -> None:
        """Write the file, with its checksum."""
        head, _, rest = self.to_json().partition("\n")
        Path(path).write_text(f'{head}\n  "sha256": "{self.hash}",\n{rest}')

    @classmethod
    def from_json(cls, text: str) -> Table:
        """The table in a text, as `to_json` gives it or as a file has it; a checksum is compared if there is one.

        Raises
        ------
        DelayError
            If it is not a delay table of this schema; the message names the field.
        """
        table, _ = cls._parsed(text)
        return table

    @classmethod
    def _parsed(cls, text: str) -> tuple[Table, bool]:
        """The table in a text, and whether it had a checksum."""
        try:
            data = parse_json(text, "the text")
        except ReadError as error:
            raise DelayError(f"a delay table is a JSON file: {error}") from error
        if not isinstance(data, dict) or "schema" not in data:
            raise DelayError("not a delay table: there is no field schema")
        if data.pop("schema") != SCHEMA:
            raise DelayError(f"the delay table has another schema than {SCHEMA}; make it anew: redline timing build")
        checksum = data.pop("sha256", None)
        lanes = _list("lanes", _take(data, "lanes"))
        parsed = tuple(tuple(_bank(entry) for entry in _list("lane", banks)) for banks in lanes)
        unmodelled = {}
        for name, entry in _dict("unmodelled", _take(data, "unmodelled")).items():
            entry = _dict(f"unmodelled {name}", entry)
            unmodelled[name] = Limit(_take(entry, "period_ps"), _take(entry, "reason"))
            _nothing_left(f"unmodelled {name}", entry)
        tools = _dict("tools", _take(data, "tools"))
        reported = _dict("reported_ps", _take(data, "reported_ps"))
        fields = {
            name: _take(data, name)
            for name in ("part", "package", "speed_grade", "seed", "source_sha256", "vec", "scale")
        }
        _nothing_left("the table", data)
        table = cls(tools=tools, lanes=parsed, reported_ps=reported, unmodelled=unmodelled, **fields)
        if checksum is not None and checksum != table.hash:
            raise DelayError("damaged, or changed by hand: its checksum does not match; Table.save writes a new one")
        return table, checksum is not None

    @classmethod
    def load(cls, path: Path | str) -> Table:
        """Read a file.

        Raises
        ------
        DelayError
            If it cannot be read, or is not a delay table of this schema.
        """
        try:
            table, checked = cls._parsed(read_bytes(Path(path), MOST_JSON).decode())
        except (ReadError, UnicodeDecodeError) as error:
            raise DelayError(f"the delay table {path} cannot be read: {error}") from error
        except DelayError as error:
            raise DelayError(f"{path}: {error}") from error
        if not checked:
            raise DelayError(f"{path}: it has no checksum, so that damage could not be seen; Table.save writes one")
        return table


def bank_names(vec: int) -> tuple[str, ...]:
    """The banks of a lane of `vec` products, in order: tree levels first, the accumulator last."""
    names, depth, count = [], 1, vec // 2
    while count:
        names += [f"tree_{depth}_{index}" for index in range(count)]
        depth, count = depth + 1, count // 2
    return (*names, "accumulator")


def register_bits(bank: str) -> int:
    """Bits of a bank's register, where no netlist says otherwise: sums of tree level d have d more than products."""
    return WORD if bank == "accumulator" else PRODUCT_BITS + int(bank.split("_")[1])


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_delays(what: str, delays: tuple[int, ...], count: int) -> None:
    if len(delays) != count:
        raise DelayError(f"{what}: {len(delays)} delays instead of {count}")
    if not all(_is_int(delay) for delay in delays):
        raise DelayError(f"{what}: delays are whole ps")
    if any(abs(delay) > LONGEST_PS for delay in delays):
        raise DelayError(f"{what}: delays are at most {LONGEST_PS} ps")


def _bank_dict(bank: Bank) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": bank.name, "kind": bank.kind, "width": bank.width, "offset": bank.offset}
    entry["pins"] = {name: {"carry": bank.pins[name].carry, "own": bank.pins[name].own} for name in bank.signals}
    if bank.exceptions:
        entry["exceptions"] = bank.exceptions
    return entry


def _bank(entry: object) -> Bank:
    data = _dict("bank", entry)
    name = _take(data, "name")
    where = f"bank {name}"
    pins = {}
    for signal, arrivals in _dict(f"{where}: pins", _take(data, "pins")).items():
        arrivals = _dict(f"{where}: {signal}", arrivals)
        carry, own = (tuple(_list(f"{where}: {part}", _take(arrivals, part))) for part in ("carry", "own"))
        _nothing_left(f"{where}: {signal}", arrivals)
        pins[signal] = Pins(carry, own)
    offset = tuple(_list(f"{where}: offset", _take(data, "offset")))
    exceptions = tuple(
        tuple(_list(f"{where}: exceptions", row)) for row in _list(f"{where}: exceptions", data.pop("exceptions", []))
    )
    kind, width = _take(data, "kind"), _take(data, "width")
    _nothing_left(where, data)
    return Bank(name, kind, width, offset, pins, exceptions)


def _take(data: dict[str, Any], name: str) -> Any:
    if name not in data:
        raise DelayError(f"the field {name} is missing")
    return data.pop(name)


def _dict(what: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DelayError(f"{what} must be an object, not {value!r:.40}")
    return dict(value)


def _list(what: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise DelayError(f"{what} must be a list, not {value!r:.40}")
    return value


def _nothing_left(what: str, data: dict[str, Any]) -> None:
    if data:
        raise DelayError(f"{what} has fields that this version does not know: {', '.join(data)}")
