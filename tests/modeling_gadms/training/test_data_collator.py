"""Batches: shapes, augmentation, and randomness that follows from the row only."""

import pytest
import torch
from tiny import tiny_processor, tiny_rows

from dataset_webperson import DataError
from modeling_gadms.masking_gadms import NUM_DRAWS
from modeling_gadms.rows import pick_column, stable_hash
from modeling_gadms.training.collator import PairCollator
from modeling_gadms.training.samplers import EpochSampler, StreamedRows, TrainingRows


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def rows(count=6, epoch=0):
    return [{**row, "epoch": epoch} for row in tiny_rows(count)]


def test_a_batch_has_the_documented_shapes(processor):
    batch = PairCollator(processor)(rows())
    longest = batch["attention_mask"].sum(dim=1).max().item()
    assert batch["pixel_values"].shape == (6, 3, 32, 16) and batch["pixel_values"].dtype == torch.float32
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (6, longest) and longest < 32
    assert batch["mask_uniforms"].shape == (6, NUM_DRAWS, 32)
    assert batch["person_ids"].dtype == torch.int64 and len(batch["person_ids"].unique()) == 6
    assert batch["image_paths"] == [f"{index:03d}.png" for index in range(6)]


def test_a_row_is_prepared_the_same_in_any_batch_and_differently_in_another_epoch_or_seed(processor):
    together, alone = PairCollator(processor)(rows()), PairCollator(processor)(rows()[4:5])
    for name in ("pixel_values", "mask_uniforms", "person_ids"):
        assert torch.equal(together[name][4], alone[name][0]), name
    length = alone["input_ids"].shape[1]
    assert torch.equal(together["input_ids"][4, :length], alone["input_ids"][0])
    for other in (PairCollator(processor)(rows(epoch=1)), PairCollator(processor, seed=1)(rows())):
        assert not torch.equal(other["mask_uniforms"], together["mask_uniforms"])
        assert not torch.equal(other["pixel_values"], together["pixel_values"])


def test_every_caption_of_an_image_has_its_turn():
    row = tiny_rows(1)[0]
    seen = [pick_column({**row, "epoch": epoch}) for epoch in range(4)]
    assert set(seen) == {"caption1", "caption2"} and seen[:2] == seen[2:]
    starts = {pick_column({**row, "epoch": 0}) == "caption1" for row in tiny_rows(20)}
    assert starts == {True, False}, "half of the images start with their second caption"


def test_rows_with_the_same_image_share_an_identity(processor):
    twice = rows(2) + rows(2, epoch=1)
    ids = PairCollator(processor)(twice)["person_ids"].tolist()
    assert ids[:2] == ids[2:] and ids[0] != ids[1]


def test_rows_without_a_caption_column_are_refused_by_name(processor):
    row = {name: value for name, value in rows(1)[0].items() if not name.startswith("caption")}
    with pytest.raises(ValueError, match="no column caption1, caption2, ... among .*image_path.*rename"):
        PairCollator(processor)([row])


def plain(processor, **kwargs):
    off = {"crop_padding": 0, "flip_probability": 0.0, "erasing_probability": 0.0}
    return PairCollator(processor, **{**off, **kwargs})


def ramp():
    return torch.arange(3 * 32 * 16, dtype=torch.float32).reshape(3, 32, 16) + 1


def test_without_augmentation_pixels_are_the_processors(processor):
    expected = processor(images=[row["image"] for row in rows()])["pixel_values"]
    assert torch.equal(plain(processor)(rows())["pixel_values"], expected)


def test_flips_mirror_columns_half_of_the_time(processor):
    collator, flips = plain(processor, flip_probability=0.5), 0
    for seed in range(400):
        result = collator.augment(ramp(), torch.Generator().manual_seed(seed))
        flipped = torch.equal(result, ramp().flip(-1))
        assert flipped or torch.equal(result, ramp())
        flips += flipped
    assert 160 < flips < 240


def test_crops_shift_the_image_onto_black(processor):
    black = -torch.tensor(processor.image_processor.image_mean) / torch.tensor(processor.image_processor.image_std)
    shifts = set()
    for seed in range(300):
        result = plain(processor, crop_padding=2).augment(ramp(), torch.Generator().manual_seed(seed))
        found = []
        for down in range(-2, 3):
            for right in range(-2, 3):
                expected = black[:, None, None].repeat(1, 32 + 8, 16 + 8)
                expected[:, 4 + down : 36 + down, 4 + right : 20 + right] = ramp()
                if torch.equal(expected[:, 4:36, 4:20], result):
                    found.append((down, right))
        assert len(found) == 1
        shifts.update(found)
    assert len(shifts) == 25, "every shift occurs"


def test_erasing_fills_one_box_of_2_to_40_percent_with_the_mean_colour(processor):
    erased = 0
    for seed in range(400):
        result = plain(processor, erasing_probability=0.5).augment(ramp(), torch.Generator().manual_seed(seed))
        holes = (result == 0).all(dim=0)
        assert torch.equal(result[:, ~holes], ramp()[:, ~holes])
        if holes.any():
            erased += 1
            rows_hit, columns_hit = holes.any(dim=1), holes.any(dim=0)
            assert holes.sum() == rows_hit.sum() * columns_hit.sum(), "a box"
            assert 0.01 < holes.float().mean() < 0.42
    assert 160 < erased < 240


def test_augmentation_leaves_its_input_alone(processor):
    pixels = ramp()
    PairCollator(processor, crop_padding=2).augment(pixels, torch.Generator().manual_seed(0))
    assert torch.equal(pixels, ramp())


def test_rows_are_given_the_epoch_of_their_sampler():
    sampler, rows = EpochSampler(4, seed=0), TrainingRows(tiny_rows(4))
    for epoch in (0, 7):
        sampler.set_epoch(epoch)
        assert [rows[key]["epoch"] for key in sampler] == [epoch] * 4
        expected = [tiny_rows(4)[index]["image_path"] for _, index in sampler]
        assert [rows[key]["image_path"] for key in sampler] == expected


def test_streamed_rows_know_their_epoch():
    stream = StreamedRows(tiny_rows(4).to_iterable_dataset())
    stream.set_epoch(3)
    assert [row["epoch"] for row in stream] == [3] * 4


def test_the_hash_is_pinned_so_that_runs_repeat_across_machines():
    assert stable_hash(0, 1, "a.png") == 733795425596120012
    assert stable_hash("a", "bc") != stable_hash("ab", "c")


@pytest.mark.parametrize("kind", ["caption", "spans"])
def test_a_missing_caption_or_list_of_spans_is_refused_with_its_image(processor, kind):
    rows = [{**row, "epoch": 0, "caption1_hidden": [], "caption2_hidden": []} for row in tiny_rows(4)]
    for name in ("caption1", "caption2") if kind == "caption" else ("caption1_hidden", "caption2_hidden"):
        rows[2][name] = None
    with pytest.raises(DataError, match=r"image 002.png: caption[12]\S* is None; replace it by an empty"):
        PairCollator(processor, hidden_spans="hidden")(rows)
