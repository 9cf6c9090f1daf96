"""The first divergence: where, in the order of cause and effect, a device left the expected sequence."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from host.verification.expect import Expected
from hw.config import Config

if TYPE_CHECKING:
    from sim.probe import Trace

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Divergence:
    """Where two devices first differ. Unknown parts are None."""

    device: str
    layer: str | None
    stage: str
    """"read features", "read weights", "on-chip chain", "accumulate", "requantise", "pool", "write conv", "write pool",
    "memory" (a region nobody should have written), "faults" (another number was applied), "sequence" (records missing
    or too many) or "launch" (the device failed)."""
    image: int | None = None
    channel: int | None = None
    y: int | None = None
    x: int | None = None
    step: int | None = None
    expected: Any = None
    found: Any = None
    operands: dict[str, Any] = field(default_factory=dict)
    cycle: int | None = None
    note: str = ""
    operator: str | None = None
    """What the layer is: "convolution", "depthwise convolution", "add", ..."""

    def __str__(self) -> str:
        where = ", ".join(
            f"{name} {getattr(self, name)}"
            for name in ("image", "channel", "y", "x", "step")
            if getattr(self, name) is not None
        )
        operator = f" ({self.operator})" if self.operator else ""
        lines = [f"{self.device}: layer {self.layer!r}{operator}, stage {self.stage}" + (f", {where}" if where else "")]
        if self.expected is not None or self.found is not None:
            lines.append(f"  expected {self.expected}, found {self.found}")
        lines += [f"  {name}: {value}" for name, value in self.operands.items()]
        if self.cycle is not None:
            lines.append(f"  cycle {self.cycle}")
        if self.note:
            lines.append(f"  {self.note}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def in_trace(device: str, trace: Trace, jobs: list[Expected], config: Config) -> Divergence | None:
    """The first divergence of a probe trace from the expected jobs, or None.

    A record is ordered by the step that caused it, then by stage: operands, accumulator, requantised, pooled. So an
    error is named where it arises, not where it shows.

    Parameters
    ----------
    trace : sim.probe.Trace
    jobs : list of Expected
        Those that compute.
    """
    steps = outputs = finals = 0
    for job in jobs:
        found = _in_job(device, trace, job, (steps, outputs, finals), config)
        if found is not None:
            return found
        steps += len(job.acc)
        outputs += len(job.requant)
        finals += len(job.pool)
    counts = {
        "operands": (steps, len(trace.features)),
        "accumulators": (steps, len(trace.acc)),
        "requantised": (outputs, len(trace.requant)),
        "pooled": (finals, len(trace.pool)),
    }
    if any(wanted != seen for wanted, seen in counts.values()):
        text = ", ".join(f"{seen} of {wanted} {name}" for name, (wanted, seen) in counts.items())
        return Divergence(device, jobs[-1].layer.name, "sequence", note=f"the probes showed {text}")
    return None


def _in_job(device: str, trace: Trace, job: Expected, base: tuple[int, int, int], config: Config) -> Divergence | None:
    steps, outputs, finals = base
    per_output = job.steps
    candidates: list[tuple[tuple[int, int], str, int]] = []
    compared: list[tuple[str, Array, Array, int]] = [
        ("features", job.features, trace.features, steps),
        ("weights", job.weights, trace.weights, steps),
        ("acc", job.acc, trace.acc, steps),
        ("requant", job.requant, trace.requant, outputs),
        ("pool", job.pool, trace.pool, finals),
    ]
    for order, (kind, wanted, seen, start) in enumerate(compared):
        matters = job.read if kind == "features" else None
        at = _first_difference(wanted, seen[start : start + len(wanted)], matters)
        if at is None:
            continue
        slot = at
        if kind == "requant":
            slot = (at + 1) * per_output - 1
        elif kind == "pool":
            slot = (job.completed(at) + 1) * per_output - 1
        candidates.append(((slot, order), kind, at))
    if not candidates:
        return None
    _, kind, at = min(candidates)
    return _describe(device, trace, job, base, config, kind, at)


def _first_difference(wanted: Array, seen: Array, matters: Array | None = None) -> int | None:
    """First record that differs (in an element that matters); records that are missing do."""
    if not len(wanted):
        return None
    unequal = wanted[: len(seen)] != seen
    if matters is not None:
        unequal = unequal & matters[: len(seen)]
    different = unequal.reshape(len(seen), int(np.prod(wanted.shape[1:]))).any(axis=1)
    if different.any():
        return int(np.argmax(different))
    return len(seen) if len(seen) < len(wanted) else None


def _describe(
    device: str, trace: Trace, job: Expected, base: tuple[int, int, int], config: Config, kind: str, at: int
) -> Divergence:
    steps, outputs, finals = base
    layer = job.layer
    places: dict[str, tuple[Array, Array, Array, int]] = {
        "features": (job.features, trace.features, trace.step_cycle, steps),
        "weights": (job.weights, trace.weights, trace.step_cycle, steps),
        "acc": (job.acc, trace.acc, trace.acc_cycle, steps),
        "requant": (job.requant, trace.requant, trace.requant_cycle, outputs),
        "pool": (job.pool, trace.pool, trace.pool_cycle, finals),
    }
    wanted, seen, cycles, start = places[kind]
    if start + at >= len(seen):
        note = f"the probes stop: {kind} record {at} of {len(wanted)} of this layer's job is missing"
        return Divergence(device, layer.name, "sequence", note=note)
    cycle = int(cycles[start + at])
    right, wrong = wanted[at], seen[start + at]
    if kind in ("features", "weights"):
        group, image, y, x, step = job.output(at)
        stage = "read weights" if kind == "weights" else "read features" if job.loaded else "on-chip chain"
        lane = 0 if kind == "features" else int(np.argmax((right != wrong).any(axis=1)))
        operands = {"(z, ky, kx)": job.step_of(step), "expected": right.tolist(), "found": wrong.tolist()}
        if kind == "features":
            operands["read"] = job.read[at].tolist()
            right, wrong = right[job.read[at]], wrong[job.read[at]]
        return Divergence(
            device, layer.name, stage, image, group * config.lanes + lane, y, x, step,
            _first_unequal(right, wrong), _first_unequal(wrong, right), operands, cycle,
        )  # fmt: skip
    lane = int(np.argmax(right != wrong))
    expected, found = int(right[lane]), int(wrong[lane])
    if kind == "acc":
        group, image, y, x, step = job.output(at)
        operands = {
            "(z, ky, kx)": job.step_of(step),
            "features": job.features[at].tolist(),
            "weights": job.weights[at, lane].tolist(),
            "accumulator before": _before(job, at, lane),
        }
        channel = group * config.lanes + lane
        return Divergence(
            device, layer.name, "accumulate", image, channel, y, x, step, expected, found, operands, cycle
        )
    if kind == "requant":
        group, image, y, x, step = job.output((at + 1) * job.steps - 1)
        channel = group * config.lanes + lane
        operands = {
            "accumulator": int(job.acc[(at + 1) * job.steps - 1, lane]),
            "shift": int(layer.shift[channel]) if channel < layer.out_channels else 0,
            "relu": layer.relu,
        }
        return Divergence(
            device, layer.name, "requantise", image, channel, y, x, step, expected, found, operands, cycle
        )
    group, image, y, x = job.final(at)
    operands = {"window": _window(job, at, lane)}
    step = job.first_step + job.steps - 1
    channel = group * config.lanes + lane
    return Divergence(device, layer.name, "pool", image, channel, y, x, step, expected, found, operands, cycle)


def _before(job: Expected, at: int, lane: int) -> int | str:
    """What a step of a job adds to."""
    if at % job.steps:
        return int(job.acc[at - 1, lane])
    return "what the job before left" if job.first_step else "the bias"


def _window(job: Expected, at: int, lane: int) -> list[int]:
    """The convolution's outputs that a final output is the maximum of."""
    layer = job.layer
    if layer.pool is None:
        return [int(job.joined[at, lane])]
    tile_rows, tile_columns, *_ = job.job.tile
    pool, oh, ow = layer.pool, tile_rows.conv_size, tile_columns.conv_size
    ph, pw = tile_rows.out_size, tile_columns.out_size
    plane, pixel = divmod(at, ph * pw)
    y, x = divmod(pixel, pw)
    rows = range(max(0, y * pool.stride - pool.pad), min(oh, y * pool.stride - pool.pad + pool.kernel))
    columns = range(max(0, x * pool.stride - pool.pad), min(ow, x * pool.stride - pool.pad + pool.kernel))
    return [int(job.joined[(plane * oh + r) * ow + c, lane]) for r in rows for c in columns]


def _first_unequal(a: Array, b: Array) -> int:
    return int(a.reshape(-1)[np.argmax((a != b).reshape(-1))])
