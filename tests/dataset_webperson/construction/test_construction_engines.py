"""datatrove's executors write the same bytes as the local pool."""

import hashlib
from pathlib import Path

import pytest
from caption_server import CaptionServer, serve
from made_up_persons import STUB_CROP, stub_crop_shard, write_source
from test_construction_select import coyo

from dataset_webperson.construction.captions.client import Captioner
from dataset_webperson.construction.opt_out import OptOut
from dataset_webperson.construction.shards import read_rows, run_stage
from dataset_webperson.construction.stages.captioning import CaptionOptions, caption_shard
from dataset_webperson.construction.stages.duplicates import DedupOptions, dedup_shard, find_duplicates
from dataset_webperson.construction.stages.quality import QualityOptions, assess_shard
from dataset_webperson.construction.stages.select_urls import SelectOptions, select_shard

pytest.importorskip("datatrove", reason="datatrove is not installed: pip install datatrove")


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).glob("*.parquet")}


def test_two_workers_of_datatrove_write_the_bytes_of_the_local_pool_in_every_stage(tmp_path):
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

    metadata = [tmp_path / "coyo" / f"{number:05d}.parquet" for number in range(5)]
    for number, path in enumerate(metadata):
        coyo(path, 60, number, 1_000 * number)
    for root, run in (("pool", with_pool), ("datatrove", with_datatrove)):
        run("0_select", select_shard, list(map(str, metadata)), SelectOptions())
        run("1_crop", stub_crop_shard, sources, STUB_CROP)
        crops = sorted(str(path) for path in (tmp_path / root / "1_crop").glob("*.parquet"))
        options = DedupOptions(plan=str(tmp_path / root / "2_dedup" / "plan"))
        find_duplicates(crops, options)
        run("2_dedup", dedup_shard, crops, options)

        def shards(name, root=root):
            return sorted(str(path) for path in (tmp_path / root / name).glob("*.parquet"))

        with serve(CaptionServer()) as server:
            captioner = Captioner(server.url, "made-up")
            run("3_caption", caption_shard, shards("2_dedup"), CaptionOptions(captioner, captioner))
        run("4_quality", assess_shard, shards("3_caption"), QualityOptions())
    for name in ("0_select", "1_crop", "2_dedup", "3_caption", "4_quality"):
        expected = digests(tmp_path / "pool" / name)
        assert digests(tmp_path / "datatrove" / name) == expected and len(expected) == 5
    rows = [row for path in (tmp_path / "pool" / "4_quality").glob("*.parquet") for row in read_rows(str(path))]
    assert 0 < len(rows) < 2 * 3 * 5 and not any("site2.org" in row["url"] for row in rows)
