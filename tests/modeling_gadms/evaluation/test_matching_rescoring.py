"""The best images ranked anew by the matching head, against one pair at a time, and as a scoring of the evaluation."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from places import EXAMPLES
from tiny import tiny_model, tiny_processor, tiny_rows

from modeling_gadms.evaluation.encoding import RetrievalSet, encode_retrieval_set
from modeling_gadms.evaluation.matching import (
    MatchingSettings,
    load_matcher,
    match_best,
    matching_scores,
    rescore_by_matching,
)
from modeling_gadms.person_retrieval.ranking import summarize_ranks
from modeling_gadms.rows import all_captions


@pytest.fixture(scope="module")
def matcher():
    model = tiny_model(vocab_size=len(tiny_processor().tokenizer), matching_head=True)
    with torch.no_grad():
        model.decoder.matching.weight.mul_(50)  # so that the head has something to say
    return model


@pytest.fixture(scope="module")
def rows():
    return tiny_rows(10)


@pytest.fixture(scope="module")
def encoded(matcher, rows):
    return encode_retrieval_set(matcher.gadms, tiny_processor(), rows, progress=False)


@torch.no_grad()
def log_odds_of_one(model, rows, caption, image):
    inputs = tiny_processor()(text=[caption], images=[rows[image]["image"]], return_tensors="pt")
    gadms = model.gadms
    image = gadms.project_image_tokens(gadms.vision_model(inputs["pixel_values"]).last_hidden_state)
    no, yes = model.match(inputs["input_ids"], gadms.project_text_tokens(inputs["input_ids"]), image)[0].softmax(-1)
    return (yes.log() - no.log()).item()


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_the_best_are_those_of_the_cosine_and_each_has_the_log_odds_of_its_own_pair(
    matcher, rows, encoded, batch_size
):
    best, log_odds = match_best(matcher, tiny_processor(), rows, encoded, 3, batch_size, progress=False)
    captions = all_captions(rows)[0]
    assert best.shape == log_odds.shape == (len(captions), 3) and log_odds.std() > 1e-3
    for query, caption in enumerate(captions):
        cosines = encoded.image_embeds @ encoded.text_embeds[query]
        torch.testing.assert_close(cosines[best[query]], cosines.sort(descending=True).values[:3])
        assert len(set(best[query].tolist())) == 3
        if query % 5 == 0:
            expected = [log_odds_of_one(matcher, rows, caption, image) for image in best[query].tolist()]
            assert log_odds[query].tolist() == pytest.approx(expected, abs=1e-4)
    whole, _ = match_best(matcher, tiny_processor(), rows, encoded, 99, progress=False)
    assert whole.shape == (len(captions), len(rows))


@pytest.mark.parametrize("factor", [0.0, 0.05, 1000.0])
def test_the_best_stay_in_front_in_the_order_of_cosine_and_log_odds(factor):
    embeds = torch.nn.functional.normalize(torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    persons = torch.arange(12)
    encoded = RetrievalSet(*embeds, persons, persons, persons)
    cosines = (encoded.text_embeds.double() @ encoded.image_embeds.double().T).numpy()
    best = torch.from_numpy(np.argsort(-cosines, axis=1)[:, :4].copy())
    log_odds = torch.randn(best.shape, generator=torch.Generator().manual_seed(0)) * 3
    scores = matching_scores(encoded, best, log_odds, factor)
    found = np.concatenate([scores(0, 7), scores(7, len(cosines))])
    for query, row in enumerate(cosines):
        odds = dict(zip(best[query].tolist(), log_odds[query].tolist(), strict=True))
        front = sorted(odds, key=lambda image: -(row[image] + factor * odds[image]))
        behind = sorted(set(range(len(row))) - set(odds), key=lambda image: -row[image])
        assert np.argsort(-found[query], kind="stable").tolist() == [*front, *behind]
        assert found[query, front[-1]] > found[query, behind[0]]


def test_settings_out_of_range_are_refused_and_named():
    assert MatchingSettings(8, 0.02).words() == "matching head on the best 8, cosine + 0.02 * log odds"
    for values in ({"top": 0}, {"factor": -1.0}, {"factor": float("inf")}, {"factor": float("nan")}):
        with pytest.raises(ValueError, match="matching_(top|factor) must be"):
            MatchingSettings(**values)


def test_the_command_names_its_gain_and_cost_and_says_which_model_has_no_head(matcher, rows, tmp_path, capsys):
    for name, model in (("with", matcher), ("without", matcher.gadms)):  # whose configuration speaks of a head too
        model.save_pretrained(tmp_path / name)
        tiny_processor().save_pretrained(tmp_path / name)
    rows.to_parquet(tmp_path / "data" / "test.parquet")
    assert load_matcher(str(tmp_path / "without")) is None
    spec = importlib.util.spec_from_file_location("evaluate_retrieval", EXAMPLES / "evaluate_retrieval.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    options = {"model": tmp_path / "with", "compare": tmp_path / "without", "benchmark": tmp_path / "data"}
    options |= {"rescore": "matching", "matching_top": 8, "matching_factor": 100, "use_cpu": True}
    options |= {"cache_dir": tmp_path / "cache", "output_dir": tmp_path / "out"}
    arguments = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    assert not example.main(arguments), capsys.readouterr().err
    assert "without has no matching head; training with --matching_weight 0.5 gives it one" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    plain, found, other = content["results"]
    settings = MatchingSettings(8, 100.0)
    assert found["scoring"] == settings.words() and len(other["not_rescored"]) == 1
    encoded = encode_retrieval_set(matcher.gadms, tiny_processor(), rows, progress=False)
    ranks = rescore_by_matching(matcher, tiny_processor(), rows, encoded, settings, progress=False)
    means = {name: one["mean"] for name, one in found["metrics"]["t2i"].items()}
    assert means == pytest.approx(summarize_ranks(ranks)) and means["mAP"] != plain["metrics"]["t2i"]["mAP"]["mean"]
    difference = content["comparisons"][0]
    assert difference["model"] == f"with, {settings.words()}" and difference["other"] == "with"
    assert difference["ms_per_query"] == pytest.approx(1000 * found["rescoring_seconds"] / found["captions"])
    assert example.main([*arguments[:-2], "--output_dir", str(tmp_path / "bad"), "--matching_top", "0"]) == 2
