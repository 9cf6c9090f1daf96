"""Traffic: the bytes that a launch's descriptors move between the accelerator and its memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from host.schedule.channels import Memory
from host.schedule.interpreter import Interpreter
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
    """What one descriptor (a record of `hw.descriptor.DTYPE`) asks of the pipeline, its own bytes included."""
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
    if flags & (Flag.PARTIAL | Flag.MORE):
        return Traffic(read, 0)  # outputs that join are counted once, with the last
    written = 0
    for flag, which, pixels in (
        (Flag.WRITE_CONV, "conv", job["out_h"] * job["out_w"]),
        (Flag.WRITE_POOL, "pool", job["pool_h"] * job["pool_w"]),
    ):
        if flags & flag:
            within = job[f"{which}_addr"] % config.vec
            channels = min(job["dst_groups"] * config.vec, within + job["groups_out"] * config.lanes) - within
            written += job["images"] * channels * pixels
    return Traffic(read, written)


def layer_traffic(launch: Launch) -> dict[int, Traffic]:
    """By position in the Program, over all compute units: what a layer's jobs ask for."""
    moved = dict.fromkeys(launch.positions, Traffic(0, 0))
    for number, unit in enumerate(launch.units):
        for job, (read, written) in zip(unit.jobs, _by_job(launch, number), strict=True):
            before = moved[job.layer]
            moved[job.layer] = Traffic(before.read + read, before.written + written)
    return moved


def _by_job(launch: Launch, unit: int) -> list[Traffic]:
    config = launch.program.config
    if config.control == "pipeline":
        return [job_traffic(config, record) for record in launch.units[unit].descriptors]
    # A microprogram fetches weights for every output: as many as its way through the job needs.
    interpreter = Interpreter(launch, Memory(), unit)
    interpreter.run()
    return [Traffic(span.read, span.written) for span in interpreter.spans]


def moved_bytes(launch: Launch) -> Traffic:
    """What all jobs of a launch ask for."""
    layers = layer_traffic(launch).values()
    return Traffic(sum(moved.read for moved in layers), sum(moved.written for moved in layers))
