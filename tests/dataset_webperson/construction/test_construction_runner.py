"""The runner: only what is missing is done, options are remembered, opted-out rows go, a configuration is checked."""

import json
import os
import pickle
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up_persons import STUB_CROP, person_rows, stub_crop_shard, write_crops, write_source
from tqdm import tqdm

from dataset_webperson.construction import shards
from dataset_webperson.construction.opt_out import OptOut
from dataset_webperson.construction.shards import (
    CHANGEABLE,
    EDITABLE,
    begin_stage,
    read_rows,
    remove_opted_out,
    run_stage,
    shard_counts,
    shard_writer,
)
from dataset_webperson.construction.stages.captioning import CaptionOptions
from dataset_webperson.construction.stages.crop import CropOptions
from dataset_webperson.construction.stages.quality import QualityOptions
from dataset_webperson.construction.typed_yaml import fill
from dataset_webperson.findings import DataError

SCHEMA = pa.schema([("number", pa.int64())])


@dataclass(frozen=True)
class Options:
    factor: int = 1
    address: str = field(default="", metadata=CHANGEABLE)


def double(source, target, options):
    with shard_writer(target, SCHEMA) as shard:
        for number in range(int(Path(source).read_text())):
            shard.counts["rows_in"] += 1
            shard.counts["odd"] += number % 2
            if number % 2 == 0:
                shard.write({"number": number * options.factor})
    return dict(shard.counts)


def end_process(source, target, options):
    os._exit(3)


def wait_long(source, target, options):
    Path(target + ".pid").write_text(str(os.getpid()))
    time.sleep(60)


def write_numbers(folder, *numbers):
    folder.mkdir()
    for place, number in enumerate(numbers):
        (folder / f"{place:03d}.txt").write_text(str(number))
    return [str(path) for path in sorted(folder.iterdir())]


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.parquet")}


def test_counts_are_those_of_all_shards_and_stand_in_each_file(tmp_path):
    sources = write_numbers(tmp_path / "in", 5, 0, 250)
    total = run_stage(double, sources, str(tmp_path / "out"), Options(3))
    assert total == {"rows_in": 255, "rows_out": 128, "odd": 127}
    assert shard_counts(str(tmp_path / "out" / "000.parquet")) == {"rows_in": 5, "rows_out": 3, "odd": 2}
    assert [row["number"] for row in read_rows(str(tmp_path / "out" / "000.parquet"))] == [0, 6, 12]
    assert list(read_rows(str(tmp_path / "out" / "001.parquet"))) == []
    footer = pq.read_metadata(tmp_path / "out" / "002.parquet")
    assert [footer.row_group(group).num_rows for group in range(footer.num_row_groups)] == [100, 25]


def test_a_rerun_does_only_what_is_missing_and_clears_what_was_half_written(tmp_path):
    sources = write_numbers(tmp_path / "in", 5, 6, 7)
    run_stage(double, sources, str(tmp_path / "out"), Options())
    before = contents(tmp_path / "out")
    times = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before}
    (tmp_path / "out" / "001.parquet").unlink()
    (tmp_path / "out" / "001.parquet.abc.part").write_bytes(b"half")
    run_stage(double, sources, str(tmp_path / "out"), Options(address="elsewhere"))
    assert contents(tmp_path / "out") == before
    after = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before}
    assert [name for name in before if times[name] != after[name]] == ["001.parquet"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*sorted(before), "options.json"]


def test_a_folder_of_older_code_goes_on_where_an_option_that_it_did_not_know_is_off(tmp_path):
    (tmp_path / "options.json").write_text('{"min_score": 0.5}')
    begin_stage(str(tmp_path), {"min_score": 0.5, "blur_faces": False})
    with pytest.raises(DataError, match=r"other options \(blur_faces\)"):
        begin_stage(str(tmp_path), {"min_score": 0.5, "blur_faces": True})


def test_other_options_than_before_are_refused_by_name(tmp_path):
    sources = write_numbers(tmp_path / "in", 5)
    run_stage(double, sources, str(tmp_path / "out"), Options(1))
    with pytest.raises(DataError, match=r"out: was begun with other options \(factor\)"):
        run_stage(double, sources, str(tmp_path / "out"), Options(2))


