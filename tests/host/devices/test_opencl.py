"""The opencl device: its program, its refusals, and what it does when a kernel hangs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.devices.device import DeviceError
from host.devices.reference import ReferenceDevice
from host.devices.registry import device as by_name
from host.devices.runtime import Runtime
from host.faults.models import SoftErrors
from host.faults.stuck import StuckAt
from host.program.program import Program
from host.schedule.launch import Launch, schedule
from host.verification.cases import CONFIGS, random_case, random_program
from host.verification.overclocked import OVERCLOCKED
from host.verification.verify import verify
from hw import config as hw_config
from hw import record, registers
from hw.config import Config
from hw.descriptor import Flag
from tests.host.opencl import available, needs_opencl
from tests.needs import needs

pytestmark = needs_opencl
if available():
    import pyopencl as cl

    from host.devices import extents
    from host.devices.opencl import device as module
    from host.devices.opencl import gateware, platforms
    from host.devices.opencl.device import OpenCLDevice
    from host.devices.opencl.source import Shape, shape_for, source

CONFIG = CONFIGS[1]
OTHER = CONFIGS[2]


def make(config: Config = CONFIG, **options: Any) -> OpenCLDevice:
    return OpenCLDevice(config, **{"memory_bytes": 1 << 22, "units": 1, **options})


@pytest.fixture(scope="module")
def program() -> Program:
    return random_program(np.random.default_rng(27), CONFIG).with_placement(())


def launch(program: Program, batch: int = 1) -> Launch:
    return schedule(program, range(len(program.layers)), batch, writeback=True)


def images(program: Program, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-128, 128, (count, *program.input_shape)).astype(np.int8)


def same_as_the_reference(device: OpenCLDevice, program: Program, count: int = 3) -> None:
    plan = SoftErrors(1e-2, per="mac").draw(program, 0, count, 4)
    found = Runtime(program, device).forward(images(program, count), plan=plan)
    with ReferenceDevice(device.config, memory_bytes=1 << 22) as oracle:
        wanted = Runtime(program, oracle).forward(images(program, count), plan=plan)
    for name in program.names:
        np.testing.assert_array_equal(found.out[name], wanted.out[name])
    assert found.report.faults_applied == wanted.report.faults_applied > 0


# -- which device


def test_it_is_found_by_name_and_by_parts_of_its_names() -> None:
    every = platforms.devices()
    with by_name("opencl", CONFIG, memory_bytes=1 << 20, units=1) as one:
        assert isinstance(one, OpenCLDevice)
        assert one.opencl == every[0]
    for device in every:
        found = platforms.find(device.platform.name.upper()[:6], device.name[-4:].lower())
        assert device.platform.name[:6].casefold() in found.platform.name.casefold()


def test_an_unknown_name_is_answered_with_what_there_is() -> None:
    with pytest.raises(DeviceError, match="no OpenCL device matches device 'abacus'; there are: ") as said:
        make(device_name="abacus")
    assert platforms.devices()[0].name.strip() in str(said.value)
    with pytest.raises(DeviceError, match="no OpenCL device matches platform 'antikythera' and device 'x'"):
        make(platform="antikythera", device_name="x")


def test_without_any_device_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> list[Any]:
        raise cl.LogicError("clGetPlatformIDs failed: PLATFORM_NOT_FOUND_KHR")

    monkeypatch.setattr(cl, "get_platforms", none)
    with pytest.raises(DeviceError, match=r"no OpenCL device.*apt-get install ocl-icd-libopencl1 pocl-opencl-icd"):
        make()


def test_more_memory_than_a_buffer_may_have_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"have at most \d+ bytes, less than memory_bytes="):
        make(memory_bytes=1 << 60)


# -- its program


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((4, 2, False), id="a GPU's: bytes, several work-items"),
        pytest.param((16, 8, True), id="more work-items than outputs"),
        pytest.param((1, 1, True), id="one output at a time"),
    ],
)
def test_how_work_is_shared_changes_no_byte(shape: tuple[int, int, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "shape_for", lambda *_, **__: Shape(*shape))
    configs = (CONFIG, CONFIGS[3])
    made: Callable[..., Any] = lambda name, config, units: (  # noqa: E731
        ReferenceDevice(config, memory_bytes=1 << 24, units=units)
        if name == "reference"
        else make(config, memory_bytes=1 << 24, units=units)
    )
    report = verify(("reference", "opencl"), cases=12, seed=8, make=made, configs=configs)
    assert report.ok, str(report)


def test_lanes_beyond_one_vector_are_exact() -> None:
    configs = (Config(lanes=64, vec=8, saboteur=True), Config(lanes=32, vec=16, saboteur=True))
    report = verify(("reference", "opencl"), cases=8, seed=2, configs=configs)
    assert report.ok, str(report)


def test_a_saved_binary_runs_through_the_same_code(program: Program, tmp_path: Path) -> None:
    with make() as first:
        first.save(tmp_path / "redline.bin")
    with make(binary=tmp_path / "redline.bin", units=2) as second:
        same_as_the_reference(second, program)


def test_a_binary_of_another_build_is_refused(tmp_path: Path) -> None:
    with make(OTHER) as other:
        other.save(tmp_path / "redline.bin")
    with pytest.raises(DeviceError, match=f"another build .hash {OTHER.hash:#018x}.*hash {CONFIG.hash:#018x}"):
        make(binary=tmp_path / "redline.bin")


def test_files_that_are_no_binary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="absent.xclbin: No such file"):
        make(binary=tmp_path / "absent.xclbin")
    (tmp_path / "noise.xclbin").write_bytes(b"\x00noise" * 100)
    with pytest.raises(DeviceError, match=r"noise\.xclbin"):
        make(binary=tmp_path / "noise.xclbin")
    binary = compiled(tmp_path, "__kernel void other(__global uchar *x) { x[0] = 1; }")
    with pytest.raises(DeviceError, match="no kernel 'redline': it was not built for Redline"):
        make(binary=binary)
    binary = compiled(tmp_path, IDENTITY + "__kernel void redline(__global uchar *x) { x[0] = 1; }")
    with pytest.raises(DeviceError, match="takes 1 arguments instead of the register map's 10"):
        make(binary=binary)


def test_a_kernel_of_another_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hw_config, "INTERFACE_VERSION", hw_config.INTERFACE_VERSION + 1)
    with pytest.raises(DeviceError, match=r"executes descriptors of interface version \d+, this Redline's have"):
        source(CONFIG, shape_for(CONFIG, processor=True))


WIDE = CONFIGS[3]
"""Sixteen lanes: a vector of 64 bytes."""
SOURCES = (
    *(CONFIGS[0], CONFIGS[4], CONFIGS[7], OVERCLOCKED[1], WIDE, replace(WIDE, arithmetic="pipecnn")),
    replace(WIDE, lanes=32, vec=16, weight_bytes=1 << 16, overclock=32),
)


@pytest.mark.parametrize("shape", [(1, 8, True), (64, 4, False)])
def test_the_source_is_opencl_c_1_2_without_a_warning(shape: tuple[int, int, bool]) -> None:
    context = cl.Context([platforms.find()])
    for config in SOURCES:
        cl.Program(context, source(config, Shape(*shape))).build(["-cl-std=CL1.2", "-Werror"])


CLANG = next((found for name in ("clang", *(f"clang-{n}" for n in range(22, 12, -1))) if (found := which(name))), None)
FOR_PROCESSOR = ("-x", "cl", "-cl-std=CL1.2", "-Xclang", "-finclude-default-header", "--target=x86_64-linux-gnu")


def warnings_for(processor: str, text: str) -> str:
    """What clang says of a program for a processor that this machine need not have."""
    assert CLANG
    command = [CLANG, *FOR_PROCESSOR, f"-march={processor}", "-S", "-emit-llvm", "-o", "/dev/null", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120).stderr


@needs(CLANG is not None, "apt-get install clang")
@pytest.mark.parametrize("processor", ["haswell", "skylake-avx512"])
def test_no_vector_of_64_bytes_crosses_a_call(processor: str) -> None:
    for config in SOURCES:
        for shape in (Shape(1, 8, True), Shape(64, 4, False)):
            assert warnings_for(processor, source(config, shape)) == ""
    # clang warns of such calls where they depend on the processor.
    wide = "__kernel void crosses(__global int *x) { vstore16(vload16(0, x), 1, x); }"
    assert ("-Wpsabi" in warnings_for(processor, wide)) == (processor == "haswell")


def test_the_drivers_log_is_shown_when_it_refuses_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    from host.devices.opencl import program as programs

    monkeypatch.setattr(programs, "source", lambda *_: "__kernel void redline( { }")
    with pytest.raises(DeviceError, match=r"(?s)the OpenCL C kernel cannot be built for .*error: .*expected"):
        make()


# -- gateware, as a board's binary would bring it: the register map's arguments, and a completion record

IDENTITY = f"""
__kernel void redline_identity(__global ulong *identity) {{
    identity[0] = {CONFIG.hash:#x}ul; identity[1] = {hw_config.INTERFACE_VERSION}; identity[2] = 0;
}}
"""


def declared(kernel: str = "redline") -> str:
    """The head of a kernel with the register map's arguments."""
    listed = [
        f"{'__global uchar *' if argument.is_pointer else 'uint '}{argument.name}" for argument in registers.ARGUMENTS
    ]
    return f"__kernel void {kernel}({', '.join(listed)})"


def recorded(**values: str) -> str:
    """OpenCL C that writes the completion record, some of its fields otherwise."""
    fields = dict.fromkeys(record.DTYPE.names or (), "0")
    fields |= {"config_hash": f"{CONFIG.hash:#x}ul", "interface_version": str(hw_config.INTERFACE_VERSION)}
    fields |= {"jobs": "jobs", **values}
    assert record.DTYPE.fields is not None
    return "".join(
        f"*(__global {'ulong' if kind.itemsize == 8 else 'uint'} *)(record + {at}) = {fields[name]};\n"
        for name, (kind, at, *_) in record.DTYPE.fields.items()
    )


COPY = f"""{declared()} {{
    // Copies what is loaded to where the result goes; the fault lists' lengths are left behind it.
    for (uint job = 0; job < jobs; job++) {{
        __global const uchar *d = descriptors + 256 * job;
        const uint words = as_uint(vload4(0, d + LOAD_WORDS));
        __global const uchar *from = memory + as_ulong(vload8(0, d + LOAD_ADDR));
        __global uchar *to = memory + as_ulong(vload8(0, d + POOL_ADDR));
        for (uint at = 0; at < words * VEC; at++)
            to[at] = from[at];
        to[words * VEC] = mac_event_count;
        to[words * VEC + 1] = feature_event_count;
        to[words * VEC + 2] = late_mask_count;
    }}
    {recorded(cycles="0x123456789ul", bytes_read="jobs * 256", faults_applied="mac_event_count")}
}}"""
HANG = f"""{declared()} {{
    // Long enough to hang, short enough to end: nobody can kill it.
    volatile uint turns = 0;
    if (jobs && as_uint(vload4(0, descriptors + LOAD_WORDS)) == 13)
        for (ulong turn = 0; turn < 1500000000ul; turn++)
            turns += 1;
    {recorded()}
}}"""


def compiled(folder: Path, text: str) -> Path:
    """A binary of OpenCL C."""
    from hw.descriptor import DTYPE

    assert DTYPE.fields is not None
    names = {name: DTYPE.fields[name.lower()][1] for name in ("LOAD_WORDS", "LOAD_ADDR", "POOL_ADDR")}
    defined = "".join(f"#define {name} {value}\n" for name, value in {**names, "VEC": CONFIG.vec}.items())
    context = cl.Context([platforms.find()])
    built = cl.Program(context, defined + text).build()
    path = folder / "toy.bin"
    path.write_bytes(built.get_info(cl.program_info.BINARIES)[0])
    return path


def toy_launch(program: Program, words: int, source_at: int, target: int, faults: int = 0) -> Launch:
    """A launch with one job that loads and writes."""
    made = launch(program)
    unit = made.units[0]
    records = unit.descriptors[:1].copy()
    for name in records.dtype.names or ():
        if name.startswith(("load_", "pool_", "conv_")):
            records[name] = 0
    records["flags"] = Flag.LOAD | Flag.WRITE_POOL
    records["load_words"], records["load_segments"], records["load_addr"] = words, 1, source_at
    records["pool_addr"], records["pool_h"], records["pool_w"] = target, records["out_h"], records["out_w"]
    events = np.zeros(faults, unit.mac_events.dtype)
    return replace(made, units=[replace(unit, descriptors=records, mac_events=events)])


def test_gateware_gets_the_register_maps_arguments_and_its_record_is_read(program: Program, tmp_path: Path) -> None:
    with make(binary=compiled(tmp_path, COPY)) as board:
        data = np.random.default_rng(5).integers(0, 256, 64 * CONFIG.vec).astype(np.uint8)
        board.write(0x8000, data)
        report = board.launch(toy_launch(program, 64, 0x8000, 0x20000, faults=7))
        np.testing.assert_array_equal(board.read(0x20000, len(data)), data)
        assert board.read(0x20000 + len(data), 3).tolist() == [7, 0, 0]
        assert (report.cycles, report.bytes_read, report.faults_applied) == (0x123456789, 256, 7)
        stuck = StuckAt(lane=0, bit=4, value=1).draw(program, 0, 1, 1)
        with pytest.raises(DeviceError, match="late or stuck bits in 1 groups, but this accelerator was built for 0"):
            board.launch(launch(program).with_faults(stuck, 0))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "left no completion record: it was not built by 'redline kernel'"),
        (recorded(config_hash="0x77ul"), "is of another build .hash 0x0000000000000077, interface"),
        (recorded(interface_version="1"), "is of another build .hash 0x[0-9a-f]{16}, interface 1. than"),
        (recorded(jobs="5"), "did 5 of 0 jobs"),
        (recorded(status="4"), "placed a buffer at an address that is not a multiple of 4096"),
    ],
)
def test_gateware_that_does_not_answer_as_it_should_is_refused(body: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=message):
        make(binary=compiled(tmp_path, f"{declared()} {{ {body} }}"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"if (!jobs) {{ {recorded()} }}", "left no completion record"),
        (recorded(jobs="0"), "compute unit 0 did 0 of 1 jobs"),
        (recorded(status="jobs ? 1 : 0"), "memory answered a read of compute unit 0 with an error"),
        (recorded(status="jobs ? 2 : 0"), "memory answered a write of compute unit 0 with an error"),
    ],
)
def test_a_launch_that_went_wrong_is_an_error(program: Program, body: str, message: str, tmp_path: Path) -> None:
    binary = compiled(tmp_path, f"{declared()} {{ {body} }}")
    with make(binary=binary) as board, pytest.raises(DeviceError, match=message):
        board.launch(toy_launch(program, 1, 0, 4096))


