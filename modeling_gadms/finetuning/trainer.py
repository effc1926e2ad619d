"""The Trainer of fine-tuning: identities from the data set, IRRA's parameter groups, plain checkpoints in the end."""

import datasets
import torch
from peft import PeftModel

from ..training.trainer import GADMSTrainer
from .arguments import GADMSFineTuningArguments
from .lora import merged
from .model import GADMSForFineTuning
from .rows import CaptionRows, PersonSampler, refuse_lone_images

# modules that IRRA calls new, whether or not pre-training has seen them; biases of the first are treated as biases
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
        eval_dataset (`datasets.Dataset`, *optional*): the same columns; chooses the best epoch.
        kwargs: passed to [`GADMSTrainer`].

    Raises:
        ValueError: also where the training set does not fit `instances_per_person` or has more or fewer persons than
            the classifier, or where there is nothing to choose the best epoch by.
    """

    def __init__(
        self, model, args: GADMSFineTuningArguments, processing_class, train_dataset=None, eval_dataset=None, **kwargs
    ):
        if eval_dataset is None and args.eval_strategy != "no":
            raise ValueError(
                "no validation set to choose the best epoch by: hold persons out of train, as "
                "dataset_webperson.load_benchmark(validation_persons=...) does, or take the last epoch, by "
                "eval_strategy=no and load_best_model_at_end=False"
            )
        super().__init__(
            model, args, processing_class, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs
        )
        if train_dataset is not None:
            persons = self.train_dataset.persons
            classes = self._tuned().classifier.out_features
            if classes != len(persons):
                raise ValueError(f"the classifier has {classes} classes, the training set {len(persons)} persons")
            self.data_collator.persons = persons

    def _tuned(self) -> GADMSForFineTuning:
        """What is trained, with its adapters, if it has any, in place."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if isinstance(model, PeftModel) else model

    def retriever(self):
        return self._tuned().gadms

    # ---- data

    def training_rows(self, dataset, args):
        if isinstance(dataset, datasets.IterableDataset):
            raise ValueError("fine-tuning counts persons, so it needs a data set of known length, not a stream")
        rows = CaptionRows(dataset)
        args.refuse_unfilled_batch(len(rows))
        if args.instances_per_person is not None:
            refuse_lone_images(rows, args.instances_per_person)
        return rows

    def _get_train_sampler(self, train_dataset=None):
        instances = self.args.instances_per_person
        if instances is None:
            return super()._get_train_sampler(train_dataset)
        people, batch_size = self.train_dataset.person_of_pair, self.args.joint_batch_size()
        return PersonSampler(people, instances, batch_size, self.data_collator.seed)

    # ---- optimiser

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            # the first group's rate is the one that is logged
            groups: dict[tuple[float, float], list] = {(1.0, self.args.weight_decay): []}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    groups.setdefault(self._factor_and_decay(name), []).append(parameter)
            self.optimizer = torch.optim.Adam(
                [
                    {"params": parameters, "lr": factor * self.args.learning_rate, "weight_decay": decay}
                    for (factor, decay), parameters in groups.items()
                    if parameters
                ],
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
            )
        return self.optimizer

    def _factor_and_decay(self, name: str) -> tuple[float, float]:
        """Learning-rate factor and weight decay of a parameter, in the order of IRRA's rules."""
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

    def save_model(self, output_dir=None, _internal_call=False):
        """Write a plain [`GADMSForPreTraining`], adapters merged, for `AutoModel`.

        The checkpoints amid training also pass here: they keep the classifier, and of LoRA what is trained alone.
        """
        if _internal_call and output_dir is not None:
            super().save_model(output_dir, _internal_call)
            return
        if self.args.should_save:
            folder = self.args.output_dir if output_dir is None else output_dir
            model = self.accelerator.unwrap_model(self.model)
            tuned = merged(model) if isinstance(model, PeftModel) else model
            tuned.plain().save_pretrained(folder)
            self.processing_class.save_pretrained(folder)
            self.save_arguments(folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
