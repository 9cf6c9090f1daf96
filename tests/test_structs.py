"""Structs that Python shares with C++ and OpenCL C lie alike on both sides: sizes, offsets, what is a pointer.

The compiler says where it puts each field; nothing here is read off the text of a struct but its fields' names.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from host.devices.emulator import native, plan
from host.devices.opencl.source import Shape, source
from hw import descriptor, events, masks, params, record
from hw.config import Config
from sim import control, probe
from sim.tools import ToolError, find_compiler

NATIVE = Path(control.__file__).with_name("native")
PREAMBLE = """
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#define PLACE(type, field) std::printf("\\"%s\\": [%zu, %zu, %d],\\n", #field, offsetof(type, field), \\
                                       sizeof(type::field), int(std::is_pointer<decltype(type::field)>::value));
#define SIZE(type) std::printf("\\"\\": %zu},\\n", sizeof(type));
"""
"""Prints JSON: of each field its offset, its size, and whether it is a pointer; under no name the struct's size."""


def printed(tmp_path: Path, code: str) -> str:
    """What a C++ program prints."""
    try:
        compiler = find_compiler()
    except ToolError as error:
        pytest.skip(f"install: {error}")
    (tmp_path / "main.cpp").write_text(code)
    command = [str(compiler.path), "-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", "main.cpp", "-o", "main"]
    subprocess.run(command, cwd=tmp_path, check=True)
    return subprocess.run([tmp_path / "main"], check=True, capture_output=True, text=True).stdout


def places(tmp_path: Path, declarations: str, structs: dict[str, list[str]]) -> dict[str, dict[str, object]]:
    """Where C++ puts the fields of structs, each [offset, size, pointer or not]; under "" a struct's size."""
    body = ""
    for name, fields in structs.items():
        lines = "".join(f"    PLACE({name}, {field})\n" for field in fields)
        body += f'    std::printf("\\"{name}\\": {{\\n");\n{lines}    SIZE({name})\n'
    text = printed(
        tmp_path,
        f'{PREAMBLE}{declarations}\nint main() {{\n    std::printf("{{");\n{body}    std::printf("\\"\\": 0}}");\n}}\n',
    )
    found: dict[str, dict[str, object]] = json.loads(text)
    del found[""]
    return found


def of_ctypes(struct: type[ctypes.Structure]) -> dict[str, object]:
    """The same as Python's ctypes has it."""
    found: dict[str, object] = {"": ctypes.sizeof(struct)}
    for name, kind, *_ in struct._fields_:
        place = getattr(struct, name)
        pointer = kind is ctypes.c_void_p or issubclass(kind, ctypes._Pointer)
        found[name] = [place.offset, place.size, int(pointer)]
    return found


def of_dtype(dtype: np.dtype) -> dict[str, object]:
    """The same as a numpy record has it."""
    assert dtype.fields is not None
    return {"": dtype.itemsize} | {name: [at, kind.itemsize, 0] for name, (kind, at, *_) in dtype.fields.items()}


STRUCTS = (native.Tensor, native.Events, native.Adder, native.Late, native.Layer)


def kernels_header() -> str:
    """The header that the emulator's kernels are compiled with."""
    return (native.SOURCES / "engine.h").read_text().replace("#pragma once", "")


def test_the_kernels_structs_are_those_of_ctypes(tmp_path: Path) -> None:
    header = kernels_header()
    names = {struct.__name__: [name for name, *_ in struct._fields_] for struct in STRUCTS}
    assert places(tmp_path, header, names) == {struct.__name__: of_ctypes(struct) for struct in STRUCTS}
    assert set(re.findall(r"^struct (\w+)", header, re.M)) == {*names, "Run"}, "a struct that no test compares"


def test_runs_of_channels_are_rows_of_four_words(tmp_path: Path) -> None:
    found = places(tmp_path, kernels_header(), {"Run": ["source", "from", "to", "count"]})["Run"]
    assert found == {"": 32, "source": [0, 8, 0], "from": [8, 8, 0], "to": [16, 8, 0], "count": [24, 8, 0]}
    assert plan.Part._fields == ("source", "first", "to", "channels")  # they are passed as rows of int64


def test_kinds_of_layers_have_the_kernels_numbers(tmp_path: Path) -> None:
    shown = 'std::printf("%d %d %d", int(CONVOLUTION), int(DEPTHWISE), int(PAIR));'
    code = f"{PREAMBLE}{kernels_header()}int main() {{ {shown} }}"
    assert printed(tmp_path, code) == f"{plan.CONVOLUTION} {plan.DEPTHWISE} {plan.PAIR}"


