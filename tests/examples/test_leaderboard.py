"""The leaderboard: published rows marked, measured rows in order, the same figures in every form."""

import json
import math
import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from places import REPO
from tiny import save_published, tiny_rows

from modeling_gadms.evaluation.encoding import RetrievalSet
from modeling_gadms.evaluation.leaderboard import (
    RELEASED,
    TRAINED,
    latex,
    leaderboard_rows,
    markdown,
    matrix_tables,
    trainings_of,
)
from modeling_gadms.evaluation.metrics import deviation_of_runs, evaluate_embeddings, mean_of_runs
from modeling_gadms.evaluation.published_results import AT_TEST_TIME, published
from modeling_gadms.evaluation.run_folders import selected_on
from modeling_gadms.evaluation.significance import Interval
from modeling_gadms.person_retrieval.ranking import METRICS

sys.path.insert(0, str(REPO / "examples"))
import leaderboard  # noqa: E402


def result(model, value, benchmark="RSTPReid", source=TRAINED, incomplete=None):
    interval = Interval(value, value - 1, value + 1)
    metrics = {way: dict.fromkeys(METRICS, interval) for way in ("t2i", "i2t")}
    cost = {"parameters": 150.0, "image_gflop": 36.5, "caption_gflop": 5.0, "images_per_second": 1234.5}
    about = {"model": model, "benchmark": benchmark, "source": source, "incomplete": incomplete, "deviation": None}
    return {**about, "metrics": metrics, "cost": cost}


def test_published_rows_stand_marked_above_the_measured_ones_which_rise():
    rows = leaderboard_rows([result("best_one", 61.0), result("other", 42.0, source=RELEASED)], "fine-tuned")
    figures = {name: of["RSTPReid"] for name, of in published("fine-tuned").items() if "RSTPReid" in of}
    t2i = [row for row in rows if row["direction"] == "t2i"]
    assert [row["model"] for row in t2i] == [*figures, "other", "best_one"]
    assert [row["model"] for row in rows if row["direction"] == "i2t"] == ["other", "best_one"]
    table = markdown(rows, "a processor")
    assert f"| CECA | *published* | {AT_TEST_TIME['CECA']} | 73.45 | - | - | - | - | - | - | - |" in table
    assert "| IRRA | *published, selected on test* | cosine | 60.20 |" in table
    assert "| other | as released | cosine | 42.00 [41.0, 43.0] |" in table and "| 1,234.5 |" in table
    small = result("tiny", 1.0) | {"cost": {"parameters": 1.41, "image_gflop": 0.0123, "caption_gflop": 0.5}}
    assert "| 1.4 | 0.012 | 0.5 | - |" in markdown(leaderboard_rows([small], "fine-tuned"), "a processor")
    assert table.count("## RSTPReid, ") == 2 and "of the image tower on a processor" in table
    tex = latex(rows)
    assert "CECA$^\\dagger$ & 73.45 & - &" in tex and "best\\_one & 61.00 {\\scriptsize [60.0, 62.0]} &" in tex
    assert tex.count("\\begin{tabular}{lrrrrrrrr}") == tex.count("\\end{tabular}") == 2


def test_no_published_figure_stands_beside_an_incomplete_copy_or_another_data_set():
    incomplete = result("mine", 9.0, "RSTPReid (incomplete copy)", incomplete="10 images")
    rows = leaderboard_rows([incomplete, result("mine", 9.0, "drawings")], "fine-tuned")
    assert {row["model"] for row in rows} == {"mine"} and len(rows) == 4


