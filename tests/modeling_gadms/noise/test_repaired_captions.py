"""What could be true in the place of a word: probabilities against slow arithmetic, and the captions that follow."""

import json
import math
import random

import datasets
import numpy as np
import pytest
import torch
from tiny import COLOURS, tiny_model, tiny_processor, tiny_rows

from dataset_webperson import DataError
from dataset_webperson.drawn.attributes import WORDS
from modeling_gadms.noise.arguments import RepairArguments
from modeling_gadms.noise.changes import change_of
from modeling_gadms.noise.patch_evidence import train_patch_evidence
from modeling_gadms.noise.repaired_captions import (
    add_posteriors,
    calibrate_families,
    refuse_repaired,
    refuse_unnamed,
    repair_captions,
    with_same_columns,
)
from modeling_gadms.noise.rewriting import repaired
from modeling_gadms.noise.value_evidence import ValueEvidence
from modeling_gadms.noise.word_families import (
    Family,
    SaidWord,
    drawn_families,
    find_words,
    plain_families,
    read_families,
    said_words,
    write_families,
)
from modeling_gadms.noise.word_posteriors import FamilyCalibration, calibrate, share_of_false, true_probabilities
from modeling_gadms.training.collator import PairCollator
from modeling_gadms.training.trainer import refuse_missing_columns

FAMILIES = {"color": Family({colour: (colour,) for colour in COLOURS})}


@pytest.fixture(scope="module")
def pair():
    processor = tiny_processor()
    return tiny_model(vocab_size=len(processor.tokenizer)).gadms, processor


def noisy(rows, share, seed=0):
    """The rows with a share of the colours of `caption1` replaced, and what each colour was."""
    draw, captions, truth = random.Random(seed), [], []
    for row in rows:
        words = row["caption1"].split()
        truth.append([word for word in words if word in COLOURS])
        words = [
            draw.choice([other for other in COLOURS if other != word])
            if word in COLOURS and draw.random() < share
            else word
            for word in words
        ]
        captions.append(" ".join(words))
    return rows.remove_columns("caption1").add_column("caption1", captions), truth


@pytest.fixture(scope="module")
def learnt(pair):
    rows, truth = noisy(tiny_rows(400).remove_columns("caption2"), 0.3)
    return train_patch_evidence(*pair, rows, 100, 2e-3, batch_size=32, progress=False), rows, truth


def one_word(evidence, said, frequency, temperature, share):
    """Probabilities of the true values by loops: what is said is explained as a mixture over what is true."""
    number = len(frequency)
    likely = [frequency[v] * math.exp(temperature * evidence[v]) for v in range(number)]
    likely = [value / sum(likely) for value in likely]

    def says(true, word):
        return 1 - share if word == true else share * frequency[word] / (1 - frequency[true])

    mixture = list(frequency)
    for _ in range(30):
        new = []
        for true in range(number):
            total = 0.0
            for word in range(number):
                explained = sum(mixture[other] * says(other, word) for other in range(number))
                total += likely[word] * mixture[true] * says(true, word) / explained
            new.append(total)
        mixture = new
    joint = [mixture[true] * says(true, said) for true in range(number)]
    return [value / sum(joint) for value in joint]


def test_probabilities_are_those_of_loops_over_values():
    rng = np.random.default_rng(0)
    evidence, said = rng.normal(size=(12, 4)), rng.integers(0, 4, size=12)
    calibration = FamilyCalibration(np.array([0.4, 0.3, 0.2, 0.1]), 1.3, 0.25)
    found = true_probabilities(evidence, said, calibration, 0.25)
    for row, nats, word in zip(found, evidence, said, strict=True):
        assert row == pytest.approx(one_word(nats, word, calibration.frequency, 1.3, 0.25), abs=1e-12)


def test_without_evidence_a_word_is_false_at_the_share_of_false_words():
    calibration = FamilyCalibration(np.full(5, 0.2), 1.0, 0.3)
    found = true_probabilities(np.zeros((1, 5)), np.array([2]), calibration, 0.3)[0]
    assert found == pytest.approx([0.075, 0.075, 0.7, 0.075, 0.075])


