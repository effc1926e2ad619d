"""What the studies compute beside the Trainer is the same on another device as in memory."""

import argparse
import copy
import sys

import numpy as np
import pytest
from other_device import NAME, OtherDevice
from places import EXAMPLES

from dataset_webperson import WebPerson
from modeling_gadms.noise.value_reader import train_value_reader

sys.path.insert(0, str(EXAMPLES / "studies"))

import cell_captions  # noqa: E402
import scored_words  # noqa: E402
import starting_point  # noqa: E402
import swap_cells  # noqa: E402

SIZE = (64, 32)


@pytest.fixture(scope="module")
def small_clip():
    return starting_point.starting_point(False, 0, SIZE)


@pytest.fixture(scope="module")
def rows():
    return scored_words.load_rows(SIZE, 4, noise_rate=0.5, seed=3)


def test_scores_of_words_and_of_swaps(small_clip, rows):
    model, processor = small_clip

    def scores(device):
        placed = copy.deepcopy(model).to(device).eval()
        columns = scored_words.score_tokens(placed, processor, rows, progress=False)
        return columns | {"swap": np.array(swap_cells.swap_contrast(placed.gadms, processor, rows))}

    expected = scores("cpu")
    with OtherDevice():
        found = scores(NAME)
    for name, values in expected.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found[name], values, atol=1e-4, err_msg=name)
        else:
            assert (found[name] == values).all(), name


def test_posteriors_by_a_reader_and_by_swaps(monkeypatch, tmp_path):
    placed = []

    def learn(*options):
        placed.append(options[0].device.type)
        reader = train_value_reader(*options, batch_size=4, progress=False)
        reader.temperature.fill_(1.0)  # so that it doubts words, though it has learnt next to nothing
        return reader

    monkeypatch.setattr(cell_captions, "train_value_reader", learn)
    sizes = {"num_train_persons": 5, "num_validation_persons": 2, "num_test_persons": 2}
    drawn = WebPerson(cache_dir=tmp_path / "cache", image_size=SIZE, noise_rate=0.5, seed=3, **sizes)
    drawn.download_and_prepare()
    data = drawn.as_dataset(split="train")
    options = {"num_persons": 5, "image_size": list(SIZE), "reader_steps": 2, "tower_learning_rate": 1e-3}
    found = {}
    for device in ("cpu", NAME):
        monkeypatch.setattr(starting_point, "DEVICE", device)
        args = argparse.Namespace(**options, model_name_or_path=None, output_dir=str(tmp_path / device))
        with OtherDevice():
            read, share = cell_captions.read_rows(data, "0.5", args)
            swapped = cell_captions.swapped_rows(read, 0.5, args)
        found[device] = {
            "share": share,
            "read": read["caption1_posterior"][:],
            "swaps": swapped["caption1_posterior"][:],
        }
    assert placed == ["cpu", NAME]
    assert found[NAME]["share"] == pytest.approx(found["cpu"]["share"])
    for way in ("read", "swaps"):
        assert any(places for places in found["cpu"][way]), way
        for one, other in zip(found[NAME][way], found["cpu"][way], strict=True):
            for place, same in zip(one, other, strict=True):
                assert place["words"] == same["words"]
                assert place["probabilities"] == pytest.approx(same["probabilities"], abs=1e-4)
