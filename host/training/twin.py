"""A network's twin: same parameters, but its forward pass runs on a device, faults and all."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch._compile import _disable_dynamo

from host.compiler.compile import calibration_images, compile_graph
from host.compiler.network import computed_tensors
from host.compiler.trace import Follower, Graph, some_image, trace
from host.devices.device import Device, Int8, LaunchReport
from host.devices.runtime import Outputs
from host.devices.turns import turn_of
from host.faults import canary
from host.faults.models import Fault
from host.faults.random_streams import Purpose, seed_for
from host.program.arrangement import gather
from host.program.layers import INPUT, Layer
from host.program.program import Program, ProgramError
from host.training.autograd import DeviceLayer, Geometry, Recorded, constant_weight, dequantise
from host.training.recompute import CLEAN, Meeting, Recomputed, RecomputeError, may_be_recomputed, recomputing
from host.training.saturation import SAID, Saturation, saturation
from hw.errors import RedlineError

log = logging.getLogger("redline.training")

SAID_EVERY = 64
"""Forward passes after which saturated layers are looked for again."""

Gradient = Literal["straight_through", "clean"]


class AttachError(RedlineError, ValueError):
    """A network cannot be attached as asked; the message says why and what to do."""


def attach(
    net: nn.Module,
    device: Device,
    *,
    calibrate: Any,
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
    calibrate : float tensor, shape (N, C, H, W), data set or DataLoader
        Images (the first 512 of a data set) from which the activations' fractions are chosen; some hundred are enough.
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
    twin = Twin(net, program, device, gradient=gradient, canary_image=images[:1], graph=graph, per_channel=per_channel)
    twin.protect(protect)
    return twin


class Twin(nn.Module):
    """A network whose forward pass runs on a device.

    In training mode every layer's output is written back and the result carries a graph: `loss.backward()` fills the
    gradients of the network's own parameters. In evaluation mode nothing but the result leaves the accelerator, and
    there is no graph, unless the images themselves want gradients. In both the network is computed as in evaluation:
    batch norms are frozen and folded into their convolutions, from running statistics; so are the vectors of spectral
    norms. Weights may be computed (parametrisations, weight norm, pruning); hooks and the network's later changes that
    compute something else are refused.

    The network may be on another device of PyTorch's, and of another floating-point type: what the accelerator gives is
    brought there, and backward runs there. Threads take turns on the accelerator. A copy (`copy.deepcopy`) has its own
    network and shares the accelerator; a pickled twin makes the accelerator anew where it is loaded.

    Attributes
    ----------
    net : nn.Module
        The network; owner of the float master weights.
    program : Program
        Its integers. Fractions are fixed at `attach` and by `recalibrate`; weights follow the master weights.
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
        per_channel: bool = False,
    ) -> None:
        super().__init__()
        if gradient not in get_args(Gradient):
            raise AttachError(f"unknown gradient policy {gradient!r}; known: {', '.join(get_args(Gradient))}")
        self.net = net
        self.gradient: Gradient = gradient
        self.device = device
        self.report = LaunchReport()
        graph = trace(net, some_image(program.input_shape)) if graph is None else graph
        _check_of_one_network(program, graph)
        self._follower = Follower(net, graph, program.input_shape)
        self._written: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._faults: _FaultStream | None = None
        self._recomputed = Recomputed()
        self._fallback = tuple(layer.name for layer in program.layers if layer.placement == "cpu")
        # Any image will do; a real one exercises what the coming ones will.
        self._image = torch.full((1, *program.input_shape), 0.5) if canary_image is None else canary_image
        self._per_channel = per_channel
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

    def install(self, program: Program) -> None:
        """Go on with other fractions: the same network's, as `recalibrate` or a checkpoint has them."""
        with self._turn.lock:
            self._written.clear()
            self._install(program)

    def _install(self, program: Program) -> None:
        self.program = program
        self._last: tuple[Program, Outputs] | None = None
        self._passes, self._said = 0, set[str]()
        self.runtime = self.device.runtime(program)
        self._turn = turn_of(self.device)
        self._geometry = {
            layer.name: Geometry.of(layer, program, None if layer.constant else self._module(layer.name), self.device)
            for layer in program.layers
        }

    # ---- ranges

    @property
    def saturation(self) -> dict[str, Saturation]:
        """What saturated in the last forward pass, by layer; in evaluation mode, of the last layer only."""
        with self._turn.lock:
            return {} if self._last is None else saturation(*self._last)

    def recalibrate(self, images: Any) -> list[str]:
        """Choose the fractions of activations and weights anew, for the network as it is now.

        Parameters
        ----------
        images : float tensor, shape (N, C, H, W), data set or DataLoader
            As for `attach(calibrate=)`.

        Returns
        -------
        list of str
            Names of the layers whose fractions changed, in order. None: nothing at all changed.

        Raises
        ------
        CompileError, ProgramError
            As for `attach`; the twin is as before.
        """
        given = calibration_images(images)
        with self._turn.lock, torch.inference_mode(False):
            self._follower.check(self.net)
            graph = trace(self.net, given)
            old = self.program
            if tuple(given.shape[1:]) != old.input_shape:
                old.check_input(tuple(given.shape))
            fallback: Literal["error", "cpu"] = "cpu" if self._fallback else "error"
            new = compile_graph(graph, old.config, given, per_channel=self._per_channel, fallback=fallback)
            new = new.with_placement(cpu=self.protected)
            changed = [a.name for a, b in zip(new.layers, old.layers, strict=True) if a != b]
            if changed or new.input_frac != old.input_frac:
                self.install(new)
            return changed

    def _note(self, program: Program, outputs: Outputs, meeting: Meeting) -> None:
        """Keep a forward pass for `saturation`, and say what saturates now and then: counting each would take time."""
        self._last = program, outputs
        self._passes += 1
        if meeting.faults is not None or (self._passes & (self._passes - 1) and self._passes % SAID_EVERY):
            return
        for name, found in saturation(program, outputs).items():
            if found.share > SAID and name not in self._said:
                self._said.add(name)
                log.warning(
                    "%s: its range is too small for what the network computes now; choose it anew with "
                    "twin.recalibrate(images), or retrain(recalibrate=)",
                    found,
                )

    # ---- copies

    def __getstate__(self) -> dict[str, Any]:
        if self._faults is not None:
            raise AttachError("a twin cannot be copied while faults are on: leave the context first, or copy twin.net")
        made_anew = {"runtime", "_last", "_geometry", "_turn", "_written", "_recomputed"}
        return {key: value for key, value in self.__dict__.items() if key not in made_anew}

    def __deepcopy__(self, memo: dict[int, Any]) -> Twin:
        # What pruning and the old weight norm computed is no leaf, which copies of the network alone stumble over.
        memo |= computed_tensors(self.net)
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._written, self._recomputed = {}, Recomputed()
        self._follower.forget()
        self._install(self.program)

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
        # Under inference mode, what is kept here could not be updated in training afterwards.
        with self._turn.lock, torch.inference_mode(False), torch.no_grad():
            self._follower.check(self.net)
            return [layer.name for layer in self.program.layers if not layer.constant and self._refresh(layer)]

    def _refresh(self, layer: Layer) -> bool:
        """Requantise a layer if its master weights changed; whether they did."""
        name, (weight, bias) = layer.name, self._effective(layer)
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        old = self._written.get(name)
        if old is not None and _equal(weight, old[0]) and _equal(bias, old[1]):
            return False
        self.program.requantise(name, weight, bias, self.device.quantise_finite, self.device.quantise_layer)
        if old is None or not (_alike(weight, old[0]) and _alike(bias, old[1])):
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
            Of any floating-point type, on any device of PyTorch's.

        Returns
        -------
        tensor, shape as the network gives it, on the network's device: the device's integers, dequantised, in float32
        (in float64 if the network is)

        Raises
        ------
        ProgramError
            If the images have another size than those the network was compiled for, or no values that can be read.
        AttachError
            If another thread has faults on, or PyTorch is recording what it sees (`jit.trace`, ONNX export).
        RecomputeError
            If a checkpointed forward pass is computed again, and its faults cannot be told.
        """
        if torch.jit.is_tracing():
            raise AttachError(
                "a twin cannot be traced or exported: its result is the accelerator's, which a trace would hold as a "
                "constant; trace twin.net"
            )
        if torch.compiler.is_compiling():
            return _uncompiled(self, x)
        return self._forward(x)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch.Tensor):
            try:
                x = torch.as_tensor(x)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ProgramError(
                    f"a {type(x).__name__} is no images: give a float tensor of shape (N, C, H, W)"
                ) from error
        recording = torch.is_grad_enabled() and (self.training or x.requires_grad)
        images = self.program.quantise_input(x, self.device.quantise_finite)
        with self._turn.lock:
            meeting, again = self._meeting(images, self.training or x.requires_grad)
            outputs = self._run(images, self.training or recording, meeting)
            if not again:
                self._count(len(images))
            through = outputs
            if recording and meeting.faults is not None and self.gradient == "clean":
                through = self._run(images, True, CLEAN)
            program = self.program
            # Any of its weights is where the network is, and of its type.
            home, _ = next(iter(self._written.values()))
        shape = (len(x), *self._follower.out_shape)
        if recording:
            return self._through(program, x.to(home.device), images, outputs, through, home).reshape(shape)
        last = program.layers[-1]
        return arrived(dequantise(outputs.out[last.name], last.out_frac), home).reshape(shape)

    def _through(
        self, program: Program, x: torch.Tensor, images: Int8, outputs: Outputs, through: Outputs, home: torch.Tensor
    ) -> torch.Tensor:
        """The result with a graph: the value of `outputs`, backward by what `through` holds."""
        values, recorded = {INPUT: x}, {INPUT: images}
        for layer in program.layers:
            weight, bias = self._effective(layer)
            if layer.constant:
                weight = arrived(weight, home)
            kept = Recorded(gather(recorded, layer), through.conv[layer.name], through.out[layer.name])
            made = outputs.out[layer.name] if layer is program.layers[-1] else None
            source = _gather(values, layer, weight.device)
            values[layer.name] = DeviceLayer.apply(source, weight, bias, self._geometry[layer.name], kept, made)
            recorded[layer.name] = kept.out
        return values[program.layers[-1].name]

    def run(self, images: Int8, *, writeback: bool, faults: bool = True) -> Outputs:
        """Run int8 images, shape (N, C, H, W), on the device; counts them as the fault context's next, if `faults`."""
        with self._turn.lock:
            outputs = self._run(images, writeback, self._next() if faults else CLEAN)
            if faults:
                self._count(len(images))
        return outputs

    def _run(self, images: Int8, writeback: bool, meeting: Meeting) -> Outputs:
        self.refresh()
        if meeting.faults is None:
            outputs = self.runtime.forward(images, writeback=writeback)
        else:
            first = meeting.first_image
            plan = meeting.faults.draw(self.program, first, len(images), meeting.seed)
            outputs = self.runtime.forward(images, writeback=writeback, plan=plan, first_image=first)
        self.report = self.report + outputs.report
        self._note(self.program, outputs, meeting)
        return outputs

    def _meeting(self, images: Int8, kept: bool) -> tuple[Meeting, bool]:
        """The faults that images meet, and whether they have met them before; `kept` if backward may ask again."""
        if kept and recomputing():
            found = self._recomputed.recall(images)
            if found is None and self._faults is not None:
                raise RecomputeError(
                    "a forward pass within backward, whose images have not been computed before: its faults are "
                    "unknown; call the twin outside of backward, or leave the fault context first"
                )
            return found or CLEAN, True
        meeting = self._next()
        if kept and may_be_recomputed():
            self._recomputed.remember(images, meeting)
        return meeting, False

    def _next(self) -> Meeting:
        """The faults of the next images."""
        stream = self._faults
        if stream is None:
            return CLEAN
        if stream.thread != threading.get_ident():
            raise AttachError(
                "another thread has faults on for this twin: leave its context first, or give each thread a twin of "
                "its own (copy.deepcopy)"
            )
        return Meeting(stream.faults, stream.seed, stream.next_image)

    def _count(self, images: int) -> None:
        # Only a launch that succeeded uses up its images.
        if self._faults is not None:
            self._faults.next_image += images

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
        with self._turn.lock:
            if self._faults is not None:
                raise AttachError(
                    "faults are already on for this network; combine models with + instead of nesting contexts"
                )
            self.refresh()
            canary.check(self.runtime, self.program.quantise_input(self._image), faults.sites, faults.conditions)
            self._faults = _FaultStream(faults, seed_for(purpose, seed), first_image, threading.get_ident())
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
    thread: int
    """Whose forward passes meet them."""


