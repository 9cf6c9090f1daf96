"""Jobs that networks of plain layers do not have, on the whole accelerator: gathered loads, addition, streamed weights.

The golden model interprets descriptors by their definition, one tap at a time.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from hw import descriptor, events, params
from hw.config import Config
from hw.descriptor import Flag
from sim.build import verilog_for
from tests.hw.stage import DEEP, PIPECNN, WIDE, requantised, requantised_as_pipecnn, wrap32
from tests.sim.test_accelerator import bench, save, with_ids

CHANNELS, SIDE = 16, 5
PIXELS = SIDE * SIDE
MEMORY_BYTES = 1 << 16


class Scenario:
    """Memory, descriptors and events of a launch of `config`; `golden` is the memory after it."""

    def __init__(self, config: Config, seed: int) -> None:
        self.config, self.rng = config, random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.memory = np.full(MEMORY_BYTES, 0xA5, np.uint8)
        self.end = 0x2000
        self.jobs: list[dict[str, int]] = []
        self.events: dict[str, list[tuple[int, int, int, int]]] = {"mac": [], "feature": []}

    def place(self, data: np.ndarray) -> int:
        """Put bytes into memory; their address."""
        at = self.end
        raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        self.memory[at : at + len(raw)] = raw
        self.end = (at + len(raw) + 511) // 512 * 512
        return at

    def load(self, base: int) -> dict[str, int]:
        """Fields that load CHANNELS random planes to word `base`."""
        planes = CHANNELS // self.config.vec
        features = self.numbers.integers(-128, 128, CHANNELS * PIXELS).astype(np.int8)
        stride = PIXELS * self.config.vec
        return {
            "load_words": PIXELS,
            "load_addr": self.place(features),
            "load_stride": stride,
            "load_segments": planes,
            "load_base": base,
        }

    def weights(self, weights: np.ndarray, groups: int, shift: int) -> dict[str, int]:
        """Fields of a job's weights and of random parameters."""
        records = np.zeros(groups * self.config.lanes, params.DTYPE)
        limit = 128 if self.config.arithmetic == "pipecnn" else 4000
        records["bias"] = self.numbers.integers(-limit, limit, records.shape)
        records["shift"] = shift
        return {"weight_addr": self.place(weights.astype(np.int8)), "param_addr": self.place(records)}

    def convolution(self, kernel: int, groups_in: int, out: int, shift: int) -> dict[str, int]:
        """Fields of a job that convolves with random weights."""
        config = self.config
        groups = CHANNELS // config.lanes
        size = groups * groups_in * kernel**2 * config.lanes * config.vec
        return {
            "in_h": SIDE,
            "in_w": SIDE,
            "out_h": out,
            "out_w": out,
            "pad_y": (out + kernel - 1 - SIDE) // 2,
            "pad_x": (out + kernel - 1 - SIDE) // 2,
            "kernel_h": kernel,
            "kernel_w": kernel,
            "groups_in": groups_in,
            "steps": groups_in * kernel**2,
            "src_tap": SIDE,
            **self.weights(self.numbers.integers(-128, 128, size), groups, shift),
        }

    def job(self, flags: int, **values: int) -> None:
        """Append a descriptor that computes all channels."""
        config = self.config
        common = {
            "flags": flags,
            "src_plane": PIXELS,
            "stride_y": 1,
            "stride_x": 1,
            "groups_out": CHANNELS // config.lanes,
            "images": 1,
            "src_period": 1,
            "weight_passes": 1,
            "pool_kernel": 1,
            "pool_stride": 1,
            "upper": 127,
            "pool_h": values.get("out_h", 0),
            "pool_w": values.get("out_w", 0),
            "dst_groups": CHANNELS // config.vec,
            "dst_base": 0,
            "dst_plane": PIXELS,
            "pool_plane": PIXELS * config.vec,
        }
        if flags & Flag.WRITE_POOL:
            common["pool_addr"] = self.place(np.full(CHANNELS * PIXELS, 0xA5, np.uint8))
        self.jobs.append({**common, **values})

    def flip(self, kind: str, slots: int) -> None:
        """Some faults in the job appended last."""
        bits = 32 if kind == "mac" else 8
        for slot in sorted(self.rng.sample(range(slots), 3)):
            lane, bit = self.rng.randrange(self.config.lanes), self.rng.randrange(bits)
            self.events[kind].append((slot, len(self.jobs) - 1, lane, bit))

    def golden(self) -> np.ndarray:
        """Memory after the launch."""
        memory = self.memory.copy().view(np.int8)
        buffers = np.zeros((2, self.config.feature_bytes), np.int8)
        for index, job in enumerate(self.jobs):
            self._run(index, job, memory, buffers)
        return memory.view(np.uint8)

    def _run(self, index: int, d: dict[str, int], memory: np.ndarray, buffers: np.ndarray) -> None:
        config, vec, lanes = self.config, self.config.vec, self.config.lanes
        pipecnn, flags = config.arithmetic == "pipecnn", d["flags"]
        source, target = buffers[int(bool(flags & Flag.SRC_B))], buffers[int(bool(flags & Flag.DST_B))]
        if flags & Flag.LOAD:
            for segment in range(d["load_segments"]):
                at, size = d["load_addr"] + segment * d["load_stride"], d["load_words"] * vec
                to = d["load_base"] * vec + segment * size
                source[to : to + size] = memory[at : at + size]
        if flags & Flag.LOAD_ONLY:
            return
        hits = {kind: [e for e in found if e[1] == index] for kind, found in self.events.items()}
        records = memory[d["param_addr"] :][: d["groups_out"] * lanes * params.PARAM_BYTES].view(params.DTYPE)
        slot = output = 0
        results = []
        for group in range(d["groups_out"]):
            base = d["src_base"] + group // d["src_period"] * d.get("src_step", 0)
            for oy in range(d["out_h"]):
                for ox in range(d["out_w"]):
                    record = records[group * lanes : (group + 1) * lanes]
                    totals = [0 if pipecnn else int(bias) for bias in record["bias"]]
                    word = d["weight_addr"] + group * d["steps"] * lanes * vec
                    for z in range(d["groups_in"]):
                        for ky in range(d["kernel_h"]):
                            for kx in range(d["kernel_w"]):
                                y, x = oy - d.get("pad_y", 0) + ky, ox - d.get("pad_x", 0) + kx
                                if 0 <= y < d["in_h"] and 0 <= x < d["in_w"]:
                                    row = (oy - d.get("pad_y", 0)) * d["in_w"] + ky * d["src_tap"]
                                    at = (base + z * d["src_plane"] + row + x) * vec
                                    taps = source[at : at + vec].astype(np.int64)
                                    weights = memory[word : word + lanes * vec].reshape(lanes, vec).astype(np.int64)
                                    totals = [wrap32(t + int(p)) for t, p in zip(totals, weights @ taps, strict=True)]
                                for _, _, lane, bit in (e for e in hits["mac"] if e[0] == slot):
                                    totals[lane] = wrap32(totals[lane] ^ 1 << bit)
                                word, slot = word + lanes * vec, slot + 1
                    relu = bool(flags & Flag.RELU)
                    values = [
                        requantised_as_pipecnn(t, int(r["shift"]), int(r["bias"]), relu, d["upper"])
                        if pipecnn
                        else requantised(t, int(r["shift"]), relu, d["upper"])
                        for t, r in zip(totals, record, strict=True)
                    ]
                    for _, _, lane, bit in (e for e in hits["feature"] if e[0] == output):
                        values[lane] = (values[lane] ^ 1 << bit) & 0xFF
                    results.append((group, oy * d["out_w"] + ox, values))
                    output += 1
        for group, pixel, values in results:
            for channel, value in enumerate(values, start=group * lanes):
                plane, byte = divmod(channel, vec)
                stored = np.uint8(value & 0xFF).view(np.int8)
                if flags & Flag.STORE:
                    target[(d["dst_base"] + plane * d["dst_plane"] + pixel) * vec + byte] = stored
                if flags & Flag.WRITE_POOL:
                    memory[d["pool_addr"] + plane * d["pool_plane"] + pixel * vec + byte] = stored

    def save(self, path: Path) -> None:
        """Write the launch for the bench."""
        records = np.zeros(len(self.jobs), descriptor.DTYPE)
        for record, job in zip(records, self.jobs, strict=True):
            for name, value in job.items():
                record[name] = value
        self.memory[0x400 : 0x400 + records.nbytes] = records.view(np.uint8)
        values = {"descriptors": 0x400, "jobs": len(records)}
        for kind, found in self.events.items():
            packed = np.zeros(len(found), events.DTYPE)
            for record, (slot, job, lane, bit) in zip(packed, found, strict=True):
                record["slot"], record["job"], record["lane"], record["bit"] = slot, job, lane, bit
            values |= {f"{kind}_events": self.place(packed), f"{kind}_event_count": len(found)}
        faults = sum(len(found) for found in self.events.values())
        save(path, self.memory.copy(), self.golden(), values, 200_000, faults)


