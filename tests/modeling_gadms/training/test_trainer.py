"""The Trainer: exactness over processes and interruptions, the paper's optimiser, logging, and clear refusals."""

import json
import math
import os
from pathlib import Path

import forked
import pytest
import torch
from places import HELPERS
from safetensors.torch import load_file
from tiny import tiny_model, tiny_processor, tiny_rows
from train_tiny import train

import modeling_gadms.training.trainer as trainer_module
from modeling_gadms.evaluation.encoding import encode_retrieval_set
from modeling_gadms.training.arguments import GADMSTrainingArguments
from modeling_gadms.training.trainer import GADMSTrainer, warmup_then_cosine


def run(output_dir, *options, processes=1, check=True):
    """`tests/helpers/train_tiny.py` in processes of its own."""
    result = forked.run([HELPERS / "train_tiny.py", "--output_dir", output_dir, *options], processes=processes)
    assert not check or result.returncode == 0, result.stderr
    return result


def losses(output_dir, key="loss"):
    log = json.loads((output_dir / "run.json").read_text())["log"]
    return [float(entry[key]) for entry in log if key in entry]


def weights(output_dir):
    return load_file(output_dir / "model.safetensors")


def options(output_dir, **kwargs):
    defaults = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "learning_rate": 1e-3, "max_steps": 2}
    return GADMSTrainingArguments(output_dir=str(output_dir), **{**defaults, **kwargs})


def tiny_trainer(output_dir, model=None, rows=None, **kwargs):
    processor = tiny_processor()
    model = model or tiny_model(vocab_size=len(processor.tokenizer))
    kwargs.setdefault("per_device_train_batch_size", 4)
    rows = tiny_rows() if rows is None else rows
    return GADMSTrainer(
        model, options(output_dir, **kwargs), processor, train_dataset=rows, eval_dataset=tiny_rows(10)
    )