def test_the_command_leaves_the_table_in_four_forms(tmp_path, capsys):
    for name in ("first", "second"):
        save_published(tmp_path / name)
    (tmp_path / "drawings").mkdir()
    tiny_rows(8).to_parquet(tmp_path / "drawings" / "test.parquet")
    models = [str(tmp_path / name) for name in ("first", "second")]
    several = ",".join(models)
    options = {"output_dir": tmp_path / "out", "cache_dir": tmp_path / "cache", "benchmark": tmp_path / "drawings"}
    argv = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    run = {"arguments": {"dataset_name": "drawings + cuhk-pedes"}}
    (tmp_path / "first" / "metrics.json").write_text(json.dumps(run))
    argv += ["--matrix", "True"]
    assert not leaderboard.main(["--model", *models, several, "--as_released", models[1], *argv])
    table = (tmp_path / "out" / "leaderboard.md").read_text()
    assert table.strip() in capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "leaderboard.json").read_text())["rows"]
    assert [(row["model"], row["source"]) for row in rows] == [
        ("first", TRAINED),
        ("second", RELEASED),
        ("first (mean of 2 runs)", TRAINED),
    ] * 2
    tex, page = ((tmp_path / "out" / f"leaderboard.{form}").read_text() for form in ("tex", "html"))
    for row in rows:
        assert set(row["cost"]) == {"parameters", "image_gflop", "caption_gflop", "images_per_second"}
        assert all(value > 0 for value in row["cost"].values())
        mean = row["figures"]["mAP"][0]
        spread = " ± 0.00" if row["deviation"] else ""
        assert bool(spread) == ("mean of 2" in row["model"])
        assert re.search(rf"\| {re.escape(row['model'])} \| .*\| {mean:.2f}{spread} \[", table)
        in_tex = spread.replace("±", r"$\pm$")
        assert f"{mean:.2f}{in_tex} {{\\scriptsize" in tex
        assert re.search(rf'<th scope="row">{re.escape(row["model"])}</th><td>{row["source"]}</td>', page)
        assert f'data-value="{mean:.2f}">{mean:.2f}{spread} [' in page
    matrix = (tmp_path / "out" / "matrix.md").read_text()
    assert "## Across data sets, text to image, mAP" in matrix and "| second | - | " in matrix
    assert f"| first | drawings + CUHK-PEDES | **{rows[0]['figures']['R@1'][0]:.2f} [" in matrix
    assert r"& \textbf{" in (tmp_path / "out" / "matrix.tex").read_text()
    cells = json.loads((tmp_path / "out" / "matrix.json").read_text())
    assert [cell["trained_on"] for cell in cells] == [["drawings", "CUHK-PEDES"], [], ["drawings", "CUHK-PEDES"]]
    assert len(list((tmp_path / "cache").iterdir())) == 1, "both are the same model"


def test_the_matrix_marks_what_a_model_was_trained_on_and_has_a_row_for_each_model():
    """As a loop over pairs of sets does; two models may have the same name."""
    sets = ["CUHK-PEDES", "ICFG-PEDES", "RSTPReid"]
    results = []
    for number, training in enumerate([sets[:1], sets[1:], []]):
        for place, name in enumerate(sets):
            about = {"row": number, "trained_on": training}
            results.append(result("best", 10 * number + place, name) | about)
    results[0] = results[0] | {"benchmark": "CUHK-PEDES (incomplete copy)"}
    for table in matrix_tables(results):
        assert table.columns[2:] == ["CUHK-PEDES (incomplete copy)", "ICFG-PEDES", "RSTPReid", "CUHK-PEDES"]
        assert [row[1] for row in table.rows] == ["CUHK-PEDES", "ICFG-PEDES + RSTPReid", "-"]
        for number, (row, training) in enumerate(zip(table.rows, [sets[:1], sets[1:], []], strict=True)):
            cells = dict(zip(table.columns[2:], row[2:], strict=True))
            if number == 0:
                assert cells.pop("CUHK-PEDES") == "-"
                cells["CUHK-PEDES"] = cells.pop("CUHK-PEDES (incomplete copy)")
            for place, name in enumerate(sets):
                value = 10 * number + place
                plain = f"{value:.2f} [{value - 1:.1f}, {value + 1:.1f}]"
                assert cells[name] == (f"**{plain}**" if name in training else plain)


