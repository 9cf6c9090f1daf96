"""Schedules: what an independent interpreter makes of the descriptors is what the layers say, in any memory."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from host.compiler.compile import compile as compile_network
from host.compiler.limits import CompileError
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.faults.models import SoftErrors
from host.models import lenet5
from host.program.arrangement import steps
from host.program.program import Program
from host.schedule.launch import Launch, MemoryTooSmall, schedule
from hw import descriptor
from hw.config import Config
from hw.descriptor import Flag
from tests.host.executor import Executor, Hazard

SMALL = Config(lanes=4, vec=4, feature_bytes=4096, weight_bytes=2048, port_bits=64)
"""1,024 words a buffer and 128 weight words: LeNet-5 fits, but neither a batch nor fc1's weights do."""


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return lenet5()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(24, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def flags(launch: Launch, unit: int = 0) -> np.ndarray:
    return launch.units[unit].descriptors["flags"]


def execute(program: Program, x: np.ndarray, writeback: bool, units: int = 1) -> tuple[Executor, dict[str, np.ndarray]]:
    device = Executor(program.config, units=units)
    return device, Runtime(program, device).forward(x, writeback=writeback).out


@pytest.mark.parametrize("writeback", [False, True])
@pytest.mark.parametrize("units", [1, 2, 3])
@pytest.mark.parametrize("config", [Config(), SMALL], ids=["default", "small"])
def test_lenet_gives_the_references_bytes(
    net: nn.Module, images: torch.Tensor, config: Config, units: int, writeback: bool
) -> None:
    program = compile_network(net, config, calibrate=images)
    x = program.quantise_input(images[:7])
    _, out = execute(program, x, writeback, units)
    wanted = Runtime(program, ReferenceDevice(config)).forward(x).out
    for name in program.names if writeback else ["fc3"]:
        assert np.array_equal(out[name], wanted[name])


@pytest.mark.parametrize(
    ("config", "batch", "writeback", "digest"),
    [
        (Config(), 8, False, "a7287144fd17edd1"),
        (Config(), 8, True, "eb1e357d90dd6b5e"),
        (SMALL, 20, False, "9d37673f0d2a4f15"),
    ],
    ids=["inference", "write-back", "small"],
)
def test_lenets_descriptors_are_what_they_have_always_been(
    net: nn.Module, images: torch.Tensor, config: Config, batch: int, writeback: bool, digest: str
) -> None:
    launch = schedule(compile_network(net, config, calibrate=images), range(5), batch, writeback=writeback, units=2)
    found = hashlib.sha256(repr([unit.descriptors_address for unit in launch.units]).encode())
    for unit in launch.units:
        found.update(unit.descriptors.tobytes())
    assert found.hexdigest()[:16] == digest


def test_inference_with_and_without_writeback_agrees_and_writes_less(net: nn.Module, images: torch.Tensor) -> None:
    program = compile_network(net, Config(), calibrate=images)
    without, with_ = (schedule(program, range(5), 4, writeback=w) for w in (False, True))
    assert without.written == ("out/fc3",)
    assert with_.written == (
        "conv/conv1", "out/conv1", "conv/conv2", "out/conv2", "out/fc1", "out/fc2", "out/fc3",
    )  # fmt: skip
    assert not (flags(without)[:-1] & (Flag.WRITE_CONV | Flag.WRITE_POOL)).any()
    assert (flags(with_) & Flag.WRITE_POOL).all()


def test_lenet_runs_image_by_image_then_all_images_through_the_fully_connected_layers(
    net: nn.Module, images: torch.Tensor
) -> None:
    program = compile_network(net, Config(), calibrate=images)
    launch = schedule(program, range(5), 8, writeback=False)
    jobs = [(program.layers[job.layer].name, job.first, job.images) for job in launch.units[0].jobs]
    convolutions = [(name, image, 1) for image in range(8) for name in ("conv1", "conv2")]
    assert jobs == [*convolutions, ("fc1", 0, 8), ("fc2", 0, 8), ("fc3", 0, 8)]
    # Images load while the one before computes.
    assert not (flags(launch) & Flag.FENCE).any()
    assert [bool(f & Flag.LOAD) for f in flags(launch)[:4]] == [True, False, True, False]


def test_a_batch_larger_than_the_buffers_is_cut_into_equal_chunks(net: nn.Module, images: torch.Tensor) -> None:
    program = compile_network(net, SMALL, calibrate=images)
    launch = schedule(program, range(5), 20, writeback=False)
    chunks = [job.images for job in launch.units[0].jobs if program.layers[job.layer].name == "fc3"]
    assert len(chunks) > 1
    assert sum(chunks) == 20
    assert max(chunks) - min(chunks) <= max(chunks) // 2
    _, out = execute(program, program.quantise_input(images[:20]), False)
    wanted = Runtime(program, ReferenceDevice(SMALL)).forward(program.quantise_input(images[:20])).out
    assert np.array_equal(out["fc3"], wanted["fc3"])


def test_weights_that_exceed_the_ring_are_used_once_per_job(images: torch.Tensor) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.ReLU(), nn.Linear(12, 5))
    config = replace(SMALL, weight_bytes=1024)
    program = compile_network(net, config, calibrate=images)
    launch = schedule(program, range(2), 3, writeback=False)
    assert steps(program.layers[0], config) > config.weight_words
    assert [(job.layer, job.images) for job in launch.units[0].jobs] == [(0, 1), (0, 1), (0, 1), (1, 3)]
    x = program.quantise_input(images[:3])
    assert np.array_equal(
        execute(program, x, False)[1]["3"], Runtime(program, ReferenceDevice(config)).forward(x).out["3"]
    )


