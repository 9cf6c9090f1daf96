"""A stream to two sinks that take each element together."""

from __future__ import annotations

from amaranth.hdl import Module, ShapeLike
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out


class Fork(wiring.Component):
    """Passes each element of `input` to both outputs in the same cycle.

    A sink's `ready` may depend on its own `valid` for at most one of the two outputs.
    """

    def __init__(self, shape: ShapeLike) -> None:
        super().__init__(
            {
                "input": In(stream.Signature(shape)),
                "first": Out(stream.Signature(shape)),
                "second": Out(stream.Signature(shape)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += [
            self.first.payload.eq(self.input.payload),
            self.second.payload.eq(self.input.payload),
            self.first.valid.eq(self.input.valid & self.second.ready),
            self.second.valid.eq(self.input.valid & self.first.ready),
            self.input.ready.eq(self.first.ready & self.second.ready),
        ]
        return m
