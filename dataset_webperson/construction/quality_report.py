"""One HTML page about a construction: the survivors of every rule, and what captions say and may have made up.

python -m dataset_webperson.construction.quality_report WORK --output_file report.html

`WORK` is the folder of the stages. The page is self-contained. It shows photographs of people: it is meant for those
who build the data, not for publication.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from glob import escape, glob
from typing import Any

import numpy as np
from tqdm import tqdm

from ..command_line import CommandParser, command
from ..findings import DataError
from ..images import ImageError, decode_rgb
from ..pages import Picture, embed, percent, write_page
from .captions.words import find_attributes
from .shards import read_rows, shard_counts
from .stages.quality import LOW_SCORE, check_scored

NUM_CASES = 12
_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
# Groups whose share of the persons is shown before and after, by the words that put a person into one.
_GROUPS: dict[str, str | set[str]] = {
    "man": {"man", "male", "gentleman", "guy", "men", "boy"},
    "woman": {"woman", "female", "lady", "women", "girl"},
    "child": {"child", "kid", "boy", "girl", "toddler", "baby"},
    "headwear": "headwear",
    "glasses": "glasses",
    "bag": "bag",
    "dress or skirt": {"dress", "skirt", "gown", "frock", "miniskirt"},
    "coat or jacket": "outerwear",
}
# The counts of a crop shard that are about its boxes; the others are about its images.
_OF_BOXES = {"box_score", "box_side", "box_ratio", "keypoints_few", "hips_hidden", "head_hidden", "rows_out"}
_STRONG = 0.1  # a drop of the cosine that is shown in full colour


Scored = tuple[float, str, int, dict[str, Any]]  # score, path of the image, which caption of the row, the row


@dataclass
class Diversity:
    """How varied captions are.

    Attributes:
        captions, words, pairs: number of captions, of their words, and of pairs of adjacent words.
    """

    captions: int = 0
    words: int = 0
    _captions: set[int] = field(default_factory=set)
    _vocabulary: set[str] = field(default_factory=set)
    _openings: Counter[tuple[str, ...]] = field(default_factory=Counter)
    _pairs: set[tuple[str, str]] = field(default_factory=set)
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
        """Figures by name, for a table."""
        if not self.captions:
            return {"captions": "0"}
        commonest, count = self._openings.most_common(1)[0]
        return {
            "captions": f"{self.captions:,}",
            "mean words": f"{self.words / self.captions:.1f}",
            "different captions": percent(len(self._captions), self.captions),
            "vocabulary": f"{len(self._vocabulary):,}",
            "different openings (three words)": f"{len(self._openings):,}",
            "commonest opening": f"{' '.join(commonest)} ({percent(count, self.captions)})",
            "different pairs of words": percent(len(self._pairs), self.pairs),
        }


@dataclass
class Summary:
    """The figures of the report, from the shards of the quality stage and of those before it."""

    stages: dict[str, dict[str, int]]
    diversity: dict[str, Diversity] = field(default_factory=dict)
    vocabulary: dict[str, Counter[str]] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)
    word_scores: dict[str, list[float]] = field(default_factory=dict)
    groups_before: Counter[str] = field(default_factory=Counter)
    groups_after: Counter[str] = field(default_factory=Counter)
    rows_before: int = 0
    rows_after: int = 0
    templates: Counter[str] = field(default_factory=Counter)
    lowest: list[Scored] = field(default_factory=list)
    highest: list[Scored] = field(default_factory=list)


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
    """Read the shards of a construction, one image at a time.

    Raises:
        `DataError`: the folder has no shards of the quality stage, or a broken one.
    """
    folders = stage_folders(work)
    if not (shards := _shards(folders.get("quality", ""))):
        raise DataError(f"{work}: no shards of the quality stage here; give the `work` folder of the construction")
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
            continue  # the same caption twice: it replaced a marked one
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


@dataclass(frozen=True)
class Count:
    """A count of a stage, and the whole that it is a part of.

    Attributes:
        name, count: what was counted, and the number.
        whole, whole_count: name and number of the whole; "" and 0 if the count is itself a whole.
    """

    name: str
    count: int
    whole: str
    whole_count: int


@dataclass(frozen=True)
class StageCounts:
    """The counts of a stage; `kept` counts what it passed on."""

    name: str
    kept: Count
    counts: list[Count]


def stage_counts(name: str, counts: Mapping[str, int]) -> StageCounts:
    """Give every count of a stage its whole: first what came in, then what was left out, then what went out."""
    incoming = "images" if "boxes" in counts else "rows"
    captions = counts.get("captions", 2 * counts.get("rows_in", 0))
    totals = {incoming: counts.get("rows_in", 0), "boxes": counts.get("boxes", 0), "captions": captions}
    # An opt-out list is applied to images and to crops, and counts both under one name.
    totals["images and boxes"] = totals[incoming] + totals["boxes"]
    totals["captions scored"] = counts.get("captions_scored", 0)
    names = {"rows_in": f"{incoming} in", "rows_out": "crops out" if "boxes" in counts else "rows out"}

    def of(reason: str) -> Count:
        whole = _whole_of(reason, incoming)
        shown = names.get(reason, reason.replace("_", " "))
        return Count(shown, counts[reason], whole, totals[whole] if whole else 0)

    wholes = list(totals)

    def place(reason: str) -> tuple[bool, int, bool, int]:
        """What comes in first, then each whole before its parts, the largest first, then what goes out."""
        whole = _whole_of(reason, incoming)
        own = incoming if reason == "rows_in" else reason
        return reason == "rows_out", wholes.index(whole or own), bool(whole), -counts[reason]

    found = {reason: of(reason) for reason in sorted(counts, key=place)}
    kept = found.get("rows_out") or Count(names["rows_out"], 0, incoming, totals[incoming])
    return StageCounts(name, kept, list(found.values()))


def _whole_of(reason: str, incoming: str) -> str:
    """The name of the whole that a count is a part of; "" if it is itself a whole."""
    if reason in ("rows_in", "boxes", "captions"):
        return ""
    if reason == f"captions_{LOW_SCORE}":
        return "captions scored"
    if reason.startswith("caption"):
        return "captions"
    if incoming == "images" and reason.startswith("opted_out"):
        return "images and boxes"
    return "boxes" if incoming == "images" and reason in _OF_BOXES else incoming


def write_build_page(summary: Summary, path: str) -> None:
    """Write one self-contained page on a construction."""
    captioners = sorted(summary.diversity)
    vocabulary = sorted(summary.vocabulary.items(), key=lambda item: -item[1].total())
    write_page(
        path,
        "construction.html",
        title="Construction report",
        summary=summary,
        stages=[stage_counts(name, counts) for name, counts in summary.stages.items()],
        groups=list(_GROUPS),
        histograms=_histograms(summary.scores),
        word_kinds=_word_kinds(summary.word_scores),
        captioners=captioners,
        variety=_variety([summary.diversity[name].figures() for name in captioners]),
        vocabulary=vocabulary,
        lowest=[_case(case) for case in summary.lowest],
        highest=[_case(case) for case in summary.highest],
    )


@dataclass(frozen=True)
class _Bin:
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class _Histogram:
    """The scores of one captioner's captions."""

    captioner: str
    mean: float
    captions: int
    bins: list[_Bin]


