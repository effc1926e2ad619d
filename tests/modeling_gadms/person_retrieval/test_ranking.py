"""The ranking against a loop with `sorted`, and its rules: ties, exclusion, missing matches, bad input."""

import doctest

import numpy as np
import pytest
import torch

from modeling_gadms.person_retrieval import ranking
from modeling_gadms.person_retrieval.ranking import rank_both_ways, rank_queries, retrieval_metrics, same_camera

FIELDS = ("first_match_rank", "average_precision", "inverse_negative_penalty", "num_matches")


def sorted_twin(scores, query_ids, gallery_ids, ties="pessimistic", excluded=None):
    """One query at a time, the whole row sorted: the four arrays of `QueryRanks`."""
    rows = []
    for q, query_id in enumerate(query_ids):
        right_first = ties == "optimistic"
        row = [
            (-float(scores[q][g]), (gallery_id == query_id) != right_first)
            for g, gallery_id in enumerate(gallery_ids)
            if excluded is None or not excluded[q][g]
        ]
        hits = [rank for rank, (_, key) in enumerate(sorted(row), start=1) if key != right_first]
        if hits:
            precision = [found / rank for found, rank in enumerate(hits, start=1)]
            rows.append((hits[0], sum(precision) / len(hits), len(hits) / hits[-1], len(hits)))
        else:
            rows.append((0, float("nan"), float("nan"), 0))
    return [np.array(column) for column in zip(*rows, strict=True)]


def assert_same(ranks, twin):
    for name, expected in zip(FIELDS, twin, strict=True):
        np.testing.assert_allclose(getattr(ranks, name), expected, atol=1e-12, err_msg=name)


def cosines(queries, gallery):
    queries, gallery = queries.double(), gallery.double()
    return (queries / queries.norm(dim=1, keepdim=True)) @ (gallery / gallery.norm(dim=1, keepdim=True)).T


