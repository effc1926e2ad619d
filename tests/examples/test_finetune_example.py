"""`examples/finetune.py` as a user runs it: on a benchmark's folder, better than direct transfer, and with LoRA."""

import functools
import itertools
import json
import os
import random
import re
import sys

import datasets
import forked
import pytest
import torch
from made_up_datasets import write_copy
from overlapping_copies import two_copies
from PIL import Image
from places import REPO
from tiny import tiny_config
from transformers import AutoModel

from dataset_webperson import WebPerson
from modeling_gadms import GADMSImageProcessor, GADMSModel, GADMSProcessor
from modeling_gadms.hub.model_card import measured_by_run
from modeling_gadms.training.arguments import GADMSTrainingArguments
from modeling_gadms.training.tokenizers import train_tokenizer

sys.path.insert(0, str(REPO / "examples"))

COLOURS = ("red", "green", "blue", "black", "white", "yellow", "orange", "purple")
RECIPE = ["--use_cpu", "True", "--disable_tqdm", "True", "--crop_padding", "1", "--erasing_probability", "0"]
RECIPE += ["--adam_epsilon", "1e-8", "--learning_rate", "1e-3", "--warmup_epochs", "0.5", "--new_module_factor", "1"]


def figure(top, lower, rng):
    image = Image.new("RGB", (16, 32), lower)
    image.paste(top, (0, 0, 16, rng.randint(12, 18)))
    return image


