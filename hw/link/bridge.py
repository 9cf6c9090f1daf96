"""The bridge: executes the link's requests on a board's memory and registers, in order and once."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.control import ControlBus
from hw.link.frame import PIECE
from hw.link.protocol import REGISTERS, REQUEST, SPAN_BITS, Op, Status
from hw.registers import AP_START
from hw.registers import OFFSET as CONTROL

POKE = data.StructLayout({"addr": 32, "data": 8})
"""One byte to write to memory."""
HEAD = data.StructLayout({"seq": 8, "op": 8, "count": 16, "address": 32})
"""`hw.link.protocol.REQUEST`, low byte first."""
VALUE_BYTES = 4
OLD_BIT = 7
"""A number is old rather than ahead if this bit of the distance is set."""

assert HEAD.size == 8 * REQUEST.size


class Bridge(wiring.Component):
    """What acts on requests.

    Parameters
    ----------
    identity : dict of str to int
        Values of the board's registers (`hw.link.protocol.REGISTERS`), but for `outside`.

    Members
    -------
    request : In(stream of PIECE)
        Sound frames.
    damaged : In(1)
        One cycle: a frame was dropped.
    response : Out(stream of PIECE)
    poke : Out(stream of POKE)
        A byte to memory.
    peek : Out(stream of 32)
        Address of a byte of memory; `peeked` holds it in the cycle after its transfer.
    peeked : In(8)
    beyond : In(1)
        The byte that is transferred on `poke` or `peek` in this cycle is outside memory.
    control : Out(AXI4-Lite master)
        The accelerator's registers.
    outside : In(1)
        For the register of that name.
    reset_accelerator : Out(1)
    opened : Out(1)
        A session has been opened.
    started : Out(1)
        One cycle: the accelerator is told to start.
    """

    def __init__(self, identity: dict[str, int]) -> None:
        self._identity = identity
        super().__init__(
            {
                "request": In(stream.Signature(PIECE)),
                "damaged": In(1),
                "response": Out(stream.Signature(PIECE)),
                "poke": Out(stream.Signature(POKE)),
                "peek": Out(stream.Signature(32)),
                "peeked": In(8),
                "beyond": In(1),
                "control": In(ControlBus()),
                "outside": In(1),
                "reset_accelerator": Out(1),
                "opened": Out(1),
                "started": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        head = Signal(HEAD)
        taken = Signal(range(REQUEST.size))
        more = Signal()  # of the request is still to come
        last, token = Signal(8), Signal(32)
        value = Signal(32)  # of the last OPEN, GET, PUT or RESET
        status = Signal(Status)
        pending = Signal()  # a damaged frame is to be told of
        executing, replying = Signal(), Signal()
        byte, at = Signal(8), Signal(range(VALUE_BYTES))
        ahead, fresh, old = Signal(8), Signal(), Signal()
        own, offset = Signal(), Signal(SPAN_BITS - 1)

        m.d.comb += [
            ahead.eq(head.seq - last),
            fresh.eq(ahead == 1),
            old.eq((ahead == 0) | ahead[OLD_BIT]),
            own.eq(head.count[SPAN_BITS - 1 :] != 0),
            offset.eq(head.count),
            self.poke.payload.addr.eq(head.address),
            self.poke.payload.data.eq(self.request.payload.data),
            self.peek.payload.eq(head.address),
            self.control.ar.payload.eq(offset),
            self.control.aw.payload.eq(offset),
            self.control.w.payload.data.eq(head.address),
            self.control.w.payload.strb.eq(0xF),
        ]
        m.d.sync += self.reset_accelerator.eq(0)

        def send(content: Value, then: str, final: bool = False) -> None:
            m.d.comb += [self.response.valid.eq(1), self.response.payload.data.eq(content)]
            m.d.comb += self.response.payload.last.eq(final)
            with m.If(self.response.ready):
                m.next = then

        with m.FSM():
            with m.State("HEAD"):
                m.d.comb += self.request.ready.eq(~pending | (taken != 0))
                with m.If(self.request.valid & self.request.ready):
                    raw = head.as_value()
                    m.d.sync += [
                        raw.eq(Cat(raw[8:], self.request.payload.data)),
                        taken.eq(taken + 1),
                        more.eq(~self.request.payload.last),
                    ]
                    with m.If(taken == REQUEST.size - 1):
                        m.next = "DECIDE"
                    with m.Elif(self.request.payload.last):
                        m.d.sync += taken.eq(0)  # too short to mean anything
                with m.Elif(pending & (taken == 0)):
                    m.d.sync += [pending.eq(0), head.seq.eq(last), head.op.eq(0), replying.eq(0)]
                    m.d.sync += status.eq(Status.DAMAGED)
                    m.next = "SEQ"
            with m.State("DECIDE"):
                m.d.sync += [status.eq(Status.OK), executing.eq(0), replying.eq(0), at.eq(0)]
                m.next = "REST"
                with m.If(head.op == Op.OPEN):
                    m.d.sync += [self.opened.eq(1), last.eq(head.seq), replying.eq(1)]
                    m.d.sync += [token.eq(head.address), value.eq(token)]
                with m.Elif(~self.opened):
                    m.d.sync += [status.eq(Status.CLOSED), head.op.eq(0)]
                with m.Elif(~fresh & ~old):
                    m.d.sync += [status.eq(Status.OUT_OF_ORDER), head.op.eq(0), head.seq.eq(last)]
                with m.Else():
                    with m.If(fresh):
                        m.d.sync += last.eq(head.seq)
                    m.d.sync += executing.eq(fresh)
                    with m.Switch(head.op):
                        with m.Case(Op.READ, Op.WRITE):
                            pass
                        with m.Case(Op.GET):
                            m.d.sync += replying.eq(1)
                            with m.If(~fresh & (ahead != 0)):
                                # Its value has gone: better none than another's.
                                m.d.sync += [status.eq(Status.OUT_OF_ORDER), head.op.eq(0), replying.eq(0)]
                        with m.Case(Op.PUT, Op.RESET):
                            m.d.sync += replying.eq(1)
                        with m.Default():
                            m.d.sync += status.eq(Status.REFUSED)
            with m.State("REST"):
                # What is left of the request; only a WRITE has any.
                writing = executing & (head.op == Op.WRITE)
                m.d.comb += [
                    self.poke.valid.eq(more & self.request.valid & writing),
                    self.request.ready.eq(more & (self.poke.ready | ~writing)),
                ]
                with m.If(self.request.valid & self.request.ready):
                    m.d.sync += [head.address.eq(head.address + 1), more.eq(~self.request.payload.last)]
                    with m.If(writing & self.beyond):
                        m.d.sync += status.eq(Status.REFUSED)
                with m.If(~more):
                    m.next = "SEQ"
                    # A register is accessed once, however often the request comes; the board's own do not mind.
                    with m.Switch(head.op):
                        with m.Case(Op.GET):
                            with m.If(own):
                                m.next = "OWN"
                            with m.Elif(executing):
                                m.next = "GET"
                        with m.Case(Op.PUT):
                            with m.If(own):
                                m.d.sync += status.eq(Status.REFUSED)
                            with m.Elif(executing):
                                m.next = "PUT"
                        with m.Case(Op.RESET):
                            m.d.sync += self.reset_accelerator.eq(executing)
            with m.State("OWN"):
                m.next = "SEQ"
                with m.Switch(head.count[2:]):
                    for register in REGISTERS:
                        with m.Case(register.offset >> 2):
                            m.d.sync += value.eq(self._identity.get(register.name, self.outside))
                    with m.Default():
                        m.d.sync += status.eq(Status.REFUSED)
            with m.State("GET"):
                m.d.comb += self.control.ar.valid.eq(1)
                with m.If(self.control.ar.ready):
                    m.next = "GOT"
            with m.State("GOT"):
                m.d.comb += self.control.r.ready.eq(1)
                m.d.sync += value.eq(self.control.r.payload.data)
                with m.If(self.control.r.valid):
                    m.next = "SEQ"
            with m.State("PUT"):
                # Address and data are taken together.
                m.d.comb += [self.control.aw.valid.eq(1), self.control.w.valid.eq(1)]
                m.d.sync += value.eq(head.address)
                with m.If(self.control.aw.ready & self.control.w.ready):
                    m.d.comb += self.started.eq((offset == CONTROL["ap_ctrl"]) & (head.address & AP_START).any())
                    m.next = "WRITTEN"
            with m.State("WRITTEN"):
                m.d.comb += self.control.b.ready.eq(1)
                with m.If(self.control.b.valid):
                    m.next = "SEQ"

            with m.State("SEQ"):
                send(head.seq, "OP")
            with m.State("OP"):
                send(head.op, "DATA")
            with m.State("DATA"):
                with m.If((head.op == Op.READ) & (head.count != 0)):
                    m.d.comb += self.peek.valid.eq(1)
                    with m.If(self.peek.ready):
                        m.next = "PEEKED"
                        with m.If(self.beyond):
                            m.d.sync += status.eq(Status.REFUSED)
                with m.Elif(replying):
                    send(value.word_select(at, 8), "DATA")
                    with m.If(self.response.ready):
                        m.d.sync += at.eq(at + 1)
                        with m.If(at == VALUE_BYTES - 1):
                            m.next = "STATUS"
                with m.Else():
                    m.next = "STATUS"
            with m.State("PEEKED"):
                m.d.sync += [byte.eq(self.peeked), head.address.eq(head.address + 1), head.count.eq(head.count - 1)]
                m.next = "BYTE"
            with m.State("BYTE"):
                send(byte, "DATA")
            with m.State("STATUS"):
                m.d.sync += taken.eq(0)
                send(status, "HEAD", final=True)

        with m.If(self.damaged):
            m.d.sync += pending.eq(1)
        return m
