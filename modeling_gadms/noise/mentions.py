"""Says from an image whether what a caption mentions is there at all, having learnt what captions mention.

Captions leave out things that are there and make up things that are not. `m(image)`, the chance that a caption of the
image names a value of a family, is learnt from the captions themselves. Where it is lowest, things are absent, and
`mu`, how often captions name them there, is how often they are made up; where it is highest, they are there, and named
with the share `rho` (anchor points: Menon et al., 2015, "Learning from corrupted binary labels"). In between

    p(there) = (m - mu) / (rho - mu)

This is not part of the paper; `examples/studies` measures its worth.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .word_places import SaidBatch

ANCHORS = 0.05  # share of the images where a family is mentioned least, and most
MOST_LOWEST = 0.5  # of the highest share: named more often, a thing may be there and left out
LEAST_THERE = 0.01  # no image proves that nothing is there
LEAST_GAIN, LEAST_PROOF = 0.01, 5.0  # nats a caption, and in all: families of which images do not say it are there


class Mentions(nn.Module):
    """Logits of being mentioned from features of an image, and what they mean.

    Args:
        width (`int`): of the features.
        families (`int`): how many.
    """

    lowest: torch.Tensor
    highest: torch.Tensor

    def __init__(self, width: int, families: int) -> None:
        super().__init__()
        self.logits = nn.Linear(width, families)
        self.register_buffer("lowest", torch.zeros(families))  # 0 and 1: nothing is made up, all is there
        self.register_buffer("highest", torch.ones(families))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`(B, width)` -> `(B, families)`, float32."""
        return self.logits(features).float()

    def loss(self, logits: torch.Tensor, mentioned: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood of the share of captions that mention each family, a caption: `(B, families)`."""
        return F.binary_cross_entropy_with_logits(logits, mentioned, reduction="none")

    def there(self, logits: torch.Tensor) -> torch.Tensor:
        """Probability that there is something to name, at most 1, float64; 1 where images do not say."""
        lowest, highest = self.lowest.double(), self.highest.double()
        share = (logits.double().sigmoid() - lowest) / (highest - lowest)
        return torch.where(lowest > 0, share.clamp(LEAST_THERE, 1.0), 1.0)

    @torch.no_grad()
    def anchor(self, logits: torch.Tensor, mentioned: torch.Tensor, captions: int) -> None:
        """Find `lowest` and `highest`, the shares of captions that mention a family at either end.

        Args:
            logits (`torch.Tensor` of shape `(B, families)`): of images that nothing was learnt from.
            mentioned (`torch.Tensor` of shape `(B, families)`): share of their captions that mention each family.
            captions (`int`): of each image.
        """
        rates = mentioned.mean(dim=0).clamp(1e-4, 1 - 1e-4)
        plain = self.loss(rates.logit().expand_as(logits), mentioned)
        gain = captions * (plain - self.loss(logits, mentioned)).sum(dim=0)
        shown = (gain >= LEAST_GAIN * captions * len(logits)) & (gain >= LEAST_PROOF)
        count = max(round(ANCHORS * len(logits)), 1)
        ordered = mentioned.gather(0, logits.argsort(dim=0, stable=True))
        lowest, highest = ordered[:count].mean(dim=0), ordered[-count:].mean(dim=0)
        shown &= (lowest > 0) & (lowest < MOST_LOWEST * highest)
        self.lowest.copy_(torch.where(shown, lowest, 0.0))
        self.highest.copy_(torch.where(shown, highest, 1.0))


def mentioned_shares(batch: SaidBatch, families: int) -> torch.Tensor:
    """Share of each image's captions that name a value of each family: `(B, families)`, float32."""
    words, numbers = batch.places.words, batch.places.families.tolist()
    naming = {(row, name, number) for (row, name, _), number in zip(words, numbers, strict=True)}
    found = torch.zeros(len(batch.image_paths), families)
    for row, _, number in naming:
        found[row, number] += 1 / len(batch.captions)
    return found
