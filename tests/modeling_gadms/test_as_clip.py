"""What code written for CLIPModel does with the retriever: one half alone, tuples, a loss, pipelines, export."""

import json
import os

import forked
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import save_published, tiny_captions, tiny_images, tiny_model
from transformers import AutoModelForZeroShotImageClassification, CLIPModel, pipeline

from modeling_gadms import GADMSModel
from modeling_gadms.modeling_gadms import resize_position_table

LENGTHS = [12, 7, 9]


@pytest.fixture
def model():
    return tiny_model().gadms


@pytest.fixture
def pairs():
    return {"input_ids": tiny_captions(LENGTHS), "pixel_values": tiny_images(len(LENGTHS))}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    save_published(folder)
    return str(folder)


def test_captions_or_images_alone_give_their_embeddings(model, pairs):
    both = model(**pairs)
    texts, images = model(input_ids=pairs["input_ids"]), model(pixel_values=pairs["pixel_values"])
    assert torch.equal(texts.text_embeds, both.text_embeds) and torch.equal(images.image_embeds, both.image_embeds)
    for half, missing in ((texts, "image_embeds"), (images, "text_embeds")):
        assert {"logits_per_text", "logits_per_image", "loss", missing}.isdisjoint(half.keys())
    with pytest.raises(ValueError, match="neither input_ids nor pixel_values"):
        model()


def test_return_dict_false_gives_tuples_everywhere(pairs):
    whole = tiny_model()
    model = whole.gadms
    calls = [
        lambda **options: model(**pairs, **options),
        lambda **options: model(input_ids=pairs["input_ids"], **options),
        lambda **options: model.get_text_features(pairs["input_ids"], **options),
        lambda **options: model.get_image_features(pairs["pixel_values"], **options),
        lambda **options: whole(**pairs, masking=None, **options),
    ]
    for call in calls:
        output = call()
        values = call(return_dict=False)
        assert isinstance(values, tuple) and torch.equal(values[0], output[0])
    whole.config.return_dict = model.config.return_dict = False
    assert all(isinstance(call(), tuple) and not isinstance(call(return_dict=True), tuple) for call in calls)


def test_the_loss_is_clips_the_mean_cross_entropy_of_each_pair_both_ways(model, pairs):
    outputs = model(**pairs, return_loss=True)
    cosines = outputs.text_embeds @ outputs.image_embeds.T
    expected = 0.0
    for pair in range(3):
        for logits in (cosines[pair] / 0.02, cosines[:, pair] / 0.02):
            expected -= (logits[pair] - logits.logsumexp(0)) / 6
    torch.testing.assert_close(outputs.loss, expected)
    assert torch.equal(model(**pairs, return_loss=True, return_dict=False)[0], outputs.loss)
    outputs.loss.backward()
    for alone in ({"input_ids": pairs["input_ids"]}, {**pairs, "pixel_values": pairs["pixel_values"][:2]}):
        with pytest.raises(ValueError, match="return_loss=True takes pairs"):
            model(**alone, return_loss=True)


def test_the_arguments_of_clip_stand_in_the_same_order():
    import inspect

    for method in ("forward", "get_image_features"):
        clip, ours = (list(inspect.signature(getattr(of, method)).parameters) for of in (CLIPModel, GADMSModel))
        assert ours == clip


def test_images_of_other_sizes_are_embedded_where_positions_may_be_interpolated(model):
    large = tiny_images(2, (64, 24))
    features = model.get_image_features(large, interpolate_pos_encoding=True)
    assert features.last_hidden_state.shape == (2, 1 + 8 * 3, 64)
    own = tiny_images(2)
    expected = model(pixel_values=own).image_embeds
    assert torch.equal(model(pixel_values=own, interpolate_pos_encoding=True).image_embeds, expected)
    outputs = model(tiny_captions([5, 5]), large, interpolate_pos_encoding=True)
    torch.testing.assert_close(outputs.image_embeds, F.normalize(features.pooler_output, dim=-1))
    with pytest.raises(ValueError, match="pass interpolate_pos_encoding=True"):
        model.get_image_features(large)
    with pytest.raises(ValueError, match="36x24 .* multiple of the patch, 8"):
        model.get_image_features(tiny_images(1, (36, 24)), interpolate_pos_encoding=True)