def test_tensors_that_do_not_fit_beside_each_other_go_through_memory_behind_a_fence() -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 4, 1))
    config = replace(SMALL, feature_bytes=2048)
    x = torch.rand(4, 4, 11, 11)
    program = compile_network(net, config, calibrate=x)
    launch = schedule(program, range(3), 4, writeback=False)
    assert launch.written[-1] == "out/3"
    device, out = execute(program, program.quantise_input(x), False)
    assert np.array_equal(
        out["3"], Runtime(program, ReferenceDevice(config)).forward(program.quantise_input(x)).out["3"]
    )
    deep = nn.Sequential(*(nn.Conv2d(12, 12, 3, padding=1) for _ in range(5)), nn.Flatten(), nn.Linear(12 * 121, 6))
    x = torch.rand(5, 12, 11, 11)
    program = compile_network(deep, config, calibrate=x)
    launch = schedule(program, range(6), 5, writeback=False)
    assert len(launch.written) > 1
    device, out = execute(program, program.quantise_input(x), False)
    assert device.fences >= 1
    wanted = Runtime(program, ReferenceDevice(config)).forward(program.quantise_input(x)).out
    assert np.array_equal(out[program.names[-1]], wanted[program.names[-1]])


@pytest.mark.parametrize("convolutions", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("linear", [0, 1, 2, 3])
@pytest.mark.parametrize("feature_bytes", [1024, 2048, 16384])
def test_chains_of_every_length_fit_and_race_nothing(convolutions: int, linear: int, feature_bytes: int) -> None:
    torch.manual_seed(convolutions)
    parts: list[nn.Module] = []
    for _ in range(convolutions):
        parts += [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    if linear:
        parts.append(nn.Flatten())
        for at in range(linear):
            parts += [nn.Linear(4 * 81 if at == 0 else 10, 10)]
    x = torch.rand(6, 4, 9, 9)
    config = replace(SMALL, feature_bytes=feature_bytes)
    program = compile_network(nn.Sequential(*parts), config, calibrate=x)
    for writeback in (False, True):
        device, out = execute(program, program.quantise_input(x), writeback)
        wanted = Runtime(program, ReferenceDevice(config)).forward(program.quantise_input(x)).out
        last = program.names[-1]
        assert np.array_equal(out[last], wanted[last])
    if feature_bytes == 16384:
        # With room enough, no load waits: each image's input has a place beside the one in use.
        assert device.fences == 0


def test_weights_lie_at_addresses_that_depend_on_nothing_but_the_network(net: nn.Module, images: torch.Tensor) -> None:
    program = compile_network(net, Config(), calibrate=images)
    launches = [
        schedule(program, range(5), 1, writeback=False),
        schedule(program, range(5), 9, writeback=True, units=2),
        schedule(program.with_placement(["conv1"]), range(1, 5), 3, writeback=True),
    ]
    for name in program.names:
        for kind in ("weights", "params"):
            assert len({launch.memory[f"{kind}/{name}"] for launch in launches}) == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.booleans(), st.sampled_from([Config(), SMALL]))
def test_regions_never_overlap_and_are_aligned(batch: int, units: int, writeback: bool, config: Config) -> None:
    program = compile_network(lenet5(), config, calibrate=torch.ones(1, 1, 28, 28))
    launch = schedule(program, range(5), batch, writeback=writeback, units=units)
    plan = SoftErrors(1e-4, per="mac").draw(program, 0, batch, 1)
    launch = launch.with_faults(plan, 0)
    spans = [(r.address, r.address + r.nbytes) for r in launch.memory.values()]
    for unit in launch.units:
        assert unit.descriptors_address % 256 == 0
        assert unit.mac_events_address % 64 == unit.feature_events_address % 64 == 0
        spans += [
            (unit.mac_events_address, unit.mac_events_address + unit.mac_events.nbytes),
            (unit.feature_events_address, unit.feature_events_address + unit.feature_events.nbytes),
        ]
    spans = sorted(span for span in spans if span[0] < span[1])
    assert all(before[1] <= after[0] for before, after in zip(spans, spans[1:], strict=False))
    assert spans[-1][1] <= launch.end
    assert len(launch.units) == min(units, batch)
    first = [job.first for unit in launch.units for job in unit.jobs if job.layer == 0]
    assert sorted(first) == list(range(batch))


def test_a_launch_that_exceeds_device_memory_says_how_much_it_needs(net: nn.Module, images: torch.Tensor) -> None:
    program = compile_network(net, Config(), calibrate=images)
    with pytest.raises(MemoryTooSmall, match=r"needs \d+ bytes of device memory, the device has 65536: use a smaller"):
        schedule(program, range(5), 4, writeback=True, memory_bytes=65536)
    launch = schedule(program, range(5), 4, writeback=True)
    launch = replace(launch, memory_bytes=launch.end + 64)
    with pytest.raises(MemoryTooSmall, match="fewer faults"):
        launch.with_faults(SoftErrors(1e-2, per="mac").draw(program, 0, 4, 1), 0)


def test_a_build_of_few_bits_runs_what_fits_it_and_refuses_the_rest(net: nn.Module, images: torch.Tensor) -> None:
    """LeNet-5's largest count at 4x4 is that of conv1's output, 6 (8) x 28 x 28."""
    enough = replace(SMALL, address_bits=20, count_bits=14, extent_bits=8)
    program = compile_network(net, enough, calibrate=images)
    x = program.quantise_input(images[:5])
    _, out = execute(program, x, writeback=True)
    wanted = Runtime(program, ReferenceDevice(enough)).forward(x).out
    assert all(np.array_equal(out[name], wanted[name]) for name in wanted)
    launch = schedule(program, range(5), 5, writeback=True)
    assert all(
        int(unit.descriptors[field.name].max()) < 1 << {64: 20, 32: 14, 16: 8}[field.bits]
        for unit in launch.units
        for field in descriptor.FIELDS
        if field.bits > 8 and field.name not in ("flags", "src_base", "src_step")
    )
    with pytest.raises(CompileError, match=r"'conv1': an image .* 6272 bytes, more than 4095 .count_bits=12"):
        compile_network(net, replace(enough, count_bits=12), calibrate=images)
    with pytest.raises(CompileError, match=r"an extent .130. exceeds 127 .extent_bits=7"):
        compile_network(
            nn.Sequential(nn.Conv2d(4, 2, 3)), replace(enough, extent_bits=7), calibrate=torch.rand(2, 4, 130, 9)
        )
    far = compile_network(net, replace(enough, address_bits=16), calibrate=images)
    with pytest.raises(MemoryTooSmall, match=r"addresses of this build .address_bits=16. reach 65536"):
        schedule(far, range(5), 1, writeback=False)
    large = replace(SMALL, feature_bytes=1 << 18, count_bits=18)
    for bits, most in ((7, 127), (16, 300)):
        program = compile_network(net, replace(large, extent_bits=bits), calibrate=images)
        (unit,) = schedule(program, range(5), 300, writeback=False).units
        assert most // 2 < int(unit.descriptors["images"].max()) <= most


def test_a_value_that_a_build_does_not_hold_is_refused_with_its_layers_name(
    net: nn.Module, images: torch.Tensor
) -> None:
    narrow = replace(SMALL, address_bits=20, count_bits=14, extent_bits=8)
    program = compile_network(net, narrow, calibrate=images)
    records = schedule(program, range(5), 2, writeback=False).units[0].descriptors.copy()
    assert descriptor.too_wide(records, narrow) is None
    for name, value, bits in (("load_stride", 1 << 14, 14), ("weight_addr", 1 << 20, 20), ("out_w", 256, 8)):
        wrong = records.copy()
        wrong[name][3] = value
        assert descriptor.too_wide(wrong, narrow) == (3, name, bits)
    wrong = records.copy()
    wrong["src_base"][3] = (1 << 32) - 5  # before the buffer's first word: it wraps
    assert descriptor.too_wide(wrong, narrow) is None


def test_a_launch_of_no_images_or_of_layers_apart_is_refused(net: nn.Module, images: torch.Tensor) -> None:
    program = compile_network(net, Config(), calibrate=images)
    with pytest.raises(ValueError, match="at least one image"):
        schedule(program, range(5), 0, writeback=False)
    with pytest.raises(ValueError, match="consecutive"):
        schedule(program, [0, 2], 1, writeback=False)


def test_the_descriptor_executor_notices_a_missing_fence() -> None:
    class Forgetful(Executor):
        def launch(self, launch: Launch) -> object:  # type: ignore[override]
            units = []
            for unit in launch.units:
                records = unit.descriptors.view(np.uint8).copy().view(unit.descriptors.dtype)
                records["flags"] &= ~np.uint32(Flag.FENCE)
                units.append(replace(unit, descriptors=records))
            return super().launch(replace(launch, units=units))

    deep = nn.Sequential(*(nn.Conv2d(12, 12, 3, padding=1) for _ in range(5)), nn.Flatten(), nn.Linear(12 * 121, 6))
    x = torch.rand(5, 12, 11, 11)
    program = compile_network(deep, replace(SMALL, feature_bytes=2048), calibrate=x)
    with pytest.raises(Hazard, match="races the job before|may not be written yet"):
        Runtime(program, Forgetful(program.config)).forward(program.quantise_input(x), writeback=False)