def drawn_words(count=4000, values=4, share=0.3, sharpness=6.0, seed=0):
    """True values, what is said, and what a perfect head gives: the logarithm of p(image | said) over p(image)."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, values, size=count)
    wrong = (true + rng.integers(1, values, size=count)) % values
    said = np.where(rng.random(count) < share, wrong, true)
    looks = np.eye(values)[true] * sharpness + rng.normal(size=(count, values))  # what the image shows
    shown = np.exp(looks - looks.max(axis=1, keepdims=True))
    shown /= shown.sum(axis=1, keepdims=True)
    mixed = shown * (1 - share) + (1 - shown) * share / (values - 1)  # probability of each value to be said
    return true, said, np.log(mixed * values)


def test_the_numbers_of_a_family_are_found_without_knowing_the_truth():
    true, said, evidence = drawn_words()
    found = calibrate(evidence, said)
    assert found.temperature == pytest.approx(1.0, abs=0.1)
    assert found.frequency == pytest.approx(np.bincount(said) / len(said), abs=1e-3)
    assert found.disagreement == pytest.approx(0.3, abs=0.05)
    unseen = calibrate(np.zeros_like(evidence) + np.random.default_rng(1).normal(size=evidence.shape) * 1e-3, said)
    assert unseen.disagreement > 0.6  # nothing is shown: nearly three of four disagree
    assert unseen.temperature == 0.0  # and no word is replaced
    rare = FamilyCalibration(np.array([0.7, 0.1, 0.1, 0.1]), 0.0, 0.5)
    for share, doubt in ((0.2, 0.2), (0.6, 0.49)):
        left = true_probabilities(10 * evidence, said, rare, share)
        assert left[np.arange(len(said)), said] == pytest.approx(1 - doubt) and left.sum(axis=1) == pytest.approx(1)
    assert share_of_false({f"{n}": found for n in range(9)} | {"unseen": unseen}) == pytest.approx(found.disagreement)

    # evidence of half the size asks for twice the temperature
    assert calibrate(evidence / 2, said).temperature == pytest.approx(2 * found.temperature, abs=0.11)

    probabilities = true_probabilities(evidence, said, found, found.disagreement)
    assert (probabilities.argmax(axis=1) == true).mean() > 0.95 > 0.75 > (said == true).mean()
    # calibrated: of the words that are right with probability p, a share p is right
    p = probabilities[np.arange(len(said)), said]
    for low, high in ((0.0, 0.1), (0.9, 1.0)):
        inside = (p >= low) & (p <= high)
        assert inside.sum() > 300 and p[inside].mean() == pytest.approx((said == true)[inside].mean(), abs=0.05)


def test_evidence_of_values_is_the_score_of_the_caption_that_says_them(pair, learnt):
    evidence, rows, _ = learnt
    captions = rows["caption1"][:6]
    pixels = pair[1](images=rows[:6]["image"], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        keys = evidence.keys(pixels)
    said = [find_words(caption, FAMILIES) for caption in captions]
    score = ValueEvidence(evidence, pair[1], FAMILIES)
    found = score(keys, captions, said)
    assert sum(map(len, said)) >= 6
    for row, (caption, words) in enumerate(zip(captions, said, strict=True)):
        for word, nats in zip(words, found[row], strict=True):
            for value, colour in enumerate(COLOURS):
                other = caption[: word.start] + colour + caption[word.end :]
                encoded = pair[1].tokenizer([other], return_offsets_mapping=True, return_tensors="pt")
                starts = encoded["offset_mapping"][0, :, 0]
                inside = (starts >= word.start) & (starts < word.start + len(colour))
                inside &= encoded["offset_mapping"][0, :, 1] > starts
                with torch.no_grad():
                    expected = evidence.score(keys[row : row + 1], encoded["input_ids"])[0][inside].mean()
                assert nats[value] == pytest.approx(expected.item(), abs=1e-4)
    again = score(keys, captions, said)  # the runs of tokens are kept
    assert all(np.array_equal(a, b) for x, y in zip(found, again, strict=True) for a, b in zip(x, y, strict=True))


def test_false_colours_are_found_and_mended(pair, learnt):
    evidence, rows, truth = learnt
    calibrated = calibrate_families(evidence, pair[1], rows, FAMILIES)
    assert calibrated.share_false == pytest.approx(0.3, abs=0.12)
    found = add_posteriors(evidence, pair[1], rows, calibrated, batch_size=7)
    mended = repair_captions(found)
    before, after = [], []
    for row, true in zip(mended, truth, strict=True):
        for name, hits in (("caption1_as_found", before), ("caption1", after)):
            words = find_words(row[name], FAMILIES)
            hits += [word.value == right for word, right in zip(words, true, strict=True)]
    assert np.mean(after) > np.mean(before) + 0.05
    for posterior in found["caption1_posterior"]:
        for one in posterior:
            assert sum(one["probabilities"]) == pytest.approx(1, abs=1e-5)
            assert one["words"][0] in COLOURS and len(set(one["words"])) == len(one["words"])
    with pytest.raises(DataError, match="already has caption1_posterior"):
        refuse_repaired(found.column_names)
    with pytest.raises(DataError, match="no caption names a value of the families thing"):
        calibrate_families(evidence, pair[1], rows.select(range(4)), {"thing": Family({"x": ("xx",), "y": ("yy",)})})


POSTERIOR = [
    {"start": 2, "end": 5, "words": ["red", "orange"], "probabilities": [0.3, 0.7]},
    {"start": 11, "end": 15, "words": ["coat", "gilet", "overcoat"], "probabilities": [0.5, 0.1, 0.4]},
]


@pytest.mark.parametrize(
    ("draws", "expected"),
    [
        (None, "An orange big coat"),
        ([0.0, 0.0], "A red big coat"),
        ([0.29, 0.55], "A red big gilet"),
        ([0.31, 0.999], "An orange big overcoat"),
    ],
)
def test_words_are_put_in_by_their_probability(draws, expected):
    posterior = [POSTERIOR[0], {**POSTERIOR[1], "start": 10, "end": 14}]
    assert repaired("A red big coat", posterior, draws) == expected


def test_articles_and_capitals_follow_the_word():
    posterior = [{"start": 0, "end": 4, "words": ["Navy", "orange"], "probabilities": [0.1, 0.9]}]
    assert repaired("Navy, a coat", posterior) == "Orange, a coat"
    posterior = [{"start": 3, "end": 9, "words": ["orange", "red"], "probabilities": [0.1, 0.9]}]
    assert repaired("an orange coat", posterior) == "a red coat"


def test_drawn_words_follow_seed_epoch_and_image_and_leave_the_rest_alone(pair):
    row = dict(tiny_rows(1)[0])
    words = row["caption1"].split()
    place = len(words[0]) + 1
    length = len(words[1])
    posterior = [{"start": place, "end": place + length, "words": [words[1], *COLOURS], "probabilities": [0.2] * 5}]
    rows = [
        {**row, "caption2": row["caption1"], "epoch": epoch, "caption1_posterior": posterior, "caption2_posterior": []}
        for epoch in range(40)
    ]
    rows = [{name: value for name, value in one.items() if not name.startswith("caption2")} for one in rows]
    drawing, plain = PairCollator(pair[1], draw_words=True), PairCollator(pair[1])
    first, again, other = drawing(rows), drawing(rows[::-1]), plain(rows)
    assert torch.equal(first["pixel_values"], other["pixel_values"])
    assert torch.equal(first["mask_uniforms"], other["mask_uniforms"])
    assert torch.equal(first["input_ids"], again["input_ids"].flip(0))
    said = [pair[1].tokenizer.decode(ids, skip_special_tokens=True) for ids in first["input_ids"]]
    assert len(set(said)) >= 4


def test_families_are_read_as_written_and_what_is_wrong_is_named(tmp_path):
    file = str(tmp_path / "families.json")
    write_families(drawn_families(), file)
    assert read_families(file) == drawn_families()
    for content, words in (
        ("{", "not families of words"),
        ('{"color": ["red"]}', "not families of words"),
        ('{"color": {"values": {"red": ["red"]}}}', "family color has 1 values"),
        ('{"color": {"values": {"red": ["red"], "rose": ["pink", "red"]}}}', "'red' stands for red and for rose"),
    ):
        (tmp_path / "families.json").write_text(content)
        with pytest.raises(DataError, match=words):
            read_families(file)


def test_plain_families_name_every_word_once():
    words = [word for family in plain_families().values() for value in family.values.values() for word in value]
    assert len(words) == len(set(words))
    assert set(words) == {word for values in WORDS.values() for value in values.values() for word in value}
    assert [(w.family, w.value) for w in find_words("Long dark hair, a dark blue t-shirt", plain_families())] == [
        ("hair.length", "long"),
        ("color", "navy"),
        ("top.garment", "t-shirt"),
    ]


def test_listed_words_count_where_there_are_some_whatever_their_truth():
    row = {"caption1": "a Red coat", "caption1_words": [{"start": 2, "end": 5, "attribute": "coat.color"}]}
    assert said_words(row, "caption1", drawn_families()) == [SaidWord(2, 5, "coat.color", "red")]
    assert [word.family for word in said_words({"caption1": "a Red coat"}, "caption1", plain_families())] == ["color"]
    assert json.dumps(datasets.Dataset.from_list([row])[0]["caption1_words"])  # as a data set gives them


@pytest.mark.parametrize(("mode", "added"), [("repair", 2), ("sample", 1), ("hide", 1)])
def test_splits_that_are_left_alone_get_the_columns_of_the_others(pair, learnt, mode, added):
    evidence, rows, _ = learnt
    rows = rows.select(range(64))
    families = {} if mode == "hide" else FAMILIES
    arguments = RepairArguments(output_dir="out", mode=mode, num_workers=0)
    change, _ = change_of(arguments, evidence, pair[1], rows, families)
    changed, alone = change(rows), with_same_columns(rows.select(range(3)), mode)
    assert len(alone.column_names) == len(rows.column_names) + added
    assert alone.features == changed.select_columns(alone.column_names).features
    assert alone["caption1"][:] == rows["caption1"][:3]


def test_repaired_captions_are_not_drawn_from_and_families_must_be_spoken_of():
    columns = ["image", "image_path", "caption1", "caption1_posterior", "caption1_as_found"]
    with pytest.raises(DataError, match="caption1 are repaired already"):
        refuse_missing_columns(columns, None, draw_words=True)
    refuse_missing_columns(columns[:-1], None, draw_words=True)
    with pytest.raises(DataError, match="lacks caption1_posterior; examples/repair_captions.py --mode sample"):
        refuse_missing_columns(columns[:3], None, draw_words=True)
    row = {"caption1": "a red coat", "caption1_words": [{"start": 2, "end": 5, "attribute": "coat.color"}]}
    with pytest.raises(DataError, match="the names of their attributes: coat.color"):
        refuse_unnamed(datasets.Dataset.from_list([row]), FAMILIES)
