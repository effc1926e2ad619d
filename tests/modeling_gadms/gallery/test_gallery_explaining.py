"""Explanations: words and patches against towers that are run again, and patch evidence where there is some."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny import save_published, tiny_images, tiny_model, tiny_processor, tiny_rows
from tiny_towers import KINDS, ROTARY, save_towers, tiny_rotary

from dataset_webperson import DataError
from modeling_gadms import GADMSModel, GADMSProcessor
from modeling_gadms.gallery import Gallery, explaining
from modeling_gadms.gallery.explaining import EVIDENCE, explain, patch_contributions
from modeling_gadms.noise.patch_evidence import PatchEvidence
from modeling_gadms.rotary_vision_gadms import rotation_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and a gallery of twelve images."""
    place = tmp_path_factory.mktemp("explained")
    save_published(place / "model")
    Gallery.create(place / "people", place / "model").add(tiny_rows(12))
    return place


@torch.no_grad()
def without_patch(model, pixels, queries, patch):
    """The mean cosine where no head looks at `patch` in the end, by the layer's own code."""
    tower, kind = model.vision_model, model.config.tower
    if kind in ("siglip", "pe_core"):
        states, head = tower(pixels).last_hidden_state, tower.head
        first = 0
        if kind == "pe_core":
            states, first = tower.post_layernorm(states), 1
        hidden = torch.arange(states.shape[1])[None] == (-1 if patch is None else first + patch)
        token = head.attention(head.probe, states, states, key_padding_mask=hidden)[0][:, 0]
        token = token + head.mlp(head.layernorm(token))
    else:
        layers, norm = (
            (tower.encoder.layer, tower.layernorm)
            if kind == "tipsv2"
            else (tower.encoder.layers, tower.post_layernorm)
        )
        first = 1 + (tower.config.num_register_tokens if kind == "tipsv2" else 0)
        hidden = tower(pixels, output_hidden_states=True).hidden_states[-2]
        mask = torch.zeros(1, 1, hidden.shape[1], hidden.shape[1])
        if patch is not None:
            mask[..., 0, first + patch] = -torch.inf  # of the class token alone
        turned = {"rotation": rotation_of(tower, pixels)} if kind == "eva02" else {}
        token = norm(layers[-1](hidden, mask, **turned)[:, 0])
    return F.cosine_similarity(model.visual_projection(token), queries).mean().item()


@pytest.fixture(scope="module")
def of(tmp_path_factory):
    """A model, its processor and the folder of its towers, by the kind of these."""

    @functools.cache
    def make(kind):
        folder = tmp_path_factory.mktemp(kind)
        if kind == "clip":
            processor = tiny_processor()
            return tiny_model(vocab_size=len(processor.tokenizer)).gadms, processor
        if kind in ROTARY:
            model, processor = tiny_rotary(kind)
            return model.gadms, processor
        save_towers(kind, folder)
        torch.manual_seed(0)
        model = GADMSModel.from_pretrained_towers(folder, image_size=(32, 16))
        return model, GADMSProcessor.from_pretrained_towers(folder, image_size=(32, 16))

    return make


@pytest.mark.parametrize("kind", ["clip", *ROTARY, *KINDS])
def test_a_patch_contributes_what_the_cosine_falls_without_it(of, kind):
    model, pixels = of(kind)[0], tiny_images(1, seed=3)
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
    assert np.abs(patches).max() > 1e-4, "no patch matters: nothing was tested"


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_other_towers_contribute_what_the_cosine_falls_when_they_are_masked(of, kind):
    model, processor = of(kind)
    texts, image = ["a red  Coat", "someone wears blue trousers"], tiny_rows(1)[0]["image"]
    found = explain(model, processor, texts, image, None)
    words = [["a", "red", "coat" if "siglip" in kind else "Coat"], texts[1].split()]
    assert [word for word, _ in found.words] == words[0] + words[1] and found.against is None
    with torch.no_grad():
        embed = F.normalize(model.get_image_features(**processor(images=[image])).pooler_output, dim=-1)[0]
        drops = []
        for text, parts in zip(texts, words, strict=True):
            inputs = processor(text=[text])["input_ids"]
            whole = F.normalize(model.get_text_features(inputs).pooler_output, dim=-1)[0] @ embed
            offsets = processor.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
            for part in parts:
                first = text.lower().index(part.lower())
                masked = inputs.clone()
                for place, (start, end) in enumerate(offsets):
                    # its letters, and the space before it where that is a token of its own
                    if start < end and first - 1 <= start < first + len(part):
                        masked[0, place] = model.config.mask_token_id
                without = F.normalize(model.get_text_features(masked).pooler_output, dim=-1)[0] @ embed
                drops.append(float(whole - without))
    assert [drop for _, drop in found.words] == pytest.approx(drops, abs=1e-5)
    assert max(map(abs, drops)) > 1e-3, "no word matters: nothing was tested"


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
    with pytest.raises(DataError, match="not learnt from this model"):
        gallery.explain(text, hit.id)
    file.unlink()


def test_only_a_ga_dms_explains(folder):
    with pytest.raises(DataError, match="a Linear cannot explain its matches"):
        explain(torch.nn.Linear(1, 1), tiny_processor(), ["a"], tiny_rows(1)[0]["image"], None)
    with pytest.raises(DataError, match="no image with the id"):
        Gallery.open(folder / "people").explain("a coat", "none")
