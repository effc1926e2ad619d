"""Image-text matching: which pairs of a batch it is learnt from, and the loss.

Every pair of the batch is a match. For each image one caption of another person is drawn that the towers take for
near, and for each caption one such image; these are no matches (ALBEF, section 3.2).
"""

import torch
import torch.nn.functional as F

NUM_NEGATIVE_DRAWS = 2  # uniform numbers per row: for the caption drawn for its image, the image for its caption


def hard_negatives(
    logits: torch.Tensor, row_ids: torch.Tensor, column_ids: torch.Tensor, uniforms: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw for each row a column of another identity, each with the softmax of its logit among these.

    Args:
        logits (`torch.Tensor` of shape `(N, M)`): similarities, divided by a temperature.
        row_ids (`torch.Tensor` of shape `(N,)`), column_ids (`(M,)`): integers; equal ones match and are not drawn.
        uniforms (`torch.Tensor` of shape `(N,)`): in [0, 1); the draw of a row depends on its own number only.

    Returns:
        the columns `(N,)` int64, and whether there was one to draw `(N,)` bool; where there was none, 0 and False.
    """
    other = row_ids[:, None] != column_ids[None]
    # in float64 no column of the same identity is drawn by rounding
    weights = logits.double().masked_fill(~other, -torch.inf).softmax(dim=1)
    reached = weights.cumsum(dim=1)
    chosen = (reached <= uniforms.double()[:, None] * reached[:, -1:]).sum(dim=1)
    return chosen, other.any(dim=1)


def matching_loss(logits: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of whether pairs match.

    Args:
        logits (`torch.Tensor` of shape `(P, 2)`): of no match, and of a match.
        labels (`torch.Tensor` of shape `(P,)`): int64, 1 for a match.
        counted (`torch.Tensor` of shape `(P,)`): bool; other pairs add nothing to the sum, which is divided by `P` all
            the same, so that the mean over processes is the loss of all pairs.

    Returns:
        `torch.Tensor`: scalar, float32.
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return (losses * counted).sum() / len(labels)
