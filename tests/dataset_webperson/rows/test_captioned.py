"""A stored data set by name: which of its splits train and which are measured, and what is refused."""

import json

import datasets
import pytest
from tiny import tiny_rows

from dataset_webperson import DataError
from dataset_webperson.rows.captioned import load_captioned
from modeling_gadms.evaluation.benchmarks import load_evaluation_set


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def rows():
    return tiny_rows(12)


def paths(split):
    return None if split is None else sorted(split["image_path"][:])


def split_in(rows, folder, **sizes):
    """Parquet files of these sizes, by name of their split, and the images of each."""
    start, held = 0, {}
    for name, size in sizes.items():
        part = rows.select(range(start, start + size))
        part.to_parquet(folder / f"{name}.parquet")
        start, held[name] = start + size, part["image_path"][:]
    return held


@pytest.mark.parametrize("word", ["val", "dev", "validation"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_validation_split_is_measured_where_there_is_no_test_split(tmp_path, rows, word, streaming):
    held = split_in(rows, tmp_path, **{"train": 8, word: 4})
    train, validation, test = load_captioned(str(tmp_path), 1000, 0, streaming)
    assert len(train) == 8 and validation is None and paths(test) == held[word]


@pytest.mark.parametrize("streaming", [False, True])
def test_validation_and_test_splits_are_kept_apart(tmp_path, rows, streaming):
    held = split_in(rows, tmp_path, train=6, val=4, test=2)
    train, validation, test = load_captioned(str(tmp_path), 1000, 0, streaming)
    assert (len(train), paths(validation), paths(test)) == (6, held["val"], held["test"])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("number", [0, 12, 1000])
def test_rows_that_cannot_be_held_out_are_refused_by_the_name_of_the_option(tmp_path, rows, number, streaming):
    split_in(rows, tmp_path, train=12)
    with pytest.raises(DataError, match=f"cannot hold out num_test_images={number}"):
        load_captioned(str(tmp_path), number, 0, streaming)
    assert len(load_captioned(str(tmp_path), 11, 0, streaming).train) == 1


def test_a_saved_data_set_is_loaded_with_its_splits_whatever_their_words(tmp_path, rows):
    rows.save_to_disk(tmp_path / "bare")
    train, _, test = load_captioned(str(tmp_path / "bare"), 2, 0)
    assert sorted(paths(train) + paths(test)) == paths(rows) and len(test) == 2
    parts = {"training": rows.select(range(8)), "dev": rows.select(range(8, 12)), "notes": rows.select([0])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "splits")
    train, validation, test = load_captioned(str(tmp_path / "splits"), 2, 0)
    assert (paths(train), validation, paths(test)) == (paths(parts["training"]), None, paths(parts["dev"]))
    assert load_evaluation_set(str(tmp_path / "splits"), split="dev")["image_path"][:] == paths(parts["dev"])
    with pytest.raises(DataError, match="written by save_to_disk, .*; leave streaming out"):
        load_captioned(str(tmp_path / "bare"), 2, 0, streaming=True)


def test_splits_that_cannot_be_told_apart_or_do_not_train_are_refused(tmp_path, rows):
    parts = {"train": rows, "val": rows, "dev": rows}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    with pytest.raises(DataError, match="val and dev are both validation splits; leave one out"):
        load_captioned(str(tmp_path / "both"), 2, 0)
    datasets.DatasetDict({"fold1": rows}).save_to_disk(tmp_path / "fold")
    with pytest.raises(DataError, match="no split train, only fold1; rename one"):
        load_captioned(str(tmp_path / "fold"), 2, 0)


def write_images(folder, rows):
    folder.mkdir(parents=True)
    lines = []
    for number, row in enumerate(rows):
        row["image"].save(folder / f"test_{number:04d}.png")
        lines.append(json.dumps({"file_name": f"test_{number:04d}.png", "caption1": row["caption1"]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def test_metadata_that_names_of_images_keep_from_being_read_is_said_to_be_unread(tmp_path, rows):
    write_images(tmp_path / "flat", rows)
    for load in (lambda folder: load_captioned(folder, 2, 0), load_evaluation_set):
        with pytest.raises(DataError, match="metadata.jsonl was not read.* a folder of its name, train or test"):
            load(str(tmp_path / "flat"))
    write_images(tmp_path / "cured" / "train", rows.select(range(8)))
    write_images(tmp_path / "cured" / "test", rows.select(range(8, 12)))
    train, _, test = load_captioned(str(tmp_path / "cured"), 2, 0)
    assert (len(train), len(test)) == (8, 4) and train[0]["caption1"] == rows[0]["caption1"]
