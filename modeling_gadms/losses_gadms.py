"""The losses: similarity distribution matching (SDM), masked token prediction (MTP) and, in fine-tuning, identity.

In place of SDM there is the sigmoid loss, with which SigLIP was trained.
"""

import math

import torch
import torch.nn.functional as F

IGNORED = -100  # the label of a token that is not to be predicted, which cross-entropy passes over


def cosines(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """Cosine of every image with every caption, `(N, D)` and `(M, D)` -> `(N, M)`, float32.

    Autocast would take the product back to half precision, whose error is a multiple of a whole logit at 0.02.
    """
    with torch.autocast(image_embeds.device.type, enabled=False):
        image_embeds = F.normalize(image_embeds.float(), dim=-1)
        text_embeds = F.normalize(text_embeds.float(), dim=-1)
        return image_embeds @ text_embeds.T


def sdm_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    person_ids: torch.Tensor,
    temperature: float = 0.02,
    eps: float = 1e-8,
    swap_logits: torch.Tensor | None = None,
) -> torch.Tensor:
    """Similarity distribution matching between all images and all captions of a batch (IRRA, equations 5 to 7).

    `KL(p || q)` of image-to-text and of text-to-image, summed: `p` is the row softmax of cosine / temperature, `q` the
    matrix of matching identities, its rows scaled to sum to one.

    Copies of an image's own caption in which a word is false are negatives of that image alone: its row of
    image-to-text goes on with their `K` logits, `q` is 0 there, and nothing else changes. With the logits `z` and `s`
    of its row and of its copies, its part is `sum_j p_j (log p_j - log(q_j + eps)) + sum_k r_k (log r_k - log eps)`
    over `N` captions and `K` copies, where `(p, r) = softmax((z, s))`.

    Args:
        image_embeds (`torch.Tensor` of shape `(N, D)`): image embeddings, of any norm above 0.
        text_embeds (`torch.Tensor` of shape `(N, D)`): embeddings of their captions.
        person_ids (`torch.Tensor` of shape `(N,)`): integers; pairs with equal ids match each other.
        temperature (`float`): 0.02 in the paper.
        eps (`float`): added to `q` inside the logarithm.
        swap_logits (`torch.Tensor` of shape `(N, K)`, *optional*): float32, from [`swapped_logits`].

    Returns:
        `torch.Tensor`: scalar, float32, mean over rows.
    """
    similarity = cosines(image_embeds, text_embeds)
    # `matches` is symmetric, so its rows serve image-to-text and text-to-image alike
    matches = (person_ids[:, None] == person_ids[None]).float()
    log_target = (matches / matches.sum(dim=1, keepdim=True) + eps).log()

    def divergence(logits: torch.Tensor, log_target: torch.Tensor) -> torch.Tensor:
        log_prediction = logits.log_softmax(dim=1)
        return (log_prediction.exp() * (log_prediction - log_target)).sum(dim=1).mean()

    to_captions, target = similarity / temperature, log_target
    if swap_logits is not None:
        to_captions = torch.cat([to_captions, swap_logits], dim=1)
        target = F.pad(log_target, (0, swap_logits.shape[1]), value=math.log(eps))
    return divergence(to_captions, target) + divergence(similarity.T / temperature, log_target)