def random_set(num_queries, num_gallery, num_ids, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    gallery_ids = torch.randint(num_ids, (num_gallery,), generator=generator)
    query_ids = gallery_ids[torch.randint(num_gallery, (num_queries,), generator=generator)]
    centres = torch.randn(num_ids, dim, generator=generator)
    queries = centres[query_ids] + 2 * torch.randn(num_queries, dim, generator=generator)
    gallery = centres[gallery_ids] + 2 * torch.randn(num_gallery, dim, generator=generator)
    return queries, gallery, query_ids, gallery_ids


def duplicated_set(seed=0, dim=48):
    """Every image three times, under newly drawn ids, so that right and wrong items tie exactly."""
    queries, gallery, query_ids, _ = random_set(40, 60, 6, dim, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    gallery_ids = torch.cat([torch.arange(6), torch.randint(6, (174,), generator=generator)])
    base = cosines(queries, gallery)
    return queries, gallery.repeat(3, 1), query_ids, gallery_ids, base.repeat(1, 3)


@pytest.mark.parametrize(
    "num_queries, num_gallery, num_ids, dim",
    [
        (60, 150, 20, 32),
        (1, 40, 5, 16),
        (30, 1, 1, 8),
        (1, 1, 1, 4),
        (25, 300, 2, 64),
        (12, 250, 1, 16),
        (50, 90, 90, 7),
    ],
)
@pytest.mark.parametrize("block_size", [(1024, 2048), (7, 13), (20, 1)])
def test_ranks_are_those_of_a_sorted_row(num_queries, num_gallery, num_ids, dim, block_size):
    queries, gallery, query_ids, gallery_ids = random_set(num_queries, num_gallery, num_ids, dim)
    twin = sorted_twin(cosines(queries, gallery), query_ids.tolist(), gallery_ids.tolist())
    assert_same(rank_queries(queries, gallery, query_ids, gallery_ids, block_size=block_size), twin)


def test_a_row_far_above_the_others_is_counted_like_them():
    queries, gallery, query_ids, gallery_ids = random_set(60, 1500, 200, 64, seed=3)
    gallery += 8 * queries[0]  # most of the gallery lies near one query
    twin = sorted_twin(cosines(queries, gallery), query_ids.tolist(), gallery_ids.tolist())
    assert_same(rank_queries(queries, gallery, query_ids, gallery_ids), twin)


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic"])
@pytest.mark.parametrize("block_size", [(1024, 2048), (7, 13), (40, 179), (9, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_duplicated_images_tie_in_every_block_and_gallery_order(ties, block_size, dtype):
    queries, gallery, query_ids, gallery_ids, _ = duplicated_set()
    queries, gallery = queries.to(dtype), gallery.to(dtype)
    scores = cosines(queries, gallery[:60]).repeat(1, 3)  # each image scored once: ties are exact
    twin = sorted_twin(scores, query_ids.tolist(), gallery_ids.tolist(), ties)
    for seed in range(2):
        order = torch.randperm(len(gallery), generator=torch.Generator().manual_seed(seed))
        ranks = rank_queries(queries, gallery[order], query_ids, gallery_ids[order], ties=ties, block_size=block_size)
        assert_same(ranks, twin)


@pytest.mark.parametrize("ties, r_at_1", [("pessimistic", 0.0), ("optimistic", 100.0)])
@pytest.mark.parametrize("dim", [3, 512, 768])
def test_a_collapsed_model_gets_the_worst_or_the_best_by_the_rule(ties, r_at_1, dim):
    embeds = torch.full((300, dim), 0.3)
    ids = torch.arange(300) % 30
    metrics = retrieval_metrics(embeds, embeds, ids, ids, ties=ties)
    twin = sorted_twin(np.zeros((300, 300)), ids.tolist(), ids.tolist(), ties)
    assert metrics["R@1"] == r_at_1
    assert metrics["mAP"] == pytest.approx(100 * twin[1].mean(), abs=1e-9)
    assert metrics["mINP"] == pytest.approx(100 * twin[2].mean(), abs=1e-9)


def test_a_few_ties_among_many_scores_are_settled_one_by_one():
    queries, gallery, query_ids, gallery_ids = random_set(50, 2000, 100, 128, seed=5)
    gallery[1::200] = gallery[::200]
    scores = cosines(queries, gallery)
    scores[:, 1::200] = scores[:, ::200]
    for ties in ("pessimistic", "optimistic"):
        twin = sorted_twin(scores, query_ids.tolist(), gallery_ids.tolist(), ties)
        assert_same(rank_queries(queries, gallery, query_ids, gallery_ids, ties=ties), twin)


def test_scores_nearer_than_float32_can_tell_are_ordered():
    query, gallery = np.array([[1.0, 0.0]]), np.array([[0.75, 0.0], [0.75 - 2.0**-26, 0.0]])
    assert np.float32(gallery[0, 0]) == np.float32(gallery[1, 0])
    for ties in ("pessimistic", "optimistic"):
        assert rank_queries(query, gallery, [1], [1, 2], ties=ties, normalize=False).first_match_rank == 1
        assert rank_queries(query, gallery, [2], [1, 2], ties=ties, normalize=False).first_match_rank == 2


@pytest.mark.parametrize("sort_from", [ranking.SORT_FROM, 40])
@pytest.mark.parametrize("num_matches", [ranking.SORT_FROM - 1, ranking.SORT_FROM, 39, 80])
@pytest.mark.parametrize("ties", ["pessimistic", "optimistic"])
def test_few_and_many_matches_per_query_are_counted_the_same_way(sort_from, num_matches, ties, monkeypatch):
    monkeypatch.setattr(ranking, "SORT_FROM", sort_from)
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(120, 24, generator=generator).repeat(2, 1)
    queries = torch.randn(9, 24, generator=generator)
    gallery_ids = [1] * num_matches + [2] * (240 - num_matches)
    scores = cosines(queries, gallery[:120]).repeat(1, 2)
    twin = sorted_twin(scores, [1] * 9, gallery_ids, ties)
    assert_same(rank_queries(queries, gallery, [1] * 9, gallery_ids, ties=ties, block_size=(4, 50)), twin)


def test_numbers_of_matches_that_differ_a_lot_share_a_block():
    queries, gallery, _, _ = random_set(60, 220, 3, 16)
    gallery_ids = [1] * 170 + [2] * 40 + [3] * 9 + [4]
    query_ids = [1, 2, 3, 4] * 15
    twin = sorted_twin(cosines(queries, gallery), query_ids, gallery_ids)
    assert_same(rank_queries(queries, gallery, query_ids, gallery_ids), twin)


def test_limits_on_memory_do_not_change_the_result(monkeypatch):
    queries, gallery, query_ids, gallery_ids = random_set(150, 200, 8, 16)
    whole = rank_queries(queries, gallery, query_ids, gallery_ids)
    for name, value in (("MAX_MATCHES", 60), ("SUPER_ROWS", 11), ("MAX_PAIRS", 17), ("GROUP_ROWS", 3)):
        monkeypatch.setattr(ranking, name, value)
    parts = rank_queries(queries, gallery, query_ids, gallery_ids, block_size=(9, 31))
    assert_same(parts, [getattr(whole, name) for name in FIELDS])
    np.testing.assert_array_equal(parts.first_match_rank, whole.first_match_rank)


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic"])
@pytest.mark.parametrize("block_size", [(1024, 2048), (7, 13)])
@pytest.mark.parametrize("max_shared", [ranking.MAX_SHARED, 10])
def test_both_ways_are_the_two_single_ways(ties, block_size, max_shared, monkeypatch):
    monkeypatch.setattr(ranking, "MAX_SHARED", max_shared)
    texts, images, text_ids, image_ids, _ = duplicated_set()
    text_ids[-1], image_ids[-1] = 77, 78  # nobody's
    options = {"ties": ties, "on_missing": "skip", "block_size": block_size}
    t2i, i2t = rank_both_ways(texts, images, text_ids, image_ids, **options)
    scores = cosines(texts, images[:60]).repeat(1, 3)
    assert_same(t2i, sorted_twin(scores, text_ids.tolist(), image_ids.tolist(), ties))
    assert_same(i2t, sorted_twin(scores.T, image_ids.tolist(), text_ids.tolist(), ties))
    assert t2i.skipped.tolist() == [39] and i2t.skipped.tolist() == [179]
    with pytest.raises(ValueError, match="1 of 40 queries have no match"):
        rank_both_ways(texts, images, text_ids, image_ids)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_no_rank_and_are_given_back(threads):
    queries, gallery, query_ids, gallery_ids = random_set(150, 400, 12, 32)
    expected = rank_both_ways(queries, gallery, query_ids, gallery_ids)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = rank_both_ways(queries, gallery, query_ids, gallery_ids, block_size=(16, 32))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.first_match_rank, other.first_match_rank)
        assert_same(one, [getattr(other, name) for name in FIELDS])


@pytest.mark.parametrize("few", [1, 4, 10**9])
def test_gathering_scores_early_late_or_never_changes_nothing(few, monkeypatch):
    monkeypatch.setattr(ranking, "FEW", few)
    monkeypatch.setattr(ranking, "SORT_FROM", 10**9)
    queries, gallery, query_ids, gallery_ids = random_set(40, 300, 15, 24)
    twin = sorted_twin(cosines(queries, gallery), query_ids.tolist(), gallery_ids.tolist())
    assert_same(rank_queries(queries, gallery, query_ids, gallery_ids), twin)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_without_further_rounding(dtype):
    queries, gallery, query_ids, gallery_ids = random_set(80, 400, 20, 512)
    queries, gallery = queries.to(dtype), gallery.to(dtype)
    twin = sorted_twin(cosines(queries, gallery), query_ids.tolist(), gallery_ids.tolist())
    assert_same(rank_queries(queries, gallery, query_ids, gallery_ids), twin)


def test_autocast_around_the_call_changes_nothing():
    queries, gallery, query_ids, gallery_ids = random_set(40, 100, 10, 24)
    expected = rank_queries(queries, gallery, query_ids, gallery_ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ranks = rank_queries(queries, gallery, query_ids, gallery_ids)
    np.testing.assert_array_equal(ranks.average_precision, expected.average_precision)


def test_a_device_that_multiplies_roughly_gets_the_same_ranks(monkeypatch):
    queries, gallery, query_ids, gallery_ids = random_set(60, 300, 12, 64)
    expected = rank_queries(queries, gallery, query_ids, gallery_ids)
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x.to(torch.bfloat16).to(torch.float32))  # as TF32 does
    ranks = rank_queries(queries, gallery, query_ids, gallery_ids)
    np.testing.assert_array_equal(ranks.average_precision, expected.average_precision)


def test_numpy_and_torch_and_layouts_of_memory_agree():
    queries, gallery, query_ids, gallery_ids = random_set(40, 100, 10, 24)
    expected = retrieval_metrics(queries, gallery, query_ids, gallery_ids)
    wide = np.asfortranarray(gallery.numpy().astype(np.float64))
    assert retrieval_metrics(queries.double().numpy(), wide, query_ids.numpy(), gallery_ids.tolist()) == expected
    every_other = torch.stack([gallery, torch.full_like(gallery, torch.nan)], dim=1).view(200, 24)[::2]
    assert retrieval_metrics(queries.T.contiguous().T, every_other, query_ids, gallery_ids) == expected
    backwards = np.ascontiguousarray(gallery.numpy()[::-1])[::-1]
    backwards.flags.writeable = False
    assert retrieval_metrics(queries.numpy().astype(">f4"), backwards, query_ids, gallery_ids) == expected
    assert retrieval_metrics(queries.requires_grad_(), gallery, query_ids, gallery_ids) == expected


def test_lengths_of_vectors_do_not_matter_until_the_dot_product_is_asked_for():
    queries, gallery, query_ids, gallery_ids = random_set(30, 80, 10, 24)
    expected = rank_queries(queries, gallery, query_ids, gallery_ids)
    lengths = torch.logspace(-12, 12, 80, dtype=torch.float64)[:, None]
    scaled = rank_queries(queries.double() * 1e200, gallery.double() * lengths, query_ids, gallery_ids)
    np.testing.assert_array_equal(scaled.first_match_rank, expected.first_match_rank)

    gallery = gallery * torch.linspace(0.5, 3, 80)[:, None]
    twin = sorted_twin(queries.double() @ gallery.double().T, query_ids.tolist(), gallery_ids.tolist())
    assert_same(rank_queries(queries, gallery, query_ids, gallery_ids, normalize=False), twin)
    assert not np.array_equal(twin[0], expected.first_match_rank)


def test_huge_ids_are_told_apart():
    base = 2**62  # base and base + 1 are one float64
    queries, gallery = torch.eye(2), torch.eye(2)
    ranks = rank_queries(queries, gallery, [base, base + 1], np.array([base + 1, base], dtype=np.uint64))
    assert ranks.first_match_rank.tolist() == [2, 2]
    assert ranks.num_matches.tolist() == [1, 1]
    assert rank_queries(queries, gallery, [-base, base], [-base, base]).first_match_rank.tolist() == [1, 1]


def test_masks_and_functions_exclude_the_same_pairs():
    queries, gallery, query_ids, gallery_ids = random_set(50, 160, 8, 16)
    generator = torch.Generator().manual_seed(9)
    query_cameras = torch.randint(3, (50,), generator=generator)
    gallery_cameras = torch.randint(3, (160,), generator=generator)
    mask = (query_ids[:, None] == gallery_ids) & (query_cameras[:, None] == gallery_cameras)
    junk = gallery_ids == 7
    twin = sorted_twin(cosines(queries, gallery), query_ids.tolist(), gallery_ids.tolist(), excluded=mask.tolist())
    arguments = (queries, gallery, query_ids, gallery_ids)
    for exclude in (mask, mask.numpy(), same_camera(query_ids, gallery_ids, query_cameras, gallery_cameras)):
        assert_same(rank_queries(*arguments, exclude=exclude, block_size=(16, 33), on_missing="skip"), twin)

    mask = mask | junk
    twin = sorted_twin(cosines(queries, gallery), query_ids.tolist(), gallery_ids.tolist(), excluded=mask.tolist())
    ranks = rank_queries(*arguments, exclude=mask, on_missing="skip")
    assert_same(ranks, twin)
    assert ranks.skipped.tolist() == (query_ids == 7).nonzero()[:, 0].tolist()
    with pytest.raises(ValueError, match=rf"{len(ranks.skipped)} of 50 queries have no match"):
        rank_queries(*arguments, exclude=mask)


def test_queries_without_a_match_are_named_or_skipped_and_counted():
    queries, gallery, query_ids, gallery_ids = random_set(30, 80, 10, 24)
    expected = retrieval_metrics(queries, gallery, query_ids, gallery_ids)
    more, more_ids = torch.cat([torch.ones(2, 24), queries]), torch.cat([torch.tensor([77, 78]), query_ids])
    with pytest.raises(ValueError, match=r"2 of 32 queries have no match in the gallery, the first at index 0"):
        retrieval_metrics(more, gallery, more_ids, gallery_ids)
    assert retrieval_metrics(more, gallery, more_ids, gallery_ids, on_missing="skip") == {**expected, "skipped": 2}
    ranks = rank_queries(more, gallery, more_ids, gallery_ids, on_missing="skip")
    assert ranks.skipped.tolist() == [0, 1]
    assert ranks.first_match_rank[:2].tolist() == [0, 0]
    assert np.isnan(ranks.average_precision[:2]).all()


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"query_embeds": torch.tensor([[1.0, 0, 0], [0, 0, 0]])},
            r"1 of 2 `query_embeds` hold nothing but zeros.*index 1",
        ),
        (
            {"gallery_embeds": torch.tensor([[1.0, torch.nan, 0], [1, 0, 0]])},
            r"1 of 2 `gallery_embeds` hold NaN.*index 0",
        ),
        (
            {"gallery_embeds": torch.tensor([[1.0, torch.inf, 0], [1, 0, 0]])},
            r"1 of 2 `gallery_embeds` hold NaN or inf",
        ),
        ({"gallery_embeds": torch.ones(2, 4)}, r"dimension 3 and gallery items 4"),
        ({"gallery_embeds": torch.ones(0, 3), "gallery_ids": []}, r"`gallery_embeds` is empty"),
        ({"query_embeds": torch.ones(0, 3), "query_ids": []}, r"`query_embeds` is empty"),
        ({"query_embeds": torch.ones(2, 0)}, r"dimension 0"),
        ({"query_embeds": torch.ones(3)}, r"shape \(3,\)"),
        ({"query_embeds": np.array([["a", "b", "c"]] * 2)}, r"not real numbers"),
        ({"query_embeds": torch.ones(2, 3, dtype=torch.complex64)}, r"not real numbers"),
        ({"query_ids": [1]}, r"2 `query_embeds` but 1 `query_ids`"),
        ({"gallery_ids": [1, 2, 3]}, r"2 `gallery_embeds` but 3 `gallery_ids`"),
        ({"gallery_ids": [1.0, 2.0]}, r"`gallery_ids` holds float64; ids are integers"),
        ({"gallery_ids": [[1], [2]]}, r"`gallery_ids` has shape \(2, 1\)"),
        ({"gallery_ids": [2**64 - 1, 2**63]}, r"does not fit int64"),
        ({"gallery_ids": [8, 9]}, r"none of the 2 queries .* the ids never meet"),
        ({"gallery_ids": [8, 9], "on_missing": "skip"}, r"the ids never meet"),
        ({"exclude": torch.ones(2, 2, dtype=torch.bool)}, r"none of the 2 queries"),
        ({"exclude": torch.ones(2, 3, dtype=torch.bool)}, r"bool of shape \(2, 2\)"),
        ({"exclude": np.ones((2, 2))}, r"mask `exclude` is torch.float64"),
        ({"ties": "random"}, r"`ties`"),
        ({"on_missing": "ignore"}, r"`on_missing`"),
        ({"block_size": (0, 5)}, r"`block_size`"),
    ],
)
def test_bad_input_gets_one_clear_error(changes, message):
    arguments = {"query_embeds": ONES, "gallery_embeds": ONES, "query_ids": [1, 2], "gallery_ids": [1, 2], **changes}
    with pytest.raises(ValueError, match=message):
        rank_queries(**arguments)


def test_cameras_that_do_not_fit_their_items_are_refused():
    with pytest.raises(ValueError, match="2 query_ids and 1 query_cameras"):
        same_camera([1, 2], [1], [1], [1])


def test_examples_in_the_docstrings_hold():
    result = doctest.testmod(ranking)
    assert result.attempted >= 8 and not result.failed
