"""How well a score tells false tokens from true ones: AUROC and average precision, and resamples of captions."""

import numpy as np


def ranking_quality(
    suspicion: np.ndarray, is_false: np.ndarray, weights: np.ndarray | None = None
) -> tuple[float, float] | tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision of `suspicion` for false tokens; tokens of equal suspicion are taken together.

    Args:
        suspicion, is_false (`np.ndarray` of shape `(N,)`): a number, and whether it is high with reason.
        weights (`np.ndarray` of shape `(R, N)`, *optional*): how often each token counts, in each of `R` resamples.

    Returns:
        Two `np.ndarray` of shape `(R,)` in [0, 1], NaN where all tokens are alike; two numbers without `weights`.

    >>> ranking_quality(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
    (0.875, 0.8333333333333333)
    """
    if not is_false.any() or is_false.all():
        missing = float("nan") if weights is None else np.full(len(weights), np.nan)
        return missing, missing
    order = np.argsort(-suspicion, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(suspicion[order]) != 0])
    counts = np.ones((1, len(order))) if weights is None else weights[:, order]
    false = np.add.reduceat(counts * is_false[order], starts, axis=1)
    true = np.add.reduceat(counts * ~is_false[order], starts, axis=1)
    false_so_far, true_so_far = false.cumsum(axis=1), true.cumsum(axis=1)
    with np.errstate(invalid="ignore"):  # a resample may draw tokens of one kind only, or none of the first ones
        num_false, num_true = false_so_far[:, -1], true_so_far[:, -1]
        auroc = (true * (false_so_far - false / 2)).sum(axis=1) / (num_false * num_true)
        precision = np.nan_to_num(false_so_far / (false_so_far + true_so_far))
        average_precision = (false * precision).sum(axis=1) / num_false
    return (auroc, average_precision) if weights is not None else (float(auroc[0]), float(average_precision[0]))


def caption_resamples(groups: np.ndarray, num_resamples: int = 300, seed: int = 0) -> np.ndarray:
    """How often each token counts when whole captions are resampled: `(N,)` caption numbers -> `(R, N)` float32."""
    which = np.unique(groups, return_inverse=True)[1]
    num_groups = which.max() + 1
    drawn = np.random.default_rng(seed).multinomial(num_groups, np.full(num_groups, 1 / num_groups), num_resamples)
    return drawn[:, which].astype(np.float32)
