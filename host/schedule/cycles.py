"""The cycle model: predicts, without simulating, how long a launch takes on a memory of given latency and bandwidth."""

from __future__ import annotations

from dataclasses import dataclass

from host.schedule.channels import Memory
from host.schedule.interpreter import Interpreter
from host.schedule.launch import Launch
from host.schedule.pipeline import Pipeline
from hw.descriptor import Flag

DEFAULT_MEMORY = Memory()

__all__ = ["Estimate", "JobCycles", "Memory", "estimate"]


@dataclass(frozen=True)
class JobCycles:
    """One job: when it starts and ends after the launch's start, and what it would take at best."""

    layer: int
    start: float
    end: float
    ideal: int
    """One step a cycle: `images * out_h * out_w * output groups * steps`."""
    bound: str
    """"compute", or "memory" where the array waits for weights or features longer than a tenth of its time."""


@dataclass(frozen=True)
class Estimate:
    """A launch on one compute unit."""

    cycles: float
    jobs: tuple[JobCycles, ...]

    def layer(self, at: int) -> tuple[float, int, str]:
        """Cycles, ideal cycles and bound of a layer: its jobs' time, each from the end of the job before it."""
        spent, ideal, memory = 0.0, 0, 0.0
        before = 0.0
        for job in self.jobs:
            if job.layer == at:
                spent += job.end - before
                ideal += job.ideal
                memory += (job.end - before) * (job.bound == "memory")
            before = job.end
        return spent, ideal, "memory" if memory > spent / 2 else "compute"


def estimate(launch: Launch, memory: Memory = DEFAULT_MEMORY, unit: int = 0) -> Estimate:
    """Cycles of one compute unit of a launch, fault-free, from its start to its done.

    Parameters
    ----------
    launch : Launch
    memory : Memory
    unit : int
        Position in `launch.units`.
    """
    if launch.program.config.control == "microcode":
        return _microcode(launch, memory, unit)
    work = launch.units[unit]
    pipeline = Pipeline(launch.program.config, memory, work)
    pipeline.run()
    jobs = []
    for record, job, span in zip(work.descriptors, work.jobs, pipeline.spans, strict=True):
        if span is not None:
            one = int(record["flags"]) & Flag.ONE
            outputs = 1 if one else int(record["images"]) * int(record["out_h"]) * int(record["out_w"])
            ideal = int(record["groups_out"]) * outputs * int(record["steps"])
            bound = "memory" if span.waited > 0.1 * (span.end - span.start) else "compute"
            jobs.append(JobCycles(job.layer, span.start, span.end, ideal, bound))
    return Estimate(pipeline.end, tuple(jobs))


def _microcode(launch: Launch, memory: Memory, unit: int) -> Estimate:
    interpreter = Interpreter(launch, memory, unit)
    interpreter.run()
    jobs = [
        JobCycles(job.layer, span.start, span.end, span.steps, "compute")
        for job, span in zip(launch.units[unit].jobs, interpreter.spans, strict=True)
        if span.steps
    ]
    return Estimate(interpreter.end, tuple(jobs))
