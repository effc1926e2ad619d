"""`kill -9` at random moments, five or twenty times a stage: no shard is ever unreadable, each row is there once."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from caption_server import CaptionServer, serve
from made_up_persons import STUB_CROP, person_rows, stub_crop_shard, write_crops, write_source
from places import HELPERS, REPO
from test_construction_select import coyo
from tqdm import tqdm

from dataset_webperson.construction import template_writing
from dataset_webperson.construction.captions.cache import AnswerCache
from dataset_webperson.construction.captions.client import Captioner
from dataset_webperson.construction.captions.templates import PLACEHOLDERS, read_review
from dataset_webperson.construction.opt_out import OptOut
from dataset_webperson.construction.shards import read_rows, run_stage, shard_counts
from dataset_webperson.construction.stages.captioning import CaptionOptions, caption_shard
from dataset_webperson.construction.stages.duplicates import DedupOptions, dedup_shard, find_duplicates
from dataset_webperson.construction.stages.quality import QualityOptions, assess_shard
from dataset_webperson.construction.stages.select_urls import SelectOptions, select_shard, unique_urls
from dataset_webperson.release import main as release

STAGE_KILLS = [pytest.param(5, id="few"), pytest.param(20, id="many", marks=pytest.mark.slow)]
VARIATION = "Here: [colored top], [colored shoes], [person] and [action]."
FORK = multiprocessing.get_context("fork")  # a child starts at once, in the middle of the work


def select(root):
    metadata = sorted(map(str, (root / "coyo").glob("*.parquet")))
    options, work = SelectOptions(faceless_share=0.5, rows_in_memory=50), root / "work"
    run_stage(select_shard, metadata, str(work / "0_select"), options)
    unique_urls(sorted(map(str, (work / "0_select").glob("*.parquet"))), str(work / "0_urls"), options)


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
    captioned = sorted(map(str, (root / "before" / "3_caption").glob("*.parquet")))
    run_stage(assess_shard, captioned, str(root / "work" / "4_quality"), QualityOptions())


def exit_code(work, root, seconds=None):
    """Run `work(root)` in a process of its own, killed if it has not ended after that many seconds."""
    child = FORK.Process(target=work, args=(root,))
    child.start()
    child.join(seconds)
    if child.exitcode is None:
        child.kill()
        child.join()
    return child.exitcode


def shards(root):
    return sorted(path for path in (root / "work").rglob("*.parquet"))


def check_readable(root):
    for path in shards(root):
        assert shard_counts(str(path))["rows_out"] == sum(1 for _ in read_rows(str(path)))


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in shards(root)}


@pytest.fixture(autouse=True)
def bars_of_their_own(monkeypatch):
    """A forked child shares the lock of progress bars: killed while it holds it, it would stop its parent for ever."""
    monkeypatch.setattr(tqdm, "_lock", threading.RLock(), raising=False)
    monkeypatch.setattr(tqdm, "monitor_interval", 0)


@pytest.fixture
def server():
    with serve(CaptionServer()) as state:
        yield state


def put_aside(root, name):
    """Move a stage's shards to where the next stage reads them, as far from the crops as they were."""
    (root / "before").mkdir(exist_ok=True)
    (root / "work" / name).rename(root / "before" / name)


@pytest.mark.parametrize("wanted_kills", STAGE_KILLS)
@pytest.mark.parametrize("stage", [select, crop, dedup, remove, caption, quality])
def test_kills_at_random_moments_lose_and_repeat_nothing(stage, wanted_kills, tmp_path, server):
    write_source(tmp_path / "source", shards=6, images=3)
    for number in range(6):
        coyo(tmp_path / "coyo" / f"{number:05d}.parquet", 150, number, 1_000 * number)
    # Every row that is captioned is two requests: fewer of them.
    write_crops(tmp_path / "crops", person_rows(600 if stage in (dedup, remove) else 24, seed=0, twins=0.2), 6)
    (tmp_path / "address").write_text(server.url)
    if stage is quality:
        caption(tmp_path)
        put_aside(tmp_path, "3_caption")
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
        code = exit_code(stage, tmp_path, moments.uniform(0, seconds))
        if code == 0:
            assert contents(tmp_path) == expected
            shutil.rmtree(tmp_path / "work")  # and once more, until there were enough kills
            continue
        assert code == -signal.SIGKILL
        kills += 1
        check_readable(tmp_path)
    (tmp_path / "work").mkdir(exist_ok=True)
    stage(tmp_path)
    assert contents(tmp_path) == expected
    assert not list((tmp_path / "work").rglob("*.part")) and not list((tmp_path / "work").rglob("work"))
    (last, name) = {select: ("0_urls", "id")}.get(stage, ("[0-9]_*", "image_path"))
    names = Counter(
        row[name] for path in (tmp_path / "work").glob(f"{last}/*.parquet") for row in read_rows(str(path))
    )
    assert len(names) > 20 and set(names.values()) == {1}


