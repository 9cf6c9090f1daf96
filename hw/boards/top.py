# amaranth: UnusedElaboratable=no
# (What a constructor refuses is never used.)

"""A board's top level: accelerator, on-chip memory and host link. Clock, reset and pins are the platform's to bring."""

from __future__ import annotations

from amaranth.hdl import Module, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect

from hw.boards.ram import Ram
from hw.config import Config
from hw.link.link import Link
from hw.link.protocol import MAGIC, VERSION
from hw.link.uart import divisor
from hw.variants import accelerator

DEFAULT_INBOX = 2048


class BoardTop(wiring.Component):
    """An accelerator that a host reaches through a serial line. All of it is in the domain `sync`.

    Parameters
    ----------
    config : Config
        The accelerator.
    memory_bytes : int
        On-chip device memory; a multiple of 4096.
    clock_hz : float
        Frequency of `sync`.
    baud : int
        Of the line. The divisor is a whole number: `hw.link.uart.divisor` refuses what it cannot reach within 2 %.
    inbox_bytes : int
        Buffer for requests on their way; a power of two, at least 512. More keeps a line with a slow host adapter busy.
    single_port : bool
        Build the memory with one port.

    Members
    -------
    rx : In(1), tx : Out(1)
        The line, at logic level: idle is 1.
    led_open : Out(1)
        A host has opened the link.
    led_busy : Out(1)
        A launch is under way.
    led_error : Out(1)
        A frame came damaged, or the accelerator touched memory that is not there, since its last reset.

    Raises
    ------
    ConfigError
        If it cannot be built.
    """

    def __init__(
        self,
        config: Config,
        memory_bytes: int,
        clock_hz: float,
        baud: int,
        *,
        inbox_bytes: int = DEFAULT_INBOX,
        single_port: bool = False,
    ) -> None:
        self._config = config
        self._ram = Ram(config, memory_bytes, single_port=single_port)
        identity = {
            "magic": MAGIC,
            "version": VERSION,
            "memory_bytes": memory_bytes,
            "clock_hz": round(clock_hz),
            "baud": baud,
        }
        self._link = Link(divisor(clock_hz, baud), inbox_bytes, identity)
        super().__init__(
            {
                "rx": In(1, init=1),
                "tx": Out(1, init=1),
                "led_open": Out(1),
                "led_busy": Out(1),
                "led_error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.link = link = self._link
        ram, device = self._ram, accelerator(self._config)
        # A reset of the accelerator takes back what it has asked of the memory, too.
        reset = ResetInserter(link.reset_accelerator)
        m.submodules.ram = reset(ram)
        m.submodules.accelerator = reset(device)
        connect(m, link.control, device.control)
        for name in ("ar", "r", "aw", "w"):
            connect(m, getattr(device, name), getattr(ram, name))
        for name in ("poke", "peek"):
            connect(m, getattr(link, name), getattr(ram, name))

        outside, busy, error = Signal(), Signal(), Signal()
        m.d.comb += [
            link.rx.eq(self.rx),
            self.tx.eq(link.tx),
            link.peeked.eq(ram.peeked),
            link.beyond.eq(ram.beyond),
            link.outside.eq(outside),
            device.b.eq(ram.b),
            self.led_open.eq(link.opened),
            self.led_busy.eq(busy),
            self.led_error.eq(error),
        ]
        with m.If(ram.outside):
            m.d.sync += outside.eq(1)
        with m.If(link.damaged | outside):
            m.d.sync += error.eq(1)
        # The end of a launch is its interrupt, which the host enables.
        with m.If(device.interrupt):
            m.d.sync += busy.eq(0)
        with m.If(link.started):
            m.d.sync += busy.eq(1)
        with m.If(link.reset_accelerator):
            m.d.sync += [outside.eq(0), busy.eq(0), error.eq(0)]
        return m
