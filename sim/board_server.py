"""The cocotb side of a simulated board: says that it is there, and ends when its serial line is closed."""

from __future__ import annotations

import os
import socket
from typing import Any

import cocotb
from cocotb.triggers import RisingEdge

from sim.control import ANSWER_READY


@cocotb.test()
async def serve(dut: Any) -> None:
    """Let the board run until nobody holds the other end of its line."""
    with socket.socket(fileno=int(os.environ["REDLINE_SIM_SOCKET"])) as connection:
        connection.sendall(ANSWER_READY)
        await RisingEdge(dut.irq)
