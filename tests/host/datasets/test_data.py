"""Data sets are checked before they are believed."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from host.datasets import data
from tests.needs import needs_fashion

FASHION = data.SYSTEM_DIRS["fashion-mnist"][0]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small data set in MNIST's format, raw files."""
    rng = np.random.default_rng(1)
    for name, count in (("train", 30), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = rng.integers(0, 10, count).astype(np.uint8)
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def zip_all(folder: Path) -> None:
    for path in list(folder.iterdir()):
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


@needs_fashion
def test_fashion_mnist_has_its_published_checksums_and_shapes() -> None:
    test = data.load("fashion-mnist", "test")
    assert test.images.shape == (10000, 1, 28, 28)
    assert test.images.dtype == torch.uint8
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    assert test.sha256["t10k-images-idx3-ubyte"].startswith("5b4141f0afbad91e")


def test_raw_and_gzipped_files_read_the_same(folder: Path) -> None:
    raw = data.load("mnist", "train", folder)
    zip_all(folder)
    zipped = data.load("mnist", "train", folder)
    assert torch.equal(raw.images, zipped.images)
    assert torch.equal(raw.labels, zipped.labels)
    assert raw.sha256 == zipped.sha256


def test_pixels_are_floats_from_0_to_1(folder: Path) -> None:
    train = data.load("mnist", "train", folder)
    assert train.pixels.dtype == torch.float32
    assert 0 <= float(train.pixels.min()) < float(train.pixels.max()) <= 1


def test_batches_cover_every_image_once_in_order(folder: Path) -> None:
    train = data.load("mnist", "train", folder)
    labels = torch.cat([y for _, y in train.batches(7)])
    assert torch.equal(labels, train.labels)


def test_truncated_raw_file_is_named(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        data.DataError, match="train-images-idx3-ubyte: truncated: 23535 bytes, its header promises 23536"
    ):
        data.load("mnist", "train", folder)


def test_truncated_gzip_file_is_named(folder: Path) -> None:
    zip_all(folder)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(data.DataError, match=r"train-images-idx3-ubyte.gz: truncated or corrupt gzip file"):
        data.load("mnist", "train", folder)


def test_corrupt_gzip_file_is_named(folder: Path) -> None:
    zip_all(folder)
    path = folder / "t10k-labels-idx1-ubyte.gz"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(data.DataError, match=r"t10k-labels-idx1-ubyte.gz: truncated or corrupt gzip file"):
        data.load("mnist", "test", folder)


def test_file_of_another_kind_is_rejected(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"\x89PNG" + bytes(100))
    with pytest.raises(data.DataError, match=r"not an IDX file of unsigned bytes .* \(starts with 89504e47\)"):
        data.load("mnist", "test", folder)


def test_wrong_image_size_is_rejected(folder: Path) -> None:
    (folder / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((30, 32, 28), np.uint8)))
    with pytest.raises(data.DataError, match="images are 32x28 pixels, not 28x28"):
        data.load("mnist", "train", folder)


def test_counts_that_differ_are_rejected(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(29, np.uint8)))
    with pytest.raises(data.DataError, match="30 images but 29 labels"):
        data.load("mnist", "train", folder)


def test_labels_above_9_are_rejected(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.full(30, 10, np.uint8)))
    with pytest.raises(data.DataError, match="labels must be 0 to 9"):
        data.load("mnist", "train", folder)


def test_other_content_does_not_pass_as_fashion_mnist(folder: Path) -> None:
    with pytest.raises(data.DataError, match=r"SHA-256 of its content is .* Fashion-MNIST's is c59f468a2f672dc8"):
        data.load("fashion-mnist", "train", folder)


def test_folder_without_the_files_says_which_is_missing(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match="no train-images-idx3-ubyte or train-images-idx3-ubyte.gz in this folder"):
        data.load("fashion-mnist", "train", tmp_path)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match="nowhere: no such folder"):
        data.load("fashion-mnist", "train", tmp_path / "nowhere")


def test_absent_data_set_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("REDLINE_DATA", raising=False)
    monkeypatch.delenv("REDLINE_DATA_URL", raising=False)
    monkeypatch.setitem(data.SYSTEM_DIRS, "fashion-mnist", ())
    with pytest.raises(data.DataError, match="apt-get install dataset-fashion-mnist.*--data-dir.*--data-url"):
        data.load("fashion-mnist", "train")


def test_download_fills_the_cache_and_leaves_no_partial_file(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    zip_all(folder)
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("REDLINE_DATA", raising=False)
    train = data.load("mnist", "train", url=folder.as_uri())
    assert len(train) == 30
    assert sorted(p.suffix for p in (cache / "redline" / "data" / "mnist").iterdir()) == [".gz"] * 4


def test_failed_download_names_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("REDLINE_DATA", raising=False)
    with pytest.raises(data.DataError, match=r"cannot download file:///nowhere/train-images-idx3-ubyte.gz"):
        data.load("mnist", "train", url="file:///nowhere")


def test_unknown_data_set_lists_the_known() -> None:
    with pytest.raises(data.DataError, match="unknown data set 'cifar'; known: fashion-mnist, mnist"):
        data.load("cifar", "train")