def test_gateware_that_hangs_at_once_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateware, "IDENTITY_TIMEOUT_S", 0.2)
    binary = compiled(tmp_path, HANG.replace("jobs && ", "!jobs || "))
    with pytest.raises(DeviceError, match=r"does not answer: a launch of no jobs was not done after 0\.2 s"):
        make(binary=binary)


def test_a_hung_kernel_is_given_up_and_the_device_set_up_anew(program: Program, tmp_path: Path) -> None:
    with make(binary=compiled(tmp_path, HANG), launch_timeout_s=0.3) as board:
        before = board.session
        board.write(0, np.ones(16, np.uint8))
        with pytest.raises(DeviceError, match=r"the kernel hangs: of 1 compute units only 0 were done after 0\.3 s"):
            board.launch(toy_launch(program, 13, 0, 4096))
        assert board.session is not before
        board.launch_timeout_s = 60
        board.launch(toy_launch(program, 1, 0, 4096))
        board.write(64, np.arange(64, dtype=np.uint8))
        np.testing.assert_array_equal(board.read(64, 64), np.arange(64))


def test_what_ran_beside_a_hung_kernel_is_lost_and_says_so(program: Program, tmp_path: Path) -> None:
    with make(binary=compiled(tmp_path, HANG), launch_timeout_s=0.2) as board:
        first, second = (board.begin(toy_launch(program, 13, 0, 4096)) for _ in range(2))
        with pytest.raises(DeviceError, match="the kernel hangs"):
            board.finish(first)
        with pytest.raises(DeviceError, match="was lost when the device was set up anew"):
            board.finish(second)


