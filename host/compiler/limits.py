"""What a layer must obey to run on an accelerator, and the errors that say which does not, why, and what to do."""

from __future__ import annotations

from host.program import arrangement, lrn, sums
from host.program.layers import Layer
from host.schedule.reading import reading
from host.schedule.tiling import column_axis, cut
from hw import params
from hw.config import Config
from hw.errors import RedlineError
from hw.layout import features_bytes, output_groups

MAX_STRIDE = 255
MAX_POOL = 3


class CompileError(RedlineError, ValueError):
    """A layer cannot be computed exactly; carries its name, the reason and the remedy.

    `where` says how far the trouble reaches: "anywhere" (no device can compute it), or "accelerator" (the CPU can).
    """

    def __init__(self, layer: str, reason: str, remedy: str, where: str = "anywhere") -> None:
        super().__init__(f"layer {layer!r}: {reason}; {remedy}")
        self.layer, self.reason, self.remedy, self.where = layer, reason, remedy, where


CPU_REMEDY = 'run it on the CPU (fallback="cpu", or protect it)'


def is_fully_connected(layer: Layer) -> bool:
    """Whether the layer's kernel is its whole input."""
    return layer.kernel == layer.in_shape[1:] and layer.padding == (0, 0)


def check_layer(layer: Layer, config: Config) -> None:
    """Raise `CompileError` unless the layer is well formed and, where placed there, fits the accelerator."""
    # The accelerator refuses it anyway, with its own remedy.
    if layer.operator == "lrn" and (layer.normalisation is not None or layer.placement != "accelerator"):
        check_normalisation(layer)
    check_arithmetic(layer)
    if layer.operator != "lrn" and config.arithmetic == "pipecnn":
        check_pipecnn(layer)
    if layer.placement == "accelerator":
        check_accelerator(layer, config)


def check_arithmetic(layer: Layer) -> None:
    """What holds wherever the layer runs: extents that exist, shifts that are exact."""
    (kh, kw), (sy, sx), (py, px) = layer.kernel, layer.stride, layer.padding
    channels, h, w = layer.in_shape
    if min(channels, h, w, layer.out_channels, kh, kw, sy, sx) < 1 or min(py, px) < 0:
        raise CompileError(layer.name, f"a size is not positive in {layer}", "correct the layer")
    if layer.groups < 1 or channels % layer.groups or layer.out_channels % layer.groups:
        raise CompileError(
            layer.name,
            f"{channels} input channels and {layer.out_channels} output channels do not make {layer.groups} groups",
            "correct the layer",
        )
    if not 0 <= layer.upper <= 127:
        raise CompileError(layer.name, f"its largest output, {layer.upper}, is not 0 to 127", "correct the layer")
    if len(layer.weight_frac) != layer.out_channels:
        raise CompileError(
            layer.name,
            f"{len(layer.weight_frac)} weight fractions for {layer.out_channels} channels",
            "give one a channel",
        )
    if kh > h + 2 * py or kw > w + 2 * px:
        raise CompileError(
            layer.name,
            f"kernel {kh}x{kw} is larger than its padded input {h + 2 * py}x{w + 2 * px}",
            "use larger images",
        )
    low, high = min(layer.shift), max(layer.shift)
    if low < 0 or high > params.MAX_SHIFT:
        raise CompileError(
            layer.name,
            f"requantisation shift {low if low < 0 else high} (in_frac + weight_frac - out_frac) is outside 0 to "
            f"{params.MAX_SHIFT}",
            "choose other fractions (a smaller out_frac raises the shift)",
        )
    if layer.pool is not None:
        pool, (_, oh, ow) = layer.pool, layer.conv_shape
        if pool.kernel < 1 or pool.stride < 1 or not 0 <= pool.pad < pool.kernel:
            raise CompileError(layer.name, f"pooling {pool} is malformed", "use 0 <= padding < kernel and stride >= 1")
        if pool.kernel > min(oh, ow) + 2 * pool.pad:
            raise CompileError(
                layer.name, f"pooling window {pool.kernel} is larger than its input {oh}x{ow}", "use larger images"
            )


