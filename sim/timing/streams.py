"""Operand streams: what a lane array's registers see, step after step, as recorded from a layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hw.errors import RedlineError


class StreamError(RedlineError, ValueError):
    """A file is no operand stream, or one for another array."""


@dataclass(frozen=True)
class Stream:
    """Consecutive steps of a job, in Program order.

    Attributes
    ----------
    name : str
        Where it comes from.
    features : int8 array, shape (steps, vec)
        Shared by all lanes.
    weights : int8 array, shape (steps, lanes, vec)
    first : bool array, shape (steps,)
        The step starts an output.
    bias : int32 array, shape (steps, lanes)
        In the lanes' parameter registers.
    """

    name: str
    features: npt.NDArray[np.int8]
    weights: npt.NDArray[np.int8]
    first: npt.NDArray[np.bool_]
    bias: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        steps, lanes, vec = self.weights.shape if self.weights.ndim == 3 else (0, 0, 0)
        wanted = {
            "features": ((steps, vec), np.int8),
            "weights": ((steps, lanes, vec), np.int8),
            "first": ((steps,), np.bool_),
            "bias": ((steps, lanes), np.int32),
        }
        for field, (shape, dtype) in wanted.items():
            array = getattr(self, field)
            if array.shape != shape or array.dtype != dtype:
                raise StreamError(
                    f"{self.name}: {field} must be {np.dtype(dtype)} of shape {shape}, "
                    f"not {array.dtype} of shape {array.shape}"
                )
        if not steps or not self.first[0]:
            raise StreamError(f"{self.name}: a stream begins with the first step of an output")

    def __len__(self) -> int:
        return len(self.features)

    def products(self, lane: int) -> npt.NDArray[np.uint32]:
        """The lane's products as 32-bit words, shape (steps, vec)."""
        return (self.features.astype(np.int32) * self.weights[:, lane]).astype(np.int32).view(np.uint32)

    def head(self, steps: int) -> Stream:
        """The first `steps` steps."""
        return Stream(self.name, self.features[:steps], self.weights[:steps], self.first[:steps], self.bias[:steps])

    def save(self, path: Path) -> None:
        """Write a .npz file."""
        np.savez_compressed(
            path,
            name=np.array(self.name),
            features=self.features,
            weights=self.weights,
            first=self.first,
            bias=self.bias,
        )

    @classmethod
    def load(cls, path: Path) -> Stream:
        """Read a .npz file.

        Raises
        ------
        StreamError
            If it cannot be read or is no operand stream.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(str(file["name"]), file["features"], file["weights"], file["first"], file["bias"])
        except (OSError, KeyError, ValueError) as error:
            if isinstance(error, StreamError):
                raise
            raise StreamError(f"{path} is no operand stream: {error}") from error
