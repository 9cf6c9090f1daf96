"""Stores the job's final output in an on-chip feature buffer, as the next job will read it."""

from __future__ import annotations

from amaranth.hdl import C, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw import descriptor
from hw.buffers import feature_write
from hw.config import Config
from hw.place import OutputPlace


class Store(wiring.Component):
    """Splits each output of LANES channels into feature words and addresses them; drops groups beyond `dst_groups`.

    Members
    -------
    start : In(1), job : In(descriptor.layout)
        Begin a job; `job` stays constant until the job's outputs have all been taken.
    input : In(stream of 8*LANES)
        Final outputs in the order output group, image, row, column.
    write : Out(stream of feature_write)
        Always accepted.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "job": In(descriptor.layout(config)),
                "input": In(stream.Signature(8 * config.lanes)),
                "write": Out(stream.Signature(feature_write(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, job = self._config, self.job
        place = OutputPlace(config, exact_log2(config.feature_words))
        m.submodules.place = place
        address = range(config.feature_words)
        m.d.comb += [
            place.start.eq(self.start),
            place.width.eq(job.pool_w),
            place.height.eq(job.pool_h),
            place.images.eq(job.images),
            place.base.eq(job.dst_base),
            place.plane.eq(job.dst_plane),
            place.image.eq(job.dst_image),
            place.pixel.eq(1),
            place.gap.eq(0),
            place.first_sub.eq(0),
        ]
        parts = max(1, config.lanes // config.vec)
        part = Signal(range(parts))
        word = Signal(address, reset_less=True)  # address of the current part, from the second on
        storing = (job.flags & descriptor.Flag.STORE).any()

        here = Signal(address)
        m.d.comb += here.eq(place.addr)
        if parts > 1:
            with m.If(part != 0):
                m.d.comb += here.eq(word)
        m.d.comb += [
            self.write.valid.eq(self.input.valid & storing & (place.group + part < job.dst_groups)),
            self.write.payload.addr.eq(here),
            self.input.ready.eq(part == parts - 1),
            place.advance.eq(self.input.valid & self.input.ready),
        ]
        if config.lanes >= config.vec:
            m.d.comb += [
                self.write.payload.data.eq(self.input.payload.word_select(part, 8 * config.vec)),
                self.write.payload.enable.eq(C(1, 1).replicate(config.vec)),
            ]
        else:
            copies = config.vec // config.lanes
            m.d.comb += [
                self.write.payload.data.eq(self.input.payload.replicate(copies)),
                self.write.payload.enable.eq(((1 << config.lanes) - 1) << (place.sub * config.lanes)),
            ]
        if parts > 1:
            with m.If(self.input.valid):
                m.d.sync += [part.eq(part + 1), word.eq(here + job.dst_plane)]
        return m
