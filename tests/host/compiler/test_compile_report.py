"""The compile report says what each layer costs, where it runs, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from host import cli, models
from host.compiler import compile as compiler
from host.compiler import report as compile_report
from host.program.program import Program
from hw.config import Config
from tests.host.test_cli import needs_data, redline

CONFIG = Config(lanes=16, vec=8)


def compiled(net: nn.Module, *shape: int, fallback: str = "error") -> Program:
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(1))
    return compiler.compile(net, CONFIG, calibrate=images, fallback=fallback)  # type: ignore[arg-type]


def lenet() -> dict[str, compile_report.LayerCost]:
    program = compiled(models.lenet5(pretrained=True), 1, 28, 28)
    return {cost.name: cost for cost in compile_report.costs(program)}


def test_costs_are_those_counted_by_hand() -> None:
    costs = lenet()
    assert list(costs) == ["conv1", "conv2", "fc1", "fc2", "fc3"]
    conv2 = costs["conv2"]
    assert (conv2.kind, conv2.input, conv2.output, conv2.kernel) == ("convolution", (6, 14, 14), (16, 5, 5), (5, 5))
    assert conv2.macs == 16 * 10 * 10 * 6 * 5 * 5
    # One group of 16 lanes, 100 outputs, one group of 8 channels at 25 taps.
    assert conv2.steps == 100 * 25
    assert conv2.utilisation == 6 / 8
    assert (conv2.parameter_bytes, conv2.input_bytes, conv2.output_bytes) == (2400 + 16 * 4, 6 * 14 * 14, 16 * 5 * 5)
    assert costs["fc1"].kind == "fully connected"
    assert sum(cost.macs for cost in costs.values()) == 416_520
    assert sum(cost.parameter_bytes for cost in costs.values()) == 61_706 + 3 * (6 + 16 + 120 + 84 + 10)


def test_a_folded_layer_is_reported_as_the_network_has_it() -> None:
    conv1 = lenet()["conv1"]
    assert (conv1.input, conv1.kernel, conv1.folded) == ((1, 28, 28), (5, 5), True)
    assert conv1.macs == 6 * 28 * 28 * 25
    assert conv1.steps == 28 * 28 * 5
    assert "folded" in conv1.why


def test_channels_that_fill_the_array_keep_it_busy() -> None:
    net = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.ReLU())
    (cost,) = compile_report.costs(compiled(net, 8, 6, 6))
    assert cost.utilisation == 1
    assert (cost.runs_on, cost.why) == ("accelerator", "fits")


def test_a_layer_on_the_cpu_says_which_limit_it_exceeds() -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 13), nn.ReLU(), nn.Conv2d(8, 8, 3))
    program = compiled(net, 8, 20, 20, fallback="cpu")
    first, second = compile_report.costs(program)
    assert (first.runs_on, first.why) == ("cpu", "kernel edge 13 exceeds 11")
    assert (second.runs_on, second.why) == ("accelerator", "fits")
    assert (first.cycles, first.buffers, first.bound) == (None, None, None)
    assert second.cycles is not None
    assert compile_report.headline([first, second], CONFIG).endswith("; on the CPU: 0")


def test_a_layer_larger_than_the_buffers_says_so() -> None:
    (cost,) = compile_report.costs(compiled(nn.Sequential(nn.Conv2d(64, 8, 1)), 64, 40, 40))
    assert cost.runs_on == "accelerator"
    assert cost.why == "in tiles: its input takes 102,400 bytes, a feature buffer holds 65,536"


def test_the_report_says_where_tensors_lie() -> None:
    found = {name: str(cost.buffers) for name, cost in lenet().items()}
    assert found == {"conv1": "mem>A>B", "conv2": "B>A", "fc1": "A>B", "fc2": "B>A", "fc3": "A>mem"}
    (tiled,) = compile_report.costs(compiled(nn.Sequential(nn.Conv2d(64, 8, 1)), 64, 40, 40))
    assert tiled.buffers is not None
    assert (str(tiled.buffers), tiled.buffers.bands) == ("mem>A/B>mem 2x", 2)
    # 3x3 kernels over 512 channels take 576 words of 128 bytes; the ring holds 512.
    (streamed,) = compile_report.costs(compiled(nn.Sequential(nn.Conv2d(512, 16, 3)), 512, 5, 5))
    assert str(streamed.buffers) == "mem>A>mem weights streamed"


def test_with_write_back_every_layer_writes() -> None:
    program = compiled(models.lenet5(pretrained=True), 1, 28, 28)
    for cost in compile_report.costs(program, writeback=True):
        assert cost.buffers is not None
        assert cost.buffers.written
        m, oh, ow = program.layer(cost.name).conv_shape
        vec = CONFIG.vec
        # In channel groups of VEC: before pooling, too, where there is one.
        wanted = -(-m // vec) * vec * (oh * ow + (cost.pool > 0) * cost.output[1] * cost.output[2])
        assert cost.bytes_written == wanted


class Counted(NamedTuple):
    """What a hook saw a module do to one image."""

    macs: int
    input: int
    output: tuple[int, ...]


def counted(net: nn.Module, images: torch.Tensor) -> dict[str, Counted]:
    """MACs of one image by module, counted by hooks on a float forward pass."""
    found = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def see(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            products = module.weight[0].numel()  # type: ignore[operator, index, union-attr]
            found[name] = Counted(output[0].numel() * products, inputs[0][0].numel(), tuple(output[0].shape))

        return see

    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(hook(name))
    with torch.no_grad():
        net.eval()(images)
    return found


LARGE = ("alexnet", "vgg16", "vgg19", "resnet50")
"""Networks that take longer to compile."""


@pytest.mark.parametrize(
    "network", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in models.MODELS]
)
def test_macs_and_shapes_are_those_that_hooks_count(network: str) -> None:
    torch.manual_seed(0)
    images = torch.randn(1, *((1, 28, 28) if network in models.GREY else (3, 224, 224)))
    net = models.MODELS[network]().eval()
    config = Config(feature_bytes=1 << 18, pool_columns=128)
    program = compiler.compile(net, config, calibrate=images)
    costs = compile_report.costs(program)
    wanted = counted(net, images)
    real = [cost for cost in costs if cost.operator == "convolution"]
    assert sorted(program.modules[cost.name] for cost in real) == sorted(wanted)
    for cost in real:
        seen = wanted[program.modules[cost.name]]
        assert (cost.macs, cost.input_bytes) == (seen.macs, seen.input), cost.name
        if not cost.pool:
            assert cost.output[: len(seen.output)] == seen.output, cost.name
    total = sum(seen.macs for seen in wanted.values())
    assert compile_report.headline(costs, config).startswith(f"{total:,} MACs")
    for cost in costs:
        assert cost.cycles is not None
        assert cost.busy is not None
        # Bands compute the convolution rows that two of them need twice.
        assert cost.cycles * cost.busy >= cost.steps * 0.999
        assert 0 < cost.busy <= 1, cost.name


class Block(nn.Module):
    """A bit of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.norm = nn.LocalResponseNorm(3)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x))
        y = self.depthwise(x) + x
        return nn.functional.avg_pool2d(self.last(torch.cat((y, self.grouped(x)), 1)), 2)


