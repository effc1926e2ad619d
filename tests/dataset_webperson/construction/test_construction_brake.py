"""Captioners that answer nothing of use are stopped, and what is paid for is known over all runs."""

import json
import os
from pathlib import Path

import pytest
from caption_server import GOOD, CaptionServer, serve
from test_construction_captioning import options, read, write_crops

from dataset_webperson.construction.captions.brake import BrakeOptions
from dataset_webperson.construction.captions.cache import AnswerCache, tokens_spent
from dataset_webperson.construction.captions.client import CaptionServerError
from dataset_webperson.construction.stages.captioning import caption_shard

REFUSAL = "I'm sorry, I cannot help with pictures of people, whoever they are."


@pytest.fixture
def server():
    with serve(CaptionServer()) as state:
        yield state


def test_captioners_that_refuse_are_stopped_and_the_next_run_asks_again(server, tmp_path):
    source, target = write_crops(tmp_path / "2_dedup" / "0.parquet", 40), str(tmp_path / "3_caption" / "0.parquet")
    server.reply = lambda messages: REFUSAL if len(server.requests) > 30 else GOOD
    words = (
        r"^\S+ \((small|large)\): \d of its last 16 captions are usable \(the last: refusal, .*kept, and \d+ answers"
    )
    with pytest.raises(CaptionServerError, match=words):
        caption_shard(source, target, options(server, brake=BrakeOptions(16, 0.2)))
    assert not os.path.exists(target) and len(server.requests) < 30 + 4 * 16 + 20
    asked, server.reply = len(server.requests), lambda messages: GOOD
    counts = caption_shard(source, target, options(server, brake=BrakeOptions(16, 0.2)))
    assert counts["rows_fine"] >= 40 - 16 and len(server.requests) - asked >= 16
    # Of the captioner that was stopped, no refusal is left.
    marked = [sum(bool(row[f"caption{number}_problems"]) for row in read(target)) for number in (1, 2)]
    assert min(marked) == 0


def test_the_window_reaches_over_small_shards_and_0_never_stops(server, tmp_path):
    server.reply = lambda messages: REFUSAL
    shards = [write_crops(tmp_path / "2_dedup" / f"{number}.parquet", 5) for number in range(3)]
    targets = [str(tmp_path / "3_caption" / os.path.basename(shard)) for shard in shards]
    caption_shard(shards[0], targets[0], options(server, brake=BrakeOptions(16, 0.1)))
    with pytest.raises(CaptionServerError, match="0 of its last 10 captions.*, and 0 answers of this one"):
        caption_shard(shards[1], targets[1], options(server, brake=BrakeOptions(16, 0.1)))
    assert [os.path.exists(target) for target in targets] == [True, False, False]
    assert caption_shard(shards[1], targets[1], options(server, brake=BrakeOptions(16, 0)))["captions_marked"] == 10


def test_tokens_of_all_runs_are_counted_those_of_useless_replies_too(server, tmp_path):
    source, target = write_crops(tmp_path / "2_dedup" / "0.parquet", 6), str(tmp_path / "3_caption" / "0.parquet")
    filtered = {"finish_reason": "content_filter"}
    faults = {3: filtered, 9: 401}
    server.fault_of = lambda messages: faults.get(min(len(server.requests), 9))
    with pytest.raises(CaptionServerError, match="401"):
        caption_shard(source, target, options(server, max_in_flight=1))
    priced = options(server, max_in_flight=1, input_price=2.0, output_price=10.0)
    server.fault_of = lambda messages: None
    for _ in range(2):  # the second run asks for nothing
        caption_shard(source, target, priced)
        spent = tokens_spent(str(tmp_path / "caption_cache"))
        paid = [body for body in server.requests if body["model"]]
        refused = len(paid) - sum(spent[f"prompt_tokens{number}"] for number in (1, 2)) / 100
        assert 1 <= refused <= 4  # of two captioners: those with status 401, and what was on its way at that moment
        assert spent["completion_tokens1"] == spent["prompt_tokens1"] / 5
    lines = [json.loads(line) for line in (tmp_path / "caption_cache" / "0.jsonl").read_text().splitlines()]
    assert [line["prompt_tokens"] for line in lines if "key" not in line] == [100]  # what the filter ended
    read_tokens, written = (sum(spent[f"{name}_tokens{n}"] for n in (1, 2)) for name in ("prompt", "completion"))
    assert priced.cost(spent) == pytest.approx((2 * read_tokens + 10 * written) / 1e6)


def test_a_forgotten_answer_stays_paid_for_and_older_lines_are_read(tmp_path):
    path = tmp_path / "0.jsonl"
    path.write_text(json.dumps({"key": "old", "text": "a", "prompt_tokens": 7}) + "\n")
    with AnswerCache(str(path)) as cache:
        cache.waste(2, 10, 5)
        cache.forget("old")
    with AnswerCache(str(path)) as cache:
        assert cache.get("old") is None and len(cache) == 0
        assert cache.spent == {"prompt_tokens0": 7, "prompt_tokens2": 10, "completion_tokens2": 5}
    assert json.loads(Path(tmp_path / "0.spent.json").read_text()) == dict(cache.spent)
