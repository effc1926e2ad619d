r"""Score methods that find false words in captions, on the benchmark of drawn persons or on data of the same format.

    python -m dataset_webperson.false_words --output_dir data/false_words
    python examples/score_false_words.py --data_root data/false_words --predictions scores.json
    python examples/score_false_words.py --data_root data/false_words --methods random gass masked swap posterior all

`scores.json` holds a score for each word of the test captions, high where it is called false, or for spans of
characters:
{"train/000007_0.png": {"caption1": [0.1, 0.9, ...], "caption2": [{"start": 2, "end": 5, "score": 0.7}, ...]}, ...}

The methods, of a model as it is: `random`; `cosine` of the token to the image, and `nam`, to its nearest patch;
`gass`, the paper's score, and `gass-released`, that of its released code; `clip4dm`, signed gradient times attention;
`masked`, how far the match falls without the word; `phrase`, the cosine of its noun phrase alone; `swap`, the caption
against itself with other words of the family; `surprise` of the decoder, if the model has one.
Learnt from the training captions: `evidence` of patches, and the `entropy` of where in the image it is found;
`posterior`, what a reader of values says of the word within its family.
With labels, as ceilings: `all` scores in one, and `oracle`, a classifier taught the true attributes of other persons.
Prints tables and writes them, with all figures as JSON, to OUTPUT_FILE.md and OUTPUT_FILE.json.
"""

import argparse
import os
import sys
from typing import Any

import datasets
import torch

from dataset_webperson.command_line import CommandParser, command
from dataset_webperson.files import write_json, write_text
from modeling_gadms import GADMSForPreTraining, GADMSProcessor
from modeling_gadms.noise.detectors import (
    METHODS,
    ORACLE,
    POSTERIOR,
    WITH_EVIDENCE,
    Found,
    filled,
    load_model,
    refuse_method,
    scored_share,
    word_suspicions,
)
from modeling_gadms.noise.joined_scores import joined
from modeling_gadms.noise.patch_evidence import train_patch_evidence
from modeling_gadms.noise.repaired_captions import refuse_unnamed
from modeling_gadms.noise.score_files import image_sizes, read_data, read_scores
from modeling_gadms.noise.score_tables import figures, written
from modeling_gadms.noise.value_reader import train_value_reader
from modeling_gadms.noise.word_families import families_for
from modeling_gadms.noise.word_groups import word_groups
from modeling_gadms.rows import caption_columns
from modeling_gadms.training.starting_points import has_decoder


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--data_root", required=True, help="folder of the benchmark: data/train-*, data/test-*")
    parser.add_argument("--predictions", nargs="*", default=[], help="JSON files of scores, one method each")
    parser.add_argument("--methods", nargs="*", default=[], choices=[*METHODS, "all"], help="methods to run here")
    parser.add_argument(
        "--model_name_or_path",
        default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "small_clip"),
        help="model of the methods (default: the small CLIP)",
    )
    parser.add_argument(
        "--image_size", nargs=2, type=int, help="height and width that the model reads (default: of the first image)"
    )
    parser.add_argument(
        "--evidence_steps", type=int, default=1200, help="batches that evidence or the reader of posterior learns from"
    )
    parser.add_argument(
        "--tower_learning_rate", type=float, default=5e-4, help="of their image towers; a large tower wants 1e-5"
    )
    parser.add_argument("--families", help="JSON of words that stand in each other's place (default: of attributes)")
    parser.add_argument("--use_cpu", action="store_true", help="compute on the processor even where there is a GPU")
    parser.add_argument("--oracle_persons", type=int, default=6000, help="drawn for the oracle to be taught")
    parser.add_argument("--output_file", default="runs/false_words", help="of the results (default: %(default)s)")
    args = parser.parse_args(arguments)
    parser.refuse_outside(args, evidence_steps=(1, None), oracle_persons=(2, None), tower_learning_rate=(0, None))
    if not args.predictions and not args.methods:
        parser.error("give --predictions FILE, --methods NAME, or both")
    if "all" in args.methods and len(args.methods) + len(args.predictions) < 3:
        parser.error("--methods all joins other scores: give two methods beside it, or --predictions")
    return args


def scores_of_methods(
    args: argparse.Namespace, data: datasets.DatasetDict, model: GADMSForPreTraining, processor: GADMSProcessor
) -> dict[str, Found]:
    """What each method that is run here says of the words of the test captions; None where it knows nothing."""
    methods = [name for name in args.methods if name != "all"]
    gadms, decoder = model.gadms, model if has_decoder(args.model_name_or_path) else None
    families = families_for(data["train"].column_names, args.families)
    for name in methods:
        refuse_method(name, gadms, data["test"], decoder, families)
    evidence = reader = None
    learning = (args.evidence_steps, args.tower_learning_rate)
    if POSTERIOR in methods:
        refuse_unnamed(data["train"], families)
        reader = train_value_reader(gadms, processor, data["train"], families, *learning)
        if not reader.shown(families):
            print(
                "posterior: no word is doubted, the reader has learnt of no family; take more --evidence_steps or rows"
            )
    if set(methods) & set(WITH_EVIDENCE):
        evidence = train_patch_evidence(gadms, processor, data["train"], *learning)
    options: dict[str, Any] = {"families": families, "decoder": decoder, "oracle_persons": args.oracle_persons}
    return {
        name: word_suspicions(name, gadms, processor, data["test"], evidence, reader, **options) for name in methods
    }


@command
def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    data = read_data(args.data_root)
    test = data["test"]
    names = caption_columns(test.column_names)
    references = [row[f"{name}_words"] for row in test.remove_columns("image") for name in names]
    persons = [person for person in test["person_id"] for _ in names]
    groups = word_groups(test)
    predictions: dict[str, Any] = {path: read_scores(path, test) for path in args.predictions}
    found: dict[str, Found] = {}
    sizes = image_sizes(test)
    images = "{} x {}".format(*sizes[0]) if len(sizes) == 1 else f"{len(sizes)} sizes"
    if set(args.methods) - {"all"}:
        model, processor = load_model(args.model_name_or_path, args.image_size, sizes[0])
        model = model.to("cuda" if torch.cuda.is_available() and not args.use_cpu else "cpu").eval()
        if sizes != [read := tuple(model.gadms.config.vision_config.image_size)]:
            images += f" (read at {read[0]} x {read[1]})"
        found = scores_of_methods(args, data, model, processor)
        predictions |= {name: filled(one) for name, one in found.items()}
    if "all" in args.methods:
        others = {name: one for name, one in predictions.items() if name != ORACLE}
        predictions["all"] = joined(others, references, persons)
    shares = {name: scored_share(one) for name, one in found.items()}
    results = figures(predictions, references, persons, groups, shares)
    text = f"{len(test)} images of {images}, {len(references)} captions, {len(sum(references, []))} words\n\n"
    text += f"{written(results)}\n"
    os.makedirs(os.path.dirname(os.path.abspath(args.output_file)), exist_ok=True)
    write_json(f"{args.output_file}.json", {"data": args.data_root, "results": results})
    write_text(f"{args.output_file}.md", text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
