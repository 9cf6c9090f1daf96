"""A serial line's receiver and transmitter: one start bit, eight data bits (low first), no parity, one stop bit."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from hw.config import ConfigError

LEAST_DIVISOR = 4
"""Clock cycles a bit that the receiver's three samples need. With fewer than 8, both ends must share a clock."""
TOLERANCE = 0.02
"""Largest relative error of the baud rate; two ends may differ by twice that before a tenth bit is missed."""


def divisor(clock_hz: float, baud: float) -> int:
    """Clock cycles a bit.

    Raises
    ------
    ConfigError
        If the clock is too slow for the rate, or no whole number of cycles is near enough to a bit.
    """
    if baud <= 0 or clock_hz < LEAST_DIVISOR * baud:
        raise ConfigError(
            f"a clock of {clock_hz:g} Hz gives from 1 to {clock_hz / LEAST_DIVISOR:g} baud "
            f"({LEAST_DIVISOR} cycles a bit), not {baud:g}"
        )
    cycles = round(clock_hz / baud)
    if abs(clock_hz / cycles / baud - 1) > TOLERANCE:
        raise ConfigError(
            f"a clock of {clock_hz:g} Hz is {clock_hz / baud:.2f} cycles a bit of {baud:g} baud, which no whole number "
            f"is near enough to; {clock_hz / cycles:.0f} baud is exact"
        )
    return cycles


class Receiver(wiring.Component):
    """Bytes from a line. Each bit is the majority of three samples around its middle; a start bit must be one, too.

    Parameters
    ----------
    cycles : int
        Clock cycles a bit, at least LEAST_DIVISOR.

    Members
    -------
    rx : In(1)
        The line, asynchronous.
    bytes : Out(stream of 8)
        Each is offered for one cycle: the line does not wait.
    error : Out(1)
        One cycle: a byte without a stop bit was dropped.
    """

    def __init__(self, cycles: int) -> None:
        if cycles < LEAST_DIVISOR:
            raise ConfigError(f"the receiver needs at least {LEAST_DIVISOR} cycles a bit, not {cycles}")
        self._cycles = cycles
        super().__init__({"rx": In(1, init=1), "bytes": Out(stream.Signature(8)), "error": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        cycles = self._cycles
        line = Signal(init=1)
        m.submodules.synchronizer = FFSynchronizer(self.rx, line, init=1)

        middle, apart = cycles // 2, max(1, cycles // 8)
        phase = Signal(range(cycles))
        bit = Signal(range(10))
        earlier = Signal(2)  # ones among the first two samples
        one, decided = Signal(), Signal()
        shift = Signal(8)
        m.d.sync += [phase.eq(phase + 1), self.bytes.valid.eq(0), self.error.eq(0)]
        m.d.comb += [
            one.eq(earlier + line >= 2),
            decided.eq(phase == middle + apart),
            self.bytes.payload.eq(shift),
        ]
        with m.If(phase == cycles - 1):
            m.d.sync += [phase.eq(0), earlier.eq(0), bit.eq(bit + 1)]
        with m.If((phase == middle - apart) | (phase == middle)):
            m.d.sync += earlier.eq(earlier + line)

        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [phase.eq(1), bit.eq(0), earlier.eq(0)]
                with m.If(~line):
                    m.next = "BITS"
            with m.State("BITS"):
                with m.If(decided):
                    m.d.sync += shift.eq(Cat(shift[1:], one))
                    with m.If((bit == 0) & one):
                        m.next = "IDLE"
                    with m.If(bit == 9):
                        # The next byte's start bit may come early: the rest of the stop bit is not waited for.
                        m.d.sync += [shift.eq(shift), self.bytes.valid.eq(one), self.error.eq(~one)]
                        m.next = "IDLE"
                        with m.If(~one):
                            m.next = "BREAK"
            with m.State("BREAK"):
                with m.If(line):
                    m.next = "IDLE"
        return m


class Transmitter(wiring.Component):
    """Bytes onto a line, without gaps while there are any.

    Parameters
    ----------
    cycles : int
        Clock cycles a bit.

    Members
    -------
    bytes : In(stream of 8)
    tx : Out(1)
    """

    def __init__(self, cycles: int) -> None:
        self._cycles = cycles
        super().__init__({"bytes": In(stream.Signature(8)), "tx": Out(1, init=1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        phase = Signal(range(self._cycles))
        left = Signal(range(11))
        shift = Signal(10)
        ending = Signal()
        m.d.comb += [
            ending.eq((left <= 1) & (phase == 0)),
            self.bytes.ready.eq(ending),
        ]
        # The line is a register: no glitch of the logic before it may look like a start bit.
        m.d.sync += self.tx.eq(shift[0] | (left == 0))
        with m.If(phase != 0):
            m.d.sync += phase.eq(phase - 1)
        with m.Elif(left != 0):
            m.d.sync += [phase.eq(self._cycles - 1), left.eq(left - 1), shift.eq(shift >> 1)]
        with m.If(ending & self.bytes.valid):
            m.d.sync += [
                shift.eq(Cat(0, self.bytes.payload, 1)),
                left.eq(10),
                phase.eq(self._cycles - 1),
            ]
        return m
