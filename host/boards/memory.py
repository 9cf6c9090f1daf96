"""A board's device memory (`hw.boards.ram`) in the terms of the cycle model."""

from __future__ import annotations

from host.schedule.channels import Memory
from hw import axi
from hw.config import Config

LATENCY = 2
"""Cycles from a request to its first beat."""


def on_chip(config: Config) -> Memory:
    """The block RAM behind an accelerator's port: a beat a cycle, and one more cycle for every burst."""
    burst = config.lanes if config.control == "microcode" else axi.MAX_BEATS
    return Memory(LATENCY, config.port_bytes * burst / (burst + 1))
