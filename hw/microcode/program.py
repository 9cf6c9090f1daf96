"""The microprogram: what the sequencer, the loaders, the stepper, the pool and the write-back of the pipeline do."""

from __future__ import annotations

from itertools import groupby

from amaranth.utils import exact_log2

from hw import descriptor, params
from hw.config import Config
from hw.descriptor import Flag
from hw.microcode.instructions import Action, Assembler, Condition, Op, Source, Target

LOWEST = 128
"""Of -LOWEST is no int8 below."""
WORD_BYTES = 4
"""Of a memory word, a feature word, and the weights of one lane in a step."""

SHIFT_AT = params.LAYOUT["shift"].offset // 8
"""Byte of a parameter record."""

UNUSED = ("load_chunk", "load_rows", "weight_passes", descriptor.RESERVED)
"""Fields that only say when something may be done."""

CONV, STORE, POOL = "conv", "store", "pool"
"""The places that outputs go to."""
PLACE = (
    *("addr", "x", "y", "image", "group", "part", "image_addr", "group_addr"),
    *("width", "height", "images", "gap", "image_step", "group_step"),
)
"""What is kept of a place: the next output's address; what is left of its row, plane, images, channel groups to be
written, and bytes of its group; where the image and the group began; then what does not change within a job."""


def assemble(config: Config) -> Assembler:
    """The microprogram of a build."""
    a = Assembler()
    for place in (CONV, STORE, POOL):
        first = a.block(place, len(PLACE))
        for index, name in enumerate(PLACE):
            a.registers[f"{place}.{name}"] = first + index
            a.registers[f".{name}"] = index  # of the place that the index is at
    a.block("above", config.pool_columns)
    a.block("above2", config.pool_columns)
    _launch(a, config)
    _load_features(a)
    _prepare(a, config)
    _loops(a, config)
    _outputs(a, config)
    _pool(a)
    _final(a)
    _places(a, config)
    return a


def _test(a: Assembler, flags: int) -> None:
    """Leave zero unless one of the flags is set, all of which are of the descriptor's first byte or of its second."""
    high = flags >> 8
    a.load("flags_high" if high else "flags_low")
    a.mask(high or flags)


def _times(a: Assembler, value: str, power: int, name: str) -> None:
    """name = value * 2**power"""
    a.move(value, name)
    for _ in range(power):
        a.load(name)
        a.add_to(name)


def _product(a: Assembler, value: str, times: str, name: str) -> None:
    """name = value * times, by adding"""
    loop, done = f"{name}: product", f"{name}: product done"
    a.move(0, name)
    a.move(times, "count")
    a.label(loop)
    a.load("count")
    a.jump_if(Condition.ZERO, done)
    a.load(value)
    a.add_to(name)
    a.down("count")
    a.jump(loop)
    a.label(done)


def _everywhere(a: Assembler, config: Config, name: str) -> None:
    """name = the accumulator's byte, in every lane"""
    for _ in range(config.lanes):
        a.set(Target.PUSH)
    a.move(Source.OUTPUT, name)


