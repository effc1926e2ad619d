"""Intervals and tests draw whole persons, wherever they are shown.

Of two persons with equally many queries, a resample draws one of them twice in half of the cases, either of them. So
the 95 % interval runs from the mean of the one to the mean of the other, and of their sums' four pairs of signs all or
half lie as far from zero as what was seen. Drawing single queries gives other numbers.
"""

import re

import datasets
import numpy as np
import pytest
import torch
from test_retrieval_report import random_set
from tiny import tiny_rows

from modeling_gadms.evaluation import robustness
from modeling_gadms.evaluation.encoding import RetrievalSet
from modeling_gadms.evaluation.metrics import compare, evaluate_embeddings, evaluate_ranks, query_values
from modeling_gadms.evaluation.report_page import write_retrieval_page
from modeling_gadms.evaluation.significance import bootstrap_interval, paired_difference
from modeling_gadms.person_retrieval.ranking import METRICS, QueryRanks, rank_queries


def two_persons(count=16):
    """Rows of which the first half shows person 3, the second person 8."""
    rows = tiny_rows(count).remove_columns("person_id")
    return rows.add_column("person_id", [3] * (count // 2) + [8] * (count // 2))


def assert_drawn_by_person(interval, values, persons):
    first, second = (np.mean(values[persons == person]) for person in np.unique(persons))
    assert first != second, "the example must tell persons from queries"
    assert interval.mean == pytest.approx((first + second) / 2)
    assert sorted([interval.low, interval.high]) == [interval.low, interval.high]
    assert [interval.low, interval.high] == pytest.approx(sorted([first, second]))


def share_of_signs(values, persons):
    """Of the four ways to sign the persons' sums, how many are as far from zero as their plain sum."""
    one, other = (values[persons == person].sum() for person in np.unique(persons))
    sums = [abs(one + other), abs(one - other), abs(other - one), abs(one + other)]
    return sum(total >= abs(one + other) - 1e-9 for total in sums) / 4


@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_of_an_evaluation_draw_the_persons_of_the_queries(seed):
    rows = two_persons()
    encoded = random_set(rows, noise=3.0, seed=seed)
    evaluation = evaluate_embeddings(encoded)
    persons = {"t2i": encoded.text_person_ids.numpy(), "i2t": encoded.image_person_ids.numpy()}
    for way, of_way in evaluation.metrics.items():
        assert set(of_way) == set(METRICS)
        np.testing.assert_array_equal(evaluation.person_ids[way], persons[way])
        values = query_values(evaluation.ranks[way])
        for name in ("mAP", "mINP"):
            assert_drawn_by_person(of_way[name], values[name], persons[way])


def test_one_person_alone_leaves_nothing_to_chance():
    gallery, queries = torch.eye(4), torch.eye(4)[[0, 0, 1, 2, 3]]
    ranks = rank_queries(queries, gallery, [5] * 5, [5, 6, 7, 8])
    evaluation = evaluate_ranks({"t2i": ranks}, {"t2i": np.array([5] * 5)})
    for interval in evaluation.metrics["t2i"].values():
        assert interval.low == interval.high == interval.mean
    assert evaluation.metrics["t2i"]["R@1"].mean == 40


def test_two_models_are_compared_by_persons():
    rows = two_persons()
    a, b = (evaluate_embeddings(random_set(rows, noise, seed=2)) for noise in (1.0, 3.0))
    differences = compare(a, b)
    assert list(differences) == ["t2i", "i2t"]
    for way, of_way in differences.items():
        of_a, of_b = query_values(a.ranks[way]), query_values(b.ranks[way])
        for name in ("mAP", "mINP"):
            values, persons = of_a[name] - of_b[name], a.person_ids[way]
            assert_drawn_by_person(of_way[name], values, persons)
            assert of_way[name].p_value == pytest.approx(share_of_signs(values, persons), abs=0.03)


def test_the_values_of_a_query_are_its_share_of_every_metric():
    ranks = QueryRanks(
        first_match_rank=np.array([1, 5, 6, 10, 11]),
        average_precision=np.array([1.0, 0.5, 0.4, 0.3, 0.2]),
        inverse_negative_penalty=np.array([0.9, 0.25, 0.2, 0.1, 0.05]),
        num_matches=np.array([1, 1, 1, 1, 1]),
        skipped=np.array([], dtype=np.int64),
    )
    values = {name: of_queries.tolist() for name, of_queries in query_values(ranks).items()}
    assert values["R@1"] == [100, 0, 0, 0, 0]
    assert values["R@5"] == [100, 100, 0, 0, 0]
    assert values["R@10"] == [100, 100, 100, 100, 0]
    assert values["mAP"] == pytest.approx([100, 50, 40, 30, 20])
    assert values["mINP"] == pytest.approx([90, 25, 20, 10, 5])


def test_robustness_draws_and_signs_persons(monkeypatch):
    rows = two_persons(24)
    plain_set, by_texts, by_images = (random_set(rows, noise, seed=7) for noise in (1.5, 3.0, 0.0))
    by_texts.image_embeds, by_images.text_embeds = plain_set.image_embeds, plain_set.text_embeds
    by_images.image_embeds = random_set(rows, 0.0, seed=8).image_embeds
    monkeypatch.setattr(robustness, "CAPTION_CHANGES", {"other words": (robustness.drop_words, (0.5,))})
    monkeypatch.setattr(robustness, "IMAGE_CHANGES", {"dark": (robustness.darken, (0.75,))})
    monkeypatch.setattr(robustness, "encode_captions", lambda *args, **kwargs: by_texts.text_embeds)
    monkeypatch.setattr(robustness, "encode_images", lambda *args, **kwargs: by_images.image_embeds)
    persons = plain_set.text_person_ids.numpy()

    def hits(encoded):
        nearest = (encoded.text_embeds @ encoded.image_embeds.T).argmax(dim=1)
        return 100.0 * (encoded.image_person_ids[nearest].numpy() == persons)

    plain, *changed = (hits(encoded) for encoded in (plain_set, by_texts, by_images))
    results = robustness.measure_robustness(None, None, rows, plain_set, progress=False)
    names = [(result["change"], result["strength"]) for result in results]
    assert names == [("none", 0.0), ("other words", 0.5), ("dark", 0.75)]
    assert results[0]["loss"] is None
    for result, values in zip(results, [plain, *changed], strict=True):
        assert_drawn_by_person(result["R@1"], values, persons)
    for result, values in zip(results[1:], changed, strict=True):
        assert_drawn_by_person(result["loss"], values - plain, persons)
        p_value = share_of_signs(values - plain, persons)
        assert result["loss"].p_value == pytest.approx(p_value, abs=0.03)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Person 3's captions all find their person, person 8's none; all have five words, and the same ones."""
    rows = two_persons(12)
    rows = datasets.Dataset.from_list(
        [{**row, "caption1": "someone in a red coat", "caption2": "someone in a red coat"} for row in rows],
        rows.features,
    )
    images = torch.eye(12, 16)
    index = torch.arange(12).repeat_interleave(2)
    persons = torch.tensor(rows["person_id"][:])
    encoded = RetrievalSet(images, images[:1].expand(24, -1), persons, persons[index], index)
    path = tmp_path_factory.mktemp("report") / "page.html"
    write_retrieval_page(path, rows, encoded, evaluate_embeddings(encoded, num_resamples=500), "model")
    return path.read_text(encoding="utf-8")


def test_the_page_s_table_of_words_draws_persons(page):
    words = page[page.index("By attribute word") :]
    found = re.findall(r">red</th>.*?<b>([\d.]+)</b> <small>(\d+) to (\d+)</small>", words, re.DOTALL)
    assert found == [("50.0", "0", "100")]


def test_the_page_s_whiskers_by_length_draw_persons(page):
    part = page[page.index("By caption length") : page.index("By attribute word")]
    lines = re.findall(r'<line class="(\w+)" x1="[\d.]+" x2="[\d.]+" y1="([\d.]+)" y2="([\d.]+)"', part)
    grid = [float(y) for kind, y, _ in lines if kind == "grid"]
    whiskers = [sorted((float(y1), float(y2))) for kind, y1, y2 in lines if kind == "whisker"]
    assert len(whiskers) == 1, "one group of lengths"
    assert whiskers[0] == pytest.approx([min(grid), max(grid)]), "from 0 to 100 %"


def test_groups_of_unequal_size_weigh_by_their_queries():
    """A group of one and one of three: the mean of a resample is over its queries, not over its groups."""
    values, groups = np.array([100.0, 0.0, 0.0, 0.0]), np.array([1, 2, 2, 2])
    interval = bootstrap_interval(values, groups=groups)
    assert (interval.mean, interval.low, interval.high) == (25, 0, 100)
    middle = bootstrap_interval(values, groups=groups, confidence=0.4)  # half of the resamples have both groups
    assert (middle.low, middle.high) == (25, 25)
    difference = paired_difference(values, np.zeros(4), groups=groups)
    assert (difference.mean, difference.low, difference.high, difference.p_value) == (25, 0, 100, 1)


def test_a_lower_confidence_gives_a_narrower_interval():
    values = 100.0 * (np.arange(400) % 2)
    wide, narrow = (bootstrap_interval(values, confidence=confidence) for confidence in (0.95, 0.5))
    half_width = 1.96 * 50 / 400**0.5
    assert (wide.low, wide.high) == pytest.approx((50 - half_width, 50 + half_width), abs=0.4)
    assert (narrow.low, narrow.high) == pytest.approx((50 - 0.344 * half_width, 50 + 0.344 * half_width), abs=0.4)


def test_a_p_value_is_two_sided_and_never_zero():
    better = paired_difference(np.ones(60), np.zeros(60), num_resamples=999)
    worse = paired_difference(np.zeros(60), np.ones(60), num_resamples=999)
    assert better.p_value == worse.p_value == pytest.approx(1 / 1000)
    assert (better.mean, worse.mean) == (1, -1)
