"""What every device refuses: places outside its memory, launches that are not for it."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from host.devices.device import Device, DeviceError

if TYPE_CHECKING:
    from host.schedule.launch import Launch

EVENTS = ("layers", "image", "layer", "site", "output", "step", "bit")
"""The parts of a fault plan that describe flips of single bits. A plan may come to say more than that."""


def check_range(device: Device, address: int, nbytes: int) -> None:
    """Refuse bytes that lie outside a device's memory.

    Raises
    ------
    DeviceError
    """
    if address < 0 or nbytes < 0 or address + nbytes > device.memory_bytes:
        raise DeviceError(
            f"{nbytes} bytes at {address:#x} are outside device memory ({device.memory_bytes} bytes); "
            "give the device more with memory_bytes="
        )


def check_launch(device: Device, launch: Launch) -> None:
    """Refuse a launch for another accelerator, or for more compute units than there are.

    Raises
    ------
    DeviceError
    """
    theirs = launch.program.config
    if theirs.hash != device.config.hash:
        raise DeviceError(
            f"the program was compiled for another accelerator ({theirs}, hash {theirs.hash:#018x}) than this "
            f"{device.name} device is ({device.config}, hash {device.config.hash:#018x}); compile it for device.config"
        )
    if len(launch.units) > device.units:
        raise DeviceError(
            f"the launch has {len(launch.units)} compute units, the device {device.units}; schedule it for that many"
        )


def check_faults(device: Device, launch: Launch) -> None:
    """Refuse faults that an accelerator cannot apply: events without instrumentation, and whatever is not an event.

    Raises
    ------
    DeviceError
    """
    if launch.plan is not None:
        beyond = [
            field.name
            for field in fields(launch.plan)
            if field.name not in EVENTS and not _is_empty(getattr(launch.plan, field.name))
        ]
        if beyond:
            raise DeviceError(
                f"the fault plan has {', '.join(beyond)}, which the {device.name} device does not model: it replays "
                "flips of single bits only; use a device that does, or a plan without"
            )
    if launch.faults and not device.config.saboteur:
        raise DeviceError(
            f"the launch has {launch.faults} fault events, but this accelerator was built without fault "
            "instrumentation; use Config(saboteur=True)"
        )


def _is_empty(value: Any) -> bool:
    return value is None or (hasattr(value, "__len__") and len(value) == 0)
