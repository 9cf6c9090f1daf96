"""Cocotb bench of the generated kernel: it is driven as XRT drives a compute unit, by what kernel.xml says.

XRT's driver (`cu_hls` of Xilinx/XRT) writes all arguments as one block of words from 0x10, gaps included, writes 1 to
0x00, and finds done there, after an interrupt or by polling. It clears interrupts by writing back what it read of them.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, Combine, First, RisingEdge, Timer
from cocotbext.axi import AxiBus, AxiRam

from hw import descriptor, events, masks
from hw.config import INTERFACE_VERSION, Config
from hw.record import DTYPE, MISALIGNED, READ_ERROR, RECORD_BYTES, WRITE_ERROR
from hw.registers import OFFSET

CONFIG = Config(**json.loads(os.environ["CONFIG"]))
CASES = [Path(path) for path in json.loads(os.environ["CASES"])]
PAUSE = float(os.environ["PAUSE"])
PERIOD_NS = 10

CTRL, GIE, IER, ISR = 0x00, 0x04, 0x08, 0x0C
START, DONE, IDLE, READY = 1, 2, 4, 8
MEMORY, LISTS, RECORD = 0x123000, 0x18_0000, 0x1C_0040
"""Where the memory buffer, the lists and the record lie; nothing is at 0, or where it would be without `memory`."""
RAM_BYTES = 1 << 21


class Compute:
    """One compute unit and its memory."""

    def __init__(self, dut: Any, number: int = 0) -> None:
        self.dut, self.rng = dut, random.Random(random.random())
        kernel = ET.parse(os.environ["KERNEL_XML"]).getroot().find("kernel")
        assert kernel is not None
        self.arguments = {arg.get("name", ""): arg for arg in kernel.iter("arg")}
        self.case = np.load(CASES[number])
        for name in ("awvalid", "wvalid", "bready", "arvalid", "rready"):
            self.port(name).value = 0
        for name in ("awaddr", "wdata", "wstrb", "araddr"):
            self.port(name).value = 0
        dut.read_error.value = dut.write_error.value = 0
        dut.ap_rst_n.value = 0
        Clock(dut.ap_clk, PERIOD_NS, "ns").start()
        bus = AxiBus.from_prefix(dut, "m_axi_gmem", bus_separator="_")
        self.ram = AxiRam(bus, dut.ap_clk, dut.ap_rst_n, reset_active_level=False, size=RAM_BYTES)
        for side in (self.ram.write_if.aw_channel, self.ram.write_if.w_channel, self.ram.write_if.b_channel,
                     self.ram.read_if.ar_channel, self.ram.read_if.r_channel):  # fmt: skip
            side.set_pause_generator(iter(lambda: self.rng.random() < PAUSE, None))

    def port(self, name: str) -> Any:
        return self.dut[f"s_axi_control_{name}"]

    async def reset(self) -> None:
        """Reset the unit, and fill memory anew."""
        self.dut.ap_rst_n.value = 0
        for name in ("awvalid", "wvalid", "bready", "arvalid", "rready"):
            self.port(name).value = 0
        await ClockCycles(self.dut.ap_clk, 8)
        self.before = np.random.default_rng(3).integers(0, 256, RAM_BYTES).astype(np.uint8)
        self.before[MEMORY : MEMORY + len(self.case["before"])] = self.case["before"]
        self.lists, at = {}, LISTS
        for name in ("descriptors", "mac_events", "feature_events", "late_masks"):
            content = self.case[name]
            self.before[at : at + len(content)] = content
            self.lists[name] = at
            at += -(-max(1, len(content)) // 4096) * 4096
        self.before[RECORD : RECORD + RECORD_BYTES] = 0
        self.ram.write(0, self.before.tobytes())
        self.dut.ap_rst_n.value = 1
        await ClockCycles(self.dut.ap_clk, 4)

    # -- the control port, signal by signal

    async def _offer(self, channel: str, later: int) -> None:
        if later:
            await ClockCycles(self.dut.ap_clk, later)
        valid, ready = self.port(f"{channel}valid"), self.port(f"{channel}ready")
        valid.value = 1
        while True:
            await RisingEdge(self.dut.ap_clk)
            if int(ready.value):
                break
        valid.value = 0

    async def write(self, address: int, data: int, strobes: int = 0xF, order: str = "") -> None:
        """Write a word; the address comes before the data ("aw"), after them ("w"), or some cycles apart at random."""
        aw, w = {"aw": (0, 5), "w": (5, 0)}.get(order) or (self.rng.randrange(3), self.rng.randrange(3))
        self.port("awaddr").value, self.port("wdata").value, self.port("wstrb").value = address, data, strobes
        both = [cocotb.start_soon(self._offer("aw", aw)), cocotb.start_soon(self._offer("w", w))]
        await Combine(*both)
        await ClockCycles(self.dut.ap_clk, self.rng.randrange(1, 4))
        self.port("bready").value = 1
        while True:
            await RisingEdge(self.dut.ap_clk)
            if int(self.port("bvalid").value):
                break
        assert int(self.port("bresp").value) == 0, "OKAY"
        self.port("bready").value = 0

    async def read(self, address: int) -> int:
        self.port("araddr").value = address
        await self._offer("ar", self.rng.randrange(3))
        await ClockCycles(self.dut.ap_clk, self.rng.randrange(1, 4))
        self.port("rready").value = 1
        while True:
            await RisingEdge(self.dut.ap_clk)
            if int(self.port("rvalid").value):
                break
        data = int(self.port("rdata").value)
        assert int(self.port("rresp").value) == 0, "OKAY"
        self.port("rready").value = 0
        return data

    # -- what XRT does

    def values(self, **changes: int) -> dict[str, int]:
        """Arguments of the case's launch."""
        size = {"descriptors": descriptor.DESCRIPTOR_BYTES, "late_masks": masks.WORD_BYTES}
        counts = {"jobs": "descriptors", **{f"{name}_count": f"{name}s" for name in ("mac_event", "feature_event")}}
        counts["late_mask_count"] = "late_masks"
        values = {**self.lists, "memory": MEMORY, "record": RECORD}
        for count, name in counts.items():
            values[count] = len(self.case[name]) // size.get(name, events.EVENT_BYTES)
        return {**values, **changes}

    async def configure(self, **changes: int) -> None:
        """Write all arguments as one block, gaps included, little end first."""
        values = self.values(**changes)
        assert set(values) == set(self.arguments)
        end = max(int(arg.get("offset", ""), 0) + int(arg.get("size", ""), 0) for arg in self.arguments.values())
        block = bytearray(end)
        for name, arg in self.arguments.items():
            at, size = int(arg.get("offset", ""), 0), int(arg.get("hostSize", ""), 0)
            block[at : at + size] = values[name].to_bytes(size, "little")
        for at in range(0x10, end, 4):
            await self.write(at, int.from_bytes(block[at : at + 4], "little"))

    async def count_writes(self) -> None:
        """Keep `unanswered`: write bursts that memory has not acknowledged."""
        self.unanswered = 0
        channels = [
            tuple(self.dut[f"m_axi_gmem_{channel}{end}"] for end in ("valid", "ready")) for channel in ("aw", "b")
        ]
        while True:
            await RisingEdge(self.dut.ap_clk)
            asked, answered = (int(valid.value) and int(ready.value) for valid, ready in channels)
            self.unanswered += asked - answered

    async def interrupted(self) -> None:
        limit = Timer(int(self.case["max_cycles"]) * PERIOD_NS * 8, "ns")
        assert await First(RisingEdge(self.dut.interrupt), limit) is not limit, "the interrupt never came"

    async def polled(self) -> int:
        """Read the control register until it says done."""
        for _ in range(int(self.case["max_cycles"])):
            control = await self.read(CTRL)
            if control & DONE:
                return control
            assert control == START, "running: start stays, and neither idle nor ready"
            await ClockCycles(self.dut.ap_clk, 50)
        raise AssertionError("the launch never ended")

    def record(self) -> np.void:
        return np.frombuffer(self.ram.read(RECORD, RECORD_BYTES), DTYPE)[0]

    def check_memory(self, executed: bool = True) -> None:
        """All of memory is as it was, but for the record and for what the reference device writes, byte for byte."""
        expected = self.before.copy()
        if executed:
            expected[MEMORY : MEMORY + len(self.case["after"])] = self.case["after"]
        expected[RECORD : RECORD + RECORD_BYTES] = np.frombuffer(self.ram.read(RECORD, RECORD_BYTES), np.uint8)
        found = np.frombuffer(self.ram.read(0, RAM_BYTES), np.uint8)
        different = np.flatnonzero(found != expected)
        assert not len(different), f"{len(different)} bytes differ, the first at {different[0]:#x}"

    async def check_record(self) -> None:
        """The record says what the registers say, and which build this is."""
        said = self.record()
        assert said["config_hash"] == CONFIG.hash
        assert said["interface_version"] == INTERFACE_VERSION
        assert said["status"] == 0
        assert said["jobs"] == self.values()["jobs"]
        assert said["faults_applied"] == int(self.case["faults"])
        for name in ("config_hash", "cycles", "mac_cycles", "stall_cycles", "bytes_read", "bytes_written"):
            halves = [await self.read(OFFSET[f"{name}_{half}"]) for half in ("lo", "hi")]
            assert said[name] == halves[1] << 32 | halves[0], name
        assert said["cycles"] >= said["mac_cycles"] > 0
        assert said["bytes_read"] >= 256 * said["jobs"]
        assert said["bytes_written"] == int(self.case["bytes_written"]), "the record itself does not count"