def test_two_processes_train_as_one_with_the_joint_batch(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run(one, "--per_device_train_batch_size", "8", "--adam_epsilon", "1e-3")
    run(two, "--per_device_train_batch_size", "4", "--adam_epsilon", "1e-3", processes=2)
    assert [json.loads((path / "run.json").read_text())["processes"] for path in (one, two)] == [1, 2]
    for key in ("loss", "sdm_loss", "mtp_loss"):
        assert losses(two, key) == pytest.approx(losses(one, key), rel=1e-4), key
    assert len(losses(one)) == 4
    start = tiny_model(vocab_size=len(tiny_processor().tokenizer)).state_dict()
    for name, weight in weights(one).items():
        moved = (weight - start[name]).abs().max()
        assert moved > 0, name
        difference = (weights(two)[name] - weight).abs().max()
        assert difference < 0.02 * moved + 1e-6, name
    metrics = [json.loads((path / "run.json").read_text())["metrics"] for path in (one, two)]
    for name in ("eval_t2i_R@1", "eval_i2t_mINP"):
        assert metrics[0][name] == pytest.approx(metrics[1][name])


SEVEN_STEPS = ["--per_device_train_batch_size", "8", "--save_strategy", "steps", "--save_steps", "1"]
SEVEN_STEPS += ["--max_steps", "7"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(folder, *SEVEN_STEPS)
    return folder


@pytest.mark.parametrize("epoch_end", [False, True])
def test_a_resumed_run_equals_one_never_interrupted(uninterrupted, tmp_path, epoch_end):
    """24 rows in batches of 8: a checkpoint at step 3 ends an epoch, one at step 4 lies inside the next."""
    checkpoint = str(uninterrupted / f"checkpoint-{3 if epoch_end else 4}")
    assert "training_args.json" in os.listdir(checkpoint) and "training_args.bin" not in os.listdir(checkpoint)
    run(tmp_path / "resumed", *SEVEN_STEPS, "--resume_from_checkpoint", checkpoint)
    assert losses(tmp_path / "resumed")[-3:] == losses(uninterrupted)[-3:]
    for name, weight in weights(uninterrupted).items():
        assert torch.equal(weights(tmp_path / "resumed")[name], weight), name


def test_a_finished_run_that_is_resumed_takes_no_further_step(tmp_path):
    arguments = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}  # of 6 in an epoch
    tiny_trainer(tmp_path, **arguments).train()
    again = tiny_trainer(tmp_path, **arguments)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 2
    stored = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    for name, weight in again.model.state_dict().items():
        assert name not in stored or torch.equal(stored[name], weight), name


def test_a_half_written_checkpoint_of_a_killed_run_is_skipped(tmp_path):
    tiny_trainer(tmp_path, save_strategy="steps", save_steps=1, max_steps=3).train()
    folders = [tmp_path / f"checkpoint-{step}" for step in (1, 2, 3)]
    arguments = options(tmp_path)
    assert arguments.last_checkpoint() == str(folders[2])
    (folders[2] / "trainer_state.json").unlink()
    assert arguments.last_checkpoint() == str(folders[1])
    state = (folders[1] / "trainer_state.json").read_text()
    (folders[1] / "trainer_state.json").write_text(state[: len(state) // 2])
    assert options(tmp_path, resume_from_checkpoint="True").resume_from_checkpoint == str(folders[0])


def test_a_step_repeats_bit_for_bit_and_follows_its_seed(tmp_path):
    runs = []
    for seed, workers in ((1, 0), (1, 1), (2, 0)):
        torch.rand(3)  # the state of the global generator must not matter
        argv = ["--output_dir", str(tmp_path / "run"), "--seed", str(seed), "--max_steps", "1"]
        trainer = train(argv + ["--per_device_train_batch_size", "8", "--dataloader_num_workers", str(workers)])
        runs.append({name: parameter.clone() for name, parameter in trainer.model.named_parameters()})
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_a_training_run_moves_every_parameter(tmp_path):
    trainer = tiny_trainer(tmp_path)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert [name for name, parameter in trainer.model.named_parameters() if torch.equal(parameter, before[name])] == []


def test_frozen_parameters_and_an_unused_decoder_stay(tmp_path):
    model = tiny_model(vocab_size=len(tiny_processor().tokenizer))
    model.gadms.vision_model.requires_grad_(False)
    trainer = tiny_trainer(tmp_path, model=model, masking="none")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer.train()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    still = {name for name in before if name.startswith(("decoder.", "gadms.vision_model."))}
    assert moved == set(before) - still
    assert "mtp_loss" not in trainer.state.log_history[0]


def test_the_optimiser_is_the_papers_adam(tmp_path):
    trainer = tiny_trainer(tmp_path, learning_rate=1e-4)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.Adam
    defaults = {name: optimizer.defaults[name] for name in ("lr", "betas", "eps", "weight_decay")}
    assert defaults == {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-3, "weight_decay": 4e-5}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(trainer.model.parameters()))


def test_the_schedule_warms_up_over_its_epochs_and_decays_to_zero(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=-1, num_train_epochs=30, per_device_train_batch_size=8)
    trainer.create_optimizer_and_scheduler(num_training_steps=90)
    rates = []
    for _ in range(91):
        rates.append(trainer.optimizer.param_groups[0]["lr"] / 1e-3)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates[0] == pytest.approx(0.1) and rates[15] == pytest.approx(1) and rates[90] == pytest.approx(0)
    assert rates[5] == pytest.approx(0.1 + 0.9 * 5 / 15)
    assert rates[40] == pytest.approx(0.5 * (1 + math.cos(math.pi * 25 / 75)))
    assert warmup_then_cosine(0, warmup_steps=0, num_training_steps=10, warmup_factor=0.1) == 1


def test_parts_of_the_loss_and_rates_are_logged(tmp_path):
    trainer = tiny_trainer(tmp_path, logging_steps=1, mtp_weight=0.4)
    trainer.train()
    entry = trainer.state.log_history[0]
    assert float(entry["loss"]) == pytest.approx(entry["sdm_loss"] + 0.4 * entry["mtp_loss"], abs=0.01)
    assert 0 < entry["prediction_rate"] < 1 and 0 <= entry["hidden_rate"] < 0.5 and entry["no_valid_tokens"] == 0


def test_evaluation_measures_both_directions_of_each_set(tmp_path):
    trainer = tiny_trainer(tmp_path)
    metrics = trainer.evaluate()
    expected = {f"eval_{way}_{name}" for way in ("t2i", "i2t") for name in ("R@1", "R@5", "R@10", "mAP", "mINP")}
    assert expected <= set(metrics) and all(0 <= metrics[name] <= 100 for name in expected)
    named = trainer.evaluate({"a": tiny_rows(6), "b": tiny_rows(8)})
    assert {"eval_a_t2i_R@1", "eval_b_i2t_mAP"} <= set(named)


def test_the_best_checkpoint_can_be_chosen_by_retrieval(tmp_path):
    trainer = tiny_trainer(
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_t2i_R@1",
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint is not None
    assert "processor_config.json" in os.listdir(trainer.state.best_model_checkpoint)


def test_a_loss_that_is_not_finite_stops_and_names_step_images_and_checkpoint(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=6, save_strategy="steps", save_steps=2)
    step = trainer.training_step

    def poison(model, inputs, num_items_in_batch=None):
        if trainer.state.global_step == 3:
            inputs["pixel_values"][0, 0, 0, 0] = math.nan
        return step(model, inputs, num_items_in_batch)

    trainer.training_step = poison
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 4.*images \d+\.png.*checkpoint-2"):
        trainer.train()
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())
    kept = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in kept.values())


def test_a_broken_image_stops_training_with_its_name(tmp_path):
    from PIL import Image as PILImage

    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    PILImage.new("RGB", (16, 32)).save(good)
    bad.write_bytes(good.read_bytes()[:40])
    import datasets

    rows = {"image": [str(good), str(bad)] * 4, "caption1": ["a person"] * 8}
    rows["image_path"] = [f"{index}-{Path(path).name}" for index, path in enumerate(rows["image"])]
    rows = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    with pytest.raises(ValueError, match=r"row \d, image \d-bad.png: cannot be read"):
        tiny_trainer(tmp_path / "out", rows=rows).train()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.remove_columns("image_path"), "needs the columns image, image_path, caption1"),
        (lambda rows: rows.remove_columns("caption1"), "needs the columns"),
        (lambda rows: rows.select(range(3)), "3 rows do not fill one batch of 4"),
    ],
)
def test_unusable_training_sets_are_refused_before_training(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        tiny_trainer(tmp_path, rows=change(tiny_rows()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha_noise": 2.0}, "alpha_noise is a probability"),
        ({"flip_probability": -0.1}, "flip_probability is a probability"),
        ({"mtp_weight": -1.0}, "mtp_weight must not be negative"),
    ],
)
def test_impossible_training_arguments_are_refused_when_constructed(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        options(tmp_path, **values)


def test_training_arguments_default_to_the_papers_recipe(tmp_path):
    args = GADMSTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (args.learning_rate, args.adam_epsilon, args.weight_decay) == (1e-4, 1e-3, 4e-5)
    assert (args.num_train_epochs, args.warmup_epochs, args.warmup_factor, args.mtp_weight) == (30, 5, 0.1, 0.4)
    assert (args.crop_padding, args.flip_probability, args.erasing_probability) == (10, 0.5, 0.5)


def test_evaluation_prepares_images_in_the_workers_of_the_loader(tmp_path, monkeypatch):
    asked = []

    def encode(*arguments, **options):
        asked.append(options["num_workers"])
        return encode_retrieval_set(*arguments, **{**options, "num_workers": 0})

    monkeypatch.setattr(trainer_module, "encode_retrieval_set", encode)
    tiny_trainer(tmp_path, dataloader_num_workers=2).evaluate()
    assert asked == [2]
