r"""Pre-train GA-DMS on captioned person images, and measure retrieval before and after.

    accelerate launch examples/pretrain.py                  # the demo of pretrain_demo.yaml: offline, 2 cores, minutes
    accelerate launch examples/pretrain.py --model_name_or_path openai/clip-vit-base-patch16 \
        --dataset_name org/webperson --streaming True --max_steps 100000 --bf16 True --output_dir runs/webperson
    accelerate launch examples/pretrain.py my_recipe.yaml --learning_rate 1e-5

Any argument replaces the demo; pushed, it is `examples/pretrain_demo.yaml --output_dir runs/demo --push_to_hub True`.
The data set is `synthetic`, or a folder or Hub id with the columns of WebPerson: image, image_path, caption1, ...
On drawings it also measures the starting point in the shape that it was trained on, where it may be at its best.
Beside the checkpoint it writes metrics.json, curve.png, retrievals.png and word_contributions.png.
"""

import importlib.util
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import torch
from safetensors.torch import save_file
from transformers import TrainingArguments, set_seed

from dataset_webperson import WebPerson
from dataset_webperson.command_line import command
from dataset_webperson.files import replacing
from dataset_webperson.rows.captioned import CaptionedSplits, TrainingSet, load_captioned
from modeling_gadms.evaluation.benchmarks import display_name
from modeling_gadms.evaluation.encoding import RetrievalSet, encode_retrieval_set
from modeling_gadms.evaluation.metrics import evaluate_embeddings
from modeling_gadms.evaluation.run_folders import write_run
from modeling_gadms.training import run_report
from modeling_gadms.training.arguments import GADMSTrainingArguments
from modeling_gadms.training.command_line import free_folder, parse_arguments, refuse_image_size, refuse_used_folder
from modeling_gadms.training.starting_points import check_starting_point, load_starting_point, own_image_size
from modeling_gadms.training.trainer import GADMSTrainer

HERE = os.path.dirname(os.path.abspath(__file__))


@dataclass
class PretrainArguments:
    _argument_group_name = "model and data"

    model_name_or_path: str = field(
        default=os.path.join(HERE, "alt_text_clip"),
        metadata={"help": "Hub id or folder of a GA-DMS, a CLIP or other towers; by default alt_text_clip here."},
    )
    dataset_name: str = field(default="synthetic", metadata={"help": "`synthetic`, a folder or a Hub id."})
    streaming: bool = field(default=False, metadata={"help": "Stream the training split from its parquet files."})
    num_test_images: int = field(default=1000, metadata={"help": "Images held out where only train exists."})
    image_size: list[int] = field(default_factory=lambda: [384, 128], metadata={"help": "Height and width in pixels."})
    num_persons: int = field(default=4000, metadata={"help": "Synthetic: persons to draw, two images each."})
    noise_rate: float = field(default=0.3, metadata={"help": "Synthetic: share of false attributes in training."})

    def __post_init__(self) -> None:
        refuse_image_size(self.image_size)


def load_pairs(args: PretrainArguments, seed: int) -> CaptionedSplits:
    """Training rows, and galleries with their captions."""
    if args.dataset_name != "synthetic":
        return load_captioned(args.dataset_name, args.num_test_images, seed, args.streaming)
    persons = {"num_train_persons": args.num_persons, "noise_rate": args.noise_rate}
    builder = WebPerson(config_name="synthetic", image_size=tuple(args.image_size), seed=seed, **persons)
    builder.download_and_prepare()
    return CaptionedSplits(builder.as_dataset(split="train"), None, builder.as_dataset(split="test"))


def encode_as_trained(args: PretrainArguments, size: tuple[int, int], training: TrainingArguments) -> RetrievalSet:
    """The test drawings in the shape that the starting point was trained on, encoded by it."""
    test = load_pairs(replace(args, image_size=list(size), num_persons=2), training.seed).test
    model, processor = load_starting_point(args.model_name_or_path, size)
    return encode_retrieval_set(model.gadms.to(training.device).eval(), processor, test, progress=False)


