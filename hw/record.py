"""The completion record: what a launch leaves in memory for a host that cannot read registers.

An OpenCL host has kernel arguments and buffers, and nothing else. At the end of each launch, also one of no jobs, an
opencl build writes 64 bytes to the address in the argument `record`: which build it is, whether memory answered, and
the counters.
"""

from __future__ import annotations

import numpy as np
from amaranth.hdl import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw import axi
from hw.config import Config

RECORD_BYTES = 64

_FIELDS = {
    "config_hash": 64,
    "interface_version": 32,
    "status": 32,
    "cycles": 64,
    "mac_cycles": 64,
    "stall_cycles": 64,
    "bytes_read": 64,
    "bytes_written": 64,
    "faults_applied": 32,
    "jobs": 32,
}

LAYOUT = data.StructLayout(_FIELDS)
"""Amaranth layout of the record. Counters are those of the registers (the record itself is not counted in
`bytes_written`); `jobs` is the number of descriptors executed."""

DTYPE = np.dtype([(name, f"<u{bits // 8}") for name, bits in _FIELDS.items()])
"""numpy dtype of the same."""

READ_ERROR, WRITE_ERROR, MISALIGNED = 1, 2, 4
"""Bits of `status`. Memory answered a read, or a write, with an error: results are worthless. Or an argument is not
aligned as `hw.registers` says: nothing was executed."""


class Completion(wiring.Component):
    """Writes a record, and waits until it has arrived.

    Members
    -------
    start : In(1)
        One cycle: the launch is over.
    addr : In(address_bits)
        Where to; the lowest six bits count as zero.
    record : In(LAYOUT)
        Constant from `start` to `done`.
    port : Out(WritePort)
    writes_done : In(1)
        No write is under way.
    done : Out(1)
        One cycle: the record is in memory.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "addr": In(config.address_bits),
                "record": In(LAYOUT),
                "port": Out(axi.WritePort(config)),
                "writes_done": In(1),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bits, beats = self._config.port_bits, RECORD_BYTES // self._config.port_bytes
        request, out = self.port.request, self.port.data
        beat = Signal(range(max(2, beats)))
        m.d.comb += [
            request.payload.addr[6:].eq(self.addr[6 : self._config.address_bits]),
            request.payload.len.eq(beats - 1),
            out.payload.data.eq(self.record.as_value().word_select(beat, bits)),
            out.payload.strb.eq(~0),
            out.payload.last.eq(beat == beats - 1),
        ]
        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.start):
                    m.next = "REQUEST"
            with m.State("REQUEST"):
                m.d.comb += request.valid.eq(1)
                m.d.sync += beat.eq(0)
                with m.If(request.ready):
                    m.next = "DATA"
            with m.State("DATA"):
                m.d.comb += out.valid.eq(1)
                with m.If(out.ready):
                    m.d.sync += beat.eq(beat + 1)
                    with m.If(out.payload.last):
                        m.next = "ARRIVING"
            with m.State("ARRIVING"):
                with m.If(self.writes_done):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
        return m
