"""What could be true in the place of a word: probabilities against slow arithmetic, and the captions that follow."""

import json
import math
import random
import re
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import COLOURS, tiny_model, tiny_processor, tiny_rows

from dataset_webperson import DataError
from dataset_webperson.drawn.attributes import WORDS
from modeling_gadms.noise.arguments import RepairArguments
from modeling_gadms.noise.changes import change_of
from modeling_gadms.noise.mentions import Mentions, mentioned_shares
from modeling_gadms.noise.repair_report import doubts, summarize, write_repair_page
from modeling_gadms.noise.repaired_captions import (
    FEATURE,
    add_posteriors,
    count_words,
    refuse_repaired,
    refuse_unnamed,
    refuse_untold,
    repair_captions,
    with_same_columns,
)
from modeling_gadms.noise.rewriting import as_cleaned, certain, repaired, repaired_with_places
from modeling_gadms.noise.value_reader import VERSIONS, ValueReader, calibrate, said_loss, train_value_reader
from modeling_gadms.noise.word_families import (
    Family,
    SaidWord,
    drawn_families,
    families_for,
    find_words,
    plain_families,
    read_families,
    said_words,
    write_families,
)
from modeling_gadms.noise.word_places import REACH, Places, SaidBatch, find_places
from modeling_gadms.tokenization_gadms import clean_caption
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
    rows, truth = noisy(tiny_rows(800).remove_columns("caption2"), 0.3)
    return train_value_reader(*pair, rows, FAMILIES, 150, 2e-3, batch_size=32, progress=False), rows, truth


THINGS = {
    "colour": Family({"red": ("red",), "green": ("green",), "blue": ("blue", "navy blue")}),
    "thing": Family({"coat": ("coat",), "shirt": ("shirt",)}),
}


def test_things_that_are_made_up_are_found_blindly():
    """A third of the images show the thing; 70 % of their captions name it, and 10 % of those of other images."""
    generator = torch.Generator().manual_seed(0)
    count, mentions = 20000, Mentions(4, 2)
    is_there = torch.rand(count, generator=generator) < 1 / 3
    rates = torch.where(is_there, 0.7, 0.1)
    named = torch.rand(count, 2, generator=generator) < rates[:, None]  # by two captions
    unsure = torch.randn(count, generator=generator) * 0.3
    logits = torch.stack([rates.logit() + unsure, torch.zeros(count)], dim=1)  # of the other, images say nothing
    shares = torch.stack([named.float().mean(dim=1), (torch.rand(count, generator=generator) < 0.5).float()], dim=1)
    assert (mentions.there(logits) == 1).all()  # until it is known how often things are made up
    mentions.anchor(logits, shares, 2)
    assert mentions.lowest.tolist() == pytest.approx([0.1, 0.0], abs=0.01) and mentions.lowest[1] == 0
    assert mentions.highest.tolist() == pytest.approx([0.7, 1.0], abs=0.03)
    there = mentions.there(logits)
    for one, logit in zip(there[:50], logits[:50].tolist(), strict=True):
        slow = (1 / (1 + math.exp(-logit[0])) - mentions.lowest[0].item()) / (mentions.highest - mentions.lowest)[
            0
        ].item()
        assert one.tolist() == pytest.approx([min(max(slow, 0.01), 1.0), 1.0], abs=1e-6)
    assert there[is_there, 0].mean() > 0.85 and there[~is_there, 0].mean() < 0.15
    often = torch.where(is_there, 0.75, 0.5)  # so often that those who do not name it may leave it out
    mentions.anchor(often.logit()[:, None].expand(-1, 2), (torch.rand(count, 2) < often[:, None]).float(), 1)
    assert mentions.lowest.tolist() == [0.0, 0.0]
    few = torch.tensor([[0.4], [1.0], [1.0], [1.0]]).expand(4, 2)  # images that say exactly how often they are named
    for copies, lowest in ((1, 0.0), (50, 0.4)):
        mentions.anchor(few.clamp(0.01, 0.99).logit().repeat(copies, 1), few.repeat(copies, 1), 2)
        assert mentions.lowest.tolist() == pytest.approx([lowest] * 2), "a few captions prove nothing"


def test_shares_of_captions_that_name_a_family_count_each_caption_once(pair, untaught):
    *_, captions, places = untaught
    batch = SaidBatch(
        torch.zeros(0), ["a", "b"], {name: [row[name] for row in captions] for name in captions[0]}, places
    )
    assert mentioned_shares(batch, 2).tolist() == [[1.0, 1.0], [0.5, 0.5]]


def test_mentions_have_the_slow_loss_and_gradient():
    torch.manual_seed(0)
    mentions, features = Mentions(3, 2), torch.randn(4, 3)
    shares = torch.tensor([[0.0, 0.5], [1.0, 0.5], [0.5, 0.0], [1.0, 1.0]])
    losses = mentions.loss(mentions(features), shares)
    slow = torch.zeros(())
    for row in range(4):
        for family in range(2):
            logit = (mentions.logits.weight[family] * features[row]).sum() + mentions.logits.bias[family]
            chance, share = 1 / (1 + (-logit).exp()), shares[row, family]
            own = -(share * chance.log() + (1 - share) * (1 - chance).log())
            assert losses[row, family].item() == pytest.approx(own.item(), abs=1e-5)
            slow = slow + own
    found, expected = (torch.autograd.grad(one, list(mentions.parameters())) for one in (losses.sum(), slow))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, expected, strict=True))