def test_a_position_table_of_any_grid_is_resized_between_its_neighbours():
    """Rows hold the number of their grid row and column, which a linear resize must continue between centres."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(2.0), indexing="ij")
    table = torch.stack([torch.cat([torch.tensor([9.0]), of.flatten()]) for of in (rows, columns)], dim=1)
    resized = resize_position_table(table, (8, 4), (4, 2))
    assert resized[0].tolist() == [9, 9]
    for row in range(8):
        for column in range(4):
            expected = [min(max((row + 0.5) / 2 - 0.5, 0.0), 3.0), min(max((column + 0.5) / 2 - 0.5, 0.0), 1.0)]
            torch.testing.assert_close(resized[1 + row * 4 + column], torch.tensor(expected))


@pytest.mark.filterwarnings("error")
def test_both_towers_export_with_a_free_batch(model):
    """As CLIP's do: a graph of another batch size than the example's."""

    class Tower(torch.nn.Module):
        def __init__(self, method):
            super().__init__()
            self.model, self.method = model, method

        def forward(self, inputs):
            return getattr(self.model, self.method)(inputs).pooler_output

    batch = torch.export.Dim("batch", min=1, max=64)
    for method, example, other in (
        ("get_image_features", tiny_images(2), tiny_images(5)),
        ("get_text_features", tiny_captions([9, 7]), tiny_captions([9, 7, 3, 9, 8])),
    ):
        tower = Tower(method).eval()
        program = torch.export.export(tower, (example,), dynamic_shapes=({0: batch},))
        for inputs in (example, other, other[:1]):
            torch.testing.assert_close(program.module()(inputs), tower(inputs), atol=1e-5, rtol=1e-5)


PIPELINES = """
import json, sys
sys.modules["modeling_gadms"] = None
from PIL import Image
from transformers import pipeline

folder, labels = sys.argv[1], ["a red coat", "a blue coat", "black trousers"]
images = [Image.new("RGB", (30, 70), colour) for colour in ("red", "blue")]
classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
extract = pipeline("image-feature-extraction", model=folder, trust_remote_code=True)
print(json.dumps([classify(images, candidate_labels=labels), extract(images)]))
"""


def expected_of_pipelines(folder):
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    labels = ["a red coat", "a blue coat", "black trousers"]
    images = [Image.new("RGB", (30, 70), colour) for colour in ("red", "blue")]
    with torch.no_grad():
        outputs = model(**processor(images=images, text=[f"This is a photo of {label}." for label in labels]))
    scores = [dict(zip(labels, row, strict=True)) for row in outputs.logits_per_image.softmax(-1).tolist()]
    return scores, outputs.image_embeds


def assert_as_expected(answers, folder):
    classified, features = answers
    scores, embeds = expected_of_pipelines(folder)
    for found, wanted in zip(classified, scores, strict=True):
        assert {each["label"]: each["score"] for each in found} == pytest.approx(wanted, abs=1e-5)
    torch.testing.assert_close(torch.tensor(features).squeeze(1), embeds, atol=1e-6, rtol=0)


def test_pipelines_classify_and_embed_images_without_the_package(published, tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = forked.run(["-c", PIPELINES, published], cwd=tmp_path, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    assert_as_expected(json.loads(run.stdout.splitlines()[-1]), published)


def test_pipelines_work_with_the_package_and_no_trust(published):
    labels = ["a red coat", "a blue coat", "black trousers"]
    images = [Image.new("RGB", (30, 70), colour) for colour in ("red", "blue")]
    classify = pipeline("zero-shot-image-classification", model=published)
    assert isinstance(classify.model, GADMSModel)
    extract = pipeline("image-feature-extraction", model=published)
    assert_as_expected([classify(images, candidate_labels=labels), extract(images)], published)
    assert isinstance(AutoModelForZeroShotImageClassification.from_pretrained(published), GADMSModel)
