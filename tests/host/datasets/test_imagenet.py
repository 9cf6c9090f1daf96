"""ImageNet-like folders are read as the published networks expect, and broken ones are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from host import models
from host.datasets import data, imagenet
from host.devices.registry import device
from host.training.train import evaluate
from host.training.twin import attach

SMALL = imagenet.Preprocessing(size=8, resize=10)


def photo(path: Path, width: int = 20, height: int = 15, mode: str = "RGB", seed: int = 1) -> Path:
    """A picture of low-pass noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes with 1, 2 and 3 images, in more than one format."""
    photo(tmp_path / "n03" / "only.JPEG", seed=1)
    photo(tmp_path / "n01" / "b.png", seed=2)
    photo(tmp_path / "n01" / "a.jpg", seed=3)
    for seed, name in enumerate(("x.bmp", "deep/y.png", "z.jpeg")):
        photo(tmp_path / "n02" / name, seed=4 + seed)
    (tmp_path / "n02" / "readme.txt").write_text("not an image")
    (tmp_path / "n02" / "._x.bmp").write_bytes(b"a Mac's shadow")
    (tmp_path / "labels.csv").write_text("not a class")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_classes_and_files_are_sorted_whatever_the_disk_says(folder: Path) -> None:
    images = imagenet.load(folder)
    assert images.classes == ("n01", "n02", "n03")
    assert [str(path.relative_to(folder)) for path in images.files] == [
        "n01/a.jpg", "n01/b.png", "n02/deep/y.png", "n02/x.bmp", "n02/z.jpeg", "n03/only.JPEG",
    ]  # fmt: skip
    assert images.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert images.labels.dtype == torch.int64


def test_labels_follow_a_given_order_of_the_networks_outputs(folder: Path) -> None:
    images = imagenet.load(folder, classes=["n03", "n00", "n02", "n01"])
    assert images.labels.tolist() == [3, 3, 2, 2, 2, 0]


def test_batches_cover_every_image_once_in_order(folder: Path) -> None:
    images = imagenet.load(folder, SMALL)
    found = list(images.batches(4))
    assert [tuple(x.shape) for x, _ in found] == [(4, 3, 8, 8), (2, 3, 8, 8)]
    assert torch.equal(torch.cat([x for x, _ in found]), images.pixels)
    assert torch.equal(torch.cat([y for _, y in found]), images.labels)
    x, y = images.batch(torch.tensor([5, 0]))
    assert torch.equal(x, images.pixels[[5, 0]])
    assert y.tolist() == [2, 0]


def test_spread_takes_images_of_all_classes_and_head_of_the_first(folder: Path) -> None:
    images = imagenet.load(folder, SMALL)
    assert images.spread(3).labels.tolist() == [0, 1, 1]
    assert images.head(3).labels.tolist() == [0, 0, 1]
    assert images.spread(100).files == images.files
    assert len(images.spread(2).pixels) == 2


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (224, 224), (40, 300), (7, 5)])
def test_the_input_is_224_pixels_square_whatever_the_picture(tmp_path: Path, width: int, height: int) -> None:
    pixels = imagenet.read(photo(tmp_path / "a.png", width, height))
    assert pixels.shape == (3, 224, 224)
    assert pixels.dtype == torch.float32


def test_a_grey_pixel_becomes_its_normalised_value() -> None:
    pixels = imagenet.Preprocessing()(Image.new("RGB", (300, 260), (51, 102, 255)))
    wanted = [(0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert pixels.amin((1, 2)).tolist() == pytest.approx(wanted, rel=1e-6)
    assert pixels.amax((1, 2)).tolist() == pytest.approx(wanted, rel=1e-6)


def test_the_centre_is_cut_out_of_what_was_resized() -> None:
    picture = Image.new("RGB", (20, 10))
    picture.paste((255, 255, 255), (6, 1, 14, 9))
    prepare = imagenet.Preprocessing(size=8, resize=10, mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.equal(prepare(picture), torch.ones(3, 8, 8))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("width", "height"), [(97, 64), (30, 41)])
def test_resizing_is_antialiased_as_an_independent_implementation_does_it(
    tmp_path: Path, interpolation: imagenet.Interpolation, width: int, height: int
) -> None:
    prepare = imagenet.Preprocessing(24, 24, interpolation, (0, 0, 0), (1, 1, 1))
    path = photo(tmp_path / "a.png", width, height)
    raw = torch.from_numpy(np.array(Image.open(path), dtype=np.float32)).permute(2, 0, 1)[None]
    short = min(width, height)
    rows, columns = 24 * height // short, 24 * width // short
    scaled = F.interpolate(raw, (rows, columns), mode=interpolation, antialias=True).clamp(0, 255)[0]
    top, left = round((rows - 24) / 2), round((columns - 24) / 2)
    # Pillow rounds to whole grey values, once per direction.
    assert (imagenet.read(path, prepare) * 255 - scaled[:, top : top + 24, left : left + 24]).abs().max() <= 1.01


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("P", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("1", "png")]
)
def test_pictures_of_any_mode_become_three_channels(tmp_path: Path, mode: str, suffix: str) -> None:
    assert imagenet.read(photo(tmp_path / f"a.{suffix}", mode=mode), SMALL).shape == (3, 8, 8)


def test_pictures_of_16_bits_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((12, 12), 40000, np.uint16)).save(path)
    with pytest.raises(data.DataError, match=r"deep.png: .*more than 8 bits a channel"):
        imagenet.read(path, SMALL)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        data.DataError, match="nowhere: no such folder; name one with a folder of images for each class"
    ):
        imagenet.load(tmp_path / "nowhere")


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match=r"no class folders in it \(it is empty\)"):
        imagenet.load(tmp_path)


def test_images_without_class_folders_are_explained(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    with pytest.raises(data.DataError, match=r"no class folders in it \(images lie in it directly\); give each class"):
        imagenet.load(tmp_path)


def test_an_empty_class_folder_is_named(folder: Path) -> None:
    (folder / "n04").mkdir()
    with pytest.raises(data.DataError, match=r"n04: no images in this class folder .*; fill or remove it"):
        imagenet.load(folder)


def test_a_folder_that_is_not_a_class_is_named(folder: Path) -> None:
    with pytest.raises(data.DataError, match="n03: not one of the 2 classes given"):
        imagenet.load(folder, classes=["n01", "n02"])


def test_a_class_listed_twice_is_named(folder: Path) -> None:
    with pytest.raises(data.DataError, match="class 'n01' is listed twice"):
        imagenet.load(folder, classes=["n01", "n01"])


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5])
def test_a_truncated_image_is_named(folder: Path, suffix: str, kept: float) -> None:
    path = photo(folder / "n03" / f"cut.{suffix}", 64, 64)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    images = imagenet.load(folder, SMALL)
    with pytest.raises(data.DataError, match=rf"cut.{suffix}: broken or not an image .*; fetch it again or remove it"):
        list(images.batches(16))


def test_a_file_that_vanished_is_named(folder: Path) -> None:
    images = imagenet.load(folder, SMALL)
    images.files[2].unlink()
    with pytest.raises(data.DataError, match="y.png: no such file"):
        list(images.batches(16))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"size": 300}, r"size must be 1 to resize \(256\), not 300"),
        ({"size": 0}, "size must be 1"),
        ({"interpolation": "nearest"}, "one of bilinear, bicubic, not 'nearest'"),
        ({"std": (1, 0, 1)}, "std must be positive"),
    ],
)
def test_impossible_preprocessing_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        imagenet.Preprocessing(**wrong)  # type: ignore[arg-type]


def test_a_networks_images_come_from_a_folder(folder: Path) -> None:
    images = imagenet.load(folder, imagenet.Preprocessing(size=64, resize=72)).spread(2)
    torch.manual_seed(1)
    net = models.shufflenet_v2_x1_0(classes=3).eval()
    with torch.no_grad():
        assert net(images.pixels).shape == (2, 3)


def test_a_twin_is_calibrated_and_evaluated_on_a_folder(folder: Path) -> None:
    images = imagenet.load(folder, SMALL)
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3))
    twin = attach(net, device("reference", lanes=4, vec=4), calibrate=images.spread(4).pixels)
    done = evaluate(twin, images)
    assert done.labels.tolist() == [0, 0, 1, 1, 1, 2]
    with torch.no_grad():
        assert (done.predicted == net(images.pixels).argmax(1).numpy()).sum() >= 5
