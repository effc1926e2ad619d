"""Captioning through a server that misbehaves in every way it can, and through kills."""

import base64
import hashlib
import json
import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path

import forked
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from caption_server import GOOD, CaptionServer, serve, wait_for
from made_up_webperson import jpeg
from PIL import Image
from places import HELPERS, REPO

import dataset_webperson.construction.captions.client as client_module
from dataset_webperson.construction.captions import prompts as caption_prompts
from dataset_webperson.construction.captions.brake import BrakeOptions
from dataset_webperson.construction.captions.cache import Answer, AnswerCache, cache_key
from dataset_webperson.construction.captions.client import Captioner, CaptionServerError
from dataset_webperson.construction.captions.rules import CaptionRules
from dataset_webperson.construction.captions.templates import choose_template, load_templates
from dataset_webperson.construction.shards import begin_stage, read_rows, shard_counts
from dataset_webperson.construction.stages.captioning import NEW_COLUMNS, CaptionOptions, caption_shard
from dataset_webperson.construction.typed_yaml import fill
from dataset_webperson.findings import DataError


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(client_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(client_module, "LONGEST_PAUSE_S", 0.05)


def write_crops(path: Path, count: int) -> str:
    rows = []
    for number in range(count):
        data = jpeg(Image.new("RGB", (16, 32), (number, 2 * number, 90)))
        digest = hashlib.sha256(data).hexdigest()
        name = f"{number:03d}_0.jpg"
        rows.append({"image": {"bytes": data, "path": name}, "image_path": name, "image_sha256": digest})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def options(server, one=None, rules=None, brake=None, **fields) -> CaptionOptions:
    fields = {"timeout_s": 20.0, "patience_s": 5.0, "max_in_flight": 4, **fields}
    first = Captioner(server.url, **{"model": "small", **fields, **(one or {})})
    second = Captioner(server.url, "large", **fields)
    return CaptionOptions(first, second, rules=rules or CaptionRules(), brake=brake or BrakeOptions())


def read(path) -> list[dict]:
    return list(read_rows(str(path)))


@pytest.fixture
def folders(tmp_path):
    return write_crops(tmp_path / "2_dedup" / "00000.parquet", 6), str(tmp_path / "3_caption" / "00000.parquet")


@pytest.fixture
def server():
    with serve(CaptionServer()) as state:
        yield state


def test_every_row_gets_two_captions_its_template_and_its_provenance(server, folders):
    source, target = folders
    server.reply = lambda messages: GOOD.replace("man", "woman") if "again" in str(messages[-1]) else GOOD
    counts = caption_shard(source, target, options(server))
    rows, before = read(target), read(source)
    assert [row["image_path"] for row in rows] == [row["image_path"] for row in before]
    assert [row["image"] for row in rows] == [row["image"] for row in before]
    assert list(rows[0])[-len(NEW_COLUMNS) :] == list(NEW_COLUMNS)
    templates = load_templates()
    for row in rows:
        assert row["caption1"] == row["caption2"] == GOOD and row["caption1_problems"] == []
        assert (row["captioner1"], row["captioner2"]) == ("small", "large")
        assert row["prompt_version"] == caption_prompts.PROMPT_VERSION
        assert row["template_id"] == choose_template(templates, row["image_sha256"], 0).template_id
    assert len({row["template_id"] for row in rows}) > 1
    expected = {"rows_in": 6, "rows_out": 6, "rows_fine": 6, "captions": 12}
    assert counts == expected | {"captions_asked_again": 0, "captions_marked": 0}
    assert shard_counts(target) == counts


def test_a_request_carries_the_image_the_template_and_the_settings(server, folders):
    source, target = folders
    caption_shard(source, target, options(server, {"temperature": 0.25, "max_tokens": 33, "seed": 7}))
    row = read(target)[0]
    template = next(t for t in load_templates() if t.template_id == row["template_id"])
    mine = [body for body in server.requests if template.text in json.dumps(body, ensure_ascii=False)]
    bodies = {body["model"]: body for body in mine}
    assert set(bodies) == {"small", "large"}
    assert (bodies["small"]["temperature"], bodies["small"]["max_tokens"], bodies["small"]["seed"]) == (0.25, 33, 7)
    image, text = bodies["small"]["messages"][1]["content"]
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")
    assert "fewer than 60 words" in text["text"]


def test_the_prompt_has_another_version_when_its_words_change():
    words = caption_prompts.CAPTION_SYSTEM + caption_prompts.CAPTION_PROMPT
    words += caption_prompts._ASK_AGAIN + json.dumps(caption_prompts._FAULTS)
    versions = {"1": "3f464f4f87bd3d59"}
    digest = hashlib.sha256(words.encode()).hexdigest()[:16]
    assert versions.get(caption_prompts.PROMPT_VERSION) == digest, f"raise PROMPT_VERSION and note {digest} here"


@pytest.mark.parametrize("fault", [429, 503, 500, 502, 504, "html", "half", "drop", "empty", "null"])
def test_a_server_that_misbehaves_for_a_while_costs_nothing_but_time(server, folders, fault):
    source, target = folders
    server.faults = [fault, None, fault, fault]
    counts = caption_shard(source, target, options(server))
    assert counts["rows_fine"] == 6 and len(server.requests) == 12 + 3
    assert all(row["caption1"] == GOOD for row in read(target))


@pytest.mark.parametrize("fault", ["hang", "dribble"])
def test_an_answer_that_does_not_end_is_given_up_and_asked_for_again(server, folders, fault):
    source, target = folders
    server.faults = [fault]
    assert caption_shard(source, target, options(server, timeout_s=3.0))["rows_fine"] == 6
    assert len(server.requests) == 13


def test_retry_after_is_waited_for(server, folders, monkeypatch):
    source, target = folders
    pauses, real = [], client_module.asyncio.sleep

    async def sleep(seconds):
        pauses.append(seconds)
        await real(0)

    monkeypatch.setattr(client_module.asyncio, "sleep", sleep)
    server.faults, server.retry_after = [429], "7"
    caption_shard(source, target, options(server))
    assert pauses == [7.0]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (500, "requests in a row failed.*status 500, fault 500, 2 times"),
        ("html", "in a row failed.*not an answer of this API"),
        ("half", "in a row failed.*broke off"),
        ("hang", "in a row failed.*no answer within 0.5 s"),
        (400, "in a row failed.*status 400"),
        (429, "status 429, fault 429, for"),
        (401, r"status 401, fault 401: check the key in \$OPENAI_API_KEY"),
        (404, "status 404, fault 404: check base_url and model"),
    ],
)
def test_a_server_that_stays_bad_stops_the_run_with_one_line_and_no_shard(server, folders, fault, words):
    source, target = folders
    server.always = fault
    asked = options(server, timeout_s=0.5 if fault == "hang" else 20.0, max_attempts=2, max_failures=3, patience_s=0.3)
    with pytest.raises(CaptionServerError, match=words) as stopped:
        caption_shard(source, target, asked)
    assert server.url in str(stopped.value) and "run the same command again" in str(stopped.value)
    assert "\n" not in str(stopped.value) and not os.path.exists(target)
    assert os.listdir(os.path.dirname(target)) == []
    assert str(pickle.loads(pickle.dumps(stopped.value))) == str(stopped.value)


