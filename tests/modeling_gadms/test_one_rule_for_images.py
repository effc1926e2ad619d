"""The same pixels whichever way an image comes in: a path, an address, base64, a PIL image, a file, a data reader."""

import base64
import functools
import http.server
import io
import threading

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_processor

from dataset_webperson.images import decode_rgb, open_image, to_rgb
from modeling_gadms import GADMSImageProcessor
from modeling_gadms.gallery.items import Item
from modeling_gadms.gallery.preparing import prepared_batches

HEIGHT, WIDTH = 40, 20


def tones(seed):
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)


def pictures():
    """Images of the modes that conversions get wrong, and a suffix that stores each."""
    rgb = Image.fromarray(np.stack([tones(0), tones(1), tones(2)], axis=-1))
    alpha, palette, grey = rgb.copy(), rgb.quantize(16), Image.fromarray(tones(3))
    alpha.putalpha(Image.fromarray(tones(4)))
    palette.info["transparency"] = 3
    grey.putalpha(Image.fromarray(tones(5)))
    wide = tones(6).astype(np.uint16) * 256 + tones(7)
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    keyed = rgb.copy()
    keyed.info["transparency"] = keyed.getpixel((0, 0))
    yield "plain", rgb, ".png", {}
    yield "turned", rgb, ".jpg", {"exif": exif}
    yield "alpha", alpha, ".png", {}
    yield "grey alpha", grey, ".png", {}
    yield "palette", palette, ".png", {"transparency": 3}
    yield "one clear colour", keyed, ".png", {"transparency": keyed.info["transparency"]}
    yield "16 bits", Image.fromarray(wide), ".png", {}
    yield "16 bits in 32", Image.fromarray(wide.astype(np.int32)), ".tif", {}
    yield "8 bits in 32", Image.fromarray(tones(8).astype(np.int32)), ".tif", {}
    yield "floats to 1", Image.fromarray(np.float32(tones(9) / 255)), ".tif", {}
    yield "floats to 255", Image.fromarray(np.float32(tones(9))), ".tif", {}
    yield "CMYK", rgb.convert("CMYK"), ".tif", {}


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder, and the address at which this machine serves it."""
    folder = tmp_path_factory.mktemp("served")
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name, image, suffix, options", list(pictures()), ids=[each[0] for each in pictures()])
def test_every_way_in_gives_the_same_pixel_values(tmp_path, served, name, image, suffix, options):
    path = str(tmp_path / f"picture{suffix}")
    image.save(path, **options)
    with open(path, "rb") as file:
        data = file.read()
    (served[0] / f"picture{suffix}").write_bytes(data)
    processor = GADMSImageProcessor(size={"height": 32, "width": 16})
    expected = processor(to_rgb(Image.open(path)), return_tensors="pt")["pixel_values"]

    images = datasets.Dataset.from_dict({"image": [{"bytes": data, "path": None}]})
    ways = {
        "the path": path,
        "the path in a list": [path],
        "an address": f"{served[1]}/picture{suffix}",
        "addresses in a list": [f"{served[1]}/picture{suffix}"],
        "base64": base64.b64encode(data).decode(),
        "base64 in lines": base64.encodebytes(data).decode(),
        "a data URI": f"data:image/{suffix[1:]};base64,{base64.b64encode(data).decode()}",
        "the opened file": Image.open(path),
        "the decoded bytes": Image.open(io.BytesIO(data)),
        "a file": open_image(path),
        "a reader": decode_rgb(data, "picture"),
        "a data set": images.cast_column("image", datasets.Image())[0]["image"],
    }
    (batch,) = prepared_batches([Item("", "", "picture", file=path)], {}, processor, 1, 0)
    assert torch.equal(batch.pixel_values, expected), "a gallery"
    for way, given in ways.items():
        found = processor(given, return_tensors="pt")["pixel_values"]
        assert torch.equal(found, expected), f"{way}: {(found - expected).abs().max()}"


def test_the_rule_lays_transparency_on_white_keeps_tones_and_turns_upright(tmp_path):
    half = Image.new("RGBA", (WIDTH, HEIGHT), (200, 0, 0, 128))
    assert to_rgb(half).getpixel((0, 0)) == (227, 127, 127)
    assert to_rgb(Image.fromarray(np.full((4, 4), 51200, np.uint16))).getpixel((0, 0)) == (200, 200, 200)
    turned = dict((name, (image, options)) for name, image, _, options in pictures())["turned"]
    turned[0].save(tmp_path / "turned.jpg", **turned[1])
    assert open_image(tmp_path / "turned.jpg").size == (HEIGHT, WIDTH)


def test_the_whole_processor_reads_strings_by_the_same_rule(served):
    processor = tiny_processor()
    for name, image, suffix, options in list(pictures())[1:3]:
        image.save(served[0] / f"{name}{suffix}", **options)
        path = str(served[0] / f"{name}{suffix}")
        (served[0] / "ä b.png").write_bytes((served[0] / f"{name}{suffix}").read_bytes())
        uri = "data:image/png;base64," + base64.b64encode((served[0] / f"{name}{suffix}").read_bytes()).decode()
        expected = processor(images=open_image(path), text="a man")["pixel_values"]
        for images in (path, [path], uri, [uri], f"{served[1]}/{name}{suffix}", f"{served[1]}/ä b.png"):
            assert torch.equal(processor(images=images, text="a man")["pixel_values"], expected), name


def test_a_file_that_is_cut_off_is_named(tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(np.stack([tones(0), tones(1), tones(2)], axis=-1)).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(ValueError, match="cut.png: cannot be decoded .* copy the file again"):
        tiny_processor()(images=str(path))


def test_a_string_that_names_no_image_is_refused_with_the_cure(served):
    processor = tiny_processor()
    (served[0] / "page.html").write_text("<p>no image</p>")
    for text, message in {
        f"{served[1]}/missing.png": r"/missing\.png: cannot be fetched \(HTTP Error 404.*; check the address",
        f"{served[1]}/page.html": "page.html: cannot be decoded .*; give the address of an image",
        "http://127.0.0.1:1/a.png": "1/a.png: cannot be fetched .*; check the address",
        "no/such/file.png": "no/such/file.png: no such file, and no base64; check the path",
        "data:image/png;base64,AAAA": "AAAA: cannot be decoded .*; check the path, or the base64",
        "A" * 10000: r"A{60}\.\.\.: cannot be decoded",
    }.items():
        for images in (text, [text]):
            with pytest.raises(ValueError, match=message):
                processor(images=images)
