"""Whether this machine has OpenCL: it is optional, and `redline doctor` says how to get it."""

from __future__ import annotations

import importlib.util

from tests.needs import needs


def available() -> bool:
    """Whether there is an OpenCL device."""
    if importlib.util.find_spec("pyopencl") is None:
        return False
    from host.devices.opencl import platforms

    return bool(platforms.devices())


needs_opencl = needs(
    available(), "apt-get install ocl-icd-libopencl1 pocl-opencl-icd; pip install -c constraints.txt '.[opencl]'"
)
