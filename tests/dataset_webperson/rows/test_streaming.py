"""Shuffled streaming: every row once an epoch, exact resumption, shares of nodes and workers, and a Trainer on it."""

import json
import os
import signal
from collections import Counter

import datasets
import forked
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import load_dataset
from datasets.distributed import split_dataset_by_node
from made_up_webperson import same_pixels, write_parquets
from places import EXAMPLES, HELPERS
from tiny import tiny_model, tiny_processor
from torch.utils.data import BatchSampler, DataLoader

from dataset_webperson import DataError
from dataset_webperson.release import ReleaseSettings, release
from dataset_webperson.release_shards import Layout
from dataset_webperson.removed import write_removed
from dataset_webperson.rows.streaming import ShuffledParquet, lane_rows
from modeling_gadms.training.arguments import GADMSTrainingArguments
from modeling_gadms.training.samplers import EpochSampler, ParquetRows
from modeling_gadms.training.trainer import GADMSTrainer

ROWS = 107


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A release of 107 rows in some shards and row groups of uneven sizes."""
    root = tmp_path_factory.mktemp("stream")
    source = write_parquets(root / "source", ROWS)
    release(str(source), str(root / "out"), ReleaseSettings(contact="x", layout=Layout(19, 7)))
    return str(root / "out")


def paths(rows):
    return [row["image_path"] for row in rows]


def read(stream, epoch=0, start=0):
    return paths(stream[key] for key in stream.order(epoch, start))


def loader(stream, epoch=0, start=0, **options):
    options = {"batch_size": stream.batch_size, "collate_fn": paths, **options}
    return DataLoader(stream, sampler=stream.order(epoch, start), **options)


@pytest.mark.parametrize(("batch_size", "lanes"), [(1, 1), (4, 3), (10, 7), (50, 8)])
def test_an_epoch_has_every_row_once_and_each_has_another_order(folder, batch_size, lanes):
    stream = ShuffledParquet(folder, seed=1, batch_size=batch_size, lanes=lanes, window_rows=20)
    first, second = read(stream), read(stream, epoch=1)
    assert len(stream) == ROWS and len(set(first)) == ROWS and sorted(first) == sorted(second)
    assert first != second and first != sorted(first)
    again = ShuffledParquet(folder, seed=1, batch_size=batch_size, lanes=lanes, window_rows=20)
    assert read(again) == first
    assert read(ShuffledParquet(folder, seed=2, batch_size=batch_size, lanes=lanes, window_rows=20)) != first


def test_rows_are_those_of_load_dataset(folder):
    rows = {row["image_path"]: row for row in load_dataset(folder, split="train", streaming=True)}
    stream = ShuffledParquet(folder, window_rows=20)
    for position in range(ROWS):
        row = stream[0, position]
        expected = rows[row["image_path"]]
        assert same_pixels(row.pop("image"), expected["image"])
        assert row == {name: value for name, value in expected.items() if name != "image"}


def test_pictures_of_a_list_are_left_out_and_a_copy_without_hashes_is_refused(folder, tmp_path):
    rows = list(load_dataset(folder, split="train", streaming=True))
    gone = [rows[number] for number in (0, 7, 8, 50, ROWS - 1)]
    write_removed(str(tmp_path / "removed.parquet"), {row["image_sha256"]: "asked" for row in gone})
    stream = ShuffledParquet(folder, batch_size=4, lanes=3, window_rows=20, removed=str(tmp_path / "removed.parquet"))
    assert len(stream) == ROWS - 5 and sorted(read(stream)) == sorted(set(paths(rows)) - set(paths(gone)))
    older = str(tmp_path / "older.parquet")
    pq.write_table(pq.read_table(stream.files[0]).drop_columns(["image_sha256"]), older)
    with pytest.raises(DataError, match="no column image_sha256"):
        ShuffledParquet([older], removed=str(tmp_path / "removed.parquet"))


def test_lanes_are_dealt_batches_in_turn():
    for rows, batch_size, lanes in ((107, 4, 3), (5, 8, 4), (64, 8, 8), (65, 8, 8)):
        expected = [0] * lanes
        for batch, start in enumerate(range(0, rows, batch_size)):
            expected[batch % lanes] += min(batch_size, rows - start)
        assert lane_rows(rows, batch_size, lanes) == expected


def test_neighbours_in_the_files_are_apart_in_the_stream(folder):
    """Row groups of 7 rows are mixed in windows of 40: few neighbours in the stream are neighbours in the files."""
    order = np.array([int(path[:4]) for path in read(ShuffledParquet(folder, window_rows=40))])
    assert np.mean(np.abs(np.diff(order)) == 1) < 0.15
    assert len({number // 7 for number in order[:20]}) > 3


@pytest.mark.parametrize("start", [0, 1, 19, 60, 106, 107])
def test_reading_starts_anywhere_and_reads_nothing_that_lies_before(folder, start, monkeypatch):
    stream = ShuffledParquet(folder, window_rows=20)
    whole = read(stream)
    again = ShuffledParquet(folder, window_rows=20)
    pieces = []
    monkeypatch.setattr(
        again, "_read_piece", lambda piece: pieces.append(piece) or type(again)._read_piece(again, piece)
    )
    assert read(again, start=start) == whole[start:]
    # At most the window that holds the start is read besides what is handed on.
    assert sum(piece.stop - piece.start for piece in pieces) <= ROWS - start + 20 + 7


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_loader_workers_change_neither_rows_nor_order(folder, workers):
    stream = ShuffledParquet(folder, batch_size=5, lanes=max(workers, 1), window_rows=20)
    batches = list(loader(stream, num_workers=workers))
    assert [path for batch in batches for path in batch] == read(stream)


def test_a_worker_reads_its_own_lane_only(folder):
    """Two workers, two lanes: together they read each row group once, and the one on the border twice."""
    stream = ShuffledParquet(folder, batch_size=5, lanes=2, window_rows=20)
    groups = Counter()
    for worker in range(2):
        own = ShuffledParquet(folder, batch_size=5, lanes=2, window_rows=20)
        own._read_piece = lambda piece, own=own: (
            groups.update([(piece.file, piece.group)]) or type(own)._read_piece(own, piece)
        )
        for position in range(ROWS):
            if position // 5 % 2 == worker:
                own[0, position]
    assert set(groups.values()) <= {1, 2} and sum(groups.values()) <= len(stream._groups) + 1


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (2, 0), (2, 3), (3, 2)])
def test_every_worker_of_every_process_has_a_lane_and_together_they_have_every_full_batch(folder, processes, workers):
    """As accelerate shares batches out among processes, and torch among workers."""
    rows = ParquetRows(ShuffledParquet(folder), 4, processes, workers)
    sampler = BatchSampler(EpochSampler(len(rows), 0, 4 * processes, shuffle=False), 4, drop_last=True)
    seen = []
    for process in range(processes):
        batches = list(BatchSamplerShard(sampler, processes, process))
        for worker in range(max(workers, 1)):
            own = [key for batch in batches[worker :: max(workers, 1)] for key in batch]
            assert len({position // 4 % rows.dataset.lanes for _, position in own}) == 1
            seen += own
    assert sorted(seen) == [(0, position) for position in range(ROWS // (4 * processes) * 4 * processes)]


KILLED = """
import sys
sys.path[:0] = {path!r}
from test_streaming import ShuffledParquet, loader
stream = ShuffledParquet({folder!r}, batch_size=5, lanes=2, window_rows=20)
for batch in loader(stream, start={start}, num_workers=2):
    print(" ".join(batch), flush=True)