def test_every_operator_is_reported_with_its_sources() -> None:
    program = compiled(Block(), 3, 6, 6, fallback="cpu")
    found = {cost.name: cost for cost in compile_report.costs(program)}
    assert [(cost.kind, cost.sources, cost.groups, cost.runs_on) for cost in found.values()] == [
        ("convolution", ("input",), 1, "accelerator"),
        ("local response normalisation", ("stem",), 8, "cpu"),
        ("depthwise convolution", ("norm",), 8, "accelerator"),
        ("addition", ("depthwise", "norm"), 8, "accelerator"),
        ("grouped convolution", ("norm",), 2, "accelerator"),
        ("convolution", ("add", "grouped"), 1, "accelerator"),
        ("average pooling", ("last",), 4, "accelerator"),
    ]
    assert found["norm"].why.startswith("local response normalisation has no integer form")
    assert found["add"].why == "addition as a convolution with constant weights"
    assert found["last"].why == "reads its sources where they lie: concatenation moves nothing"
    assert (found["depthwise"].macs, found["depthwise"].parameter_bytes) == (8 * 36 * 9, 8 * 9 + 8 * 4)
    assert (found["grouped"].macs, found["add"].macs) == (8 * 4 * 36, 8 * 2 * 36)
    shown = json.loads(json.dumps(compile_report.as_dict("block", program, list(found.values()))))
    assert shown["layers"][3]["operator"] == "add"
    assert [compile_report.operator_words(cost) for cost in found.values()] == [
        "conv 3x3", "lrn", "depthwise 3x3", "add", "conv 1x1 in 2 groups", "conv 1x1", "average 2x2/2",
    ]  # fmt: skip