@pytest.fixture(scope="module")
def untaught(pair):
    """A reader with random weights, numbers of its own, and six words in three captions of two images."""
    torch.manual_seed(0)
    reader = ValueReader(pair[0], THINGS).eval()
    reader.frequency.copy_(torch.tensor([0.5, 0.3, 0.2, 0.6, 0.4]))
    reader.temperature.copy_(torch.tensor([1.5, 0.0]))
    reader.share_false.fill_(0.3)
    reader.image[2].running_mean.normal_()
    reader.image[2].running_var.uniform_(0.5, 2.0)
    captions = [
        {"caption1": "a red coat and a blue shirt", "caption2": "somebody in a navy blue coat"},
        {"caption1": "green, a shirt", "caption2": "nobody"},
    ]
    pixels = torch.randn(2, 3, 32, 16)
    return reader, pixels, captions, find_places(pair[1], captions, ["caption1", "caption2"], THINGS)


def test_words_are_found_with_the_tokens_around_them(pair, untaught):
    *_, captions, places = untaught
    found = [(row, name, word.family, word.value) for row, name, word in places.words]
    assert found == [
        (0, "caption1", "colour", "red"),
        (0, "caption1", "thing", "coat"),
        (0, "caption1", "colour", "blue"),
        (0, "caption1", "thing", "shirt"),
        (0, "caption2", "colour", "blue"),
        (0, "caption2", "thing", "coat"),
        (1, "caption1", "colour", "green"),
        (1, "caption1", "thing", "shirt"),
    ]
    assert places.rows.tolist() == [0] * 6 + [1] * 2
    assert places.families.tolist() == [0, 1] * 4 and places.said.tolist() == [0, 0, 2, 1, 2, 0, 1, 1]
    for (row, name, word), near in zip(places.words, places.near, strict=True):
        caption = captions[row][name]
        before = pair[1].tokenizer(caption[: word.start])["input_ids"][:-1]
        after = pair[1].tokenizer(caption[word.end :])["input_ids"][1:]
        assert near.tolist() == ([0] * REACH + before)[-REACH:] + (after + [0] * REACH)[:REACH]


