"""The lanes of an array between shift registers: what is placed and routed for delays.

The lanes are the accelerator's own (`hw.lane`). Each has the registers before it to itself, as a broadcast through a
tree of registers gives it: one register for all lanes of a chip would be slower than any adder. The requantisers are
not there: slower paths of theirs would decide where the placer puts the adders; one is routed by itself, for its own
limit. Ports are fed from one long shift register and folded into another, so that three pads suffice, nothing is
optimised away, and every port comes from or goes to a register, as in the accelerator.
"""

from __future__ import annotations

import hashlib

from amaranth.back import rtlil
from amaranth.hdl import Cat, ClockDomain, Elaboratable, Module, Mux, Signal, Value

from hw.config import Config
from hw.lane import ACCUMULATOR_BITS, FEATURE_BITS, Lane
from hw.requantise import Requantise

TOP = "top"
CLOCK, INPUT, OUTPUT = "clk", "serial_in", "serial_out"


class _Pads(Elaboratable):
    """Pads `clk`, `serial_in`, `serial_out` around a circuit."""

    def __init__(self) -> None:
        self.clk, self.serial_in, self.serial_out = Signal(name=CLOCK), Signal(name=INPUT), Signal(name=OUTPUT)

    def _domain(self) -> Module:
        m = Module()
        m.domains.sync = domain = ClockDomain(reset_less=True)
        m.d.comb += domain.clk.eq(self.clk)
        return m

    def _surround(self, m: Module, inputs: Value, outputs: Value) -> None:
        """Feed `inputs` from a shift register, and fold `outputs` into another."""
        feed = Signal(len(inputs), name="feed")
        fold = Signal(len(outputs), name="fold")
        m.d.sync += [feed.eq(Cat(self.serial_in, feed)), fold.eq(Cat(self.serial_in, fold) ^ outputs)]
        m.d.comb += [inputs.eq(feed), self.serial_out.eq(fold[-1])]

    def convert(self) -> str:
        """The circuit as RTLIL."""
        ports = [self.clk, self.serial_in, self.serial_out]
        return str(rtlil.convert(self, name=TOP, ports=ports, emit_src=False))


class LanesHarness(_Pads):
    """`lanes` lanes of `vec` products, each with operand, flag and parameter registers of its own."""

    def __init__(self, lanes: int, vec: int) -> None:
        super().__init__()
        self._lanes, self._vec = lanes, vec

    def elaborate(self, platform: object) -> Module:
        m = self._domain()
        inputs: list[Value] = []
        outputs: list[Value] = []
        for index in range(self._lanes):
            m.submodules[f"lane_{index}"] = lane = Lane(self._vec)
            for vec in range(self._vec):
                features = Signal(8, name=f"features_{index}_{vec}")
                multiplicand = Signal(FEATURE_BITS, name=f"multiplicand_{index}_{vec}")
                sign = Mux(features[7], (1 << (FEATURE_BITS - 8)) - 1, 0)
                m.d.sync += multiplicand.eq(Cat(features, sign))
                m.d.comb += lane.features[vec].eq(multiplicand.as_signed())
                self._operand(m, features, inputs)
                weights = Signal(8, name=f"weights_{index}_{vec}")
                m.d.comb += lane.weights[vec].eq(weights.as_signed())
                self._operand(m, weights, inputs)
            accumulate, first, taken = (
                Signal(name=f"{name}_{index}") for name in ("accumulate", "first", "parameters_taken")
            )
            for flag in (accumulate, first, taken):
                self._operand(m, flag, inputs)
            bias = Signal(ACCUMULATOR_BITS, name=f"bias_{index}")
            next_bias = Signal(ACCUMULATOR_BITS, name=f"next_bias_{index}")
            inputs.append(next_bias)
            with m.If(taken):
                m.d.sync += bias.eq(next_bias)
            m.d.comb += [lane.bias.eq(bias), lane.accumulate.eq(accumulate), lane.first.eq(first)]
            outputs.append(lane.accumulator)
        self._surround(m, Cat(inputs), Cat(outputs))
        return m

    @staticmethod
    def _operand(m: Module, register: Signal, inputs: list[Value]) -> None:
        """Let a register take a value from outside every cycle."""
        value = Signal(len(register), name=f"{register.name}_in")
        m.d.sync += register.eq(value)
        inputs.append(value)


class RequantiserHarness(_Pads):
    """One requantiser, whose inputs come from registers."""

    def elaborate(self, platform: object) -> Module:
        m = self._domain()
        m.submodules.requantise = requantise = Requantise()
        inputs = Cat(requantise.accumulator, requantise.shift, requantise.valid, requantise.relu, requantise.upper)
        self._surround(m, inputs, requantise.result)
        return m


def lanes_source(lanes: int, vec: int) -> str:
    """RTLIL of the lanes and what is around them.

    Raises
    ------
    ConfigError
        If the accelerator has no such array.
    """
    # Buffers and port do not reach into the lanes; they need only be legal.
    Config(lanes=lanes, vec=vec, port_bits=max(32, 8 * vec))
    return LanesHarness(lanes, vec).convert()


def requantiser_source() -> str:
    """RTLIL of a requantiser and what is around it."""
    return RequantiserHarness().convert()


def source_hash(lanes: int, vec: int) -> str:
    """SHA-256 of all that is routed for a table: the lanes and the requantiser, with what is around them."""
    return hashlib.sha256((lanes_source(lanes, vec) + requantiser_source()).encode()).hexdigest()
