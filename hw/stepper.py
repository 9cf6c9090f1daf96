"""The loop nest: walks a job's steps and issues one a cycle to the array, with its feature and weight addresses."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw import descriptor
from hw.array import step_flags
from hw.buffers import ring_pointer
from hw.config import Config


class Stepper(wiring.Component):
    """Issues the steps of a job in their order: output group, image, output row, output column, z, ky, kx.

    Of a job with a flag of `Flag.ONE`, the steps of the first output.

    Members
    -------
    start : In(1)
        Begin the job described by `job`, which stays constant until `done`.
    done : Out(1)
        Every step has been issued.
    valid : Out(1), flags : Out(step_flags)
        A step, one cycle after its addresses: aligned with what the buffers deliver.
    feature_addr : Out
    arriving : In(1), rows : In(extent_bits)
        The job's features are still being loaded; input rows that have arrived, of every channel group.
    weight_ptr, keep_ptr : Out, weight_ready : In(1)
        See WeightRing.
    clear : In(1)
        Forget the ring's contents (start of a launch).
    room : In(1)
        The output queue has room for one more output than is in flight.
    issued_last : Out(1)
        The last step of an output that will leave is issued in this cycle.
    params_available : In(1)
        Parameters of a group not yet issued have arrived.
    issued_group : Out(1)
        The first step of a group is issued in this cycle.
    busy : Out(1), starved : Out(1)
        A step is issued in this cycle; none is, for want of features, weights or parameters from memory.
    slot : Out(32), hold : In(1), hit : In(1), with `saboteur`
        Position in the job; wait; the step issued now carries a flip.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        members = {
            "start": In(1),
            "job": In(descriptor.layout(config)),
            "done": Out(1, init=1),
            "valid": Out(1),
            "flags": Out(step_flags(config)),
            "feature_addr": Out(range(config.feature_words)),
            "arriving": In(1),
            "rows": In(config.extent_bits),
            "weight_ptr": Out(ring_pointer(config)),
            "keep_ptr": Out(ring_pointer(config)),
            "weight_ready": In(1),
            "clear": In(1),
            "room": In(1),
            "issued_last": Out(1),
            "params_available": In(1),
            "issued_group": Out(1),
            "busy": Out(1),
            "starved": Out(1),
        }
        if config.saboteur:
            members |= {"slot": Out(32), "hold": In(1), "hit": In(1)}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, job = self._config, self.job
        address = range(config.feature_words)

        # Where the nest stands.
        kx, ky = Signal(8, reset_less=True), Signal(8, reset_less=True)
        z, group, image, ox, oy = (
            Signal(config.extent_bits, name=name, reset_less=True) for name in ("z", "group", "image", "ox", "oy")
        )
        last = {name: Signal(name=f"last_{name}") for name in ("kx", "ky", "z", "ox", "oy", "image", "group")}
        flag = descriptor.Flag
        one, continues, partial = Signal(), Signal(), Signal()
        m.d.comb += [
            one.eq((job.flags & flag.ONE).any()),
            continues.eq((job.flags & flag.CONTINUE).any()),
            partial.eq((job.flags & flag.PARTIAL).any()),
            last["kx"].eq(kx == job.kernel_w - 1),
            last["ky"].eq(ky == job.kernel_h - 1),
            last["z"].eq(z == job.groups_in - 1),
            last["ox"].eq((ox == job.out_w - 1) | one),
            last["oy"].eq((oy == job.out_h - 1) | one),
            last["image"].eq(image == job.images - 1),
            last["group"].eq(group == job.groups_out - 1),
        ]
        first_step, first_of_group, last_step = Signal(), Signal(), Signal()
        m.d.comb += [
            first_step.eq((kx == 0) & (ky == 0) & (z == 0)),
            first_of_group.eq(first_step & (ox == 0) & (oy == 0) & (image == 0)),
            last_step.eq(last["kx"] & last["ky"] & last["z"]),
        ]

        # The word address of the tap, kept incrementally: one running base per loop level. They wrap harmlessly:
        # a tap outside the input is not used.
        tap, row_of_taps, plane, pixel, row, picture = (
            Signal(address, name=f"{name}_addr", reset_less=True)
            for name in ("tap", "row_of_taps", "plane", "pixel", "row", "picture")
        )
        origin, row_step = Signal(address, reset_less=True), Signal(address, reset_less=True)
        next_row_of_taps, next_plane, next_pixel, next_row, next_picture, first_picture, next_group = (
            Signal(address, name=f"next_{name}")
            for name in ("row_of_taps", "plane", "pixel", "row", "picture", "first_picture", "group")
        )
        # Output groups read the same channel groups, `src_period` of them in a row.
        own_picture, sharing = Signal(address, reset_less=True), Signal(config.extent_bits, reset_less=True)
        last_sharing = Signal()
        m.d.comb += [
            next_row_of_taps.eq(row_of_taps + job.src_tap),
            next_plane.eq(plane + job.src_plane),
            next_pixel.eq(pixel + job.stride_x),
            next_row.eq(row + row_step),
            next_picture.eq(picture + job.src_image),
            first_picture.eq(job.src_base - origin),
            last_sharing.eq(sharing == job.src_period - 1),
            next_group.eq(own_picture + Mux(last_sharing, job.src_step, 0)),
        ]
        # Row and column of the tap in the input, for zero padding: beyond it by 8 bits of padding and kernel.
        coordinate = signed(max(config.extent_bits, 8) + 2)
        top, left, y, x = (Signal(coordinate, name=name, reset_less=True) for name in ("top", "left", "y", "x"))
        inside = Signal()
        m.d.comb += inside.eq((y.as_unsigned() < job.in_h) & (x.as_unsigned() < job.in_w))

        # Weight words: a group's words are read again for every output, and given up during its last. A stream of
        # weights has a copy for every output.
        group_ptr = Signal(ring_pointer(config), reset_less=True)
        last_use = Signal()
        m.d.comb += [
            last_use.eq((last["ox"] & last["oy"] & last["image"]) | (job.flags & flag.STREAM).any()),
            self.keep_ptr.eq(Mux(last_use & ~self.done, self.weight_ptr, group_ptr)),
        ]

        # While features are loaded: all rows that an output reads have arrived. (A window that reaches below the last
        # row waits for the end.)
        fed = Signal()
        m.d.comb += fed.eq(~self.arriving | (top + job.kernel_h <= self.rows))

        running, priming, ready = Signal(), Signal(), Signal()
        m.d.comb += ready.eq(
            running & fed & self.weight_ready & (~first_of_group | self.params_available) & (~last_step | self.room)
        )
        step = Signal()
        m.d.comb += step.eq(ready & ~self.hold if config.saboteur else ready)
        m.d.comb += [
            self.busy.eq(step),
            self.starved.eq(running & (~fed | ~self.weight_ready | (first_of_group & ~self.params_available))),
            self.issued_last.eq(step & last_step & ~partial),
            self.issued_group.eq(step & first_of_group),
            self.feature_addr.eq(tap),
        ]
        m.d.sync += [
            self.valid.eq(step),
            self.flags.first.eq(first_step & ~continues),
            self.flags.last.eq(last_step & ~partial),
            self.flags.group.eq(first_of_group),
            self.flags.padding.eq(~inside),
        ]

        if config.saboteur:
            m.d.sync += self.flags.flip.eq(self.hit)
        if config.overclock:
            m.d.sync += self.flags.row.eq(first_step & (ox == 0))

        with m.If(step):
            m.d.sync += [kx.eq(kx + 1), tap.eq(tap + 1), x.eq(x + 1)]
            m.d.sync += self.weight_ptr.eq(self.weight_ptr + 1)
            if config.saboteur:
                m.d.sync += self.slot.eq(self.slot + 1)
            with m.If(last["kx"]):
                m.d.sync += [kx.eq(0), x.eq(left), ky.eq(ky + 1), y.eq(y + 1)]
                m.d.sync += Cat(tap, row_of_taps).eq(next_row_of_taps.replicate(2))
                with m.If(last["ky"]):
                    m.d.sync += [ky.eq(0), y.eq(top), z.eq(z + 1)]
                    m.d.sync += Cat(tap, row_of_taps, plane).eq(next_plane.replicate(3))
            with m.If(last_step):
                m.d.sync += [z.eq(0), ox.eq(ox + 1), left.eq(left + job.stride_x), x.eq(left + job.stride_x)]
                m.d.sync += Cat(tap, row_of_taps, plane, pixel).eq(next_pixel.replicate(4))
                with m.If(last_use):
                    m.d.sync += group_ptr.eq(self.weight_ptr + 1)
                with m.Else():
                    m.d.sync += self.weight_ptr.eq(group_ptr)
                with m.If(last["ox"]):
                    m.d.sync += [ox.eq(0), oy.eq(oy + 1)]
                    m.d.sync += [left.eq(-job.pad_x), x.eq(-job.pad_x)]
                    m.d.sync += [top.eq(top + job.stride_y), y.eq(top + job.stride_y)]
                    m.d.sync += Cat(tap, row_of_taps, plane, pixel, row).eq(next_row.replicate(5))
                    with m.If(last["oy"]):
                        m.d.sync += [oy.eq(0), image.eq(image + 1), top.eq(-job.pad_y), y.eq(-job.pad_y)]
                        m.d.sync += Cat(tap, row_of_taps, plane, pixel, row, picture).eq(next_picture.replicate(6))
                        with m.If(last["image"]):
                            m.d.sync += [image.eq(0), group.eq(group + 1)]
                            m.d.sync += [sharing.eq(Mux(last_sharing, 0, sharing + 1)), own_picture.eq(next_group)]
                            m.d.sync += Cat(tap, row_of_taps, plane, pixel, row, picture).eq(next_group.replicate(6))
                            with m.If(last["group"]):
                                m.d.sync += [running.eq(0), self.done.eq(1)]

        # Two cycles before the first step: the products that the running bases need, then the bases.
        with m.If(self.start):
            m.d.sync += [
                self.done.eq(0),
                priming.eq(1),
                origin.eq(job.in_w * job.pad_y + job.pad_x),
                row_step.eq(job.in_w * job.stride_y),
            ]
        with m.If(priming):
            m.d.sync += [priming.eq(0), running.eq(1)]
            m.d.sync += [kx.eq(0), ky.eq(0), z.eq(0), ox.eq(0), oy.eq(0), image.eq(0), group.eq(0)]
            m.d.sync += Cat(tap, row_of_taps, plane, pixel, row, picture).eq(first_picture.replicate(6))
            m.d.sync += [own_picture.eq(first_picture), sharing.eq(0)]
            m.d.sync += [left.eq(-job.pad_x), x.eq(-job.pad_x), top.eq(-job.pad_y), y.eq(-job.pad_y)]
            if config.saboteur:
                m.d.sync += self.slot.eq(0)
        with m.If(self.clear):
            m.d.sync += [self.weight_ptr.eq(0), group_ptr.eq(0)]
        return m