def test_fractions_are_the_programs() -> None:
    program = compiled(models.lenet5(pretrained=True), 1, 28, 28)
    for cost, layer in zip(compile_report.costs(program), program.layers, strict=True):
        assert (cost.in_frac, cost.out_frac) == (layer.in_frac, layer.out_frac)
        assert cost.weight_fracs == (min(layer.weight_frac), max(layer.weight_frac))


def test_adaptive_pooling_that_changes_nothing_is_no_obstacle() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(144, 5)).eval()
    program = compiled(net, 3, 8, 8)
    assert program.names == ("0", "3")


@needs_data
def test_the_report_is_a_table_or_json() -> None:
    shown = redline("compile", "lenet5", "--report", COLUMNS="80")
    assert max(map(len, shown.stdout.splitlines())) <= 120
    assert shown.returncode == 0, shown.stderr
    for word in ("conv1", "kernel columns folded", "mem>A>B", "62,414 bytes of parameters", "6,921 steps an image"):
        assert word in shown.stdout
    done = CliRunner().invoke(cli.app, ["compile", "lenet5", "--json", "--lanes", "8"])
    report = json.loads(done.stdout)
    assert (report["network"], report["lanes"], report["vec"]) == ("lenet5", 8, 8)
    assert [layer["runs_on"] for layer in report["layers"]] == ["accelerator"] * 5
    assert done.stderr == ""


@needs_data
def test_random_weights_are_said_to_be_random() -> None:
    done = CliRunner().invoke(cli.app, ["compile", "caffe_lenet", "--images", "8"])
    assert done.exit_code == 0, done.output
    assert "weights are random (--weights): the fractions mean nothing" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["caffe_lenet", "--out", "x"], "no weights of caffe_lenet come with Redline; name a file with --weights"),
        (["lenet5", "--photos", "."], "name their folder with --data-dir, not --photos"),
        (
            ["lenet5", "--bytes-per-cycle", "64", "--port-bits", "128"],
            "carries 16 bytes a cycle, --bytes-per-cycle says 64",
        ),
        (["lenet5", "--lanes", "4", "--bytes-per-cycle", "64"], "4 lanes x vec 8 allow 256 at most"),
        (["lenet5", "--bytes-per-cycle", "0"], "must be more than 0"),
        (["lenet5", "--fallback", "gpu"], "--fallback is error or cpu, not 'gpu'"),
    ],
)
def test_wrong_arguments_are_explained(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(cli.app, ["compile", *arguments])
    assert done.exit_code == 1
    assert message in " ".join(done.output.split())


@pytest.mark.slow
def test_alexnet_compiles_at_full_size() -> None:
    done = redline("compile", "alexnet", "--json", "--feature-bytes", str(1 << 20))
    assert done.returncode == 0, done.stderr
    layers = json.loads(done.stdout)["layers"]
    assert [layer["runs_on"] for layer in layers] == ["accelerator"] * 8
    assert sum(layer["macs"] for layer in layers) == 714_188_480
    assert sum(layer["parameter_bytes"] for layer in layers) == 61_100_840 + 3 * 10_344
