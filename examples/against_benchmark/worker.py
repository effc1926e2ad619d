"""Times what this process's PYTHONPATH holds: reads names of parts from its input, and answers with seconds.

Everything here exists in this commit and in earlier ones.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import psutil
import torch

from dataset_webperson.rows.streaming import ShuffledParquet
from modeling_gadms import GADMSConfig, GADMSForPreTraining, GADMSProcessor
from modeling_gadms.masking_gadms import draw_uniforms
from modeling_gadms.person_retrieval.ranking import retrieval_metrics
from modeling_gadms.training.arguments import GADMSTrainingArguments
from modeling_gadms.training.trainer import GADMSTrainer

PAIRS, TOKENS = 8, 24


def parts(release: str, clip: str, folder: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """By name, what is timed; `clip` is a folder with CLIP's vocabulary."""
    processor = GADMSProcessor.from_clip_pretrained(clip, (384, 128))
    vocabulary = len(processor.tokenizer)
    torch.manual_seed(0)
    sides = {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
    text = {**sides, "vocab_size": vocabulary, "max_position_embeddings": 77}
    vision = {**sides, "patch_size": 16, "image_size": (384, 128)}
    model = GADMSForPreTraining(GADMSConfig(text_config=text, vision_config=vision, projection_dim=256)).train()
    ids = torch.randint(1, vocabulary - 3, (PAIRS, TOKENS))
    ids[:, 0], ids[:, -1] = vocabulary - 2, vocabulary - 1
    batch = {"pixel_values": torch.randn(PAIRS, 3, 384, 128), "input_ids": ids}
    batch["mask_uniforms"] = draw_uniforms(PAIRS, 77, torch.Generator().manual_seed(0))
    yield "training step", lambda: model(**batch).loss.backward()

    embeds, persons = torch.randn(2, 4000, 256), torch.arange(4000) // 4
    yield "ranking", lambda: retrieval_metrics(embeds[0], embeds[1], persons, persons)

    for name, later in (("loader, for the device", True), ("loader, augmented in the worker", False)):
        args = GADMSTrainingArguments(
            output_dir=folder,
            use_cpu=True,
            per_device_train_batch_size=64,
            dataloader_num_workers=1,
            dataloader_persistent_workers=True,
            augment_on_device=later,
            max_steps=1,
        )
        rows = ShuffledParquet(release, batch_size=64)
        yield name, epoch_of(GADMSTrainer(model, args, processor, train_dataset=rows))


def epoch_of(trainer: GADMSTrainer) -> Callable[[], None]:
    loader = trainer.get_train_dataloader()

    def read() -> None:
        batches = iter(loader)
        for _ in range(len(loader)):
            trainer.get_batch_samples(batches, 1, torch.device("cpu"))

    return read


def cpu_seconds() -> float:
    children = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(times.user + times.system for times in children)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        timed = dict(parts(*sys.argv[1:], folder))
        for part in timed.values():
            part()
        print(json.dumps(list(timed)), flush=True)
        for line in sys.stdin:
            start, cpu_start = time.perf_counter(), cpu_seconds()
            timed[line.strip()]()
            print(json.dumps([time.perf_counter() - start, cpu_seconds() - cpu_start]), flush=True)
