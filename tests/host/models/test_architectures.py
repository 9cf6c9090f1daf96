"""The literature's networks: torchvision's keys, shapes and published parameter counts, without torchvision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from host import models

PARAMETERS = {
    "lenet5": 61_706,
    "caffe_lenet": 431_080,
    "alexnet": 61_100_840,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "mobilenet_v2": 3_504_872,
    "shufflenet_v2_x1_0": 2_278_604,
    "squeezenet1_1": 1_235_496,
}
"""As published (torchvision's documentation, Caffe's example)."""

ENTRIES = {
    "alexnet": 16,
    "vgg16": 32,
    "vgg19": 38,
    "resnet18": 122,
    "resnet50": 320,
    "mobilenet_v2": 314,
    "shufflenet_v2_x1_0": 338,
    "squeezenet1_1": 52,
}
"""Tensors in torchvision's state_dict, the counters of batch norms included."""

KEYS = [
    ("caffe_lenet", "ip1.weight", (500, 800)),
    ("alexnet", "features.0.weight", (64, 3, 11, 11)),
    ("alexnet", "features.10.bias", (256,)),
    ("alexnet", "classifier.1.weight", (4096, 9216)),
    ("alexnet", "classifier.6.bias", (1000,)),
    ("vgg16", "features.28.weight", (512, 512, 3, 3)),
    ("vgg16", "classifier.0.weight", (4096, 25088)),
    ("vgg16", "classifier.6.weight", (1000, 4096)),
    ("vgg19", "features.34.weight", (512, 512, 3, 3)),
    ("vgg19", "classifier.3.bias", (4096,)),
    ("resnet18", "conv1.weight", (64, 3, 7, 7)),
    ("resnet18", "layer2.0.downsample.0.weight", (128, 64, 1, 1)),
    ("resnet18", "layer4.1.bn2.running_var", (512,)),
    ("resnet18", "fc.weight", (1000, 512)),
    ("resnet50", "layer1.0.downsample.1.num_batches_tracked", ()),
    ("resnet50", "layer3.5.conv2.weight", (256, 256, 3, 3)),
    ("resnet50", "layer4.2.conv3.weight", (2048, 512, 1, 1)),
    ("mobilenet_v2", "features.0.0.weight", (32, 3, 3, 3)),
    ("mobilenet_v2", "features.1.conv.0.0.weight", (32, 1, 3, 3)),
    ("mobilenet_v2", "features.1.conv.1.weight", (16, 32, 1, 1)),
    ("mobilenet_v2", "features.17.conv.2.weight", (320, 960, 1, 1)),
    ("mobilenet_v2", "features.18.1.running_mean", (1280,)),
    ("mobilenet_v2", "classifier.1.weight", (1000, 1280)),
    ("shufflenet_v2_x1_0", "conv1.0.weight", (24, 3, 3, 3)),
    ("shufflenet_v2_x1_0", "stage2.0.branch1.0.weight", (24, 1, 3, 3)),
    ("shufflenet_v2_x1_0", "stage3.7.branch2.5.weight", (116, 116, 1, 1)),
    ("shufflenet_v2_x1_0", "conv5.0.weight", (1024, 464, 1, 1)),
    ("squeezenet1_1", "features.3.squeeze.weight", (16, 64, 1, 1)),
    ("squeezenet1_1", "features.12.expand3x3.weight", (256, 64, 3, 3)),
    ("squeezenet1_1", "classifier.1.weight", (1000, 512, 1, 1)),
]
IMAGENET = list(ENTRIES)


def on_paper(name: str, **options: int) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return models.MODELS[name](**options).eval()


def test_every_network_has_a_published_count() -> None:
    assert list(models.MODELS) == list(PARAMETERS)


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameters_are_as_many_as_published(name: str, count: int) -> None:
    assert sum(p.numel() for p in on_paper(name).parameters()) == count


@pytest.mark.parametrize(("name", "count"), ENTRIES.items())
def test_state_dicts_have_as_many_entries_as_torchvisions(name: str, count: int) -> None:
    assert len(on_paper(name).state_dict()) == count


@pytest.mark.parametrize(("name", "key", "shape"), KEYS)
def test_keys_and_shapes_are_torchvisions(name: str, key: str, shape: tuple[int, ...]) -> None:
    assert tuple(on_paper(name).state_dict()[key].shape) == shape


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_can_be_traced_and_take_the_images_they_are_made_for(name: str) -> None:
    traced = fx.symbolic_trace(on_paper(name))
    image = (3, 224, 224) if name in IMAGENET else (1, 28, 28)
    out = traced(torch.empty(2, *image, device="meta"))
    assert tuple(out.shape) == (2, 1000 if name in IMAGENET else 10)


@pytest.mark.parametrize("name", IMAGENET)
def test_the_number_of_classes_can_be_chosen(name: str) -> None:
    images = torch.empty(1, 3, 224, 224, device="meta")
    assert tuple(on_paper(name, classes=7)(images).shape) == (1, 7)


@pytest.mark.parametrize(
    "make", [models.resnet18, models.mobilenet_v2, models.shufflenet_v2_x1_0, models.squeezenet1_1]
)
def test_tracing_keeps_every_bit(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(1)
    net = make().eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(fx.symbolic_trace(net)(x), net(x))


def test_channel_shuffle_is_one_node_of_the_graph() -> None:
    graph = fx.symbolic_trace(on_paper("shufflenet_v2_x1_0"))
    modules = dict(graph.named_modules())
    kinds = [type(modules[str(node.target)]) for node in graph.graph.nodes if node.op == "call_module"]
    assert kinds.count(nn.ChannelShuffle) == 16


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_random_weights_keep_the_signal_alive(name: str) -> None:
    torch.manual_seed(1)
    net = models.MODELS[name]().eval()
    with torch.no_grad():
        first, second = net(torch.randn(2, 3, 64, 64))
    assert 1e-3 < float(first.std()) < 1e3
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name not in models.SHIPPED])
def test_weights_that_do_not_come_with_redline_are_asked_for(name: str) -> None:
    with (
        torch.device("meta"),
        pytest.raises(models.ModelError, match=rf"no weights of {name} come with Redline.*pretrained=PATH"),
    ):
        models.MODELS[name](pretrained=True)


def test_shipped_weights_lie_beside_the_package() -> None:
    for name in models.SHIPPED:
        path = models.pretrained_file(name)
        assert path.is_file()
        assert path.parent == Path(models.__file__).parents[1] / "pretrained"
