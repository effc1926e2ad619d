"""Re-scoring against slow twins that follow the papers' formulas item by item."""

import importlib.util
import math

import numpy as np
import pytest
import torch
from places import EXAMPLES
from tiny import tiny_captions, tiny_images, tiny_model

from modeling_gadms.evaluation.encoding import RetrievalSet
from modeling_gadms.evaluation.rescoring import (
    RESCORINGS,
    average_phrasings,
    k_reciprocal_scores,
    rank_scores,
    rescore,
)
from modeling_gadms.person_retrieval.ranking import rank_queries
from modeling_gadms.towers_gadms import eos_positions

EXAMPLE = EXAMPLES / "benchmark_rescoring.py"
spec = importlib.util.spec_from_file_location("benchmark_rescoring", EXAMPLE)
benchmark_rescoring = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark_rescoring)


def clustered_set(num_persons=12, views=4, noise=0.8, seed=0):
    """Images near their person, captions near their image, two each; some images are exact duplicates."""
    generator = torch.Generator().manual_seed(seed)
    persons = torch.arange(num_persons).repeat_interleave(views)
    centres = torch.randn(num_persons, 12, generator=generator)[persons]
    images = centres + noise * torch.randn(len(persons), 12, generator=generator)
    images[-1] = images[-2]
    index = torch.arange(len(persons)).repeat_interleave(2)
    texts = images[index] + noise * torch.randn(len(index), 12, generator=generator)
    unit = torch.nn.functional.normalize
    return RetrievalSet(unit(images, dim=-1), unit(texts, dim=-1), persons, persons[index], index)


def slow_k_reciprocal(queries, gallery, k1, k2, lambda_):
    items = torch.cat([queries, gallery]).double().tolist()
    n = len(items)
    distance = [[1 - math.fsum(a * b for a, b in zip(p, g, strict=True)) for g in items] for p in items]
    order = [sorted(range(n), key=lambda j: distance[i][j]) for i in range(n)]

    def nearest(i, k):
        return set(order[i][: k + 1]) | {i}

    def reciprocal(i, k):
        return {j for j in nearest(i, k) if i in nearest(j, k)}

    features = []
    for i in range(n):
        kept = reciprocal(i, k1)
        expanded = set(kept)
        for j in kept:
            theirs = reciprocal(j, round(k1 / 2))
            if len(theirs & kept) > 2 / 3 * len(theirs):
                expanded |= theirs
        weights = {j: math.exp(-distance[i][j] / max(distance[i])) for j in expanded}
        total = math.fsum(weights.values())
        features.append([weights.get(j, 0) / total for j in range(n)])
    averaged = [[math.fsum(features[m][j] for m in order[i][:k2]) / k2 for j in range(n)] for i in range(n)]
    scores = []
    for i in range(len(queries)):
        row = []
        for g in range(len(queries), n):
            low = math.fsum(min(a, b) for a, b in zip(averaged[i], averaged[g], strict=True))
            high = math.fsum(max(a, b) for a, b in zip(averaged[i], averaged[g], strict=True))
            row.append(-(1 - lambda_) * (1 - low / high) - lambda_ * distance[i][g] / max(distance[i]))
        scores.append(row)
    return np.array(scores)


@pytest.mark.parametrize("k1, k2, lambda_", [(8, 3, 0.3), (5, 1, 0.0), (20, 6, 0.7)])
def test_k_reciprocal_scores_are_those_of_the_formulas(k1, k2, lambda_):
    encoded = clustered_set(num_persons=7, views=3)
    queries = encoded.text_embeds[::2][:15]
    # duplicates tie as neighbours, and which of them comes first is free: none here
    gallery = encoded.image_embeds[:-1]
    fast = k_reciprocal_scores(queries, gallery, k1, k2, lambda_, progress=False)
    slow = slow_k_reciprocal(queries, gallery, k1, k2, lambda_)
    np.testing.assert_allclose(fast(0, 15), slow, atol=1e-9)
    np.testing.assert_allclose(np.concatenate([fast(0, 4), fast(4, 15)]), slow, atol=1e-9)


def test_more_neighbours_than_items_and_a_single_query_are_no_error():
    encoded = clustered_set(num_persons=2, views=2)
    scores = k_reciprocal_scores(encoded.text_embeds[:1], encoded.image_embeds[:2], progress=False)(0, 1)
    assert scores.shape == (1, 2) and np.isfinite(scores).all()


def test_duplicated_images_score_alike():
    encoded = clustered_set()
    scores = k_reciprocal_scores(encoded.text_embeds, encoded.image_embeds, k2=1, progress=False)(0, 96)
    np.testing.assert_allclose(scores[:, -1], scores[:, -2], atol=1e-12)


def test_only_the_distance_left_gives_the_plain_ranking():
    encoded = clustered_set()
    scores = k_reciprocal_scores(encoded.text_embeds, encoded.image_embeds, lambda_=1.0, progress=False)
    ranks = rank_scores(scores, encoded.text_person_ids, encoded.image_person_ids, progress=False)
    plain = rank_queries(encoded.text_embeds, encoded.image_embeds, encoded.text_person_ids, encoded.image_person_ids)
    for name in ("first_match_rank", "num_matches"):
        np.testing.assert_array_equal(getattr(ranks, name), getattr(plain, name))
    for name in ("average_precision", "inverse_negative_penalty"):
        np.testing.assert_allclose(getattr(ranks, name), getattr(plain, name))


