"""The whole construction from one file: it ends in a release, continues after kills, and forgets who opted out."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from caption_server import CaptionServer, serve
from datasets import load_dataset
from made_up_persons import stub_crop_shard, write_source
from places import REPO

from dataset_webperson import WebPerson, build
from dataset_webperson.construction.shards import read_rows, shard_counts
from dataset_webperson.removed import read_removed


def write_config(root, address, **changes):
    captioner = {"base_url": address, "model": "made-up"}
    config = {
        "source": str(root / "source"),
        "work": str(root / "work"),
        "crop": {"detector": {"backend": "onnx", "model": "stub"}, "pose": {"backend": "onnx", "model": "stub"}},
        "dedup": {"max_distance": 3},
        "caption": {"captioner1": captioner, "captioner2": {**captioner, "seed": 1}},
        "quality": {"max_same_caption": 0},  # the server has one caption for all
        "release": {"out": str(root / "out"), "contact": "privacy@example.org"},
        **changes,
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return str(root / "config.yaml")


def digests(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(build, "crop_shard", stub_crop_shard)


def test_one_file_goes_from_images_to_a_release_that_loads(stub, tmp_path, capsys):
    write_source(tmp_path / "source", shards=3, images=4, copies=2)
    with serve(CaptionServer()) as server:
        config = write_config(tmp_path, server.url)
        assert build.main([config]) == 0
        asked = len(server.requests)
        counts = json.loads((tmp_path / "work" / "counts.json").read_text())
        assert list(counts) == ["0_source", "1_crop", "2_dedup", "3_caption", "4_quality", "release"]
        assert counts["1_crop"]["rows_out"] == counts["2_dedup"]["rows_in"] == 24
        assert counts["2_dedup"]["duplicate_bytes"] >= 2
        assert "2_dedup: 24 in, " in capsys.readouterr().out
        rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
        assert len(rows) == counts["release"]["rows_out"] == counts["2_dedup"]["rows_out"] > 10
        row = rows[0]
        kept = {
            "url",
            "source_id",
            "source_sha256",
            "image_sha256",
            "phash",
            "box",
            "box_score",
            "keypoints",
            "detector",
        }
        assert kept | {"template_id", "captioner1", "prompt_version", "caption1", "caption2"} <= row.keys()
        assert row["image"].size[1] > 200 and len(row["keypoints"]) == 17
        before, made = digests(tmp_path / "out"), (tmp_path / "out" / "README.md").stat().st_mtime_ns
        assert build.main([config]) == 0
        assert len(server.requests) == asked and digests(tmp_path / "out") == before
        assert (tmp_path / "out" / "README.md").stat().st_mtime_ns == made  # not made again


def test_who_opts_out_is_gone_from_every_stage_and_from_the_release(stub, tmp_path):
    write_source(tmp_path / "source", shards=2, images=4, copies=0)
    with serve(CaptionServer()) as server:
        assert build.main([write_config(tmp_path, server.url)]) == 0
        shutil.copytree(tmp_path / "out", tmp_path / "older")
        gone = {row["image_sha256"] for row in rows_of(tmp_path / "older") if "site1.org" in row["url"]}
        (tmp_path / "list.txt").write_text("domain:site1.org\n")
        assert build.main([write_config(tmp_path, server.url, opt_out=str(tmp_path / "list.txt"))]) == 0
    shards = list((tmp_path / "work").glob("[1-4]_*/*.parquet"))
    assert len(shards) == 8
    for shard in [*shards, *(tmp_path / "out" / "data").iterdir()]:
        urls = pq.read_table(shard, columns=["url"])["url"].to_pylist()
        assert urls and not any("site1.org" in url for url in urls)
    for shard in shards:
        assert shard_counts(str(shard))["opted_out_domain"] == 2
    for shard in (tmp_path / "out" / "captions").iterdir():
        assert pq.read_metadata(shard).num_rows and not gone & set(pq.read_table(shard)["image_sha256"].to_pylist())
    # The list of who is gone travels with the release, and the loader drops them from an older copy.
    listed = read_removed(tmp_path / "out" / "removed.parquet")
    assert set(listed.values()) == {"opted_out_domain"} and listed.keys() == gone
    older = {"config_name": "local", "data_dir": str(tmp_path / "older"), "cache_dir": str(tmp_path / "cache")}
    for removed, left in ((None, 16), (str(tmp_path / "out" / "removed.parquet"), 12)):
        builder = WebPerson(**older, removed=removed, on_bad_images="skip")
        builder.download_and_prepare()
        rows = builder.as_dataset(split="train")
        assert len(rows) == left and (removed is None) == bool(gone & set(rows["image_sha256"]))


def test_a_release_of_somebody_else_is_never_touched(stub, tmp_path, capsys):
    write_source(tmp_path / "source", shards=1, images=2, copies=0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("kept")
    with serve(CaptionServer()) as server:
        for _ in range(2):
            assert build.main([write_config(tmp_path, server.url)]) == 2
            assert "exists already and was not made by" in capsys.readouterr().err
    assert (tmp_path / "out" / "precious").read_text() == "kept"


def test_errors_of_the_file_are_one_line(tmp_path, capsys):
    for changes, message in (
        ({"crops": {}}, "config.yaml: no such option: crops"),
        ({"caption": None}, "a section `quality` needs a section `caption`"),
        ({"num_workers": 0}, "num_workers must be at least 1, not 0"),
        ({"source": str(tmp_path / "nowhere")}, "nowhere: no such folder"),
    ):
        assert build.main([write_config(tmp_path, "http://127.0.0.1:9/v1", **changes)]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert build.main([str(tmp_path / "missing.yaml")]) == 2
    assert "missing.yaml: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_server_that_is_of_no_use_ends_the_run_with_one_line_and_the_next_run_goes_on(
    stub, tmp_path, capsys, num_workers
):
    write_source(tmp_path / "source", shards=2, images=3, copies=0)
    with serve(CaptionServer()) as server:
        config = write_config(tmp_path, server.url, num_workers=num_workers)
        server.always = 404
        assert build.main([config]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "made-up" in line]
        assert len(lines) == 1 and lines[0].startswith(f"error: {server.url} (made-up): status 404")
        assert "run the same command again" in lines[0]
        server.always = None
        assert build.main([write_config(tmp_path, server.url)]) == 0
        assert "Traceback" not in capsys.readouterr().err


def test_a_release_interrupted_while_being_cleared_away_is_whole_or_made_again(stub, tmp_path):
    write_source(tmp_path / "source", shards=2, images=3, copies=0)
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    with serve(CaptionServer()) as server:
        config = write_config(tmp_path, server.url)
        assert build.main([config]) == 0
        expected = digests(out)
        # The end came after the release was in place, before the folder of the work was gone.
        (partial / "shards").mkdir(parents=True)
        (partial / "shards" / "000000.facts.json").write_text("{}")
        assert build.main([config]) == 0
        assert digests(out) == expected and not partial.exists()
        # The end came while a release that options no longer fit was being removed; then they were put back.
        other = write_config(
            tmp_path, server.url, release={"out": str(out), "contact": "other@example.org", "repository": "org/other"}
        )
        removed, real = [], shutil.rmtree

        def interrupted(path, ignore_errors=False):
            if path != str(out):
                return real(path, ignore_errors=ignore_errors)
            removed.append(path)
            (out / "README.md").unlink()
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(build.shutil, "rmtree", interrupted)
            build.main([other])
        assert removed == [str(out)]
        assert build.main([write_config(tmp_path, server.url)]) == 0
        assert digests(out) == expected


def test_a_selection_without_images_ends_with_the_command_that_downloads_them(tmp_path, capsys):
    from test_construction_select import coyo

    coyo(tmp_path / "coyo" / "a.parquet", 100, seed=0)
    select = {"metadata": str(tmp_path / "coyo")}
    assert build.main([write_config(tmp_path, "http://127.0.0.1:9/v1", select=select)]) == 0
    out = capsys.readouterr().out
    assert f"img2dataset --url_list {tmp_path}/work/0_urls --input_format parquet" in out
    assert sum(1 for _ in read_rows(str(tmp_path / "work" / "0_urls" / "a.parquet"))) > 3


def rows_of(folder):
    """The released rows, one by one: says more about a difference than digests do."""
    return [row for shard in sorted((folder / "data").iterdir()) for row in read_rows(str(shard))]


def ended(process):
    """Wait for a process; its exit code, or the signal. Its number stays taken, and so its group's, until `wait`."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT).si_status


