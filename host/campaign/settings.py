"""A campaign as the command line describes it: names and numbers, from which networks, faults and data are made."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open

from host import models
from host.campaign.campaign import Campaign, CampaignError, preferred_device
from host.campaign.space import STUCK
from host.campaign.trials import Faults, SingleFault
from host.datasets import data as datasets
from host.datasets import imagenet
from host.datasets.data import Labelled
from host.devices import registry
from host.faults.models import Combined, Fault, SoftErrors
from host.faults.overclock import Overclock
from host.faults.stuck import StuckAt
from host.store.sealed import read_sealed, write_sealed
from host.training.checkpoint import load_checkpoint
from host.training.twin import Twin, attach
from hw.errors import RedlineError
from hw.files import ReadError
from hw.masks import MOST_GROUPS
from sim.timing import shipped

FILE, FORMAT = "settings.json", "redline-settings"
GREY_CALIBRATION = 512
"""Training images from which small networks' fractions are chosen."""
PHOTO_CALIBRATION = 16


@dataclass(frozen=True)
class Settings:
    """What a campaign's trials depend on.

    Attributes
    ----------
    net : str
        Of `redline.models`.
    weights : str or None
        The network's file; needed unless weights come with Redline.
    arms : tuple of str
        `NAME[:weights=FILE][:protect=LAYER+LAYER]`; weights are another training of the same network.
    sites, layers : tuple of str
        Of single faults.
    rate : float or None
        Soft errors at a rate instead of single faults.
    per : str
        What the rate is per: "mac" or "bit".
    mhz : float or None
        A clock instead of single faults, or beside a rate.
    placement : int
        The clock's delay table: seed of a placement that comes with Redline.
    table : str or None
        A delay table's file, instead.
    stuck : tuple of str
        `LANE:BIT:VALUE[:BANK]`: bits stuck in every trial, instead of single faults, or beside a rate or a clock.
    images : int
        Of each trial.
    test_images : int or None
        First images of the test split that trials draw from; all by default.
    photos : str or None
        Folder of images for each class, for networks that take photos.
    seed : int
    device : str
        "": the one that `resolved` prefers.
    lanes, vec : int
        The accelerator's array.
    memory_bytes : int or None
        Of the device.
    """

    net: str = "lenet5"
    weights: str | None = None
    arms: tuple[str, ...] = ("original",)
    sites: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    rate: float | None = None
    per: str = "mac"
    mhz: float | None = None
    placement: int = 1
    table: str | None = None
    stuck: tuple[str, ...] = ()
    images: int = 32
    test_images: int | None = None
    photos: str | None = None
    seed: int = 0
    device: str = ""
    lanes: int = 16
    vec: int = 8
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.net not in models.MODELS:
            raise CampaignError(f"no network {self.net!r}; there are {', '.join(models.MODELS)}")
        if self.rate is not None and self.layers:
            raise CampaignError("a rate is that of the whole network: layers= is for single faults")
        if self.rate is None and self.permanent and (self.sites or self.layers):
            raise CampaignError(
                "a clock and stuck bits are the whole accelerator's: sites and layers are those of single faults, or "
                "of a rate"
            )
        if self.device and self.device not in registry.device_names():
            raise CampaignError(f"no device {self.device!r}; there are {', '.join(registry.device_names())}")

    def resolved(self) -> Settings:
        """The same with a device."""
        return self if self.device else replace(self, device=preferred_device())

    @property
    def permanent(self) -> bool:
        """Whether something is wrong with the accelerator in every trial: its clock, or stuck bits."""
        return self.mhz is not None or bool(self.stuck)

    @property
    def faults(self) -> Faults:
        """The fault model.

        Raises
        ------
        CampaignError
            If a value makes no sense.
        BeyondModel, DelayError
            If the clock is too fast for its model, or there is no such delay table.
        """
        try:
            parts: list[Fault] = [_stuck(text) for text in self.stuck]
            if self.mhz is not None:
                table = shipped.load(self.lanes, self.vec, self.placement) if self.table is None else self.table
                parts.insert(0, Overclock(mhz=self.mhz, table=table))
            if self.rate is not None:
                parts.insert(0, SoftErrors(self.rate, cast('Literal["bit", "mac"]', self.per), self.sites))
        except RedlineError:
            raise
        except ValueError as error:
            raise CampaignError(str(error)) from error
        if not parts:
            return SingleFault(self.sites or ("mac",), self.layers)
        return parts[0] if len(parts) == 1 else Combined(tuple(parts))

    @property
    def instrumentation(self) -> dict[str, Any]:
        """What the accelerator needs to meet the faults."""
        late = self.permanent or STUCK in self.sites
        return {"saboteur": True, **({"overclock": MOST_GROUPS} if late else {})}

    @property
    def options(self) -> dict[str, Any]:
        """The device's own options."""
        found: dict[str, Any] = {} if self.memory_bytes is None else {"memory_bytes": self.memory_bytes}
        return found | ({"processes": 1} if self.device == "simulation" else {})

    def save(self, folder: Path) -> None:
        """Keep them, so that a campaign can be taken up by its name."""
        write_sealed(folder / FILE, {"format": FORMAT, **asdict(self)})

    @staticmethod
    def stored(folder: Path) -> dict[str, Any]:
        """Those that a folder keeps; nothing if there are none."""
        path = folder / FILE
        if not path.exists():
            return {}
        try:
            found = read_sealed(path)
            if found.pop("format", None) != FORMAT:
                raise ReadError(f"{path}: no settings of a campaign")
        except ReadError as error:
            raise CampaignError(f"{error}; delete {path.name} and give all options again: the trials stay") from error
        known = {field.name for field in fields(Settings)}
        return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if k in known}

    def campaign(self, data_dir: str | None = None) -> Campaign:
        """Networks, data and faults.

        Raises
        ------
        DataError, ModelError, CompileError, AttachError, CampaignError
            If a file is missing or does not fit.
        """
        torch.set_num_threads(1)
        faults, own = self.faults, self.resolved()
        calibrate, test, name = self.data(data_dir)
        twins = self.twins(calibrate)
        return Campaign(twins, faults, test, self.images, self.seed, own.device, own.options, name)

    def twins(self, calibrate: torch.Tensor) -> dict[str, Twin]:
        """The arms. Fractions are always those of the first weights, so that arms differ in nothing but weights."""
        if self.weights is None and self.net not in models.SHIPPED:
            raise CampaignError(f"no weights of {self.net} come with Redline; name a file with --weights")
        net = models.MODELS[self.net](pretrained=self.weights or True)
        # Nothing is launched here: the workers have devices of their own.
        here = registry.device("reference", lanes=self.lanes, vec=self.vec, **self.instrumentation)
        twins = {}
        for spec in self.arms:
            arm = _Arm.parse(spec)
            if arm.name in twins:
                raise CampaignError(f"two arms are called {arm.name!r}")
            own = copy.deepcopy(net)
            twins[arm.name] = attach(own, here, calibrate=calibrate, protect=arm.protect, fallback="cpu")
            if arm.weights is not None:
                _load(own, arm.weights)
        return twins

    def data(self, data_dir: str | None) -> tuple[torch.Tensor, Labelled, str]:
        """Calibration images, test images and their name."""
        if self.net in models.GREY:
            if self.photos is not None:
                raise CampaignError(f"{self.net} takes images of 28x28 pixels, not photos")
            train = datasets.load("fashion-mnist", "train", data_dir)
            test = datasets.load("fashion-mnist", "test", data_dir)
            chosen = test if self.test_images is None else test.head(self.test_images)
            return train.head(GREY_CALIBRATION).pixels, chosen, "fashion-mnist/test"
        if self.photos is None:
            raise CampaignError(f"{self.net} takes photos: name a folder of images for each class with --photos")
        folder = imagenet.load(Path(self.photos))
        some = folder if self.test_images is None else folder.spread(self.test_images)
        return folder.spread(PHOTO_CALIBRATION).pixels, some, "photos"


