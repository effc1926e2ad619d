"""All scores of words in one: logistic regression whose weights come from the truth of other persons.

It reads labels, which no method of the benchmark may. What it gains over the best single score says what the scores
know between them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..false_words.word_detection import flat_scores

RIDGE = 1.0  # weight of the squared coefficients, those of the standardised scores; in words
STEPS = 25  # of Newton's method; it has converged long before


def joined(
    predictions: Mapping[str, Sequence[Sequence[Any]]],
    references: Sequence[Sequence[Mapping[str, Any]]],
    persons: Sequence[int],
) -> list[list[float]]:
    """What methods say of the words of captions, in one score for each word; `persons` has one for each caption."""
    scores = np.column_stack([flat_scores(found, references) for found in predictions.values()])
    is_false = np.array([word["is_false"] for words in references for word in words], dtype=bool)
    lengths = [len(words) for words in references]
    found = iter(two_fold_probabilities(scores, is_false, np.repeat(persons, lengths).tolist()).tolist())
    return [[next(found) for _ in range(length)] for length in lengths]


def two_fold_probabilities(scores: np.ndarray, is_false: np.ndarray, persons: Sequence[int]) -> np.ndarray:
    """Probability of each word to be false, learnt from the words of the other half of the persons.

    Every second person, in the order of their numbers, is in the second half. Scores are standardised by the mean and
    the spread of the half that is learnt from.

    Args:
        scores (`np.ndarray` of shape `(N, M)`): of `M` methods.
        is_false (`np.ndarray` of shape `(N,)`): bool, the truth.
        persons (integers of shape `(N,)`): the person of each word.

    Raises:
        ValueError: a half has no false or no true words.
    """
    second = np.unique(np.asarray(persons), return_inverse=True)[1] % 2 == 1
    found = np.zeros(len(scores))
    for held_out in (second, ~second):
        learnt = ~held_out
        if len(set(is_false[learnt].tolist())) < 2:
            raise ValueError("half of the persons have no false words, or no true ones: too few to learn from")
        mean, spread = scores[learnt].mean(axis=0), scores[learnt].std(axis=0)
        inputs = (scores - mean) / np.where(spread > 0, spread, 1.0)
        inputs = np.column_stack([inputs, np.ones(len(scores))])
        found[held_out] = _sigmoid(inputs[held_out] @ logistic_weights(inputs[learnt], is_false[learnt]))
    return found


def logistic_weights(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Coefficients `(M,)` that make bool `targets` `(N,)` likeliest, less a small ridge on all but the last input.

    Args:
        inputs (`np.ndarray` of shape `(N, M)`): the last column is the constant 1.
    """
    weights = np.zeros(inputs.shape[1])
    ridge = np.full(len(weights), RIDGE)
    ridge[-1] = 0.0
    for _ in range(STEPS):
        probabilities = _sigmoid(inputs @ weights)
        gradient = inputs.T @ (probabilities - targets) + ridge * weights
        curvature = (inputs * (probabilities * (1 - probabilities))[:, None]).T @ inputs + np.diag(ridge)
        weights = weights - np.linalg.solve(curvature + 1e-9 * np.eye(len(weights)), gradient)
    return weights


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -500, 500)))