"""


def test_a_killed_reader_with_workers_goes_on_with_every_row_once(folder):
    """Killed after 6 batches of 5; the state is the number of rows seen."""
    here = os.path.dirname(os.path.abspath(__file__))
    script = KILLED.format(path=[here, str(HELPERS)], folder=folder, start=0)
    process = forked.start(["-c", script])
    seen = [path for line in process.lines(6) for path in line.split()]
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and len(seen) == 30
    script = KILLED.format(path=[here, str(HELPERS)], folder=folder, start=30)
    rest = forked.run(["-c", script]).stdout.split()
    assert len(rest) == ROWS - 30 and Counter(seen + rest) == Counter(f"{number:04d}.jpg" for number in range(ROWS))


def test_the_iterable_of_an_epoch_resumes_by_its_state(folder):
    stream = ShuffledParquet(folder, seed=3, lanes=2, window_rows=20)
    whole = paths(stream.iterable(epoch=2))
    assert sorted(whole) == [f"{number:04d}.jpg" for number in range(ROWS)]
    for stop in (0, 1, 33, 106):
        rows = stream.iterable(epoch=2)
        iterator = iter(rows)
        seen = paths(next(iterator) for _ in range(stop))
        state = json.loads(json.dumps(rows.state_dict()))
        again = ShuffledParquet(folder, seed=3, lanes=2, window_rows=20).iterable(epoch=2)
        again.load_state_dict(state)
        assert seen + paths(again) == whole


@pytest.mark.parametrize("nodes", [2, 4])
def test_nodes_share_the_iterable(folder, nodes, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # of 5 seconds, for each node
    stream = ShuffledParquet(folder, lanes=4, window_rows=8)
    shares = [paths(split_dataset_by_node(stream.iterable(0), node, nodes)) for node in range(nodes)]
    assert Counter(path for share in shares for path in share) == Counter(read(stream))
    assert min(map(len, shares)) > ROWS // nodes // 2
    rows = load_dataset(folder, split="train", streaming=True).shuffle(seed=0, buffer_size=30)
    shares = [paths(split_dataset_by_node(rows, node, nodes)) for node in range(nodes)]
    assert Counter(path for share in shares for path in share) == Counter(read(stream))


def test_the_iterable_in_loader_workers_has_every_row_once(folder):
    rows = ShuffledParquet(folder, lanes=2, window_rows=20).iterable(0)
    seen = [path for batch in DataLoader(rows, batch_size=5, num_workers=2, collate_fn=paths) for path in batch]
    assert Counter(seen) == Counter(f"{number:04d}.jpg" for number in range(ROWS))


def test_the_first_rows_can_be_held_out_and_columns_chosen(folder):
    stream = ShuffledParquet(folder, first_row=25, columns=["image_path"], window_rows=20)
    assert sorted(read(stream)) == [f"{number:04d}.jpg" for number in range(25, ROWS)]
    assert stream.column_names == ["image_path"]
    assert stream.take(2) == [stream[0, 0], stream[0, 1]]


def test_bad_sources_and_options_are_refused_in_one_line(folder, tmp_path):
    with pytest.raises(DataError, match="no split 'test'; it has train"):
        ShuffledParquet(folder, split="test")
    with pytest.raises(DataError, match="no rows"):
        ShuffledParquet(folder, first_row=ROWS)
    with pytest.raises(ValueError, match="lanes=0; at least 1"):
        ShuffledParquet(folder, lanes=0)
    (tmp_path / "a.jsonl").write_text('{"image_path": "a"}\n')
    with pytest.raises(DataError, match="a.jsonl is not parquet"):
        ShuffledParquet(str(tmp_path))
    broken = tmp_path / "b.parquet"
    broken.write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="b.parquet: not a whole parquet file"):
        ShuffledParquet([str(broken)])
    with pytest.raises(IndexError):
        ShuffledParquet(folder)[0, ROWS]


def test_a_broken_image_is_named(folder, tmp_path):
    table = pq.read_table(f"{folder}/data/train-00000-of-00006.parquet")
    rows = table.to_pylist()
    rows[3]["image"]["bytes"] = rows[3]["image"]["bytes"][:100]
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), tmp_path / "broken.parquet")
    stream = ShuffledParquet([str(tmp_path / "broken.parquet")])
    with pytest.raises(DataError, match="0003.jpg at position .* cannot be decoded"):
        read(stream)


# The Trainer.


def trainer(folder, output_dir, **options):
    defaults = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "steps", "save_steps": 2, "seed": 0}
    args = GADMSTrainingArguments(
        output_dir=str(output_dir),
        **{**defaults, "per_device_train_batch_size": 16, "num_train_epochs": 2, "logging_steps": 1, **options},
    )
    processor = tiny_processor()
    stream = ShuffledParquet(folder, seed=0, window_rows=20)
    made = GADMSTrainer(tiny_model(vocab_size=len(processor.tokenizer)), args, processor, train_dataset=stream)
    seen = []
    step = made.training_step

    def spy(model, inputs, *rest):
        seen.append(list(inputs["image_paths"]))
        return step(model, inputs, *rest)

    made.training_step = spy
    return made, seen


@pytest.mark.parametrize("workers", [0, 2])
def test_training_on_a_stream_resumes_with_the_next_batch_and_ends_alike(folder, tmp_path, workers):
    """6 batches of 16 an epoch; stopped at step 2, inside the first, and 8, inside the second."""
    whole, seen = trainer(folder, tmp_path / "whole", dataloader_num_workers=workers)
    whole.train()
    assert len(seen) == 12
    for epoch in (seen[:6], seen[6:]):
        assert len({path for batch in epoch for path in batch}) == 6 * 16
    assert seen[:6] != seen[6:]
    for stop in (2, 8):
        again, rest = trainer(folder, tmp_path / f"again-{stop}", dataloader_num_workers=workers)
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
        assert rest == seen[stop:]
        for name, weight in whole.model.state_dict().items():
            assert torch.equal(weight, again.model.state_dict()[name]), name


@pytest.mark.parametrize(("name", "rows"), [("benchmark_loading", 14), ("benchmark_layouts", 5)])
def test_the_benchmarks_print_their_tables(name, rows):
    restless = "import datasets, sys; datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0; sys.path[0] = sys.argv[1];"
    restless += f"import {name}; sys.exit({name}.main(sys.argv[2:]))"
    table = forked.run(["-c", restless, EXAMPLES, "--rows", "30", "--rounds", "1"]).stdout.splitlines()
    figures = [line for line in table if line.startswith("| ") and "rows/s" not in line]
    assert len(figures) == rows, table
