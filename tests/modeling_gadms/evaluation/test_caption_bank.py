"""Scores normalised by a bank of captions against slow twins that follow the papers' formulas pair by pair."""

import math

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_processor, tiny_rows

from modeling_gadms.evaluation import caption_bank as module
from modeling_gadms.evaluation.caption_bank import (
    BANK_SCORINGS,
    NNN,
    PHRASINGS_NNN,
    BankSettings,
    CaptionBank,
    bank_scores,
    cached_gallery_bias,
    caption_bank,
    gallery_bias,
    plain_words,
    rescore_by_bank,
)
from modeling_gadms.evaluation.embedding_cache import cached_retrieval_set
from modeling_gadms.evaluation.encoding import RetrievalSet, encode_captions
from modeling_gadms.evaluation.rescoring import rank_scores, refusal
from modeling_gadms.person_retrieval.ranking import rank_queries


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def cosine(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def slow_scores(scoring, texts, images, bank, settings):
    """`(M, N)` lists: each query against each image, from the definitions."""
    texts, images, bank = (embeds.double().tolist() for embeds in (texts, images, bank))
    best_of_bank = {max(range(len(images)), key=lambda r: cosine(b, images[r])) for b in bank}
    rows = []
    for query in texts:
        s = [cosine(query, image) for image in images]
        nnn, softmax = [], []
        for r, image in enumerate(images):
            of_bank = sorted((cosine(b, image) for b in bank), reverse=True)
            k = min(settings.neighbours, len(bank))
            nnn.append(s[r] - settings.alpha * math.fsum(of_bank[:k]) / k)
            softmax.append(math.exp(settings.beta * s[r]) / math.fsum(math.exp(settings.beta * b) for b in of_bank))
        dynamic = softmax if s.index(max(s)) in best_of_bank else s
        rows.append({"nnn": nnn, "inverted-softmax": softmax, "query-bank": dynamic}[scoring])
    return rows


@pytest.mark.parametrize("scoring", BANK_SCORINGS)
@pytest.mark.parametrize("settings", [BankSettings(0.75, 3, 5.0), BankSettings(0.5, 100, 20.0)])
def test_scores_are_those_of_the_formulas(scoring, settings, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)
    # few captions in the bank, so that some queries have a best image that none of these has
    texts, images, bank = unit(12, 6, seed=1), unit(9, 6, seed=2), unit(7, 6, seed=3)
    bias = gallery_bias(bank, images, settings, progress=False)
    assert 0 < bias.is_found.sum() < len(images)
    score_rows = bank_scores(scoring, texts, images, bias, settings)
    fast = torch.cat([torch.from_numpy(score_rows(a, b)) for a, b in ((0, 5), (5, 12))])
    slow = torch.tensor(slow_scores(scoring, texts, images, bank, settings), dtype=torch.float64)
    if scoring == "nnn":
        torch.testing.assert_close(fast, slow, atol=1e-12, rtol=0)
    elif scoring == "inverted-softmax":
        torch.testing.assert_close(fast.exp(), slow)
    else:  # some queries are normalised, the others are not
        by_hub = bias.is_found[(texts.double() @ images.double().T).argmax(dim=1)]
        assert 0 < by_hub.sum() < len(texts)
        torch.testing.assert_close(torch.where(by_hub[:, None], fast.exp(), fast), slow)


def test_half_of_the_mean_ranks_as_csls_with_the_bank():
    """CSLS is 2 s(q, r), less the mean of the k images nearest to q and of the k captions nearest to r."""
    texts, images, bank = unit(8, 6, seed=1), unit(9, 6, seed=2), unit(20, 6, seed=3)
    settings = BankSettings(0.5, 4)
    fast = bank_scores("nnn", texts, images, gallery_bias(bank, images, settings, progress=False), settings)(0, 8)
    s = texts @ images.T
    csls = 2 * s - s.topk(4, dim=1).values.mean(dim=1, keepdim=True) - (images @ bank.T).topk(4).values.mean(dim=1)
    assert torch.equal(torch.from_numpy(fast).argsort(dim=1), csls.argsort(dim=1))


def hub_set():
    """Captions and images of 60 persons, who have one direction in common; images have more or less of it."""
    persons, common = torch.arange(60), 0.3 * unit(1, 16, seed=9) * 16**0.5
    captions = 1.5 * unit(460, 16, seed=1) + common  # those beyond 60 are a bank
    noise = 1.3 * unit(60, 16, seed=2)
    images = captions[:60] + noise + torch.linspace(-1, 1, 60)[:, None] * common
    normalize = torch.nn.functional.normalize
    encoded = RetrievalSet(normalize(images, dim=-1), normalize(captions[:60], dim=-1), persons, persons, persons)
    return encoded, normalize(captions[60:], dim=-1)


def test_images_near_to_everything_are_found_less_often():
    encoded, bank = hub_set()
    settings = BankSettings(0.75, 16)
    bias = gallery_bias(bank, encoded.image_embeds, settings, progress=False)
    plain = rank_queries(encoded.text_embeds, encoded.image_embeds, encoded.text_person_ids, encoded.image_person_ids)
    for scoring in BANK_SCORINGS:
        ranks = rescore_by_bank(scoring, encoded, bias, settings, progress=False)
        assert ranks.average_precision.mean() > plain.average_precision.mean() + 0.1, scoring


def test_nothing_subtracted_is_the_plain_ranking():
    (encoded, bank), settings = hub_set(), BankSettings(alpha=0)
    bias = gallery_bias(bank, encoded.image_embeds, settings, progress=False)
    found = rescore_by_bank("nnn", encoded, bias, settings, progress=False)
    cosines = (encoded.text_embeds.double() @ encoded.image_embeds.double().T).numpy()
    persons = encoded.text_person_ids
    plain = rank_scores(lambda a, b: cosines[a:b], persons, persons, progress=False)
    assert found.first_match_rank.tolist() == plain.first_match_rank.tolist()


def test_a_bank_holds_no_measured_caption_and_each_of_its_own_once():
    measured = ["A man in a Red  coat.", "A tall girl."]
    training = ["a man in a red coat.", "A woman.", " a MAN in a\tred coat. ", "a  woman.", "A boy."]
    bank = caption_bank(training, measured)
    assert bank == CaptionBank(["A woman.", "A boy."], shared=1, repeated=2)
    assert not {plain_words(one) for one in bank.captions} & {plain_words(one) for one in measured}
    assert str(bank) == ("bank of 2 training captions; 1 that are measured on left out, 2 repetitions counted once")
    assert bank.refusal() is None
    # a set whose train is what is measured leaves nothing, which is said and not computed with
    empty = caption_bank(measured, measured)
    assert not empty.captions and "the split train has none" in empty.refusal()
    with pytest.raises(ValueError, match="the bank has no captions"):
        gallery_bias(torch.empty(0, 4), unit(3, 4), BankSettings())


def test_phrasings_with_a_bank_are_the_mean_of_the_scores_of_each_phrasing():
    persons, index = torch.arange(9), torch.arange(27) // 3
    encoded = RetrievalSet(unit(9, 4), unit(27, 4, seed=3), persons, persons[index], index)
    bank, settings = unit(20, 4, seed=4), BankSettings(0.75, 3)
    bias = gallery_bias(bank, encoded.image_embeds, settings, progress=False)
    each = bank_scores(NNN, encoded.text_embeds, encoded.image_embeds, bias, settings)(0, 27)
    means = np.stack([each[index == image].mean(axis=0) for image in index])
    expected = rank_scores(lambda start, stop: means[start:stop], persons[index], persons, progress=False)
    found = rescore_by_bank(PHRASINGS_NNN, encoded, bias, settings, progress=False)
    np.testing.assert_array_equal(found.first_match_rank, expected.first_match_rank)
    alone = rescore_by_bank(NNN, encoded, bias, settings, progress=False)
    assert (found.first_match_rank != alone.first_match_rank).any()
    assert settings.words(PHRASINGS_NNN, 20) == f"mean over the phrasings of an image, {settings.words(NNN, 20)}"
    single = RetrievalSet(unit(9, 4), unit(9, 4), persons, persons, persons)
    assert "needs images with two captions or more" in refusal(PHRASINGS_NNN, single, "model")
    assert refusal(NNN, single, "model") is None


def test_constants_out_of_range_and_other_scorings_are_refused():
    for options, message in (({"alpha": -1}, "alpha must"), ({"neighbours": 0}, "neighbours"), ({"beta": 0}, "beta")):
        with pytest.raises(ValueError, match=message):
            BankSettings(**options)
    bias = gallery_bias(unit(5, 4), unit(3, 4), BankSettings(), progress=False)
    with pytest.raises(ValueError, match="no scoring 'magic' by a bank; choose from nnn, inverted-softmax"):
        bank_scores("magic", unit(2, 4), unit(3, 4), bias, BankSettings())


def test_what_a_bank_says_of_a_gallery_is_kept_for_the_same_bank_and_constants(tmp_path, monkeypatch):
    processor, rows = tiny_processor(), tiny_rows(6)
    model = tiny_model(vocab_size=len(processor.tokenizer)).gadms
    encoded, note = cached_retrieval_set(model, processor, rows, str(tmp_path), progress=False)
    bank, settings = caption_bank(tiny_rows(20, seed=5)["caption1"], rows["caption1"]), BankSettings()

    def ask(bank=bank, settings=settings):
        return cached_gallery_bias(model, processor, bank, encoded, note, settings, limit=1, progress=False)

    bias, was_cached = ask()
    embeds = encode_captions(model, processor, bank.captions, progress=False)
    for name, expected in vars(gallery_bias(embeds, encoded.image_embeds, settings, progress=False)).items():
        assert torch.equal(getattr(bias, name), expected)
    assert not was_cached
    monkeypatch.setattr(module, "encode_captions", lambda *args: pytest.fail("encoded again"))
    again, was_cached = ask()
    assert was_cached and torch.equal(again.nearest, bias.nearest) and torch.equal(again.is_found, bias.is_found)
    assert ask(settings=BankSettings(alpha=0.1))[1]  # alpha comes after
    fewer = CaptionBank(bank.captions[1:], 0, 0)
    for changed in ({"bank": fewer}, {"settings": BankSettings(neighbours=2)}, {"settings": BankSettings(beta=3.0)}):
        with pytest.raises(pytest.fail.Exception, match="encoded again"):
            ask(**changed)