async def made(dut: Any, number: int = 0) -> Compute:
    compute = Compute(dut, number)
    await compute.reset()
    return compute


@cocotb.test()
@cocotb.parametrize(number=range(len(CASES)))
async def launches_end_with_an_interrupt(dut: Any, number: int) -> None:
    """Two launches: results in memory, the record, done once, an interrupt that stays until it is written back."""
    compute = await made(dut, number)
    await compute.write(GIE, 1)
    await compute.write(IER, 1)
    cocotb.start_soon(compute.count_writes())
    for _ in range(2):
        assert await compute.read(CTRL) == IDLE
        await compute.configure()
        await compute.write(CTRL, START)
        await compute.interrupted()
        assert compute.unanswered == 0, "the launch ends when all its writes have arrived, the record's too"
        await ClockCycles(dut.ap_clk, 20)
        assert int(dut.interrupt.value), "it is a level"
        assert await compute.read(ISR) == 1
        await compute.write(ISR, 1)
        assert not int(dut.interrupt.value)
        assert await compute.read(CTRL) == DONE | IDLE | READY
        assert await compute.read(CTRL) == IDLE, "done is cleared by reading it"
        compute.check_memory()
        await compute.check_record()
        compute.ram.write(0, compute.before.tobytes())


@cocotb.test()
async def launches_can_be_polled(dut: Any) -> None:
    """Without interrupts, the control register says done; the status remembers nothing that was not enabled."""
    compute = await made(dut)
    await compute.configure()
    await compute.write(CTRL, START)
    assert await compute.polled() == DONE | IDLE | READY
    assert not int(dut.interrupt.value)
    assert await compute.read(ISR) == 0
    compute.check_memory()
    await compute.check_record()


