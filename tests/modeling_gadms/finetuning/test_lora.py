"""LoRA: adapters on the towers alone, heads whole; they save, resume, reload, merge, and train in chunks."""

import json

import pytest
import torch
from finetune_tiny import embeddings, finetune, tiny_tuned_model
from peft import PeftModel
from replayed_batches import assert_equal_to, by_replays, loss_and_gradients, make_batch, split
from safetensors.torch import load_file
from tiny import tiny_model, tiny_processor, tiny_rows
from transformers import AutoModel, Trainer

from modeling_gadms.finetuning.arguments import GADMSFineTuningArguments
from modeling_gadms.finetuning.lora import LoraArguments, add_lora, count_parameters, merged, save_adapter
from modeling_gadms.finetuning.trainer import GADMSFineTuningTrainer
from modeling_gadms.masking_gadms import DualMasking

LORA = ["--lora", "True", "--lora_rank", "4", "--adam_epsilon", "1e-8"]


def tiny_lora(seed=1, num_persons=12, **kwargs):
    """With adapters that are not zero, unlike new ones."""
    model = add_lora(tiny_tuned_model(num_persons), LoraArguments(**{"lora": True, "lora_rank": 4, **kwargs}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=generator)
    return model


def test_adapters_sit_on_both_towers_and_nowhere_else():
    model = add_lora(tiny_tuned_model(), LoraArguments(lora=True, lora_rank=4))
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    depths = {"text": 3, "vision": 2}
    layers = [f"{tower}_model.encoder.layers.{n}" for tower, depth in depths.items() for n in range(depth)]
    assert adapted == {f"base_model.model.gadms.{layer}.self_attn.{kind}_proj" for layer in layers for kind in "qv"}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name or ".modules_to_save.default." in name for name in trainable)
    heads = sum(p.numel() for p in tiny_model(vocab_size=len(tiny_processor().tokenizer)).decoder.parameters())
    expected = heads + 12 * 64 + 12 + len(adapted) * 2 * 4 * 64
    plain = sum(parameter.numel() for parameter in tiny_tuned_model().parameters())
    assert count_parameters(model) == (expected, plain + len(adapted) * 2 * 4 * 64)


def test_other_layers_can_be_chosen():
    model = add_lora(tiny_tuned_model(), LoraArguments(lora=True, lora_targets=["mlp.fc1", "visual_projection"]))
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    assert len(adapted) == 6 and all(name.endswith(("mlp.fc1", "visual_projection")) for name in adapted)


@pytest.mark.parametrize("targets", [["q_proj", "qkv"], []])
def test_a_target_that_is_not_a_layer_is_refused_and_the_layers_are_named(targets):
    known = "fc1, fc2, k_proj, out_proj, q_proj, text_projection, v_proj, visual_projection"
    with pytest.raises(ValueError, match=f"no such linear layer in the towers; they have {known}"):
        add_lora(tiny_tuned_model(), LoraArguments(lora=True, lora_targets=targets))


def test_adapters_of_layers_that_fsdp_divides_are_refused_in_one_line(tmp_path, monkeypatch):
    create = "create_accelerator_and_postprocess"
    monkeypatch.setattr(Trainer, create, divided(getattr(Trainer, create)))
    args = GADMSFineTuningArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=8)
    options = {"train_dataset": tiny_rows(), "eval_dataset": tiny_rows(10, seed=2)}
    with pytest.raises(
        ValueError, match="^FSDP divides layers, and adapters are merged into whole ones: leave one .*$"
    ):
        GADMSFineTuningTrainer(tiny_lora(), args, tiny_processor(), **options)
    GADMSFineTuningTrainer(tiny_tuned_model(), args, tiny_processor(), **options)


def divided(create):
    """Makes an accelerator as where the layers of the model are divided, which accelerate does on GPUs alone."""

    def created(trainer):
        create(trainer)
        trainer.is_fsdp_enabled = True

    return created


def test_training_moves_adapters_and_heads_and_leaves_the_towers(tmp_path):
    trainer = finetune(["--output_dir", str(tmp_path), *LORA])
    start = add_lora(tiny_tuned_model(), LoraArguments(lora=True, lora_rank=4))
    frozen = {name: weight for name, weight in start.named_parameters() if not weight.requires_grad}
    now = dict(trainer.model.named_parameters())
    assert all(torch.equal(now[name], weight) for name, weight in frozen.items())
    lora_b = [name for name in now if ".lora_B." in name]
    assert lora_b and all(now[name].abs().max() > 0 for name in lora_b)
    heads = [name for name in now if ".modules_to_save.default." in name]
    assert heads and not [name for name in heads if torch.equal(now[name], dict(start.named_parameters())[name])]
    rates = [(group["lr"], group["weight_decay"]) for group in trainer.optimizer.param_groups]
    assert len(rates) == 3 and {decay for _, decay in rates} == {4e-5, 0.0}, "new weights, and biases of two kinds"


