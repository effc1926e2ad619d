"""Sweeps over seeds, and runs beside each other: finished runs are kept, and tests are paired by seed and query."""

import dataclasses
import json
import os
import shutil
import sys

import numpy as np
import pytest
from made_up_datasets import write_copy
from places import REPO
from safetensors.torch import load_file
from tiny import tiny_model, tiny_processor, tiny_rows

from dataset_webperson import DataError
from dataset_webperson.files import write_json
from modeling_gadms.evaluation.metrics import evaluate_ranks, query_values
from modeling_gadms.evaluation.run_comparison import Candidate, paired_tests, pooled, sweep_tables
from modeling_gadms.evaluation.run_folders import Run, TestQueries, read_run, read_runs, write_run
from modeling_gadms.evaluation.significance import paired_difference
from modeling_gadms.person_retrieval.ranking import METRICS, rank_queries

sys.path.insert(0, str(REPO / "examples"))
import compare_runs  # noqa: E402
import finetune  # noqa: E402

KEYS = [f"{way}_{name}" for way in ("t2i", "i2t") for name in METRICS]


def ranks(rng, persons):
    embeds = rng.standard_normal((2, len(persons), 4)).astype(np.float32)
    return rank_queries(*embeds, persons, persons)


def queries(seed, test_set="one", persons=None):
    rng = np.random.default_rng(seed)
    persons = np.arange(12) // 2 if persons is None else persons
    found = {way: ranks(rng, persons) for way in ("t2i", "i2t")}
    return TestQueries(test_set, found, dict.fromkeys(found, persons))


def made_up_run(name, seed, number, test_set="one", learning_rate=1e-5):
    found = queries(number, test_set)
    by_way = {way: query_values(of_way) for way, of_way in found.ranks.items()}
    figures = {f"{way}_{name}": values[name].mean() for way, values in by_way.items() for name in values}
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "eval_t2i_R@1": 30.0}, {"step": 3, "loss": 1.5}]
    settings = {"seed": seed, "learning_rate": learning_rate}
    return Run(name, settings, history, {"RSTPReid": figures}, {"RSTPReid": found})


def sweep(name, seeds, start, own_sets=False):
    runs = [made_up_run(f"{name}, seed {s}", s, start + s, str(s) if own_sets else "one") for s in seeds]
    return Candidate(name, runs)


@pytest.mark.parametrize("own_sets", [False, True])
def test_sweeps_are_paired_by_seed_and_query_and_persons_of_one_test_set_are_one(own_sets):
    a, b = sweep("a", (0, 1, 2), 10, own_sets), sweep("b", (2, 1, 5), 20, own_sets)
    (found,), notes = paired_tests(a, b)
    assert found["seeds"] == [1, 2] and notes == ["a and b: seeds 0, 5 have no counterpart."]
    for way in ("t2i", "i2t"):
        for name in METRICS:
            differences, persons, by_seed = [], [], []
            for seed in (1, 2):
                of_a = next(run for run in a.runs if run.seed == seed).queries["RSTPReid"]
                of_b = next(run for run in b.runs if run.seed == seed).queries["RSTPReid"]
                one = query_values(of_a.ranks[way])[name] - query_values(of_b.ranks[way])[name]
                differences += one.tolist()
                persons += [f"{seed if own_sets else 0}/{person}" for person in of_a.person_ids[way]]
                by_seed.append(one.mean())
            expected = paired_difference(differences, np.zeros(len(differences)), groups=persons)
            tested = found["differences"][way][name]
            assert (tested.mean, tested.p_value) == pytest.approx((expected.mean, expected.p_value))
            assert (tested.low, tested.high) == pytest.approx((expected.low, expected.high))
            spread = found["over_seeds"][f"{way}_{name}"]
            assert spread.by_run == pytest.approx(by_seed) and spread.sd == pytest.approx(np.std(by_seed, ddof=1))


def test_what_cannot_be_paired_is_refused_or_said():
    a, b = sweep("a", (0, 1), 10), sweep("b", (2, 3), 20)
    with pytest.raises(DataError, match=r"a and b: no seed in common \(seeds \[0, 1\] and \[2, 3\]\)"):
        paired_tests(a, b)
    one, other = (Candidate(name, [made_up_run(name, seed, seed, name)]) for seed, name in enumerate("ab"))
    with pytest.raises(DataError, match="a and b: different test sets, both named RSTPReid"):
        paired_tests(one, other)
    elsewhere = dataclasses.replace(other.runs[0], figures={"ICFG-PEDES": {}})
    with pytest.raises(DataError, match=r"a and b: different test sets \(RSTPReid; ICFG-PEDES\)"):
        paired_tests(one, Candidate("b", [elsewhere]))
    silent = Candidate("b", [dataclasses.replace(other.runs[0], queries={})])
    assert paired_tests(one, silent) == ([], ["RSTPReid: no paired test, for b kept no ranks of single queries."])


