"""A network's twin: same parameters, but its forward pass runs on a device, faults and all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from host.compiler.compile import calibration_images, compile_graph
from host.compiler.trace import Follower, Graph, trace
from host.devices.device import Device, Int8, LaunchReport
from host.devices.runtime import Outputs
from host.faults import canary
from host.faults.models import Fault
from host.faults.random_streams import Purpose, seed_for
from host.program.arrangement import gather
from host.program.layers import INPUT, Layer
from host.program.program import Program
from host.training.autograd import DeviceLayer, Geometry, Recorded, constant_weight, dequantise
from hw.errors import RedlineError

Gradient = Literal["straight_through", "clean"]


class AttachError(RedlineError, ValueError):
    """A network cannot be attached as asked; the message says why and what to do."""


def attach(
    net: nn.Module,
    device: Device,
    *,
    calibrate: torch.Tensor,
    protect: Iterable[str] | Callable[[Twin], list[str]] = (),
    gradient: Gradient = "straight_through",
    per_channel: bool = False,
    fallback: Literal["error", "cpu"] = "error",
) -> Twin:
    """Attach a network to a device.

    Parameters
    ----------
    net : nn.Module
        fx-traceable. It stays the owner of its (float) parameters: training the twin trains it.
    device : Device
    calibrate : float tensor, shape (N, C, H, W)
        Images from which the activations' fractions are chosen; some hundred are enough.
    protect : names, or a policy of `host.training.protect`
        Layers that run on the CPU, in the same integer arithmetic and without faults.
    gradient : str
        "straight_through": backward goes through what the device produced, errors included.
        "clean": backward goes through a second, fault-free launch; the value is still the faulty one.
    per_channel : bool
        One weight fraction per output channel.
    fallback : str
        "cpu" sends layers that the accelerator cannot compute to the CPU, "error" refuses them.

    Raises
    ------
    CompileError
        If the network cannot be computed exactly on this device; names layer, reason and remedy.
    AttachError
        If `protect` names an unknown layer, or `gradient` is unknown.
    """
    images = calibration_images(calibrate)
    graph = trace(net, images)
    program = compile_graph(graph, device.config, images, per_channel=per_channel, fallback=fallback)
    twin = Twin(net, program, device, gradient=gradient, canary_image=images[:1], graph=graph)
    twin.protect(protect)
    return twin


class Twin(nn.Module):
    """A network whose forward pass runs on a device.

    In training mode every layer's output is written back and the result carries a graph: `loss.backward()` fills the
    gradients of the network's own parameters. In evaluation mode nothing but the result leaves the accelerator, and
    there is no graph. Batch norms are frozen: they are folded into their convolutions, from running statistics.

    Attributes
    ----------
    net : nn.Module
        The network; owner of the float master weights.
    program : Program
        Its integers. Fractions are fixed at `attach`; weights follow the master weights.
    device : Device
    gradient : str
    report : LaunchReport
        Sum over all launches since `attach` (or since it was last set).
    """

    def __init__(
        self,
        net: nn.Module,
        program: Program,
        device: Device,
        *,
        gradient: Gradient = "straight_through",
        canary_image: torch.Tensor | None = None,
        graph: Graph | None = None,
    ) -> None:
        super().__init__()
        if gradient not in get_args(Gradient):
            raise AttachError(f"unknown gradient policy {gradient!r}; known: {', '.join(get_args(Gradient))}")
        self.net = net
        self.gradient: Gradient = gradient
        self.device = device
        self.report = LaunchReport()
        graph = trace(net, torch.zeros(1, *program.input_shape)) if graph is None else graph
        self._follower = Follower(net, graph, program.input_shape)
        self._written: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._faults: _FaultStream | None = None
        self._fallback = tuple(layer.name for layer in program.layers if layer.placement == "cpu")
        # Any image will do; a real one exercises what the coming ones will.
        image = torch.full((1, *program.input_shape), 0.5) if canary_image is None else canary_image
        self._canary = program.quantise_input(image)
        self._install(program)

    # ---- layers

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in order."""
        return [layer.name for layer in self.program.layers]

    @property
    def protected(self) -> list[str]:
        """Names of the layers that run on the CPU, in order."""
        return [layer.name for layer in self.program.layers if layer.placement == "cpu"]

    @property
    def fallback(self) -> list[str]:
        """Names of the layers that the accelerator cannot compute, in order."""
        return list(self._fallback)

    def protect(self, names: Iterable[str] | Callable[[Twin], list[str]]) -> list[str]:
        """Send exactly these layers to the CPU (besides those the accelerator cannot compute); returns their names.

        Raises
        ------
        AttachError
            If a layer is unknown; the message lists the known ones.
        """
        chosen = names(self) if callable(names) else [names] if isinstance(names, str) else list(names)
        for name in chosen:
            if name not in self.layers:
                raise AttachError(f"cannot protect {name!r}: no such layer; layers are {', '.join(self.layers)}")
        if self._faults is not None:
            raise AttachError("layers cannot be protected while faults are on; leave the context first")
        self._install(self.program.with_placement(cpu=[*self._fallback, *chosen]))
        return chosen

    def _install(self, program: Program) -> None:
        self.program = program
        self.runtime = self.device.runtime(program)
        self._geometry = {
            layer.name: Geometry.of(layer, program, None if layer.constant else self._module(layer.name), self.device)
            for layer in program.layers
        }

    def _module(self, name: str) -> nn.Module:
        return self.net.get_submodule(self.program.modules[name])

    def effective(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A layer's float weight and bias as functions of the network's parameters: a batch norm after it folded in.

        Parametrisations, weight norm, spectral norm and pruning count as they do in evaluation mode. Of a layer that is
        no module with weights: the constants it stands for.
        """
        return self._effective(self.program.layer(name))

    def _effective(self, layer: Layer) -> tuple[torch.Tensor, torch.Tensor | None]:
        return (constant_weight(layer), None) if layer.constant else self._follower.weights(self.net, layer.name)

    def refresh(self) -> list[str]:
        """Requantise the layers whose master weights changed since the last forward pass; returns their names.

        Changes are found by comparing values, so that none is missed however it was made.

        Raises
        ------
        CompileError
            If the network no longer computes what was attached: a module was replaced by another, a hook was added.
        """
        self._follower.check(self.net)
        with torch.no_grad():
            return [layer.name for layer in self.program.layers if not layer.constant and self._refresh(layer)]

    def _refresh(self, layer: Layer) -> bool:
        """Requantise a layer if its master weights changed; whether they did."""
        name, (weight, bias) = layer.name, self._effective(layer)
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        old = self._written.get(name)
        if old is not None and torch.equal(weight, old[0]) and _equal(bias, old[1]):
            return False
        self.program.requantise(name, weight, bias, self.device.quantise_finite, self.device.quantise_layer)
        if old is None or (bias is None) != (old[1] is None):
            self._written[name] = (weight.clone(), None if bias is None else bias.clone())
        else:
            old[0].copy_(weight)
            if bias is not None and old[1] is not None:
                old[1].copy_(bias)
        return True

    # ---- forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The network's output, computed on the device.

        Parameters
        ----------
        x : float tensor, shape (N, C, H, W)

        Returns
        -------
        float32 tensor, shape as the network gives it: the device's integers, dequantised

        Raises
        ------
        ProgramError
            If the images have another size than those the network was compiled for.
        """
        images = self.program.quantise_input(x, self.device.quantise_finite)
        recording = self.training and torch.is_grad_enabled()
        outputs = self.run(images, writeback=self.training)
        last = self.program.layers[-1]
        if not recording:
            return dequantise(outputs.out[last.name], last.out_frac).reshape(len(x), *self._follower.out_shape)
        through = outputs
        if self._faults is not None and self.gradient == "clean":
            through = self.run(images, writeback=True, faults=False)
        values = {INPUT: x}
        recorded = {INPUT: images}
        for layer in self.program.layers:
            weight, bias = self._effective(layer)
            kept = Recorded(gather(recorded, layer), through.conv[layer.name], through.out[layer.name])
            made = outputs.out[layer.name] if layer is last else None
            value = DeviceLayer.apply(_gather(values, layer), weight, bias, self._geometry[layer.name], kept, made)
            values[layer.name], recorded[layer.name] = value, kept.out
        return values[last.name].reshape(len(x), *self._follower.out_shape)

    def run(self, images: Int8, *, writeback: bool, faults: bool = True) -> Outputs:
        """Run int8 images, shape (N, C, H, W), on the device; counts them as the fault context's next, if `faults`."""
        self.refresh()
        stream = self._faults if faults else None
        if stream is None:
            outputs = self.runtime.forward(images, writeback=writeback)
        else:
            first = stream.next_image
            plan = stream.faults.draw(self.program, first, len(images), stream.seed)
            outputs = self.runtime.forward(images, writeback=writeback, plan=plan, first_image=first)
            # Only a launch that succeeded uses up its images.
            stream.next_image = first + len(images)
        self.report = self.report + outputs.report
        return outputs

    # ---- faults

    @contextmanager
    def faulty(
        self, faults: Fault, *, seed: int, first_image: int = 0, purpose: Purpose = "evaluation"
    ) -> Iterator[Twin]:
        """Context in which forward passes meet faults; the same as `faults.on(twin, seed=seed)`.

        Under one seed, each purpose has faults of its own (`host.faults.random_streams`).

        Images are numbered from `first_image` in the order they come, across batches, and each meets the faults of its
        number: how they are split into batches does not matter. A canary runs first. Leaving restores the fault-free
        state: the next forward pass gives the bytes it would have given without the context.

        Raises
        ------
        CanaryError
            If a fault known to change the output did not: the device does not inject faults.
        AttachError
            If faults are already on.
        """
        if self._faults is not None:
            raise AttachError(
                "faults are already on for this network; combine models with + instead of nesting contexts"
            )
        self.refresh()
        canary.check(self.runtime, self._canary, faults.sites, faults.conditions)
        self._faults = _FaultStream(faults, seed_for(purpose, seed), first_image)
        try:
            yield self
        finally:
            self._faults = None

    @property
    def image_number(self) -> int | None:
        """Number of the next image in the fault context; None outside one."""
        return None if self._faults is None else self._faults.next_image


@dataclass
class _FaultStream:
    """Faults that are on, and the number of the next image that meets them."""

    faults: Fault
    seed: int
    next_image: int


def _gather(values: Mapping[str, torch.Tensor], layer: Layer) -> torch.Tensor:
    """A layer's input, shape (N, C, H, W), from its sources' values: `host.program.arrangement.gather` for autograd."""
    whole = [values[name] for name in layer.sources]
    stacked = whole[0] if len(whole) == 1 else torch.cat(whole, 1)
    return stacked if layer.channels is None else stacked.index_select(1, torch.tensor(layer.channels))


def _equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return b is None if a is None else b is not None and torch.equal(a, b)
