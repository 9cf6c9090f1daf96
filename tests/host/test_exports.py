"""What a user has to catch can be had from `redline`."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import pytest
import torch

import host
import redline
from hw.errors import RedlineError
from tests.host.training.small import images, network

INTERNAL = {
    *("BoardError", "FitError", "TableError", "PllError", "KernelError", "PageError", "RunError"),
    *("BenchError", "PickleRefused", "PhotosMissing", "MissingPackage"),
}
"""Of commands that have no function in `redline`, or turned into another before a user sees them."""


def test_every_name_that_is_promised_is_there() -> None:
    assert all(hasattr(redline, name) for name in redline.__all__)
    assert redline.__all__ == sorted(set(redline.__all__))


def test_every_error_of_the_host_can_be_caught_by_name() -> None:
    for module in pkgutil.walk_packages(host.__path__, "host."):
        if not module.name.startswith(("host.cli", "host.devices.opencl", "host.boards")):
            import_module(module.name)
    found, waiting = set(), [RedlineError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__.startswith("host."):
            found.add(kind)
    exported = {getattr(redline, name) for name in redline.__all__} - {RedlineError}
    alone = {kind.__name__ for kind in found if not exported & {*kind.__mro__}}
    assert alone <= INTERNAL, f"export these from redline.py, or say that they are internal: {alone - INTERNAL}"


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (redline.DeviceError, lambda: redline.device("fpga")),
        (redline.ConfigError, lambda: redline.device("reference", lanes=3)),
        (redline.RecipeError, lambda: redline.Recipe(images=1)),
        (redline.DataError, lambda: redline.data.load("cifar", "test")),  # type: ignore[arg-type]
        (redline.ModelError, lambda: redline.models.lenet5(pretrained="absent.pth")),
        (redline.ProgramError, lambda: redline.compile(network(), redline.Config(), calibrate=torch.zeros(3))),
        (redline.CompileError, lambda: redline.compile(torch.nn.Tanh(), redline.Config(), calibrate=images())),
        (redline.CheckpointError, lambda: redline.checkpoint_weights("absent")),  # type: ignore[arg-type]
    ],
)
def test_errors_are_caught_by_the_exported_name_and_by_their_family(error: type[Exception], wrong: object) -> None:
    assert issubclass(error, redline.RedlineError)
    with pytest.raises(error):
        wrong()  # type: ignore[operator]
