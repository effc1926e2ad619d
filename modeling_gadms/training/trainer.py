"""The Trainer of GA-DMS: wires rows, the paper's optimiser and schedule, logging and retrieval evaluation."""

import math
import os
import time
from contextlib import nullcontext
from functools import partial

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import speed_metrics

from dataset_webperson.files import write_json
from dataset_webperson.rows.streaming import ShuffledParquet

from ..evaluation.encoding import RetrievalSet, encode_retrieval_set
from ..hub.pushes import HubPushes
from ..hub.run_facts import FACTS_FILE, facts_of_run
from ..rows import caption_columns
from .accumulation import Replay, plan_replays
from .arguments import GADMSTrainingArguments
from .collator import PairCollator
from .samplers import EpochSampler, ParquetRows, StreamedRows, TrainingRows

LOSS_PARTS = ("sdm_loss", "id_loss", "mtp_loss", "hidden_rate", "prediction_rate", "no_valid_tokens")


class GADMSTrainer(HubPushes, Trainer):
    """Pre-train [`GADMSForPreTraining`] on captioned images, and measure retrieval.

    The batch of all processes and of all `gradient_accumulation_steps` chunks enters the loss as one, whatever their
    numbers; runs repeat bit for bit from `args.seed`, and resume exactly.

    Args:
        model ([`GADMSForPreTraining`]): what to train.
        args ([`GADMSTrainingArguments`]): the recipe.
        processing_class ([`GADMSProcessor`]): saved with every checkpoint.
        train_dataset (`datasets.Dataset`, `datasets.IterableDataset` or `ShuffledParquet`, *optional*): columns
            `image`, `image_path`, `caption1`, ... A `ShuffledParquet` streams, and resumes without reading again what
            was seen, given as many processes, workers and rows a batch as before.
        eval_dataset (`datasets.Dataset`, or a `dict` of them, *optional*): the same columns, and `person_id` if images
            share persons.
        kwargs: passed to [`Trainer`].

    Raises:
        ValueError: fewer rows than one batch, a data set without the columns, or several GPUs in one process.
        FloatingPointError: in training, a loss that is not finite; names the step and the images of the batch.
    """

    loss_is_scaled_for_ga = False  # the parent averages the losses of chunks

    def __init__(self, model, args: GADMSTrainingArguments, processing_class, train_dataset=None, **kwargs):
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs in one process would split the batch of the loss; start one process for each with "
                "`accelerate launch`, or choose one by CUDA_VISIBLE_DEVICES"
            )
        if train_dataset is not None:
            train_dataset = self.training_rows(train_dataset, args)
        collator = PairCollator(
            processing_class,
            seed=args.seed if args.data_seed is None else args.data_seed,
            crop_padding=args.crop_padding,
            flip_probability=args.flip_probability,
            erasing_probability=args.erasing_probability,
            hidden_spans=args.hidden_spans,
        )
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = args.masks() is None  # without masks the decoder has no part
        super().__init__(
            model,
            args,
            data_collator=collator,
            train_dataset=train_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self._loss_parts: list[dict[str, torch.Tensor]] = []
        self._chunks: list[dict] = []
        self._replays: list[Replay] = []
        self.measured: RetrievalSet | None = None  # what the last evaluation encoded

    # ---- data

    def training_rows(self, dataset, args):
        """Find out before training what would stop it, and let rows know their epoch."""
        columns = dataset.column_names
        if columns is not None and not {"image", "image_path", "caption1"} <= set(columns):
            raise ValueError(f"the training set needs the columns image, image_path, caption1, ...; it has {columns}")
        if args.hidden_spans is not None and columns is not None:
            needed = {f"{name}_{args.hidden_spans}" for name in caption_columns(columns)}
            if missing := sorted(needed - set(columns)):
                raise ValueError(
                    f"hidden_spans={args.hidden_spans}: the training set lacks {', '.join(missing)}; "
                    "examples/hide_words.py writes a data set with caption1_hidden_spans, ..."
                )
        if isinstance(dataset, datasets.IterableDataset):
            return StreamedRows(split_dataset_by_node(dataset, args.process_index, args.world_size))
        if isinstance(dataset, ShuffledParquet):
            batch, workers = args.train_batch_size, args.dataloader_num_workers
            rows = ParquetRows(dataset, batch, args.world_size, workers)
        else:
            rows = TrainingRows(dataset)
        args.refuse_unfilled_batch(len(rows))
        return rows

    def _get_train_sampler(self, train_dataset=None):
        batch_size = self.args.joint_batch_size() if self.args.dataloader_drop_last else 1
        shuffle = not isinstance(self.train_dataset, ParquetRows)
        return EpochSampler(len(self.train_dataset), self.data_collator.seed, batch_size, shuffle)

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
                epochs = num_training_steps * self.args.joint_batch_size() / len(self._get_train_sampler())
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

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self._chunks, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if len(self._chunks) < num_batches:  # a stream ends amid a batch
            self._chunks = []
        self._replays = []
        return self._chunks, None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        image_paths = inputs.pop("image_paths")
        options, randomness = self.args.loss_options(), nullcontext()
        if len(self._chunks) > 1:
            self._replays = self._replays or self._plan_replays()
            replay = self._replays.pop(0)
            options["chunk"], randomness = replay.chunk, replay.same_randomness()
            if not self._replays:  # this is the last
                self._chunks = []
        with randomness:
            outputs = model(**inputs, **options)
        self._refuse_not_finite(outputs.loss, image_paths)
        self._loss_parts.append({name: outputs[name].detach().float() for name in LOSS_PARTS if name in outputs})
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _plan_replays(self):
        chunks = [self._prepare_inputs(chunk) for chunk in self._chunks]
        with self.accelerator.autocast():
            replays = plan_replays(self.accelerator.unwrap_model(self.model), chunks, self.args.masks())
        paths = [path for chunk in chunks for path in chunk["image_paths"]]
        self._refuse_not_finite(replays[0].chunk.batch_sdm_loss, paths)
        return replays

    def _refuse_not_finite(self, loss, image_paths):
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}, on a batch of images "
                f"{', '.join(image_paths)}. Weights were not updated; last checkpoint: "
                f"{self.args.last_checkpoint() or 'none yet'}. "
                "Lower the learning rate, or look at these images"
            )

    def log(self, logs, start_time=None):
        if "loss" in logs and self._loss_parts:
            names = list(self._loss_parts[0])
            values = torch.stack([torch.stack([parts[name] for name in names]) for parts in self._loss_parts])
            means = self.accelerator.reduce(values.mean(dim=0), reduction="mean")
            logs |= dict(zip(names, means.tolist(), strict=True))
            self._loss_parts.clear()
        super().log(logs, start_time)

    # ---- evaluation

    def retriever(self):
        """The [`GADMSModel`] in what is trained."""
        return self.accelerator.unwrap_model(self.model).base_model

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Retrieval both ways: `eval_t2i_R@1`, `..._R@5`, `..._R@10`, `..._mAP`, `..._mINP`, `eval_i2t_R@1`, ..."""
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(eval_dataset, dict):
            metrics = {}
            for name, part in eval_dataset.items():
                metrics |= self.evaluate(part, metric_key_prefix=f"{metric_key_prefix}_{name}")
            return metrics
        start = time.time()
        self.measured = encode_retrieval_set(
            self.retriever(),
            self.processing_class,
            eval_dataset,
            batch_size=self.args.per_device_eval_batch_size,
            progress=not self.args.disable_tqdm and self.is_world_process_zero(),
        )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.measured.metrics().items()}
        metrics |= speed_metrics(metric_key_prefix, start, num_samples=len(eval_dataset))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- saving

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = self.args.output_dir if output_dir is None else output_dir
            os.remove(os.path.join(folder, "training_args.bin"))
            self.save_arguments(folder)

    def save_arguments(self, folder):
        """As JSON, which can be read without running what it holds; the parent would pickle them."""
        write_json(os.path.join(folder, "training_args.json"), self.args.to_dict())
        write_json(os.path.join(folder, FACTS_FILE), facts_of_run(self))


def warmup_then_cosine(step: int, *, warmup_steps: int, num_training_steps: int, warmup_factor: float) -> float:
    """Share of the learning rate at an optimiser step: linear from `warmup_factor` to 1, then half a cosine to 0."""
    if step < warmup_steps:
        return warmup_factor + (1 - warmup_factor) * step / warmup_steps
    done = (step - warmup_steps) / max(num_training_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1)))
