"""The device factory: devices by name, Redline's own and those that other packages bring."""

from __future__ import annotations

import importlib
from dataclasses import asdict, fields
from importlib.metadata import entry_points
from typing import Any

from host.devices.device import Device, DeviceError
from hw.config import Config

GROUP = "redline.devices"
"""Entry-point group in which other packages name their Device classes."""
BUILT_IN = {
    "emulator": "host.devices.emulator.device:EmulatorDevice",
    "reference": "host.devices.reference:ReferenceDevice",
    "simulation": "host.devices.simulation:SimulationDevice",
    "opencl": "host.devices.opencl.device:OpenCLDevice",
    "serial": "host.devices.serial.device:SerialDevice",
}
"""Redline's own devices; found without an installed distribution, too."""


def device_names() -> list[str]:
    """Names that `device` knows."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def device(name: str = "reference", config: Config | None = None, **options: Any) -> Device:
    """A device by name.

    Parameters
    ----------
    name : str
        "reference", "emulator", "simulation", "opencl", "serial", or one that an installed package registers under the
        entry-point group `redline.devices`.
    config : Config or None
        The accelerator; by default made from those options that are its parameters (`lanes=16, vec=8, ...`).
    **options
        Parameters of the accelerator, and the device's own (`memory_bytes`, `units`, ...). `board="ulx3s-85f"` stands
        for the parameters of that board's bitstream (`hw.boards.catalogue`); what is given beside it differs.

    Raises
    ------
    DeviceError
        If there is no such device, or it cannot be loaded.
    ConfigError
        If the accelerator cannot be built.
    BoardError
        If there is no such board.
    """
    own, rest = accelerator(options)
    if config is None:
        config = Config(**own)
    elif own:
        raise DeviceError(f"give either config= or its parameters ({', '.join(own)}), not both")
    return again(name, config, rest)


def again(name: str, config: Config, options: dict[str, Any]) -> Device:
    """The device of a name, an accelerator and its own options: what a pickled device stands for."""
    made = device_class(name)(config, **options)
    assert isinstance(made, Device)
    made._made_with = (again, (name, config, options))
    return made


def accelerator(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options that are parameters of the accelerator, those of a `board` among them, and the device's own.

    Raises
    ------
    BoardError
        If there is no such board.
    """
    parameters = {field.name for field in fields(Config)}
    own: dict[str, Any] = {}
    if "board" in options:
        from hw.boards.catalogue import find  # not every device needs the boards

        own = asdict(find(options["board"]).config)
    own |= {key: value for key, value in options.items() if key in parameters}
    return own, {key: value for key, value in options.items() if key not in parameters and key != "board"}


def device_class(name: str) -> Any:
    """What makes devices of a name.

    Raises
    ------
    DeviceError
        If there is no such device, or it cannot be loaded.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            raise DeviceError(
                f"the {name} device cannot be loaded ({error}); 'redline doctor' says what is missing"
            ) from error
    for point in entry_points(group=GROUP):
        if point.name == name:
            return point.load()
    raise DeviceError(f"no device {name!r}; there are {', '.join(device_names())}")
