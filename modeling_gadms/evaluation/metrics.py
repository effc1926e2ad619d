"""From embeddings to the figures of a table: both directions, confidence intervals, differences between models."""

import statistics
from dataclasses import dataclass

import numpy as np

from ..person_retrieval.ranking import METRICS, QueryRanks
from .encoding import RetrievalSet
from .significance import Difference, Interval, bootstrap_interval, paired_difference
from .similarity_distribution import similarity_distributions


@dataclass(frozen=True)
class Evaluation:
    """Rankings and their metrics, by direction: `t2i` has captions as queries, `i2t` images.

    Attributes:
        ranks (`dict[str, QueryRanks]`): where each query's matches are.
        person_ids (`dict[str, np.ndarray]`): int64 `(num_queries,)`, the person of each query.
        metrics (`dict[str, dict[str, Interval]]`): by direction and metric, 0-100.
    """

    ranks: dict[str, QueryRanks]
    person_ids: dict[str, np.ndarray]
    metrics: dict[str, dict[str, Interval]]


def evaluate_embeddings(encoded: RetrievalSet, *, seed: int = 0, num_resamples: int = 10_000) -> Evaluation:
    """Rank both ways; see `ranking.rank_both_ways` for errors, and `significance` for seed and resamples."""
    images = encoded.image_person_ids[encoded.described()]
    person_ids = {"t2i": encoded.text_person_ids.numpy(), "i2t": images.numpy()}
    return evaluate_ranks(encoded.ranks(), person_ids, seed=seed, num_resamples=num_resamples)


def evaluate_ranks(
    ranks: dict[str, QueryRanks], person_ids: dict[str, np.ndarray], *, seed: int = 0, num_resamples: int = 10_000
) -> Evaluation:
    """The evaluation of given rankings; the arguments are attributes of [`Evaluation`].

    Intervals resample the persons of the queries, not single queries.
    """
    metrics = {
        way: {
            name: bootstrap_interval(values, groups=person_ids[way], seed=seed, num_resamples=num_resamples)
            for name, values in query_values(found).items()
        }
        for way, found in ranks.items()
    }
    return Evaluation(ranks, person_ids, metrics)


def mean_similarity_distribution(encoded: RetrievalSet, *, seed: int = 0, num_resamples: int = 10_000) -> Interval:
    """mSD, text to image, 0-100, with an interval as in [`evaluate_ranks`]."""
    texts, images = encoded.text_person_ids, encoded.image_person_ids
    values = 100 * similarity_distributions(encoded.text_embeds, encoded.image_embeds, texts, images)
    return bootstrap_interval(values, groups=texts.numpy(), seed=seed, num_resamples=num_resamples)


def query_values(ranks: QueryRanks) -> dict[str, np.ndarray]:
    """The score of each query, by metric: float64 `(num_queries,)` in 0-100, whose mean is the metric."""
    values = {name: 100.0 * (ranks.first_match_rank <= int(name[2:])) for name in METRICS if name.startswith("R@")}
    values["mAP"] = 100.0 * ranks.average_precision
    values["mINP"] = 100.0 * ranks.inverse_negative_penalty
    return values


def mean_of_runs(
    runs: list[Evaluation], *, seed: int = 0, num_resamples: int = 10_000
) -> dict[str, dict[str, Interval]]:
    """Metrics of several trainings of one model on the same queries: each query counts with its mean over the runs.

    Intervals resample the persons, as those of one run do; they say nothing of how far the runs lie apart.
    """
    metrics: dict[str, dict[str, Interval]] = {}
    for way, persons in runs[0].person_ids.items():
        values = [query_values(run.ranks[way]) for run in runs]
        metrics[way] = {
            name: bootstrap_interval(
                np.mean([of_run[name] for of_run in values], axis=0),
                groups=persons,
                seed=seed,
                num_resamples=num_resamples,
            )
            for name in values[0]
        }
    return metrics


def deviation_of_runs(runs: list[Evaluation]) -> dict[str, dict[str, float]]:
    """Standard deviation of each metric over at least two trainings of one model, in percentage points."""
    return {
        way: {name: statistics.stdev(run.metrics[way][name].mean for run in runs) for name in found}
        for way, found in runs[0].metrics.items()
    }


def compare(
    a: Evaluation, b: Evaluation, *, seed: int = 0, num_resamples: int = 10_000
) -> dict[str, dict[str, Difference]]:
    """`a - b` by direction and metric, over the same queries, in the directions that both have.

    See `significance.paired_difference`; the persons are its groups.
    """
    differences = {}
    for way in a.ranks.keys() & b.ranks.keys():
        of_a, of_b = query_values(a.ranks[way]), query_values(b.ranks[way])
        persons = a.person_ids[way]
        differences[way] = {
            name: paired_difference(of_a[name], of_b[name], groups=persons, seed=seed, num_resamples=num_resamples)
            for name in of_a
        }
    return dict(sorted(differences.items(), reverse=True))
