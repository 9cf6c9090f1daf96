"""The control port: an AXI4-Lite slave with the Vitis RTL-kernel register map."""

from __future__ import annotations

from amaranth.hdl import C, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.config import INTERFACE_VERSION, Config
from hw.registers import ARGUMENTS, KERNEL_SPAN_BITS, OFFSET, SPAN_BITS

COUNTERS = ("cycles", "mac_cycles", "stall_cycles", "bytes_read", "bytes_written")
"""Counters of a launch, read in two halves; they wrap at `counter_bits`."""


def counter_bits(config: Config) -> int:
    """Width of a counter: 64 bits, less in a build that keeps fewer bits of counts."""
    return 2 * config.count_bits


def span(opencl: bool) -> int:
    """Address bits of the control port, of an opencl build or another."""
    return KERNEL_SPAN_BITS if opencl else SPAN_BITS


class ControlBus(wiring.Signature):
    """AXI4-Lite, from the slave's side: five streams (protection bits are not used).

    Parameters
    ----------
    bits : int
        Of an address.
    """

    def __init__(self, bits: int = SPAN_BITS) -> None:
        super().__init__(
            {
                "aw": In(stream.Signature(bits)),
                "w": In(stream.Signature(data.StructLayout({"data": 32, "strb": 4}))),
                "b": Out(stream.Signature(2)),
                "ar": In(stream.Signature(bits)),
                "r": Out(stream.Signature(data.StructLayout({"data": 32, "resp": 2}))),
            }
        )


class Control(wiring.Component):
    """Registers of `hw.registers`, the start/done handshake, and the interrupt.

    Parameters
    ----------
    config : Config
    opencl : bool
        Whether there are the arguments of an opencl build.

    Members
    -------
    bus : Out(ControlBus)
    start : Out(1)
        One cycle: begin a launch with the arguments below.
    finished : In(1)
        One cycle: the launch is complete.
    descriptors, jobs and so on : Out(64) or Out(32)
        The arguments (`hw.registers.ARGUMENTS`) that this build has.
    cycles, mac_cycles, stall_cycles, bytes_read, bytes_written : In(counter_bits)
    faults_applied : In(32), with `saboteur`
    interrupt : Out(1)
    """

    def __init__(self, config: Config, *, opencl: bool = False) -> None:
        self._config = config
        builds = {"": True, "saboteur": config.saboteur, "overclock": bool(config.overclock), "opencl": opencl}
        self._arguments = [argument for argument in ARGUMENTS if builds[argument.build]]
        members = {
            "bus": Out(ControlBus(span(opencl))),
            "start": Out(1),
            "finished": In(1),
            "interrupt": Out(1),
            **{name: In(counter_bits(config)) for name in COUNTERS},
        }
        if config.saboteur:
            members["faults_applied"] = In(32)
        members |= {argument.name: Out(argument.bits) for argument in self._arguments}
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
        targets = {
            register.offset: getattr(self, argument.name).word_select(half, 32)
            for argument in self._arguments
            for half, register in enumerate(argument.registers)
        }
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
                        # What happens in this very cycle is not lost.
                        happened = Mux(self.finished, ier, 0)
                        m.d.sync += isr.eq(isr ^ bus.w.payload.data[:2] | happened)
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
