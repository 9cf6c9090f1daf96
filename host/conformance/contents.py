"""Device memory: what is written is read back, and nothing else changes."""

from __future__ import annotations

import numpy as np

from host.conformance.suite import Bench, check, need


@check
def says_what_it_is(bench: Bench) -> None:
    """It has a name, the wanted accelerator, memory and at least one compute unit."""
    device = bench.device
    need(bool(device.name), "it has no name")
    need(device.config == bench.config, f"its config is {device.config}, not {bench.config}")
    need(device.config.hash == bench.config.hash, "its configuration hash is another")
    need(device.memory_bytes > 0, f"it has {device.memory_bytes} bytes of memory")
    need(device.units >= 1, f"it has {device.units} compute units")


@check
def memory_keeps_what_is_written(bench: Bench) -> None:
    """Writes of any length at any address are read back, and change no byte beside them."""
    device, rng = bench.device, np.random.default_rng(bench.seed)
    for address in (0, 1, 63, 4095, 4097, 1 << 20):
        for nbytes in (0, 1, 7, 64, 5000):
            low = max(0, address - 16)
            span = nbytes + 32 + address - low
            if low + span > device.memory_bytes:
                continue
            expected = device.read(low, span)
            content = rng.integers(0, 256, nbytes).astype(np.uint8)
            device.write(address, content)
            expected[address - low : address - low + nbytes] = content
            found = device.read(low, span)
            where = f"after writing {nbytes} bytes at {address:#x}"
            need(found.dtype == np.uint8 and found.shape == (span,), f"read gives {found.dtype}, shape {found.shape}")
            wrong = np.flatnonzero(found != expected)
            need(not len(wrong), f"{where}, byte {low + (wrong[0] if len(wrong) else 0):#x} is wrong")


@check
def random_traffic_follows_a_model(bench: Bench) -> None:
    """Random reads and writes agree with a plain array."""
    device, rng = bench.device, np.random.default_rng(bench.seed + 1)
    size = min(1 << 16, device.memory_bytes)
    model = np.zeros(size, np.uint8)
    device.write(0, model)
    for turn in range(60):
        low, high = sorted(int(at) for at in rng.integers(0, size + 1, 2))
        if turn % 2:
            model[low:high] = rng.integers(0, 256, high - low)
            device.write(low, model[low:high])
        else:
            need(bool((device.read(low, high - low) == model[low:high]).all()), f"bytes {low} to {high} are wrong")


@check
def the_last_bytes_are_usable(bench: Bench) -> None:
    """Memory is as large as it says, to the last byte."""
    device, content = bench.device, np.arange(100, dtype=np.uint8)
    device.write(device.memory_bytes - 100, content)
    need(bool((device.read(device.memory_bytes - 100, 100) == content).all()), "the last 100 bytes are not kept")


@check
def large_arrays_arrive(bench: Bench) -> None:
    """A transfer of a megabyte, or of all memory if that is less, arrives whole."""
    size = min(1 << 20, bench.device.memory_bytes - 3)
    content = np.random.default_rng(bench.seed).integers(0, 256, size).astype(np.uint8)
    bench.device.write(3, content)
    need(bool((bench.device.read(3, size) == content).all()), f"{size} bytes come back changed")


@check
def any_array_is_written_as_its_bytes(bench: Bench) -> None:
    """Arrays of any type, shape and stride are written as their bytes."""
    for array in (np.arange(12, dtype=np.int8).reshape(3, 4)[:, ::2], np.arange(5, dtype="<i4"), np.ones((), "<u2")):
        bench.device.write(256, array)
        found = bench.device.read(256, array.nbytes).tobytes()
        need(found == array.tobytes(), f"an array of {array.dtype}, shape {array.shape}, is not its bytes")


@check
def what_is_read_is_a_copy(bench: Bench) -> None:
    """What is read or written is a copy: changing it changes no memory."""
    device, written = bench.device, np.zeros(8, np.uint8)
    device.write(0, written)
    written[:] = 1
    device.read(0, 8)[:] = 1
    need(not device.read(0, 8).any(), "memory changes with the host's array")