def _launch(a: Assembler, config: Config) -> None:
    """From job to job; each descriptor is read into registers named after its fields."""
    a.move(Source.DESCRIPTORS, "descriptor")
    a.move(Source.JOBS, "jobs")
    a.load(0)
    a.sub(LOWEST)
    _everywhere(a, config, "lowest")
    a.label("job")
    a.load("jobs")
    a.jump_if(Condition.NOT_ZERO, "fetch")
    a.go(Action.FINISH)
    a.label("fetch")
    offsets = descriptor.OFFSETS
    wanted = [field for field in descriptor.FIELDS if field.name not in UNUSED]
    a.load("descriptor")
    a.store("pointer")
    at = 0
    for word, fields in groupby(wanted, lambda field: offsets[field.name] // WORD_BYTES):
        if word != at:
            a.load(WORD_BYTES * (word - at))
            a.add_to("pointer")
            at = word
        a.go(Action.READ)
        for field in fields:
            byte = offsets[field.name] % WORD_BYTES
            if field.name == "flags":
                a.move(Source.BYTE_0, "flags_low")
                a.move(Source.BYTE_1, "flags_high")
            elif field.bits >= 8 * WORD_BYTES:
                a.move(Source.MEMORY, field.name)
            else:
                a.move(Source((Source.BYTE_0 if field.bits == 8 else Source.HALF_0) + byte), field.name)


def _load_features(a: Assembler) -> None:
    """Segments from memory to the source buffer, one behind the other."""
    a.move(0, "buffers")
    for flag, bit in ((Flag.SRC_B, 1), (Flag.DST_B, 2)):
        _test(a, flag)
        a.jump_if(Condition.ZERO, f"in A: {bit}")
        a.load(bit)
        a.add_to("buffers")
        a.label(f"in A: {bit}")
    a.load("buffers")
    a.set(Target.BUFFERS)
    _test(a, Flag.LOAD)
    a.jump_if(Condition.ZERO, "loaded")
    a.label("segment")
    a.move("load_addr", "pointer")
    a.move("load_words", "count")
    a.label("word")
    a.load("pointer")
    a.go(Action.READ)
    a.load("load_base")
    a.go(Action.FILL)
    a.up("load_base")
    a.load(WORD_BYTES)
    a.add_to("pointer")
    a.down("count")
    a.jump_if(Condition.NOT_ZERO, "word")
    a.load("load_stride")
    a.add_to("load_addr")
    a.down("load_segments")
    a.jump_if(Condition.NOT_ZERO, "segment")
    a.label("loaded")
    _test(a, Flag.LOAD_ONLY)
    a.jump_if(Condition.ZERO, "compute")
    a.label("next job")
    a.load(descriptor.DESCRIPTOR_BYTES)
    a.add_to("descriptor")
    a.down("jobs")
    a.jump("job")


def _prepare(a: Assembler, config: Config) -> None:
    """What a job's loops and outputs need and its descriptor says otherwise."""
    a.label("compute")
    _product(a, "in_w", "stride_y", "row_step")
    _product(a, "in_w", "pad_y", "origin")
    a.load("pad_x")
    a.add_to("origin")
    a.load("src_base")
    a.sub("origin")
    a.store("own_picture")
    # Bytes of a group's weights: every step's.
    _times(a, "steps", exact_log2(config.lanes * WORD_BYTES), "group_weights")
    # Kernels of one tap have runs of steps over channel groups, others over their rows.
    a.load("kernel_w")
    a.add("kernel_h")
    a.sub(2)
    a.store("more_taps")
    a.move("src_period", "sharing")
    a.move("groups_out", "group")
    # The bounds of an output: 0 with RELU, else -128; and what the descriptor says.
    a.load("upper")
    _everywhere(a, config, "most")
    a.move("lowest", "least")
    _test(a, Flag.RELU)
    a.jump_if(Condition.ZERO, "below zero")
    a.move(0, "least")
    a.label("below zero")
    # One output only?
    a.move("out_w", "columns")
    a.move("out_h", "rows")
    _test(a, Flag.ONE)
    a.jump_if(Condition.ZERO, "all outputs")
    a.move(1, "columns")
    a.store("rows")
    a.label("all outputs")
    # Jobs whose outputs join those of an earlier one, or have none, leave places and pool as they are.
    _test(a, Flag.PARTIAL | Flag.RESUME)
    a.jump_if(Condition.NOT_ZERO, "group")
    _begin_places(a, config)
    _begin_pool(a)


def _begin_places(a: Assembler, config: Config) -> None:
    """Every place at its first output. All of them count in bytes."""
    vec, lanes = config.vec, config.lanes
    word = exact_log2(vec)
    _times(a, "dst_base", word, "store_base")
    _times(a, "dst_image", word, "store_image")
    _times(a, "dst_plane", word, "store_plane")
    a.move(0, "no_gap")
    for place, base, plane, image, gap, width, height in (
        (CONV, "conv_addr", "conv_plane", "conv_image", "conv_gap", "out_w", "out_h"),
        (STORE, "store_base", "store_plane", "store_image", "no_gap", "pool_w", "pool_h"),
        (POOL, "pool_addr", "pool_plane", "pool_image", "pool_gap", "pool_w", "pool_h"),
    ):
        a.load(base)
        for name in ("addr", "image_addr", "group_addr"):
            a.store(f"{place}.{name}")
        # If LANES < VEC, the address tells which part of its group the first output is.
        a.mask(vec - lanes)
        a.store("count")
        a.load(vec)
        a.sub("count")
        a.store(f"{place}.part")
        a.load(plane)
        a.sub(vec - lanes)
        a.store(f"{place}.group_step")
        for names, value in (
            (("x", "width"), width),
            (("y", "height"), height),
            (("image", "images"), "images"),
            (("group",), "dst_groups"),
            (("gap",), gap),
            (("image_step",), image),
        ):
            a.load(value)
            for name in names:
                a.store(f"{place}.{name}")


def _cut(a: Assembler, start: str, taps: str, extent: str, first: str, inside: str) -> None:
    """The taps of a kernel that lie within the image, which it begins `start` before or after: the first, how many."""
    left, edge, none, right, done = (f"{inside}: {what}" for what in ("left", "edge", "none", "right", "done"))
    a.move(0, first)
    a.load(start)
    a.jump_if(Condition.NEGATIVE, left)
    a.label(edge)
    a.load(taps)
    a.sub(first)
    a.store(inside)
    a.load(extent)
    a.sub(start)
    a.sub(first)
    a.store("there")
    a.jump_if(Condition.NEGATIVE, none)
    a.sub(inside)
    a.jump_if(Condition.NEGATIVE, right)
    a.jump(done)
    a.label(left)
    a.load(0)
    a.sub(start)
    a.store(first)
    a.sub(taps)
    a.jump_if(Condition.NEGATIVE, edge)
    a.label(none)
    a.move(0, inside)
    a.jump(done)
    a.label(right)
    a.move("there", inside)
    a.label(done)


def _loops(a: Assembler, config: Config) -> None:
    """Output group, image, row, column; within an output channel groups and kernel rows, which are runs of steps."""
    a.label("group")
    a.move("images", "image")
    a.move("own_picture", "picture")
    a.move("param_addr", "pointer")
    a.load("pointer")
    for lane in range(config.lanes):
        a.go(Action.READ)
        a.move(Source.MEMORY, f"bias {lane}")
        a.load(SHIFT_AT)
        a.add_to("pointer")
        a.go(Action.READ)
        a.move(Source.BYTE_0, f"shift {lane}")
        a.load(params.PARAM_BYTES - SHIFT_AT)
        a.add_to("pointer")
    a.label("image")
    a.move("picture", "row")
    a.move("rows", "oy")
    a.load(0)
    a.sub("pad_y")
    a.store("top")

    a.label("row")
    a.move("row", "pixel")
    a.move("columns", "ox")
    a.load(0)
    a.sub("pad_x")
    a.store("left")
    # Kernel rows outside the image: their weights are passed over before a plane's first row, and behind its last.
    _cut(a, "top", "kernel_h", "in_h", "first_row", "rows_inside")
    _product(a, "kernel_w", "first_row", "rows_before")
    _product(a, "src_tap", "first_row", "to_first_row")
    a.load("kernel_h")
    a.sub("rows_inside")
    a.store("there")
    _product(a, "kernel_w", "there", "rows_outside")

    a.label("pixel")
    _test(a, Flag.CONTINUE)
    a.jump_if(Condition.NOT_ZERO, "begun")
    a.go(Action.CLEAR)
    for lane in range(config.lanes):
        a.load(f"bias {lane}")
        a.go(Action.BIAS)
    a.label("begun")
    _cut(a, "left", "kernel_w", "in_w", "first", "inside")
    a.load("inside")
    a.jump_if(Condition.ZERO, "output")
    a.load("rows_inside")
    a.jump_if(Condition.ZERO, "output")
    a.load("weight_addr")
    a.set(Target.WEIGHT)
    a.load("more_taps")
    a.jump_if(Condition.NOT_ZERO, "kernel")
    # A kernel of one tap: a run over the channel groups.
    a.load("pixel")
    a.set(Target.FEATURE)
    a.load("src_plane")
    a.set(Target.STRIDE)
    a.load("groups_in")
    a.go(Action.STEPS)
    a.jump("output")

    a.label("kernel")
    a.load(1)
    a.set(Target.STRIDE)
    a.load("first")
    a.add("rows_before")
    a.set(Target.SKIP)
    a.load("kernel_w")
    a.sub("inside")
    a.store("columns_outside")
    a.load("pixel")
    a.add("to_first_row")
    a.add("first")
    a.store("plane")
    a.move("groups_in", "z")
    a.label("plane")
    a.move("plane", "taps")
    a.move("rows_inside", "ky")
    a.label("kernel row")
    a.load("taps")
    a.set(Target.FEATURE)
    a.load("inside")
    a.go(Action.STEPS)
    a.load("columns_outside")
    a.set(Target.SKIP)
    a.load("src_tap")
    a.add_to("taps")
    a.down("ky")
    a.jump_if(Condition.NOT_ZERO, "kernel row")
    a.load("rows_outside")
    a.set(Target.SKIP)
    a.load("src_plane")
    a.add_to("plane")
    a.down("z")
    a.jump_if(Condition.NOT_ZERO, "plane")

    a.label("output")
    _test(a, Flag.PARTIAL)
    a.jump_if(Condition.ZERO, "deliver")
    a.label("delivered")
    a.load("stride_x")
    a.add_to("pixel")
    a.load("stride_x")
    a.add_to("left")
    a.down("ox")
    a.jump_if(Condition.NOT_ZERO, "pixel")
    a.load("row_step")
    a.add_to("row")
    a.load("stride_y")
    a.add_to("top")
    a.down("oy")
    a.jump_if(Condition.NOT_ZERO, "row")
    a.load("src_image")
    a.add_to("picture")
    a.down("image")
    a.jump_if(Condition.NOT_ZERO, "image")
    a.load(config.lanes * params.PARAM_BYTES)
    a.add_to("param_addr")
    a.load("group_weights")
    a.add_to("weight_addr")
    a.down("sharing")
    a.jump_if(Condition.NOT_ZERO, "shared")
    a.move("src_period", "sharing")
    a.load("src_step")
    a.add_to("own_picture")
    a.label("shared")
    a.down("group")
    a.jump_if(Condition.NOT_ZERO, "group")
    a.jump("next job")


def _outputs(a: Assembler, config: Config) -> None:
    """Requantise; write the convolution's output; hand it on, to the pool or as the final one."""
    a.label("deliver")
    for lane in range(config.lanes):
        a.load(f"shift {lane}")
        a.go(Action.SHIFT)
        a.load(Source.SUM)
        a.set(Target.PUSH)
        a.go(Action.NEXT)
    a.load(Source.OUTPUT)
    a.max("least")
    a.min("most")
    a.set(Target.OUTPUT)
    _test(a, Flag.WRITE_CONV)
    a.jump_if(Condition.ZERO, "conv written")
    a.load(a.registers[CONV])
    a.set(Target.INDEX)
    a.call("write")
    a.label("conv written")
    _test(a, Flag.POOL)
    a.jump_if(Condition.NOT_ZERO, "pool")
    a.call("final")
    a.jump("delivered")


def _begin_pool(a: Assembler) -> None:
    """The walk over the padded plane at its start; a plane ends with its last window, or with its last pixel."""
    _test(a, Flag.POOL)
    a.jump_if(Condition.ZERO, "group")
    a.load("pool_kernel")
    a.sub(1)
    a.store("window")
    a.store("wait_x")
    a.store("wait_y")
    for name in ("px", "py", "column", "line"):
        a.move(0, name)
    a.move("images", "pool_images")
    a.move("groups_out", "pool_groups")
    for end, extent, windows in (("end_x", "out_w", "pool_w"), ("end_y", "out_h", "pool_h")):
        a.load(windows)
        a.sub(1)
        a.store("windows")
        _product(a, "windows", "pool_stride", end)
        a.load("window")
        a.add_to(end)
        a.load(extent)
        a.add("pool_pad")
        a.sub(1)
        a.store("windows")
        a.sub(end)
        a.jump_if(Condition.NEGATIVE, f"{end}: window")
        a.move("windows", end)
        a.label(f"{end}: window")
    # What a window of fewer values does not have is the least; and what there is of it is kept.
    for name in ("before", "before2"):
        a.move("lowest", name)
    a.move("pool_w", "count")
    a.label("no rows above")
    a.down("count")
    a.set(Target.INDEX)
    a.load("lowest")
    a.indexed(Op.STORE, "above")
    a.indexed(Op.STORE, "above2")
    a.load("count")
    a.jump_if(Condition.NOT_ZERO, "no rows above")
    for edge in (1, 2, 3):
        a.move(f"keep row of {edge}", "keep row", label=True)
        a.move(f"keep value of {edge}", "keep value", label=True)
        a.load("pool_kernel")
        a.sub(edge)
        a.jump_if(Condition.ZERO, "windows known")
    a.label("windows known")
    # Padding before the first output.
    a.call("pad")


def _pool(a: Assembler) -> None:
    """One output into the pool, and the padding behind it."""
    a.label("pool")
    a.move(Source.OUTPUT, "new")
    a.call("take")
    a.call("pad")
    a.jump("delivered")

    # Padding up to the next output, if there is one.
    a.label("pad")
    a.load("pool_groups")
    a.jump_if(Condition.ZERO, "padded")
    for at, extent in (("px", "out_w"), ("py", "out_h")):
        a.load(at)
        a.sub("pool_pad")
        a.sub(extent)  # before the plane: more than any extent
        a.jump_if(Condition.CARRY, "padding")
    a.label("padded")
    a.ret("pad")
    a.label("padding")
    a.move("lowest", "new")
    a.call("take")
    a.jump("pad")

    a.label("take")
    a.load("wait_x")
    a.jump_if(Condition.NOT_ZERO, "no window ends")
    a.load("pool_stride")
    a.sub(1)
    a.store("wait_x")
    a.load("column")
    a.sub("pool_w")
    a.jump_if(Condition.CARRY, "no such column")
    # The window's last row: with the two values before. Then with the rows above.
    a.load("column")
    a.set(Target.INDEX)
    a.load("new")
    a.max("before")
    a.max("before2")
    a.store("across")
    a.indexed(Op.MAX, "above")
    a.indexed(Op.MAX, "above2")
    a.store("pooled")
    a.go_on_at("keep row")
    a.label("keep row of 3")
    a.indexed(Op.LOAD, "above")
    a.indexed(Op.STORE, "above2")
    a.label("keep row of 2")
    a.load("across")
    a.indexed(Op.STORE, "above")
    a.label("keep row of 1")
    a.load("wait_y")
    a.jump_if(Condition.NOT_ZERO, "no such column")
    a.load("line")
    a.sub("pool_h")
    a.jump_if(Condition.CARRY, "no such column")
    a.load("pooled")
    a.set(Target.OUTPUT)
    a.call("final")
    a.label("no such column")
    a.up("column")
    a.jump("walk")
    a.label("no window ends")
    a.down("wait_x")

    a.label("walk")
    a.go_on_at("keep value")
    a.label("keep value of 3")
    a.move("before", "before2")
    a.label("keep value of 2")
    a.move("new", "before")
    a.label("keep value of 1")
    a.load("px")
    a.sub("end_x")
    a.jump_if(Condition.ZERO, "row ends")
    a.up("px")
    a.ret("take")
    a.label("row ends")
    for name in ("px", "column"):
        a.move(0, name)
    a.move("window", "wait_x")
    a.load("wait_y")
    a.jump_if(Condition.NOT_ZERO, "no line ends")
    a.up("line")
    a.move("pool_stride", "wait_y")
    a.label("no line ends")
    a.down("wait_y")
    a.load("py")
    a.sub("end_y")
    a.jump_if(Condition.ZERO, "plane ends")
    a.up("py")
    a.ret("take")
    a.label("plane ends")
    for name in ("py", "line"):
        a.move(0, name)
    a.move("window", "wait_y")
    a.down("pool_images")
    a.jump_if(Condition.NOT_ZERO, "taken")
    a.move("images", "pool_images")
    a.down("pool_groups")
    a.label("taken")
    a.ret("take")


def _final(a: Assembler) -> None:
    """The job's final output: to the destination buffer, to memory."""
    a.label("final")
    _test(a, Flag.STORE)
    a.jump_if(Condition.ZERO, "stored")
    a.load(a.registers[STORE])
    a.set(Target.INDEX)
    a.indexed(Op.LOAD, ".group")
    a.jump_if(Condition.ZERO, "not kept")
    a.indexed(Op.LOAD, ".addr")
    a.go(Action.KEEP)
    a.label("not kept")
    a.call("advance")
    a.label("stored")
    _test(a, Flag.WRITE_POOL)
    a.jump_if(Condition.ZERO, "final written")
    a.load(a.registers[POOL])
    a.set(Target.INDEX)
    a.call("write")
    a.label("final written")
    a.ret("final")


def _places(a: Assembler, config: Config) -> None:
    """Writing an output to the place of the index, and the place's way to the next output."""
    vec, lanes = config.vec, config.lanes
    a.label("write")
    a.indexed(Op.LOAD, ".group")
    a.jump_if(Condition.ZERO, "not written")
    a.indexed(Op.LOAD, ".addr")
    a.go(Action.WRITE)
    a.label("not written")
    a.call("advance")
    a.ret("write")

    a.label("advance")
    a.load(vec)
    a.indexed(Op.ADD_TO, ".addr")
    a.indexed(Op.DOWN, ".x")
    a.jump_if(Condition.NOT_ZERO, "advanced")
    a.indexed(Op.LOAD, ".width")
    a.indexed(Op.STORE, ".x")
    a.indexed(Op.LOAD, ".gap")
    a.indexed(Op.ADD_TO, ".addr")
    a.indexed(Op.DOWN, ".y")
    a.jump_if(Condition.NOT_ZERO, "advanced")
    a.indexed(Op.LOAD, ".height")
    a.indexed(Op.STORE, ".y")
    a.indexed(Op.LOAD, ".image_step")
    a.indexed(Op.ADD_TO, ".image_addr")
    a.indexed(Op.STORE, ".addr")
    a.indexed(Op.DOWN, ".image")
    a.jump_if(Condition.NOT_ZERO, "advanced")
    a.indexed(Op.LOAD, ".images")
    a.indexed(Op.STORE, ".image")
    a.indexed(Op.LOAD, ".part")
    a.sub(lanes)
    a.indexed(Op.STORE, ".part")
    a.jump_if(Condition.ZERO, "group ends")
    a.load(lanes)
    a.jump("begin there")
    a.label("group ends")
    a.load(vec)
    a.indexed(Op.STORE, ".part")
    a.indexed(Op.LOAD, ".group")
    a.jump_if(Condition.ZERO, "none left")
    a.indexed(Op.DOWN, ".group")
    a.label("none left")
    a.indexed(Op.LOAD, ".group_step")
    a.label("begin there")
    a.indexed(Op.ADD_TO, ".group_addr")
    a.indexed(Op.STORE, ".image_addr")
    a.indexed(Op.STORE, ".addr")
    a.label("advanced")
    a.ret("advance")
