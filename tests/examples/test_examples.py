"""The examples as a user runs them, made small enough for a minute each."""

import ast
import functools
import json
import os
import re
import subprocess
import sys

import forked
import pytest
import torch
import yaml
from as_script import run_as_script
from PIL import Image
from places import REPO
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_processor, tiny_rows
from tiny_towers import KINDS, ROTARY, save_towers, tiny_rotary

import dataset_webperson
from dataset_webperson import WebPerson
from modeling_gadms import GADMSModel, GADMSProcessor
from modeling_gadms.evaluation.models import load_retriever

sys.path.insert(0, str(REPO / "examples"))
import pretrain  # noqa: E402
import repair_captions  # noqa: E402
import train_small_clip  # noqa: E402

SMALL = ["--num_train_epochs", "2", "--num_persons", "64", "--logging_steps", "1"]
# the demo's test set has 400 persons, and no option for fewer; most of its time would go into drawing them
FEW = {"num_validation_persons": 2, "num_test_persons": 20}


def launch(*argv, cwd, processes=1):
    """`accelerate launch examples/...` with a cache of its own."""
    launcher = ["-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    launcher += ["--dynamo_backend", "no", "--num_processes", str(processes)]
    # with --cpu, accelerate quietly runs one process; port 0 is any free one
    launcher += ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = forked.run([*launcher, *argv], cwd=cwd, env=environment)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result


def run(*command, cwd, processes=1):
    """What `launch` gives, without its seconds of imports; one test of each script launches it."""
    result = forked.run(command, cwd=cwd, processes=processes)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's recipe with fewer people and epochs."""
    folder = tmp_path_factory.mktemp("demo")
    recipe = REPO / "examples" / "pretrain_demo.yaml"
    script = REPO / "examples" / "pretrain.py"
    code = "import functools, runpy, sys, dataset_webperson as data; sys.argv = sys.argv[1:];"
    code += (
        f"data.WebPerson = functools.partial(data.WebPerson, **{FEW}); runpy.run_path(sys.argv[0], None, '__main__')"
    )
    result = run("-c", code, script, recipe, "--output_dir", folder / "out", *SMALL, cwd=folder)
    return folder / "out", result


def test_the_demo_prints_its_table_and_leaves_its_files(demo):
    folder, result = demo
    assert "40 test images" in result.stdout and "| text->image | after" in result.stdout
    difference = re.search(r"largest difference of its embeddings: (\S+)", result.stdout)
    assert float(difference[1]) < 1e-6
    files = set(os.listdir(folder))
    assert {
        "model.safetensors",
        "config.json",
        "processor_config.json",
        "tokenizer.json",
        "modeling_gadms.py",
    } <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    for name in ("curve.png", "retrievals.png", "word_contributions.png"):
        Image.open(folder / name).verify()
    kept = json.loads((folder / "metrics.json").read_text())
    assert "| base, 48x48 " in result.stdout and list(kept["metrics"]) == ["base, 48x48", "before", "after"]
    for when in kept["metrics"]:
        assert set(kept["metrics"][when]) == {
            f"{way}_{name}" for way in ("t2i", "i2t") for name in ("R@1", "R@5", "R@10", "mAP", "mINP")
        }
    assert kept["metrics"]["after"] != kept["metrics"]["before"] and kept["test_images"] == 40


def test_the_demo_continues_where_it_was_stopped_and_never_writes_over_a_run(demo, capsys, monkeypatch):
    folder, _ = demo
    monkeypatch.setattr(dataset_webperson, "WebPerson", functools.partial(WebPerson, **FEW))
    run = subprocess.run
    others = lambda argv, **rest: None if argv[0] == sys.executable else run(argv, **rest)  # noqa: E731
    monkeypatch.setattr(subprocess, "run", others)  # all but the reload, which the demo itself has shown
    recipe = [REPO / "examples" / "pretrain.py", REPO / "examples" / "pretrain_demo.yaml", "--output_dir", folder]
    assert run_as_script(*recipe, *SMALL) == 2 and "already holds files" in capsys.readouterr().err
    before = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    assert run_as_script(*recipe, *SMALL, "--resume_from_checkpoint", "True") == 0
    after = load_file(folder / "model.safetensors")
    assert all((after[name] == before[name]).all() for name in before), "nothing was left to train"


def test_the_reload_check_fails_on_other_embeddings(demo, tmp_path):
    folder, _ = demo
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", folder, copy], check=True)
    kept = load_file(copy / "reload_check.safetensors")
    kept["text_embeds"] = -kept["text_embeds"]
    save_file(kept, copy / "reload_check.safetensors")
    result = forked.run([REPO / "examples/reload.py", copy], env={**os.environ, "HF_HOME": str(tmp_path / "hf")})
    assert result.returncode == 1 and "largest difference" in result.stdout


def test_pretraining_on_a_folder_from_a_saved_model_with_two_processes(tmp_path):
    processor = tiny_processor()
    tiny_model(vocab_size=len(processor.tokenizer)).gadms.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    (tmp_path / "data").mkdir()
    tiny_rows(24).to_parquet(tmp_path / "data" / "train-0.parquet")
    recipe = {
        "model_name_or_path": str(tmp_path / "base"),
        "dataset_name": str(tmp_path / "data"),
        "num_test_images": 8,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "save_strategy": "no",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for name, options, start in (("map", [], launch), ("stream", ["--streaming", "True"], run)):
        command = [REPO / "examples/pretrain.py", tmp_path / "recipe.yaml", "--output_dir", tmp_path / name, *options]
        result = start(*command, cwd=tmp_path, processes=2)
        assert "8 test images" in result.stdout
        assert (tmp_path / name / "model.safetensors").exists()


@pytest.mark.parametrize("kind", [*ROTARY, *KINDS])
def test_an_epoch_from_towers_of_every_kind_leaves_a_model_that_loads(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "report", lambda *_: None)  # pictures, and a process that reloads the model
    torch.manual_seed(0)
    if kind in ROTARY:  # converted already
        model, processor = tiny_rotary(kind)
        model.gadms.save_pretrained(tmp_path / "towers")
        processor.save_pretrained(tmp_path / "towers")
    else:
        save_towers(kind, tmp_path / "towers")
    (tmp_path / "data").mkdir()
    tiny_rows(12).to_parquet(tmp_path / "data" / "train-0.parquet")
    options = {
        "model_name_or_path": tmp_path / "towers",
        "dataset_name": tmp_path / "data",
        "output_dir": tmp_path / "out",
        "num_test_images": 4,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "use_cpu": True,
    }
    size = ["--image_size", "32", "16"]
    pretrain.main([*size, *(part for name, value in options.items() for part in (f"--{name}", str(value)))])
    model, processor = load_retriever(str(tmp_path / "out"))
    if kind in ROTARY:
        start = GADMSModel.from_pretrained(tmp_path / "towers")
    else:
        start = GADMSModel.from_pretrained_towers(tmp_path / "towers", image_size=(32, 16))
    assert processor.tower == model.config.tower == start.config.tower
    before, after = start.state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert {"text_model", "vision_model"} <= moved


def test_a_mistake_in_pretraining_ends_in_one_line_and_code_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(REPO / "examples" / "pretrain.py")])
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folders = {name: tmp_path / name for name in ("small", "columns", "strings", "split", "broken", "empty")}
    for folder in folders.values():
        folder.mkdir()
    rows = tiny_rows(6)
    rows.to_parquet(folders["small"] / "train.parquet")
    rows.to_parquet(folders["split"] / "test.parquet")
    rows.rename_column("caption1", "words").to_parquet(folders["columns"] / "train.parquet")
    rows.remove_columns("image").add_column("image", ["a.jpg"] * 6).to_parquet(folders["strings"] / "train.parquet")
    (folders["broken"] / "train.parquet").write_bytes(b"PAR1 cut off")
    (tmp_path / "file").write_text("no folder")
    few = ["--num_test_images", "2"]
    for options, words in (
        (["--dataset_name", str(tmp_path / "nowhere")], "nowhere: cannot be loaded as a data set"),
        (["--dataset_name", str(folders["empty"])], "empty: cannot be loaded as a data set"),
        (["--dataset_name", str(folders["broken"]), *few], "broken: cannot be loaded as a data set"),
        (["--dataset_name", str(folders["broken"]), *few, "--streaming", "True"], "broken"),
        (["--dataset_name", str(folders["small"])], "small: cannot hold out num_test_images=1000 of 6 rows"),
        (["--dataset_name", str(folders["columns"]), *few], "columns: no column caption1"),
        (["--dataset_name", str(folders["strings"]), *few], "strings: row 0: image 'a.jpg' is no file of that folder"),
        (["--dataset_name", str(folders["split"])], "split: no split train, only test"),
        (["--dataset_name", str(folders["small"]), *few, "--model_name_or_path", str(tmp_path / "no")], "no"),
        (["--image_size", "64"], "image_size is a height and a width"),
        (["--num_persons", "1"], "num_train_persons must be a whole number of at least 2"),
    ):
        code = pretrain.main([*options, "--output_dir", str(tmp_path / "out"), "--use_cpu", "True"])
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(errors) == 1 and words in errors[0], (words, errors)
    assert pretrain.main(["--output_dir", str(tmp_path / "file")]) == 2
    assert pretrain.main([str(tmp_path / "no_recipe.yaml")]) == 2