def describe(top, lower):
    return [f"a person in a {top} coat and {lower} trousers", f"someone wears {lower} trousers, and a {top} coat"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small retriever that learnt from captions of the coat alone."""
    from train_small_clip import SmallClipTrainer

    folder, rng = tmp_path_factory.mktemp("base"), random.Random(0)
    rows = []
    for number in range(640):
        top, lower = rng.choice(COLOURS), rng.choice(COLOURS)
        row = {"image": figure(top, lower, rng), "image_path": f"{number}.png"}
        rows.append({**row, "caption1": f"a person in a {top} coat", "caption2": f"someone wears a {top} coat"})
    text = datasets.Value("string")
    features = datasets.Features(image=datasets.Image(), image_path=text, caption1=text, caption2=text)
    rows = datasets.Dataset.from_list(rows, features=features)
    words = [caption for colour in COLOURS for caption in describe(colour, colour)]
    tokenizer = train_tokenizer(words, vocab_size=560)
    tokenizer.model_max_length = 32
    processor = GADMSProcessor(GADMSImageProcessor(size={"height": 32, "width": 16}), tokenizer)
    args = GADMSTrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        learning_rate=1e-3,
        adam_epsilon=1e-8,
        per_device_train_batch_size=32,
        num_train_epochs=6,
        warmup_epochs=1,
        crop_padding=1,
        erasing_probability=0,
    )
    torch.manual_seed(0)  # whatever other tests have drawn before
    trainer = SmallClipTrainer(GADMSModel(tiny_config(vocab_size=len(tokenizer))), args, processor, train_dataset=rows)
    trainer.train()
    trainer.save_model()
    return folder


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Persons of two colours each in the form of RSTPReid; those of test are seen in no other split."""
    root, rng = tmp_path_factory.mktemp("RSTPReid"), random.Random(1)
    (root / "imgs").mkdir()
    pairs = list(itertools.product(COLOURS, COLOURS))
    rng.shuffle(pairs)
    entries = []
    for person, (top, lower) in enumerate(pairs):
        split = "train" if person < 40 else "val" if person < 50 else "test"
        for view in range(4):
            path = f"{person:04d}_c{view}.png"
            figure(top, lower, rng).save(root / "imgs" / path)
            captions = describe(top, lower)
            entries.append({"id": person, "img_path": path, "captions": captions, "split": split})
    (root / "data_captions.json").write_text(json.dumps(entries))
    return root


def launch(base, benchmark, output_dir, *options, check=True):
    command = [REPO / "examples/finetune.py", "--model_name_or_path", str(base)]
    command += ["--dataset_name", "rstpreid", "--data_root", str(benchmark), "--on_count_mismatch", "warn"]
    command += ["--output_dir", str(output_dir), *RECIPE, *options]
    result = forked.run(command)
    assert not check or result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result


def test_fine_tuning_on_a_benchmark_s_folder_beats_direct_transfer_on_test(base, benchmark, tmp_path):
    options = ["--num_train_epochs", "6", "--per_device_train_batch_size", "16", "--gradient_accumulation_steps", "2"]
    result = launch(base, benchmark, tmp_path / "out", *options, "--instances_per_person", "2")
    kept = json.loads((tmp_path / "out" / "metrics.json").read_text())
    before, after = kept["metrics"]["before"], kept["metrics"]["after"]
    assert after["t2i_R@1"] > before["t2i_R@1"] + 10 and after["t2i_mAP"] > before["t2i_mAP"], kept["metrics"]
    assert "| text->image | after" in result.stdout
    assert kept["best_epoch_chosen_on"] == "validation" and "warning" not in kept
    assert kept["best"]["t2i_R@1"] > 0 and kept["splits"] == {
        "train": "train",
        "validation": "validation",
        "test": "test",
    }
    assert kept["trainable_parameters"] == kept["parameters"]
    assert type(AutoModel.from_pretrained(tmp_path / "out")).__name__ == "GADMSModel"
    refused = launch(base, benchmark, tmp_path / "out", check=False)
    assert refused.returncode == 2 and "already holds files" in refused.stderr


def start(base, output_dir, *options):
    """Run in this process, which has imported everything; returns the exit code."""
    from finetune import main

    argv = ["--model_name_or_path", str(base), "--output_dir", str(output_dir), "--num_train_epochs", "1"]
    return main([*argv, *RECIPE, *options])


def run(base, output_dir, *options):
    assert start(base, output_dir, *options) == 0
    return json.loads((output_dir / "metrics.json").read_text())


def test_adapters_and_dual_masking_on_the_synthetic_set(base, tmp_path, monkeypatch):
    few = functools.partial(WebPerson, num_validation_persons=20, num_test_persons=20)  # of 100 and 400
    monkeypatch.setattr("modeling_gadms.finetuning.data.WebPerson", few)
    options = ["--dataset_name", "synthetic", "--num_persons", "16", "--lora", "True", "--lora_rank", "4"]
    kept = run(base, tmp_path / "out", *options, "--masking", "gradient_attention")
    assert 0 < kept["trainable_parameters"] < 0.6 * kept["parameters"]
    assert kept["arguments"]["lora_rank"] == 4 and kept["training_arguments"]["masking"] == "gradient_attention"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(os.listdir(tmp_path / "out" / "adapter"))
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.filterwarnings("ignore:.*counts differ from the official ones")
def test_without_a_validation_split_one_is_carved_or_test_is_chosen_by_name(base, tmp_path, capsys):
    root = str(write_copy("icfg", tmp_path))
    options = ["--dataset_name", "icfg-pedes", "--data_root", root, "--on_count_mismatch", "warn"]
    options += ["--per_device_train_batch_size", "4"]
    assert start(base, tmp_path / "refused", *options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search("no validation split .* --validation_persons .* --select_on_test", error)
    kept = run(base, tmp_path / "carved", *options, "--validation_persons", "2")
    assert kept["splits"] == {"train": "train_minus_validation", "validation": "validation_from_train", "test": "test"}
    assert kept["best_epoch_chosen_on"] == "validation_from_train" and "warning" not in kept
    kept = run(base, tmp_path / "marked", *options, "--select_on_test")
    assert kept["best_epoch_chosen_on"] == "test" and "optimistic" in kept["warning"]


@pytest.mark.filterwarnings("ignore:.*counts differ from the official ones")
def test_several_benchmarks_are_trained_on_as_one_without_what_another_holds_out(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "modeling_gadms.finetuning.overlap.leave_out_overlap.__defaults__", (str(tmp_path / "facts"), 1)
    )
    two_copies(tmp_path / "data")
    options = ["--dataset_name", "icfg-pedes", "rstpreid", "--data_root", str(tmp_path / "data")]
    options += ["--on_count_mismatch", "warn", "--per_device_train_batch_size", "4", "--validation_persons", "1"]
    kept = run(base, tmp_path / "out", *options, "--sampling_temperature", "2")
    printed = capsys.readouterr().out
    notes = kept["overlap"]
    assert all(note in printed for note in notes)
    shared = "2 images of train_minus_validation (persons: 1; the same file: 1)"
    assert f"ICFG-PEDES: also in test of RSTPReid: {shared}" in notes
    left_out = [note for note in notes if "left out" in note]
    assert left_out == [
        "ICFG-PEDES: left out of train: 4 images (persons: 2)",
        # the pictures of ICFG's person held out of train are drawn once more in RSTPReid's train
        "RSTPReid: left out of train: 4 images (persons: 2)",
    ]
    assert any(note.startswith("RSTPReid: also in validation_from_train of ICFG-PEDES: 2 images") for note in notes)
    assert set(kept["sets"]) == {"ICFG-PEDES", "RSTPReid"}
    for when in ("before", "after"):
        for name, value in kept["metrics"][when].items():
            assert value == pytest.approx(sum(one[when][name] for one in kept["sets"].values()) / 2)
    chosen = "the mean over validation_from_train of ICFG-PEDES, validation of RSTPReid"
    assert kept["best_epoch_chosen_on"] == chosen and "| text->image | after, RSTPReid" in printed
    assert kept["arguments"]["dataset_name"] == "icfg-pedes + rstpreid"
    assert kept["sets"]["RSTPReid"]["test_images"] == 4 and "official" in kept["sets"]["RSTPReid"]["incomplete"]
    card = measured_by_run({}, kept, str(tmp_path / "out"))
    assert [(row["dataset"], row["direction"]) for row in card] == [
        (name, way) for name in ("ICFG-PEDES", "RSTPReid") for way in ("t2i", "i2t")
    ]


def test_a_mistake_ends_in_one_line_and_code_2(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(REPO / "examples" / "finetune.py")])
    (tmp_path / "file").write_text("no folder")
    synthetic = ["--dataset_name", "synthetic", "--num_persons", "4"]
    for model, output_dir, options, words in (
        (base, "out", ["--dataset_name", "cuhk-pedes"], "cuhk-pedes: where is it? Pass its folder as --data_root"),
        (base, "out", ["--dataset_name", "cuhk", "--data_root", str(tmp_path)], "no benchmark 'cuhk'"),
        (base, "out", ["--dataset_name", "cuhk-pedes", "--data_root", str(tmp_path / "nowhere")], "nowhere"),
        (base, "out", [*synthetic, "--lora", "True", "--lora_targets", "nothing"], "lora_targets nothing"),
        (base, "out", [*synthetic, "--image_size", "64"], "image_size is a height and a width"),
        (base, "out", ["--dataset_name", "rstpreid", "RSTPReid"], "RSTPReid is given twice"),
        (
            base,
            "out",
            ["--dataset_name", "rstpreid", "--data_root", "a", "b"],
            "--data_root: 2 values",
        ),
        (base, "out", [*synthetic, "--noise_rate", "2"], "noise_rate is a probability"),
        (base, "file", synthetic, "file is not a folder"),
        (tmp_path / "nowhere", "out", synthetic, "nowhere"),
    ):
        assert start(model, tmp_path / output_dir, *options) == 2, words
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and words in errors[0], (words, errors)


@pytest.mark.slow
def test_fine_tuning_a_clip_on_the_synthetic_set_beats_direct_transfer_on_test(tmp_path):
    """From the small CLIP that is shipped: about three minutes on two cores."""
    options = ["--dataset_name", "synthetic", "--image_size", "64", "32", "--num_persons", "2000"]
    options += ["--instances_per_person", "2", "--num_train_epochs", "4", "--learning_rate", "3e-4"]
    metrics = run(REPO / "examples" / "small_clip", tmp_path / "out", *options, "--crop_padding", "2")["metrics"]
    assert metrics["after"]["t2i_R@1"] > metrics["before"]["t2i_R@1"] + 3, metrics
