"""The `emulator` device: the reference's bytes from compiled kernels."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from weakref import finalize

import numpy as np
import numpy.typing as npt

from host.devices.checks import check_launch
from host.devices.device import Bytes, Device, DeviceError, Int8, LaunchReport
from host.devices.emulator import native
from host.devices.emulator.cosim import Sampled, SampledCosim
from host.devices.emulator.memory import Features, Images, Memory, Params, Weights
from host.devices.emulator.native import KernelError, Kernels
from host.devices.emulator.plan import Packed, Plan, Step
from host.devices.reference import ReferenceDevice
from host.program.arrangement import unpack_weights
from host.program.layers import Layer, Pool
from host.schedule import memory
from host.schedule.launch import Launch
from host.schedule.memory import Region
from host.schedule.tiling import column_bands, parts
from hw import params
from hw.config import Config

log = logging.getLogger("redline.emulator")


@cache
def _say_once(what: str) -> None:
    log.warning("the emulator has no kernels for %s: the reference computes them, which is much slower", what)


def _forgets_within_rows(launch: Launch) -> bool:
    """Whether some layer's lanes find a history of zeros elsewhere than at the beginning of its output rows."""
    program = launch.program
    layers = [program.layers[at] for at in launch.positions]
    return any(len(column_bands(layer, program.config)) > 1 or parts(layer, program.config) for layer in layers)


PLANS = 8
"""Schedules whose feature maps are kept."""
MOST_FRAC = 100
"""Beyond it, a scale or a value may be too small for an ordinary float32."""
FEW = 1 << 8
"""Values too few to be worth a kernel's call."""