def check_pipecnn(layer: Layer) -> None:
    """The preconditions of PipeCNN's arithmetic (`host.program.pipecnn`)."""
    if min(layer.shift) < 1:
        raise CompileError(
            layer.name,
            f"requantisation shift {min(layer.shift)} is below PipeCNN's least, 1",
            "choose a smaller out_frac, or the plain arithmetic",
        )
    bias_shift = min(layer.weight_frac) - layer.out_frac
    if not layer.constant and bias_shift < 1:
        raise CompileError(
            layer.name,
            f"its bias shift {bias_shift} (weight_frac - out_frac) is below PipeCNN's least, 1",
            "choose a smaller out_frac, or the plain arithmetic",
        )


def check_normalisation(layer: Layer) -> None:
    """What `host.program.lrn` can compute: squares that 32 bits add up, factors that 64 bits hold and round well."""
    how = layer.normalisation
    if how is None:
        raise CompileError(layer.name, "it normalises, but nothing says how", "correct the layer")
    if how.size < 1 or how.size * sums.MOST > sums.LIMIT:
        raise CompileError(
            layer.name,
            f"the squares of {how.size} channels do not add up in 32 bits",
            f"normalise over 1 to {sums.LIMIT // sums.MOST} channels",
        )
    ends = lrn.ends(how, layer.in_frac)
    if not lrn.LEAST_FACTOR <= min(ends) <= max(ends) <= lrn.MOST_FACTOR:
        raise CompileError(
            layer.name,
            f"its factors reach from {min(ends):.3g} to {max(ends):.3g} (in units of 2**-{lrn.FACTOR_FRAC}), outside "
            f"{lrn.LEAST_FACTOR} to {lrn.MOST_FACTOR:.3g}",
            "use k, alpha and beta that change values less",
        )


def check_accelerator(layer: Layer, config: Config) -> None:
    """What the descriptor's fields and the accelerator's buffers can take."""

    def refuse(reason: str, remedy: str = CPU_REMEDY) -> CompileError:
        return CompileError(layer.name, reason, remedy, "accelerator")

    if layer.operator == "lrn":
        raise refuse("local response normalisation has no integer form that the array computes")
    (kh, kw), (sy, sx), (py, px) = layer.kernel, layer.stride, layer.padding
    if max(sy, sx) > MAX_STRIDE:
        raise refuse(f"stride {max(sy, sx)} exceeds {MAX_STRIDE}")
    if py >= kh or px >= kw:
        raise refuse(f"padding {py}x{px} is not smaller than the kernel {kh}x{kw}")
    if layer.pool is not None:
        if layer.pool.kernel > MAX_POOL or layer.pool.stride > MAX_POOL:
            raise refuse(
                f"pooling window {layer.pool.kernel} with stride {layer.pool.stride}: both are at most {MAX_POOL}"
            )
        narrowest = max(band.out_size for band in cut(column_axis(layer), 1))
        if narrowest > config.pool_columns:
            raise refuse(
                f"its padded pooling takes {narrowest} pixels of a row together, the line buffer holds "
                f"{config.pool_columns}",
                f"build with pool_columns={narrowest} or more, or {CPU_REMEDY}",
            )
    how = reading(layer, config)
    extents = (layer.in_shape[1] + how.operands - 1, layer.in_shape[2], *layer.conv_shape[1:], how.groups_in)
    groups = output_groups(layer.out_channels, config.lanes, config.vec)
    if max(*extents, groups) > config.max_extent:
        raise refuse(
            f"an extent ({max(*extents, groups)}) exceeds {config.max_extent} (extent_bits={config.extent_bits})"
        )
    steps = arrangement.steps(layer, config)
    _, oh, ow = layer.conv_shape
    for what, count in (
        ("image of its convolution's output has {} bytes", features_bytes(*layer.conv_shape, config.vec)),
        ("image of its input has {} bytes", features_bytes(*layer.in_shape, config.vec)),
        ("output takes {} steps", steps),
    ):
        if count > config.max_count:
            raise refuse(f"an {what.format(count)}, more than {config.max_count} (count_bits={config.count_bits})")
    if groups * oh * ow * steps >= 1 << 32:
        raise refuse(f"one image takes {groups * oh * ow * steps} steps, more than 32 bits count")