def test_a_server_that_is_not_there_is_waited_for_and_then_named(folders):
    source, target = folders
    with serve(CaptionServer()) as gone:
        pass
    with pytest.raises(CaptionServerError, match="cannot be reached"):
        caption_shard(source, target, options(gone, patience_s=0.3))


def test_a_server_that_dies_and_comes_back_is_not_asked_twice_for_anything(folders):
    source, target = folders
    state = CaptionServer()
    with serve(state):
        state.fault_of = lambda messages: 401 if len(state.requests) > 7 else None
        with pytest.raises(CaptionServerError):
            caption_shard(source, target, options(state, max_in_flight=1))
    state.requests, state.fault_of = [], lambda messages: None
    with serve(state):
        counts = caption_shard(source, target, options(state))
    assert counts["rows_fine"] == 6
    # Seven were answered; one of them may have been on its way when the run stopped.
    assert 5 <= len(state.requests) <= 6


def test_a_shard_of_which_nothing_is_answered_is_not_written(server, folders):
    source, target = folders
    server.always = 400
    with pytest.raises(CaptionServerError, match="answered none of 6 requests.*opt_out.*sha256:[0-9a-f]{64}"):
        caption_shard(source, target, options(server, max_failures=100))
    assert not os.path.exists(target)


@pytest.mark.parametrize(("fault", "problem"), [(400, "refused"), (500, "no-answer")])
def test_one_image_that_the_server_cannot_take_is_marked_and_the_others_go_on(server, folders, fault, problem):
    source, target = folders
    poison = read(source)[2]["image"]["bytes"]
    server.fault_of = lambda messages: fault if image_of(messages) == poison else None
    counts = caption_shard(source, target, options(server, max_attempts=2))
    rows = read(target)
    assert [row["caption1_problems"] for row in rows] == [[], [], [problem], [], [], []]
    assert rows[2]["caption1"] == "" and counts[f"caption_{problem}"] == 2 and counts["rows_fine"] == 5