class EmulatorDevice(ReferenceDevice):
    """Computes what the accelerator must, with faults, in compiled kernels.

    The kernels are built on first use and cached; they are the fastest that the processor has instructions for, and are
    tested against the reference when they are loaded. Where there is no compiler, the reference computes instead, which
    a warning and `describe` say.

    Parameters
    ----------
    config : Config
    memory_bytes : int
        Size of device memory; only touched pages take room.
    units : int
        Compute units; changes how a batch is scheduled, not the results.
    threads : int
        Threads that share a launch's images.
    kernels : str or Kernels, optional
        "vnni", "avx2" or "portable" (`host.devices.emulator.native.LEVELS`); "reference": none. By default what the
        environment variable `REDLINE_KERNELS` says, else the fastest.
    dense_from : float, optional
        Share of a layer's outputs with accumulator faults from which on all are computed step by step; by default where
        that begins to be faster, measured once a process.
    sampled_cosim : float
        Share of the launches, chosen at random, that run on the RTL as well, to be compared byte by byte
        (`host.devices.emulator.cosim`). With faults, the accelerator needs their instrumentation (`saboteur`,
        `overclock`).
    cosim_seed : int
        Which launches.
    cosim_device : Device, optional
        What to compare with instead of the simulation.

    Raises
    ------
    DeviceError
        If the kernels asked for cannot be had.
    """

    name = "emulator"

    def __init__(
        self,
        config: Config | None = None,
        *,
        memory_bytes: int = 1 << 32,
        units: int = 1,
        threads: int = 1,
        kernels: str | Kernels | None = None,
        dense_from: float | None = None,
        sampled_cosim: float = 0.0,
        cosim_seed: int = 0,
        cosim_device: Device | None = None,
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        self.config = config or Config()
        self.memory_bytes = memory_bytes
        self.units = units
        self.threads = threads
        self.fallback = ""
        """Why the reference computes; empty if the kernels do."""
        self._closed = False
        self.kernels = self._load(kernels)
        self.reads_events = self.kernels is None  # the reference counts them
        self._content = Memory(memory_bytes)
        self._dense_from = dense_from
        self._plans: list[Plan] = []
        self._packed: dict[tuple[int, int], tuple[Layer, Packed]] = {}
        """By identities of weights and layer; the weights' entries leave with them, and an entry keeps its layer."""
        self._scales: dict[int, tuple[Layer, npt.NDArray[np.float64], npt.NDArray[np.float64]]] = {}
        """By a layer's identity, which the entry keeps alive: its weights' and its biases' scales."""
        self._cosim = SampledCosim(sampled_cosim, cosim_seed, self, cosim_device) if sampled_cosim else None
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def _load(self, asked: str | Kernels | None) -> Kernels | None:
        if isinstance(asked, Kernels):
            return asked
        asked = native.asked(asked)
        if asked == "reference":
            self.fallback = "asked for"
            return None
        try:
            return native.load(asked)
        except KernelError as error:
            if asked is not None:
                raise DeviceError(str(error)) from error
            self.fallback = str(error)
            log.warning("the emulator computes with the reference, which is much slower: %s", error)
            return None

    def describe(self) -> str:
        """What computes, in a line."""
        if self.kernels is None:
            return f"emulator, computed by the reference ({self.fallback})"
        return f"emulator, {self.kernels.level} kernels, {self.threads} thread(s)"

    @property
    def sampled(self) -> Sampled | None:
        """What `sampled_cosim` has found so far, and the bound on the rate of mismatches that follows; None without."""
        return None if self._cosim is None else self._cosim.found

    def close(self) -> None:
        self._closed = True
        if self._cosim is not None:
            self._cosim.close()
        if self._pool is not None:
            self._pool.shutdown()

    # ---- memory

    def write(self, address: int, array: npt.NDArray) -> None:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._check(address, len(raw))
        self._content.write(address, raw)

    def read(self, address: int, nbytes: int) -> Bytes:
        self._check(address, nbytes)
        return self._content.view(address, nbytes).copy()

    def write_features(self, region: Region, x: Int8) -> None:
        self._check(region.address, region.nbytes)
        self._content.put(region, Images(x, self.config.vec))

    def read_features(self, region: Region, channels: int) -> Int8:
        self._check(region.address, region.nbytes)
        content = self._content.content(region)
        if isinstance(content, Features):
            x = content.images()
            if x.shape[1] == channels:
                return x
        return super().read_features(region, channels)

    def write_weights(self, region: Region, weight: Int8, layer: Layer) -> None:
        self._check(region.address, region.nbytes)
        self._content.put(region, Weights(weight, layer, self.config))

    def write_params(self, region: Region, bias: npt.NDArray[np.int32], layer: Layer) -> None:
        self._check(region.address, region.nbytes)
        self._content.put(region, Params(bias, layer.shifts, self.config))

    def quantise(self, x: npt.NDArray[np.floating], frac: int | npt.NDArray[np.integer]) -> Int8:
        if self.kernels is not None and x.dtype == np.float32 and x.size > FEW:
            found = self.kernels.quantise(np.ascontiguousarray(x), np.asarray(frac))
            if found is not None:
                return found
        return super().quantise(x, frac)

    def quantise_finite(self, x: npt.NDArray[np.floating], frac: int | npt.NDArray[np.integer]) -> Int8 | None:
        if self.kernels is not None and x.dtype == np.float32 and x.size > FEW:
            return self.kernels.quantise(np.ascontiguousarray(x), np.asarray(frac))
        return super().quantise_finite(x, frac)

    def quantise_layer(
        self, layer: Layer, weight: npt.NDArray[np.floating], bias: npt.NDArray[np.floating]
    ) -> tuple[Int8, npt.NDArray[np.int32]] | None:
        if self.kernels is None or self.config.arithmetic != "redline" or not weight.dtype == bias.dtype == np.float32:
            return None
        known = self._scales.get(id(layer))
        if known is None:
            fracs = layer.weight_fracs
            known = layer, np.ldexp(1.0, fracs), np.ldexp(1.0, fracs + layer.in_frac)
            self._scales[id(layer)] = known
        _, scale, bias_scale = known
        return self.kernels.quantise_layer(np.ascontiguousarray(weight), scale, np.ascontiguousarray(bias), bias_scale)

    def dequantise(self, x: Int8, frac: int) -> npt.NDArray[np.float32]:
        if self.kernels is None or abs(frac) > MOST_FRAC:
            return super().dequantise(x, frac)
        return self.kernels.dequantise(np.ascontiguousarray(x), 2.0**-frac)

    def unpool(
        self, conv: Int8, grad: npt.NDArray[np.float32], pool: Pool | None, low: int, upper: int
    ) -> npt.NDArray[np.float32] | None:
        if self.kernels is None:
            return None
        return self.kernels.unpool(np.ascontiguousarray(conv), np.ascontiguousarray(grad), pool, low, upper)

    # ---- launches

    def launch(self, launch: Launch) -> LaunchReport:
        if self._cosim is None:
            return self._compute(launch)
        return self._cosim.check(launch, lambda: self._compute(launch))

    def _compute(self, launch: Launch) -> LaunchReport:
        if self.kernels is None:
            return super().launch(launch)
        check_launch(self, launch)
        conditions = None if launch.plan is None else launch.plan.conditions
        if conditions is not None and conditions.clock is not None and _forgets_within_rows(launch):
            _say_once("late bits in layers that are cut into columns, or computed output by output")
            return super().launch(launch)
        plan = self._plan(launch, self.kernels, conditions is not None and bool(conditions.stuck))
        for name, fmap in plan.inputs.items():
            region = launch.memory[memory.input_name(name)]
            fmap.load(self.read_features(region, launch.inputs[name]))
        for at, step in enumerate(plan.steps):
            plan.bind(at, *self._weights(plan, step), self._parameters(step))
        applied = plan.inject(launch, self._share(launch))
        self._run(plan, launch.batch)
        for region, fmap in plan.written:
            self._content.put(region, fmap)
        return LaunchReport(faults_applied=applied)

    def _run(self, plan: Plan, batch: int) -> None:
        kernels = self.kernels
        assert kernels is not None
        if self._pool is None:
            kernels.run(plan.layers, 0, batch)
            return
        edges = [batch * i // self.threads for i in range(self.threads + 1)]
        list(self._pool.map(lambda i: kernels.run(plan.layers, edges[i], edges[i + 1]), range(self.threads)))

    def _plan(self, launch: Launch, kernels: Kernels, filled: bool) -> Plan:
        """The plan of a launch's schedule: launches of one schedule share its memory map."""
        for at, plan in enumerate(self._plans):
            if plan.memory is launch.memory and plan.filled == filled:
                self._plans.insert(0, self._plans.pop(at))
                return plan
        plan = Plan(launch, kernels, turns=self._pool is None, filled=filled)
        self._plans = [plan, *self._plans[: PLANS - 1]]
        return plan

    def _weights(self, plan: Plan, step: Step) -> tuple[Int8, Packed]:
        region, layer = step.weights_region, step.layer
        content = self._content.content(region)
        if not isinstance(content, Weights) or content.weight.shape != layer.weight_shape:
            raw = self._content.view(region.address, region.nbytes).view(np.int8).reshape(region.shape)
            content = Weights(unpack_weights(raw, layer, self.config), layer, self.config)
            self._content.add_form(region, content)
        weight = content.weight
        key = (id(weight), id(layer))
        found = self._packed.get(key)
        if found is None:
            found = self._packed[key] = layer, plan.pack(step, weight)
            # Weights that came with a fault leave with it, those without stay packed.
            finalize(weight, self._packed.pop, key, None).atexit = False
        return weight, found[1]

    def _parameters(self, step: Step) -> Params:
        region, channels = step.params_region, step.layer.out_channels
        content = self._content.content(region)
        if not isinstance(content, Params) or len(content.bias) != channels:
            raw = self._content.view(region.address, region.nbytes).copy()
            records = raw.view(params.DTYPE)[:channels]
            shift = records["shift"].astype(np.int32) & params.MAX_SHIFT
            content = Params(records["bias"].copy(), shift, self.config)
            self._content.add_form(region, content)
        return content

    def _share(self, launch: Launch) -> float:
        if self._dense_from is not None:
            return self._dense_from
        if launch.plan is None or not len(launch.plan):
            return 1.0
        from host.devices.emulator.cost import dense_from

        assert self.kernels is not None
        return dense_from(self.kernels)
