"""Chunks run in turn give the loss and gradient of the whole batch: in the model, the Trainer and processes."""

import json
from dataclasses import replace

import forked
import pytest
import torch
from places import HELPERS
from replayed_batches import assert_equal_to, by_replays, loss_and_gradients, make_batch, split
from safetensors.torch import load_file
from tiny import tiny_model
from train_tiny import train

from modeling_gadms.finetuning.model import GADMSForFineTuning
from modeling_gadms.masking_gadms import DualMasking, RandomMasking
from modeling_gadms.training.accumulation import plan_replays, set_random_states

MASKINGS = [DualMasking(), RandomMasking(), RandomMasking(in_place=True), None]


@pytest.mark.parametrize("sizes", [[16] * 4, [40, 20, 4]])
@pytest.mark.parametrize("masking, sigmoid_bias", [*((masking, None) for masking in MASKINGS), (DualMasking(), -3.0)])
@pytest.mark.parametrize("fine_tuning", [False, True])
def test_chunks_give_the_loss_and_gradient_of_one_batch_of_64(sizes, masking, sigmoid_bias, fine_tuning):
    model = tiny_model().train()
    if fine_tuning:
        model = GADMSForFineTuning.from_pre_training(model, num_persons=20).train()
    batch = make_batch()
    whole = loss_and_gradients(model, [(1, model(**batch, masking=masking, sigmoid_bias=sigmoid_bias).loss)])
    assert_equal_to(by_replays(model, split(batch, sizes), masking, sigmoid_bias), whole)


def test_averaging_the_losses_of_chunks_would_give_another_gradient():
    model, batch = tiny_model().train(), make_batch()
    whole, _ = loss_and_gradients(model, [(1, model(**batch).loss)])
    averaged, _ = loss_and_gradients(model, [(4, model(**chunk).loss) for chunk in split(batch, [16] * 4)])
    assert abs(averaged - whole) > 0.1


def test_dropout_is_the_same_when_a_chunk_is_embedded_and_when_it_is_replayed():
    model = tiny_model().train()
    for module in model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.2
    chunks, masking = split(make_batch(24), [8] * 3), DualMasking()
    torch.manual_seed(5)
    replays = plan_replays(model, chunks, masking)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    got = by_replays(model, chunks, masking)
    assert torch.equal(torch.get_rng_state(), after), "replaying must not move the generator"

    # all chunks with their graphs at once, each from the state that it was first embedded in
    outputs = []
    for chunk, replay in zip(chunks, replays, strict=True):
        zero = torch.zeros_like(replay.chunk.image_gradient)
        without_sdm = replace(replay.chunk, batch_loss=zero.sum(), image_gradient=zero, text_gradient=zero)
        set_random_states(replay.random_states, replay.device)
        outputs.append(model(**chunk, masking=masking, chunk=without_sdm))
    embeds = [torch.cat([output[name] for output in outputs]) for name in ("image_embeds", "text_embeds")]
    sdm = model.joint_alignment_loss(*embeds, torch.cat([chunk["person_ids"] for chunk in chunks]))
    expected = loss_and_gradients(model, [(1, sdm + sum(output.loss for output in outputs) / 3)])
    assert_equal_to(got, expected)
    torch.manual_seed(6)
    other, _ = by_replays(model, chunks, masking)
    assert other != pytest.approx(expected[0], abs=1e-3), "there was no dropout"


def run(output_dir, *options, processes=1):
    result = forked.run([HELPERS / "train_tiny.py", "--output_dir", output_dir, *options], processes=processes)
    assert result.returncode == 0, result.stderr
    return json.loads((output_dir / "run.json").read_text())


def trained(output_dir, *options):
    trainer = train(["--output_dir", str(output_dir), "--adam_epsilon", "1e-3", *options])
    return trainer, {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


def assert_trained_alike(weights, expected):
    start = tiny_model(vocab_size=expected["decoder.vocabulary.weight"].shape[0]).state_dict()
    for name, weight in expected.items():
        moved = (weight - start[name]).abs().max()
        assert (weights[name] - weight).abs().max() < 0.02 * moved + 1e-6, name


def test_the_trainer_takes_the_same_steps_in_chunks_as_in_whole_batches(tmp_path):
    """24 rows in batches of 16: one step per epoch, and the remaining rows are dropped either way."""
    whole, weights = trained(tmp_path / "whole", "--per_device_train_batch_size", "16", "--max_steps", "3")
    options = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "4", "--max_steps", "3"]
    chunks, chunk_weights = trained(tmp_path / "chunks", *options)
    logs = [trainer.state.log_history for trainer in (whole, chunks)]
    for key in ("loss", "sdm_loss", "mtp_loss", "learning_rate", "epoch", "step"):
        values = [[float(entry[key]) for entry in log if "loss" in entry] for log in logs]
        assert len(values[0]) == 3 and values[1] == pytest.approx(values[0], rel=1e-3), key
    assert_trained_alike(chunk_weights, weights)


def test_two_processes_in_chunks_train_as_one_with_the_whole_batch(tmp_path):
    common = ["--adam_epsilon", "1e-3", "--max_steps", "3"]
    one = run(tmp_path / "one", *common, "--per_device_train_batch_size", "8")
    two = run(
        tmp_path / "two",
        *common,
        *("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"),
        processes=2,
    )
    assert [one["processes"], two["processes"]] == [1, 2]
    for key in ("loss", "sdm_loss", "mtp_loss"):
        values = [[float(entry[key]) for entry in log["log"] if "loss" in entry] for log in (one, two)]
        assert values[1] == pytest.approx(values[0], rel=1e-3), key
    assert_trained_alike(load_file(tmp_path / "two/model.safetensors"), load_file(tmp_path / "one/model.safetensors"))


def test_a_resumed_run_in_chunks_equals_one_never_interrupted(tmp_path):
    """24 rows in batches of 2 x 4: the checkpoint at step 4 lies inside an epoch."""
    common = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--max_steps", "6"]
    saving = ["--save_strategy", "steps", "--save_steps", "4"]
    _, weights = trained(tmp_path / "whole", *common, *saving)
    _, resumed = trained(
        tmp_path / "resumed", *common, "--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-4")
    )
    assert all(torch.equal(resumed[name], weight) for name, weight in weights.items())
