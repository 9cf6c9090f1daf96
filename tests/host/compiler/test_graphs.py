"""Networks that are graphs: what each operator becomes, and that the integers follow the float network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from host import models
from host.compiler import trace
from host.compiler.compile import compile as compile_network
from host.compiler.limits import CompileError
from host.program import lrn
from host.program.arrangement import gather
from host.program.integer import run_layer
from host.program.layers import INPUT, Layer, Normalisation, Pool
from host.program.program import Program
from hw.config import Config

CONFIG = Config(feature_bytes=1 << 22, weight_bytes=1 << 20, pool_columns=256)
IMAGES = torch.rand(16, 3, 12, 12, generator=torch.Generator().manual_seed(5))


def integers(program: Program, x: torch.Tensor) -> dict[str, np.ndarray]:
    """Every layer's output in the reference's arithmetic."""
    values = {INPUT: program.fold_input(program.quantise_input(x))}
    for layer in program.layers:
        weight, bias = program.weights[layer.name], program.biases[layer.name]
        values[layer.name] = run_layer(gather(values, layer), weight, bias, layer).out
    return values


def output(program: Program, x: torch.Tensor) -> torch.Tensor:
    """The network's output in the reference's arithmetic, dequantised."""
    return torch.from_numpy(np.ldexp(integers(program, x)[program.names[-1]].astype(np.float32), -program.out_frac))


def forward(layers: list[trace.FloatLayer], x: torch.Tensor) -> torch.Tensor:
    """What a traced graph computes, in float."""
    values = {INPUT: x}
    with torch.no_grad():
        for layer in layers:
            values[layer.name] = layer.pooled(layer.finish(layer.accumulators(layer.gather(values))))
    return values[layers[-1].name]


class Net(nn.Module):
    """Two convolutions of six channels, and whatever a test does with them."""

    def __init__(self, body: Callable[[Net, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.c = nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.wide = nn.Conv2d(12, 4, 1)
        self.fc = nn.Linear(6, 5)
        self.relu, self.relu6 = nn.ReLU(), nn.ReLU6()
        self.inplace = nn.ReLU(inplace=True)
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self, x)


def torchvision_shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    n, c, h, w = x.size()
    x = x.view(n, groups, c // groups, h, w)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(n, c, h, w)


def iadd(net: Net, x: torch.Tensor) -> torch.Tensor:
    out = net.a(x)
    out += net.b(x)
    return net.relu(out)


def split_units(net: Net, x: torch.Tensor) -> torch.Tensor:
    left, right = torch.cat((net.a(x), net.b(x)), 1).chunk(2, dim=1)
    return net.wide(F.channel_shuffle(torch.cat((left, net.c(right)), dim=1), 2))


def sizes(net: Net, x: torch.Tensor) -> torch.Tensor:
    parts = torch.split(net.a(x), [1, 2, 3], dim=1)
    return torch.cat((parts[2], parts[0]), 1)


BODIES: dict[str, tuple[Callable[[Net, torch.Tensor], torch.Tensor], dict[str, int]]] = {
    "residual": (lambda n, x: n.relu(n.a(x) + n.b(x)), {"convolution": 2, "add": 1}),
    "add of the input": (lambda n, x: torch.add(x, n.a(x)[:, :3]), {"convolution": 1, "add": 1}),
    "add in place": (iadd, {"convolution": 2, "add": 1}),
    "grouped": (lambda n, x: n.relu6(n.c(n.a(x))), {"convolution": 2}),
    "concatenated": (lambda n, x: n.wide(torch.cat([n.relu(n.a(x)), n.b(x)], dim=1)), {"convolution": 3}),
    "pool of a concatenation": (
        lambda n, x: n.wide(F.max_pool2d(torch.cat([n.a(x), n.b(x)], 1), 3, 2, ceil_mode=True)), {"convolution": 3},
    ),
    "chunks": (split_units, {"convolution": 4}),
    "torchvision's shuffle": (
        lambda n, x: n.wide(torchvision_shuffle(torch.cat((n.a(x), n.b(x)), 1), 3)), {"convolution": 3},
    ),
    "split in sizes": (sizes, {"convolution": 1, "identity": 1}),
    "slice": (lambda n, x: n.c(torch.cat((n.a(x)[:, 3:], n.b(x)[:, ::2]), 1)), {"convolution": 3}),
    "average": (lambda n, x: F.avg_pool2d(n.a(x), 3, 2), {"convolution": 1, "average": 1}),
    "padded average": (lambda n, x: F.avg_pool2d(n.a(x), 3, 1, 1), {"convolution": 1, "average": 1}),
    "adaptive average": (lambda n, x: F.adaptive_avg_pool2d(n.a(x), (3, 4)), {"convolution": 1, "average": 1}),
    "mean": (lambda n, x: n.fc(n.a(x).mean((2, 3))), {"convolution": 2, "average": 1}),
    "mean, dimensions kept": (lambda n, x: n.fc(torch.flatten(n.a(x).mean([-1, -2], keepdim=True), 1)),
                              {"convolution": 2, "average": 1}),
    "activation beside": (lambda n, x: _beside(n, n.a(x)), {"convolution": 2, "identity": 1}),
    "two poolings": (lambda n, x: F.max_pool2d(F.max_pool2d(n.a(x), 2), 2), {"convolution": 1, "identity": 1}),
    "pool first": (lambda n, x: n.a(F.max_pool2d(x, 3, 2, 1)), {"convolution": 1, "identity": 1}),
    "response norm": (lambda n, x: F.local_response_norm(n.a(x), 3, 0.5), {"convolution": 1, "lrn": 1}),
    "ReLU of what others computed from": (
        lambda n, x: n.wide(n.relu(_dense(n, n.a(x)))), {"convolution": 3, "identity": 1},
    ),
    "pool of what was computed from": (
        lambda n, x: n.wide(F.max_pool2d(_dense(n, n.a(x)), 2)), {"convolution": 3, "identity": 1},
    ),
    "ReLU and pool of what was computed from": (
        lambda n, x: n.wide(n.relu(F.max_pool2d(_dense(n, n.a(x)), 2))), {"convolution": 3, "identity": 1},
    ),
    "ReLU of a half and what was computed from the other": (
        lambda n, x: n.c(n.relu(_halves(n, n.a(x)))), {"convolution": 2, "add": 1, "identity": 1},
    ),
    "unused branch": (lambda n, x: (n.a(x), n.b(x))[1], {"convolution": 1}),
}  # fmt: skip


def _dense(net: Net, y: torch.Tensor) -> torch.Tensor:
    return torch.cat((y, net.c(y)), 1)


def _halves(net: Net, y: torch.Tensor) -> torch.Tensor:
    left, right = y.chunk(2, 1)
    return torch.cat((left, left + right), 1)


def _beside(net: Net, y: torch.Tensor) -> torch.Tensor:
    return net.wide(torch.cat((y, net.relu(y)), 1))


@pytest.mark.parametrize("name", BODIES)
def test_the_graph_and_its_integers_compute_what_the_network_does(name: str) -> None:
    body, operators = BODIES[name]
    net = Net(body).eval()
    layers = trace.trace(net, IMAGES).layers
    with torch.no_grad():
        wanted = net(IMAGES)
    torch.testing.assert_close(forward(layers, IMAGES).reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-6)
    assert Counter(layer.operator for layer in layers) == operators
    program = compile_network(net, CONFIG, calibrate=IMAGES, fallback="cpu")
    found = output(program, IMAGES).reshape(wanted.shape)
    # The mean: the rarest values may be clipped, since that is what least squared error asks for.
    assert float((found - wanted).abs().mean()) < 1.5 * 2.0**-program.out_frac


# -- what operators become


def compiled(body: Callable[[Net, torch.Tensor], torch.Tensor], **options: object) -> Program:
    return compile_network(Net(body).eval(), CONFIG, calibrate=IMAGES, **options)  # type: ignore[arg-type]


def test_an_addition_alternates_its_operands_channels() -> None:
    program = compiled(BODIES["residual"][0])
    add = program.layer("add")
    assert (add.sources, add.source_channels, add.in_shape, add.groups) == (("a", "b"), (6, 6), (12, 12, 12), 6)
    assert add.channels == (0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11)
    assert add.relu
    assert program.weights["add"].shape == (6, 2, 1, 1)
    assert not program.biases["add"].any()


@pytest.mark.parametrize("bits", [-9, -4, 0, 3, 9])
def test_operands_of_other_scales_are_aligned_by_powers_of_two(bits: int) -> None:
    net = Net(BODIES["residual"][0]).eval()
    with torch.no_grad():
        net.b.weight *= 2.0**bits
        net.b.bias *= 2.0**bits
        wanted = net(IMAGES)
    program = compile_network(net, CONFIG, calibrate=IMAGES)
    add, a, b = (program.layer(name) for name in ("add", "a", "b"))
    left, right = program.weights["add"][0].reshape(-1).tolist()
    assert max(left, right) <= 64
    assert add.in_frac == a.out_frac
    # Both meet at the accumulator's fraction.
    assert a.out_frac + np.log2(left) == b.out_frac + np.log2(right) == add.in_frac + add.weight_frac[0]
    assert float((output(program, IMAGES) - wanted).abs().mean()) < 1.5 * 2.0**-program.out_frac


def test_tensors_read_together_share_a_fraction() -> None:
    net = Net(BODIES["concatenated"][0]).eval()
    with torch.no_grad():
        net.b.weight *= 50
    program = compile_network(net, CONFIG, calibrate=IMAGES)
    assert program.layer("a").out_frac == program.layer("b").out_frac == program.layer("wide").in_frac


def test_relu6_saturates_at_six() -> None:
    net = Net(BODIES["grouped"][0]).eval()
    with torch.no_grad():
        net.a.weight *= 20
        wanted = net(IMAGES)
    assert float(wanted.max()) == 6
    program = compile_network(net, CONFIG, calibrate=IMAGES)
    layer = program.layer("c")
    assert (layer.relu, layer.upper, layer.groups) == (True, min(127, 6 * 2**layer.out_frac), 3)
    assert float((output(program, IMAGES) - wanted).abs().mean()) < 2 * 2.0**-program.out_frac


def test_pooling_a_concatenation_pools_its_parts() -> None:
    program = compiled(BODIES["pool of a concatenation"][0])
    assert program.layer("a").pool == program.layer("b").pool == Pool(3, 2, ceil=True)
    assert program.layer("wide").channels is None


def test_an_average_is_a_depthwise_convolution_with_one_weight() -> None:
    program = compiled(BODIES["padded average"][0])
    layer = program.layers[-1]
    assert (layer.operator, layer.groups, layer.kernel, layer.padding) == ("average", 6, (3, 3), (1, 1))
    # 2**10 / 9 = 113.8 is the finest that fits.
    assert set(program.weights[layer.name].reshape(-1).tolist()) == {114}
    assert layer.weight_frac == (10,) * 6


def test_a_shuffle_costs_no_layer() -> None:
    program = compiled(BODIES["torchvision's shuffle"][0])
    assert program.names == ("a", "b", "wide")
    assert program.layer("wide").channels == (0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11)


def test_layers_of_functions_are_named_after_the_module_that_calls_them() -> None:
    program = compile_network(nn.Sequential(Net(BODIES["residual"][0])).eval(), CONFIG, calibrate=IMAGES)
    assert program.names == ("0.a", "0.b", "0.add")
    assert program.modules == {"0.a": "0.a", "0.b": "0.b"}


def test_an_input_with_several_readers_is_not_folded() -> None:
    assert all(layer.fold is None for layer in compiled(BODIES["add of the input"][0]).layers)


# -- local response normalisation


def test_response_normalisation_follows_its_definition() -> None:
    how = Normalisation(size=4, alpha=0.7, beta=0.75, k=1.5)
    layer = Layer(
        name="n", sources=("x",), in_shape=(7, 3, 3), out_channels=7, kernel=(1, 1), stride=(1, 1), padding=(0, 0),
        relu=False, pool=None, in_frac=4, weight_frac=(lrn.FACTOR_FRAC,) * 7, out_frac=5, groups=7, operator="lrn",
        normalisation=how,
    )  # fmt: skip
    x = np.random.default_rng(1).integers(-128, 128, (2, 7, 3, 3)).astype(np.int8)
    real = F.local_response_norm(torch.from_numpy(x).double() / 16, how.size, how.alpha, how.beta, how.k).numpy()
    wanted = np.clip(np.floor(real * 32 + 0.5), -128, 127)
    assert np.array_equal(run_layer(x, np.ones((7, 1, 1, 1), np.int8), np.zeros(7, np.int32), layer).out, wanted)


def test_response_normalisation_needs_the_cpu() -> None:
    with pytest.raises(CompileError, match=r"'local_response_norm': local response normalisation has no .*fallback="):
        compiled(BODIES["response norm"][0])
    program = compiled(BODIES["response norm"][0], fallback="cpu")
    assert [layer.placement for layer in program.layers] == ["accelerator", "cpu"]


# -- what cannot be done


def reused(net: Net, x: torch.Tensor) -> torch.Tensor:
    y = net.a(x)
    return net.inplace(y) + net.b(x) + y


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda n, x: _double(n.a(x)), "layer 'add': it adds a tensor to itself"),
        (lambda n, x: n.wide(_twice(n.a(x))), "'wide.*one channel .* twice"),
        (lambda n, x: n.a(x) + 1, "layer 'add': an addition of something that is no tensor"),
        (lambda n, x: n.a(x) + n.b(x)[:, :1], r"'add': it adds tensors of shapes \(6, 12, 12\) and \(1, 12, 12\)"),
        (lambda n, x: torch.add(n.a(x), n.b(x), alpha=2), "'add': an addition with a factor"),
        (lambda n, x: F.avg_pool2d(n.a(x), 3, 2, 1, count_include_pad=False), "'avg_pool2d': .*count_include_pad=True"),
        (lambda n, x: F.avg_pool2d(n.a(x), 3, 2, ceil_mode=True), "'avg_pool2d': average pooling with ceil_mode"),
        (lambda n, x: F.adaptive_avg_pool2d(n.a(x), 5), "'adaptive_avg_pool2d': it averages 12x12 to 5x5"),
        (lambda n, x: n.a(x).mean(1), "'mean': a mean over dimensions 1"),
        (lambda n, x: torch.cat((n.a(x), n.b(x)), 2), "'cat': it works along dimension 2"),
        (lambda n, x: n.a(x).transpose(2, 3), "'transpose': it transposes"),
        (lambda n, x: n.a(x)[:, :, 1:], "'getitem': it picks a part of the images"),
        (lambda n, x: F.hardtanh(n.a(x)), "'hardtanh': clamping to"),
        (lambda n, x: torch.sigmoid(n.a(x)), "'sigmoid': this operator is not supported"),
        (lambda n, x: n.a(x) * n.b(x), r"'mul': this operator is not supported"),
        (reused, "'inplace.*changes in place what others read"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_named(body: Callable[[Net, torch.Tensor], torch.Tensor], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        compiled(body)


def _double(y: torch.Tensor) -> torch.Tensor:
    return y + y


def _twice(y: torch.Tensor) -> torch.Tensor:
    return torch.cat((y, y), 1)


class NormBesides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y


def test_a_batch_norm_beside_another_reader_is_refused() -> None:
    with pytest.raises(CompileError, match=r"'norm \(BatchNorm2d\)': others read what 'conv' gives"):
        compile_network(NormBesides(), CONFIG, calibrate=IMAGES)


def test_scales_that_cannot_be_shared_are_refused() -> None:
    """A tensor concatenated with one computed from it by large weights: no scale holds both."""

    def body(net: Net, x: torch.Tensor) -> torch.Tensor:
        y = net.a(x)
        return net.wide(torch.cat((y, net.c(y)), 1))

    net = Net(body)
    with torch.no_grad():
        net.c.weight *= 1e5
    with pytest.raises(CompileError, match="layer 'c': its values are too large for any scale"):
        compile_network(net, CONFIG, calibrate=IMAGES)


# -- the literature's networks

SLOW = ("alexnet", "vgg16", "vgg19", "resnet50")


@pytest.mark.parametrize(("lanes", "vec"), [(4, 4), (16, 8), (32, 16)])
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in models.MODELS])
def test_the_literatures_networks_compile(name: str, lanes: int, vec: int) -> None:
    torch.manual_seed(3)
    net = models.MODELS[name]().eval()
    x = torch.rand(2, 1, 28, 28) if name in models.GREY else torch.randn(2, 3, 224, 224)
    config = Config(lanes=lanes, vec=vec, feature_bytes=1 << 22, weight_bytes=1 << 20, pool_columns=256)
    program = compile_network(net, config, calibrate=x)
    assert all(layer.placement == "accelerator" for layer in program.layers)
    if (lanes, vec) == (16, 8) and not name.startswith("vgg"):
        with torch.no_grad():
            wanted = net(x).flatten()
        found = output(program, x).flatten()
        assert float(torch.corrcoef(torch.stack((found, wanted)))[0, 1]) > 0.99


def test_alexnet_has_its_response_normalisation_on_request() -> None:
    plain, normed = models.alexnet(), models.alexnet(lrn=True)
    assert list(plain.state_dict()) == list(normed.state_dict())
    layers = trace.trace(normed, torch.rand(1, 3, 224, 224)).layers
    assert [layer.operator for layer in layers[:4]] == ["convolution", "lrn", "convolution", "lrn"]
    assert layers[1].normalisation == Normalisation(5, 1e-4, 0.75, 1.0)
    assert (layers[0].pool, layers[1].pool, layers[0].relu) == (None, Pool(3, 2), True)