def features_of(reader, pixels, row):
    """Features of one image, from the description: its patches side by side, normed by what was seen in training."""
    patches = reader.tower.project_image_tokens(reader.tower.vision_model(pixels[row : row + 1]).last_hidden_state)[0]
    _, layer, norm, *_ = reader.image
    line = layer.weight @ torch.cat([reader.patch(patch) for patch in patches]) + layer.bias
    line = (line - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    return line.clamp_min(0)


def of_one_word(reader, pixels, places, number):
    """Evidence of a word's values, from the description: versions of it, mixed by what the tokens around say."""
    row, family = int(places.rows[number]), int(places.families[number])
    answers = (reader.answer.weight @ features_of(reader, pixels, row) + reader.answer.bias).chunk(VERSIONS)
    embedding, *_, last = reader.version
    ids = [*places.near[number].tolist(), reader.vocabulary + family]
    shares = torch.softmax(last(torch.cat([embedding.weight[one] for one in ids])), dim=0)
    mixed = sum(share * answer for share, answer in zip(shares, answers, strict=True))
    return mixed[reader.firsts[family] : reader.firsts[family + 1]]


def expected_of_one_word(reader, places, number):
    """Probabilities of the values to be said between the tokens around the word."""
    embedding, _, *rest = reader.text
    family = places.families[number]
    tokens = [embedding.weight[token] for token in places.near[number]]
    logits = torch.cat([*tokens, embedding.weight[reader.vocabulary + family]])
    for layer in rest:
        logits = layer(logits)
    return torch.softmax(logits[reader.firsts[family] : reader.firsts[family + 1]], dim=0)


def says(reader, chances, true, said):
    """How likely a speaker says `said` where `true` is true."""
    share = reader.share_false
    return 1 - share if true == said else share * chances[said] / (1 - chances[true])


def test_answers_losses_and_gradients_are_those_of_one_word_at_a_time(untaught):
    reader, pixels, _, places = untaught
    found, log_expected = reader(pixels, places)[0], reader.expected(places)
    losses = said_loss(reader, found, places, log_expected)
    weights = torch.arange(1.0, len(losses) + 1)
    parameters = [*reader.head_parameters(), *reader.tower_parameters()]
    gradients = torch.autograd.grad((losses * weights).sum(), parameters, allow_unused=True)
    total = 0.0
    for number, (family, said) in enumerate(zip(places.families.tolist(), places.said.tolist(), strict=True)):
        evidence = of_one_word(reader, pixels, places, number)
        chances = expected_of_one_word(reader, places, number)
        own = slice(reader.firsts[family], reader.firsts[family + 1])
        assert torch.allclose(found[number, own], evidence, atol=1e-4)
        assert torch.allclose(log_expected[number].exp()[own], chances, atol=1e-5)
        true = torch.softmax(reader.temperature[family] * evidence + chances.log(), dim=0)
        likely = sum(true[value] * says(reader, chances, value, said) for value in range(len(true)))
        assert losses[number].item() == pytest.approx(-likely.log().item(), abs=1e-4)
        total = total - (number + 1) * likely.log()
    for one, slow in zip(gradients, torch.autograd.grad(total, parameters, allow_unused=True), strict=True):
        assert (one is None) == (slow is None)
        if one is not None:
            assert torch.allclose(one, slow, rtol=1e-3, atol=1e-4)


def test_an_answer_depends_on_no_other_word_or_image(untaught):
    reader, pixels, _, places = untaught
    with torch.no_grad():
        together, mention = reader(pixels, places)
        alone = Places(
            places.words[6:7], places.rows[:1], *(getattr(places, n)[6:7] for n in ("families", "said", "near"))
        )
        evidence, own_mention = reader(pixels[1:], alone)
        assert torch.allclose(evidence, together[6:7], atol=1e-5)
        assert torch.allclose(own_mention, mention[1:], atol=1e-5)
        none = Places([], *(getattr(places, name)[:0] for name in ("rows", "families", "said", "near")))
        assert reader(pixels, none)[0].shape == (0, 5) and reader.probabilities(pixels, none) == []


def test_what_is_true_follows_by_bayes_rule_and_unshown_families_keep_their_words(untaught):
    reader, pixels, _, places = untaught
    found = reader.probabilities(pixels, places)
    for number, (family, said) in enumerate(zip(places.families.tolist(), places.said.tolist(), strict=True)):
        frequency = reader.frequency[reader.firsts[family] : reader.firsts[family + 1]].tolist()
        if family == 1:  # temperature 0
            expected = [0.3 * share / (1 - frequency[said]) for share in frequency]
            expected[said] = 0.7
        else:
            with torch.no_grad():
                evidence = of_one_word(reader, pixels, places, number).tolist()
            shown = [f * math.exp(1.5 * nats) for nats, f in zip(evidence, frequency, strict=True)]
            joint = [p * float(says(reader, frequency, true, said)) for true, p in enumerate(shown)]
            expected = [p / sum(joint) for p in joint]
        assert found[number].tolist() == pytest.approx([*expected, 0.0], abs=1e-5)
    lowest, highest = torch.tensor([0.2, 0.1]), torch.tensor([0.7, 0.9])
    reader.mentions.lowest.copy_(lowest)
    reader.mentions.highest.copy_(highest)
    with torch.no_grad():
        mention = reader(pixels, places)[1]
    for number, (family, said) in enumerate(zip(places.families.tolist(), places.said.tolist(), strict=True)):
        frequency = reader.frequency[reader.firsts[family] : reader.firsts[family + 1]].tolist()
        named = torch.sigmoid(mention[places.rows[number], family]).item()
        low, high = lowest[family].item(), highest[family].item()
        there = min(max((named - low) / (high - low), 0.01), 1.0)
        assert 0.01 < there < 1
        if family == 1:
            says_it = frequency[said]
        else:
            with torch.no_grad():
                evidence = of_one_word(reader, pixels, places, number).tolist()
            shown = [f * math.exp(1.5 * nats) for nats, f in zip(evidence, frequency, strict=True)]
            parts = [p / sum(shown) * float(says(reader, frequency, t, said)) for t, p in enumerate(shown)]
            says_it = sum(parts)
        absent = (1 - there) * low * frequency[said]
        absent /= absent + there * high * says_it
        before, now = found[number], reader.probabilities(pixels, places)[number]
        assert now[-1] == pytest.approx(absent, abs=1e-5)
        assert now[:-1].tolist() == pytest.approx((before[:-1] * (1 - absent)).tolist(), abs=1e-5)
    reader.mentions.lowest.zero_()
    reader.mentions.highest.fill_(1.0)
    reader.share_false.fill_(0.8)  # more false than true: the word of an unshown family still stays the likeliest
    assert reader.probabilities(pixels, places)[1][0] == pytest.approx(0.51)
    reader.share_false.fill_(0.3)


def test_temperatures_and_the_share_of_false_words_are_found_blindly(pair):
    """Of one family the answers are twice too timid, of the other they say little; 25 % of the words are false."""
    generator = torch.Generator().manual_seed(0)
    count = 20000
    reader = ValueReader(pair[0], THINGS).eval()
    reader.frequency.copy_(torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.5, 0.5]))
    families = torch.arange(count) % 2
    sizes = torch.tensor([3, 2])[families]
    log_true = torch.randn(count, 5, generator=generator) * 8
    log_true = log_true.masked_fill(reader.owner != families[:, None], -1e9).log_softmax(dim=1)
    true = torch.multinomial(log_true.exp(), 1, generator=generator)[:, 0] - 3 * families
    weak = log_true[:, 3:].argmax(dim=1) ^ (torch.rand(count, generator=generator) < 0.36)
    true = torch.where(families == 1, weak, true)
    wrong = (true + torch.randint(1, 3, (count,), generator=generator)) % sizes
    wrong = torch.where((families == 1) | (wrong == true), (true + 1) % sizes, wrong)
    is_false = torch.rand(count, generator=generator) < 0.25
    said = torch.where(is_false, wrong, true)
    others = reader.owner != families[:, None]
    timid = (log_true / 2).masked_fill(others, -1e9)
    reader.forward = lambda pixel_values, places: (timid[places.rows], torch.zeros(count, 2))
    reader.expected = lambda places: reader.often(places)  # the tokens around the words say nothing
    words = [(n, "caption1", SaidWord(0, 1, "", "")) for n in range(count)]
    places = Places(words, torch.arange(count), families, said, torch.zeros(count, 2 * REACH, dtype=torch.int64))
    batch = SaidBatch(torch.zeros(0), [""] * count, {"caption1": [""] * count}, places)
    calibrate(reader, [batch], torch.device("cpu"))
    assert reader.temperature.tolist() == pytest.approx([2.0, 0.0], abs=0.3) and reader.temperature[1] == 0
    assert reader.share_false.item() == pytest.approx(0.25, abs=0.03)
    true = reader.probabilities(torch.zeros(0), places)
    doubts = torch.tensor([1 - row[word] for row, word in zip(true, said.tolist(), strict=True)])[families == 0]
    # of the words that are false with probability p, a share p is
    for low, high in ((0.0, 0.1), (0.9, 1.0)):
        inside = (doubts >= low) & (doubts <= high)
        share = is_false[families == 0][inside].float().mean().item()
        assert inside.sum() > 300 and doubts[inside].mean().item() == pytest.approx(share, abs=0.06)