def scenario(config: Config, seed: int) -> Scenario:
    """Gather two operands, add them, convolve the sum with a kernel larger than the ring, then by channel groups."""
    vec, lanes = config.vec, config.lanes
    planes = CHANNELS // vec
    words, own = planes * PIXELS, max(1, lanes // vec)  # of one operand; channel groups an output group reads
    sharing = {"src_step": own * PIXELS, "src_period": max(1, vec // lanes)}
    s = Scenario(config, seed)
    s.job(Flag.LOAD | Flag.LOAD_ONLY, **s.load(0))
    s.job(Flag.LOAD | Flag.LOAD_ONLY, **s.load(words))
    # The identity, scaled, for either operand: [M/LANES][z][ky][1][LANES][VEC].
    eye = np.zeros((CHANNELS // lanes, own, 2, lanes, vec))
    for channel in range(CHANNELS):
        inside = channel % (own * vec)
        eye[channel // lanes, inside // vec, :, channel % lanes, inside % vec] = 3, 5
    addition = {
        "in_h": SIDE + 1,
        "in_w": SIDE,
        "out_h": SIDE,
        "out_w": SIDE,
        "kernel_h": 2,
        "kernel_w": 1,
        "groups_in": own,
        "steps": 2 * own,
        "src_tap": words,
        **sharing,
        **s.weights(eye, CHANNELS // lanes, 2),
    }
    s.job(Flag.STORE | Flag.DST_B | Flag.RELU | Flag.WRITE_POOL, **addition, src_base=0, upper=90)
    s.flip("mac", CHANNELS // lanes * PIXELS * 2 * own)
    # Loaded while the addition computes and its result is convolved; fenced, what follows must not overtake.
    s.job(Flag.LOAD | Flag.LOAD_ONLY, **s.load(2 * words))
    kernel = 3
    while planes * kernel**2 <= config.weight_words:
        kernel += 1
    out = SIDE + 1 - kernel if kernel < SIDE else 1
    large = s.convolution(kernel, planes, out, 11)
    s.job(Flag.SRC_B | Flag.STREAM | Flag.WRITE_POOL, **large, src_base=0, weight_passes=out * out)
    s.flip("feature", CHANNELS // lanes * out * out)
    s.job(Flag.LOAD | Flag.LOAD_ONLY | Flag.FENCE, **s.load(0))
    grouped = s.convolution(3, own, SIDE, 9)
    s.job(Flag.WRITE_POOL | Flag.RELU, **grouped, **sharing, src_base=2 * words)
    s.flip("mac", CHANNELS // lanes * PIXELS * 9 * own)
    s.job(Flag.LOAD | Flag.WRITE_POOL, **s.load(words), **grouped, **sharing, src_base=0)
    s.flip("feature", CHANNELS // lanes * PIXELS)
    # The same from features that arrive two rows at a time, while the array computes; the next load follows at once.
    for base in (2 * words, words):
        chunked = {**s.load(base), "load_chunk": 2 * SIDE, "load_rows": 2}
        s.job(Flag.LOAD | Flag.WRITE_POOL, **chunked, **grouped, **sharing, src_base=base)
        s.flip("mac", CHANNELS // lanes * PIXELS * 9 * own)
    s.job(Flag.LOAD | Flag.LOAD_ONLY, **s.load(2 * words))
    return s


@pytest.mark.parametrize("pause", [0.0, 0.4])
@pytest.mark.parametrize("config", [WIDE, DEEP, PIPECNN], ids=["wide", "deep", "pipecnn"])
def test_gathers_adds_streams_and_convolves_in_groups(config: Config, pause: float, tmp_path: Path) -> None:
    scenario(config, seed=1 + int(10 * pause)).save(tmp_path / "launch.npz")
    bench(with_ids(verilog_for(config), config), [tmp_path / "launch.npz"], pause)
