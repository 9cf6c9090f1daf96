"""Reads the trace that a probe build of the simulator writes: operands, accumulators and results, cycle by cycle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

HEAD = np.dtype([("kind", "<u4"), ("record_bytes", "<u4"), ("records", "<u8")])
KINDS = ("step", "acc", "requant", "pool")


@dataclass(frozen=True)
class Trace:
    """What the probe outputs showed, in order.

    Attributes
    ----------
    step_cycle, acc_cycle, requant_cycle, pool_cycle : uint64 array, shape (records,)
        Clock cycle of each record, since the simulator started.
    features : int8 array, shape (steps, VEC)
        Feature operands entering the multipliers.
    weights : int8 array, shape (steps, LANES, VEC)
        Weight operands entering the multipliers.
    acc : int32 array, shape (steps, LANES)
        Accumulators after each step.
    requant : int8 array, shape (outputs, LANES)
        Results after requantisation and ReLU.
    pool : int8 array, shape (outputs, LANES)
        Final results, as they are stored.
    """

    step_cycle: npt.NDArray[np.uint64]
    features: npt.NDArray[np.int8]
    weights: npt.NDArray[np.int8]
    acc_cycle: npt.NDArray[np.uint64]
    acc: npt.NDArray[np.int32]
    requant_cycle: npt.NDArray[np.uint64]
    requant: npt.NDArray[np.int8]
    pool_cycle: npt.NDArray[np.uint64]
    pool: npt.NDArray[np.int8]


def _records(lanes: int, vec: int) -> dict[str, np.dtype]:
    cycle = ("cycle", "<u8")
    return {
        "step": np.dtype([cycle, ("features", "i1", (vec,)), ("weights", "i1", (lanes, vec))]),
        "acc": np.dtype([cycle, ("values", "<i4", (lanes,))]),
        "requant": np.dtype([cycle, ("values", "i1", (lanes,))]),
        "pool": np.dtype([cycle, ("values", "i1", (lanes,))]),
    }


def read_trace(data: bytes, lanes: int, vec: int) -> Trace:
    """Decode a probe trace.

    Parameters
    ----------
    data : bytes
        As the simulator wrote it.
    lanes, vec : int
        Of the accelerator's `Config`.

    Raises
    ------
    ValueError
        If the trace is cut off, or from an accelerator of other parameters.
    """
    dtypes = _records(lanes, vec)
    chunks: dict[str, list[npt.NDArray]] = {kind: [np.zeros(0, dtypes[kind])] for kind in KINDS}
    at = 0
    while at < len(data):
        if at + HEAD.itemsize > len(data):
            raise ValueError(f"probe trace is cut off at byte {at}")
        head = np.frombuffer(data, HEAD, count=1, offset=at)[0]
        at += HEAD.itemsize
        if head["kind"] >= len(KINDS):
            raise ValueError(f"probe trace is damaged at byte {at - HEAD.itemsize}: kind {head['kind']}")
        kind = KINDS[head["kind"]]
        dtype, count = dtypes[kind], int(head["records"])
        if head["record_bytes"] != dtype.itemsize:
            raise ValueError(
                f"probe trace has {head['record_bytes']}-byte {kind} records; {lanes} lanes x vec {vec} make "
                f"{dtype.itemsize}: it is from another accelerator"
            )
        if at + count * dtype.itemsize > len(data):
            raise ValueError(f"probe trace is cut off at byte {len(data)}, within {count} {kind} records")
        chunks[kind].append(np.frombuffer(data, dtype, count=count, offset=at))
        at += count * dtype.itemsize
    step, acc, requant, pool = (np.concatenate(chunks[kind]) for kind in KINDS)
    return Trace(
        step["cycle"], step["features"], step["weights"],
        acc["cycle"], acc["values"], requant["cycle"], requant["values"], pool["cycle"], pool["values"],
    )  # fmt: skip
