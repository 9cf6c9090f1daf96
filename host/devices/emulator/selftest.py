"""Whether kernels compute exactly: layers of all kinds against the reference, on random and on extreme data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from host.devices.emulator.native import VARIABLE, KernelError, Kernels
from host.devices.reference import ReferenceDevice
from host.faults.conditions import Conditions, StuckBit
from host.faults.plan import SITES, FaultPlan
from host.program.arrangement import steps
from host.program.layers import INPUT, Layer, Pool
from host.program.program import Program
from hw.config import Config

Int8 = npt.NDArray[np.int8]
MEMORY = 1 << 22
STUCK = Conditions(
    stuck=(
        StuckBit(3, "accumulator", 9, 1),
        StuckBit(5, "accumulator", 31, 0),
        StuckBit(5, "tree_1_0", 16, 1),
        StuckBit(14, "tree_3_0", 4, 0),
    )
)
"""Some lanes' bits, in accumulators and at both ends of the trees."""


def check(kernels: Kernels) -> None:
    """Raise `KernelError` unless the kernels give the reference's bytes.

    The data are random, and random signs of the largest values: kernels that saturate between products and sum (16-bit
    instructions do) are right on small values, and on -128 everywhere.
    """
    from host.devices.emulator.device import EmulatorDevice
    from host.devices.runtime import Runtime

    rng = np.random.default_rng(2_025)
    for program in _programs():
        reference = Runtime(program, ReferenceDevice(program.config, memory_bytes=MEMORY))
        # Walked and step by step; without faults both are the same.
        for dense_from in (1.0, 0.0):
            device = EmulatorDevice(program.config, memory_bytes=MEMORY, kernels=kernels, dense_from=dense_from)
            runtime = Runtime(program, device)
            for x in _images(program, rng):
                flips = _plan(program, rng)
                for plan in (None, flips, flips.under(STUCK)):
                    wanted, found = (it.forward(x, plan=plan) for it in (reference, runtime))
                    for layer in program.layers:
                        for right, seen in (
                            (wanted.conv[layer.name], found.conv[layer.name]),
                            (wanted.out[layer.name], found.out[layer.name]),
                        ):
                            if not np.array_equal(right, seen):
                                raise KernelError(
                                    f"the {kernels.level} kernels do not compute exactly on this processor (layer "
                                    f"{layer.name!r}, {int((right != seen).sum())} of {right.size} values wrong): "
                                    f"choose others with {VARIABLE}, and please report this"
                                )


def _programs() -> Iterator[Program]:
    for arithmetic in ("redline", "pipecnn"):
        config = Config(arithmetic=arithmetic)
        layers = (
            _layer("wide", (INPUT,), (13, 6, 6), 70, (3, 2), pool=Pool(3, 2, 1)),
            _layer("each", ("wide",), (70, 3, 3), 70, (3, 3), groups=70, relu=False),
            _layer("groups", ("each",), (70, 3, 3), 10, (1, 1), groups=5, relu=False),
            _layer("full", ("groups",), (10, 3, 3), 18, (3, 3), padding=(0, 0)),
        )
        rng = np.random.default_rng(7)
        weights = {
            layer.name: (_extreme if at % 2 else _random)(rng, layer.weight_shape) for at, layer in enumerate(layers)
        }
        limit = 100 if arithmetic == "pipecnn" else 1 << 31
        biases = {layer.name: rng.integers(-limit, limit, layer.out_channels).astype(np.int32) for layer in layers}
        yield Program(config, layers, weights, biases, (13, 6, 6), 0)
        # Long sums of extreme values.
        long = _layer("long", (INPUT,), (600, 1, 1), 33, (1, 1), padding=(0, 0), relu=False, shift=16)
        yield Program(
            config,
            (long,),
            {"long": _extreme(rng, long.weight_shape)},
            {"long": np.zeros(33, np.int32)},
            (600, 1, 1),
            0,
        )


def _layer(
    name: str,
    sources: tuple[str, ...],
    shape: tuple[int, int, int],
    outputs: int,
    kernel: tuple[int, int],
    *,
    padding: tuple[int, int] | None = None,
    groups: int = 1,
    relu: bool = True,
    pool: Pool | None = None,
    shift: int = 9,
) -> Layer:
    padding = (kernel[0] // 2, 0) if padding is None else padding
    if kernel == (3, 3) and padding == (1, 0):
        padding = (1, 1)
    # All activations at fraction 0: the weights' fraction is the shift.
    return Layer(
        name, sources, shape, outputs, kernel, (1, 1), padding, relu, pool, 0, (shift,) * outputs, 0, groups=groups
    )


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> Int8:
    return rng.integers(-128, 128, shape).astype(np.int8)


def _extreme(rng: np.random.Generator, shape: tuple[int, ...]) -> Int8:
    return rng.choice(np.array([-128, 127], np.int8), shape)


def _images(program: Program, rng: np.random.Generator) -> Iterator[Int8]:
    shape = (2, *program.input_shape)
    yield _random(rng, shape)
    yield _extreme(rng, shape)
    yield np.full(shape, -128, np.int8)


def _plan(program: Program, rng: np.random.Generator) -> FaultPlan:
    """Accumulator flips all over."""
    plan = FaultPlan.of(program.names)
    for at, layer in enumerate(program.layers):
        count = 40
        plan = plan + FaultPlan.of(
            program.names,
            rng.integers(0, 2, count),
            at,
            SITES.index("mac"),
            rng.integers(0, int(np.prod(layer.conv_shape)), count),
            rng.integers(0, steps(layer, program.config), count),
            rng.integers(0, 32, count),
        )
    return plan
