"""Building, choosing and testing kernels: a wrong one is caught, and without a compiler the reference computes."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from host.devices.device import DeviceError
from host.devices.emulator import native
from host.devices.emulator.device import EmulatorDevice
from host.devices.emulator.native import KernelError, Kernels
from host.devices.emulator.selftest import check
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.verification.cases import random_case


def broken(tmp_path: Path, file: str, old: str, new: str) -> Kernels:
    """Portable kernels with an edit in their source."""
    sources = tmp_path / "kernels"
    shutil.copytree(native.SOURCES, sources)
    text = (sources / file).read_text()
    assert text.count(old) == 1
    (sources / file).write_text(text.replace(old, new))
    path = native.build(sources=sources, directory=tmp_path / "cache", levels=("portable",))
    return Kernels(native.library(path), "portable")


def test_sound_kernels_pass(tmp_path: Path) -> None:
    check(broken(tmp_path, "tile_portable.h", "// The inner loop in plain C++.", "// The inner loop."))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        # 16-bit sums of two products that saturate, as a processor without VNNI would compute them.
        (
            "tile_portable.h",
            "sum += (uint32_t)(int32_t(x[j]) * int32_t(weights[(b * 16 + i) * 4 + j]));",
            "{ const int8_t *w = weights + (b * 16 + i) * 4; if (j % 2 == 0) { int two = x[j] * w[j] + x[j + 1] * "
            "w[j + 1]; sum += uint32_t(two > 32767 ? 32767 : two < -32768 ? -32768 : two); } }",
        ),
        ("engine.cpp", "((acc >> (shift - 1)) & 1)", "0"),
        ("engine.cpp", "value = (acc[i] >> s) + ((acc[i] >> h) & one);", "value = (acc[i] >> s) + 0 * h * one;"),
        ("engine.cpp", "most[c] = std::max(most[c], from[c]);", "most[c] = from[c];"),
        ("engine.cpp", "found[i] = std::max(found[i], row[x * pixel + i]);", "found[i] = row[x * pixel + i];"),
        ("engine.cpp", "acc ^= uint32_t(1) << l.mac.bit[e];", "acc += uint32_t(1) << l.mac.bit[e];"),
    ],
    ids=["saturating", "faulted rounding", "rounding", "pooling columns", "pooling rows", "flips"],
)  # fmt: skip
def test_a_broken_kernel_is_caught(tmp_path: Path, file: str, old: str, new: str) -> None:
    with pytest.raises(KernelError, match="do not compute exactly"):
        check(broken(tmp_path, file, old, new))


def test_without_a_compiler_the_reference_computes_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(native.VARIABLE, raising=False)
    case = random_case(3, 1)
    with caplog.at_level(logging.WARNING):
        device = EmulatorDevice(case.program.config, memory_bytes=1 << 24)
    assert "C++ compiler" in caplog.text
    assert "much slower" in caplog.text
    assert "computed by the reference" in device.describe()
    wanted = Runtime(case.program, ReferenceDevice(case.program.config)).forward(case.x, plan=case.plan)
    found = Runtime(case.program, device).forward(case.x, plan=case.plan)
    for name in case.program.names:
        assert np.array_equal(found.out[name], wanted.out[name])
    assert found.report == wanted.report


def test_kernels_asked_for_are_not_replaced_silently(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no kernels 'quick'.*portable"):
        EmulatorDevice(kernels="quick")
    monkeypatch.setenv(native.VARIABLE, "slow")
    with pytest.raises(DeviceError, match="no kernels 'slow'"):
        EmulatorDevice()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="C\\+\\+ compiler"):
        EmulatorDevice(kernels="portable")


def test_the_environment_chooses_and_an_option_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.VARIABLE, "portable")
    assert "portable kernels" in EmulatorDevice().describe()
    monkeypatch.setenv(native.VARIABLE, "reference")
    assert EmulatorDevice().describe() == "emulator, computed by the reference (asked for)"
    assert "portable kernels" in EmulatorDevice(kernels="portable").describe()


def test_a_processor_without_the_instructions_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "supported", lambda library, level: level == "portable")
    native._tested.cache_clear()
    try:
        with pytest.raises(KernelError, match="lacks the instructions of the vnni kernels"):
            native.load("vnni")
        assert native.load().level == "portable"
    finally:
        native._tested.cache_clear()


def test_a_failed_compilation_shows_the_compilers_words(tmp_path: Path) -> None:
    sources = tmp_path / "kernels"
    shutil.copytree(native.SOURCES, sources)
    (sources / "engine.cpp").write_text("#error no engine\n")
    with pytest.raises(KernelError, match="no engine"):
        native.build(sources=sources, directory=tmp_path / "cache", levels=("portable",))


def test_no_thread_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        EmulatorDevice(threads=0)