def image_of(messages) -> bytes:
    return base64.b64decode(messages[1]["content"][0]["image_url"]["url"].split(",")[1])


def test_a_faulty_caption_is_asked_for_once_more_and_told_why(server, folders):
    source, target = folders
    server.reply = lambda messages: (
        GOOD if len(messages) > 2 else "A man in a [colored top] possibly walks in a street."
    )
    counts = caption_shard(source, target, options(server))
    assert counts["captions_asked_again"] == 12 and counts["captions_marked"] == 0
    assert {row["caption1"] for row in read(target)} == {GOOD}
    again = [body["messages"] for body in server.requests if len(body["messages"]) > 2]
    assert len(again) == 12 and again[0][2]["role"] == "assistant"
    for words in ("square bracket", "guesses", "background"):
        assert words in again[0][3]["content"]


def test_a_caption_that_stays_faulty_is_kept_with_its_problems(server, folders):
    source, target = folders
    worse = "I'm sorry, a man in a [colored top] and a [colored hat] possibly walks."
    better = "A man in a navy sweatshirt possibly walks with a bag."
    server.reply = lambda messages: better if len(messages) > 2 else worse
    counts = caption_shard(source, target, options(server))
    row = read(target)[0]
    assert row["caption1"] == better and row["caption1_problems"] == ["speculation"]
    assert counts["caption_speculation"] == counts["captions_marked"] == 12 and counts["rows_fine"] == 0
    assert len(server.requests) == 24


def test_a_caption_that_ran_out_of_tokens_is_marked(server, folders):
    source, target = folders
    server.always = "length"
    caption_shard(source, target, options(server))
    assert read(target)[0]["caption1_problems"] == ["cut-off"]


@pytest.mark.parametrize("reason", ["max_tokens", "MAX_TOKENS", "model_length"])
def test_a_caption_cut_by_a_reason_spelt_otherwise_is_marked_too(server, folders, reason):
    source, target = folders
    server.always = {"finish_reason": reason}
    assert caption_shard(source, target, options(server))["rows_fine"] == 0
    assert read(target)[0]["caption1_problems"] == ["cut-off"]


