"""Tiled layers on the RTL, with faults in the accumulators and the features."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.devices.simulation import SimulationDevice
from host.faults.models import SoftErrors
from host.program.layers import Pool
from host.schedule.launch import schedule
from host.schedule.tiling import effort
from host.schedule.traffic import moved_bytes
from host.verification.cases import CONFIGS, random_case
from host.verification.verify import verify
from tests.host.schedule.test_tiling import efforts, layer, made

TIGHT = min(CONFIGS, key=lambda config: config.feature_bytes)


def test_random_tiled_layers_give_the_references_bytes_on_the_rtl() -> None:
    cases, seed = 60, 4
    report = verify(("reference", "simulation"), cases, seed, configs=(TIGHT,))
    assert report.ok, str(report)
    assert report.faulty_cases > cases // 3
    found = Counter(kind for number in range(cases) for kind in efforts(random_case(seed, number, configs=(TIGHT,))))
    assert all(found[kind] > 2 for kind in (1, 2, 3)), found


def test_layers_far_beyond_the_buffers_give_the_references_bytes_on_the_rtl() -> None:
    """64 words a buffer, 32 weight words, 4 pooled columns; a thousand and more words of input."""
    plain = layer(None, in_shape=(30, 6, 7))
    which = {
        "bands of columns": (layer(Pool(3, 2), in_shape=(8, 9, 45), kernel=(3, 2)), 2),
        "chunks of groups": (layer(None, in_shape=(80, 6, 7), out_channels=80, weight_frac=(7,) * 80, groups=80), 2),
        "parts by channel groups": (plain, 3),
        "pooled output by output": (replace(plain, pool=Pool(3, 2, 1)), 3),
        "parts by kernel rows": (layer(None, in_shape=(6, 13, 11), kernel=(13, 11), padding=(0, 0)), 3),
        "parts by kernel columns": (layer(None, in_shape=(3, 2, 90), kernel=(2, 90), padding=(0, 0)), 3),
        "strides and padding": (
            layer(Pool(2, 1), in_shape=(7, 11, 9), kernel=(9, 5), stride=(2, 2), padding=(8, 3)),
            3,
        ),
    }
    with SimulationDevice(TIGHT, processes=1, memory_bytes=1 << 24) as device:
        for number, (name, (it, wanted_effort)) in enumerate(which.items()):
            assert effort(it, TIGHT) == wanted_effort, name
            program = made(it, TIGHT)
            x = np.random.default_rng(number).integers(-128, 128, (2, *it.in_shape)).astype(np.int8)
            plan = SoftErrors(2e-3, per="mac").draw(program, 3, 2, number)
            plan += SoftErrors(1e-2, sites=("feature",)).draw(program, 3, 2, number)
            for writeback in (False, True):
                found, wanted = (
                    Runtime(program, there).forward(x, writeback=writeback, plan=plan, first_image=3)
                    for there in (device, ReferenceDevice(TIGHT))
                )
                assert np.array_equal(found.out["conv"], wanted.out["conv"]), name
                assert found.conv.keys() == wanted.conv.keys()
                assert all(np.array_equal(found.conv[key], wanted.conv[key]) for key in wanted.conv), name
                launch = schedule(program, [0], 2, writeback=writeback).with_faults(plan, 3)
                assert found.report.faults_applied == launch.faults > 0
                assert found.report.bytes_written == moved_bytes(launch).written
