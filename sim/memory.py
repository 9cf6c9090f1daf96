"""Device memory: anonymous shared memory that simulator processes map, gone with its last user."""

from __future__ import annotations

import mmap
import os
import weakref
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


class DeviceMemory:
    """Shared device memory.

    It is a memfd: it has no name, so nothing can be left behind, whoever dies. Pages never written take no room.

    Parameters
    ----------
    nbytes : int

    Attributes
    ----------
    fd : int
        To be inherited by simulator processes.
    nbytes : int
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.fd = os.memfd_create("redline-memory", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, nbytes)
            self._map = mmap.mmap(self.fd, nbytes)
        except BaseException:
            os.close(self.fd)
            raise
        self._finalizer = weakref.finalize(self, os.close, self.fd)
        self._array: npt.NDArray[np.uint8] | None = np.frombuffer(self._map, np.uint8)

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """All of it, uint8, shape (nbytes,), writable."""
        if self._array is None:
            raise ValueError("device memory is closed")
        return self._array

    def close(self) -> None:
        """Unmap and close it; harmless a second time."""
        if self._array is not None:
            self._array = None
            self._map.close()
            self._finalizer()


@dataclass(frozen=True, kw_only=True)
class Stalls:
    """Seeded random stalls of the simulated memory.

    Parameters
    ----------
    seed : int
    ar, r, aw, w, b : float
        Probability, per cycle, that the channel stalls.
    """

    seed: int = 0
    ar: float = 0.0
    r: float = 0.0
    aw: float = 0.0
    w: float = 0.0
    b: float = 0.0

    def __post_init__(self) -> None:
        for name in ("ar", "r", "aw", "w", "b"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"stall probability {name} must be at least 0 and below 1, not {getattr(self, name)}")

    @classmethod
    def everywhere(cls, probability: float, seed: int = 0) -> Stalls:
        """The same probability on all five channels."""
        return cls(seed=seed, ar=probability, r=probability, aw=probability, w=probability, b=probability)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How fast the simulated memory is.

    Parameters
    ----------
    latency : int
        Cycles from a read request to its first beat, and from the last write beat to the response.
    bytes_per_cycle : float, optional
        Bandwidth of the read and of the write channel, each; at most one beat a cycle, which is the default.
    stalls : Stalls
    """

    latency: int = 32
    bytes_per_cycle: float | None = None
    stalls: Stalls = Stalls()

    def __post_init__(self) -> None:
        if not 1 <= self.latency < 1 << 20:
            raise ValueError(f"latency must be from 1 to {(1 << 20) - 1} cycles, not {self.latency}")
        if self.bytes_per_cycle is not None and not 1 / 256 <= self.bytes_per_cycle <= 4096:
            raise ValueError(f"bytes_per_cycle must be from 1/256 to 4096, not {self.bytes_per_cycle}")


DEFAULT_TIMING = Timing()