def test_a_few_words_do_not_prove_that_images_show_a_family(pair):
    reader, count = ValueReader(pair[0], THINGS).eval(), 12
    reader.frequency.copy_(torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.5, 0.5]))
    families = torch.zeros(count, dtype=torch.int64)
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(count, 5, generator=generator).masked_fill(reader.owner != 0, -1e9)
        said = torch.randint(0, 3, (count,), generator=generator)
        words = [(n, "caption1", SaidWord(0, 1, "", "")) for n in range(count)]
        places = Places(words, torch.arange(count), families, said, torch.zeros(count, 2 * REACH, dtype=torch.int64))
        reader.forward = lambda pixel_values, places, noise=noise: (noise, torch.zeros(count, 2))
        reader.expected = lambda places: reader.often(places)
        batch = SaidBatch(torch.zeros(0), [""] * count, {"caption1": [""] * count}, places)
        calibrate(reader, [batch], torch.device("cpu"))
        assert reader.temperature.tolist() == [0.0, 0.0], seed


def test_false_colours_are_found_and_mended(pair, learnt):
    reader, rows, truth = learnt
    assert reader.share_false.item() == pytest.approx(0.3, abs=0.12)
    vocabulary = count_words(rows, FAMILIES)
    found = add_posteriors(reader, pair[1], rows, vocabulary, batch_size=7)
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


def test_learning_repeats_from_its_seed_and_leaves_model_and_generator_alone(pair):
    rows = tiny_rows(40)
    before = {name: value.clone() for name, value in pair[0].state_dict().items()}
    state = torch.get_rng_state()
    first, again, other = (
        train_value_reader(*pair, rows, FAMILIES, 3, 1e-3, batch_size=16, seed=seed, progress=False).state_dict()
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in pair[0].state_dict().items())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    with pytest.raises(DataError, match="40 rows do not fill one batch of 64 beside those held out"):
        train_value_reader(*pair, rows, FAMILIES, 3, 1e-3, progress=False)
    with pytest.raises(DataError, match="no caption of the rows held out names a value"):
        nothing = {"thing": Family({"x": ("xx",), "y": ("yy",)})}
        train_value_reader(*pair, rows, nothing, 3, 1e-3, batch_size=16, progress=False)


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


def test_the_page_says_how_likely_a_word_is_true_where_nothing_may_be_there():
    row = {"caption1_posterior": [{**POSTERIOR[0], "absent": 0.4}, POSTERIOR[1]]}
    assert list(doubts(row, "caption1")) == [(2, 5, "orange", pytest.approx(0.42))]


