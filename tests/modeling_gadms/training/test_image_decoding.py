"""Images by torch and torchcodec: Pillow's pixels or near them for every kind of file, and refusals."""

import importlib.machinery
import io
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_processor, tiny_rows
from train_tiny import train

from dataset_webperson import DataError
from modeling_gadms.training import image_decoding
from modeling_gadms.training.augmentation import augmented, value_table
from modeling_gadms.training.collator import PairCollator
from modeling_gadms.training.image_decoding import decoded, decoded_on_device, is_plain_jpeg, resized, stored_bytes
from modeling_gadms.training.trainer import undecoded

CPU = torch.device("cpu")


def file(mode="RGB", kind="JPEG", size=(30, 70), **options) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 5, size[0] // 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return file(exif=exif)


def without_adobe(data: bytes) -> bytes:
    """A file without Adobe's block, which says what its colours are."""
    start = data.index(b"\xff\xee")
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]


FILES = {
    "plain": (file(), True),
    "progressive": (file(progressive=True), True),
    "grey": (file("L"), True),
    "4:4:4": (file(quality=95, subsampling=0), True),
    "cmyk": (file("CMYK"), False),
    "four unnamed colours": (without_adobe(file("CMYK")), False),
    "rotated": (rotated(), False),
    "png": (file(kind="PNG"), False),
    "cut": (file()[:-20], False),
    "text": (b"no picture", False),
    "only a head": (b"\xff\xd8\xff\xc0\x00\x02\xff\xd9", False),
}


@pytest.mark.skipif(not image_decoding.has_torchcodec(), reason="torchcodec is not here, or not made for this torch")
@pytest.mark.parametrize("name", [name for name, (_, is_plain) in FILES.items() if is_plain])
def test_torchcodec_gives_the_pixels_of_pillow(name):
    from torchcodec.decoders import decode_jpeg

    data, _ = FILES[name]
    expected = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    for found in (decode_jpeg(data), decoded(data, name)):
        assert found.dtype == torch.uint8 and np.array_equal(found.permute(1, 2, 0).numpy(), expected)
    with pytest.raises(RuntimeError):
        decode_jpeg(data[:200] + data[-2:])


@pytest.fixture
def torchcodec(monkeypatch):
    """Stands for torchcodec, held to it by the test above where it is, and counts."""
    calls = []

    def decode_jpeg(source, device="cpu"):
        if isinstance(source, list):
            return [decode_jpeg(each) for each in source]
        calls.append(source)
        try:
            return torch.from_numpy(np.array(Image.open(io.BytesIO(source)).convert("RGB"))).permute(2, 0, 1)
        except OSError as error:
            raise RuntimeError(str(error)) from error

    if image_decoding.has_torchcodec():  # of which datasets asks for more
        monkeypatch.setattr("torchcodec.decoders.decode_jpeg", decode_jpeg)
        return calls
    package, module = types.ModuleType("torchcodec"), types.ModuleType("torchcodec.decoders")
    package.__spec__ = importlib.machinery.ModuleSpec("torchcodec", None)
    module.decode_jpeg = decode_jpeg
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    monkeypatch.setattr(image_decoding, "has_torchcodec", lambda: True)
    return calls


@pytest.mark.parametrize("name", FILES)
def test_only_plain_jpegs_are_left_to_the_codec_and_pixels_are_those_of_the_processor(name, torchcodec):
    data, is_plain = FILES[name]
    assert is_plain_jpeg(data) == is_plain
    if name in ("cut", "text", "only a head"):
        with pytest.raises(DataError, match="7.png"):
            decoded(data, "7.png")
        return
    image = Image.open(io.BytesIO(data))
    expected = image.rotate(-90, expand=True) if name == "rotated" else image.convert("RGB")
    assert np.array_equal(decoded(data, "7.png").permute(1, 2, 0), np.asarray(expected))
    assert len(torchcodec) == is_plain


def test_an_image_over_the_limit_of_pixels_is_pillow_s_to_refuse(monkeypatch, torchcodec):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30 * 70 - 1)
    with pytest.raises(DataError, match="over the limit"):
        decoded(file(), "7.png")
    assert not torchcodec


