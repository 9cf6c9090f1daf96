"""The MAC array: LANES lanes that share one feature word, and a requantiser behind each."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from hw.config import Config
from hw.lane import ACCUMULATOR_BITS, FEATURE_BITS, Lane, sum_delay
from hw.overclocked import LoadPort, OverclockedLanes
from hw.requantise import Requantise, requantise_delay


def group_params(config: Config) -> data.ArrayLayout:
    """Layout of one output group's parameters: bias and shift of each lane."""
    bias = 8 if config.arithmetic == "pipecnn" else ACCUMULATOR_BITS
    return data.ArrayLayout(data.StructLayout({"bias": signed(bias), "shift": 5}), config.lanes)


def step_flags(config: Config) -> data.StructLayout:
    """Layout of what travels with a step through the pipeline."""
    flags = {
        "first": 1,  # first step of an output
        "last": 1,  # last step of an output
        "group": 1,  # first step of an output group: take its parameters
        "padding": 1,  # the tap lies outside the input: its features are zero
    }
    if config.saboteur:
        flags["flip"] = 1  # a fault hits the accumulators after this step
    if config.overclock:
        flags["row"] = 1  # first step of an output row: operands before it count as zero
    return data.StructLayout(flags)


class MacArray(wiring.Component):
    """Executes steps; delivers LANES requantised outputs after each output's last step.

    There is no back-pressure inside: the stepper issues only what the output queue has room for.

    Attributes
    ----------
    delay : int
        Cycles from a step's operands at the ports to its requantised output (for a last step).

    Members
    -------
    valid : In(1), flags : In(step_flags)
        A step; its operands are at `features`, `weights` in the same cycle.
    features : In(8*VEC), weights : In(8*LANES*VEC)
    relu : In(1), upper : In(7)
        Constant within a job.
    params : In(group_params), params_taken : Out(1)
        Parameters of the next output group, and the cycle in which they are taken.
    output_valid : Out(1), output : Out(8*LANES)
    flips : In(32*LANES), flips_taken : Out(1), with `saboteur`
        Masks of the next step flagged `flip`.
    load : In(LoadPort), with `overclock`
    probe_* : Out, with `probe`
        See docs/architecture.md.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._sum_delay = 1 + sum_delay(config.vec)  # operand register, then the lane
        self._pipecnn = config.arithmetic == "pipecnn"
        self._requantise_delay = requantise_delay(pipecnn=self._pipecnn)
        self.delay = self._sum_delay + 1 + self._requantise_delay
        members = {
            "valid": In(1),
            "flags": In(step_flags(config)),
            "features": In(8 * config.vec),
            "weights": In(8 * config.lanes * config.vec),
            "relu": In(1),
            "upper": In(7),
            "params": In(group_params(config)),
            "params_taken": Out(1),
            "output_valid": Out(1),
            "output": Out(8 * config.lanes),
        }
        if config.saboteur:
            members |= {"flips": In(ACCUMULATOR_BITS * config.lanes), "flips_taken": Out(1)}
        if config.overclock:
            members["load"] = In(LoadPort())
        if config.probe:
            members |= {
                "probe_step_valid": Out(1),
                "probe_step_features": Out(8 * config.vec),
                "probe_step_weights": Out(8 * config.lanes * config.vec),
                "probe_acc_valid": Out(1),
                "probe_acc": Out(ACCUMULATOR_BITS * config.lanes),
            }
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config

        # Operand registers: padding is zeroed here.
        features = Signal(8 * config.vec, reset_less=True)
        weights = Signal(8 * config.lanes * config.vec, reset_less=True)
        m.d.sync += [features.eq(Mux(self.flags.padding, 0, self.features)), weights.eq(self.weights)]

        # The multipliers' feature inputs, which all lanes share (their weight inputs are in the lanes).
        multiplicands = Signal(data.ArrayLayout(FEATURE_BITS, config.vec), reset_less=True)
        for index in range(config.vec):
            feature = features.word_select(index, 8)
            m.d.sync += multiplicands[index].eq(Cat(feature, Mux(feature[7], (1 << (FEATURE_BITS - 8)) - 1, 0)))

        # The step's flags, delayed to meet its sum; [0] is aligned with the operand registers.
        valid = Signal(self._sum_delay)
        flags = [Signal(step_flags(config), name=f"flags_{i}", reset_less=True) for i in range(self._sum_delay)]
        m.d.sync += valid.eq(Cat(self.valid, valid))
        m.d.sync += flags[0].eq(self.flags)
        m.d.sync += [later.eq(earlier) for earlier, later in zip(flags, flags[1:], strict=False)]

        # Parameters are taken one cycle before the sum, so that they come from registers beside the accumulators.
        params = Signal(group_params(config), reset_less=True)
        m.d.comb += self.params_taken.eq(valid[-2] & flags[-2].group)
        with m.If(self.params_taken):
            m.d.sync += params.eq(self.params)

        accumulate, at_sum = valid[-1], flags[-1]
        output_valid = Signal(1 + self._requantise_delay)
        m.d.sync += output_valid.eq(Cat(accumulate & at_sum.last, output_valid))
        m.d.comb += self.output_valid.eq(output_valid[-1])
        if config.saboteur:
            m.d.comb += self.flips_taken.eq(accumulate & at_sum.flip)

        capture = None
        if config.overclock:
            m.submodules.lanes = capture = self._capture_lanes(m, multiplicands, weights, params, valid, flags)
        for index in range(config.lanes):
            requantise = Requantise(pipecnn=self._pipecnn)
            if capture is None:
                lane = Lane(config.vec, saboteur=config.saboteur)
                m.submodules[f"lane_{index}"] = lane
                accumulator = lane.accumulator
            else:
                accumulator = capture.accumulators.word_select(index, ACCUMULATOR_BITS)
            m.submodules[f"requantise_{index}"] = requantise
            shift = Signal(5, name=f"shift_{index}", reset_less=True)
            with m.If(accumulate):
                m.d.sync += shift.eq(params[index].shift)
            if capture is None:
                m.d.comb += [
                    lane.features.eq(multiplicands.as_value()),
                    lane.weights.eq(weights.word_select(index, 8 * config.vec)),
                    lane.bias.eq(0 if self._pipecnn else params[index].bias),
                    lane.accumulate.eq(accumulate),
                    lane.first.eq(at_sum.first),
                ]
            m.d.comb += [
                requantise.accumulator.eq(accumulator),
                requantise.shift.eq(shift),
                requantise.valid.eq(output_valid),
                requantise.relu.eq(self.relu),
                requantise.upper.eq(self.upper),
                self.output.word_select(index, 8).eq(requantise.result),
            ]
            if self._pipecnn:
                bias = Signal(signed(8), name=f"bias_{index}", reset_less=True)
                with m.If(accumulate):
                    m.d.sync += bias.eq(params[index].bias)
                m.d.comb += requantise.bias.eq(bias)
            if config.saboteur and capture is None:
                mask = self.flips.word_select(index, ACCUMULATOR_BITS)
                m.d.comb += lane.flip.eq(Mux(self.flips_taken, mask, Const(0)))
            if config.probe:
                m.d.comb += self.probe_acc.word_select(index, ACCUMULATOR_BITS).eq(accumulator)
        if config.probe:
            m.d.sync += self.probe_acc_valid.eq(accumulate)
            m.d.comb += [
                self.probe_step_valid.eq(valid[0]),
                self.probe_step_features.eq(features),
                self.probe_step_weights.eq(weights),
            ]
        return m

    def _capture_lanes(
        self,
        m: Module,
        multiplicands: data.View,
        weights: Signal,
        params: data.View,
        valid: Signal,
        flags: list[data.View],
    ) -> OverclockedLanes:
        """The lanes of a build with overclocking. Their banks: the tree's levels, the accumulators last."""
        config = self._config
        lanes = OverclockedLanes(config)
        banks = range(self._sum_delay - len(lanes.capture), self._sum_delay)
        m.d.comb += [
            lanes.features.eq(multiplicands.as_value()),
            lanes.weights.eq(weights),
            lanes.bias.eq(0 if self._pipecnn else Cat(record.bias for record in params)),
            lanes.capture.eq(Cat(valid[at] for at in banks)),
            # The step behind: it is in the bank in the next cycle.
            lanes.restart.eq(Cat(valid[at - 1] & flags[at - 1].row for at in banks)),
            lanes.first.eq(flags[-1].first),
            lanes.fresh.eq(flags[-1].row),
        ]
        connect(m, flipped(self.load), lanes.load)
        if config.saboteur:
            m.d.comb += lanes.flips.eq(Mux(self.flips_taken, self.flips, 0))
        return lanes