def test_articles_and_capitals_follow_the_word():
    posterior = [{"start": 0, "end": 4, "words": ["Navy", "orange"], "probabilities": [0.1, 0.9]}]
    assert repaired("Navy, a coat", posterior) == "Orange, a coat"
    posterior = [{"start": 3, "end": 9, "words": ["orange", "red"], "probabilities": [0.1, 0.9]}]
    assert repaired("an orange coat", posterior) == "a red coat"
    assert repaired("AN ORANGE COAT", posterior) == "A RED COAT"
    for said, word, text in (
        ("A RED COAT", "orange", "AN ORANGE COAT"),
        ("A Red coat", "orange", "An Orange coat"),
        ("a red dress", "one-piece", "a one-piece dress"),
        ("a red dress", "uniform", "a uniform dress"),
        ("a red dress", "unironed", "an unironed dress"),
        ("a red dress", "ochre", "an ochre dress"),
    ):
        assert repaired(said, [certain(2, 5, word)]) == text
    assert repaired_with_places("A RED COAT", [certain(2, 5, "wei\u00df"), certain(6, 10, "hat")])[1] == [
        (2, 6),
        (7, 10),
    ]


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
        ('{"color": {"values": {"red": "red", "rose": "pink"}}}', "'red' is no list of words"),
        ('{"color": {"values": {"red": [], "rose": ["pink"]}}}', "family color: 'red' has no word, or an empty one"),
        ('{"color": {"values": {"red": ["red", " "], "rose": ["pink"]}}}', "'red' has no word, or an empty one"),
        ('{"color": {"values": {"red": [7], "rose": ["pink"]}}}', "7. is no list of words"),
        ('{"color": {"values": {"red": ["red"], "red": ["scarlet"], "blue": ["blue"]}}}', "'red' stands twice in one"),
        ('{"a": {"values": {"b": ["b"], "c": ["c"]}}, "a": {"values": {}}}', "'a' stands twice in one place; join"),
        ('{"color": {"values": {"red": ["red"], "rose": ["pink"]}, "before": ["hair", " "]}}', "before has an empty"),
        ('{"color": {"values": {"red": ["red"], "rose": ["pink"]}, "before": "hair"}}', "'hair' is no list of words"),
        ('{"a":' * 100_000, "not families of words"),
        (
            '{"color": {"values": {"red": ["red"], "rose": ["pink"]}, "befor": ["hair"]}}',
            "unexpected keyword.*'befor'",
        ),
        ("{}", "names no family"),
    ):
        (tmp_path / "families.json").write_text(content)
        with pytest.raises(DataError, match=words):
            read_families(file)
    (tmp_path / "families.json").write_text('{"color": {"values": {"red": [" Dark  RED "], "rose": ["pink"]}}}')
    assert read_families(file)["color"].values["red"] == ("dark red",)  # as captions are cleaned
    write_families(plain_families(), file)
    assert read_families(file) == plain_families() and read_families(file)["hair.color"].before == ("hair", "ponytail")


def test_letters_that_have_another_length_in_lower_case_move_no_word():
    families = {"color": Family({"red": ("red",), "silver": ("silver",)})}
    assert [(w.start, w.end, w.value) for w in find_words("\u0130 Red \u017filver silver", families)] == [
        (2, 5, "red"),
        (13, 19, "silver"),
    ]
    caption = "\u0130stanbul on a red coat"
    [word] = find_words(clean_caption(caption), families)
    row = {"caption1": caption, "caption1_posterior": [certain(word.start, word.end, "orange")]}
    mended = repair_captions(datasets.Dataset.from_list([row]))[0]["caption1"]
    assert mended == clean_caption(caption).replace("a red", "an orange")


def test_plain_families_name_every_word_and_hair_s_alone_twice():
    families = plain_families()
    counts = Counter(word for family in families.values() for word in family.value_of)
    assert set(counts) == {word for values in WORDS.values() for value in values.values() for word in value}
    of_hair = {word for name in ("hair.color", "hair.length") for word in families[name].value_of}
    assert {word for word, count in counts.items() if count > 1} <= of_hair and max(counts.values()) == 2
    assert not {"brunette", "fair", "golden", "silver", "ginger"} & set(families["color"].value_of)


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("Long dark hair, a dark blue t-shirt", "hair.length long, color navy, top.garment t-shirt"),
        ("black hair in a red ponytail, red hat", "hair.color black, hair.color ginger, color red"),
        ("short sleeves, long trousers and fair skin", "lower.garment trousers"),
        ("a golden watch, a silver belt", ""),
        ("a red coat, black hair", "color red, hair.color black"),
        ("in black with long hair", "color black, hair.length long"),
        ("short curly dark brown hair", "hair.color brown"),  # three words between are too many
        ("a bald head, a shaved man", "hair.length bald, person.gender man"),
        ("a long hairless coat", ""),
        ("black and silver hair", "hair.color black, hair.color grey"),
        ("black (long) hair", "color black"),
        ("short, black hair", "hair.length short, hair.color black"),
        ("in black, long hair", "color black, hair.length long"),
        ("long, dark, brown hair", "hair.color brown"),
        ("grey/black hair", "hair.color grey, hair.color black"),
        ("bright red hair, a bright red coat", "hair.color ginger, color red"),
        ("a man in black whose hair is short", "person.gender man, color black"),
    ],
)
def test_what_is_said_of_hair_is_known_by_its_noun(caption, found):
    said = find_words(caption, plain_families())
    assert ", ".join(f"{word.family} {word.value}" for word in said) == found


def test_a_word_of_two_families_is_of_the_one_whose_noun_follows():
    plain, hair = Family({"red": ("red",), "tan": ("tan",)}), Family({"red": ("red",), "fair": ("fair",)}, ("hair",))
    for families in ({"plain": plain, "hair": hair}, {"hair": hair, "plain": plain}):
        said = [(word.start, word.family) for word in find_words("red hair, red hat, fair hat", families)]
        assert said == [(0, "hair"), (10, "plain")]


def test_a_longer_word_that_is_not_meant_hides_no_shorter_one():
    hair = Family({"dark": ("dark brown",), "light": ("light blond",)}, ("hair",))
    families = {"hair": hair, "color": Family({"brown": ("brown",), "red": ("red",)})}
    shade = {"shade": Family({"dark": ("dark",), "pale": ("pale",)})}
    caption = "a dark brown coat, a red bag, dark brown hair"
    said = [caption[word.start : word.end] for word in find_words(caption, families)]
    assert said == ["brown", "red", "dark brown"]
    said = [(word.family, caption[word.start : word.end]) for word in find_words(caption, families | shade)]
    assert said == [("shade", "dark"), ("color", "brown"), ("color", "red"), ("hair", "dark brown")]


