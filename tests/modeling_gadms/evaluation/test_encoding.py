"""Encoding a retrieval set: order, identities, and agreement with one item at a time."""

import datasets
import pytest
import torch
from tiny import tiny_model, tiny_processor, tiny_rows
from tiny_towers import tiny_tokenizer, tiny_towers
from transformers import SiglipImageProcessorPil, SiglipProcessor

from modeling_gadms.evaluation import encoding
from modeling_gadms.evaluation.encoding import RetrievalSet, encode_captions, encode_retrieval_set
from modeling_gadms.evaluation.metrics import evaluate_embeddings
from modeling_gadms.evaluation.models import load_retriever
from modeling_gadms.person_retrieval.ranking import retrieval_metrics
from modeling_gadms.rows import stable_hash


@pytest.fixture(scope="module")
def model_and_processor():
    processor = tiny_processor()
    return tiny_model(vocab_size=len(processor.tokenizer)).gadms, processor


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_embeddings_are_those_of_each_image_and_caption_in_order(model_and_processor, batch_size):
    model, processor = model_and_processor
    rows = tiny_rows(7)
    encoded = encode_retrieval_set(model, processor, rows, batch_size=batch_size, progress=False)
    assert encoded.image_embeds.shape == (7, 64) and encoded.text_embeds.shape == (14, 64)
    assert encoded.text_image_index.tolist() == sorted([*range(7), *range(7)])
    assert encoded.image_person_ids.tolist() == rows["person_id"][:]
    assert encoded.text_person_ids.tolist() == [rows[index // 2]["person_id"] for index in range(14)]
    with torch.no_grad():
        for index, row in enumerate(rows):
            pair = processor(images=[row["image"]], text=[row["caption1"], row["caption2"]])
            outputs = model(pair["input_ids"], pair["pixel_values"])
            torch.testing.assert_close(encoded.image_embeds[index], outputs.image_embeds[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(
                encoded.text_embeds[2 * index : 2 * index + 2], outputs.text_embeds, atol=1e-5, rtol=0
            )


def test_a_caption_s_embedding_is_that_of_it_alone_whatever_the_order_and_repetition(model_and_processor, monkeypatch):
    monkeypatch.setattr(encoding, "_BATCHES_ON_DEVICE", 2)
    model, processor = model_and_processor
    words = "a man in a red coat and blue jeans walks past the long white wall with his brown bag".split()
    captions = ["", *(" ".join(words[:count]) for count in range(1, 18)), "a man", "a woman in red"]
    found = encode_captions(model, processor, captions, 3, progress=False)
    with torch.no_grad():
        for caption, embed in zip(captions, found, strict=True):  # one at a time, without padding
            alone = model.get_text_features(**processor(text=[caption], return_tensors="pt")).pooler_output
            torch.testing.assert_close(embed[None], torch.nn.functional.normalize(alone, dim=-1), atol=1e-6, rtol=0)
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(0)).tolist() + [3, 3, 0]
    assert torch.equal(encode_captions(model, processor, [captions[i] for i in order], 3, False), found[order])


def test_without_person_ids_each_image_is_its_own_person(model_and_processor):
    rows = tiny_rows(5).remove_columns("person_id")
    encoded = encode_retrieval_set(*model_and_processor, rows, progress=False)
    assert encoded.image_person_ids.tolist() == [stable_hash(row["image_path"]) for row in rows]


def test_metrics_equal_a_loop_over_sorted_lists(model_and_processor):
    rows = tiny_rows(20)
    encoded = encode_retrieval_set(*model_and_processor, rows, progress=False)
    metrics = encoded.metrics()
    for way in ("t2i", "i2t"):
        texts = (encoded.text_embeds, encoded.text_person_ids)
        images = (encoded.image_embeds, encoded.image_person_ids)
        (query, query_ids), (gallery, gallery_ids) = (texts, images) if way == "t2i" else (images, texts)
        hits, precisions = 0, []
        for embed, person in zip(query, query_ids, strict=True):
            scores = (gallery.double() @ embed.double()).tolist()
            # the pessimistic rule: among equal scores, wrong ones come first
            order = sorted(range(len(scores)), key=lambda i: (-round(scores[i], 9), gallery_ids[i] == person))
            right = [bool(gallery_ids[index] == person) for index in order]
            hits += right[0]
            ranks = [place for place, ok in enumerate(right, 1) if ok]
            precisions.append(sum(count / rank for count, rank in enumerate(ranks, 1)) / len(ranks))
        assert metrics[f"{way}_R@1"] == pytest.approx(100 * hits / len(query))
        assert metrics[f"{way}_mAP"] == pytest.approx(100 * sum(precisions) / len(precisions), abs=1e-3)


def test_an_image_without_captions_is_searched_and_no_query():
    """Images 0 and 3 show persons whom no caption describes."""
    random = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(5, 6, generator=random))
    texts = torch.nn.functional.normalize(torch.randn(3, 6, generator=random))
    text_ids, image_ids = torch.tensor([1, 2, 2]), torch.tensor([0, 1, 2, 0, 2])
    encoded = RetrievalSet(images, texts, image_ids, text_ids, torch.tensor([1, 2, 4]))
    described = images[[1, 2, 4]], image_ids[[1, 2, 4]]
    expected = {
        "t2i": retrieval_metrics(texts, images, text_ids, image_ids),
        "i2t": retrieval_metrics(described[0], texts, described[1], text_ids),
    }
    assert expected["t2i"] != retrieval_metrics(texts, described[0], text_ids, described[1])
    metrics, evaluation = encoded.metrics(), evaluate_embeddings(encoded, num_resamples=10)
    for way, found in expected.items():
        assert {name: metrics[f"{way}_{name}"] for name in found} == pytest.approx(found)
        assert {name: evaluation.metrics[way][name].mean for name in found} == pytest.approx(found)
    assert evaluation.person_ids["i2t"].tolist() == [1, 2, 2]


def test_an_empty_set_and_a_missing_image_are_named(model_and_processor, tmp_path):
    with pytest.raises(ValueError, match="empty data set"):
        encode_retrieval_set(*model_and_processor, tiny_rows(2).select([]))
    rows = datasets.Dataset.from_dict(
        {"image": [str(tmp_path / "gone.png")], "image_path": ["gone.png"], "caption1": ["a person"]}
    ).cast_column("image", datasets.Image())
    with pytest.raises(ValueError, match="row 0, image gone.png: cannot be read"):
        encode_retrieval_set(*model_and_processor, rows, progress=False)


def test_captions_of_a_plain_siglip_2_are_prepared_as_it_was_trained_whatever_its_tokenizer_does(tmp_path):
    """On the right to 64, in lower case and without a mask; the tokenizer by itself pads on the left, with one."""
    tokenizer = tiny_tokenizer("siglip")
    tiny_towers("siglip", len(tokenizer)).save_pretrained(tmp_path)
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    SiglipProcessor(images, tokenizer).save_pretrained(tmp_path)
    model, processor = load_retriever(str(tmp_path))
    assert processor.tokenizer.padding_side == "left" and "attention_mask" in processor(text=["a coat"])
    found = encode_captions(model, processor, ["A red Coat", "someone wears blue"], progress=False)
    with torch.no_grad():
        for caption, embed in zip(["a red coat", "someone wears blue"], found, strict=True):
            ids = tokenizer(caption)["input_ids"]
            features = model.get_text_features(torch.tensor([ids + [0] * (64 - len(ids))])).pooler_output[0]
            torch.testing.assert_close(embed, features / features.norm(), atol=1e-5, rtol=0)
