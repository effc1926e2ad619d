"""Ordinary use prints no warning: loading, encoding, training on a CPU, adapters, the curve of a short run."""

import warnings

import pytest
import torch
from PIL import Image
from tiny import save_published, tiny_model, tiny_processor, tiny_rows
from transformers import AutoModel, AutoProcessor

from modeling_gadms.finetuning.lora import LoraArguments, add_lora
from modeling_gadms.finetuning.model import GADMSForFineTuning
from modeling_gadms.training.arguments import GADMSTrainingArguments
from modeling_gadms.training.run_report import save_curve
from modeling_gadms.training.trainer import GADMSTrainer


@pytest.fixture
def none_expected():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield
    mine = [warning for warning in found if not issubclass(warning.category, DeprecationWarning | ResourceWarning)]
    assert [f"{warning.filename}:{warning.lineno}: {warning.message}" for warning in mine] == []


def test_loading_encoding_and_saving(none_expected, tmp_path):
    save_published(tmp_path)
    model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    inputs = processor(images=[Image.new("RGB", (20, 50), "red")] * 2, text=["a red coat", "a man"])
    with torch.no_grad():
        model(**inputs)
    model.token_scores(**inputs)
    model.word_contributions(**inputs)
    model.save_pretrained(tmp_path / "again")


def test_training_where_a_cpu_is_all_there_is(none_expected, tmp_path):
    processor = tiny_processor()
    model = tiny_model(vocab_size=len(processor.tokenizer))
    args = GADMSTrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, crop_padding=1, save_strategy="no"
    )
    trainer = GADMSTrainer(model, args, processor, train_dataset=tiny_rows(), eval_dataset=tiny_rows(10))
    trainer.train()
    trainer.evaluate()


def test_adding_adapters(none_expected):
    tuned = GADMSForFineTuning.from_pre_training(tiny_model(), 3)
    model = add_lora(tuned, LoraArguments(lora=True, lora_rank=4))
    tuned.activation_checkpointing_enable()
    assert model.get_base_model().is_gradient_checkpointing


@pytest.mark.parametrize("log", [[], [{"step": 1, "sdm_loss": 2.0}], [{"step": 1, "eval_t2i_R@1": 9.0}]])
def test_the_curve_of_a_run_that_logged_little(none_expected, tmp_path, log):
    save_curve(log, tmp_path / "curve.png")
