"""The model of fine-tuning: a pre-training model with a classifier of the training set's persons."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init

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
    """[`GADMSForPreTraining`] and a linear classifier that both embeddings of a pair go through (IRRA).

    The classifier is of use in training alone: checkpoints of training hold it, [`GADMSModel`] and
    [`GADMSForPreTraining`] load them without it, and `plain` is the model to publish.

    Args:
        config ([`GADMSConfig`]): of the model.
        num_persons (`int`): persons of the training set.
    """

    _auto_class = None  # no code for it is shipped

    def __init__(self, config: GADMSConfig, num_persons: int):
        super().__init__(config)
        self.classifier = nn.Linear(config.projection_dim, num_persons)
        init.normal_(self.classifier.weight, std=0.001)  # IRRA
        init.zeros_(self.classifier.bias)

    @classmethod
    def from_pre_training(cls, model: GADMSForPreTraining, num_persons: int) -> "GADMSForFineTuning":
        """`model` with a new classifier; the weights are shared, not copied."""
        tuned = cls(model.config, num_persons)
        tuned.gadms, tuned.decoder = model.gadms, model.decoder
        return tuned

    def plain(self) -> GADMSForPreTraining:
        """The model without its classifier; the weights are shared, not copied."""
        model = GADMSForPreTraining(self.config)
        model.gadms, model.decoder = self.gadms, self.decoder
        return model

    def forward(
        self, *args, person_ids, id_weight=1.0, chunk: BatchChunk | None = None, **kwargs
    ) -> GADMSForFineTuningOutput:
        """As [`GADMSForPreTraining`], with `person_ids` that are classes, and `id_weight` times ID in the loss."""
        outputs = super().forward(*args, person_ids=person_ids, chunk=chunk, **kwargs)
        logits = self.classifier(outputs.image_embeds), self.classifier(outputs.text_embeds)
        identity = id_loss(*logits, person_ids, None if chunk is None else chunk.num_rows)
        return GADMSForFineTuningOutput(
            **{**outputs, "loss": outputs.loss + id_weight * identity, "id_loss": identity.detach()}
        )
