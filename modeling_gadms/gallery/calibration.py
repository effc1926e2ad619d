"""How likely a sentence is true of an image, from the cosine and from how the sentence scores on the whole gallery.

A cosine says little by itself: some sentences score high on every image. It is standardised by the sentence's own
distribution over the gallery, `z = (cosine - mean) / deviation`; both follow exactly from the mean and the covariance
of the gallery's vectors, so no search is needed. A logistic curve over `z`, fitted on captions whose images are known,
gives the share of results in which the sentence is true. The population is what a search shows: the ten best images
of each caption. Where many people are searched for who are not in the gallery, the true share is lower.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dataset_webperson import DataError
from dataset_webperson.files import replacing

from .unchanged import read_if_changed

FILE = "calibration.npz"
HITS = 10  # results of a caption that the curve is fitted on
BINS = 10
RESAMPLES = 1000
_RIDGE = 1e-3  # keeps the curve finite where true and false do not overlap


@dataclass(frozen=True)
class Calibration:
    """What turns a cosine into a share.

    Attributes:
        mean (`np.ndarray` of shape `(D,)`): of the gallery's unit vectors.
        covariance (`np.ndarray` of shape `(D, D)`): of the same.
        intercept (`float`): of the logistic curve over `z`.
        slope (`float`): of the same.
    """

    mean: np.ndarray
    covariance: np.ndarray
    intercept: float
    slope: float

    def probabilities(self, query: np.ndarray, cosines: np.ndarray) -> np.ndarray:
        """Calibrated shares of some cosines with `query` `(D,)`."""
        z = standardise(query, cosines, self.mean, self.covariance)
        return logistic(self.intercept + self.slope * z)

    def save(self, folder: str | os.PathLike) -> None:
        with replacing(os.path.join(folder, FILE)) as temporary, open(temporary, "wb") as file:
            np.savez(file, mean=self.mean, covariance=self.covariance, curve=np.array([self.intercept, self.slope]))


@read_if_changed(FILE)
def read_calibration(folder: str | os.PathLike) -> Calibration:
    """The calibration that was saved in a gallery.

    Raises:
        DataError: it cannot be read.
    """
    path = os.path.join(folder, FILE)
    try:
        with np.load(path, allow_pickle=False) as kept:
            intercept, slope = kept["curve"].tolist()
            return Calibration(kept["mean"], kept["covariance"], intercept, slope)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run `calibrate` again") from error


def logistic(x: np.ndarray) -> np.ndarray:
    """`1 / (1 + exp(-x))` without overflow.

    >>> logistic(np.array([0.0, 1000.0, -1000.0]))
    array([0.5, 1. , 0. ])
    """
    return 0.5 * (1 + np.tanh(np.asarray(x) / 2))


def standardise(query: np.ndarray, cosines: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """`(cosine - mean) / deviation` of a query's cosines with the whole gallery."""
    deviation = np.sqrt(max(float(query @ covariance @ query), 1e-12))
    return (np.asarray(cosines) - float(query @ mean)) / deviation


def fit_curve(z: np.ndarray, is_true: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of the likeliest logistic curve, by Newton's method with a slight pull of the slope to 0.

    Args:
        z (`np.ndarray` of shape `(pairs,)`): standardised cosines.
        is_true (`np.ndarray` of shape `(pairs,)`): bool.

    Raises:
        DataError: all pairs are true, or none is.
    """
    if is_true.all() or not is_true.any():
        raise DataError(
            f"{int(is_true.sum())} of {len(is_true)} results of the captions are true: nothing to tell apart; check "
            "that the captions name images of this gallery"
        )
    inputs = np.stack([np.ones_like(z), z], axis=1)
    pull = np.diag([0.0, _RIDGE])
    curve = np.zeros(2)
    for _ in range(100):
        shares = logistic(inputs @ curve)
        gradient = inputs.T @ (is_true - shares) - pull @ curve
        hessian = (inputs * (shares * (1 - shares))[:, None]).T @ inputs + pull + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        curve = curve + step * min(1.0, 5 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    return float(curve[0]), float(curve[1])


def calibration_error(shares: np.ndarray, is_true: np.ndarray) -> float:
    """Expected calibration error: pairs in ten equal parts by their share; mean distance of stated and true share.

    >>> calibration_error(np.array([0.2, 0.2, 0.9, 0.9]), np.array([0, 0, 1, 1]))
    0.15
    """
    order = np.argsort(shares, kind="stable")
    error = 0.0
    for part in np.array_split(order, min(BINS, len(order))):
        error += len(part) / len(order) * abs(float(shares[part].mean()) - float(is_true[part].mean()))
    return round(error, 12)


def error_with_interval(
    shares: np.ndarray, is_true: np.ndarray, groups: np.ndarray, seed: int = 0
) -> tuple[float, float, float]:
    """The error and its 95 % interval, from drawing captions with all their results anew, 1,000 times.

    Args:
        shares, is_true (`np.ndarray` of shape `(pairs,)`): as in [`calibration_error`].
        groups (`np.ndarray` of shape `(pairs,)`): int, the caption of each pair.
        seed (`int`): of the drawing.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    drawn = []
    for _ in range(RESAMPLES):
        pairs = np.concatenate([members[index] for index in rng.integers(len(members), size=len(members))])
        drawn.append(calibration_error(shares[pairs], is_true[pairs]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return calibration_error(shares, is_true), float(low), float(high)


def fitted_apart(z: np.ndarray, is_true: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Shares `(pairs,)` of each half of the captions by the curve that was fitted on the other half."""
    shares = np.zeros(len(z))
    for half in (0, 1):
        own = groups % 2 == half
        intercept, slope = fit_curve(z[~own], is_true[~own])
        shares[own] = logistic(intercept + slope * z[own])
    return shares


def moments(vectors: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of unit vectors that come in parts `(rows, D)`."""
    count, total, products = 0, np.zeros(()), np.zeros(())
    for part in vectors:
        count, total, products = count + len(part), total + part.sum(axis=0), products + part.T @ part
    mean = np.asarray(total / count)
    return mean, np.asarray(products / count - np.outer(mean, mean))
