"""What every device refuses: places outside its memory, launches that are not for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from host.devices.device import Device, DeviceError
from hw import masks

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
    """Refuse a launch for another accelerator, or for more compute units than there are.

    Raises
    ------
    DeviceError
    """
    theirs = launch.program.config
    # Equal ones need no hashes, which take longer than all other checks.
    if theirs != device.config and theirs.hash != device.config.hash:
        raise DeviceError(
            f"the program was compiled for another accelerator ({theirs}, hash {theirs.hash:#018x}) than this "
            f"{device.name} device is ({device.config}, hash {device.config.hash:#018x}); compile it for device.config"
        )
    if len(launch.units) > device.units:
        raise DeviceError(
            f"the launch has {len(launch.units)} compute units, the device {device.units}; schedule it for that many"
        )


def check_faults(device: Device, launch: Launch) -> None:
    """Refuse faults that an accelerator cannot apply: without instrumentation, or without a model of late bits.

    Raises
    ------
    DeviceError
    """
    if launch.plan is not None and launch.plan.conditions is not None and not device.knows_conditions:
        raise DeviceError(
            f"the fault plan has conditions ({launch.plan.conditions}), of which the {device.name} device has no "
            "model: it replays flips of single bits; use a device that has, or a plan without"
        )
    if launch.faults and not device.config.saboteur:
        raise DeviceError(
            f"the launch has {launch.faults} fault events, but this accelerator was built without fault "
            "instrumentation; use Config(saboteur=True)"
        )
    late = [unit.late_masks["group"].astype(int).max(initial=-1) for unit in launch.units]
    groups = int(max(late, default=-1)) + 1
    if groups > device.config.overclock:
        raise DeviceError(
            f"the launch has late or stuck bits in {groups} groups, but this accelerator was built for "
            f"{device.config.overclock}; use Config(overclock={masks.MOST_GROUPS}), which is enough for every clock"
        )
