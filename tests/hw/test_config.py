"""Parameters and shared facts: illegal builds are refused by name, and every view of a record is the same record."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw import descriptor, events, params
from hw.config import INTERFACE_VERSION, Config, ConfigError
from hw.registers import REGISTERS
from hw.verilog import generate

MICROCODE = {"lanes": 4, "vec": 4, "port_bits": 32, "address_bits": 24, "control": "microcode"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lanes": 3}, "lanes must be a power of two from 2 to 64, not 3"),
        ({"vec": 32}, "vec must be a power of two from 4 to 16, not 32"),
        ({"vec": 8.0}, "vec must be int, not 8.0"),
        ({"saboteur": 1}, "saboteur must be bool, not 1"),
        ({"port_bits": 32}, "port_bits must be from 64 .one feature word. to 1024"),
        ({"lanes": 2, "vec": 4, "port_bits": 128}, "port_bits must be from 32 .one feature word. to 64"),
        ({"feature_bytes": 1000}, "feature_bytes must be a power of two"),
        ({"weight_bytes": 1024}, "weight_bytes must hold at least 16 words of 128 bytes"),
        ({"arithmetic": "float"}, "arithmetic must be one of redline, pipecnn, not 'float'"),
        ({"arithmetic": 8}, "arithmetic must be str, not 8"),
        ({"overclock": 33}, "overclock must be from 0 to 32, not 33"),
        ({"overclock": True}, "overclock must be int, not True"),
        ({"address_bits": 49}, "address_bits must be from 16 to 48, not 49"),
        ({"count_bits": 9}, "count_bits must be from 10 to 32, not 9"),
        ({"extent_bits": 17}, "extent_bits must be from 6 to 16, not 17"),
        ({"count_bits": 13}, "count_bits must be at least 16, to count the 8192 words"),
        ({"control": "fsm"}, "control must be one of pipeline, microcode, not 'fsm'"),
        ({"control": "microcode"}, 'with control="microcode", lanes must be 2 or 4, not 16'),
        (MICROCODE | {"vec": 8, "port_bits": 64}, 'with control="microcode", vec must be 4, not 8'),
        (MICROCODE | {"port_bits": 64}, "port_bits must be 32, not 64"),
        (MICROCODE | {"arithmetic": "pipecnn"}, "arithmetic must be redline, not 'pipecnn'"),
        (MICROCODE | {"saboteur": True}, "saboteur must be False, not True"),
        (MICROCODE | {"overclock": 8}, "overclock must be 0, not 8"),
        (MICROCODE | {"probe": True}, "probe must be False, not True"),
        (MICROCODE | {"address_bits": 33}, "address_bits must be at most 32, not 33"),
        (MICROCODE | {"pool_columns": 257}, "pool_columns must be at most 256, not 257"),
        ({"pool_columns": 0}, "pool_columns must be from 1 to 4096, not 0"),
    ],
)
def test_an_illegal_parameter_is_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**change)  # type: ignore[arg-type]


def test_the_hash_tells_builds_apart_but_not_probes() -> None:
    assert Config().hash != Config(lanes=8).hash
    assert Config().hash != Config(saboteur=True).hash
    assert Config().hash != Config(arithmetic="pipecnn").hash
    assert Config().hash == Config(probe=True).hash
    assert Config().hash != Config(overclock=8).hash != Config(overclock=32).hash
    pipeline = {**MICROCODE, "control": "pipeline"}
    assert Config(**MICROCODE).hash != Config(**pipeline).hash  # type: ignore[arg-type]
    assert len({Config().hash, *(Config(**{f"{name}_bits": 16}).hash for name in ("address", "count"))}) == 3


def test_a_plain_builds_identity_is_that_of_a_release_without_later_parameters() -> None:
    later = ("probe", "overclock", "address_bits", "count_bits", "extent_bits", "control")
    functional = {name: value for name, value in asdict(Config()).items() if name not in later}
    text = json.dumps({"interface": INTERFACE_VERSION, **functional}, sort_keys=True)
    assert Config().hash == int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


@given(st.data())
def test_the_gateware_reads_the_descriptor_that_the_host_packs(data: st.DataObject) -> None:
    record = np.zeros((), descriptor.DTYPE)
    for field in descriptor.FIELDS:
        record[field.name] = data.draw(st.integers(0, 2**field.bits - 1), label=field.name)
    raw = int.from_bytes(record.tobytes(), "little")
    for field in descriptor.FIELDS:
        assert raw >> 8 * descriptor.OFFSETS[field.name] & 2**field.bits - 1 == int(record[field.name])
    assert not any(record.tobytes()[descriptor.USED_BYTES :])


@pytest.mark.parametrize("module", [events, params])
def test_event_and_parameter_records_lie_the_same_for_hardware_and_host(module: object) -> None:
    dtype, layout = module.DTYPE, module.LAYOUT  # type: ignore[attr-defined]
    assert layout.size == 8 * dtype.itemsize
    for name in dtype.names:
        assert layout[name].offset == 8 * dtype.fields[name][1]


def test_registers_lie_on_words_of_their_own() -> None:
    offsets = [register.offset for register in REGISTERS]
    assert all(offset % 4 == 0 for offset in offsets)
    assert len(set(offsets)) == len(offsets)


def test_a_plain_build_has_no_trace_of_instrumentation() -> None:
    config = Config(lanes=2, vec=4, port_bits=32, feature_bytes=256, weight_bytes=256)
    text = generate(config)
    assert text == generate(config), "the same parameters give the same Verilog"
    assert "saboteur" not in text
    assert "probe" not in text
    assert "flip" not in text.replace("flipped", "")
    for trace in ("capture", "late_mask", "forget", "restart", ".row(", "overclock", "completion"):
        assert trace not in text, trace
    instrumented = generate(replace(config, overclock=4))
    assert "redline_capture_accumulator" in instrumented
    assert "late_masks" in instrumented
    assert "lane_0" not in instrumented
