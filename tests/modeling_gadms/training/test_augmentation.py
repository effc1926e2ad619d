"""Batches augmented on the device are, to the last bit, those that the collator augments image by image."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor, tiny_rows
from train_tiny import train

from modeling_gadms.training.augmentation import augmented, value_table
from modeling_gadms.training.collator import PairCollator


@pytest.mark.parametrize("crop_padding", [0, 3])
@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_a_batch_is_augmented_as_image_by_image(crop_padding, probability):
    processor = tiny_processor()
    options = {"crop_padding": crop_padding, "flip_probability": probability, "erasing_probability": probability}
    noise = np.random.default_rng(0).integers(0, 256, (24, 45, 20, 3), dtype=np.uint8)
    rows = [{**row, "epoch": epoch} for epoch in range(3) for row in tiny_rows(8)]
    rows = [{**row, "image": Image.fromarray(picture)} for row, picture in zip(rows, noise, strict=True)]
    whole = PairCollator(processor, **options)(rows)
    later = PairCollator(processor, **options, augment_later=True)(rows)
    pixels, plans = later.pop("pixel_values"), later.pop("augmentation")
    assert pixels.dtype == torch.uint8 and plans.shape == (24, 7)
    assert torch.equal(
        augmented(pixels, plans, value_table(processor.image_processor), crop_padding), whole.pop("pixel_values")
    )
    assert later.keys() == whole.keys() and torch.equal(later["mask_uniforms"], whole["mask_uniforms"])
    assert plans[:, 0].float().mean() == pytest.approx(probability, abs=0.3)
    assert (plans[:, 4] > plans[:, 3]).float().mean() == pytest.approx(probability, abs=0.3)


def test_each_byte_has_the_value_that_the_processor_gives_it():
    processor = tiny_processor()
    images = torch.randint(0, 256, (2, 3, 32, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plans = torch.zeros(2, 7, dtype=torch.int64)
    normalised = processor(images=list(images), return_tensors="pt")["pixel_values"]
    assert torch.equal(augmented(images, plans, value_table(processor.image_processor), 0), normalised)


@pytest.mark.parametrize("chunks", [1, 2])
def test_training_takes_the_same_steps_either_way(tmp_path, chunks):
    weights = []
    for where in ("False", "True"):
        options = ["--augment_on_device", where, "--gradient_accumulation_steps", str(chunks), "--max_steps", "2"]
        trainer = train(["--output_dir", str(tmp_path / where), "--per_device_train_batch_size", "4", *options])
        assert trainer.data_collator.augment_later == (where == "True")
        weights.append(trainer.model.state_dict())
    start = tiny_model(vocab_size=len(tiny_processor().tokenizer)).state_dict()
    assert all(torch.equal(weights[0][name], weight) for name, weight in weights[1].items())
    assert any((weight - start[name]).abs().max() > 0 for name, weight in weights[0].items())