@cocotb.test()
async def a_start_while_busy_is_ignored(dut: Any) -> None:
    """One launch, however often it is started; bits of other protocols (continue, restart) do nothing."""
    compute = await made(dut)
    await compute.configure()
    await compute.write(CTRL, 0xFFFE)
    await ClockCycles(dut.ap_clk, 20)
    assert await compute.read(CTRL) == IDLE, "only bit 0 starts"
    await compute.write(CTRL, START, strobes=0b1110)
    assert await compute.read(CTRL) == IDLE, "not without its byte's strobe"
    await compute.write(CTRL, START | 0x90)
    assert await compute.read(CTRL) == START
    for _ in range(3):
        await compute.write(CTRL, START)
    await compute.polled()
    compute.check_memory()
    await compute.check_record()
    await compute.write(CTRL, 0x10)
    for _ in range(20):
        await ClockCycles(dut.ap_clk, 10)
        assert await compute.read(CTRL) == IDLE, "no second launch follows"
        assert not int(dut.m_axi_gmem_arvalid.value)


@cocotb.test()
async def a_launch_of_no_jobs_says_which_build_it_is(dut: Any) -> None:
    """The host's first question: a record, and nothing else in memory, whatever the other arguments."""
    compute = await made(dut)
    await compute.configure(jobs=0, mac_event_count=0, feature_event_count=0, late_mask_count=0)
    await compute.write(CTRL, START)
    await compute.polled()
    said = compute.record()
    assert (said["config_hash"], said["interface_version"]) == (CONFIG.hash, INTERFACE_VERSION)
    assert (said["status"], said["jobs"], said["mac_cycles"], said["bytes_written"]) == (0, 0, 0, 0)
    compute.check_memory(executed=False)


