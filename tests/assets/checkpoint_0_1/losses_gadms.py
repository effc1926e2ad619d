"""The losses: similarity distribution matching (SDM), masked token prediction (MTP) and, in fine-tuning, identity."""

import torch
import torch.nn.functional as F


def sdm_loss(image_embeds, text_embeds, person_ids, temperature=0.02, eps=1e-8):
    """Similarity distribution matching between all images and all captions of a batch (IRRA, equations 5 to 7).

    `KL(p || q)` of image-to-text and of text-to-image, summed: `p` is the row softmax of cosine / temperature, `q` the
    matrix of matching identities with rows that sum to one.

    Args:
        image_embeds (`torch.Tensor` of shape `(N, D)`): image embeddings, of any norm above 0.
        text_embeds (`torch.Tensor` of shape `(N, D)`): embedding of each image's caption.
        person_ids (`torch.Tensor` of shape `(N,)`): integers; pairs with equal ids match each other.
        temperature (`float`): 0.02 in the paper.
        eps (`float`): added to `q` inside the logarithm.

    Returns:
        `torch.Tensor`: scalar, float32, mean over rows.
    """
    similarity = F.normalize(image_embeds.float(), dim=-1) @ F.normalize(text_embeds.float(), dim=-1).T
    matches = (person_ids[:, None] == person_ids[None]).float()
    log_target = (matches / matches.sum(dim=1, keepdim=True) + eps).log()  # symmetric up to row sums: both ways alike

    def divergence(logits):
        log_prediction = logits.log_softmax(dim=1)
        return (log_prediction.exp() * (log_prediction - log_target)).sum(dim=1).mean()

    return divergence(similarity / temperature) + divergence(similarity.T / temperature)


def mtp_loss(logits, labels, num_masked=None):
    """Cross-entropy of the masked tokens (GA-DMS, section 3.3).

    Args:
        logits (`torch.Tensor` of shape `(M, vocab_size)`): predictions at the masked positions alone.
        labels (`torch.Tensor` of shape `(M,)`): their true ids.
        num_masked (`int` or `torch.Tensor`, *optional*): what the sum is divided by, `M` by default. Processes that
            share a batch pass the mean of their counts, so that the mean of their losses is the loss of the batch.

    Returns:
        `torch.Tensor`: scalar, float32; 0 when nothing was masked.
    """
    num_masked = torch.as_tensor(len(labels) if num_masked is None else num_masked, device=logits.device)
    return F.cross_entropy(logits.float(), labels, reduction="sum") / num_masked.clamp_min(
        torch.finfo(torch.float32).tiny
    )


def id_loss(image_logits, text_logits, labels, num_rows=None):
    """Identity classification: the mean of the images' cross-entropy and the captions' (IRRA, section 3.4).

    Args:
        image_logits (`torch.Tensor` of shape `(N, num_persons)`): the classifier's answer to the image embeddings.
        text_logits (`torch.Tensor` of shape `(N, num_persons)`): the same classifier's to the text embeddings.
        labels (`torch.Tensor` of shape `(N,)`): int64, who it is, from 0 to `num_persons - 1`.
        num_rows (`float`, *optional*): what the sums are divided by, `N` by default. Chunks of a batch pass the mean
            of their sizes, so that the mean of their losses is the loss of the batch.

    Returns:
        `torch.Tensor`: scalar, float32.
    """
    both = sum(F.cross_entropy(logits.float(), labels, reduction="sum") for logits in (image_logits, text_logits))
    return both / (2 * (len(labels) if num_rows is None else num_rows))
