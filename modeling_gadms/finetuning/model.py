"""The fine-tuning model: a pre-training model with a classifier over the persons of the training set."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import can_return_tuple

from ..chunk_gadms import BatchChunk
from ..configuration_gadms import GADMSConfig
from ..losses_gadms import id_loss
from ..modeling_gadms import GADMSForPreTraining, GADMSForPreTrainingOutput


@dataclass
class GADMSForFineTuningOutput(GADMSForPreTrainingOutput):
    """As [`GADMSForPreTrainingOutput`], and

    id_loss (`torch.Tensor`): scalar, identity classification.
    """

    id_loss: torch.Tensor | None = None


class GADMSForFineTuning(GADMSForPreTraining):
    """[`GADMSForPreTraining`] with a linear classifier on both embeddings of a pair (IRRA).

    The classifier serves training only: checkpoints of training hold it, [`GADMSModel`] and [`GADMSForPreTraining`]
    load them without it, and `plain` is the model to publish.

    Args:
        config ([`GADMSConfig`]): configuration of the model.
        num_persons (`int`): number of persons in the training set.
    """

    _auto_class = None  # its code does not ship with checkpoints

    def __init__(self, config: GADMSConfig, num_persons: int) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(config.projection_dim, num_persons)
        init.normal_(self.classifier.weight, std=0.001)  # IRRA
        init.zeros_(self.classifier.bias)

    @classmethod
    def from_pre_training(cls, model: GADMSForPreTraining, num_persons: int) -> "GADMSForFineTuning":
        """Add a new classifier to `model`; the weights are shared, not copied."""
        tuned = cls(model.config, num_persons)
        tuned.gadms, tuned.decoder = model.gadms, model.decoder
        return tuned

    def plain(self) -> GADMSForPreTraining:
        """The model without its classifier; the weights are shared, not copied."""
        model = GADMSForPreTraining(self.config)
        model.gadms, model.decoder = self.gadms, self.decoder
        return model

    @can_return_tuple
    def forward(  # the persons must be known
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        *,
        person_ids: torch.Tensor,
        id_weight: float = 1.0,
        chunk: BatchChunk | None = None,
        **kwargs: Any,
    ) -> GADMSForFineTuningOutput:
        """As [`GADMSForPreTraining`], with classes as `person_ids`, and `id_weight` times ID added to the loss."""
        outputs = super().forward(
            pixel_values, input_ids, person_ids=person_ids, chunk=chunk, return_dict=True, **kwargs
        )
        assert outputs.loss is not None
        image_logits, text_logits = self.classifier(outputs.image_embeds), self.classifier(outputs.text_embeds)
        identity = id_loss(image_logits, text_logits, person_ids, None if chunk is None else chunk.num_rows)
        return GADMSForFineTuningOutput(
            **{**outputs, "loss": outputs.loss + id_weight * identity, "id_loss": identity.detach()}
        )
