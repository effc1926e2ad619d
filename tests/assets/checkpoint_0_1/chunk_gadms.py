"""What a chunk of a batch must know of the rest, so that chunks one by one give the gradient of the whole batch."""

from dataclasses import dataclass

import torch


@dataclass
class BatchChunk:
    """One chunk's part in the loss of its batch: the mean over chunks of their losses is the loss of the batch.

    Attributes:
        batch_sdm_loss (`torch.Tensor`): scalar, SDM over the whole batch of all processes.
        image_gradient (`torch.Tensor` of shape `(B, D)`): float32, derivative of `batch_sdm_loss` by the image
            embeddings of this chunk, times the number of chunks.
        text_gradient (`torch.Tensor` of shape `(B, D)`): the same for its text embeddings.
        num_masked (`torch.Tensor`): scalar, tokens to predict: mean over the chunks of all processes.
        num_rows (`float`): pairs: mean over chunks.
    """

    batch_sdm_loss: torch.Tensor
    image_gradient: torch.Tensor
    text_gradient: torch.Tensor
    num_masked: torch.Tensor
    num_rows: float

    def sdm_loss(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """The batch's SDM, with the gradient that flows through these `(B, D)` embeddings."""
        linear = (image_embeds.float() * self.image_gradient).sum() + (text_embeds.float() * self.text_gradient).sum()
        return linear + (self.batch_sdm_loss - linear).detach()
