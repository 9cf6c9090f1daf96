"""Programs are saved whole, refuse what is damaged, and requantise what training changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from host.compiler.compile import compile as compile_network
from host.compiler.limits import CompileError
from host.models import lenet5
from host.program import quantisation
from host.program.program import Program, ProgramError
from hw.config import Config


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    return compile_network(lenet5(), Config(), calibrate=torch.rand(8, 1, 28, 28), per_channel=True)


def test_save_and_load_give_an_equal_program(program: Program, tmp_path: Path) -> None:
    program.with_placement(["fc3"]).save(tmp_path / "p.redline")
    loaded = Program.load(tmp_path / "p.redline")
    assert loaded.digest == program.with_placement(["fc3"]).digest != program.digest
    assert loaded.layers == program.with_placement(["fc3"]).layers
    assert loaded.config == program.config
    assert loaded.modules == program.modules
    for name in program.names:
        assert np.array_equal(loaded.weights[name], program.weights[name])
        assert np.array_equal(loaded.biases[name], program.biases[name])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_a_truncated_program_is_refused(program: Program, tmp_path: Path, share: float) -> None:
    path = tmp_path / "p"
    program.save(path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(ProgramError, match="damaged or truncated.*compile and save the network again"):
        Program.load(path)


def test_a_single_damaged_byte_is_noticed(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "p"
    program.save(path)
    raw = bytearray(path.read_bytes())
    for at in (len(raw) - 1, len(raw) // 2):
        damaged = bytearray(raw)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ProgramError, match="checksum does not match"):
            Program.load(path)


def test_files_of_another_kind_or_version_are_refused(program: Program, tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="no such file"):
        Program.load(tmp_path / "missing")
    (tmp_path / "text").write_text("not a program at all")
    with pytest.raises(ProgramError, match="damaged or truncated"):
        Program.load(tmp_path / "text")
    path = tmp_path / "p"
    program.save(path)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"version":"2"', b'"version":"9"'))
    with pytest.raises(ProgramError, match="version 9, this Redline reads 2"):
        Program.load(path)
    path.write_bytes(raw.replace(b"redline-program", b"redline-problem"))
    with pytest.raises(ProgramError, match="not a redline-program file"):
        Program.load(path)


def test_placement_names_the_layers_it_knows(program: Program) -> None:
    placed = program.with_placement(["conv2", "fc1"])
    assert [layer.placement for layer in placed.layers] == ["accelerator", "cpu", "cpu", "accelerator", "accelerator"]
    assert placed.segments() == [("accelerator", (0,)), ("cpu", (1, 2)), ("accelerator", (3, 4))]
    assert placed.with_placement([]).layers == program.layers
    with pytest.raises(ProgramError, match="no layer 'conv9'; this network has conv1, conv2, fc1, fc2, fc3"):
        program.with_placement(["conv9"])


def test_requantising_one_program_leaves_its_sibling_alone(program: Program) -> None:
    sibling = program.with_placement(["fc1"])
    before = program.weights["fc1"].copy()
    sibling.requantise("fc1", torch.zeros(120, 400), torch.zeros(120))
    assert not sibling.weights["fc1"].any()
    assert np.array_equal(program.weights["fc1"], before)


def test_requantising_the_same_floats_changes_nothing() -> None:
    net = lenet5()
    program = compile_network(net, Config(), calibrate=torch.rand(8, 1, 28, 28))
    digest = program.digest
    for name in program.names:
        module = net.get_submodule(program.modules[name])
        program.requantise(name, module.weight, module.bias)
    assert program.digest == digest


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused_by_name(program: Program, value: float) -> None:
    weight = torch.zeros(16, 6, 5, 5)
    weight[3, 2, 1, 0] = value
    with pytest.raises(ProgramError, match="layer 'conv2': its weights hold NaN or infinite values"):
        program.requantise("conv2", weight)
    with pytest.raises(ProgramError, match="layer 'fc1': its bias hold NaN"):
        program.requantise("fc1", torch.zeros(120, 400), torch.full((120,), value))


def test_shapes_that_do_not_fit_are_refused(program: Program) -> None:
    with pytest.raises(ProgramError, match=r"layer 'fc1': weights have shape \(120, 399\)"):
        program.requantise("fc1", torch.zeros(120, 399))
    with pytest.raises(ProgramError, match="layer 'fc1': bias has shape"):
        program.requantise("fc1", torch.zeros(120, 400), torch.zeros(3))


def test_biases_saturate_at_the_ends_of_int32() -> None:
    found = quantisation.quantise_bias(np.array([1e30, -1e30, 0.0]), np.array([0, 3, 9]))
    assert found.tolist() == [2**31 - 1, -(2**31), 0]


@pytest.mark.parametrize("bias", [1e30, -1e30])
@pytest.mark.parametrize("weight", [0.0, 1e-3])
def test_a_bias_that_32_bits_do_not_hold_is_refused_and_changes_nothing(
    program: Program, bias: float, weight: float
) -> None:
    before = program.digest
    with pytest.raises(ProgramError, match=r"layer 'fc1': .* its sums can reach 2,147,.* at output channel 1 .*anew"):
        program.requantise("fc1", torch.full((120, 400), weight), torch.tensor([0.0, bias] + [0.0] * 118))
    assert program.digest == before


@pytest.mark.parametrize("shape", [(2, 1, 27, 28), (2, 3, 28, 28), (1, 28, 28), (28, 28)])
def test_images_of_another_size_are_refused(program: Program, shape: tuple[int, ...]) -> None:
    with pytest.raises(ProgramError, match=r"wrong image size: this network takes \(N, 1, 28, 28\)"):
        program.quantise_input(torch.zeros(shape))


def test_images_that_are_not_numbers_are_refused(program: Program) -> None:
    images = torch.zeros(1, 1, 28, 28)
    images[0, 0, 3, 3] = float("nan")
    with pytest.raises(ProgramError, match="NaN or infinite"):
        program.quantise_input(images)


def test_a_negative_shift_is_refused_with_the_layer_and_the_remedy(program: Program) -> None:
    layer = program.layers[0]
    broken = (replace(layer, out_frac=layer.in_frac + max(layer.weight_frac) + 1), *program.layers[1:])
    with pytest.raises(
        CompileError, match=r"layer 'conv1': requantisation shift -\d+ .* outside 0 to 31; choose other"
    ):
        replace(program, layers=broken)


def test_layers_that_do_not_meet_are_refused(program: Program) -> None:
    with pytest.raises(ProgramError, match="layer 'fc1' reads 'conv2'"):
        replace(program, layers=(program.layers[0], *program.layers[2:]))
    with pytest.raises(ProgramError, match="needs at least one layer"):
        replace(program, layers=())
    weights = dict(program.weights) | {"fc1": program.weights["fc1"].astype(np.int16)}
    with pytest.raises(ProgramError, match="layer 'fc1' needs int8 of shape"):
        replace(program, weights=weights)


def test_the_network_itself_is_not_changed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    compile_network(net, Config(), calibrate=torch.rand(2, 3, 8, 8))
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
