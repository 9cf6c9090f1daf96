"""The accelerator: every stage, connected, between its control port and its memory port."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from hw import axi, descriptor, record
from hw.array import MacArray
from hw.buffers import FeatureBuffer, WeightRing
from hw.config import INTERFACE_VERSION, Config
from hw.control import COUNTERS, Control, ControlBus, span
from hw.fork import Fork
from hw.lane import ACCUMULATOR_BITS
from hw.loader import PARAM_GROUPS, FeatureLoader, ParamLoader, WeightLoader
from hw.overclocked import MaskLoader
from hw.pool import Pool
from hw.saboteur import Saboteur
from hw.sequencer import Sequencer
from hw.stepper import Stepper
from hw.store import Store
from hw.writeback import WriteBack

OUTPUT_QUEUE = 32
"""Outputs that may be in flight between the stepper and the pool."""


class Accelerator(wiring.Component):
    """The accelerator of `config`.

    Parameters
    ----------
    config : Config
    opencl : bool
        For a host that has kernel arguments and buffers and nothing else: the addresses in descriptors count from the
        argument `memory`, and a launch leaves a completion record (`hw.record`).

    Members
    -------
    control : In(ControlBus)
    interrupt : Out(1)
    ar : Out(stream of axi.request), r : In(stream of axi.read_beat)
    aw : Out(stream of axi.request), w : Out(stream of axi.write_beat), b : In(1)
        The memory port; a write response is a pulse, always accepted.
    r_error, b_error : In(1), with `opencl`
        What arrives in this cycle on the channel is an error.
    probe_* : Out, with `probe`
    """

    def __init__(self, config: Config, *, opencl: bool = False) -> None:
        self._config = config
        self._opencl = opencl
        members = {
            "control": Out(ControlBus(span(opencl))),
            "interrupt": Out(1),
            **axi.master(config),
        }
        if opencl:
            members |= {"r_error": In(1), "b_error": In(1)}
        if config.probe:
            members |= {name: Out(bits) for name, bits in probes(config).items()}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, flag = self._config, descriptor.Flag

        m.submodules.control = control = Control(config, opencl=self._opencl)
        connect(m, control.bus, flipped(self.control))
        m.d.comb += self.interrupt.eq(control.interrupt)

        m.submodules.sequencer = sequencer = Sequencer(config)
        m.submodules.features = features = FeatureLoader(config)
        m.submodules.weights = weights = WeightLoader(config)
        m.submodules.params = params = ParamLoader(config)
        m.submodules.buffer_a = buffer_a = FeatureBuffer(config)
        m.submodules.buffer_b = buffer_b = FeatureBuffer(config)
        m.submodules.ring = ring = WeightRing(config)
        m.submodules.stepper = stepper = Stepper(config)
        m.submodules.array = array = MacArray(config)
        m.submodules.outputs = outputs = SyncFIFOBuffered(width=8 * config.lanes, depth=OUTPUT_QUEUE)
        m.submodules.pool = pool = Pool(config)
        m.submodules.store = store = Store(config)
        m.submodules.write_conv = write_conv = WriteBack(config)
        m.submodules.write_pool = write_pool = WriteBack(config)
        job = sequencer.job
        # The stages behind the array may work for several jobs: only the first starts them, only the last waits.
        outputs_start, outputs_done = Signal(), Signal()
        m.d.comb += [
            outputs_start.eq(sequencer.compute & ~(job.flags & (flag.PARTIAL | flag.RESUME)).any()),
            outputs_done.eq(pool.done | (job.flags & (flag.PARTIAL | flag.MORE)).any()),
        ]

        # Memory port.
        readers = [sequencer.port, params.port, features.port, weights.port]
        if config.saboteur:
            m.submodules.mac_saboteur = mac_saboteur = Saboteur(config, ACCUMULATOR_BITS)
            m.submodules.feature_saboteur = feature_saboteur = Saboteur(config, 8)
            readers[1:1] = [mac_saboteur.port, feature_saboteur.port]
        at_weights = len(readers) - 1
        # Arguments that are not aligned are refused. A launch begins when the masks of its late bits are in place.
        begin, refused = control.start, Signal()
        if self._opencl:
            misaligned = _misaligned(control, config)
            m.d.sync += refused.eq(control.start & misaligned)
            begin = control.start & ~misaligned
        if config.overclock:
            m.submodules.masks = masks = MaskLoader(config)
            readers.append(masks.port)  # after the weights'
            m.d.comb += [
                masks.start.eq(begin),
                masks.addr.eq(control.late_masks),
                masks.count.eq(control.late_mask_count),
            ]
            begin = masks.done
            connect(m, masks.load, array.load)
        m.submodules.read = read = axi.ReadArbiter(config, len(readers))
        # Lists have addresses of their own; what descriptors name may count from `memory`.
        base = control.memory if self._opencl else None
        named = [params.port, features.port, weights.port]
        for index, port in enumerate(readers):
            axi.attach(m, port, read.clients[index], base if any(port is each for each in named) else None)
        # A job begins with its first weights and its first rows; all other weights can wait for the features.
        m.d.comb += read.urgent[at_weights].eq(weights.first & ~sequencer.weights_ahead)
        connect(m, read.ar, flipped(self.ar))
        connect(m, read.r, flipped(self.r))
        m.submodules.write = write = axi.WriteArbiter(config, 3 if self._opencl else 2)
        axi.attach(m, write_conv.port, write.clients[0], base)
        axi.attach(m, write_pool.port, write.clients[1], base)
        connect(m, write.aw, flipped(self.aw))
        connect(m, write.w, flipped(self.w))
        m.d.comb += write.b.eq(self.b)

        # Launch.
        m.d.comb += [
            sequencer.start.eq(begin),
            sequencer.addr.eq(control.descriptors),
            sequencer.jobs.eq(control.jobs),
            sequencer.load_done.eq(features.done),
            sequencer.writes_done.eq(write_conv.idle & write_pool.idle & write.idle),
            sequencer.compute_done.eq(stepper.done & outputs_done),
            features.start.eq(sequencer.load & (sequencer.loading.flags & flag.LOAD).any()),
            features.job.eq(sequencer.loading),
        ]
        connect(m, sequencer.weights, weights.start)
        connect(m, sequencer.params, params.start)

        # Loaders to buffers. The array reads both feature buffers at one address and chooses the job's.
        connect(m, weights.fill, ring.fill)
        m.d.comb += [
            weights.room.eq(ring.room),
            ring.taken.eq(weights.taken),
            ring.clear.eq(sequencer.clear),
            ring.read_ptr.eq(stepper.weight_ptr),
            ring.keep_ptr.eq(stepper.keep_ptr),
        ]
        load_b = features.to_b
        store_b = (job.flags & flag.DST_B).any()
        for buffer, load_here, store_here in ((buffer_a, ~load_b, ~store_b), (buffer_b, load_b, store_b)):
            m.d.comb += [
                buffer.read_addr.eq(stepper.feature_addr),
                buffer.load.payload.eq(features.write.payload),
                buffer.load.valid.eq(features.write.valid & load_here),
                buffer.store.payload.eq(store.write.payload),
                buffer.store.valid.eq(store.write.valid & store_here),
            ]
            with m.If(load_here):
                m.d.comb += features.write.ready.eq(buffer.load.ready)
        m.d.comb += store.write.ready.eq(1)
        src_b = (job.flags & flag.SRC_B).any()
        m.d.comb += array.features.eq(buffer_a.read_data)
        with m.If(src_b):
            m.d.comb += array.features.eq(buffer_b.read_data)

        # Stepper to array; what is in flight never exceeds the output queue, nor groups their parameters.
        in_flight = Signal(range(OUTPUT_QUEUE + 1))
        groups_ready = Signal(range(PARAM_GROUPS + 1))
        popped = Signal()
        m.d.sync += [
            in_flight.eq(in_flight + stepper.issued_last - popped),
            groups_ready.eq(groups_ready + params.arrived - stepper.issued_group),
        ]
        m.d.comb += [
            stepper.start.eq(sequencer.compute),
            stepper.job.eq(job),
            stepper.clear.eq(sequencer.clear),
            stepper.arriving.eq(sequencer.arriving),
            stepper.rows.eq(features.rows),
            stepper.weight_ready.eq(ring.read_ready),
            stepper.room.eq(in_flight != OUTPUT_QUEUE),
            stepper.params_available.eq(groups_ready != 0),
            array.valid.eq(stepper.valid),
            array.flags.eq(stepper.flags),
            array.weights.eq(ring.read_data),
            array.relu.eq((job.flags & flag.RELU).any()),
            array.upper.eq(job.upper),
            array.params.eq(params.params.payload),
            params.params.ready.eq(array.params_taken),
            outputs.w_data.eq(array.output),
            outputs.w_en.eq(array.output_valid),
        ]

        # Outputs: to the pool and, as they are, to memory.
        lanes = 8 * config.lanes
        m.submodules.conv_fork = conv_fork = Fork(lanes)
        connect(m, conv_fork.first, pool.input)
        connect(m, conv_fork.second, write_conv.input)
        m.d.comb += [
            conv_fork.input.payload.eq(outputs.r_data),
            conv_fork.input.valid.eq(outputs.r_rdy),
            outputs.r_en.eq(conv_fork.input.ready),
            popped.eq(outputs.r_rdy & outputs.r_en),
            pool.start.eq(outputs_start),
            pool.job.eq(job),
        ]

        # Final outputs: to the buffer and to memory.
        m.submodules.final_fork = final = Fork(lanes)
        connect(m, final.first, store.input)
        connect(m, final.second, write_pool.input)
        m.d.comb += [
            final.input.payload.eq(pool.output.payload),
            final.input.valid.eq(pool.output.valid),
            pool.output.ready.eq(final.input.ready),
            store.start.eq(outputs_start),
            store.job.eq(job),
        ]
        for unit, name, width, height, enable in (
            (write_conv, "conv", job.out_w, job.out_h, flag.WRITE_CONV),
            (write_pool, "pool", job.pool_w, job.pool_h, flag.WRITE_POOL),
        ):
            m.d.comb += [
                unit.start.eq(outputs_start),
                unit.enable.eq((job.flags & enable).any()),
                unit.width.eq(width),
                unit.height.eq(height),
                unit.images.eq(job.images),
                unit.groups.eq(job.dst_groups),
                unit.base.eq(job[f"{name}_addr"]),
                unit.plane.eq(job[f"{name}_plane"]),
                unit.image.eq(job[f"{name}_image"]),
                unit.gap.eq(job[f"{name}_gap"]),
            ]

        # Faults. A launch ends when the saboteurs have let go of their lists.
        ending, over = Signal(), Signal()
        m.d.comb += over.eq(sequencer.done | refused)
        if config.saboteur:
            # Final outputs since the outputs' stages started, and the job that started them.
            slot, walk = Signal(32), Signal(config.count_bits)
            passed = final.input.valid & final.input.ready
            with m.If(outputs_start):
                m.d.sync += [slot.eq(0), walk.eq(sequencer.job_index)]
            with m.Elif(passed):
                m.d.sync += slot.eq(slot + 1)
            for saboteur, name, number, place, take, used in (
                (mac_saboteur, "mac", sequencer.job_index, stepper.slot, stepper.busy, array.flips_taken),
                (feature_saboteur, "feature", walk, slot, passed, passed & feature_saboteur.hit),
            ):
                m.d.comb += [
                    saboteur.start.eq(begin),
                    saboteur.addr.eq(getattr(control, f"{name}_events")),
                    saboteur.count.eq(getattr(control, f"{name}_event_count")),
                    saboteur.stop.eq(sequencer.done),
                    saboteur.job.eq(number),
                    saboteur.slot.eq(place),
                    saboteur.take.eq(take),
                    saboteur.mask_take.eq(used),
                ]
            m.d.comb += [
                stepper.hold.eq(~mac_saboteur.known),
                stepper.hit.eq(mac_saboteur.hit),
                array.flips.eq(mac_saboteur.mask),
                final.input.valid.eq(pool.output.valid & feature_saboteur.known),
                pool.output.ready.eq(final.input.ready & feature_saboteur.known),
                control.faults_applied.eq(mac_saboteur.applied + feature_saboteur.applied),
                over.eq((ending & mac_saboteur.idle & feature_saboteur.idle) | refused),
            ]
            with m.If(feature_saboteur.hit):
                m.d.comb += final.input.payload.eq(pool.output.payload ^ feature_saboteur.mask)
            with m.If(over):
                m.d.sync += ending.eq(0)
            with m.If(sequencer.done):
                m.d.sync += ending.eq(1)

        # Counters, of the launch.
        strobes = self.w.payload.strb
        written = sum(strobes[byte] for byte in range(config.port_bytes))
        running = Signal()
        with m.If(over):
            m.d.sync += running.eq(0)
        counted = running if self._opencl else C(1)  # the record is no part of the launch
        for counter, increment in (
            (control.cycles, running),
            (control.mac_cycles, stepper.busy),
            (control.stall_cycles, stepper.starved | sequencer.waiting),
            (control.bytes_read, (self.r.valid & self.r.ready) << exact_log2(config.port_bytes)),
            (control.bytes_written, Mux(self.w.valid & self.w.ready & counted, written, 0)),
        ):
            m.d.sync += counter.eq(counter + increment)
            with m.If(control.start):
                m.d.sync += counter.eq(0)
        with m.If(control.start):
            m.d.sync += running.eq(1)

        # The end of the launch, with a record of it or without.
        if self._opencl:
            self._complete(m, control, sequencer, write, over, refused)
        else:
            m.d.comb += control.finished.eq(over)

        if config.probe:
            taken = final.input.valid & final.input.ready
            for name in ("step_valid", "step_features", "step_weights", "acc_valid", "acc"):
                m.d.comb += getattr(self, f"probe_{name}").eq(getattr(array, f"probe_{name}"))
            m.d.comb += [
                self.probe_requant_valid.eq(array.output_valid),
                self.probe_requant.eq(array.output),
                self.probe_pool_valid.eq(taken),
                self.probe_pool.eq(final.input.payload),
            ]
        return m

    def _complete(
        self,
        m: Module,
        control: Control,
        sequencer: Sequencer,
        write: axi.WriteArbiter,
        over: Signal,
        refused: Signal,
    ) -> None:
        """Write the record of a launch that was executed or refused; then it is finished."""
        m.submodules.completion = completion = record.Completion(self._config)
        connect(m, completion.port, write.clients[2])
        status = Signal(3)
        m.d.sync += status.eq(Mux(control.start, 0, status | Cat(self.r_error, self.b_error, refused)))
        m.d.comb += [
            completion.start.eq(over),
            completion.addr.eq(control.record),
            completion.writes_done.eq(write.idle),
            completion.record.config_hash.eq(self._config.hash),
            completion.record.interface_version.eq(INTERFACE_VERSION),
            completion.record.status.eq(status),
            completion.record.jobs.eq(Mux(status[2], 0, sequencer.jobs_done)),
            control.finished.eq(completion.done),
        ]
        for name in (*COUNTERS, *(("faults_applied",) if self._config.saboteur else ())):
            m.d.comb += completion.record[name].eq(getattr(control, name))


def _misaligned(control: Control, config: Config) -> Value:
    """Whether a list does not begin where it may, or `memory` would move bursts across a 4 KB boundary."""
    lowest = [control.memory[:12], control.descriptors[:8]]
    if config.saboteur:
        lowest += [control.mac_events[:6], control.feature_events[:6]]
    if config.overclock:
        lowest += [control.late_masks[:6]]
    return Cat(lowest).any()


def probes(config: Config) -> dict[str, int]:
    """Widths of the debug outputs (docs/architecture.md, Kernel interface)."""
    return {
        "probe_step_valid": 1,
        "probe_step_features": 8 * config.vec,
        "probe_step_weights": 8 * config.lanes * config.vec,
        "probe_acc_valid": 1,
        "probe_acc": ACCUMULATOR_BITS * config.lanes,
        "probe_requant_valid": 1,
        "probe_requant": 8 * config.lanes,
        "probe_pool_valid": 1,
        "probe_pool": 8 * config.lanes,
    }
