"""Networks of the literature, with torchvision's state_dict keys where torchvision has them, and their weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from host.models.alexnet import AlexNet, alexnet
from host.models.lenet import CaffeLeNet, LeNet5, caffe_lenet, lenet5
from host.models.mobilenet import MobileNetV2, mobilenet_v2
from host.models.resnet import ResNet, resnet18, resnet50
from host.models.shufflenet import ShuffleNetV2, shufflenet_v2_x1_0
from host.models.squeezenet import SqueezeNet, squeezenet1_1
from host.models.vgg import VGG, vgg16, vgg19
from host.models.weights import SHIPPED, ModelError, load_weights, metadata, pretrained_file

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": lenet5,
    "caffe_lenet": caffe_lenet,
    "alexnet": alexnet,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
    "shufflenet_v2_x1_0": shufflenet_v2_x1_0,
    "squeezenet1_1": squeezenet1_1,
}
"""Networks by the name the command line uses."""
GREY = ("lenet5", "caffe_lenet")
"""Those that take 28x28 grey pixels; the others take photos, as `host.datasets.imagenet` prepares them."""

__all__ = [
    "GREY",
    "MODELS",
    "SHIPPED",
    "VGG",
    "AlexNet",
    "CaffeLeNet",
    "LeNet5",
    "MobileNetV2",
    "ModelError",
    "ResNet",
    "ShuffleNetV2",
    "SqueezeNet",
    "alexnet",
    "caffe_lenet",
    "lenet5",
    "load_weights",
    "metadata",
    "mobilenet_v2",
    "pretrained_file",
    "resnet18",
    "resnet50",
    "shufflenet_v2_x1_0",
    "squeezenet1_1",
    "vgg16",
    "vgg19",
]
