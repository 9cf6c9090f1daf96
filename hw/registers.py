"""The control registers: the Vitis RTL-kernel map, then the read-only registers of this accelerator."""

from __future__ import annotations

from typing import NamedTuple


class Register(NamedTuple):
    """One 32-bit register of the AXI4-Lite control port."""

    name: str
    offset: int
    access: str
    meaning: str


REGISTERS = (
    Register("ap_ctrl", 0x00, "rw", "bit 0 start, 1 done (clear on read), 2 idle, 3 ready"),
    Register("gie", 0x04, "rw", "bit 0 global interrupt enable"),
    Register("ier", 0x08, "rw", "bit 0 enable done interrupt, bit 1 ready interrupt"),
    Register("isr", 0x0C, "rw", "bit 0 done, bit 1 ready; write 1 to toggle"),
    Register("descriptors_lo", 0x10, "rw", "byte address of the descriptors, aligned to 256"),
    Register("descriptors_hi", 0x14, "rw", ""),
    Register("jobs", 0x1C, "rw", "number of descriptors in this launch"),
    Register("mac_events_lo", 0x24, "rw", "byte address of the accumulator events, aligned to 64 (saboteur builds)"),
    Register("mac_events_hi", 0x28, "rw", ""),
    Register("mac_event_count", 0x30, "rw", "number of accumulator events"),
    Register("feature_events_lo", 0x38, "rw", "byte address of the feature events, aligned to 64 (saboteur builds)"),
    Register("feature_events_hi", 0x3C, "rw", ""),
    Register("feature_event_count", 0x44, "rw", "number of feature events"),
    Register("late_masks_lo", 0x4C, "rw", "byte address of the late masks, aligned to 64 (overclock builds)"),
    Register("late_masks_hi", 0x50, "rw", ""),
    Register("late_mask_count", 0x58, "rw", "number of words of the late masks"),
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

AP_START, AP_DONE, AP_IDLE, AP_READY = 1, 2, 4, 8