def release_assessed(root):
    """The command, as a process that ends with its exit code."""
    arguments = [
        "--source",
        str(root / "before" / "4_quality"),
        "--source_format",
        "parquet",
        "--output_dir",
        str(root / "out"),
    ]
    arguments += ["--contact", "privacy@example.org", "--rows_per_shard", "10", "--row_group_rows", "5"]
    sys.exit(release(arguments))


def folders(root):
    """The files of a release that are there, one by one, under its final names."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for name in ("out", "out-script", "out-report")
        for path in (root / name).rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("wanted_kills", STAGE_KILLS)
def test_a_release_that_is_killed_at_random_moments_is_there_whole_or_not_at_all(wanted_kills, tmp_path, server):
    write_source(tmp_path / "source", shards=6, images=6, copies=0)
    crop(tmp_path)
    (tmp_path / "address").write_text(server.url)
    (tmp_path / "work" / "1_crop").rename(tmp_path / "crops")
    caption(tmp_path)
    put_aside(tmp_path, "3_caption")
    quality(tmp_path)
    put_aside(tmp_path, "4_quality")

    def clear():
        for path in tmp_path.glob("out*"):
            shutil.rmtree(path)

    for _ in range(2):  # the first imports what it needs, so that the next takes as long as the children will
        clear()
        start = time.monotonic()
        with pytest.raises(SystemExit, match="0"):
            release_assessed(tmp_path)
        seconds = time.monotonic() - start
    expected = folders(tmp_path)
    moments, kills = random.Random(0), 0
    clear()
    while kills < wanted_kills:
        code = exit_code(release_assessed, tmp_path, moments.uniform(0, seconds))
        assert code in (0, -signal.SIGKILL)
        kills += code == -signal.SIGKILL
        for path in tmp_path.glob("out*/**/*.parquet"):
            assert pq.read_table(path).num_rows or path.name == "removed.parquet"  # nobody is, here
        there = folders(tmp_path)
        assert there.items() <= expected.items()
        if code == 0 or (tmp_path / "out").exists():
            assert there == expected
            clear()  # and once more, until there were enough kills
    assert (
        exit_code(release_assessed, tmp_path) == 0
        and folders(tmp_path) == expected
        and not (tmp_path / "out.partial").exists()
    )
    names = Counter(
        row["image_path"] for path in (tmp_path / "out" / "data").iterdir() for row in pq.read_table(path).to_pylist()
    )
    assert len(names) == 72 and set(names.values()) == {1}


def write_templates(root):
    """The command that proposes templates, as a process that ends with its exit code."""
    arguments = ["--benchmark", "made-up", "--data_root", str(root), "--base_url", (root / "address").read_text()]
    arguments += [
        "--model",
        "writer",
        "--output_file",
        str(root / "review.json"),
        "--num_clusters",
        "3",
        "--variations",
        "1",
    ]
    sys.exit(template_writing.main(arguments))


@pytest.mark.parametrize("wanted_kills", STAGE_KILLS)
def test_writing_templates_that_is_killed_keeps_what_was_approved_and_asks_for_nothing_twice(
    wanted_kills, tmp_path, server, monkeypatch
):
    pytest.importorskip("sklearn")
    (tmp_path / "address").write_text(server.url)
    slots = list(PLACEHOLDERS)

    def reply(messages):
        first, second = (slots[int(word) % len(slots)] for word in messages[1]["content"].split()[-1].split("-"))
        return f"The [person] with [{first}] and [{second}] has [hairstyle] and [colored bag]."

    def draw(benchmark, root, count, seed):
        return [f"Someone of number {number}-{number * 5 + 2}" for number in range(60)]

    server.reply = lambda messages: reply(messages) if messages[1]["content"].startswith("Turn") else VARIATION
    monkeypatch.setattr(template_writing, "draw_captions", draw)
    approved = {"approved": True, "text": "Seen: [person], [hairstyle], [colored shoes], [action].", "note": "mine"}
    review, answers = tmp_path / "review.json", tmp_path / "review.json.answers.jsonl"

    def begin():
        answers.unlink(missing_ok=True)
        review.write_text(json.dumps({"templates": [approved]}))

    for _ in range(2):
        begin()
        start = time.monotonic()
        with pytest.raises(SystemExit, match="0"):
            write_templates(tmp_path)
        seconds = time.monotonic() - start
    expected, questions = review.read_bytes(), len(server.requests) // 2
    assert len(read_review(str(review))) > 10
    begin()
    moments, kills = random.Random(0), 0
    while kills < wanted_kills:
        code = exit_code(write_templates, tmp_path, moments.uniform(0, seconds))
        assert code in (0, -signal.SIGKILL)
        kills += code == -signal.SIGKILL
        assert read_review(str(review))[0] == approved
        if code == 0:
            assert review.read_bytes() == expected
            begin()
    assert exit_code(write_templates, tmp_path) == 0 and review.read_bytes() == expected
    asked = len(server.requests)
    with AnswerCache(str(answers)) as cache:
        assert len(cache) == questions
    assert (
        exit_code(write_templates, tmp_path) == 0 and review.read_bytes() == expected and len(server.requests) == asked
    )


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
    environment = {**os.environ, "PYTHONPATH": f"{here}:{HELPERS}:{REPO}"}
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
