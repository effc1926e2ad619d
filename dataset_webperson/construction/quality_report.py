"""One HTML page about a construction: the survivors of every rule, and what captions say and may have made up.

python -m dataset_webperson.construction.quality_report WORK --output_file report.html

`WORK` is the folder of the stages. The page is self-contained. It shows photographs of people: it is meant for those
who build the data, not for publication.
"""

import itertools
import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from glob import escape, glob
from typing import Any

import numpy as np

from ..command_line import CommandParser, command
from ..findings import DataError
from ..images import ImageError, decode_rgb
from ..pages import Picture, embed, write_page
from .caption_statistics import GROUPS, Case, Scores, Statistics, row_at, stage_statistics
from .hosts import top_hosts
from .persons.views import TRAITS
from .rejects import Reject, sample_rejects
from .shards import shard_counts
from .stages.quality import LOW_SCORE

# The counts of a crop shard that are about its boxes; the others are about its images.
_OF_BOXES = {
    "box_score",
    "box_side",
    "box_ratio",
    "keypoints_few",
    "hips_hidden",
    "head_hidden",
    "second_person",
    "crops_with_two_persons",
    "rows_out",
}
_STRONG = 0.1  # a drop of the cosine that is shown in full colour


@dataclass
class Summary:
    """The figures of the report: the counts of each stage, and what captions say before and after the quality stage.

    Attributes:
        cases: the row of each caption that is shown.
        seen: of the persons whose pose was looked for, how many are seen in which way, as `persons.views` counts them.
        rejects: by rule, pictures of what it left out.
        hosts: what came back from all hosts together, and from the largest (`hosts.top_hosts`).
    """

    stages: dict[str, dict[str, int]]
    before: Statistics = field(default_factory=Statistics)
    after: Statistics = field(default_factory=Statistics)
    cases: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    rejects: dict[str, list[Reject]] = field(default_factory=dict)
    hosts: dict[str, dict[str, int]] = field(default_factory=dict)


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


