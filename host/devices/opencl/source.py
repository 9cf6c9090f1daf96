"""The OpenCL C program of one accelerator: what `hw` defines, written out for the compiler, before the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from host.devices.device import DeviceError
from hw import config as hw_config
from hw import descriptor, events, masks, params
from hw.config import Config
from hw.delays import bank_names
from hw.descriptor import FIELDS, Flag

KERNEL = Path(__file__).with_name("redline.cl")
LATE = Path(__file__).with_name("late.cl")
"""Late and stuck bits: in builds with `Config.overclock` only."""
INTERFACE = 4
"""The `hw.config.INTERFACE_VERSION` whose descriptors the kernel executes."""
FLAGS = (
    *("LOAD", "FENCE", "SRC_B", "DST_B", "STORE", "RELU", "POOL", "WRITE_CONV", "WRITE_POOL", "LOAD_ONLY", "STREAM"),
    *("CONTINUE", "PARTIAL", "RESUME", "MORE"),
)
"""The flags it knows. Fences, streams and chunks of loads say when something happens: an executor in order need not
heed them."""
KNOWN = sum(getattr(Flag, name) for name in FLAGS)
STATUS_FAULTS, STATUS_JOBS = 0, 1
"""Words of the kernel's status: fault events applied, jobs done."""
STATUS_WORDS = 2
STATUS_WALK, STATUS_JOINED = range(STATUS_WORDS, STATUS_WORDS + 2)
STATUS_CARRIED = 16
"""Behind these, what waits from job to job: the first of those whose outputs go on together, how many there are so far,
and LANES accumulators, at a multiple of the widest vector's size."""

_TYPES = {8: "uchar", 16: "ushort", 32: "uint", 64: "ulong"}


@dataclass(frozen=True)
class Shape:
    """How a program uses an OpenCL device.

    Attributes
    ----------
    group : int
        Work-items of a compute unit. Work-items of a processor take turns: one is best there.
    block : int
        Outputs that a work-item computes at once.
    wide : bool
        Operands lie on chip as int: a processor computes faster than it widens bytes, a GPU does not.
    """

    group: int
    block: int
    wide: bool

    @property
    def operand_bytes(self) -> int:
        """Size of one feature or weight in the kernel's buffers."""
        return 4 if self.wide else 1

    @property
    def rows(self) -> int:
        """Rows of outputs that a work-item computes together under late bits: each takes more registers then."""
        return max(1, self.block // 2) if self.wide else 1


def shape_for(config: Config, *, processor: bool, group: int | None = None) -> Shape:
    """The shape that suits a processor, or else a GPU."""
    # A block's accumulators should stay in registers.
    block = max(1, (8 if processor else 4) * 16 // max(16, config.lanes))
    return Shape(group or (1 if processor else 128), block, processor)


def source(config: Config, shape: Shape) -> str:
    """OpenCL C of kernels `redline` and `redline_identity`.

    Raises
    ------
    DeviceError
        If the kernel executes descriptors of another interface version than `hw` defines.
    """
    if hw_config.INTERFACE_VERSION != INTERFACE:
        raise DeviceError(
            f"the OpenCL kernel executes descriptors of interface version {INTERFACE}, this Redline's have "
            f"{hw_config.INTERFACE_VERSION}: bring {KERNEL.name} up to date"
        )
    late = f"\n{LATE.read_text()}" if config.overclock else ""
    return f"{_definitions(config, shape)}\n{_job()}\n{KERNEL.read_text()}{late}"


def bank_bytes(config: Config) -> int:
    """Size of the kernel's buffer with the words of all banks; 0 for a build without overclocking."""
    words = config.overclock * len(masks.OPERANDS) * config.lanes
    return 4 * words * len(bank_names(config.vec))


def _definitions(config: Config, shape: Shape) -> str:
    values: dict[str, object] = {
        "LANES": config.lanes,
        "VEC": config.vec,
        "FEATURE_WORDS": config.feature_words,
        "PIPECNN": int(config.arithmetic == "pipecnn"),
        "GROUP": shape.group,
        "BLOCK": shape.block,
        "operand": "int" if shape.wide else "char",
        "OPERAND_INT": int(shape.wide),
        "CONFIG_HASH": f"{config.hash:#018x}ul",
        "INTERFACE_VERSION": INTERFACE,
        "DESCRIPTOR_BYTES": descriptor.DESCRIPTOR_BYTES,
        "STATUS_FAULTS": STATUS_FAULTS,
        "STATUS_JOBS": STATUS_JOBS,
        "STATUS_WALK": STATUS_WALK,
        "STATUS_JOINED": STATUS_JOINED,
        "STATUS_CARRIED": STATUS_CARRIED,
        "LATE_GROUPS": config.overclock,
        **_offsets("EVENT", events.DTYPE),
        **_offsets("PARAM", params.DTYPE),
        **{f"FLAG_{name}": f"{getattr(Flag, name):#x}u" for name in (*FLAGS, "ONE")},
    }
    if config.overclock:
        banks = bank_names(config.vec)
        values |= {
            "ROWS": shape.rows,
            "BANKS": len(banks),
            "ACCUMULATOR": banks.index("accumulator"),
            "OPERANDS": len(masks.OPERANDS),
            **{f"OPERAND_{name.upper()}": number for name, number in masks.OPERANDS.items()},
            **_offsets("MASK", masks.DTYPE),
        }
    return "".join(f"#define {name} {value}\n" for name, value in values.items())


def _offsets(prefix: str, dtype: np.dtype) -> dict[str, int]:
    """Where a record's fields lie, and its size."""
    assert dtype.fields is not None
    places = {f"{prefix}_{name.upper()}": field[1] for name, field in dtype.fields.items()}
    return {f"{prefix}_BYTES": dtype.itemsize, **places}


def _job() -> str:
    """The struct `job_t` and the function that reads it from a descriptor."""
    members = "".join(f"    {_TYPES[field.bits]} {field.name};\n" for field in FIELDS)
    reads, at = "", 0
    for field in FIELDS:
        size = field.bits // 8
        value = f"as_{_TYPES[field.bits]}(vload{size}(0, from + {at}))" if size > 1 else f"from[{at}]"
        reads += f"    job.{field.name} = {value};\n"
        at += size
    return (
        f"typedef struct {{\n{members}}} job_t;\n\n"
        f"static job_t read_job(__global const uchar *from) {{\n    job_t job;\n{reads}    return job;\n}}\n"
    )
