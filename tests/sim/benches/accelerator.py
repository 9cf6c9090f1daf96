"""Cocotb bench of the whole accelerator between independent AXI models that pause at random on every channel."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, First, RisingEdge, Timer
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam

from hw.registers import AP_DONE, AP_START, OFFSET

CASES = [Path(path) for path in json.loads(os.environ["CASES"])]
PAUSE = float(os.environ["PAUSE"])
PERIOD_NS = 10


def pauses(seed: int) -> Iterator[bool]:
    """Endless random pauses."""
    rng = random.Random(seed)
    while True:
        yield rng.random() < PAUSE


def pause_everywhere(peer: Any, seed: int) -> None:
    """Random pauses on all five channels of an AXI or AXI4-Lite model."""
    for number, channel in enumerate(
        (peer.write_if.aw_channel, peer.write_if.w_channel, peer.write_if.b_channel,
         peer.read_if.ar_channel, peer.read_if.r_channel)
    ):  # fmt: skip
        channel.set_pause_generator(pauses(8 * seed + number))


@cocotb.test()
@cocotb.parametrize(number=range(len(CASES)))
async def computes_what_the_reference_does(dut: Any, number: int) -> None:
    """A launch leaves in memory what the reference device leaves there, and nothing else."""
    case = np.load(CASES[number])
    before, after = case["before"], case["after"]
    dut.ap_rst_n.value = 0
    Clock(dut.ap_clk, PERIOD_NS, "ns").start()
    axi = {"clock": dut.ap_clk, "reset": dut.ap_rst_n, "reset_active_level": False}
    ram = AxiRam(AxiBus.from_prefix(dut, "m_axi_gmem", bus_separator="_"), size=len(before), **axi)
    registers = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi_control", bus_separator="_"), **axi)
    pause_everywhere(ram, 2 * number)
    pause_everywhere(registers, 2 * number + 1)
    ram.write(0, before.tobytes())
    await ClockCycles(dut.ap_clk, 4)
    dut.ap_rst_n.value = 1
    await ClockCycles(dut.ap_clk, 2)

    for name, value in json.loads(str(case["registers"])).items():
        await registers.write_dword(OFFSET[name], value)
    await registers.write_dword(OFFSET["ap_ctrl"], AP_START)
    limit = Timer(int(case["max_cycles"]) * PERIOD_NS, "ns")
    assert await First(RisingEdge(dut.interrupt), limit) is not limit, "the interrupt never came"
    assert await registers.read_dword(OFFSET["ap_ctrl"]) & AP_DONE
    await registers.write_dword(OFFSET["isr"], 1)
    assert not int(dut.interrupt.value)
    assert await registers.read_dword(OFFSET["faults_applied"]) == int(case["faults"])

    found = np.frombuffer(ram.read(0, len(after)), np.uint8)
    different = np.flatnonzero(found != after)
    assert not len(different), (
        f"{len(different)} bytes differ, the first at {different[0]:#x}: {found[different[0]]:#04x} instead of "
        f"{after[different[0]]:#04x}"
    )
