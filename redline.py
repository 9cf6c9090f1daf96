"""Train neural networks on the accelerator that will run them, while it makes errors: the names users need."""

from __future__ import annotations

from redline_start import check

check()

from host import models
from host.campaign.campaign import Campaign, CampaignError
from host.campaign.pool import PoolError
from host.campaign.space import SpaceError
from host.campaign.stop import HalfWidth, Minutes, RuleError, Trials
from host.campaign.store import StoreError
from host.campaign.trials import SingleFault
from host.compiler.compile import compile
from host.compiler.limits import CompileError
from host.datasets import data, imagenet
from host.datasets.data import DataError, Dataset, Labelled
from host.devices.device import Device, DeviceError, LaunchReport
from host.devices.emulator.cosim import CosimMismatch
from host.devices.registry import device
from host.faults.canary import CanaryError
from host.faults.conditions import ConditionError
from host.faults.count import FlipCount
from host.faults.models import Fault, SoftErrors
from host.faults.overclock import BeyondModel, Overclock
from host.faults.plan import FaultPlan, PlanError
from host.faults.spec import SpecError
from host.faults.stuck import StuckAt
from host.interrupt import Interrupted
from host.models.weights import ModelError
from host.program.program import Program, ProgramError
from host.stats import Paired, Rate, paired
from host.store.files import WriteError
from host.training.checkpoint import CheckpointError, checkpoint_weights, load_checkpoint, save_weights
from host.training.microscope import layer_errors
from host.training.protect import by_accuracy, by_error_distribution
from host.training.recompute import RecomputeError
from host.training.saturation import Recalibration, RecalibrationError, Recalibrator, Saturation
from host.training.train import Evaluation, Recipe, RecipeError, evaluate, retrain
from host.training.twin import AttachError, Twin, attach
from host.version import VERSION as __version__
from hw.config import Config, ConfigError
from hw.delays import DelayError
from hw.delays import Table as DelayTable
from hw.errors import RedlineError
from hw.files import ReadError
from sim.cache import BuildError
from sim.tools import ToolError

__all__ = [
    "AttachError",
    "BeyondModel",
    "BuildError",
    "Campaign",
    "CampaignError",
    "CanaryError",
    "CheckpointError",
    "CompileError",
    "ConditionError",
    "Config",
    "ConfigError",
    "CosimMismatch",
    "DataError",
    "Dataset",
    "DelayError",
    "DelayTable",
    "Device",
    "DeviceError",
    "Evaluation",
    "Fault",
    "FaultPlan",
    "FlipCount",
    "HalfWidth",
    "Interrupted",
    "Labelled",
    "LaunchReport",
    "Minutes",
    "ModelError",
    "Overclock",
    "Paired",
    "PlanError",
    "PoolError",
    "Program",
    "ProgramError",
    "Rate",
    "ReadError",
    "Recalibration",
    "RecalibrationError",
    "Recalibrator",
    "Recipe",
    "RecipeError",
    "RecomputeError",
    "RedlineError",
    "RuleError",
    "Saturation",
    "SingleFault",
    "SoftErrors",
    "SpaceError",
    "SpecError",
    "StoreError",
    "StuckAt",
    "ToolError",
    "Trials",
    "Twin",
    "WriteError",
    "__version__",
    "attach",
    "by_accuracy",
    "by_error_distribution",
    "checkpoint_weights",
    "compile",
    "data",
    "device",
    "evaluate",
    "imagenet",
    "layer_errors",
    "load_checkpoint",
    "models",
    "paired",
    "retrain",
    "save_weights",
]
