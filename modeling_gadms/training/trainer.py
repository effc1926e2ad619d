"""The Trainer of GA-DMS: rows, the paper's optimiser and schedule, logging, and retrieval evaluation."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from transformers import SchedulerType, get_scheduler
from transformers.trainer_utils import TrainOutput, speed_metrics
from transformers.utils import logging

from dataset_webperson import DataError
from dataset_webperson.files import write_json
from dataset_webperson.rows.streaming import ShuffledParquet

from ..distributed_gadms import undivided
from ..evaluation.encoding import RetrievalSet, encode_retrieval_set
from ..hub.pushes import HubPushes
from ..hub.run_facts import FACTS_FILE, facts_of_run
from ..modeling_gadms import GADMSModel, GADMSPreTrainedModel
from ..noise.rewriting import AS_FOUND, POSTERIOR
from ..noise.swaps import refuse_nothing_to_swap
from ..person_retrieval.ranking import DIRECTIONS, METRICS
from ..processing_gadms import GADMSProcessor
from ..rows import caption_columns, read_row
from ..towers_gadms import on_host
from .accumulation import Replay, plan_replays
from .arguments import ADAM, ARGUMENTS_FILE, GADMSTrainingArguments
from .augmentation import augmented, value_table
from .averaging import WeightAverage
from .collator import PairCollator
from .compiling import PAD_TO_MULTIPLE_OF, compile_layers
from .image_decoding import DEVICE, PILLOW, decoded_on_device
from .layer_decay import layer_factors
from .logged_pictures import keep_in_folder, log_pictures, show_pictures
from .run_report import draw_retrievals, draw_token_scores
from .samplers import EpochSampler, KeySampler, ParquetRows, RepeatedRows, StreamedRows, TrainingRows
from .shared_batches import Place, SharedBatches
from .watched_loss import WatchedLoss

logger = logging.get_logger(__name__)

Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset | ShuffledParquet

LOSSES = ("sdm_loss", "sigmoid_loss", "id_loss", "mtp_loss", "matching_loss")
LOSS_PARTS = (*LOSSES, "hidden_rate", "prediction_rate", "no_valid_tokens")


class GADMSTrainer(HubPushes):
    """Pre-train [`GADMSForPreTraining`] on captioned images, and measure retrieval.

    The batch of all processes and of all `gradient_accumulation_steps` chunks enters the loss as one, whatever their
    numbers; runs repeat bit for bit from `args.seed`, and resume exactly.

    Args:
        model ([`GADMSForPreTraining`]): the model to train.
        args ([`GADMSTrainingArguments`]): the recipe.
        processing_class ([`GADMSProcessor`]): saved with every checkpoint.
        train_dataset (`datasets.Dataset`, `datasets.IterableDataset` or `ShuffledParquet`, *optional*): columns
            `image`, `image_path`, `caption1`, ... A `ShuffledParquet` streams, and resumes without rereading rows that
            were seen, given the same numbers of processes, of workers and of rows per batch.
        eval_dataset (`datasets.Dataset`, or a `dict` of them, *optional*): the same columns, and `person_id` if images
            share persons.
        kwargs: passed to [`Trainer`].

    Raises:
        ValueError: there are fewer rows than one batch, several GPUs in one process, or a model on several devices.
        DataError: a column is missing.
        FloatingPointError: in training, the loss is not finite; names the step and the images of the batch.
    """

    args: GADMSTrainingArguments
    data_collator: PairCollator
    processing_class: GADMSProcessor
    train_dataset: TrainingRows | ParquetRows | StreamedRows | None
    eval_dataset: datasets.Dataset | dict[str, datasets.Dataset] | None

    loss_is_scaled_for_ga = False  # the parent averages the losses of chunks

    def __init__(
        self,
        model: nn.Module,
        args: GADMSTrainingArguments,
        processing_class: GADMSProcessor,
        train_dataset: Rows | None = None,
        **kwargs: Any,
    ) -> None:
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs in one process would split the batch of the loss: start one process for each with "
                "`accelerate launch`, or choose one by CUDA_VISIBLE_DEVICES"
            )
        places = sorted({str(parameter.device) for parameter in model.parameters()})
        if len(places) > 1:  # by `device_map`; what is not on any device yet is on `meta`
            raise ValueError(
                f"the model is spread over {', '.join(places)}, and training needs it on one device: load it without "
                "device_map"
            )
        if args.swap_negatives and isinstance(train_dataset, datasets.Dataset):
            refuse_nothing_to_swap(train_dataset)
        collator = PairCollator(
            processing_class,
            seed=args.seed if args.data_seed is None else args.data_seed,
            crop_padding=args.crop_padding,
            flip_probability=args.flip_probability,
            erasing_probability=args.erasing_probability,
            hidden_spans=args.hidden_spans,
            draw_words=args.draw_words,
            swap_negatives=args.swap_negatives,
            pad_to_multiple_of=PAD_TO_MULTIPLE_OF if args.compile_layers else 1,
        )
        config: Any = model.config
        if config.matching_head != (args.matching_weight > 0):
            raise ValueError(
                f"matching_weight={args.matching_weight} and the model has {'a' if config.matching_head else 'no'} "
                f"matching head: call set_matching_head({args.matching_weight > 0}) of the model first"
            )
        collator.draw_negatives = config.matching_head
        collator.augment_later = (
            args.device.type != "cpu" if args.augment_on_device is None else args.augment_on_device
        )
        if args.image_decoding != PILLOW:
            collator.image_decoding = args.image_decoding
            collator.augment_later |= args.image_decoding == DEVICE
            train_dataset = undecoded(train_dataset)
        # what workers prepare, what is in a step, and what accelerate takes ahead
        slots = (args.dataloader_prefetch_factor or 2) + args.gradient_accumulation_steps + 2
        collator.shared = self._shared = SharedBatches(args.dataloader_num_workers, slots)
        if args.compile_layers:
            compile_layers(model)
        if args.patch_dropout:
            collator.num_patches, collator.patch_dropout = math.prod(config.vision_config.grid), args.patch_dropout
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = args.masks() is None  # without masks the decoder is not used
        super().__init__(
            model,
            args,
            data_collator=collator,
            train_dataset=None if train_dataset is None else self.training_rows(train_dataset, args),
            processing_class=processing_class,
            **kwargs,
        )
        self._values: torch.Tensor | None = None  # of bytes once normalised, on the device
        keep_in_folder(self.callback_handler.callbacks, args.output_dir)
        self._loss_parts: dict[str, torch.Tensor] = {}  # sums over the chunks since the last log
        self._summed_chunks = 0
        self._chunks: list[dict[str, Any]] = []
        self._lent: list[Place | None] = []  # memory of the step's chunks
        self._replays: list[Replay] = []
        self._watched: WatchedLoss | None = None
        self.measured: RetrievalSet | None = None  # embeddings of the last evaluation
        self._average: WeightAverage | None = None  # while a training goes on

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As the parent; warns where the run to resume had another seed, masking or recipe."""
        folder = self.args.last_checkpoint() if resume_from_checkpoint is True else resume_from_checkpoint
        changes = self.args.changes_since(folder) if folder else []
        if changes and self.is_world_process_zero():
            logger.warning(f"{folder} was written by a run with other arguments; going on with {', '.join(changes)}")
        if self.args.ema_decay is None:
            output = super().train(resume_from_checkpoint, *args, **kwargs)
        else:
            self._average = average = WeightAverage(self.args.ema_decay, folder or None)
            self.add_callback(average)
            try:
                output = super().train(resume_from_checkpoint, *args, **kwargs)
                average.put_into(self._trained())
            finally:
                self._average = None
                self.remove_callback(average)
        self._look_at_watched_loss()
        return output

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self._average is not None:
            assert self.state.best_model_checkpoint is not None
            self._average.load(self.state.best_model_checkpoint)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As the parent, which counts steps only after one: a finished run that is resumed would take another."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    # ---- data

    def training_rows(self, dataset: Rows, args: GADMSTrainingArguments) -> TrainingRows | ParquetRows | StreamedRows:
        """Wrap the training set so that rows carry their epoch; refuse one that would stop the training."""
        if dataset.column_names is not None:  # a stream may not know them
            refuse_missing_columns(dataset.column_names, args.hidden_spans, args.draw_words)
        if isinstance(dataset, datasets.IterableDataset):
            return StreamedRows(split_dataset_by_node(dataset, args.process_index, args.world_size))
        rows: TrainingRows | ParquetRows
        if isinstance(dataset, ShuffledParquet):
            rows = ParquetRows(dataset, args.train_batch_size, args.world_size, args.dataloader_num_workers)
        else:
            rows = TrainingRows(dataset)
        args.refuse_unfilled_batch(len(rows))
        return rows

    def _get_train_sampler(self, train_dataset: object = None) -> KeySampler:
        rows = self.train_dataset
        assert isinstance(rows, TrainingRows | ParquetRows)  # a stream has no sampler
        batch_size = self.args.joint_batch_size() if self.args.dataloader_drop_last else 1
        shuffle = not isinstance(rows, ParquetRows)
        return EpochSampler(len(rows), self.data_collator.seed, batch_size, shuffle)

    def get_train_dataloader(self) -> DataLoader:
        if not isinstance(self.train_dataset, StreamedRows):
            return super().get_train_dataloader()
        # the stream is already this process's share, so accelerate must not split it again
        chunks = self.args.gradient_accumulation_steps if self.args.dataloader_drop_last else 1
        rows_per_step = self._train_batch_size * chunks if self.args.dataloader_drop_last else 1
        return DataLoader(
            RepeatedRows(self.train_dataset, rows_per_step),
            batch_size=self._train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            drop_last=self.args.dataloader_drop_last,
        )

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        inputs.pop("shared_place", None)
        if (images := inputs.pop("encoded_images", None)) is not None:
            size = self.data_collator.image_size
            inputs["pixel_values"] = decoded_on_device(images, inputs["image_paths"], size, self.args.device)
        plans = inputs.pop("augmentation", None)
        if plans is not None:
            if self._values is None:
                self._values = value_table(self.processing_class.image_processor).to(plans.device)
            padding = self.data_collator.crop_padding
            inputs["pixel_values"] = augmented(inputs["pixel_values"], plans, self._values, padding)
        return inputs

    # ---- optimiser and schedule

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            named = dict(self._trained().named_parameters())
            by_layer = layer_factors(named, self.args.layer_decay)
            # the Trainer logs the rate of the first group
            groups: dict[tuple[float, float], list[nn.Parameter]] = {(1.0, self.args.weight_decay): []}
            for name, parameter in named.items():
                factor, decay = self.factor_and_decay(name)
                if parameter.requires_grad:
                    groups.setdefault((factor * by_layer[name], decay), []).append(parameter)
            options = [
                {"params": parameters, "lr": factor * self.args.learning_rate, "weight_decay": decay}
                for (factor, decay), parameters in groups.items()
                if parameters
            ]
            self.optimizer = self.make_optimizer(options)
        return self.optimizer

    def factor_and_decay(self, name: str) -> tuple[float, float]:
        """Learning rate, relative to the recipe's, and weight decay of a parameter, whatever its layer."""
        return 1.0, self.args.weight_decay

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser that `args.optim` names, over groups of parameters as in `torch.optim`."""
        if self.args.optim == ADAM:
            return torch.optim.Adam(
                groups,
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                weight_decay=self.args.weight_decay,  # of groups that name none
                fused=True if self.args.device.type == "cuda" else None,  # one kernel, elsewhere as torch chooses
            )
        kind, options = self.get_optimizer_cls_and_kwargs(self.args)
        return kind(groups, **options)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:
            optimizer = self.create_optimizer() if optimizer is None else optimizer
            warmup_steps = self._warmup_steps(num_training_steps)
            if self.args.lr_scheduler_type == SchedulerType.COSINE and not self.args.lr_scheduler_kwargs:
                factor = partial(
                    warmup_then_cosine,
                    warmup_steps=warmup_steps,
                    num_training_steps=num_training_steps,
                    warmup_factor=self.args.warmup_factor,
                )
                self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
            else:
                kwargs = self.args.lr_scheduler_kwargs
                assert not isinstance(kwargs, str)  # the parent has read the JSON of a command line
                self.lr_scheduler = get_scheduler(
                    self.args.lr_scheduler_type,
                    optimizer,
                    num_warmup_steps=warmup_steps,
                    num_training_steps=num_training_steps,
                    scheduler_specific_kwargs=kwargs,
                )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _warmup_steps(self, num_training_steps: int) -> int:
        """Optimiser steps of warm-up: `warmup_steps` if it is given, or else the steps of `warmup_epochs`."""
        if self.args.warmup_steps:
            return self.args.get_warmup_steps(num_training_steps)
        epochs = self.args.num_train_epochs
        if not isinstance(self.train_dataset, StreamedRows):
            # max_steps may end the training before or after num_train_epochs
            epochs = num_training_steps * self.args.joint_batch_size() / len(self._get_train_sampler())
        return round(num_training_steps * min(self.args.warmup_epochs / epochs, 1))

    def _trained(self) -> nn.Module:
        """The model as it was given, without the wrappers of several processes."""
        assert self.model is not None
        return self.accelerator.unwrap_model(self.model)

    # ---- loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        for place in self._lent:  # of the step before, which nobody looks at any more
            self._shared.give_back(place)
        self._chunks, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._lent = [chunk.get("shared_place") for chunk in self._chunks]
        if self.state.global_step >= self.args.patch_dropout_until * self.state.max_steps:
            for chunk in self._chunks:
                chunk.pop("kept_patches", None)
        if not self._chunks and isinstance(self.train_dataset, StreamedRows):
            raise DataError(
                f"a pass over the stream does not fill one step of {self.args.joint_batch_size()} pairs: lower "
                "per_device_train_batch_size or gradient_accumulation_steps"
            )
        self._replays = []
        return self._chunks, None

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        image_paths = inputs.pop("image_paths")
        options = self.args.loss_options()
        randomness: AbstractContextManager[None] = nullcontext()
        if len(self._chunks) > 1:
            # with the first chunk of a batch all its replays are planned
            self._replays = self._replays or self._plan_replays()
            replay = self._replays.pop(0)
            options["chunk"], randomness = replay.chunk, replay.same_randomness()
            if not self._replays:  # this is the last
                self._chunks = []
        with randomness:
            outputs = model(**inputs, **options)
        self._refuse_not_finite(outputs.loss, image_paths)
        for name in LOSS_PARTS:
            if name in outputs:
                self._loss_parts[name] = outputs[name].detach().float() + self._loss_parts.get(name, 0.0)
        self._summed_chunks += 1
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _plan_replays(self) -> list[Replay]:
        chunks = [self._prepare_inputs(chunk) for chunk in self._chunks]
        with self.accelerator.autocast():
            model = self.accelerator.unwrap_model(self.model)
            replays = plan_replays(model, chunks, self.args.masks(), self.args.sigmoid_bias)
        paths = [path for chunk in chunks for path in chunk["image_paths"]]
        self._refuse_not_finite(replays[0].chunk.batch_loss, paths)
        return replays

    def _refuse_not_finite(self, loss: torch.Tensor, image_paths: list[str]) -> None:
        """Stop at a loss that is not finite: on the CPU at once, on a device with the next, while it works on."""
        self._look_at_watched_loss()
        self._watched = WatchedLoss(loss, self.state.global_step + 1, image_paths)
        if on_host(loss):
            self._look_at_watched_loss()

    def _look_at_watched_loss(self) -> None:
        watched, self._watched = self._watched, None
        if watched is not None:
            watched.refuse_not_finite(self.state.global_step, self.args.last_checkpoint)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_log or self.control.should_save or self.control.should_evaluate:
            self._look_at_watched_loss()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._loss_parts:
            # the parts of the loss, averaged over the steps since the last log and over processes
            means = torch.stack(list(self._loss_parts.values())) / self._summed_chunks
            means = self.accelerator.reduce(means, reduction="mean")
            logs |= dict(zip(self._loss_parts, means.tolist(), strict=True))
            self._loss_parts.clear()
            self._summed_chunks = 0
        super().log(logs, start_time)

    # ---- evaluation

    def retriever(self) -> GADMSModel:
        """The [`GADMSModel`] within the trained model."""
        model = self._trained()
        assert isinstance(model, GADMSPreTrainedModel)
        retriever = model.base_model
        assert isinstance(retriever, GADMSModel)
        return retriever

    def evaluate(
        self,
        eval_dataset: datasets.Dataset | dict[str, datasets.Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Retrieval both ways: `eval_t2i_R@1`, `..._R@5`, `..._R@10`, `..._mAP`, `..._mINP`, `eval_i2t_R@1`, ...

        Of several sets by name, `eval_<name>_t2i_R@1` and so on, and the means over the sets under the names of one.
        """
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        metrics: dict[str, float] = {}
        if isinstance(eval_dataset, dict):
            for name, part in eval_dataset.items():
                metrics |= self.evaluate(part, metric_key_prefix=f"{metric_key_prefix}_{name}")
            means = {}
            for key in (f"{way}_{metric}" for way in DIRECTIONS for metric in METRICS):
                values = [metrics[f"{metric_key_prefix}_{name}_{key}"] for name in eval_dataset]
                means[f"{metric_key_prefix}_{key}"] = sum(values) / len(values)
            self.log(means)
            return metrics | means
        if eval_dataset is None:
            raise ValueError("there is no evaluation set: pass eval_dataset")
        start = time.time()
        averaged = nullcontext() if self._average is None else self._average.in_place_of(self._trained())
        with averaged, undivided(self._trained()):
            self.measured = encode_retrieval_set(
                self.retriever(),
                self.processing_class,
                eval_dataset,
                batch_size=self.args.per_device_eval_batch_size,
                progress=not self.args.disable_tqdm and self.is_world_process_zero(),
                num_workers=self.args.dataloader_num_workers,
            )
            pictures = self._pictures(eval_dataset, metric_key_prefix)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.measured.metrics().items()}
        metrics |= speed_metrics(metric_key_prefix, start, num_samples=len(eval_dataset))
        self.log(metrics)
        log_pictures(self.callback_handler.callbacks, pictures, self.state.global_step)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _pictures(self, dataset: datasets.Dataset, prefix: str) -> dict[str, Image.Image]:
        """What the loggers show of an evaluation; nothing where none shows pictures."""
        if not show_pictures(self.callback_handler.callbacks) or not self.is_world_process_zero():
            return {}
        assert self.measured is not None  # just now
        pictures = {f"{prefix}/retrievals": draw_retrievals(dataset, self.measured)}
        if not self.is_fsdp_enabled:  # else scores need every process
            model = self.retriever()
            was_training = model.training
            scores = draw_token_scores(model.eval(), self.processing_class, read_row(dataset, 0))
            model.train(was_training)
            pictures[f"{prefix}/token_scores"] = scores
        return pictures

    # ---- saving

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = self.args.output_dir if output_dir is None else output_dir
            os.remove(os.path.join(folder, "training_args.bin"))
            self.save_arguments(folder)
            if self._average is not None:
                self._average.save(folder)

    def save_arguments(self, folder: str) -> None:
        """Write the arguments as JSON; the parent would pickle them, and a pickle runs code when it is read."""
        write_json(os.path.join(folder, ARGUMENTS_FILE), self.args.to_dict())
        write_json(os.path.join(folder, FACTS_FILE), facts_of_run(self))


