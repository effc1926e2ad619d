"""A chunk of a batch with all it needs of the rest, so that chunks run in turn give the gradient of the batch."""

from dataclasses import dataclass

import torch


@dataclass
class BatchChunk:
    """One chunk's part in the loss of its batch; averaged over chunks, their losses are the loss of the batch.

    Attributes:
        batch_loss (`torch.Tensor`): scalar, SDM or the sigmoid loss over the whole batch of all processes.
        image_gradient (`torch.Tensor` of shape `(B, D)`): float32, gradient of `batch_loss` with respect to
            the image embeddings of this chunk, times the number of chunks.
        text_gradient (`torch.Tensor` of shape `(B, D)`): likewise for its text embeddings.
        num_masked (`torch.Tensor`): scalar, mean number of tokens to predict per chunk, over all processes.
        num_rows (`float`): mean number of pairs per chunk.
    """

    batch_loss: torch.Tensor
    image_gradient: torch.Tensor
    text_gradient: torch.Tensor
    num_masked: torch.Tensor
    num_rows: float

    def alignment_loss(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """The alignment of the whole batch, with the gradient that flows through these `(B, D)` embeddings."""
        image_part = (image_embeds.float() * self.image_gradient).sum()
        text_part = (text_embeds.float() * self.text_gradient).sum()
        linear = image_part + text_part
        # the value is the batch's, the gradient that of the linear part
        return linear + (self.batch_loss - linear).detach()
