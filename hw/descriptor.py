"""The descriptor: the 256-byte record in memory that tells the accelerator one job.

Written once here; the sequencer's struct and the host's packer are both generated from `FIELDS`. A build keeps as many
bits of a field as its `Config` says (`layout`): in memory, all descriptors are alike.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from amaranth.lib import data

from hw.config import Config

DESCRIPTOR_BYTES = 256


class Field(NamedTuple):
    """One little-endian unsigned field of the descriptor."""

    name: str
    bits: int
    meaning: str


FIELDS = (
    Field("flags", 32, "bit set of `Flag` values"),
    # -- features in: memory -> on-chip source buffer, before computing (if LOAD)
    Field("load_words", 32, "VEC-byte words per segment"),
    Field("load_addr", 64, "byte address of the first segment; aligned to VEC"),
    Field("load_stride", 32, "bytes from one segment to the next; multiple of VEC"),
    Field("load_segments", 32, "number of segments (channel-group planes, or 1)"),
    Field("load_base", 32, "first word written in the source buffer; segments are packed back to back"),
    Field("load_chunk", 16, "words of every segment loaded in turn, so that computing may begin early; 0: all of them"),
    Field("load_rows", 16, "input rows that a chunk of a segment holds; 0 if `load_chunk` is"),
    # -- features as the array reads them
    Field("src_base", 32, "first word of image 0 in the source buffer"),
    Field("src_plane", 32, "words from one channel group to the next (H*W)"),
    Field("src_image", 32, "words from one image to the next"),
    Field("in_h", 16, "input rows"),
    Field("in_w", 16, "input columns"),
    Field("out_h", 16, "convolution output rows"),
    Field("out_w", 16, "convolution output columns"),
    Field("kernel_h", 8, "taps down"),
    Field("kernel_w", 8, "taps across"),
    Field("stride_y", 8, "rows per output row"),
    Field("stride_x", 8, "columns per output column"),
    Field("pad_y", 8, "zero rows above"),
    Field("pad_x", 8, "zero columns on the left"),
    Field("groups_in", 16, "channel groups of VEC reduced over (z count)"),
    Field("groups_out", 16, "channel groups of LANES computed"),
    Field("images", 16, "images that share this job's weights"),
    Field("steps", 32, "groups_in * kernel_h * kernel_w"),
    # -- what output groups do not share (grouped convolution), and kernel rows that are not image rows (addition)
    Field("src_step", 32, "words added to the source's first word after every `src_period` output groups"),
    Field("src_tap", 32, "words from one kernel row to the next; `in_w`, but for an addition: the other operand"),
    Field("src_period", 16, "output groups that read the same channel groups, at least 1"),
    Field("reserved0", 16, "zero"),
    # -- weights
    Field("weight_passes", 32, "times each group's weights are fetched: 1, or with STREAM images * out_h * out_w"),
    Field("weight_addr", 64, "byte address of [M/LANES][C/VEC][KH][KW][LANES][VEC]; aligned to one weight word"),
    Field("param_addr", 64, "byte address of [M/LANES][LANES] parameter records; aligned to one group's records"),
    # -- pooling
    Field("pool_kernel", 8, "window edge, 1 to 3"),
    Field("pool_stride", 8, "window step, 1 to 3"),
    Field("pool_pad", 8, "border of -infinity on every side, less than the kernel"),
    Field("upper", 8, "largest output, 0 to 127: the saturation, or lower for ReLU6"),
    Field("pool_h", 16, "pooled rows (equals out_h without POOL)"),
    Field("pool_w", 16, "pooled columns (equals out_w without POOL)"),
    # -- results to the on-chip destination buffer (if STORE)
    Field("dst_base", 32, "first word of image 0 in the destination buffer"),
    Field("dst_plane", 32, "words from one channel group of VEC to the next"),
    Field("dst_image", 32, "words from one image to the next"),
    Field("dst_groups", 32, "channel groups of VEC that are stored; lanes beyond are dropped (buffer and memory)"),
    # -- write-back of the convolution's output, before pooling (if WRITE_CONV)
    Field("conv_addr", 64, "byte address of image 0; aligned to VEC, or if LANES < VEC to LANES: within a word"),
    Field("conv_plane", 32, "bytes from one channel group of VEC to the next"),
    Field("conv_image", 32, "bytes from one image to the next"),
    # -- write-back of the job's final output, after pooling (if WRITE_POOL)
    Field("pool_addr", 64, "byte address of image 0; aligned like conv_addr"),
    Field("pool_plane", 32, "bytes from one channel group of VEC to the next"),
    Field("pool_image", 32, "bytes from one image to the next"),
    # -- write-back of a job that computes some columns only
    Field(
        "conv_gap", 32, "bytes left out after each row of the convolution's output, a multiple of VEC; 0: rows adjoin"
    ),
    Field("pool_gap", 32, "bytes left out after each row of the final output"),
)


MODULO = ("src_base", "src_step")
"""Words of a feature buffer, which wrap."""
RESERVED = "reserved0"
"""The field that is for nothing but alignment."""


class Flag:
    """Bits of the `flags` field."""

    LOAD = 1 << 0
    """Load features from memory into the source buffer before computing."""
    FENCE = 1 << 1
    """The load waits until every earlier job is complete and its writes are acknowledged. Without it, a load may
    overlap the job directly before (never an older one)."""
    SRC_B = 1 << 2
    """Read features from buffer B (else A)."""
    DST_B = 1 << 3
    """Store results in buffer B (else A)."""
    STORE = 1 << 4
    """Store the final output on chip."""
    RELU = 1 << 5
    """Clamp below at zero after requantisation."""
    POOL = 1 << 6
    """Max-pool after requantisation."""
    WRITE_CONV = 1 << 7
    """Write the convolution's output (requantised, after ReLU, before pooling) to memory."""
    WRITE_POOL = 1 << 8
    """Write the job's final output to memory."""
    LOAD_ONLY = 1 << 9
    """Load features and do nothing else: what the next job reads is gathered from several places. Such a job is not
    counted as one that computes: the load after it may overlap the computing of the job before it."""
    STREAM = 1 << 10
    """Weights are used once and fetched again for every output: the group's do not fit the ring."""
    CONTINUE = 1 << 11
    """The accumulators go on from where the job before left them, instead of starting at the bias."""
    PARTIAL = 1 << 12
    """No output leaves: the job after goes on from this one's accumulators."""
    RESUME = 1 << 13
    """The job's output joins those of an earlier job that had MORE; pooling and write-back do not start anew."""
    MORE = 1 << 14
    """More outputs of this job's pooling and write-back come from later jobs."""
    ONE = CONTINUE | PARTIAL | RESUME | MORE
    """With any of these, a job computes one output (of one group and image); `out_h`, `out_w` and whatever describes
    pooling and write-back then speak of all outputs that join."""


