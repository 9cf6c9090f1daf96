"""Train neural networks on the accelerator that will run them, while it makes errors: the names users need."""

from __future__ import annotations

from host import data, imagenet, models
from host.compiler import compile
from host.data import Dataset
from host.device import Device, LaunchReport
from host.devices import device
from host.faults import Fault, SoftErrors
from host.plan import FaultPlan
from host.program import Program
from host.protect import by_accuracy, by_error_distribution
from host.stats import Paired, Rate, paired
from host.train import Evaluation, Recipe, evaluate, retrain
from host.twin import Twin, attach
from hw.config import Config

__all__ = [
    "Config",
    "Dataset",
    "Device",
    "Evaluation",
    "Fault",
    "FaultPlan",
    "LaunchReport",
    "Paired",
    "Program",
    "Rate",
    "Recipe",
    "SoftErrors",
    "Twin",
    "attach",
    "by_accuracy",
    "by_error_distribution",
    "compile",
    "data",
    "device",
    "evaluate",
    "imagenet",
    "models",
    "paired",
    "retrain",
]
