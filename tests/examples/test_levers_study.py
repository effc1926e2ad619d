"""The study of levers: its table on seeds that are made up, and its cells on models that hardly train."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from finetune_tiny import tiny_tuned_model
from places import EXAMPLES
from tiny import tiny_processor, tiny_rows

sys.path.insert(0, str(EXAMPLES / "studies"))

import lever_cells  # noqa: E402
import lever_scorings  # noqa: E402
import levers  # noqa: E402


def seed_of(gains):
    """What a seed leaves: two queries of each of ten persons, of which a lever finds so many more than 10."""
    found = {"persons": [number // 2 for number in range(20)], "longer": 1.5}
    for lever in levers.LEVERS:
        values = [100.0 * (number < 10 + gains.get(lever, 0)) for number in range(20)]
        found[lever] = {"chosen": "0.9", "ms_per_query": 2.0, "R@1": values, "mAP": values}
    return found


def test_each_lever_is_compared_with_its_own_opponent_and_seeds_are_kept(tmp_path, monkeypatch, capsys):
    asked, gains = [], {"re-ranking": 2, "matching loss": -2, "phrasings": 4, "phrasings and bank": 6}
    monkeypatch.setattr(levers, "run", lambda seed, args: asked.append(seed) or seed_of(gains))
    options = ["--seeds", "0", "1", "--output_dir", str(tmp_path / "run"), "--results_dir", str(tmp_path)]
    for _ in range(2):  # the second time all is kept
        assert not levers.main(options)
    assert asked == [0, 1]
    rows = json.loads((tmp_path / "levers.json").read_text())["results"]
    found = {lever: row["R@1"]["gain"]["mean"] for lever, row in rows.items() if lever != "base"}
    expected = dict.fromkeys(found, 0) | {"re-ranking": 20, "matching loss": -10, "phrasings": 20}
    assert found == pytest.approx(expected | {"phrasings and bank": 10})
    page = (tmp_path / "levers.md").read_text()
    assert "| matching loss | base |" in page and "1.50 times the training time" in page
    assert "2.00 ms per query" in capsys.readouterr().out and (tmp_path / "levers.png").exists()


class Untrained(lever_cells.Seed):
    """Runs of four steps, each of which moves the weights at random."""

    def __init__(self, test_seed=5):
        self.rows = {"train": tiny_rows(16, seed=3), "validation": tiny_rows(12, seed=4)}
        self.rows["test"] = tiny_rows(8, seed=test_seed)
        self.processor, self.asked = tiny_processor(), []

    def train(self, *callbacks, **options):
        self.asked.append(options)
        model, state = tiny_tuned_model(num_persons=8), SimpleNamespace(max_steps=4, global_step=0)
        generator = torch.Generator().manual_seed(0)
        for average in callbacks[:-1]:
            average.on_train_begin(model=model)
        for state.global_step in range(1, 5):
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
            for callback in callbacks:
                callback.on_step_end(None, state, None, model=model)
        return model, 2.0


def test_levers_of_training_take_the_rate_of_the_base_and_are_measured_on_weights_of_their_own():
    data = Untrained()
    found, model, rate, seconds = lever_cells.trained(data)
    assert seconds == 2.0 and rate in lever_cells.RATES and found["base"]["chosen"] == f"{rate:g}"
    decays = [options["layer_decay"] for options in data.asked if "layer_decay" in options]
    assert tuple(decays) == lever_cells.LAYER_DECAYS
    assert all(options["learning_rate"] == rate for options in data.asked[len(lever_cells.RATES) :])
    assert found["EMA"]["mAP"] != found["base"]["mAP"] != found["soup"]["mAP"]
    # the average is taken out again
    assert lever_cells.kept(data.plain(model.gadms, ""))["mAP"] == found["base"]["mAP"]


def test_what_is_chosen_at_test_time_does_not_depend_on_test(monkeypatch):
    monkeypatch.setattr(lever_scorings, "BANKS", lever_scorings.BANKS[::4])
    model = tiny_tuned_model(num_persons=8)
    model.set_matching_head(True)
    with torch.no_grad():
        model.decoder.matching.weight.mul_(500)
    chosen = []
    for test_seed in (5, 6):
        data = Untrained(test_seed)
        found = lever_scorings.at_test_time(data, model.gadms) | lever_scorings.reranked(data, model)
        assert found["phrasings"]["chosen"] == "" and found["re-ranking"]["ms_per_query"] > 0
        assert len(found["persons"]) == len(found["re-ranking"]["mAP"]) == 16
        assert found["re-ranking"]["mAP"] != found["matching loss"]["mAP"]
        chosen.append([found[name]["chosen"] for name in ("bank", "phrasings and bank", "re-ranking")])
    assert chosen[0] == chosen[1] and all(len(words.split()) == 2 for words in chosen[0])