# -- what it refuses


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"load_addr": (1 << 64) - 8}, "loads features at 0xfffffffffffffff8, which is outside device memory"),
        ({"load_words": 1 << 31}, "loads features at"),
        ({"load_segments": 1 << 20, "load_stride": 1 << 20}, "loads features at"),
        ({"weight_addr": 1 << 40}, "reads weights at 0x10000000000, which is outside device memory"),
        ({"param_addr": (1 << 22) - 4}, "reads parameters at"),
        ({"pool_addr": 1 << 22}, "writes its final output at"),
        ({"pool_image": 1 << 31, "images": 2}, "writes its final output at"),
        ({"conv_plane": 1 << 31, "conv_addr": 1 << 22}, "writes its convolution's output at"),
        ({"steps": 1 << 20}, "has steps of another kernel"),
        ({"src_period": 0}, "computes nothing"),
        ({"images": 0}, "computes nothing"),
        ({"dst_groups": 1000}, "stores more than it computes"),
        ({"upper": 200}, "largest output that is no int8"),
        ({"flags": 1 << 31}, "flags that this device does not know"),
        ({"flags": Flag.POOL, "pool_kernel": 0}, "pools out of range"),
        ({"flags": 0, "pool_h": 99}, "final output of another size"),
    ],
)
def test_a_job_that_reaches_too_far_or_means_nothing_is_refused(
    program: Program, changes: dict[str, int], message: str
) -> None:
    made = launch(program)
    unit = made.units[0]
    records = unit.descriptors.copy()
    records["flags"][-1] |= Flag.LOAD | Flag.WRITE_CONV | Flag.WRITE_POOL
    records["load_segments"][-1] = max(1, int(records["load_segments"][-1]))
    extents.check(unit.descriptors, CONFIG, 1 << 22)
    for name, value in changes.items():
        records[name][-1] = value
    with make() as device, pytest.raises(DeviceError, match=f"descriptor {len(records) - 1} .*{re.escape(message)}"):
        device.launch(replace(made, units=[replace(unit, descriptors=records)]))


