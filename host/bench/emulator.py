"""Speed of the emulator beside PyTorch's float32, on the same networks, one thread, in turns."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from host import models
from host.bench.turns import in_turns
from host.compiler import compile as compiler
from host.devices.emulator.device import EmulatorDevice
from host.devices.runtime import Runtime
from host.faults.conditions import Clock, Conditions
from host.faults.models import SoftErrors
from host.faults.plan import FaultPlan
from host.training.twin import attach
from host.verification.overclocked import random_table
from hw.config import Config
from hw.delays import Table
from hw.errors import RedlineError

CONFIG = Config(pool_columns=128)
"""The default accelerator, with pooled rows wide enough for VGG-16."""
RATE = 1e-6
"""Accumulator flips per MAC result."""
SEED = 1
ROUTED = Path(__file__).parents[2] / "sim" / "timing" / "tables" / "ecp5-16x8-seed1.json"
"""Delays of the default accelerator as routed."""
MOST_GROUPS = 3
"""Groups of output bits in the accumulators' masks at the clock that `fp32_over_overclock` is of."""
DEEPER = (0.85, 0.8, 0.75)
"""Clock periods beyond it, as shares of the safe one."""
NETWORKS: dict[str, Callable[[], nn.Module]] = {"alexnet": models.alexnet, "vgg16": models.vgg16}
FORWARD_ROUNDS = {("alexnet", 1): 15, ("alexnet", 16): 7, ("vgg16", 1): 5, ("vgg16", 16): 2}
"""Rounds of each network and batch."""
STEPS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], int]] = {
    "alexnet": (models.alexnet, (3, 224, 224), 5),
    "lenet5": (models.lenet5, (1, 28, 28), 60),
}
"""Networks whose training steps are timed: the network, its images' shape, rounds."""
STEP_BATCH = 16

Progress = Callable[[str], None]


