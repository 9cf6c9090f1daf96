"""Choosing an OpenCL device by name."""

from __future__ import annotations

from typing import Any

import pyopencl as cl

from host.devices.device import DeviceError

REMEDY = (
    "install a driver of your GPU or board, or PoCL, which uses the processor "
    "(Debian, Ubuntu: sudo apt-get install ocl-icd-libopencl1 pocl-opencl-icd; 'redline doctor' shows what is found)"
)


def devices() -> list[Any]:
    """Every OpenCL device of this machine, platform by platform."""
    try:
        platforms = cl.get_platforms()
    except cl.Error:
        # The loader calls it an error that there is none.
        return []
    found = []
    for platform in platforms:
        try:
            found += platform.get_devices()
        except cl.Error:
            continue
    return found


def find(platform: str | None = None, device_name: str | None = None) -> Any:
    """The first OpenCL device whose platform's and own name contain these texts, whatever their case.

    Raises
    ------
    DeviceError
        If there is none; says what there is, or how to get one.
    """
    found = devices()
    if not found:
        raise DeviceError(f"this machine has no OpenCL device: {REMEDY}")
    for device in found:
        if _contains(device.platform.name, platform) and _contains(device.name, device_name):
            return device
    wanted = [f"platform {platform!r}"] * (platform is not None) + [f"device {device_name!r}"] * (
        device_name is not None
    )
    listed = "; ".join(f"{device.name.strip()!r} of platform {device.platform.name.strip()!r}" for device in found)
    raise DeviceError(f"no OpenCL device matches {' and '.join(wanted)}; there are: {listed}")


def _contains(name: str, part: str | None) -> bool:
    return part is None or part.casefold() in name.casefold()