@cocotb.test()
async def interrupts_follow_their_registers(dut: Any) -> None:
    """Enables gate the line, status bits toggle when written, and a late global enable shows what has happened."""
    compute = await made(dut)
    await compute.configure(jobs=0, mac_event_count=0, feature_event_count=0, late_mask_count=0)
    for enabled, status in ((0, 0), (1, 1), (2, 2), (3, 3)):
        await compute.write(IER, enabled)
        assert await compute.read(IER) == enabled
        await compute.write(CTRL, START)
        await compute.polled()
        assert await compute.read(ISR) == status
        assert not int(dut.interrupt.value), "not without the global enable"
        await compute.write(GIE, 1)
        assert int(dut.interrupt.value) == (status != 0)
        await compute.write(ISR, 0)
        assert await compute.read(ISR) == status, "writing 0 leaves it"
        await compute.write(ISR, status)
        assert await compute.read(ISR) == 0
        assert not int(dut.interrupt.value)
        await compute.write(GIE, 0)
    await compute.write(GIE, 1)
    await compute.write(IER, 1)
    await compute.write(ISR, 1)
    assert int(dut.interrupt.value), "writing 1 to a bit that is not set sets it"
    await compute.write(ISR, 1)
    assert not int(dut.interrupt.value)


@cocotb.test()
async def an_interrupt_is_not_lost_to_a_write_in_the_same_cycle(dut: Any) -> None:
    """Whenever the status is written while a launch ends, the end is seen."""
    compute = await made(dut)
    await compute.configure(jobs=0, mac_event_count=0, feature_event_count=0, late_mask_count=0)
    await compute.write(GIE, 1)
    await compute.write(IER, 1)
    for _ in range(12):
        await compute.write(CTRL, START)
        # Writes at the fastest rate; some meet the cycle of the end.
        compute.port("awaddr").value, compute.port("wdata").value, compute.port("wstrb").value = ISR, 0, 0xF
        for name in ("awvalid", "wvalid", "bready"):
            compute.port(name).value = 1
        for _ in range(400):
            await RisingEdge(dut.ap_clk)
            if int(dut.interrupt.value):
                break
        else:
            raise AssertionError("the interrupt was lost")
        for name in ("awvalid", "wvalid"):
            compute.port(name).value = 0
        await ClockCycles(dut.ap_clk, 3)
        compute.port("bready").value = 0
        assert await compute.read(CTRL) & DONE
        await compute.write(ISR, await compute.read(ISR))
        assert not int(dut.interrupt.value)


