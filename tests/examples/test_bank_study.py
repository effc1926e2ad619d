"""The study of banks: constants come from validation, and its table holds what each query of each seed scored."""

import json
import sys

import datasets
import numpy as np
import pytest
from places import EXAMPLES
from tiny import tiny_model, tiny_processor, tiny_rows

from modeling_gadms.evaluation.caption_bank import BANK_SCORINGS

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
