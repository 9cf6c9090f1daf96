"""Sampled co-simulation: a random, seeded share of launches runs on the RTL as well, and every byte is compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from host.devices.device import Device, DeviceError, LaunchReport
from host.schedule import memory
from host.schedule.launch import Launch


class CosimMismatch(DeviceError):
    """A sampled launch left other bytes on the RTL; the message says where, and which launch it was."""


@dataclass(frozen=True)
class Sampled:
    """What sampled co-simulation has found.

    Attributes
    ----------
    share : float
        Of the launches, how many are sampled on average.
    seed : int
    launches : int
        All launches so far.
    compared : int
        Those that ran on the RTL, too.
    mismatches : int
        Those of them whose bytes differed.
    """

    share: float
    seed: int
    launches: int = 0
    compared: int = 0
    mismatches: int = 0

    def bound(self, confidence: float = 0.95) -> float:
        """The largest share of launches with wrong bytes that the sample allows, one-sided (Clopper and Pearson 1934).

        1 before anything was compared; without a mismatch among n, `1 - (1 - confidence)**(1 / n)`.
        """
        if self.compared == self.mismatches:
            return 1.0
        return float(stats.beta.ppf(confidence, self.mismatches + 1, self.compared - self.mismatches))

    def __str__(self) -> str:
        return (
            f"{self.compared} of {self.launches} launches compared with the RTL, {self.mismatches} mismatches: at most "
            f"{100 * self.bound():.3g} % of launches differ (95 % confidence)"
        )


class SampledCosim:
    """Runs launches of a device on the RTL, too, now and then.

    Whether launch number n is sampled depends on the seed and n alone.

    Parameters
    ----------
    share : float
        Of the launches, from 0 to 1.
    seed : int
    device : Device
        What is sampled.
    against : Device, optional
        Of the same accelerator, with as many units and as much memory; by default the simulation, started at the first
        launch that is sampled.
    """

    def __init__(self, share: float, seed: int, device: Device, against: Device | None = None) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"sampled_cosim must be a share of the launches, from 0 to 1, not {share}")
        self.found = Sampled(share, seed)
        self._device, self._against, self._own = device, against, against is None

    def takes(self, number: int) -> bool:
        """Whether launch `number` (from 0) is sampled."""
        key = np.random.SeedSequence([self.found.seed, number])
        return bool(np.random.Generator(np.random.Philox(key)).random() < self.found.share)

    def check(self, launch: Launch, run: Callable[[], LaunchReport]) -> LaunchReport:
        """Execute a launch with `run`, and if it is sampled, on the RTL as well.

        Raises
        ------
        CosimMismatch
            If they differ.
        DeviceError
            If the RTL cannot run the launch: faults need an accelerator with instrumentation.
        """
        number = self.found.launches
        if not self.takes(number):
            report = run()
            self._count()
            return report
        against = self._opened()
        for name in _reads(launch):
            region = launch.memory[name]
            against.write(region.address, self._device.read(region.address, region.nbytes))
        theirs = launch
        if launch.plan is not None:
            theirs = launch.with_faults(launch.plan, launch.first_image, events_too=against.reads_events)
        against.launch(theirs)
        report = run()
        for name in launch.written:
            self._compare(launch, name, number, against)
        self._count(compared=1)
        return report

    def close(self) -> None:
        """Close the simulation, if it was started here."""
        if self._own and self._against is not None:
            self._against.close()
            self._against = None

    def _compare(self, launch: Launch, name: str, number: int, against: Device) -> None:
        region = launch.memory[name]
        ours, right = (device.read(region.address, region.nbytes) for device in (self._device, against))
        if np.array_equal(ours, right):
            return
        self._count(compared=1, mismatches=1)
        wrong = ours != right
        at = int(np.argmax(wrong))
        raise CosimMismatch(
            f"launch {number} (sampled with seed {self.found.seed}) left other bytes on the {self._device.name} than "
            f"on the {against.name}: {int(wrong.sum())} of {region.nbytes} in region {name}, the first at byte {at} "
            f"({int(ours[at]):#04x}, expected {int(right[at]):#04x}); use the {against.name} until 'redline verify "
            f"--devices reference,{self._device.name}' has found the cause"
        )

    def _count(self, *, compared: int = 0, mismatches: int = 0) -> None:
        old = self.found
        self.found = replace(
            old,
            launches=old.launches + 1,
            compared=old.compared + compared,
            mismatches=old.mismatches + mismatches,
        )

    def _opened(self) -> Device:
        if self._against is None:
            from host.devices.registry import device

            like = self._device
            self._against = device("simulation", like.config, processes=like.units, memory_bytes=like.memory_bytes)
        return self._against


def _reads(launch: Launch) -> list[str]:
    """Regions that must hold something before a launch."""
    names = [memory.input_name(source) for source in launch.inputs]
    for layer in launch.layers:
        names += [memory.weights_name(layer), memory.params_name(layer)]
    return names
