"""Layers divided over processes by FSDP2 train, measure, save and resume as one process with whole ones."""

import json
import os
import subprocess
import sys

import pytest
import torch
from finetune_tiny import finetune
from places import HELPERS
from safetensors.torch import load_file
from train_tiny import train

pytestmark = pytest.mark.slow  # three runs of two processes each, which import torch


def divided(output_dir, *options, kind="pretrain"):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, str(HELPERS / "train_divided.py"), kind, "--output_dir", str(output_dir)]
    command += ["--per_device_train_batch_size", "4", "--adam_epsilon", "1e-3", *options]
    result = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads((output_dir / "run.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return train(["--output_dir", str(folder), "--per_device_train_batch_size", "8", "--adam_epsilon", "1e-3"])


def assert_same(run, folder, whole, keys=("loss", "sdm_loss", "mtp_loss", "grad_norm"), steps=4):
    for key in keys:
        values, expected = (
            [float(entry[key]) for entry in log if "loss" in entry] for log in (run["log"], whole.state.log_history)
        )
        assert len(values) == len(expected) == steps and values == pytest.approx(expected, rel=1e-4), key
    saved, weights = load_file(folder / "model.safetensors"), whole.model.state_dict()
    assert saved.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(saved[name], weight, atol=1e-5, rtol=0, msg=name)


def test_divided_layers_train_as_whole_ones_with_scores_and_resume(whole, tmp_path):
    """The score calls parts of layers alone, which FSDP does not see."""
    run = divided(tmp_path / "run", "--save_strategy", "steps", "--save_steps", "2")
    layers = [name for name in run["divided"] if ".layers." in name]
    assert (
        len(layers) == sum(name.endswith(".mlp") for name, _ in whole.model.named_modules()) and "" in run["divided"]
    )
    assert_same(run, tmp_path / "run", whole)
    metrics = whole.evaluate()
    assert run["metrics"]["eval_t2i_mAP"] == pytest.approx(metrics["eval_t2i_mAP"])
    assert "modeling_gadms.py" in os.listdir(tmp_path / "run")
    assert not [name for name in os.listdir(tmp_path / "run") if "fsdp" in name], "files of torch's own class"
    resumed = divided(tmp_path / "resumed", "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-2"))
    assert_same(resumed, tmp_path / "resumed", whole)


def test_divided_layers_recompute_activations(whole, tmp_path):
    assert_same(divided(tmp_path, "--activation_checkpointing", "True"), tmp_path, whole)


@pytest.mark.parametrize("options", [[], ["--masking", "gradient_attention"]], ids=["IRRA's recipe", "dual masking"])
def test_divided_layers_are_fine_tuned_as_whole_ones(options, tmp_path):
    common = ["--adam_epsilon", "1e-3", "--max_steps", "3", "--eval_strategy", "no", "--save_strategy", "no"]
    common += ["--load_best_model_at_end", "False", *options]
    whole = finetune(["--output_dir", str(tmp_path / "whole"), *common])
    mean_precision = whole.evaluate()["eval_t2i_mAP"]
    run = divided(tmp_path / "run", *common, kind="finetune")
    assert [name for name in run["divided"] if ".layers." in name]
    keys = ("loss", "sdm_loss", "id_loss", "mtp_loss", "grad_norm")
    whole.model = whole._tuned().plain()  # as it is saved
    assert_same(run, tmp_path / "run", whole, keys, steps=3)
    assert run["metrics"]["eval_t2i_mAP"] == pytest.approx(mean_precision)