def measure(progress: Progress = lambda _: None, table: Table | None = None) -> dict[str, Any]:
    """Time forward passes and training steps.

    Forward passes are timed from images to the last layer's output: float32 through the network's own modules, the
    emulator through `Runtime.forward` without write-back, on quantised images. Training steps contain everything:
    zeroing gradients, forward, loss, backward, SGD with momentum; the emulator's also requantise and pack every layer's
    weights. All contenders of a row take turns, and each is judged by its median.

    Parameters
    ----------
    progress : callable (what is measured)
    table : Table, optional
        Delays for the overclocked passes; by default those of the array as routed, or where they are not there, random
        ones.

    Returns
    -------
    dict
        fp32_over_clean : float32 forward time over the emulator's, the worst over networks and batches
        fp32_over_overclock : the same for the emulator on the fastest clock with at most `MOST_GROUPS` groups of late
        bits in the accumulators and none elsewhere
        sparse_fault_overhead_1e-6 : time that a drawn plan of that rate per MAC result adds, over the clean time
        step_over_fp32 : time of a training step over float32's, by network
        deeper : AlexNet at faster clocks, with the groups of each late bank
        table, kernels, threads, forward, steps : of the measurement; times in ms of processor time
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        table = table or (Table.load(ROUTED) if ROUTED.exists() else _random_table())
        rows = [_forward(name, batch, table, progress) for name in NETWORKS for batch in (1, 16)]
        deeper = _deeper(table, progress)
        steps = [_step(name, progress) for name in STEPS]
        with EmulatorDevice(CONFIG) as device:
            kernels = device.describe()
    finally:
        torch.set_num_threads(before)
    return {
        "fp32_over_clean": min(row["fp32_over_clean"] for row in rows),
        "fp32_over_overclock": min(row["fp32_over_overclock"] for row in rows),
        "sparse_fault_overhead_1e-6": max(row["sparse_fault_overhead_1e-6"] for row in rows),
        "step_over_fp32": {row["network"]: row["step_over_fp32"] for row in steps},
        "deeper": deeper,
        "table": f"{table.part} {table.package} seed {table.seed}, {table.hash[:12]}",
        "kernels": kernels,
        "threads": 1,
        "forward": rows,
        "steps": steps,
    }


def _random_table() -> Table:
    """As in a routed array, the accumulators are the last to arrive."""
    table = random_table(np.random.default_rng(SEED), CONFIG)
    lanes = tuple(tuple(b if b.name == "accumulator" else b.scaled(0.5) for b in lane) for lane in table.lanes)
    return replace(table, lanes=lanes)


def _conditions(table: Table) -> Conditions:
    """The fastest clock at which only the accumulators are late, in few groups."""
    fastest: Conditions | None = None
    for percent in range(99, 50, -1):
        tried = Conditions(Clock(table, table.onset_ps * percent // 100, 1.0))
        banks = tried.banks(CONFIG)
        if set(banks) != {"accumulator"} or banks["accumulator"].groups > MOST_GROUPS:
            break
        fastest = tried
    if fastest is None:
        raise BenchError("no clock of this delay table makes few bits of the accumulators late: use another table")
    return fastest


class BenchError(RedlineError, RuntimeError):
    """The benchmark cannot measure what it is for; the message says why."""


def _forward(name: str, batch: int, table: Table, progress: Progress) -> dict[str, Any]:
    progress(f"{name}, batch {batch}")
    torch.manual_seed(SEED)
    net = NETWORKS[name]().eval()
    x = torch.randn(batch, 3, 224, 224)
    program = compiler.compile(net, CONFIG, calibrate=x[:2])
    images = program.quantise_input(x)
    start = time.process_time()
    plan = SoftErrors(RATE, per="mac").draw(program, 0, batch, SEED)
    drawing = time.process_time() - start
    late = _conditions(table)
    clocked = FaultPlan.of(program.names).under(late)
    with EmulatorDevice(CONFIG) as device, torch.no_grad():
        runtime = Runtime(program, device)
        seconds = in_turns(
            {
                "fp32": lambda: net(x),
                "clean": lambda: runtime.forward(images, writeback=False),
                "sparse": lambda: runtime.forward(images, writeback=False, plan=plan),
                "overclock": lambda: runtime.forward(images, writeback=False, plan=clocked),
            },
            FORWARD_ROUNDS[name, batch],
        )
    macs = sum(la.out_channels * la.conv_shape[1] * la.conv_shape[2] * _row(la.weight_shape) for la in program.layers)
    return {
        "network": name,
        "batch": batch,
        "fp32_ms": _ms(seconds["fp32"]),
        "clean_ms": _ms(seconds["clean"]),
        "sparse_ms": _ms(seconds["sparse"]),
        "overclock_ms": _ms(seconds["overclock"]),
        "overclock_groups": late.banks(CONFIG)["accumulator"].groups,
        "fp32_over_overclock": round(seconds["fp32"] / seconds["overclock"], 3),
        "fp32_over_clean": round(seconds["fp32"] / seconds["clean"], 3),
        "sparse_fault_overhead_1e-6": round(seconds["sparse"] / seconds["clean"] - 1, 4),
        "events": len(plan),
        "drawing_ms": _ms(drawing),
        "clean_gmac_per_s": round(macs * batch / seconds["clean"] / 1e9, 1),
    }


def _deeper(table: Table, progress: Progress) -> list[dict[str, Any]]:
    """AlexNet on faster clocks, one image."""
    progress("alexnet, faster clocks")
    torch.manual_seed(SEED)
    net, x = models.alexnet().eval(), torch.randn(1, 3, 224, 224)
    program = compiler.compile(net, CONFIG, calibrate=x)
    images = program.quantise_input(x)
    with EmulatorDevice(CONFIG) as device, torch.no_grad():
        runtime = Runtime(program, device)
        contenders: dict[str, Callable[[], Any]] = {"fp32": lambda: net(x)}
        clocks = {share: Conditions(Clock(table, round(share * table.onset_ps), 1.0)) for share in DEEPER}
        for share, conditions in clocks.items():
            plan = FaultPlan.of(program.names).under(conditions)
            contenders[f"{share}"] = partial(runtime.forward, images, writeback=False, plan=plan)
        seconds = in_turns(contenders, FORWARD_ROUNDS["alexnet", 1])
    return [
        {
            "period_of_safe": share,
            "groups": {bank: masks.groups for bank, masks in conditions.banks(CONFIG).items()},
            "ms": _ms(seconds[f"{share}"]),
            "fp32_over_overclock": round(seconds["fp32"] / seconds[f"{share}"], 3),
        }
        for share, conditions in clocks.items()
    ]


def _row(shape: tuple[int, ...]) -> int:
    return shape[1] * shape[2] * shape[3]


def _step(name: str, progress: Progress) -> dict[str, Any]:
    progress(f"{name}, training step")
    make, shape, rounds = STEPS[name]
    torch.manual_seed(SEED)
    x, y = torch.randn(STEP_BATCH, *shape), torch.randint(0, 10, (STEP_BATCH,))
    plain, net = make().train(), make().train()
    with EmulatorDevice(CONFIG) as device:
        twin = attach(net, device, calibrate=x).train()
        seconds = in_turns({"fp32": _stepper(plain, x, y), "int8": _stepper(twin, x, y)}, rounds)
    return {
        "network": name,
        "batch": STEP_BATCH,
        "fp32_ms": _ms(seconds["fp32"]),
        "int8_ms": _ms(seconds["int8"]),
        "step_over_fp32": round(seconds["int8"] / seconds["fp32"], 3),
    }


def _stepper(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    # Weights must change, and must not run away: the data are noise.
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)


if __name__ == "__main__":
    print(json.dumps(measure()))
