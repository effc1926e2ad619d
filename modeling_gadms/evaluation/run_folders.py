"""What a training run leaves for comparison: figures, settings, curves, and the ranks of every test query."""

import glob
import json
import os
import re
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dataset_webperson import DataError
from dataset_webperson.files import replacing, write_json

from ..hub.listings import read_json
from ..person_retrieval.ranking import DIRECTIONS, METRICS, QueryRanks
from .benchmarks import display_name
from .embedding_cache import data_hash
from .metrics import Evaluation

METRICS_FILE, HISTORY_FILE, QUERIES_FILE = "metrics.json", "history.json", "test_queries.safetensors"
SEED_FOLDER = "seed-{}"
# where a run lies, and how it came there, but not what it does
NO_SETTINGS = ("output_dir", "logging_dir", "run_name", "hub_model_id", "resume_from_checkpoint", "disable_tqdm")
_RANKS = ("first_match_rank", "average_precision", "inverse_negative_penalty", "num_matches")


@dataclass(frozen=True)
class TestQueries:
    """Where the matches of each query of a test set are.

    Attributes:
        test_set (`str`): a hash of its images, captions and persons.
        ranks, person_ids: as in [`Evaluation`].
    """

    test_set: str
    ranks: dict[str, QueryRanks]
    person_ids: dict[str, np.ndarray]

    __test__ = False  # no test, whatever pytest makes of its name


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        name (`str`): as tables show it.
        settings (`dict`): its arguments, of the script and of the training.
        history (`list[dict]`): what it logged, each entry with its `step`.
        figures (`dict[str, dict[str, float]]`): by test set, `{"t2i_R@1": ...}` of the final weights.
        queries (`dict[str, TestQueries]`): by test set; empty for a run that kept none.
    """

    name: str
    settings: dict[str, Any]
    history: list[dict[str, Any]]
    figures: dict[str, dict[str, float]]
    queries: dict[str, TestQueries]

    @property
    def seed(self) -> int:
        return self.settings["seed"]


def write_run(
    folder: str,
    results: dict[str, Any],
    history: list[dict[str, Any]],
    tests: dict[str, tuple[datasets.Dataset, Evaluation]],
) -> None:
    """Write what [`read_run`] reads; `metrics.json` last, for it marks a run as finished.

    Args:
        results (`dict`): the content of metrics.json: `metrics`, `{"after": {"t2i_R@1": ...}}`, the arguments, and
            what else is known.
        history (`list[dict]`): what a `Trainer` logged.
        tests: each test set, by name, with the final weights' evaluation on it.
    """
    tensors: dict[str, np.ndarray] = {}
    hashes = {}
    for number, (name, (rows, evaluation)) in enumerate(tests.items()):
        hashes[name] = data_hash(rows, progress=False)
        for way, ranks in evaluation.ranks.items():
            found = {field: getattr(ranks, field) for field in _RANKS} | {"person_ids": evaluation.person_ids[way]}
            tensors |= {f"{number}.{way}.{field}": np.ascontiguousarray(values) for field, values in found.items()}
    with replacing(os.path.join(folder, QUERIES_FILE)) as temporary:
        save_file(tensors, temporary, metadata={"test_sets": json.dumps(hashes)})
    write_json(os.path.join(folder, HISTORY_FILE), history)
    write_json(os.path.join(folder, METRICS_FILE), results)


def read_run(folder: str, name: str | None = None) -> Run:
    """A run of `pretrain.py` or `finetune.py`, named after its folder unless `name` is given.

    Raises:
        DataError: the folder holds no finished run, or a file of it is damaged.
    """
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: there is no such folder; give the --output_dir of a run")
    found = read_json(folder, METRICS_FILE)
    if found is None:
        raise DataError(
            f"{folder}: holds no finished run: pretrain.py and finetune.py end with a {METRICS_FILE}; give the "
            "--output_dir of one"
        )
    training = found.get("training_arguments") or found.get("training")
    if not training or "after" not in found.get("metrics", {}):
        raise DataError(f"{folder}: {METRICS_FILE} is not that of a run of pretrain.py or finetune.py; give another")
    arguments = found["arguments"]
    sets = found.get("sets") or {display_name(arguments["dataset_name"]): found["metrics"]}
    figures = {
        one: {key: values["after"][key] for key in (f"{way}_{metric}" for way in DIRECTIONS for metric in METRICS)}
        for one, values in sets.items()
    }
    history_path = os.path.join(folder, HISTORY_FILE)
    history = []
    if os.path.exists(history_path):
        try:
            with open(history_path, encoding="utf-8") as file:
                history = json.load(file)
        except ValueError as error:
            raise DataError(f"{history_path}: cannot be read as JSON ({error}); copy it again") from None
    settings = {key: value for key, value in (arguments | training).items() if key not in NO_SETTINGS}
    shown = name or os.path.basename(os.path.abspath(folder))
    return Run(shown, settings, history, figures, _read_queries(os.path.join(folder, QUERIES_FILE)))


def selected_on(folder: str) -> str | None:
    """How the weights of a run were chosen: `"validation"`, `"test"`, or `"last epoch"`, which is no choice.

    Of a run on several data sets it is `"test"` where that decided on any of them. `None` where there is no run, or
    one that did not record it.
    """
    found = (read_json(folder, METRICS_FILE) or {}) if os.path.isdir(folder) else {}
    training = found.get("training_arguments") or found.get("training")
    if not training:
        return None
    if not training.get("load_best_model_at_end"):
        return "last epoch"
    splits = {one.get("splits", {}).get("validation") for one in (found.get("sets") or {"": found}).values()}
    if None in splits:
        return None
    return "test" if "test" in splits else "validation"


def seed_folders(folder: str) -> dict[int, str]:
    """The finished runs of a sweep, by seed."""
    found = {}
    for path in glob.glob(os.path.join(glob.escape(folder), SEED_FOLDER.format("*"), METRICS_FILE)):
        place = os.path.dirname(path)
        if match := re.fullmatch(SEED_FOLDER.format(r"(-?\d+)"), os.path.basename(place)):
            found[int(match[1])] = place
    return dict(sorted(found.items()))


def read_runs(folder: str, name: str | None = None) -> list[Run]:
    """The run in a folder, or the finished ones of a sweep over seeds, in the order of these.

    Raises:
        DataError: as [`read_run`].
    """
    if os.path.exists(os.path.join(folder, METRICS_FILE)):
        return [read_run(folder, name)]
    found = seed_folders(folder)
    if not found:
        return [read_run(folder, name)]  # which says what is missing
    shown = name or os.path.basename(os.path.abspath(folder))
    return [read_run(found[seed], f"{shown}, seed {seed}") for seed in found]


def differing_settings(runs: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """By name, the value of each setting in each run, of those that not all have alike; `None` where one lacks it.

    >>> differing_settings([{"seed": 0, "masking": "none"}, {"seed": 1, "masking": "none", "lora": True}])
    {'lora': [None, True], 'seed': [0, 1]}
    """
    names = sorted({name for run in runs for name in run})
    values = {name: [run.get(name) for run in runs] for name in names}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def _read_queries(path: str) -> dict[str, TestQueries]:
    if not os.path.exists(path):
        return {}
    found = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for number, (name, test_set) in enumerate(json.loads(file.metadata()["test_sets"]).items()):
                ranks, persons = {}, {}
                for way in DIRECTIONS:
                    kept = {field: file.get_tensor(f"{number}.{way}.{field}") for field in _RANKS}
                    ranks[way] = QueryRanks(**kept, skipped=np.flatnonzero(kept["first_match_rank"] == 0))
                    persons[way] = file.get_tensor(f"{number}.{way}.person_ids")
                found[name] = TestQueries(test_set, ranks, persons)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: is damaged ({error}); copy it again, or delete it to compare without it") from None
    return found
