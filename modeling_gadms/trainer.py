"""The Trainer of GA-DMS: wires rows, the paper's optimiser and schedule, logging and retrieval evaluation."""

import json
import math
import os
import time
from functools import partial

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint, speed_metrics

from .data_collator import PairCollator
from .encoding import encode_retrieval_set
from .training_arguments import GADMSTrainingArguments
from .training_data import EpochSampler, StreamedRows, TrainingRows

LOSS_PARTS = ("sdm_loss", "mtp_loss", "noise_rate", "prediction_rate", "no_valid_tokens")


class GADMSTrainer(Trainer):
    """Pre-train [`GADMSForPreTraining`] on captioned images, and measure retrieval.

    The batch of all processes enters the loss, whatever their number; runs repeat bit for bit from `args.seed`, and
    resume exactly.

    Args:
        model ([`GADMSForPreTraining`]): what to train.
        args ([`GADMSTrainingArguments`]): the recipe.
        processing_class ([`GADMSProcessor`]): saved with every checkpoint.
        train_dataset (`datasets.Dataset` or `datasets.IterableDataset`, *optional*): columns `image`, `image_path`,
            `caption1`, ...
        eval_dataset (`datasets.Dataset`, or a `dict` of them, *optional*): the same columns, and `person_id` if images
            share persons.
        kwargs: passed to [`Trainer`].

    Raises:
        ValueError: fewer rows than one batch, a data set without the columns, or several GPUs in one process.
        FloatingPointError: in training, a loss that is not finite; names the step and the images of the batch.
    """

    loss_is_scaled_for_ga = False

    def __init__(self, model, args: GADMSTrainingArguments, processing_class, train_dataset=None, **kwargs):
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs in one process would split the batch of the loss; start one process for each with "
                "`accelerate launch`, or choose one by CUDA_VISIBLE_DEVICES"
            )
        if train_dataset is not None:
            train_dataset = _check_and_wrap(train_dataset, args)
        collator = PairCollator(
            processing_class,
            seed=args.seed if args.data_seed is None else args.data_seed,
            crop_padding=args.crop_padding,
            flip_probability=args.flip_probability,
            erasing_probability=args.erasing_probability,
        )
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = args.dual_masking() is None  # without masks the decoder has no part
        super().__init__(
            model,
            args,
            data_collator=collator,
            train_dataset=train_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self._loss_parts: list[torch.Tensor] = []

    # ---- data

    def _get_train_sampler(self, train_dataset=None):
        return EpochSampler(len(self.train_dataset), self.data_collator.seed)

    def get_train_dataloader(self) -> DataLoader:
        if not isinstance(self.train_dataset, StreamedRows):
            return super().get_train_dataloader()
        # the stream is already this process's own share, so accelerate must not share it out once more
        return DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            drop_last=self.args.dataloader_drop_last,
        )

    # ---- optimiser and schedule

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            self.optimizer = torch.optim.Adam(
                parameters,
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                weight_decay=self.args.weight_decay,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None:
            epochs = self.args.num_train_epochs
            if not isinstance(self.train_dataset, StreamedRows):
                batch = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
                epochs = num_training_steps * batch / len(self.train_dataset)
            warmup_steps = round(num_training_steps * min(self.args.warmup_epochs / epochs, 1))
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                self.optimizer if optimizer is None else optimizer,
                partial(
                    warmup_then_cosine,
                    warmup_steps=warmup_steps,
                    num_training_steps=num_training_steps,
                    warmup_factor=self.args.warmup_factor,
                ),
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # ---- loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        image_paths = inputs.pop("image_paths")
        outputs = model(**inputs, masking=self.args.dual_masking(), mtp_weight=self.args.mtp_weight)
        if not torch.isfinite(outputs.loss):
            last = get_last_checkpoint(self.args.output_dir) if os.path.isdir(self.args.output_dir) else None
            raise FloatingPointError(
                f"the loss is {outputs.loss.item()} at step {self.state.global_step + 1}, on a batch of images "
                f"{', '.join(image_paths)}. Weights were not updated; last checkpoint: {last or 'none yet'}. "
                "Lower the learning rate, or look at these images"
            )
        parts = [outputs[name] for name in LOSS_PARTS if name in outputs]
        self._loss_parts.append(torch.stack([part.float() for part in parts]).detach())
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs, start_time=None):
        if "loss" in logs and self._loss_parts:
            means = self.accelerator.reduce(torch.stack(self._loss_parts).mean(dim=0), reduction="mean")
            logs |= dict(zip(LOSS_PARTS, means.tolist(), strict=False))  # SDM alone, when there are no masks
            self._loss_parts.clear()
        super().log(logs, start_time)

    # ---- evaluation

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Retrieval both ways: `eval_t2i_R@1`, `..._R@5`, `..._R@10`, `..._mAP`, `..._mINP`, `eval_i2t_R@1`, ..."""
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(eval_dataset, dict):
            metrics = {}
            for name, part in eval_dataset.items():
                metrics |= self.evaluate(part, metric_key_prefix=f"{metric_key_prefix}_{name}")
            return metrics
        start = time.time()
        encoded = encode_retrieval_set(
            self.accelerator.unwrap_model(self.model).base_model,
            self.processing_class,
            eval_dataset,
            batch_size=self.args.per_device_eval_batch_size,
            progress=not self.args.disable_tqdm and self.is_world_process_zero(),
        )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in encoded.metrics().items()}
        metrics |= speed_metrics(metric_key_prefix, start, num_samples=len(eval_dataset))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- saving

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            # the parent pickles the arguments; JSON can be read without running what it holds
            folder = self.args.output_dir if output_dir is None else output_dir
            os.remove(os.path.join(folder, "training_args.bin"))
            with open(os.path.join(folder, "training_args.json"), "w") as file:
                json.dump(self.args.to_dict(), file, indent=2)


def warmup_then_cosine(step: int, *, warmup_steps: int, num_training_steps: int, warmup_factor: float) -> float:
    """Share of the learning rate at an optimiser step: linear from `warmup_factor` to 1, then half a cosine to 0."""
    if step < warmup_steps:
        return warmup_factor + (1 - warmup_factor) * step / warmup_steps
    done = (step - warmup_steps) / max(num_training_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1)))


def _check_and_wrap(dataset, args):
    """Find out before training what would stop it, and let rows know their epoch."""
    columns = dataset.column_names
    if columns is not None and not {"image", "image_path", "caption1"} <= set(columns):
        raise ValueError(f"the training set needs the columns image, image_path, caption1, ...; it has {columns}")
    if isinstance(dataset, datasets.IterableDataset):
        return StreamedRows(split_dataset_by_node(dataset, args.process_index, args.world_size))
    batch = args.train_batch_size * args.world_size
    if len(dataset) < batch and args.dataloader_drop_last:
        raise ValueError(
            f"{len(dataset)} rows do not fill one batch of {batch}; lower per_device_train_batch_size, or pass "
            "dataloader_drop_last=False on one process"
        )
    return TrainingRows(dataset)
