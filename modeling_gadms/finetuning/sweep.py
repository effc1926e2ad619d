"""One fine-tuning by several seeds: which runs are left to do, and the table of all."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dataset_webperson import DataError
from dataset_webperson.files import write_json, write_text

from ..evaluation.run_comparison import Candidate, sweep_tables
from ..evaluation.run_folders import METRICS_FILE, NO_SETTINGS, SEED_FOLDER, differing_settings, read_run, read_runs
from ..evaluation.text_table import latex_page, markdown_page
from ..training.command_line import parse_arguments
from .arguments import GADMSFineTuningArguments
from .data import FineTuningDataArguments
from .lora import LoraArguments


@dataclass
class SweepArguments:
    _argument_group_name = "sweep"

    seeds: list[int] = field(
        default_factory=list,
        metadata={"help": "Train once by each, into output_dir/seed-<n>; finished ones are not trained again."},
    )

    def __post_init__(self) -> None:
        if self.seeds and not 2 <= len(set(self.seeds)) == len(self.seeds) <= 20:
            raise ValueError(f"--seeds takes 2 to 20 different ones; got {self.seeds}")


def settings_of(
    args: FineTuningDataArguments, lora: LoraArguments, training: GADMSFineTuningArguments
) -> dict[str, dict[str, Any]]:
    """What metrics.json keeps of the command line."""
    arguments = vars(args) | vars(lora) | {"dataset_name": " + ".join(args.dataset_name)}
    return {"arguments": arguments, "training_arguments": training.to_dict()}


def runs_to_do(
    words: Sequence[str], kinds: Sequence[type], training: GADMSFineTuningArguments, sweep: SweepArguments
) -> Iterator[tuple[FineTuningDataArguments, LoraArguments, GADMSFineTuningArguments]]:
    """The arguments of each run that is not finished; it goes on from its last checkpoint, where there is one.

    Args:
        words, kinds: the command line, and what it fills, with [`SweepArguments`] last.
        training: of the command line as it is.

    Raises:
        ValueError: an argument belongs to a single run.
        DataError: a run was finished with other settings.
    """
    if training.push_to_hub:
        raise ValueError("--seeds trains several models, and --push_to_hub pushes one: leave it out, and publish one")
    if training.resume_from_checkpoint:
        raise ValueError("--seeds continues by itself: leave --resume_from_checkpoint out")
    for seed in sweep.seeds:
        folder = os.path.join(training.output_dir, SEED_FOLDER.format(seed))
        args, lora, of_seed, _ = parse_arguments(kinds, [*words, "--seed", str(seed), "--output_dir", folder])
        if not is_finished(folder, settings_of(args, lora, of_seed)):
            of_seed.resume_from_checkpoint = of_seed.last_checkpoint()
            yield args, lora, of_seed


def is_finished(folder: str, settings: dict[str, dict[str, Any]]) -> bool:
    """Whether the run of a folder has ended; `settings` are those of [`settings_of`].

    Raises:
        DataError: it has, with other settings than `settings`.
    """
    if not os.path.exists(os.path.join(folder, METRICS_FILE)):
        return False
    wanted = json.loads(json.dumps(settings["arguments"] | settings["training_arguments"]))
    now = {name: value for name, value in wanted.items() if name not in NO_SETTINGS}
    then = read_run(folder).settings
    # what another version of the package did not know of yet decides nothing
    changed = differing_settings([{name: each[name] for name in now.keys() & then.keys()} for each in (then, now)])
    if changed:
        words = ", ".join(f"{name}={new} (before: {old})" for name, (old, new) in changed.items())
        raise DataError(f"{folder}: was trained with other settings: now {words}; choose another --output_dir")
    return True


def write_sweep(output_dir: str) -> str:
    """Write seeds.json, seeds.md and seeds.tex of the finished runs in a folder; returns the Markdown."""
    runs = read_runs(output_dir)
    tables, content = sweep_tables(Candidate(os.path.basename(os.path.abspath(output_dir)), runs))
    text = markdown_page(tables)
    write_json(os.path.join(output_dir, "seeds.json"), json.loads(json.dumps(content, default=vars)))
    write_text(os.path.join(output_dir, "seeds.md"), text + "\n")
    write_text(os.path.join(output_dir, "seeds.tex"), latex_page(tables))
    return text