def summarize(work: str, num_workers: int = 1) -> Summary:
    """Add up the statistics of a construction's shards, counting those of shards that have none yet.

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
    before = stage_statistics(work, "caption", _shards(folders.get("caption", "")), num_workers)
    after = stage_statistics(work, "quality", shards, num_workers)
    shown = [*after.lowest, *after.highest, *itertools.chain.from_iterable(after.samples.values())]
    rows = {(name, place): row_at(os.path.join(folders["quality"], name), place) for *_, name, place in shown}
    seen: Counter[str] = Counter()
    for shard in _shards(os.path.join(folders.get("crop", ""), "rejected_boxes")):
        seen.update({name: count for name, count in shard_counts(shard).items() if "/" in name})
    return Summary(
        stages, before, after, rows, seen, sample_rejects(folders), top_hosts(os.path.join(work, "hosts.parquet"))
    )


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


# What each step of the funnel takes away: of the images, of the boxes found in them, and of the crops.
_LOST_IMAGES = {
    "not downloaded or missing": ("not_downloaded", "image_missing"),
    "unreadable": ("image_unreadable",),
    "reserved by their sites": ("reserved_robots_tag", "reserved_tdm", "reserved_robots_txt"),
    "taken for unsafe": ("image_nsfw",),
    "without a person": ("images_without_person",),
}
_LOST_BOXES = {
    "score": ("box_score",),
    "shorter side": ("box_side",),
    "proportions": ("box_ratio",),
    "keypoints": ("keypoints_few",),
    "hips": ("hips_hidden",),
    "head": ("head_hidden",),
    "a second person": ("second_person",),
}
_LOST_CROPS = {
    "equal bytes": ("duplicate_bytes",),
    "close hashes": ("duplicate_phash",),
    "close embeddings": ("duplicate_embedding",),
}


def funnel(stages: Mapping[str, Mapping[str, int]]) -> list[Count]:
    """What is left after each rule, from the images to the rows of the last stage; rules that took nothing are left
    out. Boxes are parts of the boxes, and rows parts of the crops: an image may have many of either."""
    steps: list[Count] = []

    def follow(start: str, whole: int, counts: Mapping[str, int], rules: Mapping[str, tuple[str, ...]]) -> None:
        left = whole
        steps.append(Count(start, whole, "", 0))
        for rule, reasons in rules.items():
            if lost := sum(counts.get(reason, 0) for reason in reasons):
                left -= lost
                steps.append(Count(f"after {rule}", left, start, whole))

    if crop := stages.get("crop"):
        follow("images", crop.get("rows_in", 0), crop, _LOST_IMAGES)
        follow("boxes", crop.get("boxes", 0), crop, _LOST_BOXES)
        crops = crop.get("rows_out", 0)
        follow("crops", crops, stages.get("dedup", {}), _LOST_CROPS)
        for name in ("dedup", "caption", "quality"):
            if name in stages:
                steps.append(Count(f"after the stage {name}", stages[name].get("rows_out", 0), "crops", crops))
    return steps


@dataclass(frozen=True)
class SeenAs:
    """How the persons of one fate are seen; `shares`: by trait, those who have it and those of whom the pose tells."""

    fate: str
    persons: int
    shares: dict[str, tuple[int, int]]


def seen_as(seen: Mapping[str, int]) -> list[SeenAs]:
    """A row for the persons that were kept, and one for each rule by which poses were rejected."""
    fates = sorted({name.partition("/")[0] for name in seen}, key=lambda fate: (fate != "kept", fate))
    return [
        SeenAs(
            fate.replace("_", " "),
            seen[f"{fate}/persons"],
            {trait: (seen.get(f"{fate}/{trait}", 0), seen.get(f"{fate}/{trait}_told", 0)) for trait in TRAITS},
        )
        for fate in fates
    ]


def write_build_page(summary: Summary, path: str) -> None:
    """Write one self-contained page on a construction."""
    after = summary.after
    captioners = sorted(after.diversity)
    write_page(
        path,
        "construction.html",
        title="Construction report",
        before=summary.before,
        after=after,
        stages=[stage_counts(name, counts) for name, counts in summary.stages.items()],
        funnel=funnel(summary.stages),
        groups=list(GROUPS),
        hosts=[
            (host or "all hosts", sum(results.values()), results.get("downloaded", 0), _others(results))
            for host, results in summary.hosts.items()
        ],
        seen=seen_as(summary.seen),
        rejects={
            rule.replace("_", " "): [
                _Rejected(_picture(reject.data, reject.name), reject.name, reject.text) for reject in shown
            ]
            for rule, shown in sorted(summary.rejects.items())
        },
        histograms=_histograms(after.scores),
        word_kinds=_word_kinds(after.word_sums),
        captioners=captioners,
        variety=_variety([after.diversity[name].figures() for name in captioners]),
        vocabulary=sorted(after.vocabulary.items(), key=lambda item: -item[1].total()),
        lowest=[_case(case, summary.cases) for case in after.lowest],
        highest=[_case(case, summary.cases) for case in after.highest],
        samples={name: [_case(case, summary.cases) for case in after.samples[name]] for name in sorted(after.samples)},
    )


def _others(results: Mapping[str, int]) -> str:
    """What became of the pictures that are not there, the commonest first."""
    ordered = sorted(results.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in ordered if name != "downloaded")


def write_report(work: str, path: str, options: None = None) -> None:
    """A part of a build: the page of what lies in `work`."""
    write_build_page(summarize(work), path)


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


def _histograms(scores: Mapping[str, Scores]) -> list[_Histogram]:
    """One histogram per captioner, all over the same bins."""
    if not scores:
        return []
    least, greatest = min(found.least for found in scores.values()), max(found.greatest for found in scores.values())
    edges = np.linspace(least - 1e-3, greatest + 1e-3, 11).tolist()
    histograms = []
    for captioner, found in sorted(scores.items()):
        bins = [_Bin(low, high, found.between(low, high)) for low, high in zip(edges, edges[1:], strict=False)]
        histograms.append(_Histogram(captioner, found.total / found.count, found.count, bins))
    return histograms


@dataclass(frozen=True)
class _WordKind:
    """The contributions of one kind of attribute word; `against` of the words speak against their image."""

    name: str
    words: int
    mean: float
    against: int


def _word_kinds(word_sums: Mapping[str, list[float]]) -> list[_WordKind]:
    """The kinds of attribute words, in ascending order of their mean score."""
    kinds = [
        _WordKind(name, int(count), total / count, int(against)) for name, (count, total, against) in word_sums.items()
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
    score: float | None
    captioner: str
    path: str
    problems: list[str]


def _case(case: Case, rows: Mapping[tuple[str, int], dict[str, Any]]) -> _Case:
    _, path, number, name, place = case
    row = rows[name, place]
    caption = row[f"caption{number}"]
    pieces, place = [], 0
    for word in row[f"caption{number}_words"]:
        start, end = word["start"], word["end"]
        pieces.append(_Piece(caption[place:start]))
        pieces.append(_Piece(caption[start:end], is_word=True, score=word["score"]))
        place = end
    pieces.append(_Piece(caption[place:]))
    picture = _picture(row["image"]["bytes"], path)
    score, captioner = row[f"caption{number}_score"], row[f"captioner{number}"]
    return _Case(picture, pieces, score, captioner, path, row[f"caption{number}_problems"])


@dataclass(frozen=True)
class _Rejected:
    """A picture that was left out, as the page shows it."""

    picture: Picture | None
    name: str
    text: str


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
    parser.add_argument("--num_workers", type=int, default=1, help="processes that count (default: %(default)s)")
    args = parser.parse_args(arguments)
    write_build_page(summarize(args.work, args.num_workers), args.output_file)
    sys.stdout.write(f"wrote {args.output_file}\n")


if __name__ == "__main__":
    sys.exit(main())
