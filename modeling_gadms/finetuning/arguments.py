"""Arguments of fine-tuning; the defaults are IRRA's recipe, which the paper follows."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..masking_gadms import Masking, RandomMasking
from ..training.arguments import GADMSTrainingArguments


@dataclass
class GADMSFineTuningArguments(GADMSTrainingArguments):
    """[`GADMSTrainingArguments`] with IRRA's defaults: SDM + ID + masked language modelling, 60 epochs of 64 pairs.

    The best epoch is chosen by `metric_for_best_model` on the evaluation set, which should be a validation set.

    Raises:
        ValueError: a constant is outside its range, or options contradict each other.
    """

    HELP_GROUPS: ClassVar[dict[str, dict[str, str]]] = {
        **GADMSTrainingArguments.HELP_GROUPS,
        "recipe": {
            **GADMSTrainingArguments.HELP_GROUPS["recipe"],
            "id_weight": "",
            "new_module_factor": "",
            "bias_factor": "",
            "instances_per_person": "",
            "sampling_temperature": "",
        },
        "masks": {
            "masking": "",
            "mask_probability": "",
            "mask_captions_in_place": "",
            "alpha_noise": "",
            "alpha_info": "",
            "steepness": "",
            "gamma_noise": "",
            "gamma_info": "",
            "swap_negatives": "",
        },
    }

    # IRRA's released options; Adam's epsilon and weight decay, warm-up and augmentation are as in pre-training
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of the towers (IRRA)."})
    new_module_factor: float = field(
        default=5.0, metadata={"help": "Learning rate of decoder, classifier and adapters, relative (IRRA)."}
    )
    bias_factor: float = field(
        default=2.0, metadata={"help": "Learning rate of biases, relative; they do not decay (IRRA)."}
    )
    num_train_epochs: float = field(default=60.0, metadata={"help": "Passes over the captions (IRRA)."})
    mtp_weight: float = field(default=1.0, metadata={"help": "Weight of masked token prediction (IRRA)."})
    id_weight: float = field(default=1.0, metadata={"help": "Weight of identity classification (IRRA)."})

    masking: str = field(
        default="random",
        metadata={
            "help": "`random` hides tokens at random (IRRA), `gradient_attention` by score (GA-DMS), `none` none.",
            "choices": ["random", "gradient_attention", "none"],
        },
    )
    mask_probability: float = field(default=0.15, metadata={"help": "Probability of the random mask (IRRA)."})
    mask_captions_in_place: bool = field(
        default=False,
        metadata={
            "help": "With random masks: SDM and ID see the masked captions too, as in the released fine-tuning; for "
            "comparison with it only."
        },
    )
    instances_per_person: int | None = field(
        default=None,
        metadata={"help": "Pairs per person in a batch; by default batches are drawn at random (IRRA)."},
    )

    sampling_temperature: float = field(
        default=1.0,
        metadata={"help": "Above 1, small data sets are drawn more often than their size says."},
    )

    eval_strategy: str = field(default="epoch", metadata={"help": "When to measure retrieval on validation."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save; must equal eval_strategy."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints to keep, besides the best."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the weights of the best epoch."})
    metric_for_best_model: str | None = field(
        default="t2i_R@1", metadata={"help": "Metric that decides the best epoch."}
    )
    greater_is_better: bool | None = field(default=True, metadata={"help": "Whether a higher metric is better."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("id_weight", "new_module_factor", "bias_factor"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}")
        if self.instances_per_person is not None and self.instances_per_person < 2:
            raise ValueError(f"instances_per_person must be at least 2; got {self.instances_per_person}")
        if not self.sampling_temperature >= 1:
            raise ValueError(f"sampling_temperature must be 1 or more; got {self.sampling_temperature}")
        if self.sampling_temperature > 1 and self.instances_per_person is not None:
            raise ValueError(
                "sampling_temperature weighs pairs drawn at random; instances_per_person draws persons: choose one"
            )
        if self.mask_captions_in_place and self.masking != "random":
            raise ValueError(f"mask_captions_in_place belongs to masking=random; got masking={self.masking}")
        if self.hidden_spans is not None:
            raise ValueError(
                f"hidden_spans={self.hidden_spans} belongs to pre-training: fine-tuning takes captions whole"
            )
        if self.draw_words:
            raise ValueError("draw_words belongs to pre-training: fine-tuning takes captions as they are")
        if self.push_to_hub and self.hub_strategy != "end":
            raise ValueError(
                "hub_strategy must be end: checkpoints of fine-tuning hold a classifier of the training set's "
                "persons, which does not belong on the Hub"
            )

    def masks(self) -> Masking | None:
        if self.masking == "random":
            return RandomMasking(self.mask_probability, self.mask_captions_in_place)
        return super().masks()

    def loss_options(self) -> dict[str, Any]:
        return {**super().loss_options(), "id_weight": self.id_weight}
