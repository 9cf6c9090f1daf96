"""Networks compiled for PipeCNN's arithmetic: preconditions hold, accuracy stays, the CPU computes the same bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from host.compiler.compile import compile as compile_network
from host.compiler.limits import CompileError, check_layer
from host.devices.reference import ReferenceDevice
from host.devices.runtime import Runtime
from host.models import lenet5
from host.program.pipecnn import requantise
from hw.config import Config

CONFIG = Config(arithmetic="pipecnn")


@pytest.mark.parametrize("per_channel", [False, True])
def test_lenet_runs_near_its_float_outputs_and_alike_on_the_cpu(per_channel: bool) -> None:
    torch.manual_seed(0)
    net, images = lenet5(pretrained=True).eval(), torch.rand(16, 1, 28, 28)
    program = compile_network(net, CONFIG, calibrate=images, per_channel=per_channel)
    for layer in program.layers:
        assert min(layer.shift) >= 1
        assert min(layer.weight_frac) - layer.out_frac >= 1
    x = program.quantise_input(images)
    found = Runtime(program, ReferenceDevice(CONFIG)).forward(x)
    on_cpu = Runtime(program.with_placement(cpu=program.names), ReferenceDevice(CONFIG)).forward(x)
    for name in program.names:
        assert np.array_equal(found.conv[name], on_cpu.conv[name])
    with torch.no_grad():
        wanted = net(images).numpy()
    got = np.ldexp(found.out[program.names[-1]].reshape(16, 10).astype(float), -program.out_frac)
    assert np.corrcoef(got.reshape(-1), wanted.reshape(-1))[0, 1] > 0.98


def test_a_shift_of_zero_is_refused_with_the_layers_name() -> None:
    program = compile_network(lenet5(), CONFIG, calibrate=torch.rand(4, 1, 28, 28))
    layer = program.layers[1]
    exact = replace(layer, weight_frac=(layer.out_frac - layer.in_frac,) * layer.out_channels)
    with pytest.raises(CompileError, match=r"conv2.*PipeCNN's least"):
        check_layer(exact, CONFIG)
    check_layer(exact, Config())


def test_saturation_looks_at_the_sum_without_the_bias() -> None:
    acc = np.array([[[[130 * 16]], [[-130 * 16]]]], np.int32)
    y = requantise(acc, np.array([4, 4]), np.array([-100, 100], np.int32), False)
    assert y.reshape(-1).tolist() == [127, -128]
