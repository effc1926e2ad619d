"""Write the benchmark of false words: drawn persons whose captions are partly false, and which words are.

    python -m dataset_webperson.false_words --output_dir data/false_words

Both splits are noisy alike: a method may learn from the images and captions of `train`, and is scored on the words of
`test`, whose persons are others. The truth stands in the columns `caption<n>_words` of both; that of `train` is there
to measure with, not to learn from. The same options give the same rows on any machine.
"""

import argparse
import os
import shutil
import sys
from string import Template

import datasets

from .builder import WebPerson
from .command_line import CommandParser, command
from .drawn.rows import generate_rows
from .files import write_text
from .findings import DataError
from .release_card import size_category
from .release_shards import write_whole

CARD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "release_files", "false_words.md")


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--output_dir", required=True, help="folder to write; must not exist")
    parser.add_argument("--image_size", nargs=2, type=int, default=[128, 64], help="height and width")
    parser.add_argument("--num_train_persons", type=int, default=2000, help="one image each (default: %(default)s)")
    parser.add_argument("--num_test_persons", type=int, default=500, help="one image each (default: %(default)s)")
    parser.add_argument("--noise_rate", type=float, default=0.3, help="share of false words (default: %(default)s)")
    parser.add_argument(
        "--mistake_correlation",
        type=float,
        default=0.5,
        help="share of the attributes about which both captions are wrong together (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (default: %(default)s)")
    args = parser.parse_args(arguments)
    out = os.path.abspath(args.output_dir)  # a slash at the end would put what is unfinished into the folder
    if os.path.exists(out):
        raise DataError(f"{args.output_dir}: already exists; delete it, or choose another --output_dir")
    if not 0 < args.noise_rate < 1:
        raise DataError(f"noise_rate must lie between 0 and 1, or no word differs in truth; got {args.noise_rate}")
    for split in ("train", "test"):
        if (count := getattr(args, f"num_{split}_persons")) < 1:
            raise DataError(f"num_{split}_persons must be at least 1; got {count}")
    partial = f"{out}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    write(args, partial)
    os.replace(partial, out)
    sys.stdout.write(
        f"{args.num_train_persons} training and {args.num_test_persons} test images in {args.output_dir}\n"
    )


def write(args: argparse.Namespace, folder: str) -> None:
    """Write both splits and the card into a folder."""
    options = {
        "image_size": tuple(args.image_size),
        "noise_rate": args.noise_rate,
        "seed": args.seed,
        "mistake_correlation": args.mistake_correlation,
    }
    features = WebPerson(config_name="synthetic", **options).info.features  # refuses what makes no sense
    ends = {"train": (0, args.num_train_persons), "test": (args.num_train_persons, args.num_test_persons)}
    for split, (first, count) in ends.items():
        rows = list(generate_rows("train", first, first + count, views_per_person=1, **options))
        path = os.path.join(folder, "data", f"{split}-00000-of-00001.parquet")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_whole(datasets.Dataset.from_list(rows, features=features), path)
    given = " ".join(
        f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in vars(args).items()
        if name != "output_dir"
    )
    facts = {
        "size": size_category(args.num_train_persons + args.num_test_persons),
        "train": args.num_train_persons,
        "test": args.num_test_persons,
        "height": args.image_size[0],
        "width": args.image_size[1],
        "noise_rate": args.noise_rate,
        "correlation": args.mistake_correlation,
        "command": f"python -m dataset_webperson.false_words --output_dir data/false_words {given}",
    }
    with open(CARD, encoding="utf-8") as file:
        write_text(os.path.join(folder, "README.md"), Template(file.read()).substitute(facts))


if __name__ == "__main__":
    sys.exit(main())
