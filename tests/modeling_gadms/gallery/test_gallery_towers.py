"""Image towers in other arithmetic: remembered, close to the model, and not to be mistaken for one another."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnx_file import linear_onnx
from tiny import save_published, tiny_model, tiny_processor, tiny_rows

from dataset_webperson import DataError
from modeling_gadms.gallery import Gallery
from modeling_gadms.gallery.models import public_facts


@pytest.fixture(scope="module")
def images():
    return [row["image"] for row in tiny_rows(6)]


@pytest.fixture
def linear(tmp_path):
    """A model whose image tower is one matrix, its processor, and the ONNX file of the tower."""
    processor = tiny_processor()
    model = tiny_model(vocab_size=len(processor.tokenizer)).gadms
    height, width = model.config.vision_config.image_size
    size = 3 * height * width
    weight = torch.randn(size, model.config.projection_dim, generator=torch.Generator().manual_seed(0))
    model.get_image_features = lambda pixel_values: SimpleNamespace(pooler_output=pixel_values.flatten(1) @ weight)
    (tmp_path / "image.onnx").write_bytes(linear_onnx(weight.numpy(), (3, height, width)))
    return model, processor, tmp_path / "image.onnx"


def scores(gallery, query="a red coat"):
    return {hit.uri: hit.score for hit in gallery.search(query)}


def test_bfloat16_is_remembered_and_close_and_leaves_the_text_tower_as_it_is(tmp_path, images, capsys):
    save_published(tmp_path / "model")
    plain = Gallery.create(tmp_path / "plain", tmp_path / "model", dtype="float32")
    plain.add(images)
    Gallery.create(tmp_path / "low", tmp_path / "model", dtype="float32", image_tower="bfloat16")
    low = Gallery.open(tmp_path / "low")  # the tower is the recorded one
    low.add(images)
    assert low.model_facts["image_tower"] == "bfloat16" and low.encoder().model.dtype == torch.float32
    found, right = scores(low), scores(plain)
    assert found != right and found == pytest.approx(right, abs=0.02)
    assert low.search(images=images[:1])[0].score == pytest.approx(1, abs=1e-6)  # images are asked by the same tower
    assert scores(Gallery.open(tmp_path / "low", tmp_path / "model")) == found
    with pytest.raises(DataError, match="other image tower"):
        Gallery.open(tmp_path / "low", plain.encoder())
    # back to the model's own numbers, which another process notices
    with pytest.raises(DataError, match="nothing to rebuild"):
        plain.rebuild(tmp_path / "model")
    low.rebuild(tmp_path / "model")
    assert scores(low) == right == scores(Gallery.open(tmp_path / "low"))


def test_an_onnx_file_encodes_images_and_descriptions_do_without_it(tmp_path, images, linear):
    model, processor, file = linear
    plain = Gallery.create(tmp_path / "plain", (model, processor), dtype="float32")
    plain.add(images)
    gallery = Gallery.create(tmp_path / "onnx", (model, processor), dtype="float32", image_tower=file)
    assert gallery.add(images, batch_size=4).added == 6
    assert scores(gallery) == pytest.approx(scores(plain), abs=1e-6)
    facts = gallery.model_facts
    assert facts["image_tower"].startswith("onnx sha256:") and facts["image_tower_file"] == os.fspath(file)
    assert public_facts(facts)["image_tower_file"] == "image.onnx"
    file.write_bytes(file.read_bytes() + b"\0")  # another file under the same name
    again = Gallery.open(tmp_path / "onnx", (model, processor))
    assert scores(again) == scores(gallery)
    with pytest.raises(DataError, match="is another file than encoded this gallery"):
        again.search(images=images[:1])
    file.unlink()
    assert scores(Gallery.open(tmp_path / "onnx", (model, processor))) == scores(gallery)
    with pytest.raises(DataError, match="image.onnx: No such file or directory; export it by"):
        Gallery.open(tmp_path / "onnx", (model, processor)).search(images=images[:1])


def test_a_tower_of_another_model_or_of_no_kind_is_refused(tmp_path, images, linear):
    model, processor, file = linear
    height, width = model.config.vision_config.image_size
    other = np.random.default_rng(1).standard_normal((3 * height * width, model.config.projection_dim))
    file.write_bytes(linear_onnx(other, (3, height, width)))
    gallery = Gallery.create(tmp_path / "other", (model, processor), image_tower=file)
    with pytest.raises(DataError, match="is not the image tower of this model"):
        gallery.add(images)
    assert len(gallery) == 0
    file.write_bytes(linear_onnx(other[:12], (3, 2, 2)))
    gallery = Gallery.create(tmp_path / "small", (model, processor), image_tower=file)
    with pytest.raises(DataError, match="does not take these images"):
        gallery.add(images)
    file.write_bytes(b"no model")
    gallery = Gallery.create(tmp_path / "broken", (model, processor), image_tower=file)
    with pytest.raises(DataError, match="cannot be run"):
        gallery.add(images)
    with pytest.raises(DataError, match="'int4': is not known; give float32, bfloat16, or an .onnx file"):
        Gallery.create(tmp_path / "int4", (model, processor), image_tower="int4")
