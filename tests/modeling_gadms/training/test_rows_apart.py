"""Rows beside each other: what each draws, the order of its captions, and batches that cannot be filled."""

from types import SimpleNamespace

import pytest
import torch
from test_trainer import options, tiny_trainer
from tiny import tiny_processor, tiny_rows

from modeling_gadms.rows import caption_columns, captions_of, pick_column
from modeling_gadms.training.collator import PairCollator


def test_two_rows_of_a_batch_draw_different_numbers():
    row = {**tiny_rows(1)[0], "epoch": 0}
    batch = PairCollator(tiny_processor())([row, {**row, "image_path": "another.png"}])
    for name in ("pixel_values", "mask_uniforms"):
        assert not torch.equal(batch[name][0], batch[name][1]), name
    assert batch["person_ids"][0] != batch["person_ids"][1]


def test_captions_are_counted_by_number_and_not_by_letter():
    row = {"image_path": "a.png", "caption10": "ten", "caption2": "two", "caption1": "one", "caption_of": "none"}
    assert caption_columns(row) == ["caption1", "caption2", "caption10"]
    assert captions_of(row) == ["one", "two", "ten"]
    turns = [pick_column({**row, "epoch": epoch}) for epoch in range(3)]
    start = turns.index("caption1")
    assert [*turns[start:], *turns[:start]] == ["caption1", "caption2", "caption10"]


def test_a_span_hides_the_tokens_that_begin_before_its_end():
    processor = tiny_processor()
    caption = "a red coat, blue trousers"
    start, end = caption.index("coat"), caption.index(",")
    inside = PairCollator(processor).tokens_in([caption, "a man"], [[[start, end]], []])
    ids = processor.tokenizer([caption, "a man"], padding=True, return_tensors="pt")["input_ids"]
    assert processor.tokenizer.decode(ids[0][inside[0]]).strip() == "coat"
    assert not inside[1].any()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_rows_that_do_not_fill_one_batch_of_all_chunks_are_refused(tmp_path, accumulation):
    sizes = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    assert options(tmp_path, **sizes).joint_batch_size() == 8
    tiny_trainer(tmp_path, rows=tiny_rows(8), **sizes)
    with pytest.raises(ValueError, match="7 rows do not fill one batch of 8"):
        tiny_trainer(tmp_path, rows=tiny_rows(7), **sizes)


@pytest.mark.parametrize("loss", [float("inf"), -float("inf"), float("nan")])
def test_an_infinite_loss_stops_training_as_nan_does(tmp_path, loss):
    trainer = tiny_trainer(tmp_path)
    trainer.model.forward = lambda *args, **kwargs: SimpleNamespace(loss=torch.tensor(loss))
    with pytest.raises(FloatingPointError, match=f"the loss is {loss} at step 1"):
        trainer.train()
