"""The control registers: the Vitis RTL-kernel map, then the read-only registers of this accelerator.

The map of the arguments (`ARGUMENTS`) is also that of a kernel: `kernel.xml`, the packaging and an OpenCL host's calls
are made from it.
"""

from __future__ import annotations

from typing import NamedTuple


class Register(NamedTuple):
    """One 32-bit register of the AXI4-Lite control port."""

    name: str
    offset: int
    access: str
    meaning: str


class Argument(NamedTuple):
    """One argument of a launch: a register of 32 bits, or two of 64 that point into memory.

    Attributes
    ----------
    name : str
    offset : int
    bits : int
    build : str
        The builds that have it: "" for all, "saboteur", "overclock", or "opencl" (`hw.verilog.generate`). What a build
        has not reads as zero, and ignores writes.
    meaning : str
    """

    name: str
    offset: int
    bits: int
    build: str
    meaning: str

    @property
    def is_pointer(self) -> bool:
        """Whether it is a byte address."""
        return self.bits == 64

    @property
    def registers(self) -> tuple[Register, ...]:
        """Its registers, the low half first."""
        meaning = f"{self.meaning} ({self.build} builds)" if self.build else self.meaning
        if not self.is_pointer:
            return (Register(self.name, self.offset, "rw", meaning),)
        low = Register(f"{self.name}_lo", self.offset, "rw", meaning)
        return low, Register(f"{self.name}_hi", self.offset + 4, "rw", "")


ARGUMENTS = (
    Argument("descriptors", 0x10, 64, "", "byte address of the descriptors, aligned to 256"),
    Argument("jobs", 0x1C, 32, "", "number of descriptors in this launch"),
    Argument("mac_events", 0x24, 64, "saboteur", "byte address of the accumulator events, aligned to 64"),
    Argument("mac_event_count", 0x30, 32, "saboteur", "number of accumulator events"),
    Argument("feature_events", 0x38, 64, "saboteur", "byte address of the feature events, aligned to 64"),
    Argument("feature_event_count", 0x44, 32, "saboteur", "number of feature events"),
    Argument("late_masks", 0x4C, 64, "overclock", "byte address of the late masks, aligned to 64"),
    Argument("late_mask_count", 0x58, 32, "overclock", "number of words of the late masks"),
    Argument("memory", 0x60, 64, "opencl", "byte address that descriptors count theirs from, aligned to 4096"),
    Argument("record", 0x6C, 64, "opencl", "byte address of the completion record (hw.record), aligned to 64"),
)
"""In the order in which a host gives them."""

REGISTERS = (
    Register("ap_ctrl", 0x00, "rw", "bit 0 start, 1 done (clear on read), 2 idle, 3 ready"),
    Register("gie", 0x04, "rw", "bit 0 global interrupt enable"),
    Register("ier", 0x08, "rw", "bit 0 enable done interrupt, bit 1 ready interrupt"),
    Register("isr", 0x0C, "rw", "bit 0 done, bit 1 ready; write 1 to toggle"),
    *(register for argument in ARGUMENTS for register in argument.registers),
    Register("config_hash_lo", 0x80, "r", "identity of the build, see hw.config"),
    Register("config_hash_hi", 0x84, "r", ""),
    Register("interface_version", 0x88, "r", "hw.config.INTERFACE_VERSION"),
    Register("cycles_lo", 0x90, "r", "clock cycles from start to done of the last launch"),
    Register("cycles_hi", 0x94, "r", ""),
    Register("mac_cycles_lo", 0x98, "r", "cycles in which the array executed a step"),
    Register("mac_cycles_hi", 0x9C, "r", ""),
    Register("stall_cycles_lo", 0xA0, "r", "cycles in which the array waited for features or weights from memory"),
    Register("stall_cycles_hi", 0xA4, "r", ""),
    Register("bytes_read_lo", 0xA8, "r", "bytes moved on the read channel (whole beats)"),
    Register("bytes_read_hi", 0xAC, "r", ""),
    Register("bytes_written_lo", 0xB0, "r", "bytes enabled by strobes on the write channel"),
    Register("bytes_written_hi", 0xB4, "r", ""),
    Register("faults_applied", 0xB8, "r", "fault events applied in the last launch (saboteur builds)"),
)

OFFSET = {register.name: register.offset for register in REGISTERS}
"""Byte offset by register name."""

SPAN_BITS = 8
"""Address bits the control port decodes."""
KERNEL_SPAN_BITS = 12
"""The same of an opencl build: all of the 4 KB that Vitis gives a kernel."""

AP_START, AP_DONE, AP_IDLE, AP_READY = 1, 2, 4, 8
