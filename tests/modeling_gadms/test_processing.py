"""The image processor and the processor, here and as remote code in a process without the package."""

import json
import os

import forked
import numpy as np
import PIL.Image
import pytest
import torch
from transformers import CLIPImageProcessorPil, CLIPTokenizer

from modeling_gadms.image_processing_gadms import GADMSImageProcessor
from modeling_gadms.processing_gadms import GADMSProcessor
from modeling_gadms.training.tokenizers import train_tokenizer

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
CAPTIONS = ["A man in a red coat!", "", "   ", "a woman with a blue bag and white shoes", "jekyll <|endoftext|>"]


def picture(height=50, width=20, channels=3, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def expected(image: PIL.Image.Image, height=384, width=128) -> torch.Tensor:
    """An RGB image resized, scaled to [0, 1], less the mean and divided by the deviation."""
    array = np.asarray(image.resize((width, height), PIL.Image.Resampling.BICUBIC)).astype(np.float64) / 255
    return torch.tensor(((array - MEAN) / STD).transpose(2, 0, 1), dtype=torch.float32)


def pixels(image, **kwargs) -> torch.Tensor:
    return GADMSImageProcessor(**kwargs)(image, return_tensors="pt")["pixel_values"][0]


@pytest.fixture(scope="module")
def processor() -> GADMSProcessor:
    return GADMSProcessor(GADMSImageProcessor(), train_tokenizer(CAPTIONS, 560))


@pytest.mark.parametrize(("height", "width"), [(384, 128), (64, 32), (10, 30)])
def test_pixel_values_equal_a_plain_resize_and_normalisation_at_any_size(height, width):
    image = PIL.Image.fromarray(picture())
    values = pixels(image, size={"height": height, "width": width})
    assert values.dtype == torch.float32 and values.shape == (3, height, width)
    torch.testing.assert_close(values, expected(image, height, width), rtol=0, atol=1e-5)


def test_pixel_values_equal_those_of_clip_set_to_the_same_size():
    image = PIL.Image.fromarray(picture(300, 77))
    clip = CLIPImageProcessorPil(size={"height": 384, "width": 128}, do_center_crop=False)
    assert torch.equal(pixels(image), clip(image, return_tensors="pt")["pixel_values"][0])


@pytest.mark.parametrize("form", ["PIL", "numpy", "torch"])
def test_images_of_the_right_size_pass_no_resize(form, monkeypatch):
    array = picture(384, 128)
    image = {"PIL": PIL.Image.fromarray(array), "numpy": array, "torch": torch.from_numpy(array).permute(2, 0, 1)}[
        form
    ]
    wanted = expected(PIL.Image.fromarray(array))

    def resize(*_, **__):
        raise AssertionError("resized")

    monkeypatch.setattr(PIL.Image.Image, "resize", resize)
    torch.testing.assert_close(pixels(image), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_images_without_transparency_are_read_as_pillow_reads_them(mode):
    image = PIL.Image.fromarray(picture()).convert("P" if mode == "P" else "RGB")
    if mode == "LAB":
        image = PIL.Image.frombytes("LAB", image.size, image.tobytes())
    image = image.convert(mode)
    torch.testing.assert_close(pixels(image), expected(image.convert("RGB")), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparent_pixels_become_white(mode):
    clear = PIL.Image.new("RGBA", (20, 50), (10, 200, 30, 0)).convert("LA" if mode == "LA" else "RGBA")
    if mode == "P":
        clear = PIL.Image.new("P", (20, 50))
        clear.info["transparency"] = 0
    white = expected(PIL.Image.new("RGB", (20, 50), "white"))
    assert clear.mode == mode
    torch.testing.assert_close(pixels(clear), white, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_greys_of_16_bits_keep_their_tones(mode):
    wide = np.arange(0, 65536, 66, dtype=np.uint16)[:800].reshape(40, 20)
    if mode == "I":
        image = PIL.Image.fromarray(wide.astype(np.int32))
    else:
        image = PIL.Image.frombytes(mode, (20, 40), wide.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    assert image.mode == mode
    grey = PIL.Image.fromarray((wide // 256).astype(np.uint8))
    torch.testing.assert_close(pixels(image), expected(grey.convert("RGB")), rtol=0, atol=1e-5)


def test_greys_of_8_bits_in_32_and_of_floats_keep_their_tones():
    grey = picture(channels=1)[..., 0]
    wanted = expected(PIL.Image.fromarray(grey).convert("RGB"))
    torch.testing.assert_close(pixels(PIL.Image.fromarray(grey.astype(np.int32))), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(pixels(PIL.Image.fromarray(np.float32(grey / 255))), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("height", [1, 3, 4, 50])
@pytest.mark.parametrize("width", [1, 3, 50])
def test_arrays_and_tensors_equal_the_pillow_image_at_any_size(height, width):
    array = picture(height, width)
    wanted = expected(PIL.Image.fromarray(array))
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    forms = {
        "PIL": PIL.Image.fromarray(array),
        "numpy": array,
        "numpy int64": array.astype(np.int64),
        "numpy float": array / 255,
        "torch": tensor,
        "torch float": tensor / 255,
    }
    for name, form in forms.items():
        torch.testing.assert_close(pixels(form), wanted, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    # Channels where the kind of array does not have them by custom.
    assert torch.equal(
        GADMSImageProcessor()(np.asarray(tensor), input_data_format="channels_first", return_tensors="pt")[
            "pixel_values"
        ][0],
        pixels(array),
    )


def test_grey_arrays_with_and_without_a_channel_axis_are_read():
    grey = picture(channels=1)
    wanted = pixels(PIL.Image.fromarray(grey[..., 0]))
    for form in (grey, grey[..., 0], torch.from_numpy(grey[..., 0]), torch.from_numpy(grey).permute(2, 0, 1)):
        assert torch.equal(pixels(form), wanted)
        assert torch.equal(GADMSImageProcessor()([form, form], return_tensors="pt")["pixel_values"][1], wanted)
    half = pixels(torch.from_numpy(grey[..., 0] / 255).bfloat16())
    torch.testing.assert_close(half, wanted, rtol=0, atol=0.05)


def test_floats_that_are_not_to_be_rescaled_are_only_normalised():
    array = picture()
    values = GADMSImageProcessor(do_rescale=False)(np.float32(array / 255), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(values, expected(PIL.Image.fromarray(array)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (picture() * 1.0, "expected 0 to 1 for floats"),
        (picture() / 255 - 0.5, "expected 0 to 1 for floats"),
        (np.full((5, 4, 3), np.nan), "expected 0 to 1 for floats"),
        (picture().astype(np.int32) + 300, "0 to 255 for integers"),
        (picture(channels=2), r"shape \(50, 20, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (PIL.Image.new("RGB", (0, 5)), "0 x 5 pixels"),
    ],
)
def test_images_that_cannot_be_read_are_refused_with_the_reason(image, message):
    with pytest.raises(ValueError, match=message):
        pixels(image)


@pytest.mark.parametrize("images", [[None], [picture(), None], [picture(), 3]])
def test_an_item_that_is_not_an_image_is_named_by_its_index(processor, images):
    for each in (processor, processor.image_processor):
        with pytest.raises(TypeError, match=f"Image {len(images) - 1} is {images[-1]}: expected a PIL image"):
            each(images=images)


def test_lists_of_images_of_several_sizes_and_modes_make_one_batch(processor):
    images = [PIL.Image.fromarray(picture(h, w)) for h, w in ((1, 1), (50, 20), (20, 90))]
    images[1] = images[1].convert("L")
    batch = processor(images=images)["pixel_values"]
    assert batch.shape == (3, 3, 384, 128) and batch.dtype == torch.float32
    assert all(torch.equal(row, pixels(image)) for row, image in zip(batch, images, strict=True))


def test_captions_are_padded_to_the_longest_and_cut_at_77(processor):
    batch = processor(text=CAPTIONS)
    lengths = [len(ids) for ids in processor.tokenizer(CAPTIONS)["input_ids"]]
    assert sorted(batch) == ["attention_mask", "input_ids"]
    assert batch["input_ids"].shape == (5, max(lengths)) and batch["input_ids"].dtype == torch.int64
    assert batch["attention_mask"].sum(1).tolist() == lengths and lengths[1] == lengths[2] == 2
    assert not batch["input_ids"][batch["attention_mask"] == 0].any()
    assert batch["input_ids"].argmax(1).tolist() == [n - 1 for n in lengths]
    assert processor(text="red " * 500)["input_ids"].shape == (1, 77)
    assert processor(text="red", padding="max_length")["input_ids"].shape == (1, 77)


def test_options_reach_tokenizer_and_image_processor(processor):
    batch = processor(
        text=["a man", "a"], images=[picture()] * 2, return_tensors="np", padding=False, size={"height": 8, "width": 4}
    )
    assert isinstance(batch["pixel_values"], np.ndarray) and batch["pixel_values"].shape == (2, 3, 8, 4)


def test_any_sequence_of_captions_is_taken(processor):
    wanted = processor(text=CAPTIONS)["input_ids"]
    for captions in (tuple(CAPTIONS), np.array(CAPTIONS), iter(CAPTIONS)):
        assert torch.equal(processor(text=captions)["input_ids"], wanted)


@pytest.mark.parametrize("value", [None, 7, float("nan")])
def test_a_caption_that_is_not_a_string_is_named_by_index_and_value(processor, value):
    with pytest.raises(TypeError, match=f"Caption 2 is {value}, not a string"):
        processor(text=["a", "b", value], images=[picture()] * 3)


def test_no_input_at_all_is_refused(processor):
    with pytest.raises(ValueError, match="at least one input"):
        processor()
    with pytest.raises(ValueError, match="list is empty"):
        processor(text=[])


def test_a_tokenizer_without_mask_token_is_refused_with_the_cure():
    with pytest.raises(ValueError, match=r"CLIPTokenizer has no mask token.*GADMSTokenizer\.from_clip_vocabulary"):
        GADMSProcessor(GADMSImageProcessor(), CLIPTokenizer())


def test_the_processor_is_built_from_a_clip_folder(tmp_path):
    lines = ["#version: 0.2", "a n</w>", "m an</w>", "r e"]
    (tmp_path / "merges.txt").write_text("\n".join(lines))
    built = GADMSProcessor.from_clip_pretrained(tmp_path, image_size=(64, 32))
    assert built.tokenizer.tokenize("man re") == ["man</w>", "r", "e</w>"]
    assert built(images=picture())["pixel_values"].shape == (1, 3, 64, 32)
    assert GADMSProcessor.from_clip_pretrained(tmp_path)(images=picture())["pixel_values"].shape == (1, 3, 384, 128)


RELOAD = """
import json, sys
sys.modules["modeling_gadms"] = None
import numpy as np
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
source, target, captions = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
images = AutoImageProcessor.from_pretrained(source, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
batch = processor(text=captions, images=np.zeros((5, 4, 3), np.uint8))
processor.save_pretrained(target)
tokenizer.save_pretrained(target + "/tokenizer")
images.save_pretrained(target + "/images")
sys.stdout.write(json.dumps({
    "modules": [type(each).__module__.split(".")[0] for each in (tokenizer, images, processor)],
    "ids": [tokenizer(captions, padding=True)["input_ids"], batch["input_ids"].tolist()],
    "shapes": [list(batch["pixel_values"].shape), list(images(np.zeros((5, 4, 3)))["pixel_values"][0].shape)],
}))
"""


def test_saved_files_reload_as_remote_code_and_so_do_the_files_saved_from_it(processor, tmp_path):
    small = GADMSProcessor(GADMSImageProcessor(size={"height": 64, "width": 32}), processor.tokenizer)
    small.save_pretrained(tmp_path / "first")
    env = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    for source, target in (("first", "second"), ("second", "third")):
        arguments = [str(tmp_path / source), str(tmp_path / target), json.dumps(CAPTIONS)]
        run = forked.run(["-c", RELOAD, *arguments], env=env, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        answer = json.loads(run.stdout)
        assert answer["modules"] == ["transformers_modules"] * 3
        assert answer["ids"] == [processor(text=CAPTIONS)["input_ids"].tolist()] * 2
        assert answer["shapes"] == [[1, 3, 64, 32], [3, 64, 32]]
    for name in ("tokenization_gadms.py", "image_processing_gadms.py", "processing_gadms.py", "tokenizer.json"):
        assert (tmp_path / "third" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    assert (tmp_path / "third/tokenizer/tokenization_gadms.py").exists()
    assert (tmp_path / "third/images/image_processing_gadms.py").exists()


def test_a_saved_processor_reloads_through_its_own_class(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    reloaded = GADMSProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    both = dict(text=CAPTIONS, images=[picture()])
    for name, value in processor(**both).items():
        assert torch.equal(reloaded(**both)[name], value), name