@pytest.mark.parametrize("block_size", [1, 7, 1000])
def test_ranks_of_scores_are_those_of_a_sorted_list_and_ties_count_against(block_size):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (30, 40)).astype(np.float64)
    query_ids, gallery_ids = torch.arange(30) % 10, torch.arange(40) % 10
    ranks = rank_scores(lambda a, b: scores[a:b], query_ids, gallery_ids, block_size, progress=False)
    for query in range(30):
        order = sorted(range(40), key=lambda i: (-scores[query, i], gallery_ids[i] == query_ids[query]))
        places = [place for place, i in enumerate(order, 1) if gallery_ids[i] == query_ids[query]]
        assert ranks.first_match_rank[query] == places[0] and ranks.num_matches[query] == 4
        precision = sum(count / place for count, place in enumerate(places, 1)) / 4
        assert ranks.average_precision[query] == pytest.approx(precision)
        assert ranks.inverse_negative_penalty[query] == pytest.approx(4 / places[-1])


def test_ranks_without_a_match_or_of_nan_are_refused():
    ids = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="query 1 has no match"):
        rank_scores(lambda a, b: np.eye(2)[a:b], ids, torch.tensor([0, 0]), progress=False)
    with pytest.raises(ValueError, match="query 0 has a score that is NaN"):
        rank_scores(lambda a, b: np.full((b - a, 2), np.nan), ids, ids, progress=False)


def test_phrasings_rank_by_the_mean_of_their_scores():
    encoded = clustered_set(noise=1.5)
    ranks = rescore("phrasings", encoded, progress=False)
    each = (encoded.text_embeds.double() @ encoded.image_embeds.double().T).numpy()
    means = np.stack([each[encoded.text_image_index == image].mean(axis=0) for image in encoded.text_image_index])
    slow = rank_scores(lambda a, b: means[a:b], encoded.text_person_ids, encoded.image_person_ids, progress=False)
    # two images are the same to the last bit, which float64 means of scores may not show
    np.testing.assert_allclose(ranks.average_precision, slow.average_precision, atol=1e-9)
    plain = rank_queries(encoded.text_embeds, encoded.image_embeds, encoded.text_person_ids, encoded.image_person_ids)
    assert ranks.average_precision.mean() > plain.average_precision.mean()


def test_captions_alone_are_left_and_sets_without_phrasings_refused():
    embeds = torch.eye(4)
    averaged = average_phrasings(embeds, torch.tensor([0, 3, 3, 7]))
    assert torch.equal(averaged[[0, 3]], embeds[[0, 3]])
    assert averaged[1].tolist() == averaged[2].tolist() == [0, 0.5, 0.5, 0]
    with pytest.raises(ValueError, match="two captions or more"):
        average_phrasings(embeds, torch.arange(4))


def test_likelihood_of_a_caption_is_that_of_its_words_one_at_a_time():
    model, ids, pixels = tiny_model(), tiny_captions([6, 9, 12]), tiny_images(5)
    candidates = torch.arange(3 * benchmark_rescoring.TOP).view(3, -1) % 5
    with torch.no_grad():
        tokens = model.gadms.project_image_tokens(model.gadms.vision_model(pixels).last_hidden_state)
        found = benchmark_rescoring.likelihood(model, ids, tokens[candidates.flatten()])
    parts = benchmark_rescoring.PARTS
    for row, column in ((0, 0), (1, 3), (2, 1)):
        end = int(eos_positions(ids[row : row + 1]))
        words = ids[row : row + 1, : end + 1]
        scores = []
        for place in range(1, end):
            masked = words.clone()
            masked[0, [i for i in range(1, end) if (i - place) % parts == 0]] = model.config.mask_token_id
            here = torch.zeros_like(words, dtype=torch.bool)
            here[0, place] = True
            with torch.no_grad():
                texts = model.gadms.text_projection(model.gadms.text_model(masked).last_hidden_state)
                image = tokens[candidates[row, column]][None]
                logits = model.decoder(texts, image, torch.ones_like(here), here)
            scores.append(logits.log_softmax(dim=-1)[0, words[0, place]].item())
        assert found[row, column].item() == pytest.approx(sum(scores) / len(scores), abs=1e-5)


def test_an_unknown_rescoring_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="no re-scoring 'magic'; choose from phrasings, k-reciprocal"):
        rescore("magic", clustered_set())
    assert set(RESCORINGS) == {"phrasings", "k-reciprocal"}


def test_k_reciprocal_helps_where_persons_have_many_images():
    encoded = clustered_set(num_persons=20, views=8, noise=1.2)
    ranks = rescore("k-reciprocal", encoded, progress=False)
    plain = rank_queries(encoded.text_embeds, encoded.image_embeds, encoded.text_person_ids, encoded.image_person_ids)
    assert ranks.average_precision.mean() > plain.average_precision.mean() + 0.02
