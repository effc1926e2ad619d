r"""Study 1: do token scores find false words? On drawn pedestrians it is known which words are false.

    accelerate launch examples/pretrain.py examples/pretrain_demo.yaml --model_name_or_path examples/small_clip \
        --num_persons 4000 --noise_rate 0.3 --learning_rate 1e-4 --image_size 96 48 --output_dir runs/demo96
    python examples/studies/noise_detection.py --model runs/demo96 --evidence_steps 2000 --tower_steps 5000

Captions of persons not seen in training, a share of their attribute words false. Each score ranks the attribute tokens
from most to least suspicious (1 - score); AUROC is the probability that a false token stands above a true one.
Intervals (95 %) draw whole captions anew. Writes results/<name>.json, .md and .png beside this script.
"""

import argparse
import sys

import numpy as np
from noise_report import EVIDENCE, OWN_TOWER, draw, written
from scored_words import by_word, drawn_data, load_rows, score_tokens
from study_report import RESULTS, save_study

from dataset_webperson.command_line import CommandParser, command
from modeling_gadms import GADMSForPreTraining, GADMSProcessor
from modeling_gadms.false_words.word_detection import group_resamples, ranking_quality
from modeling_gadms.noise.patch_evidence import train_patch_evidence

COLUMNS = "caption", "word", "attribute", "is_false"  # of what is scored; the others are scores
TOWER_RATE = 5e-4  # of a tower as small as the demo's
COLORS, OTHERS = "all colours", "all others"


def quality(
    columns: dict[str, np.ndarray], name: str, chosen: slice | np.ndarray = slice(None), num_resamples: int = 300
) -> dict[str, float]:
    """AUROC and average precision of one score on the chosen tokens, with intervals."""
    suspicion, is_false = -columns[name][chosen].astype(np.float64), columns["is_false"][chosen]
    found = dict(zip(("auroc", "average_precision"), ranking_quality(suspicion, is_false), strict=True))
    weights = group_resamples(columns["caption"][chosen], num_resamples).astype(np.float32)
    for key, values in zip(list(found), ranking_quality(suspicion, is_false, weights), strict=True):
        found[f"{key}_low"], found[f"{key}_high"] = map(float, np.nanquantile(values, (0.025, 0.975)))
    return found


def evidence_of(model: GADMSForPreTraining, processor: GADMSProcessor, args: argparse.Namespace) -> dict:
    """Patch evidence as asked for, learnt from captions as false as those that are scored."""
    asked = {EVIDENCE: (args.evidence_steps, 0.0), OWN_TOWER: (args.tower_steps, TOWER_RATE)}
    asked = {name: (steps, rate) for name, (steps, rate) in asked.items() if steps}
    if not asked:
        return {}
    size = tuple(model.config.vision_config.image_size)
    data = drawn_data(size, args.evidence_persons, args.noise_rate, args.seed + 1)
    rows = data.as_dataset(split="train")
    return {
        name: train_patch_evidence(model.gadms, processor, rows, steps, rate) for name, (steps, rate) in asked.items()
    }


def attribute_groups(words: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Which words are colours, which are not, and which speak of each attribute that has true and false ones."""
    attributes, is_false = words["attribute"], words["is_false"]
    is_color = np.char.endswith(attributes, ".color")
    groups = {COLORS: is_color, OTHERS: ~is_color}
    groups |= {str(attribute): attributes == attribute for attribute in np.unique(attributes)}
    return {group: chosen for group, chosen in groups.items() if len(set(is_false[chosen])) == 2}


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of a GADMSForPreTraining, its decoder trained")
    parser.add_argument("--num_captions", type=int, default=1000, help="captions scored (default: %(default)s)")
    parser.add_argument("--noise_rate", type=float, default=0.3, help="share of false words (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=1000, help="decides the persons; another than in training (default: %(default)s)"
    )
    parser.add_argument("--evidence_steps", type=int, default=0, help="train patch evidence for this many steps")
    parser.add_argument("--tower_steps", type=int, default=0, help="and with an image tower of its own for this many")
    parser.add_argument(
        "--evidence_persons",
        type=int,
        default=3000,
        help="persons drawn for that, two images each (default: %(default)s)",
    )
    parser.add_argument("--name", default="noise_detection", help="name of the result files (default: %(default)s)")
    parser.add_argument("--results_dir", default=RESULTS, help="where the tables and the figure go")
    args = parser.parse_args(arguments)
    model, processor = (kind.from_pretrained(args.model) for kind in (GADMSForPreTraining, GADMSProcessor))
    model.eval()
    rows = load_rows(tuple(model.config.vision_config.image_size), args.num_captions, args.noise_rate, args.seed)
    columns = score_tokens(model, processor, rows, evidence=evidence_of(model, processor, args))
    names = [name for name in columns if name not in COLUMNS]
    words = by_word(columns, names)
    groups = attribute_groups(words)
    results = {
        name: {
            "tokens": quality(columns, name),
            "words": quality(words, name),
            "groups": {group: quality(words, name, chosen) for group, chosen in groups.items()},
        }
        for name in names
    }
    counts = {group: [int(chosen.sum()), int(words["is_false"][chosen].sum())] for group, chosen in groups.items()}
    content = {"arguments": vars(args), "words_and_false": counts, "results": results}
    text, figure = written(columns, results, counts), draw(results, groups)
    save_study(args.name, "Do token scores find false words?", content, text, figure, args.results_dir)


if __name__ == "__main__":
    sys.exit(main())
