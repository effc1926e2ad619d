"""Banks of captions in the command that evaluates, and in their study, whose constants come from validation."""

import importlib.util
import json
import sys

import datasets
import numpy as np
import pytest
import yaml
from places import EXAMPLES
from tiny import tiny_model, tiny_processor, tiny_rows

from modeling_gadms.evaluation.caption_bank import (
    BANK_SCORINGS,
    PHRASINGS_NNN,
    BankSettings,
    caption_bank,
    gallery_bias,
    rescore_by_bank,
)
from modeling_gadms.evaluation.encoding import encode_captions, encode_retrieval_set
from modeling_gadms.person_retrieval.ranking import summarize_ranks

sys.path.insert(0, str(EXAMPLES / "studies"))

import bank_cells  # noqa: E402
import bank_gain  # noqa: E402


def seed_of(gain, num_persons=20):
    """What a seed leaves: two queries of each person, of which `nnn` finds `gain` more."""
    hits = {"cosine": 20, "nnn": 20 + gain, "inverted-softmax": 20, "query-bank": 19}
    found = {"bank": "bank of 3", "bank_seconds": 1.0, "persons": [n // 2 for n in range(2 * num_persons)]}
    for scoring, count in hits.items():
        values = [100.0 * (n < count) for n in range(2 * num_persons)]
        chosen = None if scoring == "cosine" else {"alpha": 0.25, "neighbours": 4, "beta": 10.0}
        found[scoring] = {"chosen": chosen, "ms_per_query": 0.5, "R@1": values, "mAP": values}
    return {"base": found, "trained": found}


def test_the_study_of_banks_pools_its_seeds_and_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(bank_gain, "run", lambda seed, args: asked.append(seed) or seed_of(gain=4 * (1 + seed)))
    options = ["--seeds", "0", "1", "--output_dir", str(tmp_path / "run"), "--results_dir", str(tmp_path / "results")]
    for _ in range(2):  # the second time all is kept
        assert not bank_gain.main(options)
    assert asked == [0, 1]
    rows = json.loads((tmp_path / "results" / "bank_gain.json").read_text())["results"]["trained"]
    assert rows["nnn"]["R@1"]["gain"]["mean"] == pytest.approx(15)  # 10 and 20 points
    assert rows["inverted-softmax"]["R@1"]["gain"]["mean"] == 0 and rows["query-bank"]["mAP"]["gain"]["mean"] == -2.5
    # each person of each seed is a group of its own: half the spread of one seed's would be a mistake
    persons = np.repeat(np.arange(40), 2)
    values = np.concatenate([seed_of(gain)["base"]["nnn"]["R@1"] for gain in (4, 8)])
    expected = bank_gain.bootstrap_interval(values, groups=persons)
    assert rows["nnn"]["R@1"]["low"] == pytest.approx(expected.low, abs=1.5)
    page = (tmp_path / "results" / "bank_gain.md").read_text()
    assert "0.25 4; 0.25 4" in page and "10; 10" in page and (tmp_path / "results" / "bank_gain.png").exists()


def test_what_is_chosen_does_not_depend_on_test(monkeypatch):
    processor = tiny_processor()
    model = tiny_model(vocab_size=len(processor.tokenizer)).gadms
    rows = {"train": tiny_rows(16, seed=3), "validation": tiny_rows(12, seed=4), "test": tiny_rows(8, seed=5)}
    first = bank_cells.measure(model, processor, datasets.DatasetDict(rows))
    other = bank_cells.measure(model, processor, datasets.DatasetDict({**rows, "test": tiny_rows(10, seed=6)}))
    for scoring in BANK_SCORINGS:
        assert first[scoring]["chosen"] == other[scoring]["chosen"] in [vars(one) for one in bank_cells.GRIDS[scoring]]
        assert len(first[scoring]["mAP"]) == len(first["persons"]) == 16
    assert first["cosine"]["chosen"] is None


def run_example(*arguments):
    spec = importlib.util.spec_from_file_location("evaluate_retrieval", EXAMPLES / "evaluate_retrieval.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example.main([*map(str, arguments), "--use_cpu", "True"])


def test_the_command_names_the_bank_its_gain_and_its_cost(tmp_path, capsys):
    processor, rows, training = tiny_processor(), tiny_rows(8), tiny_rows(20, seed=5)
    model = tiny_model(vocab_size=len(processor.tokenizer)).gadms
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    shared = [rows["caption2"][0].upper(), *training["caption2"][1:]]
    training = training.remove_columns("caption2").add_column("caption2", shared)
    for name, split in (("train", training), ("test", rows)):
        split.to_parquet(tmp_path / "data" / f"{name}.parquet")
    options = ["--model", tmp_path / "model", "--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "out"]
    scorings = (*BANK_SCORINGS, PHRASINGS_NNN)
    options += ["--rescore", *scorings, "--bank_alpha", "0.25", "--bank_neighbours", "3"]
    assert not run_example("--benchmark", tmp_path / "data", *options), capsys.readouterr().err
    captions = [caption for row in training for caption in (row["caption1"], row["caption2"])]
    measured = [caption for row in rows for caption in (row["caption1"], row["caption2"])]
    bank, settings = caption_bank(captions, measured), BankSettings(0.25, 3)
    assert bank.shared and f"data: {bank}" in capsys.readouterr().out

    content = json.loads((tmp_path / "out" / "results.json").read_text())
    plain, *found = content["results"]
    encoded = encode_retrieval_set(model, processor, rows, progress=False)
    embeds = encode_captions(model, processor, bank.captions, progress=False)
    bias = gallery_bias(embeds, encoded.image_embeds, settings, progress=False)
    text, index = ((tmp_path / "out" / name).read_text() for name in ("results.md", "model-index.yaml"))
    for scoring, result, difference in zip(scorings, found, content["comparisons"], strict=True):
        name = settings.words(scoring, len(bank.captions))
        assert result["scoring"] == name and f"| {name} | text to image |" in text
        expected = summarize_ranks(rescore_by_bank(scoring, encoded, bias, settings, progress=False))
        assert {metric: one["mean"] for metric, one in result["metrics"]["t2i"].items()} == pytest.approx(expected)
        assert difference["model"] == f"model, {name}" and difference["other"] == "model"
        cost = 1000 * result["rescoring_seconds"] / len(measured)
        assert difference["ms_per_query"] == pytest.approx(cost) and f"| +{cost:.2f} |" in text
        assert name in str(yaml.safe_load(index))
    assert [result["bank"]["was_cached"] for result in found] == [False, True, True, True]
    assert found[0]["bank"]["captions"] == len(bank.captions) and found[0]["bank"]["shared"] == bank.shared

    # a folder whose only split is measured leaves no caption for a bank, and keeps its other figures
    (tmp_path / "data" / "train.parquet").unlink()
    assert not run_example("--benchmark", tmp_path / "data", *options)
    (alone,) = json.loads((tmp_path / "out-2" / "results.json").read_text())["results"]
    assert len(alone["not_rescored"]) == 4 and alone["metrics"] == plain["metrics"]
    assert "data: re-scoring by a bank needs training captions" in capsys.readouterr().out
    assert run_example("--benchmark", tmp_path / "data", *options, "--bank_neighbours", "0") == 2
    assert "bank_neighbours must be at least 1; got 0" in capsys.readouterr().err
