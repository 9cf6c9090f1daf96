"""Fault injectors on equal work: the same network and images, the same number of flips, drawn anew for every pass.

Each is called with float images and returns float outputs. A call does all that a campaign's pass on new faults needs:
drawing the places, handing them to the injector, and the forward pass.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from math import ceil, log2
from typing import Any

import numpy as np
import torch
from torch import nn

from host.compiler import compile as compiler
from host.devices.emulator.device import EmulatorDevice
from host.devices.runtime import Outputs, Runtime
from host.faults.count import FlipCount
from hw.config import Config
from hw.errors import RedlineError

BITS = 8
"""Of the values that the others flip."""
ROOM = 2.0
"""Range of a layer's values for the others, over the largest without faults: flips make larger ones downstream, and
PyTorchFI ends with an AssertionError on a value beyond its range."""
LAYERS = (nn.Conv2d, nn.Linear)


class MissingPackage(RedlineError, ImportError):
    """An injector to compare with is not installed; the message names the remedy."""


def package(name: str) -> Any:
    """A module of a package to compare with."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"{name.split('.')[0]} cannot be imported ({error}); run: pip install '.[comparison]' --constraint "
            "constraints.txt"
        ) from error


class Redline:
    """The emulator: exact int8 arithmetic of the accelerator, flips at one of its sites.

    Parameters
    ----------
    net : nn.Module
    x : float tensor, shape (N, C, H, W)
        Images from which fractions are chosen.
    flips : int
        Of each image.
    site : str
        "mac": in the 32-bit accumulator after some step; "feature": in the stored 8-bit outputs.
    """

    def __init__(self, net: nn.Module, x: torch.Tensor, flips: int, site: str, config: Config | None = None) -> None:
        self.program = compiler.compile(net, config or Config(), calibrate=x)
        self.faults = FlipCount(flips, site)
        self.device = EmulatorDevice(self.program.config)
        self.runtime = Runtime(self.program, self.device)
        self.passes = self.applied = 0
        """Calls with faults, and flips that the device counted in them."""

    def __call__(self, x: torch.Tensor) -> np.ndarray:
        images = self._quantised(x)
        plan = self.faults.draw(self.program, 0, len(images), self.passes)
        self.passes += 1
        outputs = self.runtime.forward(images, writeback=False, plan=plan)
        self.applied += outputs.report.faults_applied
        return self._dequantised(outputs)

    def clean(self, x: torch.Tensor) -> np.ndarray:
        """The same without faults."""
        return self._dequantised(self.runtime.forward(self._quantised(x), writeback=False))

    def _quantised(self, x: torch.Tensor) -> np.ndarray:
        return self.device.quantise(x.numpy(), self.program.input_frac)

    def _dequantised(self, outputs: Outputs) -> np.ndarray:
        last = self.program.layers[-1]
        return self.device.dequantise(outputs.out[last.name], last.out_frac)

    def close(self) -> None:
        """Close the device."""
        self.device.close()


class PyTorchFI:
    """PyTorchFI: a bit of the 8-bit code of a neuron's float value, in outputs of convolutions and linear layers.

    Its own error model for batches, `single_bit_flip_func`: places are drawn by `random_neuron_location` (the layer in
    proportion to its neurons, where its own loops take each layer as often), handed over by `declare_neuron_fi`, and
    hit by `single_bit_flip_signed_across_batch`, which draws the bit.

    Parameters
    ----------
    net, x, flips : as for `Redline`
        As many images as `x` has in each call.
    declare : bool
        Declare the faults of each pass, as its documentation does: this copies the network. Otherwise they are declared
        once, and each pass only exchanges the lists of places in the injector.
    """

    def __init__(self, net: nn.Module, x: torch.Tensor, flips: int, *, declare: bool = True) -> None:
        self.models = package("pytorchfi.neuron_error_models")
        with _quiet_log():
            self.injector = self.models.single_bit_flip_func(
                net, len(x), input_shape=list(x.shape[1:]), layer_types=list(LAYERS), bits=BITS
            )
        self.injector.set_conv_max([ROOM * largest for largest in _ranges(net, x).values()])
        self.neurons = [int(np.prod(shape[1:])) for shape in self.injector.get_output_size()]
        self.flips, self.images, self.declare = flips, len(x), declare
        self._declared: nn.Module | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        drawn = [
            (image, *self.models.random_neuron_location(self.injector, layer))
            for image in range(self.images)
            for layer in random.choices(range(len(self.neurons)), self.neurons, k=self.flips)
        ]
        places = dict(
            zip(("batch", "layer_num", "dim1", "dim2", "dim3"), map(list, zip(*drawn, strict=True)), strict=True)
        )
        with torch.no_grad():
            return self._faulty(places)(x)

    def _faulty(self, places: dict[str, list[Any]]) -> nn.Module:
        pfi = self.injector
        if self.declare or self._declared is None:
            self._declared = pfi.declare_neuron_fi(**places, function=pfi.single_bit_flip_signed_across_batch)
            return self._declared
        pfi.corrupt_batch, pfi.corrupt_layer = places["batch"], places["layer_num"]
        pfi.corrupt_dim1, pfi.corrupt_dim2, pfi.corrupt_dim3 = places["dim1"], places["dim2"], places["dim3"]
        return self._declared

    def close(self) -> None:
        """Take its hooks off."""
        self.injector.fi_reset()


