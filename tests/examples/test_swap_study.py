"""The study of swaps at its smallest: what it trains, what it measures, and where it starts."""

import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from places import EXAMPLES

from dataset_webperson import WebPerson
from dataset_webperson.drawn.attributes import WORDS, value_of_words

sys.path.insert(0, str(EXAMPLES / "studies"))

import cell_captions  # noqa: E402
import scored_words  # noqa: E402
import starting_point  # noqa: E402
import swap_cells  # noqa: E402
import swap_gain  # noqa: E402

SIZE = (64, 32)


@pytest.fixture(scope="module")
def start():
    return starting_point.starting_point(False, 0, SIZE)


def test_a_start_from_scratch_keeps_the_shape_and_the_tokenizer_alone(start):
    trained, processor = start
    (one, other), (again, _), (third, _) = (starting_point.starting_point(True, seed, SIZE) for seed in (0, 0, 1))
    assert other.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    for name, weight in trained.gadms.state_dict().items():
        new = one.gadms.state_dict()[name]
        assert new.shape == weight.shape and torch.equal(new, again.gadms.state_dict()[name]), name
        if new.std() > 0:  # biases begin at 0 and scales at 1
            assert not torch.equal(new, weight) and not torch.equal(new, third.gadms.state_dict()[name]), name


def test_words_are_as_suspicious_as_other_values_describe_the_image_better(start):
    model, processor = start[0].gadms.eval(), start[1]
    rows = scored_words.load_rows(SIZE, 2, noise_rate=0.5, seed=5)
    found = swap_cells.swap_contrast(model, processor, rows)

    def cosine(row, text):
        inputs = processor(text=[text], images=scored_words.open_images([row]), return_tensors="pt")
        with torch.no_grad():
            image = model.get_image_features(inputs["pixel_values"]).pooler_output
            return F.cosine_similarity(image, model.get_text_features(inputs["input_ids"]).pooler_output).item()

    expected = []
    for row in rows:
        caption = row["caption1"].lower()
        for word in row["caption1_words"]:
            said = value_of_words(word["attribute"], caption[word["start"] : word["end"]])
            odds = []
            for value, words in WORDS[word["attribute"]].items():
                if value != said:
                    before, after = caption[: word["start"]], caption[word["end"] :]
                    if before.endswith((" a ", " an ")) or before in ("a ", "an "):
                        before = before.rstrip("an ") + (" an " if words[0][0] in "aeiou" else " a ")
                    odds.append(np.exp((cosine(row, before + words[0] + after) - cosine(row, caption)) / 0.02))
            expected.append(np.log(np.mean(odds)))
    assert found == pytest.approx(expected, abs=2e-3) and len(found) > 10


def test_the_study_of_swaps_writes_its_tables(tmp_path, monkeypatch):
    trained, sizes = [], {"num_train_persons": 32, "num_validation_persons": 2, "num_test_persons": 4}

    def drawn(image_size, num_persons, noise_rate, seed):
        options = {"cache_dir": tmp_path / "cache", "image_size": image_size, "noise_rate": noise_rate, "seed": seed}
        data = WebPerson(config_name="synthetic", **options, **sizes)
        data.download_and_prepare()
        return data

    def spied(*args, swap_negatives, **options):
        trained.append((swap_negatives, "caption2_posterior" in args[4].column_names))
        return recipe(*args, swap_negatives=swap_negatives, **options)

    recipe = swap_cells.recipe_trainer
    for cell in ("1 swap", "1 swap, weighted"):
        monkeypatch.delitem(swap_cells.CELLS, cell)
    monkeypatch.setattr(cell_captions, "drawn_data", drawn)
    monkeypatch.setattr(cell_captions, "train_value_reader", partial(cell_captions.train_value_reader, batch_size=16))
    monkeypatch.setattr(swap_cells, "recipe_trainer", spied)
    monkeypatch.setattr(swap_cells, "drawn_data", drawn)
    options = ["--seeds", "0", "--num_persons", "32", "--reader_steps", "2", "--num_twins", "8", "--num_scored", "3"]
    options += ["--output_dir", str(tmp_path / "run"), "--results_dir", str(tmp_path / "results")]
    for _ in range(2):  # the second time all is kept
        assert not swap_gain.main(options)
    assert trained == [(0, False), (3, False), (3, True)]
    found = json.loads((tmp_path / "results" / "swap_gain.json").read_text())["results"]
    kept = {cell: json.loads((tmp_path / "run" / f"{cell.replace(' ', '_')}_0.json").read_text()) for cell in found}
    assert kept["none"]["values"]["above"] and len(kept["none"]["values"]["twins"]) == 32
    none, swapped = (np.array(kept[cell]["values"]["above"]) for cell in ("none", "3 swaps"))
    assert found["3 swaps"]["above"]["gain"]["mean"] == pytest.approx((swapped - none).mean())
    words = kept["3 swaps"]["words"]
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a, false in zip(words["suspicion"], words["is_false"], strict=True)
        for b, other in zip(words["suspicion"], words["is_false"], strict=True)
        if false and not other
    ]
    assert found["3 swaps"]["words"]["all"]["mean"] == pytest.approx(np.mean(pairs))
    assert words["suspicion"] != kept["none"]["words"]["suspicion"]
    larger = swap_gain.parse([*options, "--model_name_or_path", "larger"])
    assert "1 passes from larger, seeds 0" in swap_gain.written(larger, found)
    page = (tmp_path / "results" / "swap_gain.md").read_text()
    assert "1 passes from the small CLIP, seeds 0" in page
    assert "| 3 swaps | " in page and "AUROC, colours" in page and (tmp_path / "results" / "swap_gain.png").exists()