ON_CHIP = (
    "load_base",
    "src_base",
    "src_plane",
    "src_image",
    "src_step",
    "src_tap",
    "dst_base",
    "dst_plane",
    "dst_image",
)
GEOMETRY = ("in_h", "in_w", "stride_y", "stride_x", "pad_y", "pad_x")


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_nonsense_on_chip_harms_nothing_but_its_own_result(data: st.DataObject, program: Program) -> None:
    made = launch(program)
    unit = made.units[0]
    records = unit.descriptors.copy()
    for _ in range(4):
        name = data.draw(st.sampled_from(ON_CHIP))
        at = data.draw(st.integers(0, len(records) - 1))
        records[name][at] = data.draw(st.integers(0, np.iinfo(records[name].dtype).max))
    device = shared()
    device.write(0, np.full(1 << 22, 0x5A, np.uint8))
    device.launch(replace(made, units=[replace(unit, descriptors=records)]))
    untouched = np.full(1 << 22, True)
    for name in made.written:
        region = made.memory[name]
        untouched[region.address : region.address + region.nbytes] = False
    assert (device.read(0, 1 << 22)[untouched] == 0x5A).all()


@lru_cache(maxsize=1)
def shared() -> OpenCLDevice:
    return make()


def test_late_and_stuck_bits_are_refused_by_a_build_without_overclocking(program: Program) -> None:
    plan = StuckAt(lane=0, bit=4, value=1).draw(program, 0, 1, 1)
    refused = r"late or stuck bits in 1 groups, but this accelerator was built for 0; use Config.overclock=32"
    with make() as device:
        with pytest.raises(DeviceError, match=refused):
            device.runtime(program).forward(images(program, 1), plan=plan)
        with pytest.raises(DeviceError, match=refused):
            device.launch(launch(program).with_faults(plan, 0))
        with pytest.raises(DeviceError, match=refused):
            list(device.runtime(program).stream([images(program, 1)], plan=plan))


