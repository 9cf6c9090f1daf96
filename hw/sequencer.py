"""The sequencer: fetches descriptors, and runs jobs one after the other while the next one's data loads."""

from __future__ import annotations

from collections.abc import Iterator

from amaranth.hdl import C, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from hw import axi, descriptor
from hw.config import Config


class Sequencer(wiring.Component):
    """A three-stage pipeline of descriptors: fetched, loading, computing. A LOAD_ONLY job ends when it has loaded.

    A job that loads in chunks begins to compute while it loads; the next load waits for the rest of its features.

    Members
    -------
    start : In(1), addr : In(address_bits), jobs : In(count_bits)
        Begin a launch.
    done : Out(1)
        One cycle: every job is through, and every write is acknowledged.
    port : Out(ReadPort)
    weights, params : Out(streams of descriptor.layout)
        The loading job, to the weight and parameter loaders, unless it is LOAD_ONLY.
    loading : Out(descriptor.layout), load : Out(1), load_done : In(1)
        The loading job, and the feature loader's start and done.
    job : Out(descriptor.layout), compute : Out(1), compute_done : In(1)
        The computing job; start of its stages; all of them are done.
    job_index : Out(count_bits)
        Position of the computing job in the launch.
    jobs_done : Out(count_bits)
        Jobs that are through.
    writes_done : In(1)
        No write is under way.
    clear : Out(1)
        Start of a launch.
    waiting : Out(1)
        Between jobs, for want of a descriptor or features from memory.
    arriving : Out(1)
        The load under way is the computing job's own.
    weights_ahead : Out(1)
        It is, and the weight loader already has the next job.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "addr": In(config.address_bits),
                "jobs": In(config.count_bits),
                "done": Out(1),
                "port": Out(axi.ReadPort(config)),
                "weights": Out(stream.Signature(descriptor.layout(config))),
                "params": Out(stream.Signature(descriptor.layout(config))),
                "loading": Out(descriptor.layout(config)),
                "load": Out(1),
                "load_done": In(1),
                "job": Out(descriptor.layout(config)),
                "compute": Out(1),
                "compute_done": In(1),
                "job_index": Out(config.count_bits),
                "jobs_done": Out(config.count_bits),
                "writes_done": In(1),
                "clear": Out(1),
                "waiting": Out(1),
                "arriving": Out(1),
                "weights_ahead": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        active = Signal()
        loading_valid, job_valid = Signal(), Signal()

        # Fetch. Of each beat, what it holds of the fields is kept.
        beats = -(-descriptor.USED_BYTES // config.port_bytes)
        m.submodules.reader = reader = axi.BurstReader(config, axi.MAX_BEATS, 9)
        fetched = Signal(descriptor.layout(config), reset_less=True)
        arrived = Signal(range(beats + 1))
        fetch_addr, to_fetch = Signal(config.address_bits, reset_less=True), Signal(config.count_bits)
        fetching, fetched_valid, fetched_taken = Signal(), Signal(), Signal()
        m.d.comb += [
            reader.room.eq(C(1, 1).replicate(9)),
            reader.start.valid.eq((to_fetch != 0) & ~fetching),
            reader.start.payload.addr.eq(fetch_addr),
            reader.start.payload.beats.eq(beats),
            self.port.data.ready.eq(1),
            fetched_valid.eq(arrived == beats),
        ]
        connect(m, reader.request, flipped(self.port.request))
        with m.If(reader.start.valid & reader.start.ready):
            m.d.sync += [
                fetching.eq(1),
                to_fetch.eq(to_fetch - 1),
                fetch_addr.eq(fetch_addr + descriptor.DESCRIPTOR_BYTES),
            ]
        with m.If(self.port.data.valid):
            m.d.sync += arrived.eq(arrived + 1)
            with m.Switch(arrived):
                for beat in range(beats):
                    with m.Case(beat):
                        m.d.sync += _kept(fetched, self.port.data.payload.data, beat)
        with m.If(fetched_taken):
            m.d.sync += [fetching.eq(0), arrived.eq(0)]

        # Loading: features at once or, with FENCE, when nothing before is under way; weights and parameters ahead.
        # A job that is LOAD_ONLY is through when it has loaded, and makes room for the next one to load.
        loading, job = self.loading, self.job
        flag = descriptor.Flag
        load_started, weights_given, params_given = Signal(), Signal(), Signal()
        quiet = Signal()
        m.d.comb += [
            quiet.eq(~job_valid & self.writes_done),
            self.load.eq(
                loading_valid & ~load_started & self.load_done & (~(loading.flags & flag.FENCE).any() | quiet)
            ),
            self.weights.payload.eq(loading),
            self.params.payload.eq(loading),
            self.weights.valid.eq(loading_valid & ~weights_given),
            self.params.valid.eq(loading_valid & ~params_given),
        ]
        with m.If(self.load):
            m.d.sync += load_started.eq(1)
        with m.If(self.weights.ready & self.weights.valid):
            m.d.sync += weights_given.eq(1)
        with m.If(self.params.ready & self.params.valid):
            m.d.sync += params_given.eq(1)

        # Computing.
        advance, settled, loaded = Signal(), Signal(2), Signal()
        load_only, gathered, computed = Signal(), Signal(), Signal()
        own_load, early = Signal(), Signal()
        loading_index, through = Signal(config.count_bits), self.jobs_done
        m.d.comb += [
            load_only.eq((loading.flags & flag.LOAD_ONLY).any()),
            early.eq((loading.flags & flag.LOAD).any() & (loading.load_chunk != 0) & ~load_only),
            loaded.eq(load_started & (self.load_done | early) & weights_given & params_given),
            gathered.eq(loading_valid & loaded & load_only),
            advance.eq(loading_valid & loaded & ~load_only & ~job_valid),
            self.arriving.eq(own_load & ~self.load_done),
            computed.eq(job_valid & (settled == 3) & self.compute_done & ~self.arriving),
            self.compute.eq(job_valid & (settled == 1)),
        ]
        m.d.sync += [settled.eq(Mux(settled == 3, 3, settled + 1)), through.eq(through + gathered + computed)]
        with m.If(~self.arriving):
            m.d.sync += [own_load.eq(0), self.weights_ahead.eq(0)]
        with m.Elif(self.weights.ready & self.weights.valid):
            m.d.sync += self.weights_ahead.eq(1)
        with m.If(computed):
            m.d.sync += job_valid.eq(0)
        with m.If(gathered):
            m.d.sync += [loading_valid.eq(0), loading_index.eq(loading_index + 1)]
        with m.If(advance):
            m.d.sync += [job.eq(loading), job_valid.eq(1), loading_valid.eq(0), settled.eq(0)]
            m.d.sync += own_load.eq(1)  # unless it is done, which `arriving` sees
            m.d.sync += [self.job_index.eq(loading_index), loading_index.eq(loading_index + 1)]
        m.d.comb += fetched_taken.eq(fetched_valid & ~loading_valid)
        without_array = (fetched.flags & flag.LOAD_ONLY).any()
        with m.If(fetched_taken):
            m.d.sync += [loading.eq(fetched), loading_valid.eq(1)]
            m.d.sync += [load_started.eq(0), weights_given.eq(without_array), params_given.eq(without_array)]

        with m.If(active & (through == self.jobs) & self.writes_done):
            m.d.comb += self.done.eq(1)
            m.d.sync += active.eq(0)
        m.d.comb += [self.clear.eq(self.start), self.waiting.eq(active & ~job_valid & ~self.done)]
        with m.If(self.start):
            m.d.sync += [active.eq(1), fetch_addr.eq(self.addr), to_fetch.eq(self.jobs), self.job_index.eq(0)]
            m.d.sync += [loading_index.eq(0), through.eq(0)]
        return m


def _kept(fetched: data.View, beat: Value, number: int) -> Iterator[Value]:
    """Assignments to `fetched` of what a beat holds of its fields."""
    begin, end = number * len(beat), (number + 1) * len(beat)
    for name, field in fetched.shape():
        at = 8 * descriptor.OFFSETS[name]
        low, high = max(at, begin), min(at + field.width, end)
        if low < high:
            yield fetched[name][low - at : high - at].eq(beat[low - begin : high - begin])