def test_the_control_page_is_the_simulators(tmp_path: Path) -> None:
    header = control.header().replace("#pragma once", "")
    found = places(tmp_path, header, {"Control": [field.name for field in control.FIELDS]})["Control"]
    assert found == of_dtype(control.DTYPE)
    assert control.DTYPE.itemsize <= control.PAGE_BYTES


def test_no_field_of_the_control_page_is_split_between_words() -> None:
    # The host reads counters while the simulator writes them: a word that is not aligned may be read half old.
    for name, at, size in ((n, *p[:2]) for n, p in of_dtype(control.DTYPE).items() if n):
        word = next(f for f in control.FIELDS if f.name == name).kind
        assert at % int(word[1:]) == 0, f"{name} lies at {at}, {size} bytes"


def test_a_probe_traces_head_is_the_simulators(tmp_path: Path) -> None:
    (text,) = re.findall(r"struct (\{[^}]*\}) head\{", (NATIVE / "probe.cpp").read_text())
    assert probe.HEAD.names == ("kind", "record_bytes", "records")
    found = places(tmp_path, f"struct Head {text};", {"Head": ["kind", "record", "records"]})["Head"]
    assert list(found.values()) == [[0, 4, 0], [4, 4, 0], [8, 8, 0], 16]
    assert of_dtype(probe.HEAD) == {"kind": [0, 4, 0], "record_bytes": [4, 4, 0], "records": [8, 8, 0], "": 16}


@pytest.mark.parametrize("wide", [False, True])
def test_the_opencl_kernel_reads_every_field_of_a_descriptor_from_its_place(tmp_path: Path, wide: bool) -> None:
    text = source(Config(), Shape(1, 1, wide))
    (job,) = re.findall(r"^typedef struct \{[^}]*\} job_t;\n.*?^\}\n", text, re.M | re.S)
    shim = """
typedef uint8_t uchar; typedef uint16_t ushort; typedef uint32_t uint; typedef uint64_t ulong;
#define __global
template <size_t N> struct Bytes { uchar at[N]; };
template <typename T, size_t N> T as(Bytes<N> from) {
    static_assert(sizeof(T) == N, "as many bytes are read as the field has");
    T to; std::memcpy(&to, from.at, N); return to;
}
template <size_t N> Bytes<N> vload(const uchar *from) { Bytes<N> to; std::memcpy(to.at, from, N); return to; }
#define vload2(at, from) vload<2>(from)
#define vload4(at, from) vload<4>(from)
#define vload8(at, from) vload<8>(from)
#define as_ushort as<ushort>
#define as_uint as<uint>
#define as_ulong as<ulong>
"""
    content = np.random.default_rng(3).integers(0, 256, descriptor.DESCRIPTOR_BYTES, np.uint8)
    assert descriptor.DTYPE.names is not None
    names = [name for name in descriptor.DTYPE.names if f" {name};" in job]
    shown = "".join(f'std::printf("%llu\\n", (unsigned long long)job.{name});' for name in names)
    data = ",".join(map(str, content))
    main = f"int main() {{ const uchar from[] = {{{data}}}; job_t job = read_job(from); {shown} }}"
    got = [int(word) for word in printed(tmp_path, f"{PREAMBLE}{shim}{job}{main}").split()]
    row = np.frombuffer(content.tobytes(), descriptor.DTYPE)[0]
    assert names == [field.name for field in descriptor.FIELDS]
    assert got == [int(row[name]) for name in names]


RECORDS = {"event": events, "parameters": params, "mask": masks, "completion": record}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_in_memory_is_the_gatewares(name: str) -> None:
    module = RECORDS[name]
    assert module.LAYOUT.size == 8 * module.DTYPE.itemsize
    fields = {key: field.offset for key, field in module.LAYOUT}
    for key, (_, at, *_) in (module.DTYPE.fields or {}).items():
        assert fields[key] == 8 * at, f"{key} of the {name} record"


def test_a_descriptor_in_memory_is_the_gatewares() -> None:
    assert descriptor.DTYPE.itemsize == descriptor.DESCRIPTOR_BYTES
    at = 0
    for field in descriptor.FIELDS:
        assert descriptor.OFFSETS[field.name] == at
        assert (descriptor.DTYPE.fields or {})[field.name][1] == at
        assert (descriptor.DTYPE.fields or {})[field.name][0].itemsize * 8 == field.bits
        at += field.bits // 8
    assert at == descriptor.USED_BYTES
