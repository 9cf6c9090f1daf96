"""Train neural networks on the accelerator that will run them, while it makes errors: the names users need."""

from __future__ import annotations

from redline_start import check

check()

from host import models
from host.campaign.campaign import Campaign
from host.campaign.stop import HalfWidth, Minutes, Trials
from host.campaign.trials import SingleFault
from host.compiler.compile import compile
from host.datasets import data, imagenet
from host.datasets.data import Dataset
from host.devices.device import Device, LaunchReport
from host.devices.registry import device
from host.faults.count import FlipCount
from host.faults.models import Fault, SoftErrors
from host.faults.overclock import Overclock
from host.faults.plan import FaultPlan
from host.faults.stuck import StuckAt
from host.program.program import Program
from host.stats import Paired, Rate, paired
from host.training.microscope import layer_errors
from host.training.protect import by_accuracy, by_error_distribution
from host.training.train import Evaluation, Recipe, evaluate, retrain
from host.training.twin import Twin, attach
from hw.config import Config
from hw.delays import Table as DelayTable

__all__ = [
    "Campaign",
    "Config",
    "Dataset",
    "DelayTable",
    "Device",
    "Evaluation",
    "Fault",
    "FaultPlan",
    "FlipCount",
    "HalfWidth",
    "LaunchReport",
    "Minutes",
    "Overclock",
    "Paired",
    "Program",
    "Rate",
    "Recipe",
    "SingleFault",
    "SoftErrors",
    "StuckAt",
    "Trials",
    "Twin",
    "attach",
    "by_accuracy",
    "by_error_distribution",
    "compile",
    "data",
    "device",
    "evaluate",
    "imagenet",
    "layer_errors",
    "models",
    "paired",
    "retrain",
]
