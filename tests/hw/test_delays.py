"""Delay tables: what is late, groups, files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.capture import capture
from hw.config import Config
from hw.delays import NO_PATH, Bank, DelayError, Limit, Pins, Table, bank_names, register_bits
from tests.hw.tables import random_bank, random_table

SMALL = Config(lanes=2, vec=4, port_bits=32)


def captured_bit_by_bit(bank: Bank, period: int, new: dict[str, int], old: dict[str, int]) -> int:
    """The capture formula as it is written, one output bit and one operand bit at a time."""
    word = 0
    for i in range(bank.width):
        seen = {}
        for signal in bank.signals:
            seen[signal] = 0
            for j in range(i + 1):
                path = bank.offset[i] + bank.pins[signal].carry[j] if j < i else bank.pins[signal].own[j]
                for name, bit, output, delay in bank.exceptions:
                    if (name, bit, output) == (signal, j, i):
                        path = delay
                source = new if path <= period else old
                seen[signal] |= (source[signal] >> j & 1) << j
        if bank.kind == "tree":
            total = seen["a"] + seen["b"]
        else:
            total = seen["sum"]
            for j in range(i + 1):
                chosen = "bias" if seen["select"] >> j & 1 else "accumulator"
                total += (seen[chosen] >> j & 1) << j
        word |= (total >> i & 1) << i
    if word >> (bank.width - 1) & 1:
        word |= 0xFFFFFFFF & ~((1 << bank.width) - 1)
    return word


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1), width=st.integers(1, 32), accumulator=st.booleans(), period=st.integers(1500, 6500)
)
def test_capture_by_groups_is_the_formula_bit_by_bit(seed: int, width: int, accumulator: bool, period: int) -> None:
    rng = np.random.default_rng(seed)
    bank = random_bank(rng, "accumulator" if accumulator else "tree_1_0", width)
    draws = rng.integers(0, 1 << 32, (2, len(bank.signals), 5), dtype=np.uint32)
    if accumulator:
        draws[:, bank.signals.index("select")] = np.where(rng.random((2, 5)) < 0.5, 0xFFFFFFFF, 0)
    new, old = draws
    got = capture(bank, bank.groups(period), tuple(new), tuple(old))
    for at in range(5):
        words = [dict(zip(bank.signals, (int(w) for w in side[:, at]), strict=True)) for side in draws]
        assert int(got[at]) == captured_bit_by_bit(bank, period, *words)


def test_nothing_is_late_at_the_onset_and_something_is_just_below_it() -> None:
    for _, bank in random_table(3, SMALL):
        (group,) = bank.groups(bank.onset_ps)
        assert group.output == (1 << bank.width) - 1
        assert all(mask == 0xFFFFFFFF for mask in group.seen)
        assert any(mask != 0xFFFFFFFF for group in bank.groups(bank.onset_ps - 1) for mask in group.seen)


def test_groups_are_few_where_few_bits_are_late() -> None:
    bank = random_bank(np.random.default_rng(5), "accumulator", 32)
    counts = [len(bank.groups(int(bank.onset_ps * part))) for part in (1.0, 0.97, 0.9, 0.75)]
    assert counts[0] == 1
    assert counts == sorted(counts)
    assert counts[-1] <= 32


def test_a_path_through_the_chain_is_entry_plus_offset_unless_excepted() -> None:
    pins = {"a": Pins((10, 20), (100, 200)), "b": Pins((30, 40), (300, 400))}
    bank = Bank("tree_1_0", "tree", 2, (0, 5), pins, (("b", 0, 1, 77),))
    assert bank.arrival("a").tolist() == [[100, NO_PATH], [15, 200]]
    assert bank.arrival("b").tolist() == [[300, NO_PATH], [77, 400]]
    assert bank.onset_ps == 400


def test_bits_above_the_register_repeat_its_last() -> None:
    pins = {name: Pins((0,) * 3, (0,) * 3) for name in ("a", "b")}
    bank = Bank("tree_1_0", "tree", 3, (0,) * 3, pins)
    words = np.array([0b011, 0b001], np.uint32)
    ones = np.ones(2, np.uint32)
    assert capture(bank, bank.groups(0), (words, ones), (words, ones)).tolist() == [0xFFFFFFFC, 2]


@pytest.mark.parametrize("scale", [0.5, 1.1])
def test_derating_scales_every_path_to_within_a_picosecond(scale: float) -> None:
    table = random_table(1, SMALL)
    slower = table.derated(scale)
    for (_, bank), (_, other) in zip(table, slower, strict=True):
        for signal in bank.signals:
            before, after = bank.arrival(signal), other.arrival(signal)
            paths = before != NO_PATH
            assert np.abs(after[paths] - scale * before[paths]).max() < 1.01
    assert slower.scale == scale
    assert slower.hash != table.hash
    assert slower.limit_ps == round(3000 * scale)


def test_a_table_survives_its_file(tmp_path) -> None:
    table = random_table(7, SMALL)
    path = tmp_path / "table.json"
    table.save(path)
    assert Table.load(path) == table
    assert Table.load(path).hash == table.hash
    assert table.hash != random_table(8, SMALL).hash


def test_banks_are_named_as_the_lane_names_its_registers() -> None:
    assert bank_names(4) == ("tree_1_0", "tree_1_1", "tree_2_0", "accumulator")


def damaged(change) -> str:
    data = json.loads(random_table(2, SMALL).to_json())
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=99), "another schema"),
        (lambda d: d.pop("schema"), "no field schema"),
        (lambda d: d.pop("seed"), "field seed is missing"),
        (lambda d: d.update(extra=1), "does not know: extra"),
        (lambda d: d.update(vec=3), "vec must be a power of two"),
        (lambda d: d.update(lanes=[]), "there are none"),
        (lambda d: d["lanes"][0].pop(), "lane 0: banks must be tree_1_0"),
        (lambda d: d["lanes"][1][0].update(width=33), "width must be from 1 to 32"),
        (lambda d: d["lanes"][1][0]["offset"].pop(), "offset: 16 delays instead of 17"),
        (lambda d: d["lanes"][1][0]["pins"]["a"]["carry"].__setitem__(0, 1.5), "delays are whole ps"),
        (lambda d: d["lanes"][1][0]["pins"].pop("b"), "pins must be a, b"),
        (lambda d: d["lanes"][1][0].update(exceptions=[["a", 3, 2, 100]]), "exception"),
        (lambda d: d["unmodelled"]["requantiser"].update(period_ps=-1), "positive number of ps"),
        (lambda d: d["reported_ps"].pop("accumulator"), "reported_ps must have"),
        (lambda d: d["reported_ps"].update(accumulator="5"), "reported_ps of accumulator: delays are whole ps"),
        (lambda d: d.update(vec=2**40), f"vec must be a power of two from 2 to 64, not {2**40}"),
        (lambda d: d.update(scale=float("inf")), "scale must be positive"),
        (lambda d: d.update(tools={"nextpnr": 3}), "tools must be names with versions"),
        (lambda d: d["lanes"][1][0]["pins"]["a"]["carry"].__setitem__(0, 10**30), "delays are at most 1000000000 ps"),
        (lambda d: d["lanes"][1][0]["offset"].__setitem__(0, -(10**10)), "delays are at most 1000000000 ps"),
        (lambda d: d.update(sha256="0" * 64), "damaged, or changed by hand: its checksum does not match"),
    ],
)
def test_a_damaged_table_is_refused_by_the_name_of_what_is_wrong(change, message: str) -> None:
    with pytest.raises(DelayError, match=message):
        Table.from_json(damaged(change))


@pytest.mark.parametrize(("bank", "width"), [("tree_1_0", 16), ("tree_1_1", 1), ("tree_2_0", 17)])
def test_a_tree_bank_that_is_narrower_than_its_sum_is_refused(bank: str, width: int) -> None:
    table = random_table(2, SMALL)

    def cut(it: Bank) -> Bank:
        pins = {name: Pins(pins.carry[:width], pins.own[:width]) for name, pins in it.pins.items()}
        return replace(it, width=width, offset=it.offset[:width], pins=pins, exceptions=(), _arrivals={})

    lanes = tuple(tuple(cut(it) if it.name == bank else it for it in banks) for banks in table.lanes)
    with pytest.raises(DelayError, match=f"lane 0: bank {bank} has {width} bits, its sums have {register_bits(bank)}"):
        replace(table, lanes=lanes)


def test_the_widest_sum_of_each_level_needs_all_bits_of_its_register() -> None:
    for bank in bank_names(16)[:-1]:
        products = 2 ** int(bank.split("_")[1])
        largest = products * -128 * -128
        assert -(2 ** (register_bits(bank) - 1)) <= largest < 2 ** (register_bits(bank) - 1)
        assert largest >= 2 ** (register_bits(bank) - 2)


def test_a_file_has_a_checksum_that_is_compared(tmp_path) -> None:
    table, path = random_table(2, SMALL), tmp_path / "table.json"
    table.save(path)
    assert Table.load(path) == table
    text = path.read_text()
    path.write_text(text.replace(table.part, table.part + "x"))
    with pytest.raises(DelayError, match=r"table\.json: damaged, or changed by hand"):
        Table.load(path)
    path.write_text(table.to_json())
    with pytest.raises(DelayError, match=r"table\.json: it has no checksum"):
        Table.load(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema":' * 100_000, "9" * 5000])
def test_texts_that_json_itself_chokes_on_are_refused(text: str) -> None:
    with pytest.raises(DelayError, match="a delay table is a JSON file"):
        Table.from_json(text)


def test_a_file_that_never_ends_is_refused() -> None:
    with pytest.raises(DelayError, match="/dev/zero cannot be read: .*not a plain file"):
        Table.load("/dev/zero")


def test_a_file_that_is_not_there_or_no_json_is_named(tmp_path) -> None:
    with pytest.raises(DelayError, match=r"none\.json cannot be read"):
        Table.load(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(DelayError, match=r"text\.json: a delay table is a JSON file"):
        Table.load(tmp_path / "text.json")


def test_the_limit_is_the_slowest_of_what_is_not_modelled() -> None:
    table = random_table(1, SMALL)
    assert table.limit_ps == 3000
    assert Limit(None, "no figure").period_ps is None


def test_a_scale_rounds_every_entry_by_itself_halves_to_even() -> None:
    one = (5,) * 17
    pins = {name: Pins(one, (7,) * 17) for name in ("a", "b")}
    bank = Bank("tree_1_0", "tree", 17, (9,) * 17, pins, (("a", 1, 3, 11),)).scaled(0.5)
    arrival = bank.arrival("a")
    # 2.5 to 2 and 4.5 to 4, then added; 3.5 to 4; 5.5 to 6.
    assert (arrival[2, 0], arrival[2, 2], arrival[3, 1]) == (2 + 4, 4, 6)
