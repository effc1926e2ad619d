"""mSD against loops written from its description, before there was any other code for it."""

import math

import numpy as np
import pytest
import torch

from modeling_gadms.evaluation import similarity_distribution
from modeling_gadms.evaluation.similarity_distribution import similarity_distributions


def slow_distribution(similarity, query, gallery):
    """SD of each query, by loops, as the authors of UFineBench describe it; None without a match."""
    found = []
    for scores, person in zip(similarity, query, strict=True):
        pairs = [((score + 1) / 2, other == person) for score, other in zip(scores, gallery, strict=True)]
        pairs.sort(key=lambda pair: (-pair[0], pair[1]))  # among equals, the wrong ones stand first
        right = [score for score, match in pairs if match]
        wrong = [score for score, match in pairs if not match]
        if not right:
            found.append(None)
            continue
        shares = []
        for place, (_, match) in enumerate(pairs, 1):
            if match:
                shares.append(sum(s for s, m in pairs[:place] if m) / sum(s for s, _ in pairs[:place]))
        distance = (sum(right) / len(right)) / (sum(wrong) / len(wrong)) if wrong else math.inf
        found.append(sum(shares) / len(shares) * (1 - math.exp(-distance)))
    return found


def case(seed, queries=9, gallery=23, persons=6):
    """Few directions, so that many scores tie, also across persons; the last query has no match."""
    random = torch.Generator().manual_seed(seed)
    directions = torch.randn(7, 5, generator=random)
    pick = [torch.randint(7, (size,), generator=random) for size in (queries, gallery)]
    lengths = [2.0 ** torch.randint(-3, 4, (size, 1), generator=random) for size in (queries, gallery)]
    embeds = [directions[chosen] * length for chosen, length in zip(pick, lengths, strict=True)]
    ids = [torch.randint(persons, (size,), generator=random) for size in (queries, gallery)]
    ids[0][-1] = 99
    cosines = torch.nn.functional.cosine_similarity(directions[:, None].double(), directions[None].double(), dim=-1)
    return embeds, ids, cosines[pick[0]][:, pick[1]].tolist()


@pytest.mark.parametrize("seed", range(6))
def test_it_agrees_with_loops_whatever_the_blocks(seed, monkeypatch):
    embeds, ids, cosines = case(seed)
    slow = slow_distribution(cosines, *[part.tolist() for part in ids])
    expected = [math.nan if found is None else found for found in slow]
    got = similarity_distributions(*embeds, *ids)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert np.isnan(got[-1]) and np.nanmax(got) <= 1
    monkeypatch.setattr(similarity_distribution, "MAX_SCORES", 50)
    monkeypatch.setattr(similarity_distribution, "GALLERY_ROWS", 4)
    np.testing.assert_array_equal(similarity_distributions(*embeds, *ids), got)


def test_of_equal_scores_the_others_stand_first():
    embeds, ids = torch.ones(3, 4), torch.tensor([1, 2, 3])
    (found,) = similarity_distributions(embeds[:1], embeds, ids[1:2], ids)
    assert found == pytest.approx((1 - math.exp(-1)) / 3)


def test_a_gallery_of_nothing_but_matches_is_perfect():
    assert similarity_distributions(*[torch.eye(3)] * 2, *[torch.zeros(3)] * 2).tolist() == [1.0] * 3


def test_the_same_ranking_counts_more_the_further_the_matches_are_above():
    """R@1 and mAP of these are 100; only the distance grows."""
    angles = torch.tensor([1.2, 0.9, 0.5, 0.1])
    gallery = [torch.tensor([[torch.cos(angle), torch.sin(angle)], [0.0, 1.0]]) for angle in angles]
    query = torch.tensor([[1.0, 0.0]])
    found = [similarity_distributions(query, g, torch.tensor([1]), torch.tensor([1, 2])).item() for g in gallery]
    assert found == sorted(found) and 0.63 < found[0] < found[-1] - 0.1