@dataclass(frozen=True)
class OfAFile:
    words: str = field(default="", metadata=EDITABLE)


def test_a_file_of_words_that_was_edited_between_two_runs_is_refused(tmp_path):
    file, out = tmp_path / "words.json", str(tmp_path / "out")
    file.write_text("red")
    begin_stage(out, OfAFile(str(file)))
    begin_stage(out, OfAFile(str(file)))
    file.write_text("red, crimson")
    with pytest.raises(DataError, match=r"out: was begun with other options \(what is in words\)"):
        begin_stage(out, OfAFile(str(file)))
    (tmp_path / "out" / "options.json").write_text(json.dumps({"words": str(file)}))  # of code that kept no digests
    begin_stage(out, OfAFile(str(file)))
    assert {part.name for part in fields(QualityOptions) if part.metadata == EDITABLE} == {"reader", "families"}
    assert {part.name for part in fields(CaptionOptions) if part.metadata == EDITABLE} == {"templates"}


@pytest.fixture
def bars(monkeypatch):
    """The bars that stages show, and how they moved."""
    shown, moves = [], []

    class Bar(tqdm):
        def __init__(self, **values):
            super().__init__(**values)
            shown.append(self)

        def update(self, number=1):
            moves.append(number)
            return super().update(number)

    monkeypatch.setattr(shards, "tqdm", Bar)
    return shown, moves


def test_the_bar_follows_the_rows_within_shards_and_knows_how_many_there_are(tmp_path, bars):
    sources = write_numbers(tmp_path / "in", 5, 70, 25)
    run_stage(double, sources[:1], str(tmp_path / "out"), Options())
    bars[0].clear(), bars[1].clear()
    run_stage(double, sources, str(tmp_path / "out"), Options(), sizes=dict(zip(sources, (5, 70, 25), strict=True)))
    (bar,), moves = bars
    assert (bar.total, bar.initial, bar.n) == (100, 5, 100) and bar.postfix == "3/3 shards" and moves == 95 * [1]


def test_two_processes_write_the_bytes_of_one_and_the_bar_follows_them(tmp_path, bars):
    sources = write_source(tmp_path / "source", shards=3, images=2)
    counts = [
        run_stage(stub_crop_shard, sources, str(tmp_path / str(workers)), STUB_CROP, workers) for workers in (1, 2)
    ]
    assert counts[0] == counts[1] and counts[0]["rows_out"] == 12
    assert contents(tmp_path / "1") == contents(tmp_path / "2") and len(contents(tmp_path / "1")) == 3
    assert [bar.n for bar in bars[0]] == 2 * [counts[0]["rows_in"]]


def test_a_process_that_is_ended_from_outside_is_one_clear_error(tmp_path):
    sources = write_numbers(tmp_path / "in", 5, 6)
    with pytest.raises(DataError, match="a worker process was killed.*finished shards are kept"):
        run_stage(end_process, sources, str(tmp_path / "out"), Options(), 2)
    assert "OMP_NUM_THREADS" not in os.environ or os.environ["OMP_NUM_THREADS"] == "1"


def test_sources_of_one_name_and_broken_shards_are_refused(tmp_path):
    with pytest.raises(DataError, match="shards of the same name"):
        run_stage(double, ["a/0.txt", "b/0.tar"], str(tmp_path), Options())
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="a.parquet: not a whole parquet file"):
        list(read_rows(str(tmp_path / "a.parquet")))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="b.parquet: not a shard of a stage"):
        shard_counts(str(tmp_path / "b.parquet"))


