"""Encodes a fault plan as the event lists that the saboteurs in the gateware replay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from host.plan import FaultPlan, PlanError
from hw import events

if TYPE_CHECKING:
    from host.launch import Launch

Records = npt.NDArray[np.void]


def encode(launch: Launch, plan: FaultPlan, first_image: int) -> list[tuple[Records, Records]]:
    """Accumulator events and feature events of each compute unit, sorted by (job, slot, lane, bit).

    Parameters
    ----------
    launch : Launch
    plan : FaultPlan
        Flips of layers outside the launch, and of weights and inputs, are left out: they are not the gateware's.
    first_image : int
        Index in the plan of the launch's image 0.
    """
    plan.check(launch.program)
    unit_of, job_of, within, shared = _places(launch)
    found: list[dict[str, list[Records]]] = [{"mac": [], "feature": []} for _ in launch.units]
    for row, position in enumerate(launch.positions):
        for site in ("mac", "feature"):
            part = plan.at(position, site)
            here = part.image - first_image
            inside = (here >= 0) & (here < launch.batch)
            part, here = part.where(inside), here[inside]
            if not len(part):
                continue
            layer, lanes = launch.program.layers[position], launch.program.config.lanes
            _, h, w = layer.conv_shape if site == "mac" else layer.out_shape
            steps = layer.steps(launch.program.config.vec) if site == "mac" else 1
            channel, pixel = np.divmod(part.output, h * w)
            group, lane = np.divmod(channel, lanes)
            slot = ((group * shared[row, here] + within[row, here]) * (h * w) + pixel) * steps + part.step
            if slot.max() >= 1 << 32:
                raise PlanError(
                    f"layer {layer.name!r} takes more steps than an event's 32 bits count: use a smaller batch"
                )
            records = np.zeros(len(part), events.DTYPE)
            records["slot"], records["job"] = slot, job_of[row, here]
            records["lane"], records["bit"] = lane, part.bit
            for number in range(len(launch.units)):
                mine = unit_of[here] == number
                if mine.any():
                    found[number][site].append(records[mine])
    return [(_sorted(lists["mac"]), _sorted(lists["feature"])) for lists in found]


def _places(launch: Launch) -> tuple[npt.NDArray[np.int64], ...]:
    """For each image its unit; for each (layer, image) its job, its position in the job, and the job's images."""
    unit_of = np.zeros(launch.batch, np.int64)
    job_of, within, shared = (np.zeros((len(launch.positions), launch.batch), np.int64) for _ in range(3))
    for number, unit in enumerate(launch.units):
        for at, job in enumerate(unit.jobs):
            row, images = job.layer - launch.positions[0], slice(job.first, job.first + job.images)
            unit_of[images] = number
            job_of[row, images] = at
            within[row, images] = np.arange(job.images)
            shared[row, images] = job.images
    return unit_of, job_of, within, shared


def _sorted(parts: list[Records]) -> Records:
    if not parts:
        return np.zeros(0, events.DTYPE)
    joined = np.concatenate(parts)
    order = np.lexsort((joined["bit"], joined["lane"], joined["slot"], joined["job"]))
    # Field by field: numpy leaves the padding of gathered records undefined.
    packed = np.zeros(len(joined), events.DTYPE)
    for name in events.DTYPE.names or ():
        packed[name] = joined[name][order]
    return packed
