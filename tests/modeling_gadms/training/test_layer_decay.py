"""The learning rate of every parameter, with layer-wise decay, against a twin that walks down the layers."""

import pytest
import torch
from finetune_tiny import tiny_tuned_model
from tiny import tiny_model, tiny_processor

from modeling_gadms import GADMSConfig, GADMSModel
from modeling_gadms.configuration_gadms import TOWERS
from modeling_gadms.finetuning.arguments import GADMSFineTuningArguments
from modeling_gadms.finetuning.lora import LoraArguments, add_lora
from modeling_gadms.finetuning.trainer import GADMSFineTuningTrainer
from modeling_gadms.training.arguments import GADMSTrainingArguments
from modeling_gadms.training.layer_decay import layer_factors
from modeling_gadms.training.trainer import GADMSTrainer

DECAY = 0.5


def rates_by_walking(model, decay):
    """From the head of each tower down: the head's rate is whole, and each step down takes a factor."""
    found = {id(parameter): 1.0 for parameter in model.parameters()}
    for tower in (model.text_model, model.vision_model):
        below_the_first = [tower.embeddings, getattr(tower, "pre_layrnorm", torch.nn.Identity())]
        layers = tower.encoder.layers if hasattr(tower.encoder, "layers") else tower.encoder.layer
        rate = 1.0
        for parts in [*([layer] for layer in reversed(layers)), below_the_first]:
            rate = rate * decay
            found |= {id(parameter): rate for part in parts for parameter in part.parameters()}
    return {name: found[id(parameter)] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("tower", TOWERS)
def test_every_tower_s_rates_fall_from_its_head_to_its_embeddings(tower):
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64}
    with torch.device("meta"):
        config = GADMSConfig(
            tower=tower,
            mask_token_id=9,
            projection_dim=64,
            text_config={**sizes, "vocab_size": 100, "num_hidden_layers": 3},
            vision_config={**sizes, "num_hidden_layers": 12},
        )
        model = GADMSModel(config)
    expected = rates_by_walking(model, DECAY)
    assert layer_factors(expected, DECAY) == expected
    assert min(expected.values()) == DECAY**13 and DECAY**4 in expected.values() and DECAY**12 in expected.values()
    assert set(layer_factors(expected, 1.0).values()) == {1.0}


def rates(trainer):
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in trainer.create_optimizer().param_groups
        for parameter in group["params"]
    }


OPTIONS = {"use_cpu": True, "learning_rate": 1e-3, "eval_strategy": "no", "save_strategy": "no"}


def test_pre_training_takes_the_rates_and_logs_that_of_the_heads(tmp_path):
    args = GADMSTrainingArguments(output_dir=str(tmp_path), layer_decay=DECAY, **OPTIONS)
    trainer = GADMSTrainer(tiny_model(), args, tiny_processor())
    found, expected = rates(trainer), rates_by_walking(trainer.model.gadms, DECAY)
    assert found.keys() == dict(trainer.model.named_parameters()).keys()
    for name, (rate, decay) in found.items():
        assert rate == pytest.approx(1e-3 * expected.get(name.removeprefix("gadms."), 1.0)) and decay == 4e-5, name
    assert trainer.optimizer.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("lora", [False, True])
def test_fine_tuning_multiplies_them_with_its_own_factors(tmp_path, lora):
    options = {**OPTIONS, "load_best_model_at_end": False}
    found = {}
    for decay in (1.0, DECAY):
        model = tiny_tuned_model()
        expected = {f"gadms.{name}": rate for name, rate in rates_by_walking(model.gadms, DECAY).items()}
        model = add_lora(model, LoraArguments(lora=True)) if lora else model
        args = GADMSFineTuningArguments(output_dir=str(tmp_path), layer_decay=decay, **options)
        found[decay] = rates(GADMSFineTuningTrainer(model, args, tiny_processor()))
    assert found[1.0].keys() == found[DECAY].keys() and len(found[DECAY]) > 20
    for name, (rate, decay) in found[DECAY].items():
        # an adapter has the place of the layer that it adapts
        place = name.removeprefix("base_model.model.").split(".lora_")[0]
        place = f"{place}.weight" if ".lora_" in name else place
        plain, same_decay = found[1.0][name]
        assert rate == pytest.approx(plain * expected.get(place, 1.0)) and decay == same_decay, name
    assert len({found[DECAY][name][0] / plain for name, (plain, _) in found[1.0].items()}) >= 4


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_a_decay_out_of_range_is_refused(tmp_path, decay):
    with pytest.raises(ValueError, match="layer_decay lies above 0 and at most at 1"):
        GADMSTrainingArguments(output_dir=str(tmp_path), layer_decay=decay, **OPTIONS)
