"""An accelerator with deliberate defects, one at a time, chosen by a descriptor byte that real builds ignore."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
from amaranth.hdl import C, Module, Mux, Signal, Value
from amaranth.lib import wiring

import hw.accelerator
import hw.array
import hw.descriptor
from host.devices.device import LaunchReport
from host.devices.simulation import SimulationDevice
from host.schedule.launch import Launch
from hw.config import Config
from hw.descriptor import Flag
from hw.verilog import generate

Change = Callable[[Any, Value], Value]
"""From the component and a port's right value to a wrong one."""


def _saturates_early(component: Any, value: Value) -> Value:
    return Mux(value == 127, C(126, 8), value)


def _drops_a_bit_of_pooled_values(component: Any, value: Value) -> Value:
    return Mux((component.job.flags & Flag.POOL).any(), value & ~1, value)


DEFECTS: dict[str, tuple[object, str, int, tuple[str, ...], Change]] = {
    # stage: (where the class is used, class, which instance (-1: all), port, change)
    "accumulate": (hw.array, "Lane", 1, ("bias",), lambda component, value: value ^ 0x4000),
    "requantise": (hw.array, "Requantise", 0, ("result",), _saturates_early),
    "pool": (hw.accelerator, "Pool", -1, ("output", "payload"), _drops_a_bit_of_pooled_values),
    "write conv": (hw.accelerator, "WriteBack", 0, ("input", "payload"), lambda component, value: value ^ 0x80),
    "write pool": (hw.accelerator, "WriteBack", 1, ("input", "payload"), lambda component, value: value ^ 0x80),
    "on-chip chain": (hw.accelerator, "Store", -1, ("input", "payload"), lambda component, value: value ^ 1),
    "read features": (hw.accelerator, "FeatureLoader", -1, ("write", "payload"), lambda component, value: value ^ 1),
    "read weights": (hw.accelerator, "MacArray", -1, ("weights",), lambda component, value: value ^ 0x100),
}
"""By the stage that verification must name."""


def number_of(stage: str) -> int:
    """Value of the descriptor byte that switches a defect on."""
    return 1 + list(DEFECTS).index(stage)


def planted_verilog(config: Config) -> str:
    """The accelerator with all defects built in and switched off."""
    chosen = Signal(8, name="planted_defect")
    places: dict[tuple[object, str], list[tuple[int, tuple[str, ...], Change]]] = {}
    for stage, (module, name, instance, path, change) in DEFECTS.items():
        places.setdefault((module, name), []).append((instance, path, _switched(chosen, number_of(stage), change)))
    with ExitStack() as stack:
        for (module, name), changes in places.items():
            stack.enter_context(patch.object(module, name, _tampered(getattr(module, name), changes)))
        # The sequencer keeps the field, too.
        stack.enter_context(patch.object(hw.descriptor, "RESERVED", ""))
        sequencer = hw.accelerator.Sequencer
        stack.enter_context(patch.object(hw.accelerator, "Sequencer", _driving(sequencer, chosen)))
        return generate(config)


def _switched(chosen: Signal, number: int, change: Change) -> Change:
    def switched(component: Any, value: Value) -> Value:
        plain = Value.cast(value)
        return Mux(chosen == number, Value.cast(change(component, plain))[: len(plain)], plain)

    return switched


def _tampered(original: type, changes: list[tuple[int, tuple[str, ...], Change]]) -> type:
    """A class like `original`, of components some of whose ports are changed on their way in or out."""
    made = iter(range(1 << 16))

    class Tampered(original):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            number = next(made)
            self._inner = original(*args, **options)
            self._changes = {path: change for instance, path, change in changes if instance in (-1, number)}

        def elaborate(self, platform: object) -> Module:
            m = Module()
            m.submodules.inner = inner = self._inner
            outside = {name: (member, value) for name, member, value in self.signature.flatten(self)}
            for name, _, inside in inner.signature.flatten(inner):
                member, port = outside[name]
                source, target = (port, inside) if member.flow == wiring.In else (inside, port)
                value = self._changes[name](self, source) if name in self._changes else Value.cast(source)
                m.d.comb += Value.cast(target).eq(value)
            return m

    return Tampered


def _driving(original: type, chosen: Signal) -> type:
    """The sequencer, which also says which defect the current job asks for."""

    class Driving(original):  # type: ignore[misc]
        def elaborate(self, platform: object) -> Module:
            m = super().elaborate(platform)
            # While the first job loads there is no current one yet; all jobs of a launch ask for the same.
            m.d.comb += chosen.eq(self.job.reserved0 | self.loading.reserved0)
            return m

    return Driving


class PlantedDevice(SimulationDevice):
    """The simulation of an accelerator in which one defect is switched on."""

    def __init__(self, config: Config, verilog: str, stage: str | None, **options: Any) -> None:
        self.stage = stage
        super().__init__(config, verilog=verilog, **options)

    def launch(self, launch: Launch) -> LaunchReport:
        units = []
        for unit in launch.units:
            descriptors = unit.descriptors.copy()
            descriptors["reserved0"] = 0 if self.stage is None else number_of(self.stage)
            units.append(replace(unit, descriptors=np.ascontiguousarray(descriptors)))
        return super().launch(replace(launch, units=units))
