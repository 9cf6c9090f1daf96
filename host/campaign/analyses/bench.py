"""What analyses under a fault rate run on: a network on a device, faults and images, from a campaign's settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from host import models
from host.campaign.campaign import CampaignError
from host.campaign.settings import Settings
from host.datasets import data as datasets
from host.datasets import imagenet
from host.datasets.data import Labelled
from host.devices import registry
from host.faults.models import Fault
from host.training.twin import Twin, attach


@dataclass(frozen=True)
class Bench:
    """Network, device, faults and images.

    Attributes
    ----------
    settings : Settings
        With a rate.
    test : images with labels
    calibrate : float tensor, shape (N, C, H, W)
    data_dir : str or None
    """

    settings: Settings
    test: Labelled
    calibrate: torch.Tensor
    data_dir: str | None

    @staticmethod
    def of(settings: Settings, data_dir: str | None = None) -> Bench:
        """Load the data that the settings name."""
        torch.set_num_threads(1)
        calibrate, test, _ = settings.data(data_dir)
        return Bench(settings.resolved(), test, calibrate, data_dir)

    @property
    def faults(self) -> Fault:
        """Soft errors at the settings' rate, and their clock and stuck bits."""
        faults = self.settings.faults
        if not isinstance(faults, Fault):
            raise CampaignError("this analysis needs a rate of soft errors, a clock or stuck bits")
        return faults

    @contextmanager
    def twin(self) -> Iterator[Twin]:
        """The network on the settings' device."""
        s = self.settings
        if s.weights is None and s.net not in models.SHIPPED:
            raise CampaignError(f"no weights of {s.net} come with Redline; name a file with --weights")
        net = models.MODELS[s.net](pretrained=s.weights or True)
        with registry.device(s.device, lanes=s.lanes, vec=s.vec, **s.instrumentation, **s.options) as device:
            yield attach(net, device, calibrate=self.calibrate, fallback="cpu").eval()

    def images(self) -> torch.Tensor:
        """All test images, float, shape (N, C, H, W)."""
        return self.test.batch(torch.arange(len(self.test)))[0]

    def probe(self, count: int) -> Labelled:
        """Images to choose by: the first of the training split; a folder of photos has no other than its own."""
        if self.settings.net in models.GREY:
            return datasets.load("fashion-mnist", "train", self.data_dir).head(count)
        assert self.settings.photos is not None
        return imagenet.load(self.settings.photos).spread(count)