def _check_of_one_network(program: Program, graph: Graph) -> None:
    """Raise `AttachError` unless the program's layers are the network's."""
    for layer, source in zip_longest(program.layers, graph.layers):
        named = layer if layer is not None else source
        if (
            layer is None
            or source is None
            or (layer.name, layer.operator, layer.sources) != (source.name, source.operator, source.sources)
            or (layer.out_channels, layer.relu, layer.pool) != (len(source.weight), source.relu, source.pool)
            or (layer.out_shape, layer.groups) != (source.out_shape, source.groups)
        ):
            raise AttachError(
                f"the program was compiled from another network: they differ at layer {named.name!r}; compile this "
                "one, or attach it"
            )


def arrived(x: torch.Tensor, home: torch.Tensor) -> torch.Tensor:
    """What the accelerator gave, as float32 (float64, if the network is) where the network is."""
    return x.to(home.device, torch.float64 if home.dtype is torch.float64 else torch.float32)


def _gather(values: Mapping[str, torch.Tensor], layer: Layer, device: torch.device) -> torch.Tensor:
    """A layer's input, shape (N, C, H, W), from its sources' values: `host.program.arrangement.gather` for autograd."""
    whole = [values[name].to(device) for name in layer.sources]
    stacked = whole[0] if len(whole) == 1 else torch.cat(whole, 1)
    return stacked if layer.channels is None else stacked.index_select(1, torch.tensor(layer.channels, device=device))


def _equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return _alike(a, b) and torch.equal(a, b)


def _alike(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Whether one tensor can hold the values of the other."""
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.device == b.device and a.shape == b.shape


@_disable_dynamo  # as torch.compiler.disable, but torch's compiler is loaded only when somebody compiles
def _uncompiled(twin: Twin, x: torch.Tensor) -> torch.Tensor:
    """A twin's result within a network that is compiled: what runs on the accelerator is no part of its graph."""
    return twin._forward(x)