@dataclass(frozen=True)
class _Arm:
    """One thing compared."""

    name: str
    weights: Path | None
    protect: tuple[str, ...]

    @staticmethod
    def parse(text: str) -> _Arm:
        name, *parts = text.split(":")
        weights: Path | None = None
        protect: tuple[str, ...] = ()
        for part in parts:
            key, equals, value = part.partition("=")
            if key == "weights" and value:
                weights = Path(value)
            elif key == "protect" and value:
                protect = tuple(value.split("+"))
            else:
                raise CampaignError(f"an arm is NAME[:weights=FILE][:protect=LAYER+LAYER], not {text!r}")
        return _Arm(name, weights, protect)


def _stuck(text: str) -> StuckAt:
    """A stuck bit from `LANE:BIT:VALUE[:BANK]`."""
    parts = text.split(":")
    try:
        lane, bit, value = (int(part) for part in parts[:3])
        (bank,) = parts[3:] or ("accumulator",)
    except ValueError:
        raise CampaignError(f"a stuck bit is LANE:BIT:VALUE[:BANK], not {text!r}") from None
    return StuckAt(lane, bit, value, bank)


def _load(net: torch.nn.Module, path: Path) -> None:
    """Load weights of a file, or of a checkpoint of `redline.retrain`."""
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                checkpoint = any(key.startswith("net.") for key in file.keys())  # noqa: SIM118 - not a dict
        except SafetensorError:
            checkpoint = False  # what is wrong with it is said below
        if checkpoint:
            load_checkpoint(net, path)
            return
    models.load_weights(net, path)
