# amaranth: UnusedElaboratable=no
# (What a constructor refuses is never used.)

"""The link: a serial line at one end, a board's memory and registers at the other."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from hw.config import ConfigError
from hw.link.bridge import Bridge
from hw.link.frame import Deframer, Framer
from hw.link.inbox import Inbox
from hw.link.protocol import MOST_DATA, REQUEST
from hw.link.uart import Receiver, Transmitter

LEAST_INBOX = 512
"""Bytes that hold two full requests: one is executed while the other arrives."""

assert 2 * (REQUEST.size + MOST_DATA) < LEAST_INBOX


class Link(wiring.Component):
    """A board's side of the host link.

    Parameters
    ----------
    cycles : int
        Clock cycles a bit of the line.
    inbox_bytes : int
        Size of the buffer for requests (a power of two, at least LEAST_INBOX).
    identity : dict of str to int
        Of the board; see `Bridge`.

    Members
    -------
    rx : In(1), tx : Out(1)
        The line.
    damaged : Out(1)
        One cycle: a frame was dropped.
    others
        As `Bridge`.

    Raises
    ------
    ConfigError
        If the inbox or the divisor cannot be built.
    """

    def __init__(self, cycles: int, inbox_bytes: int, identity: dict[str, int]) -> None:
        if inbox_bytes < LEAST_INBOX or inbox_bytes & inbox_bytes - 1:
            raise ConfigError(f"inbox_bytes must be a power of two, at least {LEAST_INBOX}, not {inbox_bytes}")
        self._inbox_bytes = inbox_bytes
        self._receiver, self._transmitter = Receiver(cycles), Transmitter(cycles)
        # One byte of the ring stays empty.
        self._bridge = Bridge({**identity, "inbox_bytes": inbox_bytes - 1})
        self._inner = ("request", "response", "damaged")
        members = {name: member for name, member in self._bridge.signature.members.items() if name not in self._inner}
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "damaged": Out(1), **members})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.receiver = receiver = self._receiver
        m.submodules.transmitter = transmitter = self._transmitter
        m.submodules.deframer = deframer = Deframer()
        m.submodules.framer = framer = Framer()
        m.submodules.inbox = inbox = Inbox(self._inbox_bytes)
        m.submodules.bridge = bridge = self._bridge
        connect(m, receiver.bytes, deframer.bytes)
        connect(m, deframer.content, inbox.arriving)
        connect(m, inbox.content, bridge.request)
        connect(m, bridge.response, framer.content)
        connect(m, framer.bytes, transmitter.bytes)
        m.d.comb += [
            receiver.rx.eq(self.rx),
            self.tx.eq(transmitter.tx),
            deframer.error.eq(receiver.error),
            inbox.accept.eq(deframer.accept),
            inbox.reject.eq(deframer.reject),
            bridge.damaged.eq(inbox.damaged),
            self.damaged.eq(inbox.damaged),
        ]
        for name, member in bridge.signature.members.items():
            if name in self._inner:
                continue
            if member.is_signature:
                connect(m, getattr(bridge, name), flipped(getattr(self, name)))
            elif member.flow is In:
                m.d.comb += getattr(bridge, name).eq(getattr(self, name))
            else:
                m.d.comb += getattr(self, name).eq(getattr(bridge, name))
        return m