def _histograms(scores: Mapping[str, list[float]]) -> list[_Histogram]:
    """One histogram per captioner, all over the same bins."""
    if not scores:
        return []
    everything = [score for found in scores.values() for score in found]
    edges = np.linspace(min(everything), max(everything) + 1e-6, 11).tolist()
    histograms = []
    for captioner, found in sorted(scores.items()):
        counts = np.histogram(found, edges)[0].tolist()
        bins = [_Bin(low, high, count) for low, high, count in zip(edges, edges[1:], counts, strict=False)]
        histograms.append(_Histogram(captioner, float(np.mean(found)), len(found), bins))
    return histograms


@dataclass(frozen=True)
class _WordKind:
    """The contributions of one kind of attribute word; `against` of the words speak against their image."""

    name: str
    words: int
    mean: float
    against: int


def _word_kinds(word_scores: Mapping[str, list[float]]) -> list[_WordKind]:
    """The kinds of attribute words, in ascending order of their mean score."""
    kinds = [
        _WordKind(name, len(found), float(np.mean(found)), sum(score < 0 for score in found))
        for name, found in word_scores.items()
    ]
    return sorted(kinds, key=lambda kind: kind.mean)


def _variety(figures: list[dict[str, str]]) -> dict[str, list[str]]:
    """By label, the figure of each captioner; "–" for a captioner that lacks it, as those without captions do."""
    labels = list(dict.fromkeys(label for found in figures for label in found))
    return {label: [found.get(label, "–") for found in figures] for label in labels}


@dataclass(frozen=True)
class _Piece:
    """A stretch of a caption: an attribute word with its contribution, or the text between two of them."""

    text: str
    is_word: bool = False
    score: float | None = None

    @property
    def shade(self) -> float:
        """How strongly the word is coloured, 0 to 1."""
        return min(abs(self.score or 0) / _STRONG, 1)


@dataclass(frozen=True)
class _Case:
    """A caption and its image, as the page shows them."""

    picture: Picture | None
    pieces: list[_Piece]
    score: float
    captioner: str
    path: str
    problems: list[str]


def _case(case: Scored) -> _Case:
    score, path, number, row = case
    caption = row[f"caption{number}"]
    pieces, place = [], 0
    for word in row[f"caption{number}_words"]:
        start, end = word["start"], word["end"]
        pieces.append(_Piece(caption[place:start]))
        pieces.append(_Piece(caption[start:end], is_word=True, score=word["score"]))
        place = end
    pieces.append(_Piece(caption[place:]))
    picture = _picture(row["image"]["bytes"], path)
    return _Case(picture, pieces, score, row[f"captioner{number}"], path, row[f"caption{number}_problems"])


def _picture(data: bytes, name: str) -> Picture | None:
    """A crop as a picture of the page; `None` where it cannot be shown."""
    try:
        return embed(decode_rgb(data, name), name)
    except ImageError:
        return None


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
