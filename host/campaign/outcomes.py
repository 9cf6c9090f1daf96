"""What a fault did to an inference, in the terms of the literature; docs/campaigns.md defines them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from host.devices.device import Int8

Bools = npt.NDArray[np.bool_]
TOP = 5


@dataclass(frozen=True)
class Ranking:
    """The classes of some images in the order of a network's outputs; where outputs tie, the lower class comes first.

    Attributes
    ----------
    classes : int64 array, shape (n, min(5, classes))
        The first five.
    """

    classes: npt.NDArray[np.int64]

    @classmethod
    def of(cls, outputs: Int8) -> Ranking:
        """From a network's integer outputs, shape (n, ...)."""
        flat = outputs.reshape(len(outputs), -1).astype(np.int64)
        return cls(np.argsort(-flat, axis=1, kind="stable")[:, :TOP])

    @property
    def first(self) -> npt.NDArray[np.int64]:
        """The class of the largest output, shape (n,)."""
        return self.classes[:, 0]

    def holds(self, classes: npt.NDArray[np.int64]) -> Bools:
        """Whether each image's class is among its first five."""
        return (self.classes == classes[:, None]).any(axis=1)


class Outcomes(NamedTuple):
    """Of each image of a trial, shape (n,)."""

    masked: Bools
    """Every output of the network is, bit for bit, what it is without faults."""
    sdc1: Bools
    """The top class is not the fault-free one (SDC-1, Li et al. 2017)."""
    sdc5: Bools
    """The top class is not among the fault-free top five (SDC-5, Li et al. 2017)."""
    top1: Bools
    """The top class is the label."""
    top5: Bools
    """The label is among the top five."""


def outcomes(faulty: Int8, clean: Int8, labels: npt.NDArray[np.int64]) -> Outcomes:
    """Compare a network's integer outputs with and without faults, shape (n, ...), and with labels, shape (n,)."""
    same = (faulty == clean).reshape(len(faulty), -1).all(axis=1)
    now, before = Ranking.of(faulty), Ranking.of(clean)
    return Outcomes(
        masked=same,
        sdc1=now.first != before.first,
        sdc5=~before.holds(now.first),
        top1=now.first == labels,
        top5=now.holds(labels),
    )