def test_a_caption_that_a_filter_cut_is_refused_and_never_shown(server, folders):
    source, target = folders
    poison = read(source)[2]["image"]["bytes"]
    server.fault_of = lambda messages: {"finish_reason": "content_filter"} if image_of(messages) == poison else None
    counts = caption_shard(source, target, options(server))
    row = read(target)[2]
    assert row["caption1"] == "" and row["caption1_problems"] == ["refused"] and counts["rows_fine"] == 5
    assert len(server.requests) == 12  # the same picture is not sent again


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "reasoning_content": "He wears"},
        {"content": "", "reasoning": "He wears"},
        {"content": "<think>He wears a coat, or is it"},
        {"content": ""},
    ],
)
def test_a_model_that_spends_its_tokens_on_thinking_ends_the_run_with_the_cure(server, folders, message):
    source, target = folders
    server.always = {"finish_reason": "length", **message}
    for limit in (3, 100):  # in a row, and of a whole shard
        with pytest.raises(CaptionServerError, match="max_tokens=200, only thinking: raise max_tokens, or") as stopped:
            caption_shard(source, target, options(server, max_failures=limit))
        assert "\n" not in str(stopped.value) and not os.path.exists(target)
    assert len(server.requests) <= 3 * 8 + 12  # each picture once a captioner: thinking is paid for


def test_a_shard_of_empty_captions_is_no_success(server, folders):
    source, target = folders
    server.reply = lambda messages: "  "
    with pytest.raises(CaptionServerError, match="answered none of 6 requests .* every caption is empty"):
        caption_shard(source, target, options(server))
    assert not os.path.exists(target)


def test_a_list_of_content_parts_is_one_caption(server, folders):
    source, target = folders
    parts = [{"type": "thinking", "text": "A coat?"}, {"type": "text", "text": GOOD[:20]}]
    server.always = {"content": [*parts, {"type": "text", "text": GOOD[20:]}]}
    assert caption_shard(source, target, options(server))["rows_fine"] == 6
    assert read(target)[0]["caption1"] == GOOD


def test_no_more_requests_than_allowed_are_under_way(server, folders):
    source, target = folders
    server.delay = 0.05
    caption_shard(source, target, options(server, max_in_flight=2))
    assert 2 < server.most_at_once <= 4  # two captioners


def test_the_same_answers_give_the_same_bytes_whatever_their_order(server, folders):
    source, target = folders
    caption_shard(source, target, options(server, max_in_flight=6))
    first = Path(target).read_bytes()
    server.faults = [500, None, "html", None, 429]
    other = str(Path(target).parent.with_name("again") / "00000.parquet")
    caption_shard(source, other, options(server, max_in_flight=1))
    assert Path(other).read_bytes() == first


def test_answers_are_not_used_for_another_model_template_or_wording(server, folders):
    source, target = folders
    caption_shard(source, target, options(server))
    asked = len(server.requests)
    caption_shard(source, target, options(server))
    assert len(server.requests) == asked  # all of it from the cache
    caption_shard(source, target, options(server, one={"model": "other"}))
    assert len(server.requests) == asked + 6
    caption_shard(source, target, options(server, rules=CaptionRules(max_words=50)))
    assert len(server.requests) == asked + 18


def test_rules_apply_to_answers_of_the_cache_too(server, folders):
    source, target = folders
    caption_shard(source, target, options(server))
    caption_shard(source, target, options(server, rules=CaptionRules(min_words=30)))
    assert read(target)[0]["caption1_problems"] == ["too-short"]


def test_the_server_s_address_may_change_between_runs_and_the_model_may_not(tmp_path):
    one = CaptionOptions(Captioner("http://a/v1", "small"), Captioner("http://a/v1", "large"))
    begin_stage(str(tmp_path), one)
    begin_stage(str(tmp_path), CaptionOptions(Captioner("http://b/v1", "small"), Captioner("http://b/v1", "large")))
    with pytest.raises(ValueError, match="captioner1"):
        begin_stage(str(tmp_path), CaptionOptions(Captioner("http://a/v1", "x"), Captioner("http://a/v1", "large")))


@pytest.mark.parametrize("fields", [{"base_url": "localhost"}, {"model": ""}, {"max_in_flight": 0}, {"timeout_s": 0}])
def test_a_captioner_that_makes_no_sense_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Captioner(**{"base_url": "http://a/v1", "model": "m", **fields})


def test_cost_counts_both_kinds_of_tokens(server, folders, capsys):
    source, target = folders
    caption_shard(source, target, options(server, input_price=10.0, output_price=100.0))
    # 12 answers of 100 + 20 tokens: 12 * (100 * 10 + 20 * 100) / 1e6
    assert "cost=$0.0360" in capsys.readouterr().err


