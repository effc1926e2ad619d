"""What the arguments make of the masks, what is logged of each step, and how chunks run under autocast."""

import math

import pytest
import torch
from test_trainer import options, tiny_trainer
from tiny import tiny_rows
from transformers import TrainerState


def test_each_constant_of_the_arguments_reaches_its_own_mask(tmp_path):
    values = {"alpha_noise": 0.4, "alpha_info": 0.7, "steepness": 9.0, "gamma_noise": 0.8, "gamma_info": 0.3}
    for masks in (options(tmp_path, **values).masks(), options(tmp_path, **values).loss_options()["masking"]):
        assert {name: getattr(masks, name) for name in values} == values
        for score in (0.0, 0.25, 0.6, 1.0):
            noise = 0.4 / (1 + math.exp(-9 * ((1 - score) - 0.8)))
            info = 0.7 / (1 + math.exp(-9 * (score - 0.3)))
            assert masks.noise_probability(torch.tensor(score)).item() == pytest.approx(noise, abs=1e-6)
            assert masks.info_probability(torch.tensor(score)).item() == pytest.approx(info, abs=1e-6)


def test_the_arguments_masks_are_the_paper_s_by_default(tmp_path):
    masks = options(tmp_path).masks()
    constants = (masks.alpha_noise, masks.alpha_info, masks.steepness, masks.gamma_noise, masks.gamma_info)
    assert constants == (0.2, 0.3, 20, 0.9, 0.1)
    assert options(tmp_path).loss_options()["mtp_weight"] == 0.4
    assert options(tmp_path, masking="none").masks() is None
    hidden = options(tmp_path, hidden_spans="spans").masks()
    assert (hidden.alpha_noise, hidden.alpha_info) == (0, 0.3), "words are hidden by name, not by score"


@pytest.mark.parametrize(("logging_steps", "accumulation"), [(1, 1), (2, 1), (1, 2)])
def test_every_logged_loss_is_the_sum_of_the_parts_logged_beside_it(tmp_path, logging_steps, accumulation):
    sizes = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    trainer = tiny_trainer(tmp_path, logging_steps=logging_steps, mtp_weight=0.7, max_steps=4, **sizes)
    parts, forward = [], trainer.model.forward

    def watch(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        parts.append((outputs.sdm_loss.item(), outputs.mtp_loss.item()))
        return outputs

    trainer.model.forward = watch
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    number_of_parts = logging_steps * accumulation
    assert len(entries) == 4 // logging_steps and len(parts) == 4 * accumulation
    for number, entry in enumerate(entries):
        own = parts[number * number_of_parts : (number + 1) * number_of_parts]
        sdm, mtp = (sum(values) / number_of_parts for values in zip(*own, strict=True))
        assert (entry["sdm_loss"], entry["mtp_loss"]) == pytest.approx((sdm, mtp), rel=1e-4)
        assert float(entry["loss"]) == pytest.approx(sdm + 0.7 * mtp, rel=1e-3)
    assert len({round(entry["sdm_loss"], 3) for entry in entries}) == len(entries), "the steps differ"


def test_a_run_without_logs_keeps_nothing_of_each_step(tmp_path):
    trainer = tiny_trainer(tmp_path, logging_strategy="no", max_steps=3)
    trainer.train()
    kept = trainer._loss_parts
    assert all(isinstance(part, torch.Tensor) and part.dim() == 0 for part in kept.values())
    assert set(kept) == {"sdm_loss", "mtp_loss", "hidden_rate", "prediction_rate", "no_valid_tokens"}


def test_rows_draw_from_the_seed_of_the_run_or_of_its_data(tmp_path):
    assert tiny_trainer(tmp_path, seed=7).data_collator.seed == 7
    assert tiny_trainer(tmp_path, seed=7, data_seed=3).data_collator.seed == 3


def test_every_probability_of_augmentation_reaches_the_collator(tmp_path):
    values = {"flip_probability": 0.1, "erasing_probability": 0.3, "crop_padding": 4}
    collator = tiny_trainer(tmp_path, **values).data_collator
    assert {name: getattr(collator, name) for name in values} == values


def test_weight_decay_is_a_part_of_the_gradient(tmp_path):
    """Adam, not AdamW: without any gradient the first step is still a whole one, towards 0."""
    trainer = tiny_trainer(tmp_path, weight_decay=0.5, learning_rate=1e-2, adam_epsilon=1e-12)
    weight = trainer.model.gadms.text_projection.weight
    before = weight.detach().clone()
    optimizer = trainer.create_optimizer()
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), before - 1e-2 * before.sign())


def test_the_last_checkpoint_is_the_one_of_most_steps_that_is_whole(tmp_path):
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step != 11:
            TrainerState().save_to_json(str(tmp_path / f"checkpoint-{step}" / "trainer_state.json"))
    assert options(tmp_path).last_checkpoint() == str(tmp_path / "checkpoint-10")


def test_a_chunk_is_embedded_under_the_autocast_that_it_is_trained_under(tmp_path):
    trainer = tiny_trainer(
        tmp_path, bf16=True, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=1
    )
    seen, encode_pairs = [], trainer.model.encode_pairs

    def watch(*args, **kwargs):
        pairs = encode_pairs(*args, **kwargs)
        embeds = pairs.image_embeds.detach().clone(), pairs.text_embeds.detach().clone()
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), embeds))
        return pairs

    trainer.model.encode_pairs = watch
    trainer.train()
    assert [graph for graph, *_ in seen] == [False, False, True, True]
    assert all(autocast for _, autocast, _ in seen)
    for planned, trained in zip(seen[:2], seen[2:], strict=True):
        for before, after in zip(planned[2], trained[2], strict=True):
            assert before.dtype == after.dtype == torch.bfloat16 and torch.equal(before, after)


@pytest.mark.parametrize("training", [False, True])
def test_evaluation_leaves_every_module_in_the_mode_it_was_in(tmp_path, training):
    trainer = tiny_trainer(tmp_path)
    trainer.model.train(training)
    trainer.evaluate()
    assert [name for name, module in trainer.model.named_modules() if module.training != training] == []


def test_training_goes_on_in_training_mode_after_an_evaluation(tmp_path):
    trainer = tiny_trainer(tmp_path, eval_strategy="steps", eval_steps=1, max_steps=3)
    modes, forward = [], trainer.model.forward

    def watch(*args, **kwargs):
        modes.append({module.training for module in trainer.model.modules()})
        return forward(*args, **kwargs)

    trainer.model.forward = watch
    trainer.train()
    assert modes == [{True}] * 3


def test_evaluation_of_another_set_measures_that_set(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.evaluate(tiny_rows(6))
    assert len(trainer.measured.image_embeds) == 6
    trainer.evaluate()
    assert len(trainer.measured.image_embeds) == 10