FLAG_BITS = Flag.MORE.bit_length()
"""Of `flags`, those that mean something."""


def _offsets() -> dict[str, int]:
    offsets, at = {}, 0
    for field in FIELDS:
        offsets[field.name] = at
        at += field.bits // 8
    if at > DESCRIPTOR_BYTES:
        raise AssertionError(f"descriptor fields take {at} bytes, more than {DESCRIPTOR_BYTES}")
    return offsets


OFFSETS = _offsets()
"""Byte offset of each field."""

DTYPE = np.dtype(
    {
        "names": list(OFFSETS),
        "formats": [f"<u{field.bits // 8}" for field in FIELDS],
        "offsets": list(OFFSETS.values()),
        "itemsize": DESCRIPTOR_BYTES,
    }
)
"""numpy structured dtype of one descriptor: what the host packs."""

USED_BYTES = sum(field.bits for field in FIELDS) // 8
"""Bytes of the descriptor that carry fields; the rest is zero."""


def kept_bits(field: Field, config: Config) -> int:
    """Bits that a build keeps of a field: the low ones."""
    if field.name == "flags":
        return FLAG_BITS
    return {64: config.address_bits, 32: config.count_bits, 16: config.extent_bits}.get(field.bits, field.bits)


def too_wide(records: npt.NDArray[np.void], config: Config) -> tuple[int, str, int] | None:
    """The first value that a build does not hold: position of the record, the field, and the bits kept; None if none.

    Fields that only ever count modulo a feature buffer's size may have any value.

    Parameters
    ----------
    records : array of DTYPE, shape (jobs,)
    """
    for field in FIELDS:
        kept = kept_bits(field, config)
        if field.name in ("flags", RESERVED, *MODULO) or kept >= field.bits:
            continue
        wrong = np.flatnonzero(records[field.name] >> np.uint64(kept))
        if len(wrong):
            return int(wrong[0]), field.name, kept
    return None


def layout(config: Config) -> data.StructLayout:
    """Amaranth layout of a descriptor in the accelerator: what means something, as wide as the build has it."""
    return data.StructLayout({field.name: kept_bits(field, config) for field in FIELDS if field.name != RESERVED})