def report(
    trainer: GADMSTrainer,
    train: TrainingSet,
    test: datasets.Dataset,
    metrics: dict[str, dict[str, float]],
    arguments: dict[str, Any],
) -> None:
    """Write tables and pictures beside the checkpoint, then reload it in a process without this package."""
    if not trainer.is_world_process_zero():
        return
    folder = trainer.args.output_dir
    model, processor = trainer.accelerator.unwrap_model(trainer.model).gadms, trainer.processing_class
    assert trainer.measured is not None  # by the evaluation that ended the run
    name, evaluation = arguments["arguments"]["dataset_name"], evaluate_embeddings(trainer.measured)
    results = {"metrics": metrics, **run_report.gallery_facts(evaluation), **arguments}
    write_run(folder, results, trainer.state.log_history, {display_name(name): (test, evaluation)})
    before = metrics["before"] if trainer.eval_dataset is test else None  # not of the curve's own gallery
    run_report.save_curve(trainer.state.log_history, f"{folder}/curve.png", before)
    run_report.save_retrievals(test, trainer.measured, f"{folder}/retrievals.png")

    # the most instructive of a few captions: the one with the most false words, where the data knows them
    row = max(train.take(64), key=lambda row: len(row.get("caption1_false_spans") or []))
    run_report.save_word_contributions(model, processor, row, f"{folder}/word_contributions.png")

    pair = processor(images=[test[0]["image"]], text=[test[0]["caption1"]]).to(model.device)
    with torch.no_grad():
        outputs = model.eval()(**pair)
    kept = {**pair, "image_embeds": outputs.image_embeds, "text_embeds": outputs.text_embeds}
    with replacing(f"{folder}/reload_check.safetensors") as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in kept.items()}, temporary)
    print(f"\n{len(test)} test images\n{run_report.metrics_table(metrics)}\n", flush=True)
    print(f"{arguments['seconds']:.0f} s; checkpoint and pictures in {folder}", flush=True)
    subprocess.run([sys.executable, "-I", os.path.join(HERE, "reload.py"), folder], check=True)


@command
def main(arguments: list[str] | None = None) -> None:
    start = time.time()
    argv = sys.argv[1:] if arguments is None else arguments
    recipe = argv or [os.path.join(HERE, "pretrain_demo.yaml")]
    args, training = parse_arguments((PretrainArguments, GADMSTrainingArguments), recipe, description=__doc__)
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("matplotlib draws the curve of this example: pip install '.[examples]'")
    if not argv:
        training.output_dir = free_folder(os.path.join("runs", "demo"))
    refuse_used_folder(training.output_dir, training.resume_from_checkpoint)
    size, with_head = tuple(args.image_size), training.matching_weight > 0
    check_starting_point(args.model_name_or_path, size)
    train, validation, test = load_pairs(args, training.seed)
    set_seed(training.seed)
    model, processor = load_starting_point(args.model_name_or_path, size, with_head)
    own, metrics = own_image_size(args.model_name_or_path), {}
    if args.dataset_name == "synthetic" and own != tuple(args.image_size):
        metrics[f"base, {own[0]}x{own[1]}"] = encode_as_trained(args, own, training).metrics()

    trainer = GADMSTrainer(model, training, processor, train_dataset=train, eval_dataset=validation or test)
    metrics["before"] = trainer.evaluate(test)
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    metrics["after"] = trainer.evaluate(test)
    trainer.save_model()
    for when, found in metrics.items():
        metrics[when] = {key.removeprefix("eval_"): value for key, value in found.items() if "2" in key}
    kept = {"seconds": time.time() - start, "arguments": vars(args), "training": training.to_dict()}
    kept["splits"] = {"validation": "validation" if validation else "test", "test": "test"}
    report(trainer, train, test, metrics, kept)
    if training.push_to_hub:
        trainer.push_to_hub(commit_message="Card and pictures")


if __name__ == "__main__":
    sys.exit(main())