def test_a_mistake_in_repairing_captions_ends_in_one_line_and_code_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(REPO / "examples" / "repair_captions.py")])
    (tmp_path / "taken").mkdir()
    for options, words in (
        (["--output_dir", str(tmp_path / "taken")], "taken already exists"),
        (["--out", str(tmp_path / "taken")], "taken already exists"),
        (["--output_dir", str(tmp_path / "out"), "--streaming", "True"], "streaming"),
        (["--output_dir", str(tmp_path / "out"), "--threshold", "0"], "threshold must be above 0"),
        (["--output_dir", str(tmp_path / "out"), "--device", "nowhere"], "torch finds no nowhere here, try cpu"),
        (["--output_dir", str(tmp_path / "out"), "--mode", "hide", "--families", "f.json"], "families belong to"),
        (["--output_dir", str(tmp_path / "out"), "--dataset_name", str(tmp_path / "nowhere")], "nowhere"),
    ):
        assert repair_captions.main(options) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and words in errors[0], (words, errors)


def test_the_small_clips_that_are_shipped_are_some_that_their_script_makes(tmp_path):
    shipped = [REPO / "examples" / name for name in ("small_clip", "alt_text_clip")]
    options = ["--num_persons", "64", "--num_train_epochs", "1", "--image_size", "48", "--alt_texts", "True"]
    run(REPO / "examples/train_small_clip.py", "--output_dir", tmp_path / "clip", *options, cwd=tmp_path)
    made = GADMSModel.from_clip_pretrained(tmp_path / "clip", image_size=(64, 32)).state_dict()
    vocabulary = "text_model.embeddings.token_embedding.weight"  # its size depends on the captions seen
    for folder in shipped:
        assert {path.name for path in folder.iterdir()} <= {path.name for path in (tmp_path / "clip").iterdir()}
        kept = GADMSModel.from_clip_pretrained(folder, image_size=(64, 32)).state_dict()
        assert made.keys() == kept.keys()
        assert all(made[name].shape == kept[name].shape for name in made if name != vocabulary)
    for folder in (tmp_path / "clip", *shipped):
        processor = GADMSProcessor.from_clip_pretrained(folder, image_size=(64, 32))
        model = GADMSModel.from_clip_pretrained(folder, image_size=(64, 32))
        inputs = processor(images=Image.new("RGB", (9, 30)), text="a man in a red coat " * 20)
        assert inputs["input_ids"].shape == (1, 48) and inputs["input_ids"].max() == len(processor.tokenizer) - 1
        assert model(**inputs).logits_per_text.isfinite().all()


