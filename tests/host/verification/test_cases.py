"""Random cases: they reach every operator and feature, and the reference device agrees with plain loops on them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.faults.plan import SITES
from host.program.arrangement import arrange, steps
from host.program.layers import Layer
from host.verification.cases import CONFIGS, Case, kind_of, random_case, random_program, view_of
from tests.host.verification import golden

SEEDS = (1, 41)


def features(case: Case) -> set[str]:
    """What a case exercises, in words."""
    program, found = case.program, set()
    readers = Counter(source for layer in program.layers for source in layer.sources)
    found.add("graph" if max(readers.values()) > 1 or any(len(la.sources) > 1 for la in program.layers) else "chain")
    for layer in program.layers:
        found.add(kind_of(layer))
        found.add(f"{view_of(layer)} view" if layer.operator != "add" else "add's view")
        found |= {name for name, has in _properties(layer, case).items() if has}
    if case.plan is not None:
        found |= {f"{SITES[code]} faults" for code in case.plan.site}
        constant = [at for at, layer in enumerate(program.layers) if layer.constant]
        if np.isin(case.plan.layer, constant).any():
            found.add("faults in constant operators")
    return found


def _properties(layer: Layer, case: Case) -> dict[str, bool]:
    config = case.program.config
    how = arrange(layer, config)
    pool = layer.pool
    return {
        "upper below 127": layer.upper < 127,
        "upper without ReLU": layer.upper < 127 and not layer.relu,
        "pool": pool is not None,
        "ceil pool": pool is not None and pool.ceil,
        "ceil pool that matters": pool is not None
        and pool.ceil
        and layer.out_shape != replace(layer, pool=replace(pool, ceil=False)).out_shape,
        "padded pool": pool is not None and pool.pad > 0,
        "fold": layer.fold is not None,
        "CPU": layer.placement == "cpu",
        "three sources": len(layer.sources) == 3,
        "two groups": layer.groups == 2,
        "three groups": layer.groups == 3,
        "depthwise multiplier": layer.groups == layer.in_shape[0] > 1 and layer.out_channels > layer.groups,
        "depthwise on a view": kind_of(layer) == "depthwise convolution" and view_of(layer) != "whole",
        "average on a view": layer.operator == "average" and view_of(layer) != "whole",
        "global average": layer.operator == "average" and layer.kernel == layer.in_shape[1:],
        "pooled add": layer.operator == "add" and pool is not None,
        "input read again": "input" in layer.sources and layer is not case.program.layers[0],
        "output groups read different planes": len(set(how.first)) > 1,
        "no regular period": how.period is None,
        "reads all of its planes in turn": how.span == len(how.planes),
        "other fractions of operands": layer.operator == "add"
        and len({case.program.layer(s).out_frac for s in layer.sources if s != "input"}) == 2,
        "single step": steps(layer, config) == 1,
    }


WANTED = {
    *("graph", "chain", "convolution", "grouped convolution", "depthwise convolution", "add", "average", "identity"),
    *("whole view", "concat view", "split view", "shuffle view", "add's view", "faults in constant operators"),
    *(f"{site} faults" for site in SITES),
}
"""With all `_properties`."""


@pytest.mark.parametrize("seed", SEEDS)
def test_three_hundred_cases_reach_every_operator_view_and_feature(seed: int) -> None:
    seen: Counter[str] = Counter()
    for number in range(300):
        case = random_case(seed, number)
        seen.update(features(case))
    wanted = WANTED | set(_properties(case.program.layers[0], case))
    assert not {name for name in wanted if not seen[name]}, dict(seen)
    for kind in ("grouped convolution", "depthwise convolution", "add", "average", "identity", "graph", "chain"):
        assert seen[kind] >= 20, (kind, seen[kind])


def test_the_reference_device_agrees_with_plain_loops() -> None:
    for number in range(250):
        case = random_case(77, number)
        program = case.program.with_placement(())
        x = case.x[:2]
        conv, out = golden.forward(program, x)
        with ReferenceDevice(program.config, memory_bytes=1 << 24) as device:
            found = Runtime(program, device).forward(x)
        for layer in program.layers:
            assert np.array_equal(found.conv[layer.name], conv[layer.name]), f"{layer.name} of {case}"
            assert np.array_equal(found.out[layer.name], out[layer.name]), f"{layer.name} of {case}"


def test_a_case_shows_its_graph() -> None:
    shown = "\n".join(str(random_case(1, number)) for number in range(100))
    for part in (" = add(", " = depthwise convolution(", " concat)", " shuffle[", " split[", " ceil", " upper ", "+"):
        assert part in shown, part


def test_networks_from_any_generator_are_legal() -> None:
    for seed in range(50):
        random_program(np.random.default_rng(seed), CONFIGS[seed % len(CONFIGS)])
