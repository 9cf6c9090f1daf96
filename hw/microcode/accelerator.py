"""The accelerator with a microprogram for control."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import Out, connect, flipped

from hw import axi
from hw.config import Config
from hw.control import Control, ControlBus
from hw.microcode.engine import Engine
from hw.microcode.program import WORD_BYTES


class MicrocodedAccelerator(wiring.Component):
    """What `hw.accelerator.Accelerator` is, with `control="microcode"`: the same ports, descriptors and results.

    Everything happens one thing after the other: jobs, loads, steps, outputs. `mac_cycles` counts steps (each is LANES
    cycles of the one lane there is), `stall_cycles` those in which it waits for weights.

    Parameters
    ----------
    config : Config

    Members
    -------
    As `hw.accelerator.Accelerator`.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        super().__init__(
            {
                "control": Out(ControlBus()),
                "interrupt": Out(1),
                **axi.master(config),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.control = control = Control(config)
        m.submodules.engine = engine = Engine(config)
        connect(m, control.bus, flipped(self.control))
        for name in ("ar", "r", "aw", "w"):
            connect(m, getattr(engine, name), flipped(getattr(self, name)))
        m.d.comb += [
            self.interrupt.eq(control.interrupt),
            engine.b.eq(self.b),
            engine.start.eq(control.start),
            engine.descriptors.eq(control.descriptors),
            engine.jobs.eq(control.jobs),
            control.finished.eq(engine.done),
        ]

        running = Signal()
        with m.If(engine.done):
            m.d.sync += running.eq(0)
        for counter, increment in (
            (control.cycles, running),
            (control.mac_cycles, engine.step),
            (control.stall_cycles, engine.waiting),
            (control.bytes_read, Mux(self.r.valid & self.r.ready, WORD_BYTES, 0)),
            (control.bytes_written, Mux(self.w.valid & self.w.ready, config.lanes, 0)),
        ):
            m.d.sync += counter.eq(counter + increment)
            with m.If(control.start):
                m.d.sync += counter.eq(0)
        with m.If(control.start):
            m.d.sync += running.eq(1)
        return m
