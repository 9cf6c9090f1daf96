"""The cocotb side of a simulator process: one request on the socket is one launch of the accelerator."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import cocotb
from cocotb.triggers import FallingEdge, RisingEdge, SimTimeoutError, with_timeout

from sim.control import ANSWER_DONE, ANSWER_READY, ANSWER_TIMEOUT, REQUEST_LAUNCH, ControlPage

CLOCK_PERIOD_NS = 10
SCRIPT_CYCLES = 100_000


async def _launch(dut: Any, page: ControlPage) -> bytes:
    """Run the register script, whose last entry starts the accelerator, and wait for the interrupt."""
    start, first = time.perf_counter_ns(), page["cycles"]
    dut.control_go.value = not int(dut.control_go.value)
    try:
        await with_timeout(RisingEdge(dut.irq), page["max_cycles"] * CLOCK_PERIOD_NS, "ns")
    except SimTimeoutError:
        return ANSWER_TIMEOUT
    page["launch_cycles"] = page["cycles"] - first
    page["launch_ns"] = time.perf_counter_ns() - start
    # A short launch can end before the master has seen the end of its script.
    if int(dut.control_busy.value):
        await FallingEdge(dut.control_busy)
    return ANSWER_DONE


async def _script(dut: Any) -> bytes:
    """Run the register script to its end."""
    dut.control_go.value = not int(dut.control_go.value)
    try:
        await with_timeout(FallingEdge(dut.control_busy), SCRIPT_CYCLES * CLOCK_PERIOD_NS, "ns")
    except SimTimeoutError:
        return ANSWER_TIMEOUT
    return ANSWER_DONE


@cocotb.test()
async def serve(dut: Any) -> None:
    """Answer requests until the host closes its end."""
    page = ControlPage(int(os.environ["REDLINE_SIM_CONTROL"]))
    with socket.socket(fileno=int(os.environ["REDLINE_SIM_SOCKET"])) as connection:
        connection.sendall(ANSWER_READY)
        while request := connection.recv(1):
            answer = await (_launch(dut, page) if request == REQUEST_LAUNCH else _script(dut))
            connection.sendall(answer)
