r"""Score methods that find false words in captions, on the benchmark of drawn persons or on data of the same format.

    python -m dataset_webperson.false_words --output_dir data/false_words
    python examples/score_false_words.py --data_root data/false_words --predictions scores.json
    python examples/score_false_words.py --data_root data/false_words \
        --methods random cosine gass masked evidence posterior

`scores.json` holds a score for each word of the test captions, high where it is called false, or for spans of
characters:
{"train/000007_0.png": {"caption1": [0.1, 0.9, ...], "caption2": [{"start": 2, "end": 5, "score": 0.7}, ...]}, ...}

The methods: `random`; `cosine` of the token to the image; `gass`, the paper's score; `masked`, how far the match falls
without the word; `evidence`, patch evidence learnt from the training captions; `posterior`, its probability within the
word's family. Prints a table and writes it, with all figures as JSON, to OUTPUT_FILE.md and OUTPUT_FILE.json.
"""

import argparse
import glob
import json
import math
import os
import sys
from typing import Any

import datasets

from dataset_webperson import DataError
from dataset_webperson.command_line import CommandParser, command
from dataset_webperson.files import write_json, write_text
from modeling_gadms.false_words.word_detection import METRICS, false_word_metrics
from modeling_gadms.noise.detectors import METHODS, WITH_EVIDENCE, word_suspicions
from modeling_gadms.noise.patch_evidence import train_patch_evidence
from modeling_gadms.training.starting_points import load_starting_point

CAPTIONS = "caption1", "caption2"


def read_predictions(path: str, test: datasets.Dataset) -> list[list[Any]]:
    """The scores of a file, caption after caption, as the metric takes them."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        scores = [found[row["image_path"]][name] for row in test.remove_columns("image") for name in CAPTIONS]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not JSON of scores by image and caption ({error})") from error
    except KeyError as error:
        raise DataError(f"{path}: has no scores for {error}; every test image and caption needs some") from error
    refuse_no_scores(path, scores, test)
    return scores


def refuse_no_scores(path: str, predictions: list[list[Any]], test: datasets.Dataset) -> None:
    """Raise `DataError` for what is neither a number nor a span with one; names the image."""
    places = [(row["image_path"], name) for row in test.remove_columns("image") for name in CAPTIONS]
    for place, found in zip(places, predictions, strict=True):
        for one in found if isinstance(found, list) else [found]:
            numbers = [one.get(key) for key in ("start", "end", "score")] if isinstance(one, dict) else [one]
            if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
                raise DataError(
                    f"{path}: {' '.join(place)}: {one!r} is no score; give a number or start, end and score"
                )


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = [f"| method | {' | '.join(METRICS)} |", "|---|" + "---:|" * len(METRICS)]
    for name, found in results.items():
        cells = [
            "-" if found[key] is None else f"{found[key]:.3f} [{found[f'{key}_low']:.3f}, {found[f'{key}_high']:.3f}]"
            for key in METRICS
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--data_root", required=True, help="folder of the benchmark: data/train-*, data/test-*")
    parser.add_argument("--predictions", nargs="*", default=[], help="JSON files of scores, one method each")
    parser.add_argument("--methods", nargs="*", default=[], choices=METHODS, help="methods to run here")
    parser.add_argument(
        "--model_name_or_path",
        default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "small_clip"),
        help="model of the methods (default: the small CLIP)",
    )
    parser.add_argument("--evidence_steps", type=int, default=1200, help="batches that evidence learns from")
    parser.add_argument(
        "--tower_learning_rate", type=float, default=5e-4, help="of evidence; a large tower wants 1e-5"
    )
    parser.add_argument("--output_file", default="runs/false_words", help="of the results (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.evidence_steps < 1:
        parser.error(f"--evidence_steps must be at least 1; got {args.evidence_steps}")
    if not args.predictions and not args.methods:
        parser.error("give --predictions FILE, --methods NAME, or both")
    return args


@command
def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    files = {split: os.path.join(args.data_root, "data", f"{split}-*.parquet") for split in ("train", "test")}
    if not all(glob.glob(pattern) for pattern in files.values()):
        raise DataError(
            f"{args.data_root}: no data/train-*.parquet and data/test-*.parquet; write them with "
            "`python -m dataset_webperson.false_words`"
        )
    data = datasets.load_dataset("parquet", data_files=files)
    test = data["test"]
    references = [row[f"{name}_words"] for row in test.remove_columns("image") for name in CAPTIONS]
    groups = [person for person in test["person_id"] for _ in CAPTIONS]
    predictions = {path: read_predictions(path, test) for path in args.predictions}
    if args.methods:
        first = test[0]["image"]
        model, processor = load_starting_point(args.model_name_or_path, (first.height, first.width))
        gadms, evidence = model.gadms.eval(), None
        if set(args.methods) & set(WITH_EVIDENCE):
            evidence = train_patch_evidence(
                gadms, processor, data["train"], args.evidence_steps, args.tower_learning_rate
            )
        for name in args.methods:
            predictions[name] = word_suspicions(name, gadms, processor, data["train"], test, evidence)
    results = {name: false_word_metrics(found, references, groups=groups) for name, found in predictions.items()}
    text = f"{len(test)} images, {len(references)} captions, {len(sum(references, []))} words\n\n{table(results)}\n"
    os.makedirs(os.path.dirname(os.path.abspath(args.output_file)), exist_ok=True)
    write_json(f"{args.output_file}.json", {"data": args.data_root, "results": results})
    write_text(f"{args.output_file}.md", text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
