"""Runs beside each other: settings that differ, curves, final figures, and paired tests by seed and query."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from dataset_webperson import DataError

from ..person_retrieval.ranking import DIRECTIONS, METRICS, QueryRanks
from .metrics import Evaluation, compare, evaluate_ranks
from .run_folders import Run, TestQueries, differing_settings, read_runs
from .significance import Spread, spread_of_runs
from .tables import comparison_table
from .text_table import Table

# what a run logs, in the order of the tables; a loss is best where it is lowest
CURVES = {
    "loss": "loss",
    "sdm_loss": "SDM loss",
    "sigmoid_loss": "sigmoid loss",
    "id_loss": "identity loss",
    "mtp_loss": "masked tokens' loss",
    "eval_t2i_R@1": "validation R@1, text to image",
    "eval_i2t_R@1": "validation R@1, image to text",
    "eval_t2i_mAP": "validation mAP, text to image",
}
KEYS = [f"{way}_{name}" for way in DIRECTIONS for name in METRICS]


@dataclass(frozen=True)
class Candidate:
    """A run, or the runs of one sweep over seeds, in the order of these."""

    name: str
    runs: list[Run]

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    @property
    def test_sets(self) -> list[str]:
        return [name for name in self.runs[0].figures if all(name in run.figures for run in self.runs)]


def read_candidates(folders: Sequence[str]) -> list[Candidate]:
    """The runs and sweeps in folders, named after these, or by the path where two have the same name.

    Raises:
        DataError: as `run_folders.read_run`.
    """
    bases = [os.path.basename(os.path.abspath(folder)) for folder in folders]
    names = [base if bases.count(base) == 1 else folder for base, folder in zip(bases, folders, strict=True)]
    return [
        Candidate(name, read_runs(folder, name if name == folder else None))
        for name, folder in zip(names, folders, strict=True)
    ]


def settings_table(candidates: Sequence[Candidate]) -> tuple[Table, dict[str, list[Any]]]:
    """The settings that differ between candidates; of a sweep, its seeds for its seed."""
    settings = []
    for one in candidates:
        seeds = one.seeds if len(one.runs) > 1 else one.runs[0].seed
        settings.append({**one.runs[0].settings, "seed": seeds})
    found = differing_settings(settings)
    rows = [[name, *map(_shown, values)] for name, values in found.items()]
    notes = [] if rows else ["All settings are alike."]
    columns = ["setting", *(one.name for one in candidates)]
    return Table("Settings that differ", columns, rows, words=len(columns), notes=notes), found


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def curves_of(run: Run) -> dict[str, list[tuple[int, float]]]:
    """By the keys of [`CURVES`], what the run logged: `(step, value)`."""
    curves = {key: [(entry["step"], entry[key]) for entry in run.history if key in entry] for key in CURVES}
    return {key: points for key, points in curves.items() if points}


def curves_table(candidates: Sequence[Candidate]) -> Table:
    """Each curve by its first, best and last value, side by side over runs."""
    runs = [run for one in candidates for run in one.runs]
    curves = [curves_of(run) for run in runs]
    rows = []
    for key, label in CURVES.items():
        for run, found in zip(runs, curves, strict=True):
            if points := found.get(key):
                best = (max if key.startswith("eval") else min)(points, key=lambda point: point[1])
                cells = [
                    cell for step, value in (points[0], best, points[-1]) for cell in (f"{value:.2f}", f"{step:,}")
                ]
                rows.append([label, run.name, *cells])
    columns = ["curve", "run", "first", "step", "best", "step", "last", "step"]
    notes = [f"{run.name}: kept no curves." for run, found in zip(runs, curves, strict=True) if not found]
    return Table("Curves", columns, rows, words=2, notes=notes)


def figures_of(candidate: Candidate, test_set: str, seed: int = 0) -> dict[str, dict[str, Any]]:
    """The final figures on a test set: of one run with intervals over persons, of a sweep the spread over seeds."""
    if len(candidate.runs) == 1:
        run = candidate.runs[0]
        if queries := run.queries.get(test_set):
            found: dict[str, Any] = {}
            for way, metrics in evaluate_ranks(queries.ranks, queries.person_ids, seed=seed).metrics.items():
                found[way] = dict(metrics)
            return found
        return {way: {name: run.figures[test_set][f"{way}_{name}"] for name in METRICS} for way in DIRECTIONS}
    values = {key: spread_of_runs([run.figures[test_set][key] for run in candidate.runs]) for key in KEYS}
    return {way: {name: values[f"{way}_{name}"] for name in METRICS} for way in DIRECTIONS}


def figures_table(candidates: Sequence[Candidate], seed: int = 0) -> tuple[Table, list[dict[str, Any]]]:
    """Final test figures of each candidate, set and direction."""
    results, rows = [], []
    for one in candidates:
        for test_set in one.test_sets:
            found = figures_of(one, test_set, seed)
            results.append({"run": one.name, "seeds": one.seeds, "benchmark": test_set, "metrics": found})
            for way, metrics in found.items():
                rows.append([one.name, test_set, DIRECTIONS[way], *map(_figure, metrics.values())])
    above = ["In brackets the 95 % interval over persons; of a sweep, mean (standard deviation) over its seeds."]
    return Table("Final test figures", ["run", "test set", "direction", *METRICS], rows, words=3, above=above), results


def _figure(value: Any) -> str:
    if isinstance(value, Spread):
        return f"{value.mean:.2f} ({value.sd:.2f})"
    return f"{value:.2f}" if isinstance(value, float) else f"{value.mean:.2f} [{value.low:.1f}, {value.high:.1f}]"


def pooled(queries: Sequence[TestQueries]) -> Evaluation:
    """The queries of several runs as those of one; a person in the same test set of several counts as one."""
    number = {test_set: place for place, test_set in enumerate(dict.fromkeys(one.test_set for one in queries))}
    ranks, persons = {}, {}
    for way in DIRECTIONS:
        fields = [vars(one.ranks[way]) for one in queries]
        ranks[way] = QueryRanks(**{name: np.concatenate([field[name] for field in fields]) for name in fields[0]})
        sets = np.concatenate([np.full(len(one.person_ids[way]), number[one.test_set]) for one in queries])
        ids = np.concatenate([one.person_ids[way] for one in queries])
        persons[way] = np.unique(np.stack([sets, ids]), axis=1, return_inverse=True)[1].reshape(-1)
    return Evaluation(ranks, persons, metrics={})


def pairs_of(a: Candidate, b: Candidate) -> list[tuple[Run, Run]]:
    """Two runs as they are; sweeps by the seeds that both have.

    Raises:
        DataError: they have no seed in common.
    """
    if len(a.runs) == len(b.runs) == 1:
        return [(a.runs[0], b.runs[0])]
    of_b = dict(zip(b.seeds, b.runs, strict=True))
    pairs = [(run, of_b[run.seed]) for run in a.runs if run.seed in of_b]
    if not pairs:
        raise DataError(f"{a.name} and {b.name}: no seed in common (seeds {a.seeds} and {b.seeds}); train one alike")
    return pairs


def paired_tests(a: Candidate, b: Candidate, seed: int = 0) -> tuple[list[dict[str, Any]], list[str]]:
    """`a - b` on each test set that both have, over all queries of all pairs of runs; and what could not be tested.

    Returns:
        `(comparisons, notes)`: as `tables.comparison_table` takes them, and of several pairs also `over_seeds`, the
        spread of each figure's difference.

    Raises:
        DataError: they were tested on nothing in common, or on other images or captions.
    """
    pairs = pairs_of(a, b)
    sets = [name for name in a.test_sets if name in b.test_sets]
    if not sets:
        raise DataError(
            f"{a.name} and {b.name}: different test sets ({', '.join(a.test_sets)}; {', '.join(b.test_sets)}); "
            "compare runs that were tested on the same"
        )
    comparisons, notes = [], []
    for name in sets:
        queries = [(one.queries.get(name), other.queries.get(name)) for one, other in pairs]
        of_a = [one for one, _ in queries if one is not None]
        of_b = [other for _, other in queries if other is not None]
        if len(of_a) < len(pairs) or len(of_b) < len(pairs):
            without = [run.name for pair in pairs for run in pair if name not in run.queries]
            notes.append(f"{name}: no paired test, for {', '.join(without)} kept no ranks of single queries.")
            continue
        for one, other, (run, other_run) in zip(of_a, of_b, pairs, strict=True):
            if one.test_set != other.test_set:
                raise DataError(
                    f"{run.name} and {other_run.name}: different test sets, both named {name}; compare runs that were "
                    "tested on the same images and captions (drawings: of one seed and image_size)"
                )
        differences = compare(pooled(of_a), pooled(of_b), seed=seed)
        found: dict[str, Any] = {"model": a.name, "other": b.name, "benchmark": name, "differences": differences}
        if len(pairs) > 1:
            found["seeds"] = [run.seed for run, _ in pairs]
            found["over_seeds"] = {
                key: spread_of_runs([run.figures[name][key] - other.figures[name][key] for run, other in pairs])
                for key in KEYS
            }
        comparisons.append(found)
    if left_out := sorted(set(a.seeds) ^ set(b.seeds)):
        if len(a.runs) > 1 or len(b.runs) > 1:
            notes.append(f"{a.name} and {b.name}: seeds {', '.join(map(str, left_out))} have no counterpart.")
    return comparisons, notes


def over_seeds_table(comparisons: Sequence[dict[str, Any]]) -> Table:
    """How the difference of two sweeps varies over seeds."""
    rows = []
    for one in comparisons:
        for key, spread in one.get("over_seeds", {}).items():
            way, metric = key.split("_")
            cells = [f"{spread.mean:+.2f}", f"{spread.sd:.2f}", f"[{spread.low:+.2f}, {spread.high:+.2f}]"]
            by_seed = ", ".join(f"{value:+.2f}" for value in spread.by_run)
            rows.append([one["model"], one["other"], one["benchmark"], DIRECTIONS[way], metric, *cells, by_seed])
    columns = [
        "model",
        "minus",
        "test set",
        "direction",
        "metric",
        "mean",
        "sd",
        "95 % interval over seeds",
        "by seed",
    ]
    return Table("Differences by seed", columns, rows, words=5)


def compare_candidates(candidates: Sequence[Candidate], seed: int = 0) -> tuple[list[Table], dict[str, Any]]:
    """Tables, and the content of a JSON file: every candidate but the first is compared with the first."""
    settings, differing = settings_table(candidates)
    figures, results = figures_table(candidates, seed)
    comparisons: list[dict[str, Any]] = []
    notes: list[str] = []
    for other in candidates[1:]:
        found, why_not = paired_tests(other, candidates[0], seed)
        comparisons += found
        notes += why_not
    tables = [settings, curves_table(candidates), figures]
    if comparisons:
        tables.append(comparison_table(comparisons))
    if any("over_seeds" in one for one in comparisons):
        tables.append(over_seeds_table(comparisons))
    tables[-1].notes += notes
    curves = {run.name: curves_of(run) for one in candidates for run in one.runs}
    return tables, {"settings": differing, "figures": results, "comparisons": comparisons, "curves": curves}


def sweep_tables(sweep: Candidate, seed: int = 0) -> tuple[list[Table], dict[str, Any]]:
    """Mean, deviation and every seed's figures of one sweep, and paired tests between its runs."""
    results, rows = [], []
    for test_set in sweep.test_sets:
        for way, metrics in figures_of(sweep, test_set, seed).items():
            results.append({"benchmark": test_set, "direction": way, "metrics": metrics})
            for name, spread in metrics.items():
                by_seed = [f"{value:.2f}" for value in spread.by_run]
                cells = [f"{spread.mean:.2f}", f"{spread.sd:.2f}", f"[{spread.low:.2f}, {spread.high:.2f}]", *by_seed]
                rows.append([test_set, DIRECTIONS[way], name, *cells])
    columns = ["test set", "direction", "metric", "mean", "sd", "95 % interval over seeds"]
    columns += [f"seed {each}" for each in sweep.seeds]
    above = ["The interval, by Student's t, is that of the mean over seeds."]
    tables = [Table("Over seeds", columns, rows, words=3, above=above)]
    comparisons: list[dict[str, Any]] = []
    alike = all(
        len({run.queries[name].test_set for run in sweep.runs if name in run.queries}) == 1 for name in sweep.test_sets
    )
    if alike:
        for one, other in combinations(sweep.runs, 2):
            comparisons += paired_tests(Candidate(other.name, [other]), Candidate(one.name, [one]), seed)[0]
        shown = [
            {**one, "differences": {"t2i": {name: one["differences"]["t2i"][name] for name in ("R@1", "mAP")}}}
            for one in comparisons
        ]
        tables.append(comparison_table(shown))
    else:
        tables[0].notes.append("Each seed has a test set of its own, so no two runs are paired.")
    return tables, {"seeds": sweep.seeds, "figures": results, "comparisons": comparisons}
