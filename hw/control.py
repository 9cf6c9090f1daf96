"""The control port: an AXI4-Lite slave with the Vitis RTL-kernel register map."""

from __future__ import annotations

from amaranth.hdl import C, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw import registers
from hw.config import INTERFACE_VERSION, Config
from hw.registers import OFFSET

ADDRESS = registers.SPAN_BITS
COUNTERS = ("cycles", "mac_cycles", "stall_cycles", "bytes_read", "bytes_written")
"""64-bit counters, read in two halves."""


class ControlBus(wiring.Signature):
    """AXI4-Lite, from the slave's side: five streams (protection bits are not used)."""

    def __init__(self) -> None:
        super().__init__(
            {
                "aw": In(stream.Signature(ADDRESS)),
                "w": In(stream.Signature(data.StructLayout({"data": 32, "strb": 4}))),
                "b": Out(stream.Signature(2)),
                "ar": In(stream.Signature(ADDRESS)),
                "r": Out(stream.Signature(data.StructLayout({"data": 32, "resp": 2}))),
            }
        )


class Control(wiring.Component):
    """Registers of `hw.registers`, the start/done handshake, and the interrupt.

    Members
    -------
    bus : Out(ControlBus)
    start : Out(1)
        One cycle: begin a launch with the arguments below.
    finished : In(1)
        One cycle: the launch is complete.
    descriptors : Out(64), jobs : Out(32)
    mac_events, feature_events : Out(64), mac_event_count, feature_event_count : Out(32), with `saboteur`
    late_masks : Out(64), late_mask_count : Out(32), with `overclock`
    cycles, mac_cycles, stall_cycles, bytes_read, bytes_written : In(64)
    faults_applied : In(32), with `saboteur`
    interrupt : Out(1)
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._wide = ["descriptors"]
        self._narrow = ["jobs"]
        members = {
            "bus": Out(ControlBus()),
            "start": Out(1),
            "finished": In(1),
            "interrupt": Out(1),
            **{name: In(64) for name in COUNTERS},
        }
        if config.saboteur:
            self._wide += ["mac_events", "feature_events"]
            self._narrow += ["mac_event_count", "feature_event_count"]
            members["faults_applied"] = In(32)
        if config.overclock:
            self._wide += ["late_masks"]
            self._narrow += ["late_mask_count"]
        members |= {name: Out(64) for name in self._wide} | {name: Out(32) for name in self._narrow}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, bus = self._config, self.bus

        idle, done, started = Signal(init=1), Signal(), Signal()
        gie, ier, isr = Signal(), Signal(2), Signal(2)
        m.d.comb += [self.interrupt.eq(gie & (isr & ier).any()), self.start.eq(started)]
        m.d.sync += started.eq(0)
        with m.If(self.finished):
            m.d.sync += [idle.eq(1), done.eq(1), isr.eq(isr | ier)]

        # Writes: address and data are taken together.
        write = Signal()
        m.d.comb += [
            write.eq(bus.aw.valid & bus.w.valid & (~bus.b.valid | bus.b.ready)),
            bus.aw.ready.eq(write),
            bus.w.ready.eq(write),
            bus.b.payload.eq(0),
        ]
        with m.If(bus.b.ready):
            m.d.sync += bus.b.valid.eq(0)
        targets = {}
        for name in self._wide:
            value = getattr(self, name)
            targets[OFFSET[f"{name}_lo"]] = value[:32]
            targets[OFFSET[f"{name}_hi"]] = value[32:]
        for name in self._narrow:
            targets[OFFSET[name]] = getattr(self, name)
        with m.If(write):
            m.d.sync += bus.b.valid.eq(1)
            with m.Switch(bus.aw.payload[2:]):
                with m.Case(OFFSET["ap_ctrl"] >> 2):
                    with m.If(bus.w.payload.strb[0] & bus.w.payload.data[0] & idle):
                        m.d.sync += [started.eq(1), idle.eq(0), done.eq(0)]
                with m.Case(OFFSET["gie"] >> 2):
                    with m.If(bus.w.payload.strb[0]):
                        m.d.sync += gie.eq(bus.w.payload.data[0])
                with m.Case(OFFSET["ier"] >> 2):
                    with m.If(bus.w.payload.strb[0]):
                        m.d.sync += ier.eq(bus.w.payload.data[:2])
                with m.Case(OFFSET["isr"] >> 2):
                    with m.If(bus.w.payload.strb[0]):
                        m.d.sync += isr.eq(isr ^ bus.w.payload.data[:2])
                for offset, target in targets.items():
                    with m.Case(offset >> 2):
                        for byte in range(4):
                            with m.If(bus.w.payload.strb[byte]):
                                m.d.sync += target[8 * byte : 8 * byte + 8].eq(
                                    bus.w.payload.data[8 * byte : 8 * byte + 8]
                                )

        # Reads.
        sources = dict(targets)
        sources |= {
            OFFSET["gie"]: gie,
            OFFSET["ier"]: ier,
            OFFSET["isr"]: isr,
            OFFSET["config_hash_lo"]: C(config.hash & 0xFFFFFFFF, 32),
            OFFSET["config_hash_hi"]: C(config.hash >> 32, 32),
            OFFSET["interface_version"]: C(INTERFACE_VERSION, 32),
        }
        for name in COUNTERS:
            value = getattr(self, name)
            sources |= {OFFSET[f"{name}_lo"]: value[:32], OFFSET[f"{name}_hi"]: value[32:]}
        if config.saboteur:
            sources[OFFSET["faults_applied"]] = self.faults_applied
        read = Signal()
        m.d.comb += [read.eq(bus.ar.valid & (~bus.r.valid | bus.r.ready)), bus.ar.ready.eq(read)]
        with m.If(bus.r.ready):
            m.d.sync += bus.r.valid.eq(0)
        with m.If(read):
            m.d.sync += [bus.r.valid.eq(1), bus.r.payload.resp.eq(0), bus.r.payload.data.eq(0)]
            with m.Switch(bus.ar.payload[2:]):
                with m.Case(OFFSET["ap_ctrl"] >> 2):
                    value = (~idle) | (done << 1) | (idle << 2) | (done << 3)
                    m.d.sync += bus.r.payload.data.eq(value[:4])
                    with m.If(~self.finished):
                        m.d.sync += done.eq(0)
                for offset, source in sources.items():
                    with m.Case(offset >> 2):
                        m.d.sync += bus.r.payload.data.eq(source)
        return m