class MRFI:
    """MRFI: random bits of outputs of convolutions and linear layers, in 8-bit fixed point.

    One entry of its configuration a layer: `FixPointQuantization`, `RandomPositionByNumber` (in each image, as many as
    are the layer's in proportion to its neurons; with replacement) and `IntRandomBitFlip`.

    Parameters
    ----------
    net, x, flips : as for `Redline`
    layerwise : bool
        Quantise all values of the layer, MRFI's default: the network computes with 8-bit activations. Otherwise only
        those that are hit.
    """

    def __init__(self, net: nn.Module, x: torch.Tensor, flips: int, *, layerwise: bool = True) -> None:
        mrfi = package("mrfi")
        ranges = _ranges(net, x)
        numbers = _shares(flips, [size for _, size in _neurons(net, x[:1])])
        entries = [
            {
                "type": "activation_out",
                "module_fullname": [name],
                "quantization": {
                    "method": "FixPointQuantization",
                    "integer_bit": _integer_bits(ROOM * largest),
                    "decimal_bit": BITS - 1 - _integer_bits(ROOM * largest),
                    "layerwise": layerwise,
                },
                "selector": {"method": "RandomPositionByNumber", "n": number, "per_instance": True},
                "error_mode": {"method": "IntRandomBitFlip", "bit_width": BITS},
            }
            for (name, largest), number in zip(ranges.items(), numbers, strict=True)
        ]
        self.model = mrfi.MRFI(copy.deepcopy(net), mrfi.EasyConfig({"faultinject": entries}))
        self.flips = sum(numbers)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)  # it turns gradients off

    def close(self) -> None:
        """Nothing to do: the network is its own."""


def _outputs(net: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs of convolutions and linear layers, by name, in order of computation."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: found.__setitem__(name, out))
        for name, module in net.named_modules()
        if isinstance(module, LAYERS)
    ]
    try:
        with torch.no_grad():
            net(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _ranges(net: nn.Module, x: torch.Tensor) -> dict[str, float]:
    return {name: float(out.abs().max()) for name, out in _outputs(net, x).items()}


def _neurons(net: nn.Module, x: torch.Tensor) -> list[tuple[str, int]]:
    return [(name, out[0].numel()) for name, out in _outputs(net, x).items()]


def _integer_bits(largest: float) -> int:
    """Bits before the point that a range needs; negative if it is small."""
    return ceil(log2(largest))


def _shares(total: int, sizes: list[int]) -> list[int]:
    """Whole numbers in proportion to sizes that add up to the total (largest remainders)."""
    exact = np.asarray(sizes) * total / sum(sizes)
    found = np.floor(exact).astype(int)
    found[np.argsort(found - exact, kind="stable")[: total - found.sum()]] += 1
    return found.tolist()


@contextmanager
def _quiet_log() -> Iterator[None]:
    """PyTorchFI configures the root logger, with a format that no record fits."""
    root = logging.getLogger()
    before = list(root.handlers)
    try:
        yield
    finally:
        for handler in [handler for handler in root.handlers if handler not in before]:
            root.removeHandler(handler)
