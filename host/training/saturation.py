"""Outputs and weights at the end of their range: counted by layer, and ranges chosen anew when there are many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from host.devices.runtime import Outputs
from host.program.program import Program
from hw.errors import RedlineError

if TYPE_CHECKING:
    from host.training.twin import Twin

SHARE = 0.02
"""Share of saturated values from which ranges are chosen anew; calibrated layers have less."""
SAID = 0.1
"""Share of saturated outputs that is said without being asked."""


class RecalibrationError(RedlineError, ValueError):
    """A rule for recalibration that cannot be followed; the message says why."""


@dataclass(frozen=True)
class Saturation:
    """How much of a layer is at the end of its range, where larger values would not show.

    Attributes
    ----------
    layer : str
    outputs : int
        Outputs before pooling, of all images of a forward pass.
    low, high : int
        Of these, how many are -128 and 127. A ReLU's zeros and a ReLU6's sixes are meant to be: they do not count.
    weights : int
        Stored weights.
    clipped : int
        Of these, how many are -128 or 127.
    """

    layer: str
    outputs: int
    low: int
    high: int
    weights: int
    clipped: int

    @property
    def share(self) -> float:
        """Share of saturated outputs."""
        return (self.low + self.high) / self.outputs

    @property
    def clipped_share(self) -> float:
        """Share of weights at the end of their range."""
        return self.clipped / self.weights

    def __str__(self) -> str:
        return (
            f"{self.layer}: {100 * self.share:.1f} % of its outputs saturate ({100 * self.low / self.outputs:.1f} % at "
            f"-128, {100 * self.high / self.outputs:.1f} % at 127), {100 * self.clipped_share:.1f} % of its weights"
        )


def saturation(program: Program, outputs: Outputs) -> dict[str, Saturation]:
    """Saturation of every layer whose outputs a forward pass brought back, by name."""
    found = {}
    for layer in program.layers:
        values = outputs.conv.get(layer.name, outputs.out.get(layer.name))
        if values is None:
            continue
        low = 0 if layer.relu else _count(values, -128)
        high = _count(values, 127) if layer.upper == 127 else 0
        weight = program.weights[layer.name]
        clipped = 0 if layer.constant else _count(weight, -128) + _count(weight, 127)
        found[layer.name] = Saturation(layer.name, values.size, low, high, weight.size, clipped)
    return found


def _count(values: npt.NDArray[np.int8], value: int) -> int:
    return int(np.count_nonzero(values == value))


@dataclass(frozen=True)
class Recalibration:
    """When ranges are chosen anew during training.

    Attributes
    ----------
    share : float, optional
        When more than this share of a layer's outputs or weights saturates.
    every : int, optional
        After this many steps, saturated or not.
    check : int
        Steps between two looks at the share.
    images : int
        Images that `retrain` calibrates with: the first of its data set.
    """

    share: float | None = SHARE
    every: int | None = None
    check: int = 10
    images: int = 512

    def __post_init__(self) -> None:
        if self.share is None and self.every is None:
            raise RecalibrationError("give share= or every=: a recalibration that never happens is recalibrate=None")
        if self.share is not None and not 0 <= self.share < 1:
            raise RecalibrationError(f"share is from 0 to below 1, not {self.share}")
        for name in ("every", "check", "images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecalibrationError(f"{name} is at least 1, not {value}")

    def due(self, step: int, twin: Twin) -> bool:
        """Whether to recalibrate after step number `step` (from 1), of which the twin has the last forward pass."""
        if self.every is not None and step % self.every == 0:
            return True
        if self.share is None or step % self.check:
            return False
        found = twin.saturation.values()
        return any(one.share > self.share or one.clipped_share > self.share for one in found)


class Recalibrator:
    """Keeps a twin's ranges wide enough in a training loop of one's own: call `step` after `optimiser.step()`.

    Parameters
    ----------
    twin : Twin
    images : float tensor, shape (N, C, H, W), data set or loader
        As for `attach(calibrate=)`.
    when : Recalibration
    """

    def __init__(self, twin: Twin, images: Any, when: Recalibration | None = None) -> None:
        self.twin, self.images, self.when = twin, images, when or Recalibration()
        self.steps = 0

    def step(self) -> list[str]:
        """Count a step, and recalibrate if it is time; returns the names of the layers whose ranges changed."""
        self.steps += 1
        return self.twin.recalibrate(self.images) if self.when.due(self.steps, self.twin) else []
