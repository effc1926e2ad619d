"""Templates: what makes one, the set that ships, and the way from captions to a reviewed file."""

import asyncio
import json
from collections import Counter

import numpy as np
import pytest
from caption_server import CaptionServer, serve
from made_up_datasets import write_cuhk

import dataset_webperson.construction.captions.client as client_module
from dataset_webperson.construction.captions.cache import AnswerCache
from dataset_webperson.construction.captions.client import Captioner
from dataset_webperson.construction.captions.templates import (
    PLACEHOLDERS,
    Template,
    choose_template,
    load_templates,
    template_problems,
)
from dataset_webperson.construction.template_writing import (
    RANDOM_OF_CLUSTER,
    WritingOptions,
    caption_to_template,
    choose_of_clusters,
    embed_texts,
    main,
    propose_templates,
    write_review,
    write_variations,
)
from dataset_webperson.findings import DataError

GOOD = "The [person] with [hairstyle] wears [colored top] and [colored bottoms]."
OTHER = "Wearing [colored top], the [person] is [action] in [colored shoes]."


def test_the_templates_that_ship_are_many_different_and_valid():
    templates = load_templates()
    assert len(templates) >= 60
    assert len({template.template_id for template in templates}) == len(templates)
    used = Counter(name for template in templates for name in PLACEHOLDERS if f"[{name}]" in template.text)
    assert set(used) == set(PLACEHOLDERS), "a placeholder that no template uses"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("The [person] in red [colored top] has [hairstyle] today.", "attribute left: red"),
        ("The man with [hairstyle] wears [colored top] and [colored shoes].", "attribute left: man"),
        ("The [person] and his [colored bag], [colored top], and [colored shoes].", "attribute left: his"),
        ("The [person] has [a shoe], [colored top], [colored bottoms], [action].", "unknown placeholder [a shoe]"),
        ("The [person] wears [colored top] and nothing else to be told.", "fewer than 3 known placeholders"),
        ("The [person wears [colored top] and [colored bottoms] and [action].", "a bracket that is no placeholder"),
        ("The {person} wears [colored top], [colored bottoms], [action].", "a bracket that is no placeholder"),
        (GOOD + "\n" + OTHER, "more than one line"),
        ("[person] [action] [hairstyle] [glasses]", "not between 5 and 60 words"),
        (GOOD + " 人", "letters that are not Latin"),
        (GOOD[:-1] + ", standing on a street.", "leads to background"),
        (GOOD[:-1] + ", and appears to be [action].", "leads to speculation"),
    ],
)
def test_a_sentence_that_is_not_a_template_is_named(text, problem):
    assert problem in template_problems(text)


@pytest.mark.parametrize("text", [GOOD, OTHER])
def test_good_templates_pass_the_checks(text):
    assert template_problems(text) == []


def review(path, entries):
    path.write_text(json.dumps({"templates": entries}))
    return str(path)


def test_only_approved_templates_are_used(tmp_path):
    entries = [{"text": GOOD, "approved": False}, {"text": f" {OTHER} ", "approved": True}]
    assert load_templates(review(tmp_path / "a.json", entries)) == (Template(OTHER),)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"text": GOOD, "approved": False}], "no template is approved"),
        ([{"text": GOOD, "approved": True}] * 2, "stands there twice"),
        ([{"text": "A red [person].", "approved": True}], "approved, but attribute left: red"),
        ([{"text": GOOD}], "cannot be read as templates"),
        ([{"text": GOOD, "approved": "yes"}], "true or false"),
        (["x"], "cannot be read as templates"),
    ],
)
def test_a_bad_file_of_templates_is_refused_by_name(tmp_path, entries, words):
    path = review(tmp_path / "mine.json", entries)
    with pytest.raises(DataError, match=f"mine.json.*{words}"):
        load_templates(path)


def test_a_missing_file_of_templates_is_named(tmp_path):
    with pytest.raises(DataError, match="gone.json"):
        load_templates(str(tmp_path / "gone.json"))


