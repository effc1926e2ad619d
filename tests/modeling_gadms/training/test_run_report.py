"""Tables and pictures of a run, and files that are replaced as a whole or not at all."""

import json
import os

import matplotlib.axes
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor, tiny_rows

from dataset_webperson.files import replacing, write_json
from modeling_gadms.evaluation.encoding import RetrievalSet, encode_retrieval_set
from modeling_gadms.evaluation.metrics import evaluate_embeddings
from modeling_gadms.training.run_report import (
    AGAINST,
    FOR,
    RIGHT,
    WRONG,
    gallery_facts,
    metrics_table,
    save_curve,
    save_retrievals,
    save_word_contributions,
)


def test_the_table_shows_every_direction_model_and_metric():
    values = {f"{way}_{name}": 12.34 for way in ("t2i", "i2t") for name in ("R@1", "R@5", "R@10", "mAP", "mINP")}
    lines = metrics_table({"before": values, "after": {**values, "i2t_mINP": 99.0}}).splitlines()
    assert len(lines) == 6 and lines[0].count("|") == lines[1].count("|") == 8
    assert lines[-1].startswith("| image->text | after") and lines[-1].endswith(" 99.0 |") and "12.3" in lines[2]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), replacing(path) as temporary, open(temporary, "w") as file:
        file.write("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1} and os.listdir(path.parent) == ["metrics.json"]


def test_retrievals_are_framed_by_whether_they_are_right(tmp_path):
    rows = tiny_rows(6)  # two images a person
    embeds = torch.nn.functional.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    persons = torch.tensor(rows["person_id"][:])
    encoded = RetrievalSet(
        embeds,
        embeds.repeat_interleave(2, 0),
        persons,
        persons.repeat_interleave(2),
        torch.arange(6).repeat_interleave(2),
    )
    save_retrievals(rows, encoded, tmp_path / "grid.png", num_queries=3, top=6)
    sheet = Image.open(tmp_path / "grid.png")
    frames = [sheet.getpixel((330 + place * 78 - 3, line * 142 + 6 + 60)) for line in range(3) for place in range(6)]
    assert set(frames) == {RIGHT, WRONG}
    assert [frames[line * 6] for line in range(3)] == [RIGHT] * 3, "each caption's own image comes first"
    assert frames.count(RIGHT) == 3 * 2


@pytest.mark.parametrize("sign, colour", [(1, FOR), (-1, AGAINST)])
def test_words_are_shaded_by_what_masking_them_does_to_the_cosine(tmp_path, sign, colour):
    processor = tiny_processor()
    model = tiny_model(vocab_size=len(processor.tokenizer)).gadms
    model.visual_projection.weight.data *= sign  # turns every cosine round
    row = {**tiny_rows(1)[0], "caption1_false_spans": [[14, 20]]}
    save_word_contributions(model, processor, row, tmp_path / "words.png")
    colours = {colour for _, colour in Image.open(tmp_path / "words.png").getcolors(100_000)}
    drops = model.word_contributions(**processor(images=row["image"], text=row["caption1"]))
    assert (sign * drops).max() == drops.abs().max()
    assert colour in colours and WRONG in colours


def test_a_caption_longer_than_the_tower_reads_is_drawn_as_far_as_it_is_read(tmp_path):
    processor = tiny_processor()
    model = tiny_model(vocab_size=len(processor.tokenizer)).gadms
    row = {**tiny_rows(1)[0], "caption1": "red coat " * 40}
    save_word_contributions(model, processor, row, tmp_path / "words.png")
    assert Image.open(tmp_path / "words.png").size == (900, 240)


def test_the_curve_is_a_picture_of_losses_and_retrieval(tmp_path):
    log = [{"step": step, "sdm_loss": 1 / step, "mtp_loss": 2.0} for step in range(1, 5)]
    save_curve(log + [{"step": 4, "eval_t2i_R@1": 50.0}], tmp_path / "curve.png")
    assert Image.open(tmp_path / "curve.png").size[0] > 500


def test_the_curve_begins_before_training_and_has_no_panel_of_nothing(tmp_path, monkeypatch):
    drawn = []
    plot = matplotlib.axes.Axes.plot
    monkeypatch.setattr(
        matplotlib.axes.Axes,
        "plot",
        lambda self, *points, **how: [drawn.append(points), plot(self, *points, **how)][1],
    )
    before = {"t2i_R@1": 10.0, "i2t_R@1": 12.0}
    end = {"step": 4, "eval_t2i_R@1": 50.0, "eval_i2t_R@1": 52.0}
    save_curve([{"step": 2, "sdm_loss": 1.0}, end], tmp_path / "whole.png", before)
    assert drawn == [((2,), (1.0,)), ((0, 4), (10.0, 50.0)), ((0, 4), (12.0, 52.0))]
    save_curve([end], tmp_path / "short.png", before)  # a run shorter than its first logging
    heights = [Image.open(tmp_path / f"{name}.png").size[1] for name in ("whole", "short")]
    assert heights[1] * 2 == heights[0]
    save_curve([end | {"step": 0}, end], tmp_path / "measured.png", before)
    assert drawn[-1] == ((0, 4), (52.0, 52.0)), "what was measured at step 0 stands"
    save_curve([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_run_s_figures_have_the_intervals_of_an_evaluation():
    rows, processor = tiny_rows(12), tiny_processor()
    model = tiny_model(vocab_size=len(processor.tokenizer)).gadms
    encoded = encode_retrieval_set(model, processor, rows, progress=False)
    facts = gallery_facts(evaluate_embeddings(encoded))
    assert (facts["test_images"], facts["test_captions"]) == (12, 24) and len(facts["intervals"]) == 10
    for key, (low, high) in facts["intervals"].items():
        assert low <= encoded.metrics()[key] <= high
