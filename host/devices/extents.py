"""What a job touches, checked before it is handed to a device that would do as it is told."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from host.devices.device import DeviceError
from host.devices.opencl.source import KNOWN
from hw import descriptor, params
from hw.config import Config
from hw.descriptor import Flag

Records = npt.NDArray[np.void]
MOST_POOL = 3


def check(records: Records, config: Config, memory_bytes: int) -> None:
    """Refuse descriptors that reach outside device memory, or that mean nothing.

    Parameters
    ----------
    records : array of `hw.descriptor.DTYPE`
    config : Config
    memory_bytes : int

    Raises
    ------
    DeviceError
        Names the first such descriptor, and what is wrong with it.
    """
    _check(records.tobytes(), config, memory_bytes)


# The same launch is made over and over.
@lru_cache(maxsize=64)
def _check(raw: bytes, config: Config, memory_bytes: int) -> None:
    records = np.frombuffer(raw, descriptor.DTYPE)
    # Python's integers do not wrap: an address near 2**64 is outside, not small.
    d = {name: records[name].astype(object) for name in records.dtype.names or ()}
    flags = records["flags"]
    computes = flags & Flag.LOAD_ONLY == 0
    pools = flags & Flag.POOL != 0
    outputs = d["images"] * d["out_h"] * d["out_w"]
    _refuse(flags & ~np.uint32(KNOWN) != 0, "has flags that this device does not know")
    _refuse(computes & (outputs * d["groups_in"] * d["groups_out"] * d["src_period"] == 0), "computes nothing")
    _refuse(computes & (d["steps"] != d["groups_in"] * d["kernel_h"] * d["kernel_w"]), "has steps of another kernel")
    # With fewer lanes than a word has channels, results may begin and end within a word.
    within = np.maximum(
        np.where(flags & Flag.WRITE_CONV, records["conv_addr"] % config.vec, 0),
        np.where(flags & Flag.WRITE_POOL, records["pool_addr"] % config.vec, 0),
    ).astype(object)
    computed = -(-(within + d["groups_out"] * config.lanes) // config.vec)
    _refuse(computes & (d["dst_groups"] > computed), "stores more than it computes")
    one = flags & Flag.ONE != 0
    _refuse(computes & one & (d["groups_out"] * d["images"] != 1), "computes one output of several groups or images")
    _refuse(_out_of_turn(records["flags"], computes), "goes on from a job that left nothing to go on from")
    _refuse(
        computes & ~pools & ((d["pool_h"] != d["out_h"]) | (d["pool_w"] != d["out_w"])),
        "has a final output of another size than it computes",
    )
    legal = (d["pool_kernel"] >= 1) & (d["pool_kernel"] <= MOST_POOL) & (d["pool_stride"] >= 1)
    _refuse(computes & pools & ~(legal & (d["pool_pad"] < d["pool_kernel"])).astype(bool), "pools out of range")
    _refuse(computes & (d["upper"] > 127), "has a largest output that is no int8")
    steps = d["groups_out"] * d["steps"]
    for what, used, address, nbytes in (
        (
            "loads features",
            flags & Flag.LOAD != 0,
            d["load_addr"],
            np.maximum(d["load_segments"] - 1, 0) * d["load_stride"] + d["load_words"] * config.vec,
        ),
        ("reads weights", computes, d["weight_addr"], steps * config.lanes * config.vec),
        ("reads parameters", computes, d["param_addr"], d["groups_out"] * config.lanes * params.PARAM_BYTES),
        ("writes its convolution's output", flags & Flag.WRITE_CONV != 0, d["conv_addr"], _written(d, "conv", config)),
        ("writes its final output", flags & Flag.WRITE_POOL != 0, d["pool_addr"], _written(d, "pool", config)),
    ):
        outside = used & (address + nbytes > memory_bytes)
        if outside.any():
            at = int(np.flatnonzero(outside)[0])
            raise DeviceError(
                f"descriptor {at} {what} at {int(address[at]):#x}, which is outside device memory ({memory_bytes} "
                "bytes); give the device more with memory_bytes="
            )
    wide = descriptor.too_wide(records, config)
    if wide is not None:
        at, name, kept = wide
        raise DeviceError(
            f"descriptor {at} has a {name} of {d[name][at]}, and this accelerator keeps {kept} bits of it ({config})"
        )


def _written(d: dict[str, npt.NDArray[np.object_]], which: str, config: Config) -> npt.NDArray[np.object_]:
    height, width = ("out_h", "out_w") if which == "conv" else ("pool_h", "pool_w")
    last = np.maximum(d["images"] - 1, 0) * d[f"{which}_image"]
    last = last + np.maximum(d["dst_groups"] - 1, 0) * d[f"{which}_plane"]
    last = last + np.maximum(d[height] - 1, 0) * d[f"{which}_gap"] - d[f"{which}_addr"] % config.vec
    return last + d[height] * d[width] * config.vec


def _out_of_turn(flags: npt.NDArray[np.uint32], computes: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Jobs of one output that do not follow on those that they continue, or break off what was to be continued."""
    wrong = np.zeros(len(flags), bool)
    part, waiting = False, False
    for at in np.flatnonzero(computes):
        own = int(flags[at])
        continues, resumes = bool(own & Flag.CONTINUE), bool(own & Flag.RESUME)
        wrong[at] = continues != part or (not own & Flag.PARTIAL and resumes != waiting)
        part = bool(own & Flag.PARTIAL)
        waiting = waiting if part else bool(own & Flag.MORE)
    return wrong


def _refuse(wrong: npt.NDArray, what: str) -> None:
    if wrong.any():
        raise DeviceError(f"descriptor {int(np.flatnonzero(wrong)[0])} {what}")