KILLED = """
import sys
sys.path[:0] = {paths}
from test_construction_captioning import options
from caption_server import CaptionServer
from dataset_webperson.construction.stages.captioning import caption_shard
server = CaptionServer()
server.port = int(sys.argv[1])
caption_shard(sys.argv[2], sys.argv[3], options(server, patience_s=60.0, timeout_s=30.0))
"""


def test_a_run_that_is_killed_again_and_again_asks_for_nothing_twice(server, tmp_path):
    source = write_crops(tmp_path / "2_dedup" / "00000.parquet", 24)
    target = str(tmp_path / "3_caption" / "00000.parquet")
    paths = [str(Path(__file__).parent), str(HELPERS), str(REPO)]
    command = ["-c", KILLED.format(paths=paths), str(server.port), source, target]
    server.delay = 0.05
    for kill in range(3):
        begun = len(server.requests)
        process = forked.start(command)
        wait_for(lambda begun=begun, kill=kill: len(server.requests) >= begun + 6 + 3 * kill, 120)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not os.path.exists(target)
    server.delay = 0.0
    assert caption_shard(source, target, options(server))["rows_fine"] == 24
    # Only what was under way at a kill, at most four requests of each captioner, is asked for again.
    assert len(server.requests) <= 48 + 3 * 8
    whole = str(tmp_path / "whole" / "00000.parquet")
    caption_shard(source, whole, options(server))
    assert Path(whole).read_bytes() == Path(target).read_bytes()


def test_a_torn_or_foreign_line_of_the_cache_is_passed_over(tmp_path):
    path = str(tmp_path / "cache" / "a.jsonl")
    with AnswerCache(path) as cache:
        cache.put("one", Answer("first\nline", True, 3, 4))
    with open(path, "ab") as file:
        file.write(b'7\n{"key": "x"}\n\xff\xfe\n{"key": "two", "text": "cut')
    with AnswerCache(path) as cache:
        assert len(cache) == 1 and cache.get("one") == Answer("first\nline", True, 3, 4)
        assert cache.get("two") is None
        cache.put("two", Answer("whole"))
    with AnswerCache(path) as cache:
        assert cache.get("two") == Answer("whole") and len(cache) == 2


def test_cache_keys_tell_parts_apart():
    assert cache_key("ab", "c") != cache_key("a", "bc") and cache_key("a", 1) != cache_key("a", "1")


def test_several_addresses_share_the_requests_and_one_that_is_away_is_passed_by(server, folders):
    source, target = folders
    with serve(CaptionServer()) as other:
        other.delay = server.delay = 0.05
        captioner = Captioner((server.url, other.url), "small", extra_body={"top_k": 5}, max_in_flight=2, timeout_s=20)
        caption_shard(source, target, CaptionOptions(captioner, captioner))
        asked = len(server.requests), len(other.requests)
        assert sum(asked) == 12 and min(asked) >= 3
        assert {body["top_k"] for body in server.requests + other.requests} == {5}
        other.always = 503
        again = replace(captioner, seed=1)
        assert caption_shard(source, target, CaptionOptions(again, again))["rows_fine"] == 6
        assert len(server.requests) - asked[0] == 12


def test_addresses_and_further_fields_come_from_a_file():
    values = {"base_url": ["http://a/v1", "http://b/v1"], "model": "m", "extra_body": {"a": {"b": False}}}
    captioner = fill(Captioner, values, "c.yaml: captioner1")
    assert captioner.addresses == ("http://a/v1", "http://b/v1") and captioner.extra_body == {"a": {"b": False}}
    for wrong, told in (
        ({"base_url": []}, "give http"),
        ({"base_url": ["a", "http://b"]}, "give http"),
        ({"base_url": [7]}, "base_url: 7 is not str"),
        ({"extra_body": "a"}, "extra_body: `name: value` lines belong here"),
    ):
        with pytest.raises(DataError, match=told):
            fill(Captioner, values | wrong, "c.yaml: captioner1")
