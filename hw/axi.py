"""The memory port: read and write arbitration onto one AXI4 master, and bursts over a linear region."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out, connect
from amaranth.utils import exact_log2

from hw.config import Config

BOUNDARY = 4096
"""No burst crosses a multiple of this many bytes."""
MAX_BEATS = 64
"""Longest burst issued, so that no reader holds the port for long."""
OUTSTANDING = 16
"""Read bursts in flight."""


def request(config: Config) -> data.StructLayout:
    """Layout of one burst: byte address of its first beat (aligned to a beat) and beats - 1.

    The memory port's upper address bits, those that the build does not keep, are zero.
    """
    return data.StructLayout({"addr": config.address_bits, "len": 8})


def read_beat(config: Config) -> data.StructLayout:
    """Layout of one beat of read data."""
    return data.StructLayout({"data": config.port_bits, "last": 1})


def write_beat(config: Config) -> data.StructLayout:
    """Layout of one beat of write data."""
    return data.StructLayout({"data": config.port_bits, "strb": config.port_bytes, "last": 1})


def master(config: Config) -> dict[str, wiring.Member]:
    """Members of whatever has the memory port: two channels to read, three to write; a write response is a pulse."""
    return {
        "ar": Out(stream.Signature(request(config))),
        "r": In(stream.Signature(read_beat(config))),
        "aw": Out(stream.Signature(request(config))),
        "w": Out(stream.Signature(write_beat(config))),
        "b": In(1),
    }


class ReadPort(wiring.Signature):
    """A reader's side of the memory port.

    Members
    -------
    request : Out(stream of request)
    data : In(stream of read_beat), in the order of the requests
    """

    def __init__(self, config: Config) -> None:
        super().__init__(
            {
                "request": Out(stream.Signature(request(config))),
                "data": In(stream.Signature(read_beat(config))),
            }
        )


class WritePort(wiring.Signature):
    """A writer's side of the memory port.

    Members
    -------
    request : Out(stream of request)
    data : Out(stream of write_beat), in the order of the requests
    """

    def __init__(self, config: Config) -> None:
        super().__init__(
            {
                "request": Out(stream.Signature(request(config))),
                "data": Out(stream.Signature(write_beat(config))),
            }
        )


def attach(m: Module, port: wiring.PureInterface, client: wiring.PureInterface, base: Value | None = None) -> None:
    """Connect a reader's or writer's port to an arbiter, its addresses counted from `base` (a multiple of BOUNDARY)."""
    if base is None:
        connect(m, port, client)
        return
    connect(m, port.data, client.data)
    asked, passed = port.request, client.request
    low = exact_log2(BOUNDARY)
    m.d.comb += [
        passed.valid.eq(asked.valid),
        asked.ready.eq(passed.ready),
        passed.payload.len.eq(asked.payload.len),
        passed.payload.addr.eq(Cat(asked.payload.addr[:low], asked.payload.addr[low:] + base[low:])),
    ]


class ReadArbiter(wiring.Component):
    """Several readers on one AXI read channel; an urgent one wins, then a lower index. Bursts are answered in order.

    Members
    -------
    clients : In(ReadPort), one a reader
    urgent : In(clients)
        Readers that win over all that are not.
    ar : Out(stream of request)
    r : In(stream of read_beat)
    """

    def __init__(self, config: Config, clients: int) -> None:
        self._clients = clients
        super().__init__(
            {
                "clients": In(ReadPort(config)).array(clients),
                "urgent": In(clients),
                "ar": Out(stream.Signature(request(config))),
                "r": In(stream.Signature(read_beat(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.order = order = SyncFIFOBuffered(width=max(1, (self._clients - 1).bit_length()), depth=OUTSTANDING)

        with m.If(self.ar.ready):
            m.d.sync += self.ar.valid.eq(0)
        asking, among = Signal(self._clients), Signal(self._clients)
        m.d.comb += [
            asking.eq(Cat(client.request.valid for client in self.clients)),
            among.eq(Mux((asking & self.urgent).any(), asking & self.urgent, asking)),
        ]
        with m.If((~self.ar.valid | self.ar.ready) & order.w_rdy):
            for index in reversed(range(self._clients)):
                client = self.clients[index]
                with m.If(among[index] & ~among[:index].any()):
                    m.d.sync += [self.ar.payload.eq(client.request.payload), self.ar.valid.eq(1)]
                    m.d.comb += [client.request.ready.eq(1), order.w_data.eq(index), order.w_en.eq(1)]

        ready = Signal()
        for index in range(self._clients):
            client = self.clients[index]
            m.d.comb += client.data.payload.eq(self.r.payload)
            with m.If(order.r_rdy & (order.r_data == index)):
                m.d.comb += [client.data.valid.eq(self.r.valid), ready.eq(client.data.ready)]
        m.d.comb += [
            self.r.ready.eq(ready),
            order.r_en.eq(self.r.valid & ready & self.r.payload.last),
        ]
        return m


class WriteArbiter(wiring.Component):
    """Several writers on one AXI write channel, a burst at a time; a lower index wins.

    Members
    -------
    clients : In(WritePort), one a writer
    aw : Out(stream of request)
    w : Out(stream of write_beat)
    b : In(1)
        A write response arrived.
    idle : Out(1)
        No burst is under way and every response has arrived.
    """

    def __init__(self, config: Config, clients: int) -> None:
        self._clients = clients
        super().__init__(
            {
                "clients": In(WritePort(config)).array(clients),
                "aw": Out(stream.Signature(request(config))),
                "w": Out(stream.Signature(write_beat(config))),
                "b": In(1),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        busy = Signal()
        turn = Signal(range(self._clients))
        unanswered = Signal(16)
        started = Signal()

        with m.If(self.aw.ready):
            m.d.sync += self.aw.valid.eq(0)
        with m.If(~busy & ~self.aw.valid):
            for index in range(self._clients):
                client = self.clients[index]
                others = Cat(self.clients[lower].request.valid for lower in range(index)).any() if index else C(0)
                with m.If(client.request.valid & ~others):
                    m.d.sync += [self.aw.payload.eq(client.request.payload), self.aw.valid.eq(1)]
                    m.d.sync += [turn.eq(index), busy.eq(1)]
                    m.d.comb += [client.request.ready.eq(1), started.eq(1)]
        for index in range(self._clients):
            client = self.clients[index]
            with m.If(busy & (turn == index)):
                m.d.comb += [
                    self.w.valid.eq(client.data.valid),
                    self.w.payload.eq(client.data.payload),
                    client.data.ready.eq(self.w.ready),
                ]
        with m.If(self.w.valid & self.w.ready & self.w.payload.last):
            m.d.sync += busy.eq(0)
        m.d.sync += unanswered.eq(unanswered + started - self.b)
        m.d.comb += self.idle.eq(~busy & ~self.aw.valid & (unanswered == 0))
        return m


class BurstReader(wiring.Component):
    """Splits a linear region into bursts, each issued once there is room for all of it.

    Parameters
    ----------
    max_beats : int
        Longest burst; a power of two.
    room_bits : int
        Width of `room`.
    beats_bits : int, optional
        Width of a region's length; as of the build's counts if not given.

    Members
    -------
    start : In(stream of {addr, beats})
        A region: address aligned to a beat, beats at least 1.
    room : In
        Beats the reader can take now; may only shrink by `taken`.
    request : Out(stream of request)
    taken : Out
        Beats requested in this cycle, 0 if none.
    idle : Out(1)
        All of the region has been requested.
    """

    def __init__(self, config: Config, max_beats: int, room_bits: int, beats_bits: int | None = None) -> None:
        self._config = config
        self._max_beats = max_beats
        self._beats_bits = beats_bits or config.count_bits
        super().__init__(
            {
                "start": In(
                    stream.Signature(data.StructLayout({"addr": config.address_bits, "beats": self._beats_bits}))
                ),
                "room": In(room_bits),
                "request": Out(stream.Signature(request(config))),
                "taken": Out(9),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat_log2 = exact_log2(self._config.port_bytes)
        boundary = min(self._max_beats, BOUNDARY // self._config.port_bytes)
        addr = Signal(self._config.address_bits, reset_less=True)
        remaining = Signal(self._beats_bits, reset_less=True)
        burst = Signal(9, reset_less=True)
        # Distance to the next multiple of the longest burst, which is never beyond the 4 KB boundary.
        to_boundary = Signal(9)
        m.d.comb += to_boundary.eq(boundary - addr[beat_log2 : beat_log2 + exact_log2(boundary)])

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [self.start.ready.eq(1), self.idle.eq(~self.start.valid)]
                with m.If(self.start.valid):
                    m.d.sync += [addr.eq(self.start.payload.addr), remaining.eq(self.start.payload.beats)]
                    m.next = "SIZE"
            with m.State("SIZE"):
                m.d.sync += burst.eq(Mux(remaining < to_boundary, remaining, to_boundary))
                m.next = "ASK"
            with m.State("ASK"):
                m.d.comb += [
                    self.request.valid.eq(self.room >= burst),
                    self.request.payload.addr.eq(addr),
                    self.request.payload.len.eq(burst - 1),
                ]
                with m.If(self.request.valid & self.request.ready):
                    m.d.comb += self.taken.eq(burst)
                    m.d.sync += [addr.eq(addr + (burst << beat_log2)), remaining.eq(remaining - burst)]
                    with m.If(remaining == burst):
                        m.next = "IDLE"
                    with m.Else():
                        m.next = "SIZE"
        return m


__all__ = [
    "BurstReader",
    "ReadArbiter",
    "ReadPort",
    "WriteArbiter",
    "WritePort",
    "attach",
    "read_beat",
    "request",
    "write_beat",
]
