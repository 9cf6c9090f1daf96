"""Waiting for OpenCL events, but not for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pyopencl as cl


def completed(events: Sequence[Any], timeout_s: float) -> int:
    """How many of some events are complete when all are, or when time is up."""
    end = time.monotonic() + timeout_s
    done = threading.Semaphore(0)
    for event in events:
        event.set_callback(cl.command_execution_status.COMPLETE, lambda _: done.release())
    for number in range(len(events)):
        if not done.acquire(timeout=max(0.0, end - time.monotonic())):
            return number
    return len(events)
