"""Write-back: gathers outputs into chunks and writes each channel group's run of pixels to memory as bursts."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw import axi
from hw.config import Config
from hw.place import OutputPlace

CHUNK = 32
"""Pixels gathered before they are written; two chunks are in flight."""


class WriteBack(wiring.Component):
    """Writes a stream of outputs to memory in the feature layout.

    Members
    -------
    start : In(1)
        Begin a job. The geometry below stays constant until its outputs have all been taken.
    enable : In(1)
        Write; otherwise outputs are taken and dropped.
    width, height, images : In(extent_bits), groups : In(min(16, count_bits))
        Extents of the output; channel groups of VEC to write.
    base : In(address_bits), plane, image, gap : In(count_bits)
        Byte address of image 0; bytes between channel groups, between images, and left out after each row. If LANES <
        VEC, the address may lie within a word: outputs begin with that part of it.
    input : In(stream of 8*LANES)
    port : Out(WritePort)
    idle : Out(1)
        Everything taken has been handed to the memory port.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "enable": In(1),
                "width": In(config.extent_bits),
                "height": In(config.extent_bits),
                "images": In(config.extent_bits),
                "groups": In(min(16, config.count_bits)),
                "base": In(config.address_bits),
                "plane": In(config.count_bits),
                "image": In(config.count_bits),
                "gap": In(config.count_bits),
                "input": In(stream.Signature(8 * config.lanes)),
                "port": Out(axi.WritePort(config)),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        vec, lanes = config.vec, config.lanes
        parts, subs = max(1, lanes // vec), max(1, vec // lanes)

        m.submodules.place = place = OutputPlace(config, config.address_bits)
        m.d.comb += [
            place.start.eq(self.start),
            place.width.eq(self.width),
            place.height.eq(self.height),
            place.images.eq(self.images),
            place.base.eq(self.base),
            place.plane.eq(self.plane),
            place.image.eq(self.image),
            place.pixel.eq(vec),
            place.gap.eq(self.gap),
            place.first_sub.eq(self.base[exact_log2(lanes) : exact_log2(vec)] if subs > 1 else 0),
        ]

        # Gathering: outputs go into one half of the memory while the other half is written out.
        m.submodules.staging = staging = Memory(shape=8 * lanes, depth=2 * CHUNK, init=[])
        stage_write, stage_read = staging.write_port(), staging.read_port()
        chunk = data.StructLayout(
            {
                "addr": config.address_bits,
                "plane": config.count_bits,
                "count": range(CHUNK + 1),
                "parts": range(parts + 1),
                "sub": range(subs),
            }
        )
        chunks = [Signal(chunk, name=f"chunk_{half}", reset_less=True) for half in range(2)]
        full = Signal(2)
        half = Signal()
        at = Signal(range(CHUNK))
        chunk_addr = Signal(config.address_bits, reset_less=True)
        take = Signal()
        m.d.comb += [
            self.input.ready.eq(~full.bit_select(half, 1)),
            take.eq(self.input.valid & self.input.ready),
            place.advance.eq(take),
            stage_write.addr.eq(Cat(at, half)),
            stage_write.data.eq(self.input.payload),
            stage_write.en.eq(take & self.enable),
        ]
        # A chunk is a run of memory: it ends with the row unless the next row adjoins.
        ends, apart = Signal(), Signal()
        m.d.sync += apart.eq(self.gap.any())
        m.d.comb += ends.eq((at == CHUNK - 1) | place.last_of_plane | (place.last_of_row & apart))
        left = Signal(len(self.groups))  # channel groups of this output that are written
        m.d.comb += left.eq(Mux(self.groups > place.group, self.groups - place.group, 0))
        with m.If(take & self.enable):
            m.d.sync += at.eq(at + 1)
            with m.If(at == 0):
                m.d.sync += chunk_addr.eq(place.addr)
            with m.If(ends):
                m.d.sync += at.eq(0)
                with m.If(left != 0):
                    m.d.sync += [half.eq(~half)]
                    for index in range(2):
                        with m.If(half == index):
                            m.d.sync += [
                                full[index].eq(1),
                                chunks[index].addr.eq(Mux(at == 0, place.addr, chunk_addr)),
                                chunks[index].plane.eq(self.plane),
                                chunks[index].count.eq(at + 1),
                                chunks[index].parts.eq(Mux(left < parts, left, parts)),
                                chunks[index].sub.eq(place.sub),
                            ]

        # Writing out: for each channel group a run of words, cut into bursts at 4 KB boundaries.
        slots = config.port_bytes // vec
        slot_log2, word_log2 = exact_log2(slots), exact_log2(vec)
        boundary_words = axi.BOUNDARY // vec
        out_half = Signal()
        now = Signal(chunk)
        m.d.comb += now.eq(Mux(out_half, chunks[1], chunks[0]))
        part = Signal(range(parts))
        part_addr, addr = (Signal(config.address_bits, name=name, reset_less=True) for name in ("part_addr", "addr"))
        begin = Signal(range(CHUNK + 1), reset_less=True)  # first word of the burst in the chunk
        run = Signal(range(CHUNK + 1), reset_less=True)  # words of the burst
        to_boundary = Signal(range(boundary_words + 1))
        remaining = Signal(range(CHUNK + 1))
        slot = Signal(range(slots)) if slots > 1 else C(0, 1)
        m.d.comb += [
            to_boundary.eq(boundary_words - addr[word_log2 : word_log2 + exact_log2(boundary_words)]),
            remaining.eq(now.count - begin),
        ]
        request = self.port.request
        first_slot = addr[word_log2 : word_log2 + slot_log2] if slots > 1 else C(0, 1)
        m.d.comb += [
            request.payload.addr.eq(Cat(C(0, exact_log2(config.port_bytes)), addr[exact_log2(config.port_bytes) :])),
            request.payload.len.eq((first_slot + run - 1) >> slot_log2),
        ]

        read_at = Signal(range(CHUNK + 1), reset_less=True)  # word being read from the staging memory
        word_valid, word_last = Signal(), Signal(reset_less=True)  # word at the memory's output
        beat = self.port.data
        accept = Signal()  # the packer takes the word at the memory's output
        beat_data = Signal(config.port_bits, reset_less=True)
        beat_strobe = Signal(config.port_bytes)

        word = Signal(8 * vec)
        if lanes >= vec:
            m.d.comb += word.eq(stage_read.data.word_select(part, 8 * vec))
            enable = C((1 << vec) - 1, vec)
        else:
            m.d.comb += word.eq(stage_read.data.replicate(subs))
            enable = Signal(vec)
            m.d.comb += enable.eq(((1 << lanes) - 1) << (now.sub * lanes))

        # The packer: words merge into a beat; a full beat, or the burst's last, goes out.
        merged_data, merged_strobe = Signal(config.port_bits), Signal(config.port_bytes)
        m.d.comb += [merged_data.eq(beat_data), merged_strobe.eq(beat_strobe)]
        m.d.comb += [
            merged_data.word_select(slot, 8 * vec).eq(word),
            merged_strobe.word_select(slot, vec).eq(enable),
        ]
        flush = Signal()
        m.d.comb += [
            flush.eq((slot == slots - 1) | word_last if slots > 1 else C(1, 1)),
            beat.valid.eq(word_valid & flush),
            beat.payload.data.eq(merged_data),
            beat.payload.strb.eq(merged_strobe),
            beat.payload.last.eq(word_last),
            accept.eq(word_valid & (~flush | beat.ready)),
        ]
        with m.If(accept):
            if slots > 1:
                m.d.sync += slot.eq(slot + 1)
            m.d.sync += [beat_data.eq(merged_data), beat_strobe.eq(Mux(flush, 0, merged_strobe))]

        m.d.comb += stage_read.addr.eq(Cat(read_at[: exact_log2(CHUNK)], out_half))
        with m.FSM() as fsm:
            with m.State("CHUNK"):
                with m.If(full.bit_select(out_half, 1)):
                    m.d.sync += [part.eq(0), part_addr.eq(now.addr), addr.eq(now.addr), begin.eq(0)]
                    m.next = "SIZE"
            with m.State("SIZE"):
                m.d.sync += run.eq(Mux(remaining < to_boundary, remaining, to_boundary))
                m.next = "ASK"
            with m.State("ASK"):
                m.d.comb += request.valid.eq(1)
                with m.If(request.ready):
                    m.d.sync += read_at.eq(begin)
                    if slots > 1:
                        m.d.sync += slot.eq(first_slot)
                    m.next = "WORDS"
            with m.State("WORDS"):
                with m.If(~word_valid | accept):
                    m.d.sync += [word_valid.eq(1), word_last.eq(read_at == begin + run - 1), read_at.eq(read_at + 1)]
                    with m.If(word_valid & word_last):
                        m.d.sync += word_valid.eq(0)
                        m.next = "NEXT"
                m.d.comb += stage_read.en.eq(~word_valid | accept)
            with m.State("NEXT"):
                m.d.sync += [begin.eq(begin + run), addr.eq(addr + (run << word_log2))]
                m.next = "SIZE"
                with m.If(remaining == run):
                    m.d.sync += [begin.eq(0), part.eq(part + 1)]
                    m.d.sync += [part_addr.eq(part_addr + now.plane), addr.eq(part_addr + now.plane)]
                    with m.If(part + 1 == now.parts):
                        m.d.sync += [full.bit_select(out_half, 1).eq(0), out_half.eq(~out_half)]
                        m.next = "CHUNK"
            m.d.comb += self.idle.eq(fsm.ongoing("CHUNK") & (full == 0) & (at == 0))
        return m
