"""The study of repair: its cells train on the captions that they name, and its tables hold what was counted."""

import argparse
import json
import sys

import datasets
import numpy as np
import pytest
from places import EXAMPLES

from dataset_webperson import WebPerson

sys.path.insert(0, str(EXAMPLES / "studies"))

import repair_cells  # noqa: E402
import repair_gain  # noqa: E402
import repair_words  # noqa: E402

from dataset_webperson.drawn.attributes import value_of_words  # noqa: E402

SMALL = {"num_train_persons": 40, "num_validation_persons": 2, "num_test_persons": 2}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    cache = tmp_path_factory.mktemp("drawn")

    def data(image_size, num_persons, noise_rate, seed):
        builder = WebPerson(cache_dir=cache, image_size=tuple(image_size), noise_rate=noise_rate, seed=seed, **SMALL)
        builder.download_and_prepare()
        return builder

    return data


def test_the_study_of_repair_writes_its_tables(drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(repair_cells, "drawn_data", drawn)
    hits = {"none": 0.5, "repair": 0.6, "sample": 0.6, "deleted": 0.4, "oracle": 0.7, "true": 0.8}
    trained = []

    def train(cell, noise_rate, seed, rows, args):
        trained.append((cell, seed))
        captions = repair_cells.captions_of(cell, rows, noise_rate, args)
        assert len(captions) == 80 and captions[0]["caption1"]
        values = [100.0 * (number / 40 < hits[cell]) for number in range(40)]
        return {
            "values": {way: values for way in ("t2i", "i2t")},
            "persons": {way: [n // 4 for n in range(40)] for way in ("t2i", "i2t")},
        }

    monkeypatch.setattr(repair_gain, "train_cell", train)
    options = ["--noise_rates", "0.5", "--seeds", "0", "1", "--num_persons", "32", "--reader_steps", "2"]
    options += ["--output_dir", str(tmp_path / "run"), "--results_dir", str(tmp_path / "results")]
    for _ in range(2):  # the second time all is kept
        repair_gain.main(options)
    assert len(trained) == 12
    found = json.loads((tmp_path / "results" / "repair_gain.json").read_text())["results"]["0.5"]
    assert found["cells"]["repair"]["t2i"]["gain"]["mean"] == pytest.approx(10)
    assert found["words"]["groups"]["all"]["right_before"] == pytest.approx(0.5, abs=0.1)
    page = (tmp_path / "results" / "repair_gain.md").read_text()
    assert (
        "| oracle | 2 | 70.00" in page
        and "| colours | " in page
        and (tmp_path / "results" / "repair_gain.png").exists()
    )


def test_the_oracle_says_what_is_true_and_leaves_what_is_made_up(drawn, monkeypatch):
    monkeypatch.setattr(repair_cells, "drawn_data", drawn)
    rows = drawn((64, 32), 32, 0.5, 42).as_dataset(split="train")
    args = argparse.Namespace(image_size=[64, 32], num_persons=32)
    mended = repair_cells.captions_of("oracle", rows, 0.5, args)
    right = 0
    for row, other in zip(rows, mended, strict=True):
        truth, shift = json.loads(row["attributes"]), 0
        for word in row["caption1_words"]:
            posterior = {one["start"]: one for one in repair_cells.true_words(row, "caption1")}
            said = row["caption1"][word["start"] : word["end"]]
            new = posterior[word["start"]]["words"][1] if word["start"] in posterior else said
            if word["is_false"] and truth[word["attribute"]] != "none":
                assert value_of_words(word["attribute"], new) == truth[word["attribute"]]
                assert new.lower() in other["caption1"].lower()
                right += 1
            else:
                assert new == said
            shift += len(new) - len(said)
        assert abs(len(other["caption1"]) - len(row["caption1"]) - shift) <= len(row["caption1_words"])  # articles
    assert right > 40
    deleted = repair_cells.captions_of("deleted", rows, 0.5, args)
    for row, other in zip(rows, deleted, strict=True):
        kept = list(row["caption2"])
        for start, end in row["caption2_false_spans"]:
            kept[start:end] = " " * (end - start)
        assert other["caption2"].replace(" ", "") == "".join(kept).replace(" ", "") and "  " not in other["caption2"]
    assert repair_cells.captions_of("none", rows, 0.5, args) is rows
    true = repair_cells.captions_of("true", rows, 0.5, args)
    assert not any(word["is_false"] for words in true["caption1_words"] for word in words)


def test_right_words_are_counted_before_and_after():
    words = [{"start": 2, "end": 5, "attribute": "coat.color", "is_false": True}]
    row = {
        "image": None,
        "person_id": 1,
        "attributes": json.dumps({"coat.color": "blue"}),
        "caption1": "a red coat",
        "caption1_words": words,
        "caption1_posterior": [{"start": 2, "end": 5, "words": ["red", "royal blue"], "probabilities": [0.2, 0.8]}],
        "caption2": "a blue coat",
        "caption2_words": [{**words[0], "end": 6, "is_false": False}],
        "caption2_posterior": [{"start": 2, "end": 6, "words": ["blue"], "probabilities": [1.0]}],
    }
    found = repair_words.detection(datasets.Dataset.from_list([row, {**row, "person_id": 2}]))
    everything = found["groups"]["all"]
    assert (everything["right_before"], everything["right_after"], everything["changed"]) == (0.5, 1.0, 0.5)
    assert (everything["false_of_changed"], everything["right_of_changed"]) == (1.0, 1.0)
    assert everything["posterior"]["mean"] == 1.0
    assert found["calibration_error"] == pytest.approx(np.mean([0.2, 0.0]))