def test_each_template_is_as_likely_and_an_image_keeps_its_own():
    templates = tuple(Template(f"{GOOD} {number}") for number in range(10))
    images = [f"{number:064x}" for number in range(5000)]
    chosen = [choose_template(templates, image, 0) for image in images]
    assert chosen == [choose_template(templates, image, 0) for image in images]
    counts = Counter(template.template_id for template in chosen)
    # 5000 draws of 10: 500 each, standard deviation 21
    assert len(counts) == 10 and all(400 < count < 600 for count in counts.values())
    assert sum(a != choose_template(templates, image, 1) for a, image in zip(chosen, images, strict=True)) > 4000


def answers(*texts):
    """An `ask` that gives these answers in turn, and what it was asked."""
    asked, left = [], list(texts)

    async def ask(messages):
        asked.append(messages)
        return left.pop(0)

    return ask, asked


def test_a_caption_becomes_a_template_at_once_or_after_one_retry():
    ask, asked = answers(f'Template: "{GOOD}"')
    assert asyncio.run(caption_to_template(ask, "A man in red.")) == (GOOD, [])
    assert "A man in red." in asked[0][-1]["content"] and all(
        f"[{name}]" in asked[0][-1]["content"] for name in PLACEHOLDERS
    )
    ask, asked = answers("A man in [colored top].", GOOD)
    assert asyncio.run(caption_to_template(ask, "A man in red.")) == (GOOD, [])
    assert "attribute left: man" in asked[1][-1]["content"]
    ask, asked = answers("A man.", "A red man.")
    text, problems = asyncio.run(caption_to_template(ask, "A man in red."))
    assert text == "A red man." and "attribute left: red, man" in problems and len(asked) == 2


def test_variations_are_checked_one_by_one():
    third = "Dressed in [colored top] and [colored shoes], the [person] is [action]."
    ask, _ = answers(f"1. {OTHER}\n- A red one.\n\n2) {GOOD}\n{OTHER}\n* {third}")
    assert asyncio.run(write_variations(ask, GOOD, 5)) == [OTHER, third]
    ask, asked = answers("nothing", OTHER)
    assert asyncio.run(write_variations(ask, GOOD, 5)) == [OTHER] and len(asked) == 2
    ask, _ = answers(f"{OTHER}\n{third}")
    assert asyncio.run(write_variations(ask, GOOD, 1)) == [OTHER]


def blobs(sizes, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(sizes), 8)) * 10
    points = [centre + rng.normal(size=(size, 8)) * 0.1 for centre, size in zip(centres, sizes, strict=True)]
    return np.concatenate(points).astype(np.float32)


def test_of_each_cluster_the_nearest_and_five_others_are_chosen():
    pytest.importorskip("sklearn")
    sizes, chosen = (30, 3, 12), None
    for seed in range(20):  # k-means from random starts may join two clusters: take a seed where it does not
        chosen = choose_of_clusters(blobs(sizes), 3, seed)
        if len(chosen) == 6 + 3 + 6:
            break
    embeds, ends = blobs(sizes), np.cumsum((0, *sizes))
    assert chosen == sorted(set(chosen))
    for low, high in zip(ends, ends[1:], strict=False):
        inside = [index for index in chosen if low <= index < high]
        assert len(inside) == min(high - low, 1 + RANDOM_OF_CLUSTER)
        centre = embeds[low:high].mean(0)
        slow = min(range(low, high), key=lambda index, centre=centre: sum((embeds[index] - centre) ** 2))
        assert slow in inside
    assert chosen == choose_of_clusters(embeds, 3, seed)


def test_fewer_texts_than_clusters_are_all_kept():
    pytest.importorskip("sklearn")
    assert choose_of_clusters(blobs((2, 1)), 50, 0) == [0, 1, 2]


def test_embeddings_without_a_model_tell_sentences_apart():
    pytest.importorskip("sklearn")
    embeds = embed_texts([GOOD, GOOD.replace("wears", "has"), OTHER], None)
    assert embeds.dtype == np.float32 and np.allclose(np.linalg.norm(embeds, axis=1), 1, atol=1e-6)
    assert embeds[0] @ embeds[1] > embeds[0] @ embeds[2]


