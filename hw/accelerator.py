"""The accelerator: every stage, connected, between its control port and its memory port."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from hw import axi, descriptor
from hw.array import MacArray
from hw.buffers import FeatureBuffer, WeightRing
from hw.config import Config
from hw.control import Control, ControlBus
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

OUTPUT_QUEUE = 16
"""Outputs that may be in flight between the stepper and the pool."""


class Accelerator(wiring.Component):
    """The accelerator of `config`.

    Members
    -------
    control : In(ControlBus)
    interrupt : Out(1)
    ar : Out(stream of axi.REQUEST), r : In(stream of axi.read_beat)
    aw : Out(stream of axi.REQUEST), w : Out(stream of axi.write_beat), b : In(1)
        The memory port; a write response is a pulse, always accepted.
    probe_* : Out, with `probe`
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        members = {
            "control": Out(ControlBus()),
            "interrupt": Out(1),
            "ar": Out(stream.Signature(axi.REQUEST)),
            "r": In(stream.Signature(axi.read_beat(config))),
            "aw": Out(stream.Signature(axi.REQUEST)),
            "w": Out(stream.Signature(axi.write_beat(config))),
            "b": In(1),
        }
        if config.probe:
            members |= {name: Out(bits) for name, bits in probes(config).items()}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, flag = self._config, descriptor.Flag

        m.submodules.control = control = Control(config)
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

        # Memory port.
        readers = [sequencer.port, features.port, params.port, weights.port]
        if config.saboteur:
            m.submodules.mac_saboteur = mac_saboteur = Saboteur(config, ACCUMULATOR_BITS)
            m.submodules.feature_saboteur = feature_saboteur = Saboteur(config, 8)
            readers[1:1] = [mac_saboteur.port, feature_saboteur.port]
        # A launch begins when the masks of its late bits are in place.
        begin = control.start
        if config.overclock:
            m.submodules.masks = masks = MaskLoader(config)
            readers.append(masks.port)
            begin = masks.done
            m.d.comb += [
                masks.start.eq(control.start),
                masks.addr.eq(control.late_masks),
                masks.count.eq(control.late_mask_count),
            ]
            connect(m, masks.load, array.load)
        m.submodules.read = read = axi.ReadArbiter(config, len(readers))
        for index, port in enumerate(readers):
            connect(m, port, read.clients[index])
        connect(m, read.ar, flipped(self.ar))
        connect(m, read.r, flipped(self.r))
        m.submodules.write = write = axi.WriteArbiter(config, 2)
        connect(m, write_conv.port, write.clients[0])
        connect(m, write_pool.port, write.clients[1])
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
            sequencer.compute_done.eq(stepper.done & pool.done),
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
        load_b = (sequencer.loading.flags & flag.SRC_B).any()
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
            pool.start.eq(sequencer.compute),
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
            store.start.eq(sequencer.compute),
            store.job.eq(job),
        ]
        for unit, name, width, height, enable in (
            (write_conv, "conv", job.out_w, job.out_h, flag.WRITE_CONV),
            (write_pool, "pool", job.pool_w, job.pool_h, flag.WRITE_POOL),
        ):
            m.d.comb += [
                unit.start.eq(sequencer.compute),
                unit.enable.eq((job.flags & enable).any()),
                unit.width.eq(width),
                unit.height.eq(height),
                unit.images.eq(job.images),
                unit.groups.eq(job.dst_groups),
                unit.base.eq(job[f"{name}_addr"]),
                unit.plane.eq(job[f"{name}_plane"]),
                unit.image.eq(job[f"{name}_image"]),
            ]

        # Faults. A launch ends when the saboteurs have let go of their lists.
        ending = Signal()
        m.d.comb += control.finished.eq(sequencer.done)
        if config.saboteur:
            slot = Signal(32)  # final outputs of this job so far
            passed = final.input.valid & final.input.ready
            with m.If(sequencer.compute):
                m.d.sync += slot.eq(0)
            with m.Elif(passed):
                m.d.sync += slot.eq(slot + 1)
            for saboteur, name, place, take, used in (
                (mac_saboteur, "mac", stepper.slot, stepper.busy, array.flips_taken),
                (feature_saboteur, "feature", slot, passed, passed & feature_saboteur.hit),
            ):
                m.d.comb += [
                    saboteur.start.eq(begin),
                    saboteur.addr.eq(getattr(control, f"{name}_events")),
                    saboteur.count.eq(getattr(control, f"{name}_event_count")),
                    saboteur.stop.eq(sequencer.done),
                    saboteur.job.eq(sequencer.job_index),
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
                control.finished.eq(ending & mac_saboteur.idle & feature_saboteur.idle),
            ]
            with m.If(feature_saboteur.hit):
                m.d.comb += final.input.payload.eq(pool.output.payload ^ feature_saboteur.mask)
            with m.If(control.finished):
                m.d.sync += ending.eq(0)
            with m.If(sequencer.done):
                m.d.sync += ending.eq(1)

        # Counters, of the launch.
        strobes = self.w.payload.strb
        written = sum(strobes[byte] for byte in range(config.port_bytes))
        running = Signal()
        with m.If(control.finished):
            m.d.sync += running.eq(0)
        for counter, increment in (
            (control.cycles, running),
            (control.mac_cycles, stepper.busy),
            (control.stall_cycles, stepper.starved | sequencer.waiting),
            (control.bytes_read, (self.r.valid & self.r.ready) << exact_log2(config.port_bytes)),
            (control.bytes_written, Mux(self.w.valid & self.w.ready, written, 0)),
        ):
            m.d.sync += counter.eq(counter + increment)
            with m.If(control.start):
                m.d.sync += counter.eq(0)
        with m.If(control.start):
            m.d.sync += running.eq(1)

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
