"""Encodes a fault plan as the event lists that the saboteurs in the gateware replay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from host.faults.plan import FaultPlan, PlanError
from host.program import arrangement
from host.program.layers import Layer
from host.schedule.tiling import Tile
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
        layer = launch.program.layers[places.layer]
        for site in ("mac", "feature"):
            hit = _hit(parts[places.layer, site], places, layer, site, lanes)
            if not len(hit.part):
                continue
            image, step = hit.part.image, hit.part.step
            if places.outputs is None:
                steps = arrangement.steps(layer, launch.program.config) if site == "mac" else 1
                plane = hit.group * places.shared[image] + places.within[image]
                job, slot = places.job[image], (plane * hit.pixels + hit.pixel) * steps + step
            elif site == "mac":
                # A job for each output, or for each part of its reduction.
                taken = np.searchsorted(places.first_steps, step, side="right") - 1
                job, slot = places.outputs[image, hit.pixel, taken], step - places.first_steps[taken]
            else:
                # Outputs that are pooled and written together count from the job that was the first to have one.
                job, slot = places.outputs[image, 0, -1], hit.pixel
            if slot.max() >= 1 << 32:
                raise PlanError(
                    f"layer {layer.name!r} takes more steps than an event's 32 bits count: use a smaller batch"
                )
            records = np.zeros(len(hit.part), events.DTYPE)
            records["slot"], records["job"] = slot, job
            records["lane"], records["bit"] = hit.lane, hit.part.bit
            unit = places.unit[image]
            for number in range(len(launch.units)):
                if (unit == number).any():
                    found[number][site].append(records[unit == number])
    return [(_sorted(lists["mac"]), _sorted(lists["feature"])) for lists in found]


def _here(part: FaultPlan, first_image: int, batch: int) -> FaultPlan:
    """The flips of a launch's images, counted from its first."""
    part = part.where((part.image >= first_image) & (part.image < first_image + batch))
    return part.counted_from(first_image)


@dataclass
class _Places:
    """Where some output groups of a tile of a layer are computed, by image of the launch."""

    layer: int
    tile: Tile
    first_group: int
    groups: int
    unit: Integers
    job: Integers
    """-1: nowhere."""
    within: Integers
    """The image's position in its job."""
    shared: Integers
    """Images of its job."""
    outputs: Integers | None = None
    """If outputs are computed by jobs of their own: these jobs, shape (images, outputs of the tile, parts)."""
    first_steps: Integers = field(default_factory=lambda: np.zeros(1, np.int64))
    """Of these parts."""


class _Hit(NamedTuple):
    """The flips that land in certain output groups of a tile."""

    part: FaultPlan
    group: Integers
    """Counted from the first of these groups."""
    lane: Integers
    pixel: Integers
    """Position in the tile, row by row."""
    pixels: int
    """Of the tile."""


def _hit(part: FaultPlan, places: _Places, layer: Layer, site: str, lanes: int) -> _Hit:
    # What two tiles compute is hit in both; an incomplete final position is not the one that stays.
    rows, columns = (
        (b.conv_first, b.conv_first, b.conv_end) if site == "mac" else (b.out_first, b.kept_first, b.out_end)
        for b in places.tile[:2]
    )
    _, height, width = layer.conv_shape if site == "mac" else layer.out_shape
    channel, row, column = np.unravel_index(part.output, (layer.out_channels, height, width))
    group, lane = np.divmod(channel, lanes)
    mine = places.job[part.image] >= 0
    mine &= (group >= places.first_group) & (group < places.first_group + places.groups)
    for at, (_, kept, end) in ((row, rows), (column, columns)):
        mine &= (at >= kept) & (at < end)
    across = columns[2] - columns[0]
    pixel = (row[mine] - rows[0]) * across + column[mine] - columns[0]
    return _Hit(part.where(mine), group[mine] - places.first_group, lane[mine], pixel, (rows[2] - rows[0]) * across)


def _places(launch: Launch) -> Iterable[_Places]:
    places: dict[tuple[int, Tile, int, int], _Places] = {}
    singles: dict[tuple[int, Tile, int, int], dict[int, list[int]]] = {}
    for number, unit in enumerate(launch.units):
        for at, job in enumerate(unit.jobs):
            if not job.groups:
                continue  # it only loads
            key = (job.layer, job.tile, job.first_group, job.groups)
            if key not in places:
                empty = np.full((4, launch.batch), -1, np.int64)
                places[key] = _Places(*key, *empty)
            here, images = places[key], slice(job.first, job.first + job.images)
            here.unit[images], here.job[images] = number, at
            here.within[images], here.shared[images] = np.arange(job.images), job.images
            if job.output is not None:
                singles.setdefault(key, {}).setdefault(job.first, []).append(at)
    for key, by_image in singles.items():
        here = places[key]
        here.first_steps = np.asarray(launch.restarts(here.layer))
        rows, columns, *_ = here.tile
        shape = (launch.batch, rows.conv_size * columns.conv_size, len(here.first_steps))
        here.outputs = np.array([by_image[image] for image in range(launch.batch)]).reshape(shape)
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
