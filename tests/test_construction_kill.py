"""`kill -9` at random moments, five or twenty times a stage: no shard is ever unreadable, each row is there once."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from caption_server import CaptionServer, serve
from made_up_persons import STUB_CROP, person_rows, stub_crop_shard, write_crops, write_source

from dataset_webperson.construction.caption_server_client import Captioner
from dataset_webperson.construction.captioning import CaptionOptions, caption_shard
from dataset_webperson.construction.duplicates import DedupOptions, dedup_shard, find_duplicates
from dataset_webperson.construction.opt_out import OptOut
from dataset_webperson.construction.quality import QualityOptions, assess_shard
from dataset_webperson.construction.shards import read_rows, run_stage, shard_counts

STAGE_KILLS = [pytest.param(5, id="few"), pytest.param(20, id="many", marks=pytest.mark.slow)]
FORK = multiprocessing.get_context("fork")  # a child starts at once, in the middle of the work


def crop(root):
    sources = sorted(map(str, (root / "source").glob("*.tar")))
    run_stage(stub_crop_shard, sources, str(root / "work" / "1_crop"), STUB_CROP)


def dedup(root):
    crops = sorted(map(str, (root / "crops").glob("*.parquet")))
    options = DedupOptions(plan=str(root / "work" / "2_dedup" / "plan"), rows_in_memory=50)
    find_duplicates(crops, options)
    run_stage(dedup_shard, crops, str(root / "work" / "2_dedup"), options)


def remove(root):
    """Rows are opted out of finished shards."""
    crops = sorted(map(str, (root / "crops").glob("*.parquet")))
    options = DedupOptions(plan=str(root / "work" / "2_dedup" / "plan"))
    find_duplicates(crops, options)
    opt_out = OptOut(domains=["site1.org", "site2.org"])
    run_stage(dedup_shard, crops, str(root / "work" / "2_dedup"), options, opt_out=opt_out)


def caption(root):
    crops = sorted(map(str, (root / "crops").glob("*.parquet")))
    captioner = Captioner(base_url=(root / "address").read_text(), model="made-up")
    run_stage(caption_shard, crops, str(root / "work" / "3_caption"), CaptionOptions(captioner, captioner))


def quality(root):
    captioned = sorted(map(str, (root / "captioned").glob("*.parquet")))
    run_stage(assess_shard, captioned, str(root / "work" / "4_quality"), QualityOptions())


def shards(root):
    return sorted(path for path in (root / "work").rglob("*.parquet"))


def check_readable(root):
    for path in shards(root):
        assert shard_counts(str(path))["rows_out"] == sum(1 for _ in read_rows(str(path)))


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in shards(root)}


@pytest.fixture
def server():
    with serve(CaptionServer()) as state:
        yield state


@pytest.mark.parametrize("wanted_kills", STAGE_KILLS)
@pytest.mark.parametrize("stage", [crop, dedup, remove, caption, quality])
def test_kills_at_random_moments_lose_and_repeat_nothing(stage, wanted_kills, tmp_path, server):
    write_source(tmp_path / "source", shards=6, images=3)
    # Every row that is captioned is two requests: fewer of them.
    write_crops(tmp_path / "crops", person_rows(600 if stage in (dedup, remove) else 24, seed=0, twins=0.2), 6)
    (tmp_path / "address").write_text(server.url)
    if stage is quality:
        caption(tmp_path)
        (tmp_path / "work" / "3_caption").rename(tmp_path / "captioned")
    stage(tmp_path)  # imports what it needs, so that the next run takes as long as the children will
    expected = contents(tmp_path)
    shutil.rmtree(tmp_path / "work")
    start = time.monotonic()
    stage(tmp_path)
    seconds = time.monotonic() - start
    assert contents(tmp_path) == expected
    assert len(expected) >= 6
    moments = random.Random(0)
    kills = 0
    shutil.rmtree(tmp_path / "work")
    while kills < wanted_kills:
        child = FORK.Process(target=stage, args=(tmp_path,))
        child.start()
        child.join(moments.uniform(0, seconds))
        if child.exitcode is None:
            child.kill()
            child.join()
        if child.exitcode == 0:
            assert contents(tmp_path) == expected
            shutil.rmtree(tmp_path / "work")  # and once more, until there were enough kills
            continue
        assert child.exitcode == -signal.SIGKILL
        kills += 1
        check_readable(tmp_path)
    (tmp_path / "work").mkdir(exist_ok=True)
    stage(tmp_path)
    assert contents(tmp_path) == expected
    assert not list((tmp_path / "work").rglob("*.part")) and not list((tmp_path / "work").rglob("work"))
    names = Counter(
        row["image_path"] for path in (tmp_path / "work").glob("*/*.parquet") for row in read_rows(str(path))
    )
    assert len(names) > 20 and set(names.values()) == {1}


def slow_crop_shard(source, target, options):
    Path(target + ".pid").write_text(str(os.getpid()))
    time.sleep(30)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_pool_ends_with_its_killed_parent(tmp_path):
    """Else a process that is left over would still write when the command is given again."""
    code = (
        "from test_construction_kill import *\n"
        f"run_stage(slow_crop_shard, ['a.tar', 'b.tar'], {str(tmp_path)!r}, {{}}, 2)\n"
    )
    guarded = f"if __name__ == '__main__':\n    {code.replace(chr(10), chr(10) + '    ')}"
    (tmp_path / "run.py").write_text(guarded)
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}:{here.parent}"}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "run.py")], env=environment, stderr=subprocess.DEVNULL)
    files = [tmp_path / f"{name}.parquet.pid" for name in "ab"]
    deadline = time.monotonic() + 120
    while not all(file.exists() and file.read_text() for file in files) and time.monotonic() < deadline:
        time.sleep(0.05)
    pids = [int(file.read_text()) for file in files]
    assert all(map(is_running, pids))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20  # they would sleep for 30
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))