@pytest.mark.parametrize("size", [(384, 128), (64, 32), (70, 30)])
@pytest.mark.parametrize("wide", [False, True], ids=["bytes", "floats"])
def test_resized_pixels_lie_near_pillow_s(size, wide):
    """By the kernel of a CPU, for bytes, and by that of a device, over floats."""
    original = torch.from_numpy(np.array(Image.open(io.BytesIO(file(size=(110, 300)))))).permute(2, 0, 1)
    image = Image.fromarray(original.permute(1, 2, 0).numpy())
    expected = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
    found = image_decoding._resized_as_floats(original, size) if wide else resized(original, size)
    assert found.dtype == torch.uint8 and tuple(found.shape) == (3, *size)
    difference = np.abs(found.permute(1, 2, 0).numpy() - expected)
    assert difference.mean() < 0.3 and difference.max() <= 6, (difference.mean(), difference.max())
    assert resized(original, (300, 110)) is original


def rows_as_files(count=4):
    pictures = tiny_rows(count)
    files = [FILES[name][0] for name in ("plain", "png", "rotated", "grey")]
    return [
        {**row, "image": {"bytes": data, "path": None}, "epoch": 0} for row, data in zip(pictures, files, strict=True)
    ]


@pytest.mark.parametrize("later", [False, True])
def test_batches_by_torch_and_by_the_device_are_those_by_pillow_but_for_the_resize(later, torchcodec):
    processor, rows = tiny_processor(), rows_as_files()
    table = value_table(processor.image_processor)
    as_pillow = [{**row, "image": Image.open(io.BytesIO(row["image"]["bytes"]))} for row in rows]
    options = {"erasing_probability": 0.0, "augment_later": later}
    expected = PairCollator(processor, **options)(as_pillow)
    by_torch = PairCollator(processor, **options, image_decoding="torch")(rows)
    assert by_torch.keys() == expected.keys() and by_torch["pixel_values"].dtype == expected["pixel_values"].dtype
    unit = 1.0 if later else float(1 / 255 / min(processor.image_processor.image_std))
    difference = (by_torch["pixel_values"].float() - expected["pixel_values"].float()).abs() / unit
    assert difference.mean() < 0.3 and difference.max() < 9
    if later:
        handed_over = PairCollator(processor, **options, image_decoding="device")(rows)
        assert [isinstance(image, bytes) for image in handed_over["encoded_images"]] == [True, False, False, True]
        pixels = decoded_on_device(handed_over["encoded_images"], ["a"] * 4, (32, 16), CPU)
        assert torch.equal(pixels, by_torch["pixel_values"]) and "pixel_values" not in handed_over
        assert torch.equal(handed_over["augmentation"], by_torch["augmentation"])
        assert augmented(pixels, handed_over["augmentation"], table, 10).shape == (4, 3, 32, 16)


def test_a_picture_that_the_device_cannot_decode_is_named(torchcodec):
    broken = file()[:200] + file()[-2:]
    assert is_plain_jpeg(broken)
    with pytest.raises(DataError, match="b.png"):
        decoded_on_device([file(), broken], ["a.png", "b.png"], (32, 16), CPU)


def test_training_takes_the_same_steps_by_every_way_on_images_of_the_right_size(tmp_path, torchcodec, monkeypatch):
    monkeypatch.setattr("modeling_gadms.training.arguments.refuse_way", lambda *_: None)
    weights = []
    for way in image_decoding.WAYS:
        options = ["--image_decoding", way, "--max_steps", "1", "--per_device_train_batch_size", "4"]
        weights.append(train(["--output_dir", str(tmp_path / way), *options]).model.state_dict())
    assert all(torch.equal(weights[0][name], other[name]) for other in weights[1:] for name in other)


@pytest.mark.parametrize(
    ("way", "device", "installed", "message"),
    [
        ("nvjpeg", "cpu", True, "pillow, torch, device"),
        ("device", "cpu", True, "choose torch"),
        ("device", "cuda", False, "pip install torchcodec"),
    ],
)
def test_a_way_that_is_not_there_is_refused_with_the_cure(way, device, installed, message, monkeypatch):
    monkeypatch.setattr(image_decoding, "has_torchcodec", lambda: installed)
    with pytest.raises(ValueError, match=message):
        image_decoding.refuse_way(way, torch.device(device))
    image_decoding.refuse_way("torch", torch.device("cpu"))


def test_an_image_outside_the_row_is_read_from_its_path_or_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(file())
    assert stored_bytes({"bytes": None, "path": str(tmp_path / "a.jpg")}, "a") == file()
    with pytest.raises(DataError, match="image 7.png: No such file"):
        stored_bytes({"bytes": None, "path": str(tmp_path / "b.jpg")}, "7.png")
    assert undecoded(None) is None
