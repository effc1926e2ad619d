"""Every argument of the Trainer acts, or is refused: optimiser and schedule above all."""

import dataclasses

import pytest
import torch
from test_trainer import tiny_trainer
from tiny import tiny_model, tiny_processor
from transformers import TrainerState, TrainingArguments, get_scheduler

from dataset_webperson.files import write_json
from modeling_gadms.finetuning.arguments import GADMSFineTuningArguments
from modeling_gadms.training.arguments import WITHOUT_EFFECT, GADMSTrainingArguments


def arguments(tmp_path, **values):
    return GADMSTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **values)


@pytest.mark.parametrize(
    "optim, kind", [("adam", torch.optim.Adam), ("adamw_torch", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_the_optimiser_is_the_one_asked_for(tmp_path, optim, kind):
    optimizer = tiny_trainer(tmp_path, optim=optim, learning_rate=3e-4, weight_decay=0.07).create_optimizer()
    assert type(optimizer) is kind
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {(3e-4, 0.07)}


def test_the_sigmoid_loss_is_taken_whole_and_in_chunks_when_its_bias_is_given(tmp_path):
    logs = []
    for size, chunks in ((4, 1), (2, 2)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": chunks, "max_steps": 1}
        trainer = tiny_trainer(tmp_path / str(chunks), sigmoid_bias=-3.0, logging_steps=1, **options)
        trainer.train()
        logs.append(next(entry for entry in trainer.state.log_history if "sigmoid_loss" in entry))
    assert "sdm_loss" not in logs[0]
    for name in ("loss", "sigmoid_loss", "mtp_loss"):
        assert float(logs[0][name]) == pytest.approx(float(logs[1][name]), rel=1e-3), name


def test_an_optimiser_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="adamm"):
        arguments(tmp_path, optim="adamm")


def rates(trainer, steps=12):
    trainer.create_optimizer_and_scheduler(num_training_steps=steps)
    found = []
    for _ in range(steps):
        found.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return found


def by_transformers(name, warmup, steps=12, kwargs=None):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    scheduler = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=steps, scheduler_specific_kwargs=kwargs
    )
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    "name, kwargs",
    [("linear", None), ("constant", None), ("cosine_with_restarts", {"num_cycles": 2}), ("cosine", {"num_cycles": 1})],
)
def test_the_schedule_is_the_one_asked_for(tmp_path, name, kwargs):
    options = {"lr_scheduler_type": name, "warmup_steps": 3, "learning_rate": 1e-3, "lr_scheduler_kwargs": kwargs}
    assert rates(tiny_trainer(tmp_path, **options)) == pytest.approx(by_transformers(name, 3, kwargs=kwargs))


@pytest.mark.parametrize("given, steps", [(4, 4), (0.25, 3)])
def test_steps_of_warm_up_take_the_place_of_epochs(tmp_path, given, steps):
    """From a tenth of the peak, linearly; a share below 1 is of all twelve steps."""
    found = rates(tiny_trainer(tmp_path, warmup_steps=given, warmup_epochs=5.0, learning_rate=1e-3))
    assert found[: steps + 1] == pytest.approx([1e-3 * (0.1 + 0.9 * step / steps) for step in range(steps + 1)])
    assert found[steps + 1] < 1e-3


CHANGED = {
    "average_tokens_across_devices": False,
    "eval_do_concat_batches": False,
    "eval_accumulation_steps": 2,
    "include_for_metrics": ["loss"],
    "include_num_input_tokens_seen": "all",
    "label_smoothing_factor": 0.1,
    "length_column_name": "words",
    "liger_kernel_config": {"rope": True},
    "neftune_noise_alpha": 5.0,
    "optim_target_modules": "all-linear",
    "train_sampling_strategy": "sequential",
}


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_an_argument_without_effect_is_refused(tmp_path, name):
    arguments(tmp_path)  # the defaults pass
    with pytest.raises((ValueError, ImportError), match=name.split("_")[0]):
        arguments(tmp_path, **{name: CHANGED.get(name, True)})


def test_the_list_names_arguments_of_the_installed_parent():
    assert set(WITHOUT_EFFECT) <= {field.name for field in dataclasses.fields(TrainingArguments)}


def test_divided_layers_are_refused_where_they_are_needed_whole_or_would_not_be_divided(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="^FSDP: on the device cpu accelerate leaves layers whole"):
        arguments(tmp_path, fsdp=True)
    monkeypatch.setattr("modeling_gadms.training.arguments.NOT_DIVIDED", ())
    arguments(tmp_path, fsdp=True)
    with pytest.raises(ValueError, match="^FSDP of version 1 .*: take version 2$"):
        arguments(tmp_path, fsdp=True, fsdp_config={"version": 1})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as `accelerate launch` does
    with pytest.raises(ValueError, match="^FSDP of version 1 "):
        arguments(tmp_path)
    monkeypatch.setenv("FSDP_VERSION", "2")
    arguments(tmp_path)
    for options, name in (
        ({"gradient_accumulation_steps": 2}, "chunks of gradient_accumulation_steps=2"),
        ({"ema_decay": 0.9}, "the average of ema_decay=0.9"),
        ({"eval_on_start": True}, "the measurement of eval_on_start"),
    ):
        with pytest.raises(ValueError, match=f"^FSDP divides layers, and {name} would need"):
            arguments(tmp_path, **options)
    GADMSFineTuningArguments(output_dir=str(tmp_path), use_cpu=True, masking="random")
    monkeypatch.setattr("modeling_gadms.training.arguments.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="^DeepSpeed ZeRO-3 divides layers, and the scores of masking=gradient_att"):
        arguments(tmp_path)
    arguments(tmp_path, masking="none")


def test_a_model_on_several_devices_is_refused(tmp_path):
    model = tiny_model(vocab_size=len(tiny_processor().tokenizer))
    model.decoder.to("meta")  # as the weights that `device_map` keeps elsewhere
    with pytest.raises(ValueError, match="spread over cpu, meta, .* load it without device_map"):
        tiny_trainer(tmp_path, model=model)


@pytest.mark.parametrize(
    ("name", "message"), [("wandb", "is not installed: pip install wandb$"), ("wand", "no such logger")]
)
def test_a_logger_that_cannot_log_is_refused(tmp_path, monkeypatch, name, message):
    found = "transformers.integrations.integration_utils.get_available_reporting_integrations"
    monkeypatch.setattr(found, lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=f"^report_to={name}.*{message}"):
        arguments(tmp_path, report_to=["tensorboard", name])
    assert arguments(tmp_path, report_to="tensorboard").report_to == ["tensorboard"]


@pytest.mark.parametrize("kind", [GADMSTrainingArguments, GADMSFineTuningArguments])
def test_what_a_resumed_run_changes_is_named(tmp_path, kind):
    before = kind(output_dir=str(tmp_path), use_cpu=True, lr_scheduler_type="linear")
    write_json(tmp_path / "training_args.json", before.to_dict())
    same = {"output_dir": str(tmp_path / "other"), "use_cpu": True, "lr_scheduler_type": "linear", "logging_steps": 3}
    assert kind(**same).changes_since(str(tmp_path)) == []
    changed = kind(**same, seed=7, masking="none", erasing_probability=0.1)
    assert changed.changes_since(str(tmp_path)) == [
        f"masking=none (before: {before.masking})",
        "erasing_probability=0.1 (before: 0.5)",
        "seed=7 (before: 42)",
    ]
    assert kind(**same, seed=7).changes_since(str(tmp_path / "older")) == []


def test_a_run_resumed_with_another_seed_is_warned(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("modeling_gadms.training.trainer.logger.warning", said.append)
    monkeypatch.setattr("transformers.Trainer.train", lambda *_, **__: None)
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    tiny_trainer(tmp_path).save_arguments(str(checkpoint))
    TrainerState().save_to_json(str(checkpoint / "trainer_state.json"))
    tiny_trainer(tmp_path).train(resume_from_checkpoint=True)
    tiny_trainer(tmp_path, seed=5).train()
    assert said == []
    for wanted in (True, str(checkpoint)):
        tiny_trainer(tmp_path, seed=5).train(resume_from_checkpoint=wanted)
        expected = "was written by a run with other arguments; going on with seed=5 (before: 42)"
        assert said.pop() == f"{checkpoint} {expected}" and not said
