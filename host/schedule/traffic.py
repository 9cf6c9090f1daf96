"""Traffic: the bytes that a launch's descriptors move between the accelerator and its memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from host.schedule.launch import Launch
from hw import descriptor, params
from hw.config import Config
from hw.descriptor import Flag
from hw.layout import ceil_div


class Traffic(NamedTuple):
    """Bytes read (descriptors, features, weights, parameters; in whole beats) and written (features).

    The same as the accelerator's registers `bytes_read` and `bytes_written` count.
    """

    read: int
    written: int


def job_traffic(config: Config, record: np.void) -> Traffic:
    """What one descriptor (a record of `hw.descriptor.DTYPE`) asks for, its own bytes included."""
    job = {name: int(record[name]) for name in descriptor.DTYPE.names or ()}
    flags = job["flags"]
    read = ceil_div(descriptor.USED_BYTES, config.port_bytes) * config.port_bytes
    if flags & Flag.LOAD:
        first = job["load_addr"] + job["load_stride"] * np.arange(job["load_segments"], dtype=np.int64)
        beats = -(-(first % config.port_bytes + job["load_words"] * config.vec) // config.port_bytes)
        read += int(beats.sum()) * config.port_bytes
    if flags & Flag.LOAD_ONLY:
        return Traffic(read, 0)
    weights = job["steps"] * config.vec * job["weight_passes"]
    read += job["groups_out"] * config.lanes * (weights + params.PARAM_BYTES)
    planes = job["images"] * job["dst_groups"] * config.vec
    written = planes * job["out_h"] * job["out_w"] * bool(flags & Flag.WRITE_CONV)
    written += planes * job["pool_h"] * job["pool_w"] * bool(flags & Flag.WRITE_POOL)
    return Traffic(read, written)


def layer_traffic(launch: Launch) -> dict[int, Traffic]:
    """By position in the Program, over all compute units: what a layer's jobs ask for."""
    moved = dict.fromkeys(launch.positions, Traffic(0, 0))
    for unit in launch.units:
        for record, job in zip(unit.descriptors, unit.jobs, strict=True):
            read, written = job_traffic(launch.program.config, record)
            before = moved[job.layer]
            moved[job.layer] = Traffic(before.read + read, before.written + written)
    return moved


def moved_bytes(launch: Launch) -> Traffic:
    """What all jobs of a launch ask for."""
    layers = layer_traffic(launch).values()
    return Traffic(sum(moved.read for moved in layers), sum(moved.written for moved in layers))
