"""Spoilt captions and images: how much is changed, that it is the same each time, and what the table says of it."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor, tiny_rows

from modeling_gadms.evaluation.encoding import encode_retrieval_set
from modeling_gadms.evaluation.metrics import evaluate_embeddings, query_values
from modeling_gadms.evaluation.robustness import (
    CAPTION_CHANGES,
    IMAGE_CHANGES,
    blur,
    coarsen,
    crop,
    darken,
    drop_words,
    measure_robustness,
    occlude,
    robustness_table,
    swap_words,
)
from modeling_gadms.rows import stable_hash

CAPTION = "one two three four five six seven eight nine ten"


def picture(width=40, height=80, seed=0):
    noise = np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("strength, left", [(0.0, 10), (0.1, 9), (0.3, 7), (0.5, 5), (1.0, 1)])
def test_a_caption_loses_that_share_of_its_words_and_keeps_the_order_of_the_rest(strength, left):
    kept = drop_words(CAPTION, strength, random.Random(3)).split()
    places = [CAPTION.split().index(word) for word in kept]
    assert len(kept) == left and places == sorted(places)


@pytest.mark.parametrize("strength, moved", [(0.1, 2), (0.3, 3), (0.5, 5), (1.0, 10)])
def test_that_share_of_the_words_stands_elsewhere_and_none_is_lost(strength, moved):
    before, after = CAPTION.split(), swap_words(CAPTION, strength, random.Random(3)).split()
    assert sorted(after) == sorted(before)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == moved


@pytest.mark.parametrize("function", [drop_words, swap_words])
def test_captions_of_one_word_or_none_stay(function):
    for caption in ("", "coat"):
        assert function(caption, 0.5, random.Random(0)) == caption


def test_a_crop_keeps_the_pixels_of_a_box_of_that_share():
    image = picture()
    cut = crop(image, 0.25, random.Random(1))
    assert cut.size == (30, 60)
    places = [
        (x, y) for x in range(11) for y in range(21) if image.crop((x, y, x + 30, y + 60)).tobytes() == cut.tobytes()
    ]
    assert len(places) == 1


def test_an_occlusion_hides_that_share_of_the_area_and_nothing_else():
    image = picture()
    hidden = np.asarray(occlude(image, 0.25, random.Random(1)))
    changed = (hidden != np.asarray(image)).any(axis=2)
    assert changed.mean() == pytest.approx(0.25, abs=0.01) and (hidden[changed] == 128).all()
    assert np.asarray(picture()).tobytes() == image.tobytes(), "the image itself was painted on"


def test_darkness_takes_that_share_of_every_pixel():
    dark, plain = (np.asarray(image).astype(float) for image in (darken(picture(), 0.75, None), picture()))
    np.testing.assert_allclose(dark, 0.25 * plain, atol=1)


def test_low_resolution_is_the_mean_of_blocks():
    coarse = coarsen(picture(), 0.75, None)
    blocks = np.asarray(picture()).reshape(20, 4, 10, 4, 3).mean(axis=(1, 3))
    slow = Image.fromarray(np.floor(blocks + 0.5).astype(np.uint8)).resize((40, 80), Image.Resampling.BICUBIC)
    assert coarse.size == (40, 80)
    np.testing.assert_allclose(np.asarray(coarse).astype(int), np.asarray(slow).astype(int), atol=4)


def test_a_blur_is_as_wide_as_that_share_of_the_height():
    point = Image.new("RGB", (101, 200))
    point.putpixel((50, 100), (255, 255, 255))
    # one bright pixel would fade below one level: a line of them does not
    for y in range(200):
        point.putpixel((50, y), (255, 255, 255))
    row = np.asarray(blur(point, 0.02, None))[100, :, 0].astype(float)
    spread = ((np.arange(101) - 50) ** 2 * row).sum() / row.sum()
    assert spread**0.5 == pytest.approx(0.02 * 200, rel=0.1)


@pytest.mark.parametrize("name", sorted(set(IMAGE_CHANGES) - {"cropped"}))  # a crop is judged by its size, above
def test_stronger_changes_change_more(name):
    function, strengths = IMAGE_CHANGES[name]
    image = picture()
    changes = []
    for strength in strengths:
        after = function(image, strength, random.Random(5)).resize(image.size)
        changes.append(np.abs(np.asarray(after).astype(float) - np.asarray(image)).mean())
    assert changes[0] > 1 and changes == sorted(changes)


@pytest.fixture(scope="module")
def setting():
    processor = tiny_processor()
    model = tiny_model(vocab_size=len(processor.tokenizer)).gadms
    rows = tiny_rows(16)
    return model, processor, rows, encode_retrieval_set(model, processor, rows, progress=False)


def test_every_figure_is_that_of_the_changed_set_encoded_as_a_whole(setting):
    model, processor, rows, encoded = setting
    results = measure_robustness(model, processor, rows, encoded, progress=False, seed=4)
    assert len(results) == 1 + sum(len(s) for _, s in [*CAPTION_CHANGES.values(), *IMAGE_CHANGES.values()])
    plain = query_values(evaluate_embeddings(encoded, num_resamples=10).ranks["t2i"])["R@1"]
    assert results[0]["R@1"].mean == plain.mean()
    for result in results[1:]:
        name, strength = result["change"], result["strength"]
        changed = []
        for number, row in enumerate(rows):
            if name in IMAGE_CHANGES:
                rng = random.Random(stable_hash(4, name, row["image_path"]))
                row["image"] = IMAGE_CHANGES[name][0](row["image"].convert("RGB"), strength, rng)
            else:
                for place in (0, 1):
                    rng = random.Random(stable_hash(4, name, row["image_path"], 2 * number + place))
                    column = f"caption{place + 1}"
                    row[column] = CAPTION_CHANGES[name][0](row[column], strength, rng)
            changed.append(row)
        whole = encode_retrieval_set(model, processor, type(rows).from_list(changed, rows.features), progress=False)
        values = query_values(evaluate_embeddings(whole, num_resamples=10).ranks["t2i"])["R@1"]
        assert result["R@1"].mean == pytest.approx(values.mean()), (name, strength)
        assert result["loss"].mean == pytest.approx((values - plain).mean()), (name, strength)


def test_the_same_seed_gives_the_same_changes_and_another_does_not(setting):
    model, processor, rows, encoded = setting
    seen = []
    for seed in (0, 0, 1):
        captions = [
            drop_words(row["caption1"], 0.5, random.Random(stable_hash(seed, "words lost", row["image_path"], 0)))
            for row in rows
        ]
        seen.append(captions)
    assert seen[0] == seen[1] != seen[2]
    first, second = (
        robustness_table(measure_robustness(model, processor, rows, encoded, progress=False)) for _ in range(2)
    )
    assert first == second and torch.equal(encoded.image_embeds, setting[3].image_embeds)


def test_the_table_has_a_line_for_each_strength(setting):
    model, processor, rows, encoded = setting
    table = robustness_table(measure_robustness(model, processor, rows, encoded, progress=False))
    lines = table.markdown().splitlines()
    assert lines[2].startswith("| none | 0 |") and len(lines) == 2 + 1 + 21
    assert {line.count("|") for line in lines} == {7}
    assert any(line.startswith("| low resolution | 0.875 |") for line in lines)
