"""Explanations: words and patches against towers that are run again, and patch evidence where there is some."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny import save_published, tiny_images, tiny_model, tiny_processor, tiny_rows

from dataset_webperson import DataError
from modeling_gadms.gallery import Gallery, explaining
from modeling_gadms.gallery.explaining import EVIDENCE, explain, patch_contributions
from modeling_gadms.noise.patch_evidence import PatchEvidence


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and a gallery of twelve images."""
    place = tmp_path_factory.mktemp("explained")
    save_published(place / "model")
    Gallery.create(place / "people", place / "model").add(tiny_rows(12))
    return place


@torch.no_grad()
def without_patch(model, pixels, queries, patch):
    """The mean cosine where no head of the class token looks at `patch` in the last layer, by the layer's own code."""
    tower = model.vision_model
    layer = tower.encoder.layers[-1]
    hidden = tower(pixels, output_hidden_states=True).hidden_states[-2]
    mask = torch.zeros(1, 1, hidden.shape[1], hidden.shape[1])
    if patch is not None:
        mask[..., 0, 1 + patch] = -torch.inf  # of the class token alone
    token = tower.post_layernorm(layer(hidden, mask)[:, 0])
    return F.cosine_similarity(model.visual_projection(token), queries).mean().item()


def test_a_patch_contributes_what_the_cosine_falls_without_it():
    model, pixels = tiny_model().gadms, tiny_images(1, seed=3)
    queries = F.normalize(torch.randn(2, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    with torch.no_grad():
        score, patches = patch_contributions(model, pixels, queries)
        whole = F.cosine_similarity(model.get_image_features(pixels).pooler_output, queries).mean().item()
    assert patches.shape == (4, 2) and patches.dtype == np.float32
    assert (
        score == pytest.approx(whole, abs=1e-5) == pytest.approx(without_patch(model, pixels, queries, None), abs=1e-5)
    )
    falls = [whole - without_patch(model, pixels, queries, patch) for patch in range(8)]
    assert np.allclose(patches.ravel(), falls, atol=1e-5)
    assert np.abs(patches).max() > 1e-3, "no patch matters: nothing was tested"


def test_a_word_contributes_what_the_cosine_falls_when_it_is_masked(folder):
    gallery = Gallery.open(folder / "people")
    hit = gallery.search("a red coat")[0]
    found = gallery.explain(["A red  coat", "blue"], hit.id)
    assert [word for word, _ in found.words] == ["a", "red", "coat", "blue"] and found.against is None
    encoder = gallery.encoder()
    image = encoder.images([gallery.image(hit.id)])[0]
    whole = encoder.texts(["a red coat", "blue"]) @ image
    assert found.score == pytest.approx(whole.mean(), abs=1e-5) and found.patches.shape == (4, 2)
    tokenizer = encoder.processor.tokenizer
    for place, word in enumerate(("a", "red", "coat")):
        ids = tokenizer("a red coat", return_tensors="pt")
        ids["input_ids"][0, [number == place for number in _words_of(tokenizer)]] = tokenizer.mask_token_id
        with torch.no_grad():
            masked = encoder.model.get_text_features(ids["input_ids"]).pooler_output
        fall = whole[0] - F.normalize(masked, dim=-1)[0].double().numpy() @ image
        assert dict(found.words[:3])[word] == pytest.approx(fall, abs=1e-5), word


def _words_of(tokenizer):
    """The word of each token of "a red coat", from 0; `None` for BOS and EOS."""
    encoded = tokenizer("a red coat", return_offsets_mapping=True)
    starts = {0: 0, 2: 1, 6: 2}
    words, current = [], None
    for start, end in encoded["offset_mapping"]:
        current = None if start == end else starts.get(start, current)
        words.append(current)
    return words


def test_words_that_patch_evidence_doubts_are_named(folder, monkeypatch):
    gallery = Gallery.open(folder / "people")
    encoder, hit = gallery.encoder(), gallery.search("a red coat")[0]
    torch.manual_seed(0)
    evidence = PatchEvidence(encoder.model)
    with torch.no_grad():
        pixels = encoder.processor(images=[row["image"] for row in tiny_rows(6)])["pixel_values"]
        evidence.reference_keys = evidence.keys(pixels)
    text = "a red coat and a yellow jacket"
    picture = gallery.image(hit.id)
    with torch.no_grad():
        ids = encoder.processor(text=[text])["input_ids"]
        keys = evidence.keys(encoder.processor(images=[picture])["pixel_values"])
        scores = evidence.score(keys, ids)[0]
    file = folder / "model" / EVIDENCE
    save_file({name: value.contiguous() for name, value in evidence.state_dict().items()}, file)
    bound = -0.1  # an untrained head doubts little
    monkeypatch.setattr(explaining, "AGAINST", bound)
    found = gallery.explain(text, hit.id).against
    lowest = {}  # of the tokens of each word
    for number, nats in zip(encoder.processor.tokenizer(text).word_ids(), scores.tolist(), strict=True):
        lowest[number] = min(nats, lowest.get(number, 0.0))
    expected = [(word, nats) for word, nats in zip(text.split(), list(lowest.values())[1:], strict=False)]
    expected = [(word, nats) for word, nats in expected if nats < bound]
    assert [word for word, _ in found] == [word for word, _ in expected]
    assert [nats for _, nats in found] == pytest.approx([nats for _, nats in expected], abs=1e-3)
    assert 0 < len(found) < 7
    file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="not the patch evidence of this model"):
        gallery.explain(text, hit.id)
    file.unlink()


def test_only_a_ga_dms_explains(folder):
    with pytest.raises(DataError, match="a Linear cannot explain its matches"):
        explain(torch.nn.Linear(1, 1), tiny_processor(), ["a"], tiny_rows(1)[0]["image"], None)
    with pytest.raises(DataError, match="no image with the id"):
        Gallery.open(folder / "people").explain("a coat", "none")
