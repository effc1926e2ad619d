"""datatrove's executors write the same bytes as the local pool."""

import hashlib
from pathlib import Path

import pytest
from made_up_persons import STUB_CROP, stub_crop_shard, write_source

from dataset_webperson.construction.duplicates import DedupOptions, dedup_shard, find_duplicates
from dataset_webperson.construction.opt_out import OptOut
from dataset_webperson.construction.shards import read_rows, run_stage

pytest.importorskip("datatrove", reason="datatrove is not installed: pip install datatrove")


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).glob("*.parquet")}


def test_two_workers_of_datatrove_write_the_bytes_of_the_local_pool(tmp_path):
    from datatrove.executor import LocalPipelineExecutor

    from dataset_webperson.construction.engines import ShardStep

    sources = write_source(tmp_path / "source", shards=5, images=3, copies=4)
    opt_out = OptOut(domains=["site2.org"])

    def with_pool(name, stage, inputs, options):
        run_stage(stage, inputs, str(tmp_path / "pool" / name), options, 1, opt_out)

    def with_datatrove(name, stage, inputs, options):
        step = ShardStep(stage, inputs, str(tmp_path / "datatrove" / name), options, opt_out)
        logs = str(tmp_path / "logs" / name)
        LocalPipelineExecutor([step], tasks=3, workers=2, logging_dir=logs, start_method="spawn").run()

    for root, run in (("pool", with_pool), ("datatrove", with_datatrove)):
        run("1_crop", stub_crop_shard, sources, STUB_CROP)
        crops = sorted(str(path) for path in (tmp_path / root / "1_crop").glob("*.parquet"))
        options = DedupOptions(plan=str(tmp_path / root / "2_dedup" / "plan"))
        find_duplicates(crops, options)
        run("2_dedup", dedup_shard, crops, options)
    for name in ("1_crop", "2_dedup"):
        expected = digests(tmp_path / "pool" / name)
        assert digests(tmp_path / "datatrove" / name) == expected and len(expected) == 5
    rows = [row for path in (tmp_path / "pool" / "2_dedup").glob("*.parquet") for row in read_rows(str(path))]
    assert 0 < len(rows) < 2 * 3 * 5 and not any("site2.org" in row["url"] for row in rows)
