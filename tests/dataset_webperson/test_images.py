"""Any image file becomes upright RGB, or one error that names it."""

import struct
import zlib

import numpy as np
import pytest
from made_up_datasets import write_picture
from PIL import Image

from dataset_webperson.images import ImageError, open_image
from dataset_webperson.near_duplicates import close_pairs, perceptual_hash
from dataset_webperson.overlap import NEAR_BITS


def write_png_header(path, width: int, height: int) -> None:
    """A PNG that claims to be huge and holds almost nothing: what a decompression bomb looks like from outside."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def test_exif_rotation_is_applied(tmp_path):
    picture = Image.new("RGB", (40, 20), "white")
    picture.paste((255, 0, 0), (0, 0, 10, 20))  # red at the left; turned by 90 degrees clockwise it is at the top
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    image = open_image(tmp_path / "turned.png")
    assert image.size == (20, 40)
    assert image.getpixel((10, 2)) == (255, 0, 0)
    assert image.getpixel((10, 30)) == (255, 255, 255)


def test_cmyk_keeps_its_colours(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.tif")
    assert open_image(tmp_path / "red.tif").getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (32896, 128), (65535, 255)])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, value, expected):
    Image.fromarray(np.full((8, 8), value, np.uint16)).save(tmp_path / "deep.png")
    assert open_image(tmp_path / "deep.png").getpixel((4, 4)) == (expected,) * 3


def test_wide_integers_that_hold_8_bit_values_stay_as_they_are(tmp_path):
    Image.fromarray(np.full((8, 8), 200, np.int32)).save(tmp_path / "wide.tif")
    assert open_image(tmp_path / "wide.tif").getpixel((4, 4)) == (200, 200, 200)


def test_palette_with_alpha_is_laid_on_white(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 4, 8))
    image.save(tmp_path / "palette.png", transparency=0)
    image = open_image(tmp_path / "palette.png")
    assert image.mode == "RGB"
    assert image.getpixel((1, 4)) == (255, 255, 255)
    assert image.getpixel((6, 4)) == (0, 0, 255)


@pytest.mark.parametrize(("mode", "colour", "expected"), [("RGBA", (0, 0, 0, 0), 255), ("LA", (10, 0), 255)])
def test_full_transparency_is_white_whatever_colour_hides_below_it(tmp_path, mode, colour, expected):
    Image.new(mode, (8, 8), colour).save(tmp_path / "clear.png")
    assert open_image(tmp_path / "clear.png").getpixel((4, 4)) == (expected,) * 3


def test_an_rgb_file_is_handed_over_unchanged(tmp_path):
    write_picture(tmp_path / "plain.png", seed=3)
    assert np.array_equal(
        np.asarray(open_image(tmp_path / "plain.png")), np.asarray(Image.open(tmp_path / "plain.png"))
    )


def damage(path, kind: str) -> None:
    if kind == "truncated":
        write_picture(path, seed=1)
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("<html>404 not found</html>")
    elif kind == "bomb":
        write_png_header(path, 60_000, 60_000)
    elif kind == "folder":
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("truncated", "image-unreadable"),
        ("empty", "image-empty"),
        ("text", "image-unreadable"),
        ("bomb", "image-bomb"),
        ("folder", "image-unreadable"),
        ("absent", "image-missing"),
    ],
)
def test_a_bad_file_gives_one_error_that_names_it(tmp_path, kind, code):
    path = tmp_path / f"{kind}.jpg"
    damage(path, kind)
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert caught.value.code == code
    assert str(path) in str(caught.value)


def test_an_image_just_over_pillows_limit_is_refused_though_pillow_only_warns(tmp_path, monkeypatch):
    write_picture(tmp_path / "picture.png", seed=1, size=(20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 399)
    with pytest.raises(ImageError, match="399"):
        open_image(tmp_path / "picture.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    assert open_image(tmp_path / "picture.png").size == (20, 20)


def slow_hash(image: Image.Image) -> int:
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BOX), dtype=float)
    frequencies = [
        sum(
            grey[y, x] * np.cos(np.pi * u * (2 * y + 1) / 64) * np.cos(np.pi * v * (2 * x + 1) / 64)
            for y in range(32)
            for x in range(32)
        )
        for u in range(8)
        for v in range(8)
    ]
    middle = sorted(frequencies)
    median = (middle[31] + middle[32]) / 2
    return int("".join("1" if value > median else "0" for value in frequencies), 2)


def test_the_perceptual_hash_agrees_with_the_cosine_transform_written_out(tmp_path):
    for seed in range(3):
        write_picture(tmp_path / "picture.png", seed)
        image = open_image(tmp_path / "picture.png")
        assert perceptual_hash(image) == slow_hash(image)


def test_reencoded_and_resized_copies_are_near_and_other_pictures_are_far(tmp_path):
    hashes = []
    for seed in range(12):
        write_picture(tmp_path / "one.png", seed, size=(128, 384))
        original = open_image(tmp_path / "one.png")
        original.save(tmp_path / "copy.jpg", quality=60)
        smaller = original.resize((64, 192))
        for copy in (open_image(tmp_path / "copy.jpg"), smaller):
            assert (perceptual_hash(copy) ^ perceptual_hash(original)).bit_count() <= NEAR_BITS
        hashes.append(perceptual_hash(original))
    distances = [(a ^ b).bit_count() for n, a in enumerate(hashes) for b in hashes[:n]]
    assert min(distances) > 2 * NEAR_BITS


def test_close_pairs_agree_with_a_double_loop():
    rng = np.random.default_rng(0)
    left = rng.integers(0, 2**63, 1500, dtype=np.uint64)
    right = rng.integers(0, 2**63, 700, dtype=np.uint64)
    for n in range(0, 700, 7):
        right[n] = left[2 * n] ^ np.uint64(2 ** (n % 60) + 2 ** ((n * 3) % 59))
    slow = [
        (i, j, (a ^ b).bit_count())
        for i, a in enumerate(left.tolist())
        for j, b in enumerate(right.tolist())
        if (a ^ b).bit_count() <= 4
    ]
    fast = np.concatenate(list(close_pairs(left, right, 4))).tolist()
    assert [tuple(row) for row in fast] == slow
    assert len(slow) >= 100


def test_no_pairs_come_from_an_empty_set():
    empty, some = np.zeros(0, np.uint64), np.zeros(3, np.uint64)
    assert list(close_pairs(empty, some, 64)) == list(close_pairs(some, empty, 64)) == []
