"""Averages of weights against loops over the steps and over the models."""

import pytest
import torch
from finetune_tiny import finetune, tiny_tuned_model
from safetensors.torch import load_file
from tiny import tiny_model
from transformers import TrainerCallback

from dataset_webperson import DataError
from modeling_gadms.finetuning.arguments import GADMSFineTuningArguments
from modeling_gadms.finetuning.trainer import GADMSFineTuningTrainer
from modeling_gadms.training.averaging import AVERAGE_FILE, WeightAverage, mean_of_weights
from modeling_gadms.training.trainer import GADMSTrainer

DECAY = 0.8
STEPS = ["--max_steps", "6", "--save_strategy", "steps", "--eval_strategy", "steps", "--save_steps", "3"]
STEPS += ["--eval_steps", "3", "--save_total_limit", "3", "--ema_decay", str(DECAY)]
STEPS += ["--greater_is_better", "False"]  # so that the best step is not the last


class Recorder(TrainerCallback):
    """The weights before the first step and after each, and, of each measurement, those that were measured."""

    after, measured = [], []

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.after.append(self.copy(model))

    def on_step_end(self, args, state, control, model, **kwargs):
        self.after.append(self.copy(model))

    def on_evaluate(self, args, state, control, model, **kwargs):
        assert all(torch.equal(weight, self.after[-1][name]) for name, weight in self.copy(model).items())

    @staticmethod
    def copy(model):
        return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with an average, what its weights were, and the same run resumed from its middle."""
    folder = tmp_path_factory.mktemp("average")
    recorder, patch = Recorder(), pytest.MonkeyPatch()
    make, encode = GADMSFineTuningTrainer.__init__, GADMSTrainer.retriever

    def with_recorder(self, *args, **kwargs):
        make(self, *args, **kwargs)
        self.add_callback(recorder)

    def seen(self):
        recorder.measured.append(Recorder.copy(self.model))
        return encode(self)

    patch.setattr(GADMSFineTuningTrainer, "__init__", with_recorder)
    patch.setattr(GADMSFineTuningTrainer, "retriever", seen)
    whole = finetune(["--output_dir", str(folder / "whole"), *STEPS])
    patch.undo()
    half = str(folder / "whole" / "checkpoint-3")
    resumed = finetune(["--output_dir", str(folder / "resumed"), *STEPS, "--resume_from_checkpoint", half])
    return folder, recorder, whole, resumed


def slow_average(after, decay=DECAY):
    """After each step, from the definition, weight by weight in float64."""
    averages = [{name: weight.double() for name, weight in after[0].items()}]
    for weights in after[1:]:
        last = averages[-1]
        averages.append({name: decay * last[name] + (1 - decay) * weights[name].double() for name in last})
    return averages


def test_the_average_is_that_of_the_definition_and_is_what_is_measured_and_kept(runs):
    folder, recorder, whole, _ = runs
    averages = slow_average(recorder.after)
    assert len(averages) == 7
    for step in (3, 6):
        kept = load_file(folder / "whole" / f"checkpoint-{step}" / AVERAGE_FILE)
        weights = load_file(folder / "whole" / f"checkpoint-{step}" / "model.safetensors")
        assert set(kept) == set(averages[step])
        for name, average in averages[step].items():
            torch.testing.assert_close(kept[name].double(), average, atol=1e-6, rtol=0)
            assert torch.equal(weights[name], recorder.after[step][name]), "a checkpoint keeps what is trained"
    assert any((averages[6][name] - weight).abs().max() > 1e-4 for name, weight in recorder.after[6].items())
    for step in (3, 6):
        expected = averages[step]["classifier.weight"]
        measured = [each["classifier.weight"].double() for each in recorder.measured]
        assert any(torch.allclose(weight, expected, atol=1e-6) for weight in measured)
    # the run ends with the average of its best step
    assert whole.state.best_global_step == 3
    best = load_file(folder / "whole" / "checkpoint-3" / AVERAGE_FILE)
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, best[name])


def test_a_resumed_run_has_the_average_of_one_never_interrupted(runs):
    folder, _, whole, resumed = runs
    expected, got = (load_file(folder / name / "checkpoint-6" / AVERAGE_FILE) for name in ("whole", "resumed"))
    assert all(torch.equal(got[name], weight) for name, weight in expected.items())
    assert whole.state.best_metric == resumed.state.best_metric
    for (name, one), (_, other) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_an_average_that_is_missing_cut_or_of_other_weights_is_refused(tmp_path):
    average, model = WeightAverage(0.9), tiny_tuned_model()
    average.on_train_begin(None, None, None, model=model)
    average.save(str(tmp_path))
    other = WeightAverage(0.9, str(tmp_path))
    other.on_train_begin(None, None, None, model=model)
    with pytest.raises(DataError, match="of other weights than those that are trained"):
        other.on_train_begin(None, None, None, model=tiny_tuned_model(num_persons=5))
    (tmp_path / AVERAGE_FILE).write_bytes((tmp_path / AVERAGE_FILE).read_bytes()[:100])
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="no average of weights can be read there; resume a run that had"):
            other.load(str(folder))
    for decay in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="ema_decay lies between 0 and 1"):
            GADMSFineTuningArguments(output_dir=str(tmp_path), ema_decay=decay)


def test_the_mean_of_models_is_that_of_each_weight():
    models = [tiny_model(seed) for seed in range(3)]
    for name, weight in mean_of_weights(models).items():
        slow = sum(model.state_dict()[name].double() for model in models) / 3
        assert weight.dtype == models[0].state_dict()[name].dtype
        torch.testing.assert_close(weight.double(), slow, atol=1e-7, rtol=1e-6)
    with pytest.raises(ValueError, match="model 2 differs from the first in the shape of classifier.bias"):
        mean_of_weights([tiny_tuned_model(4), tiny_tuned_model(5)])
