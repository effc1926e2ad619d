"""The Trainer's rate on a device with its loader and without; drawings, and models that know their captions."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainerCallback

from dataset_webperson import WebPerson
from modeling_gadms import GADMSConfig, GADMSForPreTraining, GADMSProcessor
from modeling_gadms.training.arguments import GADMSTrainingArguments
from modeling_gadms.training.image_decoding import DEVICE, PILLOW, TORCH, has_torchcodec
from modeling_gadms.training.trainer import GADMSTrainer

from .steps import LONGEST, wait

SMALL_CLIP = str(Path(__file__).parents[1] / "small_clip")


def processor_for(config: GADMSConfig) -> GADMSProcessor:
    """The shipped small CLIP's, for images and captions of this configuration's size."""
    processor = GADMSProcessor.from_clip_pretrained(SMALL_CLIP, tuple(config.vision_config.image_size))
    processor.tokenizer.model_max_length = config.text_config.max_position_embeddings
    return processor


def drawn_rows(persons: int) -> datasets.Dataset:
    """Drawn pedestrians, two images of each, which the processor resizes."""
    builder = WebPerson(config_name="synthetic", image_size=(128, 64), num_train_persons=persons)
    builder.download_and_prepare()
    return builder.as_dataset(split="train")


def with_vocabulary(config: GADMSConfig, processor: GADMSProcessor) -> GADMSForPreTraining:
    """A model of random weights that knows the ids of the processor."""
    values = config.to_dict()
    values["text_config"]["vocab_size"] = len(processor.tokenizer)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        values["text_config"].pop(name, None)
    torch.manual_seed(0)
    return GADMSForPreTraining(GADMSConfig.from_dict(values))


class Clock(TrainerCallback):
    """Steps after step `first`, and their seconds; training ends early where they take too long."""

    def __init__(self, device: torch.device, first: int) -> None:
        self.device, self.first, self.start, self.seconds, self.steps = device, first, 0.0, 0.0, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.first:
            wait(self.device)
            self.start = time.perf_counter()
        elif state.global_step > self.first:
            late = time.perf_counter() - self.start > LONGEST
            if late or state.global_step == state.max_steps:
                wait(self.device)
                self.seconds, self.steps = time.perf_counter() - self.start, state.global_step - self.first
                control.should_training_stop = True


class SameBatch(GADMSTrainer):
    """Trains on the first batch again and again, which is on the device."""

    def get_train_dataloader(self) -> Any:
        batch = next(iter(super().get_train_dataloader()))
        return Repeated(self._prepare_inputs(batch), self.args.max_steps)


class Repeated:
    def __init__(self, batch: dict[str, Any], count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(self.batch) for _ in range(self.count))


def loader_rates(
    device: torch.device,
    config: GADMSConfig,
    rows: datasets.Dataset,
    batch_size: int,
    steps: int,
    workers: int,
    output_dir: str,
    compiled: bool = True,
) -> list[dict[str, Any]]:
    """The Trainer's rate on one batch again and again, and on drawings that workers load, resize and augment."""
    processor = processor_for(config)
    found: list[dict[str, Any]] = []
    rates: list[float] = []
    kinds = [("one batch", SameBatch, PILLOW), ("drawings", GADMSTrainer, PILLOW)]
    kinds.append(("drawings, resized by torch", GADMSTrainer, TORCH))
    if device.type == "cuda" and has_torchcodec():
        kinds.append(("drawings, on the device where they are JPEG", GADMSTrainer, DEVICE))
    for name, trainer_class, way in kinds:
        args = GADMSTrainingArguments(
            output_dir=output_dir,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            dataloader_num_workers=workers,
            dataloader_persistent_workers=workers > 0,
            bf16=device.type == "cuda",
            use_cpu=device.type == "cpu",
            compile_layers=compiled,
            image_decoding=way,
            logging_steps=max(steps // 4, 1),
            save_strategy="no",
            disable_tqdm=True,
        )
        clock = Clock(device, max(steps // 4, 1))
        model = with_vocabulary(config, processor)
        trainer_class(model, args, processor, train_dataset=rows, callbacks=[clock]).train()
        rates.append(batch_size * clock.steps / clock.seconds)
        row = {"loader": name, "workers": workers, "steps": clock.steps, "samples/s": round(rates[-1], 1)}
        found.append({**row, "share of one batch": round(rates[-1] / rates[0], 3)})
    return found
