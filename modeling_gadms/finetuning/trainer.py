"""The Trainer of fine-tuning: identities from the data set, IRRA's parameter groups, and plain final checkpoints."""

from typing import Any

import datasets
from peft import PeftModel

from ..distributed_gadms import whole_state
from ..modeling_gadms import GADMSModel
from ..processing_gadms import GADMSProcessor
from ..training.samplers import KeySampler
from ..training.trainer import GADMSTrainer, Rows
from .arguments import GADMSFineTuningArguments
from .joint import TemperatureSampler
from .lora import merged
from .model import GADMSForFineTuning
from .rows import CaptionRows, PersonSampler, refuse_lone_images

# modules that IRRA calls new, even if they come from pre-training; biases of NEW_MODULES follow the rule of biases
NEW_MODULES = ("decoder.", "lora_")
NEW_HEADS = ("classifier.", ".dense.", ".head_norm.", ".vocabulary.")


class GADMSFineTuningTrainer(GADMSTrainer):
    """Fine-tune [`GADMSForFineTuning`], whole or by adapters, on persons with captions.

    Args:
        model ([`GADMSForFineTuning`], or a [`PeftModel`] of one from `lora.add_lora`): its classifier has a class for
            each `person_id` of the training set.
        args ([`GADMSFineTuningArguments`]): the recipe.
        processing_class ([`GADMSProcessor`]): saved with every checkpoint.
        train_dataset (`datasets.Dataset`, *optional*): columns `image`, `image_path`, `person_id`, and `captions`
            (lists) or `caption1`, ...; an epoch shows every caption once.
        eval_dataset (`datasets.Dataset`, or a `dict` of them, *optional*): the same columns; the best epoch is chosen
            on it, and on the mean over several.
        kwargs: passed to [`GADMSTrainer`].

    Raises:
        ValueError: as [`GADMSTrainer`]; also if the training set does not fit `instances_per_person`, if the
            classifier has another number of persons, or if there is nothing to choose the best epoch by.
    """

    args: GADMSFineTuningArguments
    train_dataset: CaptionRows | None

    def __init__(
        self,
        model: GADMSForFineTuning | PeftModel,
        args: GADMSFineTuningArguments,
        processing_class: GADMSProcessor,
        train_dataset: datasets.Dataset | None = None,
        eval_dataset: datasets.Dataset | dict[str, datasets.Dataset] | None = None,
        **kwargs: Any,
    ) -> None:
        if eval_dataset is None and args.eval_strategy != "no":
            raise ValueError(
                "no validation set to choose the best epoch by: hold persons out of train, as "
                "dataset_webperson.load_benchmark(validation_persons=...) does, or take the last epoch with "
                "eval_strategy=no and load_best_model_at_end=False"
            )
        super().__init__(
            model, args, processing_class, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs
        )
        if self.is_fsdp_enabled and isinstance(model, PeftModel):
            raise ValueError("FSDP divides layers, and adapters are merged into whole ones: leave one of them out")
        if self.train_dataset is not None:
            persons = self.train_dataset.persons
            classes = self._tuned().classifier.out_features
            if classes != len(persons):
                raise ValueError(f"the classifier has {classes} classes, the training set {len(persons)} persons")
            self.data_collator.persons = persons

    def _tuned(self) -> GADMSForFineTuning:
        """The trained model, with its adapters, if any, in place."""
        model = self._trained()
        tuned = model.get_base_model() if isinstance(model, PeftModel) else model
        assert isinstance(tuned, GADMSForFineTuning)
        return tuned

    def retriever(self) -> GADMSModel:
        return self._tuned().gadms

    # ---- data

    def training_rows(self, dataset: Rows, args: GADMSFineTuningArguments) -> CaptionRows:  # type: ignore[override]
        if not isinstance(dataset, datasets.Dataset):
            raise ValueError("fine-tuning counts persons, so it needs a data set of known length, not a stream")
        rows = CaptionRows(dataset)
        args.refuse_unfilled_batch(len(rows))
        if args.instances_per_person is not None:
            refuse_lone_images(rows, args.instances_per_person)
            # which refuses a batch that the persons cannot fill, now and not after the first evaluation
            PersonSampler(rows.person_of_pair, args.instances_per_person, args.joint_batch_size(), seed=0)
        if args.sampling_temperature > 1 and len(set(rows.set_of_pair)) < 2:
            raise ValueError(
                f"sampling_temperature={args.sampling_temperature} weighs several data sets against each other, and "
                "there is one"
            )
        return rows

    def _get_train_sampler(self, train_dataset: object = None) -> KeySampler:
        instances, temperature = self.args.instances_per_person, self.args.sampling_temperature
        if self.train_dataset is not None and temperature > 1:
            batch_size = self.args.joint_batch_size() if self.args.dataloader_drop_last else 1
            return TemperatureSampler(self.train_dataset.set_of_pair, temperature, batch_size, self.data_collator.seed)
        if instances is None or self.train_dataset is None:
            return super()._get_train_sampler(train_dataset)
        return PersonSampler(
            self.train_dataset.person_of_pair, instances, self.args.joint_batch_size(), self.data_collator.seed
        )

    # ---- optimiser

    def factor_and_decay(self, name: str) -> tuple[float, float]:
        """Learning-rate factor and weight decay of a parameter; the rules are in IRRA's order."""
        is_bias = name.endswith("bias")
        decay = 0.0 if is_bias else self.args.weight_decay
        if any(part in name for part in NEW_HEADS):
            return self.args.new_module_factor, decay
        if is_bias:
            return self.args.bias_factor, decay
        if any(part in name for part in NEW_MODULES):
            return self.args.new_module_factor, decay
        return 1.0, decay

    # ---- saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a plain [`GADMSForPreTraining`], adapters merged, for `AutoModel`.

        Checkpoints during training pass here too: they keep the classifier and, with LoRA, only the trained weights.
        """
        if _internal_call and output_dir is not None:
            super().save_model(output_dir, _internal_call)
            return
        state = whole_state(self._tuned())  # by all processes together
        if self.args.should_save:
            folder = self.args.output_dir if output_dir is None else output_dir
            model = self._trained()
            plain = (merged(model) if isinstance(model, PeftModel) else self._tuned()).plain()
            names = plain.state_dict().keys()
            plain.save_pretrained(folder, state_dict=state and {name: state[name] for name in names})
            self.processing_class.save_pretrained(folder)
            self.save_arguments(folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