@cocotb.test()
async def registers_take_what_an_axi4_lite_master_may_send(dut: Any) -> None:
    """Address or data first, bytes by their strobes, addresses within words, and addresses of no register."""
    compute = await made(dut)
    kept = []
    for name, arg in compute.arguments.items():
        for half in range(int(arg.get("size", ""), 0) // 4):
            at = int(arg.get("offset", ""), 0) + 4 * half
            has = {"mac": CONFIG.saboteur, "fea": CONFIG.saboteur, "lat": bool(CONFIG.overclock)}.get(name[:3], True)
            for order in ("aw", "w", ""):
                first, second = compute.rng.randrange(1 << 32), compute.rng.randrange(1 << 32)
                strobes = compute.rng.randrange(16)
                await compute.write(at, first, order=order)
                await compute.write(at + compute.rng.randrange(4), second, strobes=strobes, order=order)
                mask = sum(0xFF << 8 * byte for byte in range(4) if strobes >> byte & 1)
                value = (first & ~mask | second & mask) if has else 0
                assert await compute.read(at + compute.rng.randrange(4)) == value, f"{name} at {at:#x}"
            kept.append((at, value))
    for at, value in kept:
        assert await compute.read(at) == value, f"another write changed {at:#x}"
    known = set(OFFSET.values())
    unknown = [at for at in range(0, 0x100, 4) if at not in known] + [0x100, 0x10C, 0x110, 0x200, 0x800, 0xFFC]
    for at in unknown:
        await compute.write(at, 0xFFFFFFFF)
        assert await compute.read(at) == 0, f"{at:#x} is no register"
    for name in ("config_hash_lo", "config_hash_hi", "interface_version", "cycles_lo"):
        before = await compute.read(OFFSET[name])
        await compute.write(OFFSET[name], ~before & 0xFFFFFFFF)
        assert await compute.read(OFFSET[name]) == before, f"{name} is read-only"
    assert await compute.read(CTRL) == IDLE, "nothing of all this is a start"
    assert await compute.read(ISR) == 0
    for at, value in kept:
        assert await compute.read(at) == value, f"a write to no register changed {at:#x}"


@cocotb.test()
async def memory_errors_are_in_the_record(dut: Any) -> None:
    """A read or write that memory answers with an error marks the launch; the next one is clean again."""
    compute = await made(dut)
    for name, bit in (("read_error", READ_ERROR), ("write_error", WRITE_ERROR)):
        await compute.configure()
        await compute.write(CTRL, START)
        channel = "r" if name == "read_error" else "b"
        valid, ready = (dut[f"m_axi_gmem_{channel}{end}"] for end in ("valid", "ready"))
        dut[name].value = 1
        while True:
            await RisingEdge(dut.ap_clk)
            if int(valid.value) and int(ready.value):
                break
        dut[name].value = 0
        await compute.polled()
        assert compute.record()["status"] == bit
        await compute.configure()
        compute.ram.write(0, compute.before.tobytes())
        await compute.write(CTRL, START)
        await compute.polled()
        compute.check_memory()
        await compute.check_record()
        compute.ram.write(0, compute.before.tobytes())


@cocotb.test()
async def arguments_that_are_not_aligned_are_refused(dut: Any) -> None:
    """Nothing is executed, the record says so, and the next launch is as ever."""
    compute = await made(dut)
    wrong = {"memory": MEMORY + 0x800, "descriptors": compute.lists["descriptors"] + 64}
    if CONFIG.saboteur:
        wrong |= {name: compute.lists[name] + 32 for name in ("mac_events", "feature_events")}
    if CONFIG.overclock:
        wrong |= {"late_masks": compute.lists["late_masks"] + 8}
    for name, value in wrong.items():
        await compute.configure(**{name: value})
        await compute.write(CTRL, START)
        await compute.polled()
        said = compute.record()
        assert (said["status"], said["jobs"], said["bytes_read"]) == (MISALIGNED, 0, 0), name
        compute.check_memory(executed=False)
    await compute.configure()
    await compute.write(CTRL, START)
    await compute.polled()
    compute.check_memory()
    await compute.check_record()


@cocotb.test()
async def a_reset_in_the_middle_leaves_nothing_behind(dut: Any) -> None:
    """Whenever a launch is reset, registers are as at first, and the next launch is right."""
    compute = await made(dut)
    for cycles in (1, 7, compute.rng.randrange(20, 200), compute.rng.randrange(200, 900)):
        await compute.write(GIE, 1)
        await compute.write(IER, 3)
        await compute.configure()
        await compute.write(CTRL, START)
        await ClockCycles(dut.ap_clk, cycles)
        await compute.reset()
        assert await compute.read(CTRL) == IDLE
        for at in (GIE, IER, ISR, OFFSET["jobs"], OFFSET["memory_lo"], OFFSET["record_lo"]):
            assert await compute.read(at) == 0
        assert not int(dut.interrupt.value)
    await compute.configure()
    await compute.write(CTRL, START)
    await compute.polled()
    compute.check_memory()
    await compute.check_record()
