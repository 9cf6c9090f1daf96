"""Encodes a fault plan as the event lists that the saboteurs in the gateware replay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from host.faults.plan import FaultPlan, PlanError
from host.program import arrangement
from host.schedule.tiling import Band
from hw import events

if TYPE_CHECKING:
    from host.schedule.launch import Launch

Records = npt.NDArray[np.void]
Integers = npt.NDArray[np.int64]


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
    lanes = launch.program.config.lanes
    found: list[dict[str, list[Records]]] = [{"mac": [], "feature": []} for _ in launch.units]
    parts = {
        (position, site): _here(plan.at(position, site), first_image, launch.batch)
        for position in launch.positions
        for site in ("mac", "feature")
    }
    for places in _places(launch):
        layer, band = launch.program.layers[places.layer], places.band
        # Rows that two bands compute are hit in both; an incomplete pooled row is not the one that stays.
        for site, width, height, first, kept, end in (
            ("mac", layer.conv_shape[2], layer.conv_shape[1], band.conv_first, band.conv_first, band.conv_end),
            ("feature", layer.out_shape[2], layer.out_shape[1], band.out_first, band.kept_first, band.out_end),
        ):
            part = parts[places.layer, site]
            row = part.output // width % height
            group, lane = np.divmod(part.output // (width * height), lanes)
            mine = (places.job[part.image] >= 0) & (row >= kept) & (row < end)
            mine &= (group >= places.first_group) & (group < places.first_group + places.groups)
            part, row, group, lane = part.where(mine), row[mine], group[mine] - places.first_group, lane[mine]
            if not len(part):
                continue
            steps = arrangement.steps(layer, launch.program.config) if site == "mac" else 1
            pixel = (row - first) * width + part.output % width
            plane = group * places.shared[part.image] + places.within[part.image]
            slot = (plane * ((end - first) * width) + pixel) * steps + part.step
            if slot.max() >= 1 << 32:
                raise PlanError(
                    f"layer {layer.name!r} takes more steps than an event's 32 bits count: use a smaller batch"
                )
            records = np.zeros(len(part), events.DTYPE)
            records["slot"], records["job"] = slot, places.job[part.image]
            records["lane"], records["bit"] = lane, part.bit
            unit = places.unit[part.image]
            for number in range(len(launch.units)):
                if (unit == number).any():
                    found[number][site].append(records[unit == number])
    return [(_sorted(lists["mac"]), _sorted(lists["feature"])) for lists in found]


def _here(part: FaultPlan, first_image: int, batch: int) -> FaultPlan:
    """The flips of a launch's images, counted from its first."""
    part = part.where((part.image >= first_image) & (part.image < first_image + batch))
    return part.counted_from(first_image)


class _Places(NamedTuple):
    """Where some output groups of one band of a layer are computed, by image of the launch."""

    layer: int
    band: Band
    first_group: int
    groups: int
    unit: Integers
    job: Integers
    """-1: nowhere."""
    within: Integers
    """The image's position in its job."""
    shared: Integers
    """Images of its job."""


def _places(launch: Launch) -> Iterable[_Places]:
    places: dict[tuple[int, Band, int, int], _Places] = {}
    for number, unit in enumerate(launch.units):
        for at, job in enumerate(unit.jobs):
            if not job.groups:
                continue  # it only loads
            key = (job.layer, job.band, job.first_group, job.groups)
            if key not in places:
                empty = np.full((4, launch.batch), -1, np.int64)
                places[key] = _Places(*key, *empty)
            here, images = places[key], slice(job.first, job.first + job.images)
            here.unit[images], here.job[images] = number, at
            here.within[images], here.shared[images] = np.arange(job.images), job.images
    return places.values()


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
