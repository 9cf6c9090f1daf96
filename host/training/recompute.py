"""Forward passes that are computed again during backward (`torch.utils.checkpoint`): same images, same faults."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch

from host.devices.device import Int8
from host.faults.models import Fault
from hw.errors import RedlineError

MOST = 4096
"""Forward passes that are remembered; those of one step, in practice."""


class RecomputeError(RedlineError, RuntimeError):
    """A forward pass is computed again, and its faults cannot be told; the message says why and what to do."""


class Meeting(NamedTuple):
    """The faults that the images of a forward pass met: those of `first_image` and the following."""

    faults: Fault | None
    seed: int
    first_image: int


CLEAN = Meeting(None, 0, 0)


def recomputing() -> bool:
    """Whether this is within a backward pass, where only what is computed again calls forward."""
    return torch._C._current_graph_task_id() != -1  # as torch.utils.checkpoint asks


def may_be_recomputed() -> bool:
    """Whether a forward pass in training is one that backward may ask for again.

    Reentrant checkpoints run it without a graph, the others with hooks for the tensors that it saves.
    """
    return not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


class Recomputed:
    """What faults forward passes met, for when they are computed again. Passes are known by their images."""

    def __init__(self) -> None:
        self._met: OrderedDict[tuple[int, ...], list[Meeting]] = OrderedDict()
        self._recalled: set[tuple[int, ...]] = set()

    def remember(self, images: Int8, meeting: Meeting) -> None:
        """Note what int8 images, shape (N, C, H, W), have met."""
        key = _key(images)
        if key in self._recalled:
            # Its turn is over: these are the same images in another step.
            self._recalled.discard(key)
            del self._met[key]
        self._met.setdefault(key, []).append(meeting)
        self._met.move_to_end(key)
        while len(self._met) > MOST:
            old, _ = self._met.popitem(last=False)
            self._recalled.discard(old)

    def recall(self, images: Int8) -> Meeting | None:
        """What the images met when they were computed first; None if that was not noted.

        Raises
        ------
        RecomputeError
            If the same images were computed several times, and met different faults.
        """
        key = _key(images)
        found = self._met.get(key)
        if not found:
            return None
        if any(one != found[0] for one in found[1:]):
            raise RecomputeError(
                "a checkpointed forward pass is computed again, but its images were computed several times since, with "
                f"the faults of images {', '.join(str(one.first_image) for one in found)}: call backward after each "
                "forward pass, or do without torch.utils.checkpoint"
            )
        self._recalled.add(key)
        return found[0]


def _key(images: Int8) -> tuple[int, ...]:
    return (*images.shape, hash(images.tobytes()))
