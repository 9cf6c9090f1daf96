"""What every device refuses: places outside its memory, launches that are not for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from host.devices.device import Device, DeviceError

if TYPE_CHECKING:
    from host.schedule.launch import Launch


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
    """Refuse a launch for another accelerator, for more compute units, or with faults that are not modelled.

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
    if launch.faults and not device.config.saboteur:
        raise DeviceError(
            f"the launch has {launch.faults} fault events, but this accelerator was built without fault "
            "instrumentation; use Config(saboteur=True)"
        )
