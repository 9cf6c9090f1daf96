"""Whether this machine has OpenCL: it is optional, and `redline doctor` says how to get it."""

from __future__ import annotations

import importlib.util

import pytest


def available() -> bool:
    """Whether there is an OpenCL device."""
    if importlib.util.find_spec("pyopencl") is None:
        return False
    from host.devices.opencl import platforms

    return bool(platforms.devices())


needs_opencl = pytest.mark.skipif(not available(), reason="there is no OpenCL device: see 'redline doctor'")
