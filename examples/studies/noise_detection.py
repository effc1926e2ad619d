"""Study 1: do token scores find false words? On drawn pedestrians it is known which words are false.

    accelerate launch examples/pretrain.py examples/pretrain_demo.yaml --image_size 96 48 --output_dir runs/demo96
    python examples/studies/noise_detection.py --model runs/demo96 --evidence_steps 3000                # 7 minutes

Captions of persons not seen in training, a share of their attribute words false. Each score ranks the attribute tokens
from most to least suspicious (1 - score); AUROC is the probability that a false token stands above a true one.
Intervals (95 %) draw whole captions anew. Writes results/<name>.json, .md and .png beside this script.
"""

import argparse

import numpy as np
from detection_quality import caption_resamples, ranking_quality
from scored_words import by_word, encode_images, learn_patch_evidence, load_rows, score_tokens
from study_report import interval, pyplot, save_study, table

from modeling_gadms import GADMSForPreTraining, GADMSProcessor


def quality(columns, name, chosen=slice(None), num_resamples=300) -> dict[str, float]:
    """AUROC and average precision of one score on the chosen tokens, with intervals."""
    suspicion, is_false = -columns[name][chosen].astype(np.float64), columns["is_false"][chosen]
    found = dict(zip(("auroc", "average_precision"), ranking_quality(suspicion, is_false), strict=True))
    weights = caption_resamples(columns["caption"][chosen], num_resamples)
    for key, values in zip(list(found), ranking_quality(suspicion, is_false, weights), strict=True):
        found[f"{key}_low"], found[f"{key}_high"] = map(float, np.nanquantile(values, (0.025, 0.975)))
    return found


def shown(found, key) -> str:
    """One figure of `quality` with its interval."""
    return interval({"mean": found[key], "low": found[f"{key}_low"], "high": found[f"{key}_high"]}, digits=3)


def draw(results, groups):
    names = list(results)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(15, 6), layout="constrained", width_ratios=(1, 1.8))
    values = [results[name]["tokens"] for name in names]
    bars = [[value["auroc"] - value["auroc_low"], value["auroc_high"] - value["auroc"]] for value in values]
    left.barh(names, [value["auroc"] for value in values], xerr=np.array(bars).T, color="tab:orange")
    left.axvline(0.5, color="black", linewidth=1)
    left.set(xlim=(0.4, 1), xlabel="AUROC of false against true attribute tokens, 95 % intervals")
    left.set_ylim(len(names) - 0.5, -0.5)  # beside the rows on the right
    grid = np.array([[results[name]["groups"][group]["auroc"] for group in groups] for name in names])
    right.imshow(grid, vmin=0.3, vmax=1, cmap="RdYlGn", aspect="auto")
    right.set_xticks(range(len(groups)), groups, rotation=45)
    right.set_yticks([])
    for (row, column), value in np.ndenumerate(grid):
        right.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a GADMSForPreTraining, its decoder trained")
    parser.add_argument("--num_captions", type=int, default=1000)
    parser.add_argument("--noise_rate", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=1000, help="of the persons; other than in training")
    parser.add_argument("--evidence_steps", type=int, default=0, help="train patch evidence for so many steps")
    parser.add_argument("--evidence_persons", type=int, default=3000, help="drawn for it, two images each")
    parser.add_argument("--name", default="noise_detection", help="of the result files")
    args = parser.parse_args()
    model, processor = (kind.from_pretrained(args.model) for kind in (GADMSForPreTraining, GADMSProcessor))
    size, evidence = tuple(model.config.vision_config.image_size), None
    rows = load_rows(size, args.num_captions, args.noise_rate, args.seed)
    if args.evidence_steps:
        others = load_rows(size, args.evidence_persons, args.noise_rate, args.seed + 1, views_per_person=2)
        tokens = encode_images(model.eval(), processor, others)
        evidence = learn_patch_evidence(model, processor, others, tokens, args.evidence_steps)
    columns = score_tokens(model.eval(), processor, rows, evidence=evidence)
    names = [name for name in columns if name not in ("caption", "word", "attribute", "is_false")]
    words = by_word(columns, names)
    kinds = np.array([attribute.split(".")[0] for attribute in columns["attribute"]])
    groups = [str(kind) for kind in np.unique(kinds) if len(set(columns["is_false"][kinds == kind])) == 2]
    results = {
        name: {
            "tokens": quality(columns, name),
            "words": quality(words, name),
            "groups": {group: quality(columns, name, kinds == group) for group in groups},
            "attributes": {
                str(attribute): quality(columns, name, columns["attribute"] == attribute, num_resamples=100)["auroc"]
                for attribute in np.unique(columns["attribute"])
            },
        }
        for name in names
    }
    counts = {group: [int((kinds == group).sum()), int(columns["is_false"][kinds == group].sum())] for group in groups}
    lines = [
        [
            name,
            *(
                shown(results[name][unit], key)
                for unit in ("tokens", "words")
                for key in ("auroc", "average_precision")
            ),
        ]
        for name in names
    ]
    text = table(
        ["score", "AUROC, tokens", "average precision, tokens", "AUROC, words", "average precision, words"], lines
    )
    base = columns["is_false"].mean()
    text = (
        f"{len(rows)} captions, {len(kinds)} attribute tokens, {base:.1%} false (chance for average precision).\n\n"
        + text
    )
    zero = {name: float((columns[name] == 0).mean()) for name in names if name.startswith("GASS, ")}
    text += "\n\nAttribute tokens whose score is exactly 0, and which no score can order among themselves: "
    text += ", ".join(f"{name} {share:.0%}" for name, share in zero.items()) + "."
    text += "\n\nAUROC by what the token speaks of (number of tokens, of them false):\n\n"
    head = ["score", *(f"{group} ({counts[group][0]}, {counts[group][1]})" for group in groups)]
    text += table(head, [[name, *(f"{results[name]['groups'][g]['auroc']:.2f}" for g in groups)] for name in names])
    content = {
        "arguments": vars(args),
        "false_share": float(base),
        "tokens_and_false": counts,
        "zero_share": zero,
        "results": results,
    }
    save_study(args.name, "Do token scores find false words?", content, text, draw(results, groups))


if __name__ == "__main__":
    main()