def test_activation_checkpointing_gives_adapters_the_same_steps(tmp_path):
    weights = []
    for options in ([], ["--activation_checkpointing", "True"]):
        trainer = finetune(["--output_dir", str(tmp_path / str(len(options))), *LORA, "--max_steps", "2", *options])
        weights.append({name: weight for name, weight in trainer.model.named_parameters() if ".lora_B." in name})
    for name, weight in weights[0].items():
        assert weight.abs().max() > 0, name
        torch.testing.assert_close(weights[1][name], weight, atol=1e-5, rtol=1e-3)


def test_a_resumed_run_with_adapters_equals_one_never_interrupted(tmp_path):
    options = [*LORA, "--num_train_epochs", "2", "--save_total_limit", "2", "--lora_dropout", "0.1"]
    finetune(["--output_dir", str(tmp_path / "whole"), *options])
    checkpoint = tmp_path / "whole" / "checkpoint-6"
    kept = load_file(checkpoint / "adapter_model.safetensors")
    assert not [name for name in kept if ".base_layer." in name] and not (checkpoint / "model.safetensors").exists()
    finetune(["--output_dir", str(tmp_path / "resumed"), *options, "--resume_from_checkpoint", str(checkpoint)])
    last = "checkpoint-12/adapter_model.safetensors"
    expected, got = load_file(tmp_path / "whole" / last), load_file(tmp_path / "resumed" / last)
    assert expected.keys() == got.keys() and all(torch.equal(got[name], expected[name]) for name in expected)


def test_merging_gives_the_same_embeddings_and_leaves_the_adapters():
    model = tiny_lora()
    expected = embeddings(model.get_base_model().gadms)
    assert not torch.allclose(expected, embeddings(tiny_tuned_model().gadms), atol=1e-2)
    plain = merged(model).plain()
    torch.testing.assert_close(embeddings(plain.gadms), expected, atol=1e-4, rtol=1e-4)
    assert not [name for name in plain.state_dict() if "lora" in name or "modules_to_save" in name]
    torch.testing.assert_close(embeddings(model.get_base_model().gadms), expected, atol=0, rtol=0)


def test_adapters_reload_on_the_model_they_were_trained_from(tmp_path):
    model = tiny_lora()
    with torch.no_grad():
        model.get_base_model().decoder.modules_to_save["default"].vocabulary.bias += 1
    save_adapter(model, str(tmp_path))
    assert not [name for name in load_file(tmp_path / "adapter_model.safetensors") if "classifier" in name]
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == ["decoder"]
    assert model.peft_config["default"].modules_to_save == ["decoder", "classifier"]
    again = PeftModel.from_pretrained(tiny_model(vocab_size=len(tiny_processor().tokenizer)), str(tmp_path))
    expected = embeddings(model.get_base_model().gadms)
    torch.testing.assert_close(embeddings(again.get_base_model().gadms), expected, atol=0, rtol=0)
    bias = again.get_base_model().decoder.modules_to_save["default"].vocabulary.bias
    assert torch.equal(bias, model.get_base_model().decoder.modules_to_save["default"].vocabulary.bias)


def test_a_run_with_adapters_ends_with_a_plain_model(tmp_path):
    trainer = finetune(["--output_dir", str(tmp_path), *LORA])
    trainer.save_model()
    expected = embeddings(trainer.retriever())
    torch.testing.assert_close(embeddings(AutoModel.from_pretrained(tmp_path)), expected, atol=1e-4, rtol=1e-4)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "lora" in name or "classifier" in name]


def test_chunks_give_adapters_the_gradient_of_the_whole_batch():
    model, batch = tiny_lora(num_persons=20).train(), make_batch()
    batch["input_ids"] = batch["input_ids"].where(batch["input_ids"] < 97, batch["input_ids"] + len_difference(model))
    whole = loss_and_gradients(model, [(1, model(**batch, masking=DualMasking()).loss)])
    assert any(".lora_A." in name for name in whole[1]) and not [n for n in whole[1] if ".base_layer." in n]
    assert_equal_to(by_replays(model, split(batch, [16] * 4), DualMasking()), whole)


def len_difference(model):
    return model.config.text_config.vocab_size - 100  # the captions' mask, BOS and EOS become those of this vocabulary
