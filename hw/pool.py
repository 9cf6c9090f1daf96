"""Max pooling on the stream of outputs: a window of up to 3x3, with a line buffer of pooled columns."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw import descriptor
from hw.config import Config

LOWEST = 0x80
"""-128: the identity of max, and what padding counts as."""


class Pool(wiring.Component):
    """Pools each (output group, image) plane of LANES channels; without POOL in the job, passes it through.

    Walks the padded plane a position a cycle. Positions outside the plane cost a cycle and take no input; rows and
    columns beyond the last window are taken and dropped.

    Members
    -------
    start : In(1), job : In(descriptor.layout)
        Begin a job; `job` stays constant until `done`.
    done : Out(1)
        The job's last position has been walked, and its last output taken.
    input, output : streams of 8*LANES bits
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        pixel = stream.Signature(8 * config.lanes)
        super().__init__(
            {
                "start": In(1),
                "job": In(descriptor.layout(config)),
                "done": Out(1),
                "input": In(pixel),
                "output": Out(pixel),
            }
        )

    def _max(self, *values: Signal) -> Cat:
        """Signed maximum, lane by lane."""
        lanes = []
        for index in range(self._config.lanes):
            best = values[0].word_select(index, 8).as_signed()
            for value in values[1:]:
                other = value.word_select(index, 8).as_signed()
                best = Mux(best > other, best, other)
            lanes.append(best[:8])
        return Cat(lanes)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, job = self._config, self.job
        bits = 8 * config.lanes
        lowest = C(LOWEST, 8).replicate(config.lanes)
        kernel, stride, pad = job.pool_kernel[:2], job.pool_stride[:2], job.pool_pad[:2]
        pooling = (job.flags & descriptor.Flag.POOL).any()

        walking = Signal()
        x, y, end_x, end_y = (
            Signal(config.extent_bits + 1, name=name, reset_less=True) for name in ("x", "y", "end_x", "end_y")
        )
        # Of the next window to finish; and what is left to walk.
        column, line, images, groups = (
            Signal(config.extent_bits, name=name, reset_less=True) for name in ("column", "line", "images", "groups")
        )
        wait_x, wait_y = Signal(2, reset_less=True), Signal(2, reset_less=True)  # positions until it does
        real = Signal()
        m.d.comb += real.eq((x >= pad) & (x - pad < job.out_w) & (y >= pad) & (y - pad < job.out_h))

        # Two register stages: the window's row maximum, then the maximum over rows. They advance together.
        advance, take = Signal(), Signal()
        m.d.comb += advance.eq(walking & pooling & (self.output.ready | ~self.output.valid))
        m.d.comb += take.eq(advance & (~real | self.input.valid))

        value, before, before2 = Signal(bits), Signal(bits, reset_less=True), Signal(bits, reset_less=True)
        m.d.comb += value.eq(Mux(real, self.input.payload, lowest))
        finishes_x, finishes_y = Signal(), Signal()
        m.d.comb += [
            finishes_x.eq((wait_x == 0) & (column < job.pool_w)),
            finishes_y.eq((wait_y == 0) & (line < job.pool_h)),
        ]

        across = Signal(bits, reset_less=True)
        across_valid, across_last = Signal(), Signal(reset_less=True)
        across_column = Signal(range(config.pool_columns), reset_less=True)

        m.submodules.lines = lines = Memory(shape=2 * bits, depth=config.pool_columns, init=[])
        read = lines.read_port()
        write = lines.write_port()
        above, above2 = read.data[:bits], read.data[bits:]
        m.d.comb += [
            read.addr.eq(column),
            read.en.eq(take),
            write.addr.eq(across_column),
            write.data.eq(Cat(across, above)),
        ]

        with m.If(pooling):
            m.d.comb += self.input.ready.eq(take & real)
        with m.Else():
            m.d.comb += [
                self.output.valid.eq(self.input.valid & walking),
                self.output.payload.eq(self.input.payload),
                self.input.ready.eq(self.output.ready & walking),
            ]

        pooled, pooled_valid = Signal(bits, reset_less=True), Signal()
        with m.If(pooling):
            m.d.comb += [self.output.valid.eq(pooled_valid), self.output.payload.eq(pooled)]
        with m.If(take):
            m.d.sync += [before.eq(value), before2.eq(before)]
            with m.If(finishes_x):
                m.d.sync += across.eq(
                    self._max(value, Mux(kernel > 1, before, lowest), Mux(kernel > 2, before2, lowest))
                )
                m.d.sync += [across_column.eq(column), across_last.eq(finishes_y)]
        with m.If(self.output.ready | ~pooled_valid):
            # A finished row of a window goes on as soon as the output is free, whether or not a new position came.
            m.d.sync += [across_valid.eq(take & finishes_x), pooled_valid.eq(across_valid & across_last)]
            m.d.comb += write.en.eq(across_valid)
            with m.If(across_valid & across_last):
                m.d.sync += pooled.eq(
                    self._max(across, Mux(kernel > 1, above, lowest), Mux(kernel > 2, above2, lowest))
                )

        # The walk. Without pooling it only counts the pixels that pass.
        moves = Signal()
        m.d.comb += moves.eq(Mux(pooling, take, self.output.valid & self.output.ready))
        last_x, last_y = Signal(), Signal()
        m.d.comb += [last_x.eq(x == end_x), last_y.eq(y == end_y)]
        with m.If(moves):
            m.d.sync += x.eq(x + 1)
            m.d.sync += wait_x.eq(wait_x - 1)
            with m.If(wait_x == 0):
                m.d.sync += [wait_x.eq(stride - 1), column.eq(column + 1)]
            with m.If(last_x):
                m.d.sync += [x.eq(0), y.eq(y + 1), wait_x.eq(kernel - 1), column.eq(0), wait_y.eq(wait_y - 1)]
                with m.If(wait_y == 0):
                    m.d.sync += [wait_y.eq(stride - 1), line.eq(line + 1)]
                with m.If(last_y):
                    m.d.sync += [y.eq(0), wait_y.eq(kernel - 1), line.eq(0), images.eq(images - 1)]
                    with m.If(images == 1):
                        m.d.sync += [images.eq(job.images), groups.eq(groups - 1)]
                        with m.If(groups == 1):
                            m.d.sync += walking.eq(0)

        with m.If(self.start):
            m.d.sync += [walking.eq(1), x.eq(0), y.eq(0), column.eq(0), line.eq(0)]
            m.d.sync += [wait_x.eq(kernel - 1), wait_y.eq(kernel - 1), images.eq(job.images), groups.eq(job.groups_out)]
            # The walk ends with the plane or with the last window, whichever is later.
            for end, extent, windows in ((end_x, job.out_w, job.pool_w), (end_y, job.out_h, job.pool_h)):
                plane = extent + pad - 1
                before = windows - 1
                steps = Mux(stride[0], before, 0) + (Mux(stride[1], before, 0) << 1)  # a multiplier saved
                window = steps + kernel - 1
                m.d.sync += end.eq(Mux(pooling & (window > plane), window, Mux(pooling, plane, extent - 1)))
        m.d.comb += self.done.eq(~walking & ~across_valid & ~pooled_valid)
        return m