def test_words_that_captions_do_not_use_are_put_in_where_they_use_none():
    families = {"color": Family({"red": ("red", "bright red"), "blue": ("blue", "azure")})}
    vocabulary = count_words(datasets.Dataset.from_dict({"caption1": ["a red coat"]}), families)
    assert {vocabulary.spoken("color", "red", f"{n}") for n in range(50)} == {"red"}
    assert {vocabulary.spoken("color", "blue", f"{n}") for n in range(50)} == {"blue", "azure"}


@pytest.mark.parametrize("told", ["[1]", "red", "7"])
def test_attributes_that_tell_nothing_are_refused_before_anything_is_learnt(told):
    row = {"image_path": "a.png", "caption1": "A red coat", "attributes": told, "caption1_false_spans": [[2, 5]]}
    row["caption1_words"] = [{"start": 2, "end": 5, "attribute": "coat.color", "is_false": True}]
    with pytest.raises(DataError, match=re.escape(f"a.png: attributes: {told!r} is no JSON of an object; write")):
        refuse_untold(datasets.Dataset.from_list([row]))
    refuse_untold(datasets.Dataset.from_list([{**row, "attributes": None}]))
    refuse_untold(datasets.Dataset.from_list([row]).remove_columns("caption1_words"))  # nothing is judged by it


def test_the_page_shows_the_first_doubted_words_of_all_files_with_the_capitals_of_the_data(tmp_path, monkeypatch):
    pages = []
    monkeypatch.setattr("modeling_gadms.noise.repair_report.write_page", lambda *given, **parts: pages.append(parts))
    files = []
    for number, colour in enumerate(("red", "Red")):
        posterior = [certain(2, 5, "orange")] if number else []
        row = {"image": Image.new("RGB", (8, 16)), "image_path": "a", "caption1": f"A {colour} coat"}
        files.append(str(tmp_path / f"{number}.parquet"))
        made = datasets.Dataset.from_list([row]).add_column("caption1_posterior", [posterior], feature=FEATURE)
        made.cast_column("image", datasets.Image()).to_parquet(files[-1])
    write_repair_page("page.html", files, {})
    ((one,),) = [part["shown"] for part in pages]
    assert [(piece["text"], piece["word"]) for piece in one["captions"][0] if piece["doubted"]] == [("Red", "Orange")]


def test_captions_that_are_cleaned_keep_their_capitals():
    caption = "A Woman with RED  shoes &amp; a blue coat"
    tidy = "A Woman with RED shoes & a blue coat"
    assert as_cleaned(caption) == tidy == as_cleaned(tidy) and tidy.lower() == clean_caption(caption)
    place = tidy.index("blue")
    row = {"caption1": caption, "caption1_posterior": [certain(place, place + 4, "orange")]}
    mended = repair_captions(datasets.Dataset.from_list([row]))[0]
    assert mended["caption1"] == "A Woman with RED shoes & an orange coat" and mended["caption1_as_found"] == caption
    place = tidy.index("RED")
    row["caption1_posterior"] = [certain(place, place + 3, "pink")]
    assert repair_captions(datasets.Dataset.from_list([row]))[0]["caption1"] == tidy.replace("RED", "PINK")


