"""The Device contract: the papers' seven functions, which every backend implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from host.program import quantisation
from host.program.arrangement import pack_weights
from hw import layout
from hw.config import Config
from hw.errors import RedlineError

if TYPE_CHECKING:
    from host.devices.runtime import Runtime
    from host.program.layers import Layer, Pool
    from host.program.program import Program
    from host.schedule.launch import Launch
    from host.schedule.memory import Region

Bytes = npt.NDArray[np.uint8]
Int8 = npt.NDArray[np.int8]


class DeviceError(RedlineError, RuntimeError):
    """A device could not do what was asked; the message says why and what to do about it."""


@dataclass(frozen=True)
class LaunchReport:
    """What a device counted during one launch (summed over its compute units); zero where a device does not count."""

    cycles: int = 0
    mac_cycles: int = 0
    stall_cycles: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    faults_applied: int = 0

    def __add__(self, other: LaunchReport) -> LaunchReport:
        return LaunchReport(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


class Device(ABC):
    """An accelerator with byte-addressed memory.

    Five methods are required (`launch`, `write`, `read`, `quantise`, `dequantise`), the last two with an exact default;
    `reorder` and `recover` matter only to devices whose memory layout differs from NCHW. `write_features`,
    `read_features`, `write_weights` and `write_params` are these and memory access in one step, for devices that know a
    shorter way.

    Attributes
    ----------
    name : str
        Name as given to `redline.device`.
    config : hw.config.Config
        Parameters of the accelerator behind it.
    memory_bytes : int
        Size of device memory.
    units : int
        Compute units: a launch's batch is split over this many descriptor lists.
    reads_events : bool
        Whether faults reach it as event lists; if not, it interprets the launch's plan, and the lists stay empty.
    knows_conditions : bool
        Whether it models what a plan says beside flips: late and stuck bits (`host.faults.conditions`).
    """

    name: str
    config: Config
    memory_bytes: int
    units: int = 1
    reads_events: bool = True
    knows_conditions: bool = False
    _made_with: tuple[Callable[..., Device], tuple[str, Config, dict[str, Any]]] | None = None
    """How a process that loads it makes one like it: `redline.device` says so of those that it makes."""

    @abstractmethod
    def launch(self, launch: Launch) -> LaunchReport:
        """Execute one launch on what lies in device memory (launchAccelerator). Blocks until done.

        Raises
        ------
        DeviceError
            If the device failed, hung or is of another build; memory is then undefined and must be written again.
        """

    @abstractmethod
    def write(self, address: int, array: npt.NDArray) -> None:
        """Copy an array's bytes to device memory (dataToFPGA)."""

    @abstractmethod
    def read(self, address: int, nbytes: int) -> Bytes:
        """Copy of `nbytes` of device memory, uint8, shape (nbytes,) (dataFromFPGA)."""

    def write_features(self, region: Region, x: Int8) -> None:
        """Feature maps, shape (N, C, H, W), to their region. The device may keep `x`: it must not change afterwards."""
        self.write(region.address, self.reorder(x))

    def read_features(self, region: Region, channels: int) -> Int8:
        """A region's feature maps, shape (N, `channels`, H, W)."""
        return self.recover(self.read(region.address, region.nbytes).view(np.int8).reshape(region.shape), channels)

    def write_weights(self, region: Region, weight: Int8, layer: Layer) -> None:
        """A layer's OIHW weights to their region. The device may keep `weight`: it must not change afterwards."""
        self.write(region.address, pack_weights(weight, layer, self.config))

    def write_params(self, region: Region, bias: npt.NDArray[np.int32], layer: Layer) -> None:
        """A layer's biases, shape (M,), and its shifts to their region. The device may keep `bias`, too."""
        self.write(region.address, layout.pack_params(bias, layer.shifts, self.config.lanes, self.config.vec))

    def quantise(self, x: npt.NDArray[np.floating], frac: int | npt.NDArray[np.integer]) -> Int8:
        """Float to int8 at scale `2**-frac`: ties to +inf, saturating (convertFloatToInt).

        `frac` is one for all, or one for each of the first axis.
        """
        if np.ndim(frac):
            frac = np.reshape(frac, (-1,) + (1,) * (np.ndim(x) - 1))
        return np.clip(np.floor(np.ldexp(np.asarray(x, np.float64), frac) + 0.5), -128, 127).astype(np.int8)

    def quantise_finite(self, x: npt.NDArray[np.floating], frac: int | npt.NDArray[np.integer]) -> Int8 | None:
        """`quantise`; None if a value is NaN or infinite."""
        return self.quantise(x, frac) if quantisation.finite(x) else None

    def quantise_layer(
        self, layer: Layer, weight: npt.NDArray[np.floating], bias: npt.NDArray[np.floating]
    ) -> tuple[Int8, npt.NDArray[np.int32]] | None:
        """For devices that know a short way to a layer's integers; None: there is none, or a value is not finite.

        Parameters
        ----------
        layer : Layer
        weight : float array, shape (M, C, KH, KW), unfolded
        bias : float array, shape (M,)

        Returns
        -------
        int8 array, shaped as `weight`, and int32 array, shape (M,), at `weight_frac` and `in_frac + weight_frac`
        """
        return None

    def dequantise(self, x: Int8, frac: int) -> npt.NDArray[np.float32]:
        """Int8 at scale `2**-frac` to float32, exact (convertIntToFloat)."""
        return np.ldexp(x.astype(np.float32), -frac)

    def reorder(self, x: Int8) -> Int8:
        """NCHW features to the device's layout (dataLayoutReorder)."""
        return layout.reorder_features(x, self.config.vec)

    def recover(self, x: Int8, channels: int) -> Int8:
        """The device's layout back to NCHW (dataLayoutRecover)."""
        return layout.recover_features(x, channels)

    def runtime(self, program: Program) -> Runtime:
        """What runs a program on this device; a device that overlaps transfers brings its own."""
        from host.devices.runtime import Runtime  # it imports Device

        return Runtime(program, self)

    def unpool(
        self, conv: Int8, grad: npt.NDArray[np.float32], pool: Pool | None, low: int, upper: int
    ) -> npt.NDArray[np.float32] | None:
        """For devices that know a short way through max pooling and saturation backwards; None: there is none.

        Parameters
        ----------
        conv : int8 array, shape (N, M, OH, OW)
            What was pooled.
        grad : float32 array, shape (N, M, PH, PW)
            Gradient of the pooled values.
        pool : Pool or None
            None: nothing was pooled.
        low, upper : int
            A value passes its gradient strictly between them.

        Returns
        -------
        float32 array, shape (N, M, OH, OW)
            Each gradient at the first largest value of its window; the same bits as the training's own way.
        """
        return None

    def describe(self) -> str:
        """What computes, in a line."""
        return self.name

    def close(self) -> None:  # noqa: B027 - optional to override
        """Release processes, files and handles. The device cannot be used afterwards."""

    # A device is one thing: copies of what uses it share it, and a process that loads it makes another.

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[Callable[..., Device], tuple[object, ...]]:
        if self._made_with is None:
            raise DeviceError(
                f"this {self.name} device cannot be pickled: it was not made by redline.device(), so that it is not "
                "known how to make it again"
            )
        return self._made_with

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