@pytest.mark.slow
def test_twenty_kills_of_the_whole_command_give_the_release_of_an_undisturbed_run(tmp_path):
    for name in ("calm", "killed"):
        write_source(tmp_path / name / "source", shards=6, images=6, copies=4)
    # The tree may be edited in these minutes: every run is of the code as it is now.
    for name in ("dataset_webperson", "tests"):
        shutil.copytree(REPO / name, tmp_path / "code" / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = tmp_path / "code"
    environment = {**os.environ, "PYTHONPATH": f"{code / 'tests' / 'helpers'}:{code}", "OMP_NUM_THREADS": "1"}
    moments = random.Random(0)
    out, work, log = tmp_path / "killed" / "out", tmp_path / "killed" / "work", tmp_path / "log"
    started = []

    def start(config):
        # Not a pipe: whoever outlives the command would hold it open.
        with open(log, "w") as errors:
            process = subprocess.Popen(
                [sys.executable, str(code / "tests" / "helpers" / "build_made_up.py"), config],
                env=environment, stdout=subprocess.DEVNULL, stderr=errors, cwd=code, start_new_session=True,
            )  # fmt: skip
        started.append(process)
        return process

    try:
        with serve(CaptionServer()) as server:
            server.delay = 0.02
            began = time.monotonic()
            calm = start(write_config(tmp_path / "calm", server.url, num_workers=2))
            assert ended(calm) == 0, log.read_text()
            seconds = time.monotonic() - began
            expected, expected_rows = digests(tmp_path / "calm" / "out"), rows_of(tmp_path / "calm" / "out")
            config = write_config(tmp_path / "killed", server.url, num_workers=2)
            kills, ways = 0, Counter()
            while kills < 20:
                process = start(config)
                time.sleep(moments.uniform(0.2, 1) * seconds)
                # The parent alone: its pool must end by itself. `send_signal` would take away what `ended` waits for.
                os.kill(process.pid, signal.SIGKILL)
                status = ended(process)
                assert status in (0, signal.SIGKILL), log.read_text()
                kills += status == signal.SIGKILL
                ways[max([path.name for path in work.glob("[0-9]_*")], default="nothing")] += 1
                for shard in work.rglob("*/*.parquet"):  # the list of who is gone has no counts
                    assert shard_counts(str(shard))["rows_out"] == sum(1 for _ in read_rows(str(shard)))
                if out.is_dir():
                    assert rows_of(out) == expected_rows
                    assert digests(out) == expected
                    for path in (work, *out.parent.glob("out*")):
                        shutil.rmtree(path)
            assert ended(start(config)) == 0, log.read_text()
        assert rows_of(out) == expected_rows
        assert digests(out) == expected
        assert len(ways) > 1, "every kill came in the same stage"
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    names = Counter(row["image_path"] for row in expected_rows)
    assert len(names) > 30 and set(names.values()) == {1}


def test_images_added_to_the_source_are_taken_up_and_only_they_are_paid_for(stub, tmp_path):
    write_source(tmp_path / "source", shards=3, images=3, copies=2)
    later = sorted((tmp_path / "source").glob("00002*"))
    (tmp_path / "later").mkdir()
    for path in later:
        path.rename(tmp_path / "later" / path.name)
    with serve(CaptionServer()) as server:
        config = write_config(tmp_path, server.url)
        assert build.main([config]) == 0
        asked, old = len(server.requests), rows_of(tmp_path / "out")
        made = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("[0-9]_*/*.parquet")}
        for path in (tmp_path / "later").iterdir():
            path.rename(tmp_path / "source" / path.name)
        assert build.main([config]) == 0
        new = rows_of(tmp_path / "out")
        assert len(new) > len(old) and new[: len(old)] == old  # two copies of old pictures stay out
        assert len(server.requests) - asked == 2 * (len(new) - len(old))
        assert made == {path: path.stat().st_mtime_ns for path in made}