def undecoded(rows: Rows | None) -> Rows | None:
    """Rows whose images are `{"bytes": ..., "path": ...}`."""
    if rows is None:
        return None
    if isinstance(rows, ShuffledParquet):
        return rows.undecoded()
    return rows.cast_column("image", datasets.Image(decode=False))


def refuse_missing_columns(columns: list[str], hidden_spans: str | None, draw_words: bool) -> None:
    """Refuse a training set that lacks a column.

    Args:
        columns (`list[str]`): columns of the training set.
        hidden_spans (`str`, *optional*): suffix of the columns that list the words to hide.
        draw_words (`bool`): whether words are drawn from the columns of their probabilities.

    Raises:
        DataError: names the missing columns.
    """
    if not {"image", "image_path", "caption1"} <= set(columns):
        raise DataError(f"the training set needs the columns image, image_path, caption1, ...; it has {columns}")
    names = caption_columns(columns)
    if draw_words and (mended := [name for name in names if f"{name}_{AS_FOUND}" in columns]):
        raise DataError(
            f"draw_words: {', '.join(mended)} are repaired already, and other words stand where the columns "
            f"<caption>_{POSTERIOR} say; train on them without it, or write them with `--mode sample`"
        )
    suffixes = (
        (f"hidden_spans={hidden_spans}", hidden_spans, "hide"),
        ("draw_words", draw_words and POSTERIOR, "sample"),
    )
    for argument, suffix, mode in suffixes:
        if suffix and (missing := sorted({f"{name}_{suffix}" for name in names} - set(columns))):
            raise DataError(
                f"{argument}: the training set lacks {', '.join(missing)}; examples/repair_captions.py --mode {mode} "
                "writes such columns"
            )


def warmup_then_cosine(step: int, *, warmup_steps: int, num_training_steps: int, warmup_factor: float) -> float:
    """Factor on the learning rate at an optimiser step: linear from `warmup_factor` to 1, then half a cosine to 0."""
    if step < warmup_steps:
        return warmup_factor + (1 - warmup_factor) * step / warmup_steps
    done = (step - warmup_steps) / max(num_training_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1)))
