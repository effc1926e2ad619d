"""Studies that are repeated by seed, each with persons of its own: their options, and their kept runs."""

import argparse
import os
from collections.abc import Callable, Iterator

from masking_cells import kept_cell
from study_report import RESULTS


def add_arguments(parser: argparse.ArgumentParser, name: str, *, num_persons: int, epochs: float) -> None:
    """The options of the study `name`, with its own defaults."""
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="each draws its persons and trains")
    parser.add_argument("--noise_rate", type=float, default=0.1, help="share of false words in train")
    add_recipe(parser, name, num_persons=num_persons, epochs=epochs)


def add_recipe(parser: argparse.ArgumentParser, name: str, *, num_persons: int, epochs: float) -> None:
    """The options of a study that trains on drawn persons."""
    parser.add_argument(
        "--num_persons", type=int, default=num_persons, help="in train, two images each (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=float, default=epochs, help="passes over the data (default: %(default)s)")
    parser.add_argument("--image_size", nargs=2, type=int, default=[64, 32], help="height and width")
    parser.add_argument("--output_dir", default=os.path.join("runs", name), help="keeps what is finished")
    parser.add_argument("--results_dir", default=RESULTS, help="where the tables and the figure go")


def runs_of_seeds(
    args: argparse.Namespace, run: Callable[[int, argparse.Namespace], dict]
) -> Iterator[tuple[int, dict]]:
    """Each seed with what `run(seed, args)` gives, or gave to an earlier call with the same options."""
    setting = {name: getattr(args, name) for name in ("num_persons", "noise_rate", "epochs", "image_size")}
    for seed in args.seeds:
        file = os.path.join(args.output_dir, f"seed_{seed}.json")
        yield seed, kept_cell(file, setting, lambda seed=seed: run(seed, args))