def test_a_sweep_s_table_has_mean_deviation_and_tests_between_runs_of_one_test_set():
    found = sweep("a", (0, 1, 2), 10)
    tables, content = sweep_tables(found)
    values = [run.figures["RSTPReid"]["t2i_mAP"] for run in found.runs]
    line = next(line for line in tables[0].markdown().splitlines() if "| text to image | mAP |" in line)
    assert f"| {np.mean(values):.2f} | {np.std(values, ddof=1):.2f} | [" in line
    assert line.endswith("| " + " | ".join(f"{value:.2f}" for value in values) + " |")
    pairs = [(one["model"], one["other"]) for one in content["comparisons"]]
    assert pairs == [("a, seed 1", "a, seed 0"), ("a, seed 2", "a, seed 0"), ("a, seed 2", "a, seed 1")]
    tables, content = sweep_tables(sweep("a", (0, 1), 10, own_sets=True))
    assert content["comparisons"] == [] and "test set of its own" in tables[0].markdown()


def test_what_a_run_leaves_is_read_as_it_was(tmp_path):
    rows, found = tiny_rows(12), queries(0, persons=np.arange(12) // 2)
    evaluation = evaluate_ranks(found.ranks, found.person_ids, num_resamples=10)
    after = {key: 1.0 for key in KEYS}
    results = {"metrics": {"before": after, "after": after}, "arguments": {"dataset_name": "rstpreid"}}
    history = [{"step": 1, "loss": 0.5}]
    write_run(
        tmp_path, {**results, "training": {"seed": 3, "output_dir": "x"}}, history, {"RSTPReid": (rows, evaluation)}
    )
    run = read_run(tmp_path, "mine")
    assert (run.name, run.seed, run.history, run.figures) == ("mine", 3, history, {"RSTPReid": after})
    assert "output_dir" not in run.settings
    kept = run.queries["RSTPReid"]
    for way, ranks_found in found.ranks.items():
        for name, values in vars(ranks_found).items():
            np.testing.assert_array_equal(vars(kept.ranks[way])[name], values)
        np.testing.assert_array_equal(kept.person_ids[way], found.person_ids[way])
    assert pooled([kept, kept]).person_ids["t2i"].tolist() == found.person_ids["t2i"].tolist() * 2


# ---- the commands


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    processor = tiny_processor()
    tiny_model(vocab_size=len(processor.tokenizer)).save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    return folder, str(write_copy("rstp", folder))


def tune(places, output_dir, *options):
    folder, root = places
    argv = ["--model_name_or_path", str(folder / "base"), "--dataset_name", "rstpreid", "--data_root", root]
    argv += ["--on_count_mismatch", "warn", "--use_cpu", "True", "--disable_tqdm", "True", "--num_train_epochs", "1"]
    argv += ["--per_device_train_batch_size", "4", "--crop_padding", "1", "--logging_steps", "1"]
    return finetune.main([*argv, "--output_dir", str(output_dir), *options])


@pytest.fixture(scope="module")
def sweeps(places):
    """A sweep, and its runs once more under the other's seed, as if trained with another learning rate."""
    folder, _ = places
    with pytest.warns(UserWarning, match="counts differ"):
        assert tune(places, folder / "plain", "--seeds", "0", "1") == 0
    for seed in (0, 1):
        other = folder / "fast" / f"seed-{seed}"
        shutil.copytree(folder / "plain" / f"seed-{1 - seed}", other)
        kept = json.loads((other / "metrics.json").read_text())
        kept["training_arguments"] |= {"seed": seed, "learning_rate": 1e-2}
        write_json(other / "metrics.json", kept)
    return folder / "plain", folder / "fast"


pytestmark = pytest.mark.filterwarnings("ignore:.*counts differ from the official ones")


def test_a_seed_of_a_sweep_is_a_run_by_itself_and_is_not_trained_again(places, sweeps, tmp_path, monkeypatch, capsys):
    plain, _ = sweeps
    assert tune(places, tmp_path / "single", "--seed", "1") == 0
    single, of_sweep = (load_file(path / "model.safetensors") for path in (tmp_path / "single", plain / "seed-1"))
    assert all((single[name] == of_sweep[name]).all() for name in single)
    trained = []
    monkeypatch.setattr(finetune, "tune", lambda args, lora, training: trained.append(training.seed))
    assert tune(places, plain, "--seeds", "0", "1") == 0 and trained == []
    shutil.copytree(plain, tmp_path / "broken")
    os.remove(tmp_path / "broken" / "seed-1" / "metrics.json")
    shutil.copytree(plain / "seed-0", tmp_path / "broken" / "seed-2")
    assert tune(places, tmp_path / "broken", "--seeds", "0", "1") == 0 and trained == [1]
    capsys.readouterr()
    assert tune(places, plain, "--seeds", "0", "1", "--learning_rate", "0.5") == 2
    error = capsys.readouterr().err
    assert "seed-0: was trained with other settings: now learning_rate=0.5 (before: 1e-05)" in error
    (checkpoint,) = (plain / "seed-0").glob("checkpoint-*")
    for options, words in (
        (["--seeds", "1"], "--seeds takes 2 to 20 different ones"),
        (["--seeds", "0", "1", "--push_to_hub", "True", "--hub_strategy", "end"], "leave it out, and publish one"),
        (["--seeds", "0", "1", "--resume_from_checkpoint", str(checkpoint)], "--seeds continues by itself"),
    ):
        assert tune(places, plain, *options) == 2
        assert words in capsys.readouterr().err


def test_the_table_of_a_sweep_lies_in_its_folder(sweeps):
    content = json.loads((sweeps[0] / "seeds.json").read_text())
    runs = read_runs(str(sweeps[0]))
    assert content["seeds"] == [0, 1] == [run.seed for run in runs]
    mean = np.mean([run.figures["RSTPReid"]["t2i_mAP"] for run in runs])
    assert content["figures"][0]["metrics"]["mAP"]["mean"] == pytest.approx(mean)
    assert f"| {mean:.2f} |" in (sweeps[0] / "seeds.md").read_text()
    assert f"& {mean:.2f} &" in (sweeps[0] / "seeds.tex").read_text()


def test_sweeps_and_runs_are_compared_in_every_form(sweeps, tmp_path, capsys):
    plain, fast = map(str, sweeps)
    assert compare_runs.main([plain, fast, "--output_dir", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "comparison.md").read_text()
    printed = capsys.readouterr().out
    assert "| learning_rate | 1e-05 | 0.01 |" in text and "| seed |" not in text and "output_dir" not in text
    assert "| loss | fast, seed 1 |" in text and "## Differences by seed" in text and "| fast | plain |" in printed
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    (found,) = content["comparisons"]
    of_plain, of_fast = (read_runs(folder) for folder in (plain, fast))
    gains = [
        b.figures["RSTPReid"]["i2t_mAP"] - a.figures["RSTPReid"]["i2t_mAP"]
        for a, b in zip(of_plain, of_fast, strict=True)
    ]
    assert found["differences"]["i2t"]["mAP"]["mean"] == pytest.approx(np.mean(gains))
    assert found["over_seeds"]["i2t_mAP"]["by_run"] == pytest.approx(gains)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"comparison.md", "comparison.tex", "comparison.json", "curves.png"}
    pair = [f"{plain}/seed-0", f"{fast}/seed-0"]
    assert compare_runs.main([*pair, "--output_dir", str(tmp_path / "pair")]) == 0
    text = (tmp_path / "pair" / "comparison.md").read_text()
    assert f"| {pair[1]} | {pair[0]} | RSTPReid | text to image | R@1 |" in text and "by seed" not in text


def test_folders_that_hold_no_runs_end_in_one_line(sweeps, tmp_path, capsys):
    plain = str(sweeps[0])
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    write_json(tmp_path / "other" / "metrics.json", {"metrics": {}})
    shutil.copytree(f"{plain}/seed-0", tmp_path / "damaged")
    (tmp_path / "damaged" / "test_queries.safetensors").write_bytes(b"x")
    for other, words in (
        (tmp_path / "nowhere", "there is no such folder"),
        (tmp_path / "empty", "holds no finished run"),
        (tmp_path / "other", "is not that of a run of pretrain.py or finetune.py"),
        (tmp_path / "damaged", "test_queries.safetensors: is damaged"),
    ):
        assert compare_runs.main([plain, str(other), "--output_dir", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1 and str(other) in error
    with pytest.raises(SystemExit):
        compare_runs.main([plain])
    assert "two or more different folders" in capsys.readouterr().err and not (tmp_path / "out").exists()