def test_a_small_clip_reads_as_many_false_words_as_asked(tmp_path, monkeypatch):
    class Read(Exception):
        pass

    def stopped(model, training, processor, train_dataset):
        raise Read([word["is_false"] for words in train_dataset["caption1_words"] for word in words])

    monkeypatch.setattr(train_small_clip, "SmallClipTrainer", stopped)
    for rate, asked in ((0.0, []), (0.5, ["--noise_rate", "0.5"])):
        with pytest.raises(Read) as read:
            train_small_clip.main(["--output_dir", str(tmp_path / f"{rate}"), "--num_persons", "64", *asked])
        flags = read.value.args[0]
        assert len(flags) > 500 and abs(sum(flags) / len(flags) - rate) < 0.1 * rate + 1e-9


def test_alt_texts_name_three_to_five_things_of_a_caption_in_its_own_words():
    things = {"top": ("red", "knitted", "jumper"), "shoes": ("boots",), "bag": ("blue", "purse"), "hat": ("cap",)}
    caption, words = "", []
    for thing, attributes in things.items():
        for number, word in enumerate(attributes):
            words.append({"attribute": f"{thing}.{number}", "start": len(caption), "end": len(caption) + len(word)})
            caption += f"{word} "
        caption += "and "
    row = {"image_path": "1.png", "caption1": caption.upper(), "caption2": "", "caption1_words": words}
    texts = train_small_clip.alt_texts({**row, "caption2_words": []})
    assert list(texts) == [f"caption{number}" for number in range(1, 9)]
    phrases = {" ".join(attributes) for attributes in things.values()}
    named = [texts[f"caption{number}"].split(", ") for number in (1, 2, 3, 4)]
    assert all(set(text) <= phrases and 3 <= len(text) == len(set(text)) for text in named)
    assert len({tuple(text) for text in named}) > 1, "not the same of every caption"


def test_examples_stay_short():
    for path in (REPO / "examples").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 150, path


def test_examples_annotate_every_argument_and_return():
    for path in (REPO / "examples").rglob("*.py"):
        for function in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)):
            found = function.args
            taken = [*found.posonlyargs, *found.args, *found.kwonlyargs, found.vararg, found.kwarg]
            bare = [each.arg for each in taken if each and each.annotation is None and each.arg not in ("self", "cls")]
            assert function.returns is not None and not bare, f"{path}: {function.name} {bare}"
