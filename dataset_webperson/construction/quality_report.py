"""One HTML page about a construction: survivors of every rule, what captions say, what they may have made up.

python -m dataset_webperson.construction.quality_report WORK --output_file report.html

`WORK` is the folder of the stages. The page needs no other file. It shows photographs of people: it is for those who
build the data, not for publishing.
"""

import html
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from glob import escape, glob
from typing import Any

import numpy as np
from tqdm import tqdm

from ..command_line import CommandParser, command
from ..files import replacing
from ..findings import DataError
from ..images import ImageError, decode_rgb, jpeg_uri
from .captions.words import find_attributes
from .shards import read_rows, shard_counts
from .stages.quality import check_scored

NUM_CASES = 12
_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
# Groups whose share is shown before and after: what captions say of a person, in words.
_GROUPS = {
    "man": {"man", "male", "gentleman", "guy", "men", "boy"},
    "woman": {"woman", "female", "lady", "women", "girl"},
    "child": {"child", "kid", "boy", "girl", "toddler", "baby"},
    "headwear": "headwear",
    "glasses": "glasses",
    "bag": "bag",
    "dress or skirt": {"dress", "skirt", "gown", "frock", "miniskirt"},
    "coat or jacket": "outerwear",
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .6rem 0 1.4rem; } th, td { padding: .25rem .8rem; text-align: left;
border-bottom: 1px solid #ccc; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
.case { display: inline-block; width: 21rem; margin: .5rem; vertical-align: top; font-size: 13px; }
.case img { float: left; margin-right: .6rem; } .case p { margin: 0 0 .4rem; } mark { padding: 0 .1em; color: #222; }
.bar { display: inline-block; height: .8em; background: #4a7ab5; } small { color: #666; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } th, td { border-color: #444; }
small { color: #aaa; } }
"""


@dataclass
class Diversity:
    """How varied captions are.

    Attributes:
        captions, words: how many.
        unique: different captions, case aside.
        vocabulary: different words.
        openings: different first three words.
        pairs, different_pairs: words that follow each other, all and different ones.
    """

    captions: int = 0
    words: int = 0
    _captions: set = field(default_factory=set)
    _vocabulary: set = field(default_factory=set)
    _openings: Counter = field(default_factory=Counter)
    _pairs: set = field(default_factory=set)
    pairs: int = 0

    def add(self, caption: str) -> None:
        """Count a caption."""
        words = _WORD.findall(caption.lower())
        self.captions += 1
        self.words += len(words)
        self._captions.add(hash(caption.lower()))
        self._vocabulary.update(words)
        self._openings[tuple(words[:3])] += 1
        following = list(zip(words, words[1:], strict=False))
        self.pairs += len(following)
        self._pairs.update(following)

    def figures(self) -> dict[str, str]:
        """Name -> figure, for a table."""
        if not self.captions:
            return {"captions": "0"}
        commonest, count = self._openings.most_common(1)[0]
        return {
            "captions": f"{self.captions:,}",
            "mean words": f"{self.words / self.captions:.1f}",
            "different captions": _percent(len(self._captions), self.captions),
            "vocabulary": f"{len(self._vocabulary):,}",
            "different openings (three words)": f"{len(self._openings):,}",
            "commonest opening": f"{' '.join(commonest)} ({_percent(count, self.captions)})",
            "different pairs of words": _percent(len(self._pairs), self.pairs),
        }


@dataclass
class Summary:
    """What the report says, from the shards of the quality stage and the stages before."""

    stages: dict[str, dict[str, int]]
    diversity: dict[str, Diversity] = field(default_factory=dict)
    vocabulary: dict[str, Counter] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)
    word_scores: dict[str, list[float]] = field(default_factory=dict)
    groups_before: Counter = field(default_factory=Counter)
    groups_after: Counter = field(default_factory=Counter)
    rows_before: int = 0
    rows_after: int = 0
    templates: Counter = field(default_factory=Counter)
    lowest: list = field(default_factory=list)
    highest: list = field(default_factory=list)


def stage_folders(work: str) -> dict[str, str]:
    """Stage name -> folder, `WORK/<n>_<stage>`, in the order of the numbers."""
    found = {}
    for folder in glob(os.path.join(escape(work), "*_*")):
        number, _, name = os.path.basename(folder).partition("_")
        if number.isdigit() and os.path.isdir(folder):
            found[name] = (int(number), folder)
    return {name: folder for name, (_, folder) in sorted(found.items(), key=lambda item: item[1])}


def _shards(folder: str) -> list[str]:
    return sorted(glob(os.path.join(escape(folder), "*.parquet")))


def summarize(work: str) -> Summary:
    """Read the shards of a construction, an image at a time.

    Raises:
        `DataError`: the folder has no shards of the quality stage, or a broken one.
    """
    folders = stage_folders(work)
    if not (shards := _shards(folders.get("quality", ""))):
        raise DataError(f"{work}: no shards of the quality stage here. Give the `work` folder of the construction.")
    stages = {}
    for name, folder in folders.items():
        total: Counter[str] = Counter()
        for shard in _shards(folder):
            total.update(shard_counts(shard))
        if total:
            stages[name] = dict(total)
    summary = Summary(stages)
    for shard in _shards(folders.get("caption", "")):
        for row in read_rows(shard, ["caption1", "caption2"]):
            summary.rows_before += 1
            summary.groups_before.update(_groups(_words_of(row)))
    for shard in tqdm(shards, desc="report", leave=False):
        check_scored(shard)
        for row in read_rows(shard):
            _add(summary, row)
    return summary


def _words_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(kind, word) for n in (1, 2) for kind, word, _, _ in find_attributes(row[f"caption{n}"])]


def _groups(words: list[tuple[str, str]]) -> set[str]:
    """The groups that a row's captions put its person in."""
    kinds, said = {kind for kind, _ in words}, {word for _, word in words}
    return {name for name, of in _GROUPS.items() if (of in kinds if isinstance(of, str) else of & said)}


def _add(summary: Summary, row: dict[str, Any]) -> None:
    summary.rows_after += 1
    summary.groups_after.update(_groups(_words_of(row)))
    summary.templates[row["template_id"]] += 1
    for number in (1, 2):
        if number == 2 and row["caption2"] == row["caption1"]:
            continue  # the same caption twice, in the place of a marked one
        caption, captioner = row[f"caption{number}"], row[f"captioner{number}"]
        summary.diversity.setdefault(captioner, Diversity()).add(caption)
        for word in row[f"caption{number}_words"]:
            text = caption[word["start"] : word["end"]].lower()
            summary.vocabulary.setdefault(word["kind"], Counter())[text] += 1
            if word["score"] is not None:
                summary.word_scores.setdefault(word["kind"], []).append(word["score"])
        if (score := row[f"caption{number}_score"]) is not None:
            summary.scores.setdefault(captioner, []).append(score)
            case = (score, row["image_path"], number, row)
            summary.lowest = sorted([*summary.lowest, case], key=lambda case: case[:3])[:NUM_CASES]
            summary.highest = sorted([*summary.highest, case], key=lambda case: (-case[0], *case[1:3]))[:NUM_CASES]


def write_build_page(summary: Summary, path: str) -> None:
    """Write the page."""
    body = "".join(
        [
            "<h1>Construction report</h1>",
            _survivors(summary),
            _who(summary),
            _scores(summary),
            _diversity(summary),
            _vocabulary(summary),
            _cases("Lowest scores", summary.lowest),
            _cases("Highest scores", summary.highest),
        ]
    )
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Construction report</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body>{body}</body></html>\n"
    )
    with replacing(path) as part, open(part, "w", encoding="utf-8", errors="replace") as file:
        file.write(page)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _table(head: list[str], rows: list[list[Any]]) -> str:
    def cell(value: Any, place: int) -> str:
        return f"<td{' class=n' if place else ''}>{html.escape(str(value))}</td>"

    lines = "".join(f"<tr>{''.join(cell(value, place) for place, value in enumerate(row))}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{html.escape(name)}</th>' for name in head)}</tr>{lines}</table>"


def _survivors(summary: Summary) -> str:
    parts = ["<h2>What every stage left</h2>"]
    for name, counts in summary.stages.items():
        whole = counts.get("rows_in", 0)
        rows = [[reason.replace("_", " "), f"{count:,}", _percent(count, whole)] for reason, count in counts.items()]
        parts.append(f"<h3>{html.escape(name)}</h3>" + _table(["", "count", "of rows in"], rows))
    return "".join(parts)


def _who(summary: Summary) -> str:
    rows = [
        [
            name,
            _percent(summary.groups_before[name], summary.rows_before),
            _percent(summary.groups_after[name], summary.rows_after),
        ]
        for name in _GROUPS
    ]
    return (
        "<h2>Who is in the data</h2><p>Share of rows whose captions say so, before and after the quality stage. The "
        "rule of the person filter keeps upright, large, unhidden people whose face is seen: people seen from behind, "
        "sitting, small, in wheelchairs, behind prams or in wide clothes that hide the hips are left out more often. "
        "They have no captions, so this table cannot show them; the counts of the crop stage above can. Captioners "
        "guess sex and age from looks, which is no fact about a person.</p>"
        + _table(["captions say", f"captioned ({summary.rows_before:,})", f"kept ({summary.rows_after:,})"], rows)
    )


def _scores(summary: Summary) -> str:
    if not summary.scores:
        return "<h2>What captions may have made up</h2><p>No model was given, so nothing was scored.</p>"
    parts = [
        "<h2>What captions may have made up</h2><p>Cosine of image and caption. Low: by this model, the image shows "
        "little of what the caption says.</p>"
    ]
    everything = [score for scores in summary.scores.values() for score in scores]
    bins = np.linspace(min(everything), max(everything) + 1e-6, 11)
    for captioner, scores in sorted(summary.scores.items()):
        counts, _ = np.histogram(scores, bins)
        bars = "".join(
            f"<tr><td>{low:.2f} to {high:.2f}</td><td class=n>{count:,}</td>"
            f'<td><span class="bar" style="width:{200 * count / counts.max():.0f}px"></span></td></tr>'
            for low, high, count in zip(bins, bins[1:], counts, strict=False)
        )
        parts.append(f"<h3>{html.escape(captioner)}: mean {np.mean(scores):.3f}</h3><table>{bars}</table>")
    rows = [
        [kind, f"{len(found):,}", f"{np.mean(found):.2f}", _percent(int((np.array(found) < 0.1).sum()), len(found))]
        for kind, found in sorted(summary.word_scores.items(), key=lambda item: np.mean(item[1]))
    ]
    parts.append("<p>Token scores of attribute words: how much they carried the match.</p>")
    return "".join(parts) + _table(["kind of word", "words", "mean score", "below 0.1"], rows)


def _diversity(summary: Summary) -> str:
    names = sorted(summary.diversity)
    figures = {name: summary.diversity[name].figures() for name in names}
    labels = list(dict.fromkeys(label for of in figures.values() for label in of))
    rows = [[label, *(figures[name].get(label, "–") for name in names)] for label in labels]
    used = f"<p>{len(summary.templates):,} templates in use.</p>"
    return "<h2>How varied captions are</h2>" + _table(["", *names], rows) + used


def _vocabulary(summary: Summary) -> str:
    rows = [
        [
            kind,
            f"{sum(counts.values()):,}",
            f"{len(counts):,}",
            ", ".join(f"{w} {n}" for w, n in counts.most_common(10)),
        ]
        for kind, counts in sorted(summary.vocabulary.items(), key=lambda item: -sum(item[1].values()))
    ]
    return "<h2>Attribute words</h2>" + _table(["kind", "words", "different", "commonest"], rows)


def _cases(title: str, cases: list) -> str:
    if not cases:
        return ""
    return f"<h2>{title}</h2><p><small>Darker: carried more of the match.</small></p>" + "".join(map(_case, cases))


def _case(case: tuple) -> str:
    score, _, number, row = case
    caption, parts, place = row[f"caption{number}"], [], 0
    for word in row[f"caption{number}_words"]:
        ground = f"background:rgba(255,150,0,{word['score'] or 0:.2f})"
        parts.append(html.escape(caption[place : word["start"]]))
        parts.append(f'<mark style="{ground}">{html.escape(caption[word["start"] : word["end"]])}</mark>')
        place = word["end"]
    parts.append(html.escape(caption[place:]))
    problems = ", ".join(row[f"caption{number}_problems"])
    return (
        f'<div class="case">{_thumbnail(row["image"]["bytes"])}<p>{"".join(parts)}</p>'
        f"<small>{score:.2f} · {html.escape(row[f'captioner{number}'])} · {html.escape(row['image_path'])} "
        f"{html.escape(problems)}</small></div>"
    )


def _thumbnail(data: bytes) -> str:
    try:
        image = decode_rgb(data, "image")
    except ImageError:
        return ""
    image.thumbnail((96, 192))
    return f'<img src="{jpeg_uri(image, 80)}" width="{image.width}" height="{image.height}" alt="">'


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        prog="python -m dataset_webperson.construction.quality_report",
        description=__doc__,
        renamed={"--out": "--output_file"},
    )
    parser.add_argument("work", metavar="WORK", help="folder of the stages")
    parser.add_argument("--output_file", required=True, metavar="FILE.html", help="the page to write")
    args = parser.parse_args(arguments)
    write_build_page(summarize(args.work), args.output_file)
    sys.stdout.write(f"wrote {args.output_file}\n")


if __name__ == "__main__":
    sys.exit(main())
