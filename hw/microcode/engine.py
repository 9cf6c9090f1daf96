"""The engine: executes the microprogram on its registers, and has memory, buffers and array do what it says."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from hw import axi
from hw.config import Config
from hw.microcode.arithmetic import REGISTER_BITS, Arithmetic
from hw.microcode.instructions import LAYOUT, OPERAND_BITS, Action, Condition, Mode, Op, Source, Target
from hw.microcode.mac import TurnMac
from hw.microcode.program import WORD_BYTES, assemble


class Engine(wiring.Component):
    """All of an accelerator but its control port.

    An instruction takes two cycles: its register is read, then it is executed. `GO` waits for what it does.

    Members
    -------
    start : In(1), descriptors : In(address_bits), jobs : In(count_bits)
        Begin a launch.
    done : Out(1)
        One cycle: every job is through, and every write is acknowledged.
    ar, r, aw, w, b
        The memory port. A step's weights are a burst; all else is words.
    step : Out(1)
        The array executes a step's last products in this cycle.
    waiting : Out(1)
        The array waits for memory.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "descriptors": In(config.address_bits),
                "jobs": In(config.count_bits),
                "done": Out(1),
                **axi.master(config),
                "step": Out(1),
                "waiting": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        bits, lanes, vec = REGISTER_BITS, config.lanes, config.vec
        assembler = assemble(config)
        words = assembler.words()

        # Fetch: the program's memory holds the instruction at its output until the next one is known.
        m.submodules.program = program = Memory(shape=16, depth=1 << ceil_log2(len(words)), init=words)
        m.submodules.registers = registers = Memory(shape=bits, depth=1 << ceil_log2(assembler.used), init=[])
        fetch = program.read_port()
        read, write = registers.read_port(), registers.write_port()
        now = data.View(LAYOUT, fetch.data)
        running, execute, complete = Signal(), Signal(), Signal()
        at, following = Signal(OPERAND_BITS), Signal(OPERAND_BITS)
        acc, index, carry = Signal(bits), Signal(len(read.addr)), Signal()
        m.d.comb += [
            fetch.addr.eq(Mux(running, following, 0)[: len(fetch.addr)]),
            fetch.en.eq(~running | complete),
            read.addr.eq(now.operand + Mux(now.mode == Mode.INDEXED, index, 0)),
            read.en.eq(running & ~execute),
            self.done.eq(complete & (now.op == Op.GO) & (now.operand == Action.FINISH)),
        ]
        with m.If(running):
            m.d.sync += execute.eq(~execute | ~complete)
        with m.If(complete):
            m.d.sync += at.eq(following)
        with m.If(self.start):
            m.d.sync += [running.eq(1), execute.eq(0), at.eq(0)]
        with m.If(self.done):
            m.d.sync += running.eq(0)

        taken = Signal()
        with m.Switch(now.op):
            with m.Case(Op.JUMP):
                m.d.comb += taken.eq(1)
            with m.Case(Op.JUMP_IF):
                with m.Switch(now.mode):
                    with m.Case(Condition.ZERO):
                        m.d.comb += taken.eq(acc == 0)
                    with m.Case(Condition.NOT_ZERO):
                        m.d.comb += taken.eq(acc != 0)
                    with m.Case(Condition.NEGATIVE):
                        m.d.comb += taken.eq(acc[-1])
                    with m.Case(Condition.CARRY):
                        m.d.comb += taken.eq(carry)
        m.d.comb += following.eq(Mux(taken, now.operand, at + 1))
        with m.If(now.op == Op.RETURN):
            m.d.comb += following.eq(read.data)

        # Values.
        m.submodules.mac = mac = TurnMac(config)
        output = Signal(8 * lanes, reset_less=True)
        word = self.r.payload.data
        outside, value = Signal(bits), Signal(bits)
        with m.Switch(now.operand[:4]):
            for source, wanted in (
                (Source.MEMORY, word),
                *((Source.BYTE_0 + byte, word.word_select(byte, 8)) for byte in range(WORD_BYTES)),
                (Source.HALF_0, word[:16]),
                (Source.HALF_1, word[16:]),
                (Source.OUTPUT, output),
                (Source.SUM, mac.sum),
                (Source.DESCRIPTORS, self.descriptors),
                (Source.JOBS, self.jobs),
            ):
                with m.Case(source):
                    m.d.comb += outside.eq(wanted)
        with m.Switch(now.mode):
            with m.Case(Mode.REGISTER, Mode.INDEXED):
                m.d.comb += value.eq(read.data)
            with m.Case(Mode.CONSTANT):
                m.d.comb += value.eq(now.operand)
            with m.Case(Mode.OUTSIDE):
                m.d.comb += value.eq(outside)

        m.submodules.arithmetic = arithmetic = Arithmetic(lanes)
        of_sum = (now.mode == Mode.OUTSIDE) & (now.operand[:4] == Source.SUM)
        m.d.comb += [
            arithmetic.op.eq(now.op),
            arithmetic.acc.eq(acc),
            arithmetic.value.eq(value),
            arithmetic.up.eq(of_sum & mac.up),
            write.addr.eq(now.operand + Mux(now.mode == Mode.INDEXED, index, 0)),
            write.data.eq(arithmetic.result),
            write.en.eq(running & execute & (now.op >= Op.STORE) & (now.op < Op.JUMP)),
        ]
        with m.If(running & execute & (now.op < Op.JUMP)):
            m.d.sync += acc.eq(arithmetic.result)
            with m.If(now.op == Op.SUB):
                m.d.sync += carry.eq(arithmetic.carry)

        # What else there is to set.
        word_bits = exact_log2(config.feature_words)
        feature, stride = Signal(word_bits, reset_less=True), Signal(word_bits, reset_less=True)
        step_bytes = lanes * WORD_BYTES
        weight = Signal(config.address_bits - exact_log2(step_bytes), reset_less=True)  # the next step's
        from_b, to_b = Signal(), Signal()
        setting = Signal(Target)
        with m.If(running & execute & (now.op == Op.SET)):
            m.d.comb += setting.eq(now.operand)
        targets = {target: setting[exact_log2(int(target))] for target in Target}
        skipped = Signal.like(weight)
        m.d.comb += skipped.eq(weight + Mux(targets[Target.SKIP], acc, 1))
        for target, assignments in (
            (Target.INDEX, [index.eq(acc)]),
            (Target.FEATURE, [feature.eq(acc)]),
            (Target.STRIDE, [stride.eq(acc)]),
            (Target.WEIGHT, [weight.eq(acc[exact_log2(step_bytes) :])]),
            (Target.SKIP, [weight.eq(skipped)]),
            (Target.PUSH, [output.eq(Cat(output[8:], _saturated(acc)))]),
            (Target.OUTPUT, [output.eq(acc)]),
            (Target.BUFFERS, [from_b.eq(acc[0]), to_b.eq(acc[1])]),
        ):
            with m.If(targets[target]):
                m.d.sync += assignments

        # Actions. Some take their time: `begun` in their first cycle, `asked` when memory has taken the request.
        doing = Signal(Action)
        begun, asked, sent, finished = Signal(), Signal(), Signal(), Signal()
        with m.If(running & execute & (now.op == Op.GO)):
            m.d.comb += doing.eq(now.operand)
        acts = {action: doing[exact_log2(int(action))] for action in Action}
        slow = acts[Action.READ] | acts[Action.WRITE] | acts[Action.STEPS] | acts[Action.SHIFT]
        m.d.comb += complete.eq(running & execute & (~slow | finished))
        m.d.sync += begun.eq(slow & ~finished)
        with m.If(complete):
            m.d.sync += [asked.eq(0), sent.eq(0)]

        # Memory. A word that was read stays where it is until the next one is wanted, or the launch ends.
        requests = Signal(config.extent_bits, reset_less=True)  # steps whose weights are to be asked for
        answers = Signal(config.extent_bits + exact_log2(lanes), reset_less=True)  # words to come
        stepping = Signal()
        m.d.comb += [
            stepping.eq(acts[Action.STEPS] & begun),
            self.ar.payload.addr.eq(Mux(stepping, weight << exact_log2(step_bytes), acc & ~(WORD_BYTES - 1))),
            self.ar.payload.len.eq(Mux(stepping, lanes - 1, 0)),
            self.ar.valid.eq(begun & Mux(acts[Action.STEPS], requests != 0, acts[Action.READ] & ~asked)),
            self.r.ready.eq(stepping | ((acts[Action.READ] | acts[Action.STEPS]) & ~begun) | acts[Action.FINISH]),
            self.aw.payload.addr.eq(acc & ~(WORD_BYTES - 1)),
            self.aw.valid.eq(acts[Action.WRITE] & ~asked),
            self.w.payload.data.eq(output.replicate(vec // lanes)),
            self.w.payload.strb.eq(_part(acc, lanes)),
            self.w.payload.last.eq(1),
            self.w.valid.eq(acts[Action.WRITE] & asked & ~sent),
        ]
        with m.If((self.ar.valid & self.ar.ready) | (self.aw.valid & self.aw.ready)):
            m.d.sync += asked.eq(1)
        with m.If(self.w.valid & self.w.ready):
            m.d.sync += sent.eq(1)

        # Buffers, as one memory.
        m.submodules.buffers = buffers = Memory(shape=8 * vec, depth=2 * config.feature_words, init=[])
        taking, storing = buffers.read_port(), buffers.write_port(granularity=8 * lanes)
        ahead = Signal.like(feature)
        m.d.comb += [ahead.eq(feature), taking.addr.eq(Cat(ahead, from_b))]
        with m.If(acts[Action.KEEP]):
            m.d.comb += [
                storing.addr.eq(Cat(acc[exact_log2(vec) : exact_log2(vec) + word_bits], to_b)),
                storing.data.eq(output.replicate(vec // lanes)),
                storing.en.eq(1 << acc[exact_log2(lanes) : exact_log2(vec)] if lanes < vec else 1),
            ]
        with m.Else():
            m.d.comb += [
                storing.addr.eq(Cat(acc[:word_bits], from_b)),
                storing.data.eq(word),
                storing.en.eq(acts[Action.FILL].replicate(len(storing.en))),
            ]

        # Steps: the weights come lane by lane, and with a step's last one the features go on.
        last_lane, fed = Signal(), Signal()
        m.d.comb += [
            last_lane.eq(answers[: exact_log2(lanes)] == 1),
            fed.eq(stepping & self.r.valid),
            self.step.eq(fed & last_lane),
            self.waiting.eq(stepping & (answers != 0) & ~self.r.valid),
            mac.valid.eq(fed),
            mac.features.eq(taking.data),
            mac.weights.eq(word),
        ]
        with m.If(acts[Action.STEPS] & ~begun):
            m.d.sync += [requests.eq(acc), answers.eq(acc << exact_log2(lanes))]
        with m.If(stepping & self.ar.valid & self.ar.ready):
            m.d.sync += [requests.eq(requests - 1), weight.eq(skipped)]
        with m.If(fed):
            m.d.sync += answers.eq(answers - 1)
        with m.If(self.step):
            m.d.comb += ahead.eq(feature + stride)
            m.d.sync += feature.eq(ahead)

        shifts = Signal(5, reset_less=True)
        with m.If(acts[Action.SHIFT] & ~begun):
            m.d.sync += shifts.eq(acc)
        with m.Else():
            m.d.sync += shifts.eq(shifts - 1)
        m.d.comb += [
            mac.word.eq(acc),
            mac.clear.eq(acts[Action.CLEAR]),
            mac.bias.eq(acts[Action.BIAS]),
            mac.turn.eq(acts[Action.NEXT]),
            mac.shift.eq(acts[Action.SHIFT] & begun & (shifts != 0)),
        ]
        with m.If(acts[Action.READ]):
            m.d.comb += finished.eq(asked & self.r.valid)
        with m.If(acts[Action.WRITE]):
            m.d.comb += finished.eq(sent & self.b)
        with m.If(acts[Action.STEPS]):
            m.d.comb += finished.eq(begun & (answers == 0) & mac.idle)
        with m.If(acts[Action.SHIFT]):
            m.d.comb += finished.eq(begun & (shifts == 0))
        return m


def _saturated(value: Value) -> Value:
    """The int8 nearest to a signed value."""
    sign, beyond = value[-1], value[7:]
    return Mux(beyond.any() & ~beyond.all(), Cat((~sign).replicate(7), sign), value[:8])


def _part(address: Value, lanes: int) -> Value:
    """Strobes of the LANES bytes of a memory word that an address names."""
    part = address[exact_log2(lanes) : exact_log2(WORD_BYTES)]
    return C((1 << lanes) - 1, lanes) << (part << exact_log2(lanes)) if lanes < WORD_BYTES else C(-1, WORD_BYTES)