def test_the_mean_of_several_runs_is_that_of_their_figures():
    rng = np.random.default_rng(0)
    persons = torch.arange(6).repeat_interleave(2)
    runs = []
    for _ in range(3):
        embeds = torch.from_numpy(rng.standard_normal((2, 12, 5))).float()
        images, texts = F.normalize(embeds, dim=-1)
        encoded = RetrievalSet(images, texts, persons, persons, torch.arange(12))
        runs.append(evaluate_embeddings(encoded, num_resamples=50))
    found = mean_of_runs(runs, num_resamples=50)
    for way in ("t2i", "i2t"):
        for name in METRICS:
            of_runs = [run.metrics[way][name].mean for run in runs]
            assert len(set(of_runs)) > 1 or name == "R@10"
            assert found[way][name].mean == pytest.approx(sum(of_runs) / 3)
            assert found[way][name].low <= found[way][name].mean <= found[way][name].high
            spread = math.sqrt(sum((value - sum(of_runs) / 3) ** 2 for value in of_runs) / 2)
            assert deviation_of_runs(runs)[way][name] == pytest.approx(spread, abs=1e-9)
    assert mean_of_runs(runs[:1], num_resamples=50) == runs[0].metrics


def test_the_trainings_of_a_model_are_the_finished_seeds_of_its_folder_or_what_commas_part(tmp_path):
    for name in ("seed-10", "seed-2", "seed-best", "seed-3"):
        (tmp_path / "sweep" / name).mkdir(parents=True)
        if name != "seed-3":
            (tmp_path / "sweep" / name / "metrics.json").write_text("{}")
    assert trainings_of(str(tmp_path / "sweep")) == [str(tmp_path / "sweep" / f"seed-{seed}") for seed in (2, 10)]
    assert trainings_of("a,org/b") == ["a", "org/b"] and trainings_of(str(tmp_path)) == [str(tmp_path)]


def test_a_released_model_that_is_not_measured_is_refused(capsys):
    assert leaderboard.main(["--model", "a", "--as_released", "b", "--benchmark", "synthetic"]) == 2
    assert "--as_released: b is not among --model" in capsys.readouterr().err
    assert leaderboard.main(["--model", "a", "--trained_on", "rstpreid", "--benchmark", "synthetic"]) == 2
    assert "--trained_on belongs to --matrix True" in capsys.readouterr().err


@pytest.mark.parametrize(
    "run, found",
    [
        ({"training": {"load_best_model_at_end": False}, "splits": {"validation": "test"}}, "last epoch"),
        (
            {"training_arguments": {"load_best_model_at_end": True}, "splits": {"validation": "validation"}},
            "validation",
        ),
        (
            {
                "training_arguments": {"load_best_model_at_end": True},
                "splits": {"validation": "validation_from_train"},
            },
            "validation",
        ),
        ({"training": {"load_best_model_at_end": True}, "splits": {"validation": "test"}}, "test"),
        (
            {
                "training_arguments": {"load_best_model_at_end": True},
                "sets": {"a": {"splits": {"validation": "validation"}}, "b": {"splits": {"validation": "test"}}},
            },
            "test",
        ),
        ({"training": {"load_best_model_at_end": True}}, None),
        ({}, None),
    ],
)
def test_a_row_says_how_its_weights_were_selected_as_the_run_recorded_it(tmp_path, run, found):
    (tmp_path / "metrics.json").write_text(json.dumps(run))
    assert selected_on(str(tmp_path)) == found
    words = {"last epoch": ", last epoch", None: ""}.get(found, f", selected on {found}")
    assert leaderboard.source_of(str(tmp_path), []) == TRAINED + words
    assert leaderboard.source_of(str(tmp_path), [str(tmp_path)]) == RELEASED


def test_trainings_that_were_selected_in_several_ways_name_them_all(tmp_path):
    for name, chosen in (("seed-0", True), ("seed-1", False), ("seed-2", True)):
        (tmp_path / name).mkdir()
        run = {"training": {"load_best_model_at_end": chosen}, "splits": {"validation": "validation"}}
        (tmp_path / name / "metrics.json").write_text(json.dumps(run))
    assert leaderboard.source_of(str(tmp_path), []) == f"{TRAINED}, last epoch or selected on validation"
    (tmp_path / "seed-1" / "metrics.json").write_text("{}")
    assert leaderboard.source_of(str(tmp_path), []) == TRAINED, "one training says nothing"


def test_a_model_of_the_hub_was_not_trained_here(tmp_path):
    mine, theirs = str(tmp_path), "org/name"
    assert leaderboard.source_of(mine, []) == leaderboard.source_of(f"{mine},{mine}", []) == TRAINED
    assert leaderboard.source_of(mine, [mine]) == leaderboard.source_of(theirs, []) == RELEASED
