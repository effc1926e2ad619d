"""Training that pushes to a Hub: whole checkpoints at each strategy, no secrets, resumed from the Hub bit for bit."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import forked
import pytest
import yaml
from hub_server import TOKEN, environment, running_hub
from places import HELPERS, REPO
from transformers.trainer_utils import HubStrategy

from modeling_gadms.hub.pushes import HubPushes

CODE = {path.name for path in (REPO / "modeling_gadms").glob("*_gadms.py")}
SETTINGS = {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"}
MODEL = {"README.md", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json"}
MODEL |= {"tokenizer_config.json", ".gitattributes", *CODE, *SETTINGS}
STATE = {"config.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"}
STATE = {f"last-checkpoint/{name}" for name in STATE}

# Three trainings, and one that continues from the Hub at the commit given by the title, in one process.
PROGRAM = """
import json, sys
from huggingface_hub import HfApi
from train_tiny import train
from transformers.utils import logging

common = ["--push_to_hub", "True", "--save_strategy", "steps", "--save_steps", "3", "--hub_always_push", "True"]
common += ["--per_device_train_batch_size", "8", "--hub_token", sys.argv[2]]
for strategy in ("checkpoint", "every_save", "end"):
    folder = f"{sys.argv[1]}/{strategy}"
    trainer = train([*common, "--output_dir", folder, "--hub_model_id", f"org/{strategy}", "--hub_strategy", strategy])
    trainer.evaluate()
    trainer.save_model()
commits = {commit.title: commit.commit_id for commit in HfApi().list_repo_commits("org/checkpoint")}
pinned = ["--hub_model_id", "org/checkpoint", "--hub_revision", commits["Training in progress, step 3, checkpoint"]]
pinned += ["--output_dir", f"{sys.argv[1]}/resumed", "--resume_from_checkpoint", "hub"]
trainer = train([*pinned, "--per_device_train_batch_size", "8"])
trainer.save_model()
print(json.dumps(trainer.state.log_history))
"""

STRANGER = """
import sys
sys.modules["modeling_gadms"] = sys.modules["dataset_webperson"] = None
from transformers import AutoModel, AutoProcessor
for name, revision in zip(sys.argv[1::2], sys.argv[2::2]):
    model = AutoModel.from_pretrained(name, revision=revision, trust_remote_code=True)
    AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=True)
    print(round(float(model.text_projection.weight.double().sum()), 6))
"""


def test_what_a_push_has_left_is_removed_even_while_the_thread_of_the_push_removes_it(tmp_path, monkeypatch):
    class Pusher(HubPushes):
        def __init__(self):
            self.args = SimpleNamespace(output_dir=str(tmp_path), hub_strategy=HubStrategy.EVERY_SAVE)
            self.state, self.control = SimpleNamespace(global_step=3), None
            self.callback_handler = SimpleNamespace(on_push_begin=lambda *given: None)

        def is_world_process_zero(self):
            return True

        def _push_later(self, *given):
            pushed.append(given)

    pushed, remove = [], shutil.rmtree
    (tmp_path / ".push-a").mkdir()

    def late(path, ignore_errors=False):
        remove(path)  # as the thread does between the two
        remove(path, ignore_errors=ignore_errors)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", late)
        Pusher()._push_from_checkpoint(str(tmp_path / "checkpoint-3"))
    assert [given[2] for given in pushed] == ["Training in progress, step 3"] and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with running_hub() as hub:
        env = environment(hub.endpoint, folder / "cache", TOKEN)
        env["PYTHONPATH"] += f":{HELPERS}"
        process = forked.run(["-c", PROGRAM, folder, TOKEN], env=env)
        assert process.returncode == 0, process.stderr[-3000:]
        yield hub, folder, process


def test_each_strategy_pushes_exactly_the_listed_files(trained):
    hub, _, _ = trained
    assert set(hub["models/org/checkpoint"].tree()) == MODEL | STATE
    assert set(hub["models/org/every_save"].tree()) == MODEL
    assert set(hub["models/org/end"].tree()) == MODEL
    steps = [f"Training in progress, step {step}" for step in (4, 3)]
    both = [title for step in steps for title in (f"{step}, checkpoint", step)]
    assert hub["models/org/checkpoint"].titles() == ["Model save", *both, "initial commit"]
    assert hub["models/org/every_save"].titles() == ["Model save", *steps, "initial commit"]
    assert hub["models/org/end"].titles() == ["Model save", "initial commit"]


def test_a_checkpoint_pushed_during_training_is_whole_and_says_so(trained):
    hub, _, _ = trained
    repository = hub["models/org/every_save"]
    commits = {title: commit for commit, title in repository.log[repository.branches["main"]]}
    tree = repository.tree(commits["Training in progress, step 3"])
    assert set(tree) == MODEL
    assert "| optimiser steps | 3 of 4: **training is in progress** |" in tree["README.md"].decode()
    assert "in progress" not in repository.tree()["README.md"].decode()


def test_training_resumed_from_a_commit_of_the_hub_equals_the_uninterrupted_one(trained):
    hub, folder, process = trained
    log = json.loads(process.stdout.splitlines()[-1])
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4]
    whole, resumed = (folder / name / "model.safetensors" for name in ("checkpoint", "resumed"))
    assert whole.read_bytes() == resumed.read_bytes()
    assert hub["models/org/checkpoint"].tree()["model.safetensors"] == whole.read_bytes()


def test_no_secret_and_no_pickled_arguments_leave_the_machine(trained):
    hub, folder, process = trained
    for repository in hub.repositories.values():
        for tree in repository.trees.values():
            assert not [path for path in tree if path.endswith((".bin", ".pkl")) or "training_args" in path]
            assert not [path for path, body in tree.items() if TOKEN.encode() in body]
            assert not [path for path, body in tree.items() if str(folder).encode() in body and path != "config.json"]
    assert TOKEN not in process.stdout + process.stderr
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert not list(folder.rglob("training_args.bin")) and not list(folder.rglob(".push-*"))


def test_the_card_of_a_run_holds_what_was_measured(trained):
    hub, folder, _ = trained
    text = hub["models/org/end"].tree()["README.md"].decode()
    head = yaml.safe_load(text.split("---")[1])
    facts = json.loads((folder / "end" / "run_facts.json").read_text())
    entries = head["model-index"][0]["results"]
    figures = {(e["task"]["type"], m["type"]): m["value"] for e in entries for m in e["metrics"]}
    assert figures["text-to-image-retrieval", "R@1"] == round(facts["metrics"][""]["t2i_R@1"], 2)
    assert len(figures) == 10 and head["model-index"][0]["name"] == "end" and head["license"] == "apache-2.0"
    assert "| data | 24 captioned images |" in text and "$" not in text


def test_a_stranger_loads_any_revision_pinned_by_its_commit(trained, tmp_path):
    from safetensors.numpy import load

    hub, _, _ = trained
    repository = hub["models/org/every_save"]
    commits = [commit for commit, title in repository.log[repository.branches["main"]] if title != "initial commit"]
    arguments = [part for commit in commits[1:] for part in ("org/every_save", commit)]
    env = environment(hub.endpoint, tmp_path / "cache")
    process = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, *arguments], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-3000:]
    kept = [
        load(repository.tree(commit)["model.safetensors"])["gadms.text_projection.weight"] for commit in commits[1:]
    ]
    sums = [round(float(weight.astype("float64").sum()), 6) for weight in kept]
    assert [float(line) for line in process.stdout.split()] == sums and len(set(sums)) == 2
