"""How fast a Program runs, layer by layer, without simulating: cycles, bytes, places on chip, and what binds them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from host.program.layers import Layer
from host.program.program import Program
from host.schedule import roofline
from host.schedule.cycles import Memory, estimate
from host.schedule.launch import Launch, schedule
from host.schedule.roofline import Bound
from host.schedule.traffic import Traffic, layer_traffic
from hw.config import Config
from hw.descriptor import Flag


@dataclass(frozen=True)
class Buffers:
    """Where a layer's tensors lie while it computes.

    Attributes
    ----------
    source : str
        Feature buffers that hold its input: "A", "B", or "A/B" where jobs take turns.
    loaded : bool
        Whether the input comes from memory; else the layer before has left it on chip.
    stored : str
        Feature buffer that takes its output for the next layer, or "" if none does.
    written : bool
        Whether its output also, or only, goes to memory.
    bands : int
        Bands of output rows that an image is computed in; 1 unless the input exceeds a feature buffer.
    streamed : bool
        Whether its weights exceed the ring and are fetched anew for every output.
    """

    source: str
    loaded: bool
    stored: str
    written: bool
    bands: int
    streamed: bool

    def __str__(self) -> str:
        """As "mem>A>B": from memory to buffer A, output to buffer B; "4x": in four bands."""
        ends = [self.stored] if self.stored else []
        ends += ["mem"] if self.written else []
        path = ">".join((["mem"] if self.loaded else []) + [self.source, "+".join(ends)])
        notes = [f"{self.bands}x"] if self.bands > 1 else []
        notes += ["weights streamed"] if self.streamed else []
        return " ".join([path, *notes])


@dataclass(frozen=True)
class LayerPerformance:
    """One layer on the accelerator, over a whole batch.

    Attributes
    ----------
    at : int
        Position in the Program.
    macs : int
        The layer's own products (`multiplications`) over the batch.
    cycles : float
        From the end of the job before its first to the end of its last; the last layer of a launch ends it.
    steps : int
        Cycles in which the array steps: the fewest for this array with any memory.
    fewest : int
        The roofline: the longer of `steps` and the moving of `traffic`.
    """

    at: int
    name: str
    macs: int
    cycles: float
    steps: int
    fewest: int
    traffic: Traffic
    bound: Bound
    buffers: Buffers

    @property
    def busy(self) -> float:
        """Share of the cycles in which the array steps."""
        return self.steps / self.cycles

    @property
    def intensity(self) -> float:
        """MACs a byte of the memory's busier channel."""
        return self.macs / max(self.traffic)


@dataclass(frozen=True)
class Performance:
    """A batch through a Program on one compute unit.

    Attributes
    ----------
    writeback : bool
        Whether every layer's outputs are written to memory (training), or only what must be (inference: chained).
    layers : tuple of LayerPerformance
        Those on the accelerator.
    on_cpu : tuple of str
        Those on the CPU, whose time is not counted.
    macs : int
        Products of convolutions and fully connected layers on the accelerator, over the batch.
    """

    config: Config
    memory: Memory
    batch: int
    writeback: bool
    layers: tuple[LayerPerformance, ...]
    on_cpu: tuple[str, ...]
    macs: int

    @cached_property
    def cycles(self) -> float:
        """Of the whole batch."""
        return sum(layer.cycles for layer in self.layers)

    @property
    def cycles_per_image(self) -> float:
        return self.cycles / self.batch

    @property
    def traffic(self) -> Traffic:
        """Of the whole batch."""
        moved = [layer.traffic for layer in self.layers]
        return Traffic(sum(one.read for one in moved), sum(one.written for one in moved))

    @property
    def busy(self) -> float:
        """Share of the cycles in which the array steps."""
        return sum(layer.steps for layer in self.layers) / self.cycles

    def images_per_second(self, mhz: float) -> float:
        """At this clock."""
        return mhz * 1e6 / self.cycles_per_image

    def gmacs_per_second(self, mhz: float) -> float:
        """10**9 useful MACs (`macs`) a second at this clock."""
        return self.macs / self.cycles * mhz * 1e-3


def predict(program: Program, memory: Memory, *, batch: int = 1, writeback: bool = False) -> Performance:
    """Schedule a batch and ask the cycle model (`host.schedule.cycles`); depends on shapes, not on weights.

    Raises
    ------
    CompileError
        If a layer placed on the accelerator does not fit it.
    """
    layers: list[LayerPerformance] = []
    on_cpu: list[str] = []
    rate = roofline.bandwidth(memory, program.config)
    for placement, positions in program.segments():
        if placement == "cpu":
            on_cpu += [program.layers[at].name for at in positions]
            continue
        launch = schedule(program, positions, batch, writeback=writeback)
        found = estimate(launch, memory)
        moved, places = layer_traffic(launch), _places(launch)
        spent = {at: found.layer(at)[:2] for at in positions}
        rest = found.cycles - sum(cycles for cycles, _ in spent.values())
        for at in positions:
            cycles, steps = spent[at]
            # What follows the last job, its writing above all, is the last layer's.
            cycles += rest if at == positions[-1] else 0.0
            layers.append(
                LayerPerformance(
                    at=at,
                    name=program.layers[at].name,
                    macs=batch * multiplications(program.layers[at]),
                    cycles=cycles,
                    steps=steps,
                    fewest=roofline.fewest(steps, moved[at], rate),
                    traffic=moved[at],
                    bound=roofline.bound(cycles, steps, moved[at], rate),
                    buffers=places[at],
                )
            )
    macs = sum(layer.macs for layer in layers if not program.layers[layer.at].constant)
    return Performance(program.config, memory, batch, writeback, tuple(layers), tuple(on_cpu), macs)


def multiplications(layer: Layer) -> int:
    """Products of one image that the layer itself needs: unfolded, without what fills up lanes and vec."""
    m, oh, ow = layer.conv_shape
    kernel_h, kernel_w = layer.kernel
    channels = layer.in_shape[0]
    if layer.fold is not None:
        channels, kernel_w = layer.fold.channels, layer.fold.kernel_w
    return m * oh * ow * channels // layer.groups * kernel_h * kernel_w


def _places(launch: Launch) -> dict[int, Buffers]:
    """By position, from the descriptors of the first compute unit."""
    unit = launch.units[0]
    places = {}
    for at in launch.positions:
        own = [(record, job) for record, job in zip(unit.descriptors, unit.jobs, strict=True) if job.layer == at]
        flags = [int(record["flags"]) for record, _ in own]
        computing = [flag for flag in flags if not flag & Flag.LOAD_ONLY]
        stored = {"B" if flag & Flag.DST_B else "A" for flag in computing if flag & Flag.STORE}
        places[at] = Buffers(
            source="/".join(sorted({"B" if flag & Flag.SRC_B else "A" for flag in computing})),
            loaded=any(flag & Flag.LOAD for flag in flags),
            stored="/".join(sorted(stored)),
            written=any(flag & (Flag.WRITE_CONV | Flag.WRITE_POOL) for flag in computing),
            bands=len({job.band for _, job in own}),
            streamed=any(flag & Flag.STREAM for flag in computing),
        )
    return places
