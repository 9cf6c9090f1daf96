"""`redline bench`: a file for each benchmark."""

from __future__ import annotations

from importlib import import_module

# In the order of the help.
for _benchmark in (
    "cosim",
    "overclock",
    "hardware",
    "cycles",
    "opencl",
    "emulator",
    "faults",
):
    import_module(f"host.cli.bench.{_benchmark}")
