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


class Peers:
    """The accelerator between an AXI memory and an AXI4-Lite master; its memory port is watched for violations."""

    def __init__(self, dut: Any, number: int) -> None:
        self.dut = dut
        self.case = np.load(CASES[number])
        self.before, self.after = self.case["before"], self.case["after"]
        dut.ap_rst_n.value = 0
        Clock(dut.ap_clk, PERIOD_NS, "ns").start()
        axi = {"clock": dut.ap_clk, "reset": dut.ap_rst_n, "reset_active_level": False}
        self.ram = AxiRam(AxiBus.from_prefix(dut, "m_axi_gmem", bus_separator="_"), size=len(self.before), **axi)
        self.registers = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi_control", bus_separator="_"), **axi)
        pause_everywhere(self.ram, 2 * number)
        pause_everywhere(self.registers, 2 * number + 1)
        self.watching = [cocotb.start_soon(watch_offers(dut, channel)) for channel in ("aw", "w", "ar")]
        self.watching += [cocotb.start_soon(watch_bursts(dut))]

    async def reset(self) -> None:
        """Reset everything, and put the memory as it was before the launch."""
        self.dut.ap_rst_n.value = 0
        await ClockCycles(self.dut.ap_clk, 4)
        self.ram.write(0, self.before.tobytes())
        self.dut.ap_rst_n.value = 1
        await ClockCycles(self.dut.ap_clk, 2)

    async def begin(self) -> None:
        """Write the arguments and start."""
        for name, value in json.loads(str(self.case["registers"])).items():
            await self.registers.write_dword(OFFSET[name], value)
        await self.registers.write_dword(OFFSET["ap_ctrl"], AP_START)

    async def finish(self) -> None:
        """Wait for the interrupt; memory must then be what the reference device leaves, byte for byte."""
        dut, registers = self.dut, self.registers
        limit = Timer(int(self.case["max_cycles"]) * PERIOD_NS, "ns")
        assert await First(RisingEdge(dut.interrupt), limit) is not limit, "the interrupt never came"
        assert await registers.read_dword(OFFSET["ap_ctrl"]) & AP_DONE
        await registers.write_dword(OFFSET["isr"], 1)
        assert not int(dut.interrupt.value)
        assert await registers.read_dword(OFFSET["faults_applied"]) == int(self.case["faults"])
        found = np.frombuffer(self.ram.read(0, len(self.after)), np.uint8)
        different = np.flatnonzero(found != self.after)
        assert not len(different), (
            f"{len(different)} bytes differ, the first at {different[0]:#x}: {found[different[0]]:#04x} instead of "
            f"{self.after[different[0]]:#04x}"
        )
        for watch in self.watching:
            assert not watch.done(), watch.result()


async def watch_offers(dut: Any, channel: str) -> None:
    """What the accelerator offers on a channel must stay, unchanged, until it is taken (AXI4, A3.2.1)."""
    members = {"w": ("data", "strb", "last")}.get(channel, ("addr", "len", "size", "burst"))
    valid, ready = (dut[f"m_axi_gmem_{channel}{name}"] for name in ("valid", "ready"))
    payload = [dut[f"m_axi_gmem_{channel}{name}"] for name in members]
    offered = None
    while True:
        await RisingEdge(dut.ap_clk)
        if not int(dut.ap_rst_n.value):
            offered = None
            continue
        now = tuple(str(member.value) for member in payload) if int(valid.value) else None
        assert offered is None or now == offered, f"{channel}: an offer changed before it was taken"
        offered = None if int(ready.value) else now


async def watch_bursts(dut: Any) -> None:
    """Bursts are INCR, full width, within 4 KB, and their write data ends where their length says."""
    beat_bytes = len(dut.m_axi_gmem_wdata.value) // 8
    announced: list[int] = []  # data may come before its address, so lengths and data meet in either order
    ended: list[int] = []
    sent = 0
    while True:
        await RisingEdge(dut.ap_clk)
        if not int(dut.ap_rst_n.value):
            announced, ended, sent = [], [], 0
            continue
        for channel in ("aw", "ar"):
            if int(dut[f"m_axi_gmem_{channel}valid"].value) and int(dut[f"m_axi_gmem_{channel}ready"].value):
                addr, length = (int(dut[f"m_axi_gmem_{channel}{name}"].value) for name in ("addr", "len"))
                assert int(dut[f"m_axi_gmem_{channel}burst"].value) == 1
                assert 1 << int(dut[f"m_axi_gmem_{channel}size"].value) == beat_bytes
                assert addr // 4096 == (addr + (length + 1) * beat_bytes - 1) // 4096, f"{channel} at {addr:#x}"
                if channel == "aw":
                    announced.append(length + 1)
        if int(dut.m_axi_gmem_wvalid.value) and int(dut.m_axi_gmem_wready.value):
            sent += 1
            if int(dut.m_axi_gmem_wlast.value):
                ended.append(sent)
                sent = 0
        while announced and ended:
            assert announced.pop(0) == ended.pop(0), "a burst's data ends elsewhere than its length says"


@cocotb.test()
@cocotb.parametrize(number=range(len(CASES)))
async def computes_what_the_reference_does(dut: Any, number: int) -> None:
    """A launch leaves in memory what the reference device leaves there, and nothing else."""
    peers = Peers(dut, number)
    await peers.reset()
    await peers.begin()
    await peers.finish()


@cocotb.test()
@cocotb.parametrize(number=range(len(CASES)))
async def recovers_from_resets_in_the_middle(dut: Any, number: int) -> None:
    """Whenever a launch is reset, the next one computes what the reference does."""
    peers = Peers(dut, number)
    await peers.reset()
    for cycles in (random.randrange(1, 60), random.randrange(60, 400), random.randrange(400, 1500)):
        await peers.begin()
        await ClockCycles(dut.ap_clk, cycles)
        await peers.reset()
    await peers.begin()
    await peers.finish()