def swapped_logits(
    image_embeds: torch.Tensor, swap_embeds: torch.Tensor, weights: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Logits of each image and its own swapped captions, `cosine / temperature + log(weight)`.

    So a copy counts in the softmax as `weight` copies would, and one of weight 0 as none.

    Args:
        image_embeds (`torch.Tensor` of shape `(N, D)`): image embeddings, of any norm above 0.
        swap_embeds (`torch.Tensor` of shape `(N, K, D)`): embeddings of the copies of each image's caption.
        weights (`torch.Tensor` of shape `(N, K)`): probability that the copy is false, in [0, 1].
        temperature (`float`): as in [`sdm_loss`].

    Returns:
        `torch.Tensor` of shape `(N, K)`, float32.
    """
    with torch.autocast(swap_embeds.device.type, enabled=False):  # see `cosines`
        images = F.normalize(image_embeds.float(), dim=-1)
        swaps = F.normalize(swap_embeds.float(), dim=-1)
        similarity = (images[:, None] * swaps).sum(dim=-1)
    # the logarithm stays finite, or the loss, 0 times infinity there, would not
    return similarity / temperature + weights.float().clamp_min(torch.finfo(torch.float32).tiny).log()


def sigmoid_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    image_ids: torch.Tensor,
    text_ids: torch.Tensor,
    temperature: float,
    bias: float,
) -> torch.Tensor:
    """Whether each image and each caption belong together, one yes or no a pair (SigLIP, section 3.2).

    `-log sigmoid(z * (cosine / temperature + bias))`, where `z` is 1 if the identities are equal, of whatever rows,
    and -1 otherwise. Unlike in SDM, no pair's part depends on the others, so that each of several processes compares
    its own images with the captions of all, and the mean of their losses is the loss of the batch.

    Args:
        image_embeds (`torch.Tensor` of shape `(N, D)`): image embeddings, of any norm above 0.
        text_embeds (`torch.Tensor` of shape `(M, D)`): caption embeddings.
        image_ids (`torch.Tensor` of shape `(N,)`): integers.
        text_ids (`torch.Tensor` of shape `(M,)`): integers; equal ones match.
        temperature (`float`): as in [`sdm_loss`].
        bias (`float`): the logit of a pair before it is looked at; -10 where SigLIP starts, since few pairs match.

    Returns:
        `torch.Tensor`: scalar, float32, sum over captions and mean over images.
    """
    logits = cosines(image_embeds, text_embeds) / temperature + bias
    signs = torch.where(image_ids[:, None] == text_ids[None], 1.0, -1.0)
    return -F.logsigmoid(signs * logits).sum() / len(logits)


def mtp_loss(logits: torch.Tensor, labels: torch.Tensor, num_masked: int | torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy of the masked tokens (GA-DMS, section 3.3).

    Args:
        logits (`torch.Tensor` of shape `(M, vocab_size)`): predictions at the masked positions only.
        labels (`torch.Tensor` of shape `(M,)`): their true ids; `IGNORED` where there was nothing to predict.
        num_masked (`int` or `torch.Tensor`, *optional*): divisor of the sum, `M` by default. Processes that share a
            batch pass the mean of their counts, so that the mean of their losses is the loss of the batch.

    Returns:
        `torch.Tensor`: scalar, float32; 0 when nothing was masked.
    """
    total = F.cross_entropy(logits.float(), labels, reduction="sum")
    count = torch.as_tensor(len(labels) if num_masked is None else num_masked, device=logits.device)
    return total / count.clamp_min(torch.finfo(torch.float32).tiny)


def id_loss(
    image_logits: torch.Tensor, text_logits: torch.Tensor, labels: torch.Tensor, num_rows: float | None = None
) -> torch.Tensor:
    """Identity classification: mean cross-entropy of images and captions (IRRA, section 3.4).

    Args:
        image_logits (`torch.Tensor` of shape `(N, num_persons)`): output of the classifier for the images.
        text_logits (`torch.Tensor` of shape `(N, num_persons)`): output of the same classifier for the captions.
        labels (`torch.Tensor` of shape `(N,)`): int64, the person, from 0 to `num_persons - 1`.
        num_rows (`float`, *optional*): divisor of the sums, `N` by default. Chunks of a batch pass the mean of their
            sizes, so that the mean of their losses is the loss of the batch.

    Returns:
        `torch.Tensor`: scalar, float32.
    """
    of_images = F.cross_entropy(image_logits.float(), labels, reduction="sum")
    of_captions = F.cross_entropy(text_logits.float(), labels, reduction="sum")
    both = of_images + of_captions
    return both / (2 * (len(labels) if num_rows is None else num_rows))