def test_embeddings_of_a_model_do_not_depend_on_padding(tmp_path):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "person", "wears", "top", "and"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    import torch

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path)
    both = embed_texts(["the person wears", "the person wears top and top and top"], str(tmp_path))
    alone = embed_texts(["the person wears"], str(tmp_path))
    assert both.shape == (2, 16) and np.allclose(np.linalg.norm(both, axis=1), 1, atol=1e-6)
    assert np.allclose(both[0], alone[0], atol=1e-6)


def test_a_review_file_keeps_what_a_person_wrote_in_it(tmp_path):
    path = str(tmp_path / "review.json")
    assert write_review(path, [(GOOD, "caption"), (OTHER, "variation"), (GOOD, "variation")]) == (2, 0)
    content = json.loads((tmp_path / "review.json").read_text())
    content["templates"][0] |= {"approved": True, "note": "good"}
    (tmp_path / "review.json").write_text(json.dumps(content))
    third = OTHER.replace("Wearing", "In")
    assert write_review(path, [(OTHER, "caption"), (third, "caption")]) == (3, 1)
    entries = json.loads((tmp_path / "review.json").read_text())["templates"]
    assert entries[0] == {"approved": True, "text": GOOD, "origin": "caption", "note": "good"}
    assert [entry["text"] for entry in entries] == [GOOD, OTHER, third]
    assert load_templates(path) == (Template(GOOD),)


def writer_of(server):
    """A language model that makes a good template of some captions, at the second try of others, never of the rest."""

    def reply(messages):
        asked = messages[1]["content"]
        if asked.startswith("Write"):
            return "Seen here: [colored top], [colored shoes], [person]."
        number = int(asked.rsplit(" ", 1)[1])
        if number % 3 == 0 or (number % 3 == 1 and len(messages) > 2):
            return f"{GOOD[:-1]}, and with [{list(PLACEHOLDERS)[number % 14]}] too."
        return "A red man."

    server.reply = reply
    return Captioner(server.url, "writer", max_tokens=600, timeout_s=5.0)


def test_writing_templates_counts_what_it_drops_and_asks_for_nothing_twice(tmp_path):
    pytest.importorskip("sklearn")
    captions = [f"A person number {number}" for number in range(12)]
    with serve(CaptionServer()) as server:
        writer, options = writer_of(server), WritingOptions(12, 2, 1, 0)
        with AnswerCache(str(tmp_path / "answers.jsonl")) as cache:
            found, counts = asyncio.run(propose_templates(captions, writer, cache, options, None))
        asked = len(server.requests)
        with AnswerCache(str(tmp_path / "answers.jsonl")) as cache:
            again, _ = asyncio.run(propose_templates(captions, writer, cache, options, None))
        assert len(server.requests) == asked and again == found
    assert counts["captions"] == 12 and counts["dropped"] == 4 and counts["dropped: attribute left"] == 4
    assert counts["templates"] == 8 and counts["chosen"] == len(found) - 1 and counts["variations"] == 1
    assert all(not template_problems(text) for text, _ in found)


@pytest.mark.filterwarnings("ignore:CUHK-PEDES")
def test_the_command_reads_a_benchmark_and_writes_a_review(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(client_module, "FIRST_PAUSE_S", 0.01)
    root = write_cuhk(tmp_path / "CUHK-PEDES")
    with serve(CaptionServer()) as server:
        server.reply = lambda messages: OTHER if messages[1]["content"].startswith("Write") else GOOD
        server.faults = [500]
        command = [
            "--benchmark",
            "cuhk-pedes",
            "--data_root",
            str(root),
            "--base_url",
            server.url,
            "--model",
            "writer",
        ]
        command += ["--output_file", str(tmp_path / "review.json"), "--num_captions", "3", "--num_clusters", "2"]
        assert main(command) == 0
    assert "2 templates, 0 approved" in capsys.readouterr().out
    assert main([*command[:1], "nothing", *command[2:]]) == 2
    assert "nothing" in capsys.readouterr().err
