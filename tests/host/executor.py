"""An independent interpreter of descriptors, in numpy: what the accelerator does with a launch's bytes, and no more.

It knows nothing of Programs: it sees memory and descriptors only. It refuses whatever the hardware could not do or
would do in an undefined order: words read before they were written, loads that race the job before, weights that leave
the ring before they are used again, misaligned addresses.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from host.devices.device import Bytes, Device, LaunchReport
from host.schedule.launch import Launch
from hw import descriptor, events, params
from hw.config import Config
from hw.descriptor import Flag


class Hazard(AssertionError):
    """A descriptor asks for something whose result is undefined."""


def need(condition: bool, message: str) -> None:
    """Raise `Hazard` unless the condition holds."""
    if not condition:
        raise Hazard(message)


class Executor(Device):
    """A device that executes descriptor lists one step at a time."""

    name = "executor"

    def __init__(self, config: Config, *, memory_bytes: int = 1 << 24, units: int = 1) -> None:
        self.config = config
        self.memory_bytes = memory_bytes
        self.units = units
        self.memory = np.zeros(memory_bytes, np.uint8)
        self.jobs = 0
        self.fences = 0

    def write(self, address: int, array: npt.NDArray) -> None:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.memory[address : address + len(raw)] = raw

    def read(self, address: int, nbytes: int) -> Bytes:
        return self.memory[address : address + nbytes].copy()

    def launch(self, launch: Launch) -> LaunchReport:
        applied = 0
        regions = [*launch.memory.values()]
        for region in regions:
            need(region.address + region.nbytes <= launch.end, "a region lies beyond the launch's end")
        for unit in launch.units:
            for address, records in (
                (unit.descriptors_address, unit.descriptors),
                (unit.mac_events_address, unit.mac_events),
                (unit.feature_events_address, unit.feature_events),
            ):
                self.write(address, records)
            applied += self.run(
                unit.descriptors_address,
                len(unit.descriptors),
                (unit.mac_events_address, len(unit.mac_events)),
                (unit.feature_events_address, len(unit.feature_events)),
            )
        return LaunchReport(faults_applied=applied)

    def run(self, address: int, jobs: int, mac: tuple[int, int], feature: tuple[int, int]) -> int:
        """One compute unit: start with these register values, run to done; returns the events applied."""
        need(address % 256 == 0, "descriptors are not aligned")
        core = _Core(self)
        mac_events, feature_events = self.events(*mac), self.events(*feature)
        for number in range(jobs):
            raw = self.read(address + number * descriptor.DESCRIPTOR_BYTES, descriptor.DESCRIPTOR_BYTES)
            need(not raw[descriptor.USED_BYTES :].any(), "bytes after the fields are not zero")
            fields = raw.view(descriptor.DTYPE)[0]
            job = {name: int(fields[name]) for name in descriptor.DTYPE.names or ()}
            core.job(job, mac_events[mac_events["job"] == number], feature_events[feature_events["job"] == number])
        self.jobs += jobs
        self.fences += core.fences
        need(core.applied == len(mac_events) + len(feature_events), "events name jobs that do not exist")
        return core.applied

    def events(self, address: int, count: int) -> npt.NDArray[np.void]:
        """A list of events, checked to be sorted and free of doubles."""
        need(address % 64 == 0, "events are not aligned")
        records = self.read(address, count * events.EVENT_BYTES).view(events.DTYPE)
        keys = [tuple(int(r[n]) for n in ("job", "slot", "lane", "bit")) for r in records]
        need(keys == sorted(set(keys)), "events are not sorted, or hold doubles")
        return records


class _Core:
    """State of one compute unit within a launch."""

    def __init__(self, device: Executor) -> None:
        self.device, self.config = device, device.config
        shape = (2, self.config.feature_words, self.config.vec)
        self.buffers = np.full(shape, 85, np.int8)
        self.written = np.zeros(shape[:2], bool)
        self.before: list[tuple[int, npt.NDArray[np.int64]]] = []
        self.gathered: list[tuple[int, npt.NDArray[np.int64]]] = []
        self.unacknowledged = np.zeros(device.memory_bytes, bool)
        self.fences = 0
        self.applied = 0

    def job(self, d: dict[str, int], mac: npt.NDArray[np.void], feature: npt.NDArray[np.void]) -> None:
        vec, lanes = self.config.vec, self.config.lanes
        flags = d["flags"]
        need(d["reserved0"] == 0, "reserved field is not zero")
        source = int(bool(flags & Flag.SRC_B))
        if flags & Flag.LOAD:
            self.load(d, source)
        if flags & Flag.LOAD_ONLY:
            self.load_only(d, len(mac) + len(feature))
            return
        images, groups_in, groups_out = d["images"], d["groups_in"], d["groups_out"]
        kh, kw, steps = d["kernel_h"], d["kernel_w"], d["steps"]
        oh, ow = d["out_h"], d["out_w"]
        outputs = images * oh * ow
        need(min(outputs, groups_in, groups_out, kh, kw, d["src_period"]) > 0, "a job computes nothing")
        need(steps == groups_in * kh * kw, "steps do not match the kernel")
        need(d["upper"] <= 127, "the largest output is no int8")
        if flags & Flag.STREAM:
            need(d["weight_passes"] == outputs, "streamed weights are not fetched once an output")
        else:
            need(d["weight_passes"] == 1, "weights are fetched again without need")
            need(steps <= self.config.weight_words or outputs == 1, "weights leave the ring before they are reused")

        # Read weights and parameters as bytes.
        need(d["weight_addr"] % (lanes * vec) == 0, "weights are not aligned")
        need(d["param_addr"] % (lanes * params.PARAM_BYTES) == 0, "parameters are not aligned")
        need(d["weight_addr"] % self.config.port_bytes == 0, "weights are not aligned to the port")
        need(d["param_addr"] % self.config.port_bytes == 0, "parameters are not aligned to the port")
        count = groups_out * steps * lanes * vec
        w = self.device.read(d["weight_addr"], count).view(np.int8).astype(np.int64)
        w = w.reshape(groups_out, groups_in, kh, kw, lanes, vec)
        records = self.device.read(d["param_addr"], groups_out * lanes * params.PARAM_BYTES).view(params.DTYPE)
        bias = records["bias"].astype(np.int64).reshape(groups_out, lanes)
        shift = records["shift"].astype(np.int64).reshape(groups_out, 1, 1, 1, lanes)

        # One step at a time, for all outputs at once, faults as they come.
        masks = np.zeros((groups_out, images, oh, ow, steps, lanes), np.int64) if len(mac) else None
        if masks is not None:
            flat = masks.reshape(-1, lanes)
            for event in mac:
                flat[event["slot"], event["lane"]] ^= 1 << int(event["bit"])
                self.applied += 1
        start = bias if self.config.arithmetic == "redline" else np.zeros_like(bias)
        acc = np.broadcast_to(start[:, None, None, None], (groups_out, images, oh, ow, lanes)).copy()
        rows, columns = np.arange(oh) * d["stride_y"] - d["pad_y"], np.arange(ow) * d["stride_x"] - d["pad_x"]
        words = np.zeros(self.config.feature_words, bool)
        # Output groups that read the same features go together.
        together = groups_out if d["src_step"] == 0 else d["src_period"]
        for first in range(0, groups_out, together):
            some = slice(first, first + together)
            base = d["src_base"] + first // together * d["src_step"] + np.arange(images) * d["src_image"]
            step = 0
            for z in range(groups_in):
                for ky in range(kh):
                    for kx in range(kw):
                        y, c = rows + ky, columns + kx
                        inside = ((y >= 0) & (y < d["in_h"]))[:, None] & ((c >= 0) & (c < d["in_w"]))
                        pixel = (rows * d["in_w"] + ky * d["src_tap"])[:, None] + c
                        address = (base + z * d["src_plane"])[:, None, None] + pixel
                        weight = w[some, z, ky, kx]
                        self.read_features(source, address[:, inside], words, bool(weight.any()))
                        window = self.buffers[source, address % self.config.feature_words].astype(np.int64)
                        acc[some] += np.einsum("iyxv,glv->giyxl", window * inside[None, :, :, None], weight)
                        acc[some] = _signed(acc[some])
                        if masks is not None:
                            acc[some] = _signed(acc[some] ^ masks[some, ..., step, :])
                        step += 1

        rounded = np.where(shift > 0, (acc + (1 << np.maximum(shift - 1, 0))) >> shift, acc)
        if self.config.arithmetic == "pipecnn":
            # r = 2 * rounded, or one more: 256 and above saturates, and so does what is below -256.
            r = (acc >> (shift - 1)) + 1
            wrapped = (rounded + bias[:, None, None, None]).astype(np.int8)
            rounded = np.select([r >= 256, r < -256], [127, -128], wrapped)
        conv = np.clip(rounded, 0 if flags & Flag.RELU else -128, d["upper"]).astype(np.int8)
        out = self.pool(d, conv) if flags & Flag.POOL else conv
        need(out.shape[2:4] == (d["pool_h"], d["pool_w"]), "the final extents do not match")
        out = out.copy()
        flat_out = out.reshape(-1, lanes).view(np.uint8)
        for event in feature:
            flat_out[event["slot"], event["lane"]] ^= 1 << int(event["bit"])
            self.applied += 1

        read = np.flatnonzero(words)
        touched = [(source, read)]
        if flags & Flag.STORE:
            touched.append(self.store(d, self.channels(d, out)))
            if touched[1][0] == source:
                need(not np.isin(touched[1][1], read).any(), "a job overwrites its own source")
        for flag, which, result in ((Flag.WRITE_CONV, "conv", conv), (Flag.WRITE_POOL, "pool", out)):
            if flags & flag:
                self.write(d, which, self.channels(d, result))
        self.before = touched
        self.gathered = []

    def load_only(self, d: dict[str, int], faults: int) -> None:
        """Check a job that loads and does nothing else; what it loaded is for the next job that computes."""
        others = {name for name in d if not name.startswith("load_")} - {"flags"}
        need(not any(d[name] for name in others), "a load asks for more than loading")
        allowed = Flag.LOAD | Flag.LOAD_ONLY | Flag.FENCE | Flag.SRC_B
        need(bool(d["flags"] & Flag.LOAD) and not d["flags"] & ~allowed, "a load has flags of a job")
        need(not faults, "events name a job that only loads")

    def read_features(
        self, source: int, address: npt.NDArray[np.int64], words: npt.NDArray[np.bool_], used: bool
    ) -> None:
        """Check the words that a step reads, and mark them; what meets zero weights only may be anything."""
        if used:
            need(bool((address < self.config.feature_words).all()), "the source lies outside the buffer")
            need(bool(self.written[source, address].all()), "the source was never written")
            words[address] = True

    def load(self, d: dict[str, int], source: int) -> None:
        vec = self.config.vec
        first, count = d["load_base"], d["load_words"] * d["load_segments"]
        need(d["load_addr"] % vec == 0 and d["load_stride"] % vec == 0, "the load is not aligned")
        need(first + count <= self.config.feature_words, "the load exceeds the buffer")
        target = np.arange(first, first + count)
        places = d["load_addr"] + np.arange(d["load_segments"])[:, None] * d["load_stride"]
        places = places + np.arange(d["load_words"] * vec)
        if d["load_chunk"]:
            rows, words = d["load_rows"], d["load_chunk"]
            need(not d["flags"] & Flag.LOAD_ONLY, "a load without computing has chunks")
            need(words == rows * d["in_w"] and words < d["load_words"], "a chunk is not some of the input's rows")
            need(d["load_words"] == d["src_plane"] and d["images"] == 1, "a segment is not an image's channel group")
            need((d["src_base"] - first) % d["load_words"] == 0, "channel groups do not begin where segments do")
        else:
            need(d["load_rows"] == 0, "a load has rows, but no chunks")
        for buffer, words in self.gathered:
            need(buffer == source, "loads for one job go to two buffers")
            need(not np.isin(target, words).any(), "a load overwrites another for the same job")
        self.gathered.append((source, target))
        if d["flags"] & Flag.FENCE:
            self.fences += 1
            self.unacknowledged[:] = False
            self.before = []
        else:
            for buffer, words in self.before:
                need(buffer != source or not np.isin(target, words).any(), "an unfenced load races the job before")
            need(not self.unacknowledged[places].any(), "a load reads what may not be written yet")
        self.buffers[source, target] = self.device.memory[places].view(np.int8).reshape(-1, vec)
        self.written[source, target] = True

    def pool(self, d: dict[str, int], conv: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
        kernel, stride, pad = d["pool_kernel"], d["pool_stride"], d["pool_pad"]
        need(1 <= kernel <= 3 and 1 <= stride <= 3 and pad < kernel, "pooling out of range")
        need(d["pool_w"] <= self.config.pool_columns, "the pooled row exceeds the line buffer")
        groups, images, h, w, lanes = conv.shape
        out = np.full((groups, images, d["pool_h"], d["pool_w"], lanes), -128, np.int8)
        for y in range(d["pool_h"]):
            for x in range(d["pool_w"]):
                ys = [v for v in range(y * stride - pad, y * stride - pad + kernel) if 0 <= v < h]
                xs = [v for v in range(x * stride - pad, x * stride - pad + kernel) if 0 <= v < w]
                need(bool(ys and xs), "an empty pooling window")
                out[:, :, y, x] = conv[:, :, ys][:, :, :, xs].max(axis=(2, 3))
        return out

    def channels(self, d: dict[str, int], result: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
        """`[M/LANES][N][H][W][LANES]` to `[N][dst_groups][H][W][VEC]`."""
        groups, images, h, w, lanes = result.shape
        vec = self.config.vec
        need(groups * lanes % vec == 0 and d["dst_groups"] * vec <= groups * lanes, "more groups stored than computed")
        nchw = result.transpose(1, 0, 4, 2, 3).reshape(images, groups * lanes // vec, vec, h, w)
        return nchw.transpose(0, 1, 3, 4, 2)[:, : d["dst_groups"]]

    def store(self, d: dict[str, int], result: npt.NDArray[np.int8]) -> tuple[int, npt.NDArray[np.int64]]:
        buffer = int(bool(d["flags"] & Flag.DST_B))
        images, groups, h, w, vec = result.shape
        words = (
            d["dst_base"]
            + np.arange(images)[:, None, None] * d["dst_image"]
            + np.arange(groups)[:, None] * d["dst_plane"]
            + np.arange(h * w)
        )
        need(int(words.max()) < self.config.feature_words, "the destination lies outside the buffer")
        need(len(np.unique(words)) == words.size, "the destination overlaps itself")
        self.buffers[buffer, words] = result.reshape(images, groups, h * w, vec)
        self.written[buffer, words] = True
        return buffer, words.reshape(-1)

    def write(self, d: dict[str, int], which: str, result: npt.NDArray[np.int8]) -> None:
        images, groups = result.shape[:2]
        for image in range(images):
            for group in range(groups):
                at = d[f"{which}_addr"] + image * d[f"{which}_image"] + group * d[f"{which}_plane"]
                need(at % self.config.vec == 0, "a write is not aligned")
                raw = np.ascontiguousarray(result[image, group])
                self.device.write(at, raw)
                self.unacknowledged[at : at + raw.nbytes] = True


def _signed(x: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return ((x + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)