def test_listed_words_count_where_there_are_some_whatever_their_truth():
    row = {"caption1": "a Red coat", "caption1_words": [{"start": 2, "end": 5, "attribute": "coat.color"}]}
    assert said_words(row, "caption1", drawn_families()) == [SaidWord(2, 5, "coat.color", "red")]
    assert [word.family for word in said_words({"caption1": "a Red coat"}, "caption1", plain_families())] == ["color"]
    assert json.dumps(datasets.Dataset.from_list([row])[0]["caption1_words"])  # as a data set gives them


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tower_learning_rate": -1.0}, "tower_learning_rate must be a number, and not negative; got -1.0"),
        ({"tower_learning_rate": math.nan}, "tower_learning_rate must be a number, and not negative; got nan"),
        ({"tower_learning_rate": math.inf}, "tower_learning_rate must be a number"),
        ({"threshold": math.nan}, "threshold must be above 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RepairArguments(output_dir="out", **options)


@pytest.mark.parametrize(("mode", "added"), [("repair", 2), ("sample", 1), ("hide", 1)])
def test_splits_that_are_left_alone_get_the_columns_of_the_others(pair, tmp_path, mode, added):
    rows, families = tiny_rows(64).remove_columns("caption2"), {} if mode == "hide" else FAMILIES
    arguments = RepairArguments(output_dir="out", mode=mode, steps=2, batch_size=32, num_workers=0)
    file = str(tmp_path / "learnt.safetensors")
    change, estimated = change_of(arguments, *pair, rows, families, file)
    assert estimated == ({} if mode == "hide" else {"families_shown": []})  # two steps teach nothing
    changed, alone = change(rows), with_same_columns(rows.select(range(3)), mode)
    assert len(alone.column_names) == len(rows.column_names) + added
    assert alone.features == changed.select_columns(alone.column_names).features
    assert alone["caption1"][:] == rows["caption1"][:3]
    if mode != "hide":  # so no word is doubted
        assert changed["caption1"][:] == rows["caption1"][:]
        listed = changed["caption1_as_found_posterior" if mode == "repair" else "caption1_posterior"]
        assert all(len(one["words"]) == 1 for found in listed for one in found)
    again, _ = change_of(arguments, *pair, rows, families, file)  # what was learnt is read from its file
    assert again(rows).remove_columns("image").to_list() == changed.remove_columns("image").to_list()
    if mode == "repair":
        values = FAMILIES["color"].values
        turned = {"color": Family(dict(reversed(values.items())))}  # as many answers, of other values
        for others, place in ((THINGS, "colour of"), (turned, "color of"), ({"hue": FAMILIES["color"]}, "hue of")):
            with pytest.raises(
                DataError, match=f"learnt.safetensors: learnt for the family color of .*, in .* {place}"
            ):
                change_of(arguments, *pair, rows, others, file)
        with pytest.raises(
            DataError, match="learnt for nothing, in whose place the family thing of coat, shirt is given"
        ):
            change_of(arguments, *pair, rows, {**FAMILIES, "thing": THINGS["thing"]}, file)
        richer = {"color": Family({value: (*words, f"{value}ish") for value, words in values.items()})}
        change_of(arguments, *pair, rows, richer, file)  # more words for the same values are no other values
        (tmp_path / "learnt.safetensors").write_bytes(b"cut off")
        with pytest.raises(DataError, match="learnt.safetensors: broken, or not learnt from this model and for these"):
            change_of(arguments, *pair, rows, FAMILIES, file)


def test_repaired_captions_are_not_drawn_from_and_families_must_be_spoken_of():
    columns = ["image", "image_path", "caption1", "caption1_posterior", "caption1_as_found"]
    with pytest.raises(DataError, match="caption1 are repaired already"):
        refuse_missing_columns(columns, None, draw_words=True)
    refuse_missing_columns(columns[:-1], None, draw_words=True)
    with pytest.raises(DataError, match="lacks caption1_posterior; examples/repair_captions.py --mode sample"):
        refuse_missing_columns(columns[:3], None, draw_words=True)
    row = {"caption1": "a red coat", "caption1_words": [{"start": 2, "end": 5, "attribute": "coat.color"}]}
    rows = datasets.Dataset.from_list([row])
    refuse_unnamed(rows, FAMILIES)  # they have names of their own: the caption is searched
    refuse_unnamed(rows, {"coat.color": FAMILIES["color"]})
    with pytest.raises(DataError, match="no caption names a value of the families bag.color: give families"):
        refuse_unnamed(rows, {"bag.color": FAMILIES["color"]})


def test_places_of_repaired_words_are_where_the_words_stand():
    rng, words = random.Random(0), ["red", "orange", "navy blue", "olive"]
    for _ in range(50):
        pieces, posterior, expected = ["A person"], [], []
        for _ in range(rng.randint(0, 4)):
            text = "".join(pieces) + rng.choice([" wearing a ", " with ", ", an "])
            said, other = rng.choice(words), rng.choice(words)
            pieces = [text + said, " coat"]
            posterior.append({"start": len(text), "end": len(text) + len(said), "words": [said, other]})
            posterior[-1]["probabilities"] = [0.3, 0.7] if rng.random() < 0.5 else [0.7, 0.3]
            expected.append(other if posterior[-1]["probabilities"][0] < 0.5 else said)
        text, places = repaired_with_places("".join(pieces), posterior)
        assert [text[start:end] for start, end in places] == expected
        assert text == repaired("".join(pieces), posterior)
        rest, so_far = text, []
        for start, end in reversed(places):
            rest, so_far = rest[:start] + "_" + rest[end:], [rest[start:end], *so_far]
        plain = "".join(pieces)
        for one in reversed(posterior):
            plain = plain[: one["start"]] + "_" + plain[one["end"] :]
        assert rest.replace(" an _", " a _") == plain.replace(" an _", " a _")


def drawn_row(caption, words, truth, posterior):
    spans = [[word["start"], word["end"]] for word in words if word["is_false"]]
    told = {"caption1_words": words, "caption1_false_spans": spans, "caption1_posterior": posterior}
    return {"caption1": caption, "attributes": json.dumps(truth), **told}


def test_listed_words_of_repaired_captions_say_where_they_stand_and_whether_they_are_false_now():
    def word(start, end, attribute, is_false):
        return {"start": start, "end": end, "attribute": attribute, "is_false": is_false}

    words = [word(2, 5, "coat.color", True), word(19, 23, "shoes.color", True), word(24, 32, "shoes.kind", False)]
    posterior = [certain(2, 5, "orange"), certain(24, 32, "boots")]  # one rightly, one wrongly
    truth = {"coat.color": "orange", "shoes.color": "red", "shoes.kind": "sneakers"}
    row = drawn_row("A red coat and two blue sneakers", words, truth, posterior)
    mended = repair_captions(datasets.Dataset.from_list([row]))[0]
    assert mended["caption1"] == "An orange coat and two blue boots"
    assert [mended["caption1"][one["start"] : one["end"]] for one in mended["caption1_words"]] == [
        "orange",
        "blue",
        "boots",
    ]
    assert [one["is_false"] for one in mended["caption1_words"]] == [False, True, True]
    assert mended["caption1_false_spans"] == [[23, 27], [28, 33]]
    assert mended["caption1_as_found"] == row["caption1"] and mended["caption1_as_found_words"] == words
    assert mended["caption1_as_found_false_spans"] == [[2, 5], [19, 23]]
    assert mended["caption1_as_found_posterior"] == posterior
    assert "caption1_posterior" not in mended  # its places are those of the old caption

    for told in ({}, {"coat.color": "orange"}):  # what is changed there is neither true nor false for all we know
        unknown = drawn_row(row["caption1"], [{**words[2], "attribute": "feet"}], told, posterior)
        [listed] = repair_captions(datasets.Dataset.from_list([unknown]))[0]["caption1_words"]
        assert (listed["start"], listed["end"], listed["is_false"]) == (28, 33, None)
    for column in ("attributes", "caption1_false_spans"):  # as of photographs, whose truth nobody tells
        found = repair_captions(datasets.Dataset.from_list([row]).remove_columns(column))[0]
        assert found["caption1"] == mended["caption1"] and "caption1_words" not in found
        assert found["caption1_as_found_words"] == words


def test_what_stays_false_is_counted_where_it_is_told(tmp_path):
    words = [{"start": 2, "end": 5, "attribute": "coat.color", "is_false": True}]
    for truth, share in (({"coat.color": "orange"}, 0.0), ({"coat.color": "red"}, 6 / 14), ({}, None)):
        row = drawn_row("A tan coat", words, truth, [certain(2, 5, "orange")])
        file = str(tmp_path / "train.parquet")
        repair_captions(datasets.Dataset.from_list([row])).to_parquet(file)
        found = summarize([file])
        assert found.get("still_false") == (None if share is None else pytest.approx(share))
        assert found["recall"] == 1 and found["most_doubted"] == {"tan > orange": 1}
    repair_captions(datasets.Dataset.from_list([row]).remove_columns("attributes")).to_parquet(file)
    found = summarize([file])
    assert found["false"] == 3 / 10 and "still_false" not in found


def test_what_is_judged_may_be_more_or_less_than_a_listed_word():
    """As by families that were found in the captions."""
    caption, truth = "A man wearing a navy blue coat", {"coat.color": "blue", "coat.garment": "coat"}
    words = [{"start": 16, "end": 25, "attribute": "coat.color", "is_false": True}]
    for posterior, text, said, is_false in (
        ([certain(6, 13, "carrying")], "A man carrying a navy blue coat", "navy blue", True),
        ([certain(16, 20, "royal")], "A man wearing a royal blue coat", "royal blue", False),
        ([certain(21, 25, "black")], "A man wearing a navy black coat", "navy black", True),
        ([certain(16, 20, "dark"), certain(21, 25, "red")], "A man wearing a dark red coat", "dark red", True),
        ([certain(16, 30, "orange shirt")], "A man wearing an orange shirt", "orange shirt", True),
        ([certain(2, 5, "woman"), certain(21, 25, "blue")], "A woman wearing a navy blue coat", "navy blue", True),
    ):
        mended = repair_captions(datasets.Dataset.from_list([drawn_row(caption, words, truth, posterior)]))[0]
        [listed] = mended["caption1_words"]
        assert mended["caption1"] == text and text[listed["start"] : listed["end"]] == said
        assert listed["is_false"] is is_false
        assert mended["caption1_false_spans"] == ([[listed["start"], listed["end"]]] if is_false else [])


def test_what_a_construction_says_of_a_caption_stays_with_the_old_one():
    columns = {
        "caption1": "A red coat",
        "caption1_words": [{"start": 2, "end": 5, "kind": "color", "score": -0.1}],
        "caption1_score": 0.4,
        "caption1_word_score": 0.0,
        "caption1_posterior": [certain(2, 5, "blue")],
    }
    families = families_for(list(columns))
    assert "color" in families  # those of captions whose words are not listed with attributes
    assert [(one.family, one.value) for one in said_words(columns, "caption1", families)][:1] == [("color", "red")]
    mended = repair_captions(datasets.Dataset.from_list([columns]))[0]
    assert mended["caption1"] == "A blue coat" and mended["caption1_as_found"] == "A red coat"
    assert (mended["caption1_as_found_score"], mended["caption1_as_found_word_score"]) == (0.4, 0.0)
    assert mended["caption1_as_found_words"] == columns["caption1_words"]
    assert not {"caption1_words", "caption1_score", "caption1_word_score"} & set(mended)


def test_words_that_images_do_not_show_are_not_listed(pair, untaught):
    reader, _, captions, places = untaught
    rows = tiny_rows(2).remove_columns(["caption1", "caption2"])
    for name in ("caption1", "caption2"):
        rows = rows.add_column(name, [row[name] for row in captions])
    found = add_posteriors(reader, pair[1], rows, count_words(rows, THINGS))
    listed = [one["family"] for name in ("caption1", "caption2") for row in found[f"{name}_posterior"] for one in row]
    said = [word.family for *_, word in places.words]
    assert listed == ["colour"] * said.count("colour") and "thing" in said
    assert reader.shown(THINGS) == ["colour"]
