"""Which rows an epoch shows and in which order, what is left over, and how warm-up counts epochs."""

import math

import pytest
import torch
from test_trainer import tiny_trainer
from tiny import tiny_rows

from modeling_gadms.training.samplers import EpochSampler, StreamedRows


def order_of(sampler, epoch):
    sampler.set_epoch(epoch)
    return [index for _, index in sampler]


def test_each_epoch_has_an_order_of_its_own():
    sampler = EpochSampler(50, seed=0)
    orders = [order_of(sampler, epoch) for epoch in range(4)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert order_of(EpochSampler(50, seed=0), 2) == orders[2], "whatever epochs came before"
    assert order_of(EpochSampler(50, seed=1), 2) != orders[2]


def test_other_rows_are_left_out_of_each_epoch():
    sampler = EpochSampler(11, seed=0, batch_size=4)
    seen = [order_of(sampler, epoch) for epoch in range(20)]
    assert len(sampler) == 8 and all(len(set(order)) == 8 for order in seen)
    assert len({frozenset(order) for order in seen}) > 1
    whole = EpochSampler(11, seed=0)
    assert order_of(sampler, 3) == order_of(whole, 3)[:8], "the end of the epoch's own order"


def test_rows_that_shuffle_themselves_are_counted_through():
    assert order_of(EpochSampler(7, seed=3, batch_size=2, shuffle=False), 5) == [0, 1, 2, 3, 4, 5]


def watch_rows(trainer):
    """`(epoch, image_path)` of every row that reaches the collator, chunk by chunk."""
    chunks, collate = [], trainer.data_collator

    def watch(rows):
        chunks.append([(row["epoch"], row["image_path"]) for row in rows])
        return collate(rows)

    trainer.data_collator = watch
    watch.seed = collate.seed
    return chunks


def test_two_passes_over_a_stream_show_every_row_once_each_in_another_order(tmp_path):
    rows = tiny_rows().to_iterable_dataset(num_shards=4).shuffle(seed=0, buffer_size=10)
    trainer = tiny_trainer(tmp_path, rows=rows, max_steps=6, per_device_train_batch_size=8)
    chunks = watch_rows(trainer)
    trainer.train()
    seen = [row for chunk in chunks for row in chunk]
    passes = [[path for epoch, path in seen if epoch == number] for number in (0, 1)]
    assert sum(map(len, passes)) == len(seen), "there were two passes"
    assert [sorted(order) for order in passes] == [tiny_rows()["image_path"][:]] * 2
    assert passes[0] != passes[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_resumed_in_its_second_pass_continues_as_if_it_had_not_stopped(tmp_path, workers):
    """Three steps to a pass; the run that stops does so after five, in the second of three passes."""
    rows = tiny_rows().to_iterable_dataset(num_shards=4).shuffle(seed=0, buffer_size=10)
    options = {"per_device_train_batch_size": 8, "max_steps": 9, "save_steps": 5, "save_strategy": "steps"}
    options |= {"dataloader_num_workers": workers, "learning_rate": 1e-3, "adam_epsilon": 1e-8}
    whole = tiny_trainer(tmp_path / "whole", rows=rows, **options)
    whole.train()
    resumed = tiny_trainer(tmp_path / "whole", rows=rows, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert resumed.state.global_step == 9
    expected = whole.model.state_dict()
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_stream_that_never_fills_a_step_is_refused(tmp_path):
    rows = tiny_rows().to_iterable_dataset()
    options = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "max_steps": 2}
    with pytest.raises(ValueError, match="does not fill one step of 32 pairs"):
        tiny_trainer(tmp_path, rows=rows, **options).train()


def test_streamed_rows_are_shuffled_again_in_each_epoch():
    stream = StreamedRows(tiny_rows().to_iterable_dataset().shuffle(seed=0, buffer_size=24))
    orders = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        orders.append([row["image_path"] for row in stream])
    assert orders[0] == orders[2] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def steps_and_batches(trainer):
    """The optimiser step that each chunk was trained in, and the rows of the chunk."""
    trained = []
    step = trainer.training_step

    def watch(model, inputs, *args):
        trained.append((trainer.state.global_step, list(inputs["image_paths"])))
        return step(model, inputs, *args)

    trainer.training_step = watch
    trainer.train()
    return trained


@pytest.mark.parametrize("stream", [False, True])
def test_every_step_has_all_its_chunks_and_the_rest_of_a_pass_is_dropped(tmp_path, stream):
    """24 rows in chunks of 5, three to a step: of the four whole chunks of a pass one is left over."""
    rows = tiny_rows().to_iterable_dataset() if stream else tiny_rows()
    options = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 3, "max_steps": 3}
    trained = steps_and_batches(tiny_trainer(tmp_path, rows=rows, **options))
    assert [step for step, _ in trained] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for step in range(3):
        paths = [path for number, chunk in trained if number == step for path in chunk]
        assert len(set(paths)) == 15, "one pass alone"
        if stream:
            assert sorted(paths) == tiny_rows()["image_path"][:15]


def rates(trainer, num_training_steps):
    trainer.create_optimizer_and_scheduler(num_training_steps=num_training_steps)
    seen = []
    for _ in range(num_training_steps + 1):
        seen.append(trainer.optimizer.param_groups[0]["lr"] / trainer.args.learning_rate)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return seen


@pytest.mark.parametrize("accumulation", [1, 3])
def test_warm_up_is_counted_in_epochs_also_where_the_steps_are_given(tmp_path, accumulation):
    """24 rows in batches of 6, however chunked: four steps an epoch, so two epochs of warm-up end at step 8."""
    batch = 6 // accumulation
    options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "warmup_epochs": 2}
    seen = rates(tiny_trainer(tmp_path, max_steps=20, **options), 20)
    assert seen[:9] == pytest.approx([0.1 + 0.9 * step / 8 for step in range(9)])
    assert seen[9:] == pytest.approx([(1 + math.cos(math.pi * step / 12)) / 2 for step in range(1, 13)])


def test_warm_up_longer_than_training_never_reaches_the_whole_rate(tmp_path):
    seen = rates(tiny_trainer(tmp_path, max_steps=6, per_device_train_batch_size=8, warmup_epochs=5), 6)
    assert seen == sorted(seen) and seen[5] < 1