def test_without_the_bindings_doctor_is_named() -> None:
    code = "import sys; sys.modules['pyopencl'] = None; import redline; redline.device('opencl')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "DeviceError: the opencl device cannot be loaded" in done.stderr
    assert "'redline doctor' says what is missing" in done.stderr


def test_units_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="units must be at least 1, not 0"):
        make(units=0)


def test_random_cases_give_the_same_on_more_units_than_cores() -> None:
    for number in range(4):
        case = random_case(12, number, configs=(CONFIG,))
        x = np.repeat(case.x, 5, axis=0)
        with make(units=7) as many, make() as one:
            found, wanted = (Runtime(case.program, device).forward(x) for device in (many, one))
        for name in case.program.names:
            np.testing.assert_array_equal(found.out[name], wanted.out[name])


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        pytest.param("(shift == 0 ? (lanes_t)(0) : twice & 1)", "0", id="no rounding"),
        pytest.param("(lanes_t)((int)job->upper)", "(lanes_t)(127)", id="no ReLU6"),
        pytest.param("group / job->src_period * job->src_step", "0", id="groups read alike"),
        pytest.param("ky * job->src_tap", "ky * job->in_w", id="additions read rows"),
        pytest.param("sums[q] ^= flips.wide[q]", "", id="no flips in accumulators"),
        pytest.param("^= (char)(1u <<", "^= (char)(2u <<", id="another bit of an output"),
        pytest.param("kx < min(x + (int)job->pool_kernel,", "kx < min(x + 1,", id="narrow windows of pooling"),
    ],
)
def test_verification_finds_a_slip_in_the_kernel(right: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from host.devices.opencl import program as programs

    whole = programs.source

    def slipped(config: Config, shape: Shape) -> str:
        text = whole(config, shape)
        assert text.count(right) == 1
        return text.replace(right, wrong)

    monkeypatch.setattr(programs, "source", slipped)
    report = verify(("reference", "opencl"), cases=60, seed=1, configs=(CONFIG,), most_mismatches=1)
    assert report.mismatches
