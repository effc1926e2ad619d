"""Loggers: figures and pictures of every evaluation lie in the run's folder, those before training too."""

import os
import sys
import types

import numpy as np
import pytest
from tiny import tiny_rows
from train_tiny import train

from modeling_gadms.training import logged_pictures
from modeling_gadms.training.run_report import FOR, draw_retrievals, draw_token_scores

events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def test_tensorboard_has_curves_and_pictures_of_every_evaluation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    batch = ["--per_device_train_batch_size", "8"]
    plain = train(["--output_dir", str(tmp_path / "plain"), *batch])
    options = [*batch, "--eval_strategy", "steps", "--eval_steps", "2", "--report_to", "tensorboard"]
    trainer = train(["--output_dir", str(tmp_path / "out"), *options])
    trainer.evaluate(metric_key_prefix="test")
    assert sorted(os.listdir(tmp_path)) == ["out", "plain"], "nothing goes elsewhere"
    found = {"scalars": {}, "images": {}}
    for folder, _, files in os.walk(tmp_path / "out" / "runs"):
        for file in files:
            log = events.EventAccumulator(os.path.join(folder, file)).Reload()
            for tag in log.Tags()["scalars"]:
                found["scalars"].setdefault(tag, []).extend((e.step, e.value) for e in log.Scalars(tag))
            for tag in log.Tags()["images"]:
                found["images"].setdefault(tag, []).extend((e.step, e.width, e.height) for e in log.Images(tag))
    history = trainer.state.log_history
    logged = [(entry["step"], entry["eval_t2i_R@1"]) for entry in history if "eval_t2i_R@1" in entry]
    (curve,) = (values for tag, values in found["scalars"].items() if tag in ("eval/t2i_R@1", "eval/t2i_R_1"))
    assert [step for step, _ in curve] == [2, 4]
    np.testing.assert_allclose(curve, logged)
    names = {f"{prefix}/{what}" for prefix in ("eval", "test") for what in ("retrievals", "token_scores")}
    assert set(found["images"]) == names
    assert [step for step, *_ in found["images"]["eval/retrievals"]] == [2, 4]
    sheet = draw_retrievals(tiny_rows(10, seed=2), trainer.measured)
    assert found["images"]["test/retrievals"] == [(4, *sheet.size)]
    before, after = plain.model.state_dict(), trainer.model.state_dict()
    assert all((before[name] == after[name]).all() for name in before), "pictures change no training"


def test_what_is_evaluated_before_training_is_logged_in_the_run_s_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    callback = logged_pictures.TensorBoardCallback()
    logged_pictures.keep_in_folder([callback], str(tmp_path))
    assert callback.logging_dir.startswith(str(tmp_path / "runs"))
    callback.logging_dir = "mine"
    logged_pictures.keep_in_folder([callback], str(tmp_path))
    assert callback.logging_dir == "mine"


@pytest.mark.parametrize("name, kind", [("wandb", "WandbCallback"), ("trackio", "TrackioCallback")])
def test_the_other_loggers_get_the_same_pictures_with_the_step(monkeypatch, name, kind):
    """With a stand-in of the two functions of the package that are called."""
    logged = []
    package = types.SimpleNamespace(Image=lambda picture: ("picture", picture.size), log=logged.append)
    monkeypatch.setitem(sys.modules, name, package)
    callback = object.__new__(getattr(logged_pictures, kind))
    assert logged_pictures.show_pictures([callback]) and not logged_pictures.show_pictures([])
    picture = logged_pictures.Image.new("RGB", (3, 2))
    logged_pictures.log_pictures([callback], {"eval/retrievals": picture}, 7)
    assert logged == [{"eval/retrievals": ("picture", (3, 2)), "train/global_step": 7}]


def test_tokens_are_shaded_by_their_scores_of_either_form_of_captions(tmp_path):
    from tiny import tiny_model, tiny_processor

    processor = tiny_processor()
    model = tiny_model(vocab_size=len(processor.tokenizer)).gadms.eval()
    row = tiny_rows(1)[0]
    listed = {"image": row["image"], "captions": [row["caption1"], row["caption2"]]}
    first, second = (np.asarray(draw_token_scores(model, processor, each)) for each in (row, listed))
    np.testing.assert_array_equal(first, second)
    scores = model.token_scores(**processor(images=row["image"], text=row["caption1"]))[0]
    assert scores.max() > 0 and (first == FOR).all(axis=2).any(), "the highest score has the full shade"