def test_opted_out_rows_leave_finished_shards_and_new_ones(tmp_path, monkeypatch):
    sources = write_source(tmp_path / "source", shards=2, images=4, copies=0)
    folder = str(tmp_path / "1_crop")
    before = run_stage(stub_crop_shard, sources, folder, STUB_CROP)
    assert before["rows_out"] == 16
    Path(folder, "00001.parquet").unlink()  # one shard is new, the other finished
    opt_out = OptOut(domains=["site1.org"], urls=["https://site2.org/2.jpg"])
    after = run_stage(stub_crop_shard, sources, folder, STUB_CROP, opt_out=opt_out)
    urls = [row["url"] for name in ("00000", "00001") for row in read_rows(f"{folder}/{name}.parquet")]
    assert len(urls) == after["rows_out"] == 10 and not any(opt_out.excludes(url) for url in urls)
    assert (after["opted_out_domain"], after["opted_out_url"]) == (4, 2)
    written = contents(folder)
    looked_at = []
    monkeypatch.setattr(shards, "remove_opted_out", lambda path, _: looked_at.append(os.path.basename(path)))
    run_stage(stub_crop_shard, sources, folder, STUB_CROP, opt_out=opt_out)
    assert contents(folder) == written and looked_at == []
    # A shard that came back, as after a kill before it was looked at, and another list.
    os.utime(Path(folder, "00001.parquet"), (1, 1))
    run_stage(stub_crop_shard, sources, folder, STUB_CROP, opt_out=opt_out)
    assert looked_at == ["00001.parquet"]
    run_stage(stub_crop_shard, sources, folder, STUB_CROP, opt_out=OptOut(domains=["site3.org"]))
    assert looked_at[1:] == ["00000.parquet", "00001.parquet"]


def test_a_process_reads_an_opt_out_list_once_and_again_when_it_has_changed(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("domain:a.org\n")
    first = OptOut.from_file(path)
    assert OptOut.from_file(path) is first
    path.write_text("domain:a.org\nurl:https://b.org/x\n")
    second = OptOut.from_file(path)
    assert second.excludes("https://b.org/x") == "url" and second.digest != first.digest
    assert OptOut(urls=["b.org/x"], domains=["a.org"]).digest == second.digest
    # What a shard's process is sent is the name of the file, and it has read that already.
    sent = pickle.dumps(second)
    assert len(sent) < 300 and pickle.loads(sent) is second
    assert pickle.loads(pickle.dumps(OptOut(domains=["a.org"]))).domains == {"a.org"}


def test_a_row_is_removed_by_the_hash_of_its_picture_or_of_its_source(tmp_path):
    rows = person_rows(6, seed=0, twins=0)
    (shard,) = write_crops(tmp_path, rows, 1)
    opt_out = OptOut(sha256s=[rows[1]["image_sha256"].upper(), rows[4]["source_sha256"]])
    assert remove_opted_out(shard, opt_out) == 2
    assert [row["source_id"] for row in read_rows(shard)] == ["0", "2", "3", "5"]
    assert shard_counts(shard) == {"opted_out_sha256": 2, "rows_in": 6, "rows_out": 4}


def test_a_configuration_fills_every_threshold_and_refuses_unknown_names():
    values = {
        "detector": {"backend": "onnx", "model": "a.onnx", "min_score": "5e-1"},
        "rule": {"min_side": 64, "max_ratio": 4.5},
        "margin": 0,
    }
    options = fill(CropOptions, values, "a.yaml: crop")
    assert (options.detector.min_score, options.rule.min_side, options.rule.max_ratio) == (0.5, 64.0, 4.5)
    assert (options.pose.min_score, options.rule.min_hips, options.margin) == (0.3, 1, 0.0)
    for wrong, message in (
        ({"rule": {"min_sid": 1}}, "a.yaml: crop: rule: no such option: min_sid; the options are min_side, min_ratio"),
        ({"margin": "wide"}, "a.yaml: crop: margin: 'wide' is not float"),
        ({"batch_size": True}, "a.yaml: crop: batch_size: True is not int"),
        ({"batch_size": 0}, "a.yaml: crop: margin must be at least 0 and batch_size at least 1, not 0.05 and 0"),
        ({"detector": "yolo"}, "a.yaml: crop: detector: `name: value` lines belong here"),
        ({"detector": {"backend": "onyx"}}, "a.yaml: crop: detector: backend is one of"),
    ):
        with pytest.raises(DataError) as error:
            fill(CropOptions, wrong, "a.yaml: crop")
        assert message in str(error.value)
