"""What the report says of captions, counted shard by shard and added up: statistics take no memory for each row.

The statistics of a shard lie in `WORK/statistics/<stage>/<shard>.json`, together with the size and time of the shard,
and are counted again when these change, as after an opt-out.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..files import write_json
from ..findings import DataError
from ..pages import percent
from ..rows.joined_parquet import whole_batches
from .captions.words import find_attributes
from .distinct import Distinct
from .shards import read_rows, run_missing
from .stages.quality import check_scored

NUM_CASES = 12
NUM_SAMPLES = 20
_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
_OPENINGS = 1_000  # openings whose number is kept
_BINS = 2_000  # of cosines, from -1 to 1
# Groups whose share of the persons is shown before and after, by the words that put a person into one.
GROUPS: dict[str, str | set[str]] = {
    "man": {"man", "male", "gentleman", "guy", "men", "boy"},
    "woman": {"woman", "female", "lady", "women", "girl"},
    "child": {"child", "kid", "boy", "girl", "toddler", "baby"},
    "headwear": "headwear",
    "glasses": "glasses",
    "bag": "bag",
    "dress or skirt": {"dress", "skirt", "gown", "frock", "miniskirt"},
    "coat or jacket": "outerwear",
}


@dataclass
class Diversity:
    """How varied captions are.

    Attributes:
        captions, words, pairs: number of captions, of their words, and of pairs of adjacent words.
        different: the different captions, words, openings and pairs.
        openings: the first three words of captions, the commonest ones.
    """

    captions: int = 0
    words: int = 0
    pairs: int = 0
    different: dict[str, Distinct] = field(default_factory=dict)
    openings: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, captions: Iterable[str]) -> "Diversity":
        """Count captions, all in memory."""
        found = cls()
        texts: dict[str, set[str]] = {"captions": set(), "words": set(), "openings": set(), "pairs": set()}
        for caption in captions:
            words = _WORD.findall(caption.lower())
            opening = " ".join(words[:3])
            found.captions += 1
            found.words += len(words)
            found.pairs += max(0, len(words) - 1)
            found.openings[opening] += 1
            texts["captions"].add(caption.lower())
            texts["words"].update(words)
            texts["openings"].add(opening)
            texts["pairs"].update(map(" ".join, zip(words, words[1:], strict=False)))
        found.different = {name: Distinct.of(values) for name, values in texts.items()}
        return found

    def add(self, other: "Diversity") -> None:
        self.captions += other.captions
        self.words += other.words
        self.pairs += other.pairs
        self.different |= {name: self.different.get(name, Distinct()) | part for name, part in other.different.items()}
        self.openings.update(other.openings)

    def figures(self) -> dict[str, str]:
        """Figures by name, for a table."""
        if not self.captions:
            return {"captions": "0"}
        commonest, count = self.openings.most_common(1)[0]

        def number(name: str) -> str:
            return ("" if self.different[name].is_exact else "about ") + f"{len(self.different[name]):,}"

        def share(name: str, whole: int) -> str:
            exact = self.different[name].is_exact
            return ("" if exact else "about ") + percent(min(len(self.different[name]), whole), whole)

        return {
            "captions": f"{self.captions:,}",
            "mean words": f"{self.words / self.captions:.1f}",
            "different captions": share("captions", self.captions),
            "vocabulary": number("words"),
            "different openings (three words)": number("openings"),
            "commonest opening": f"{commonest} ({percent(count, self.captions)})",
            "different pairs of words": share("pairs", self.pairs),
        }


@dataclass
class Scores:
    """Cosines of many captions: their number, sum, least and greatest, and how many lie in each thousandth."""

    count: int = 0
    total: float = 0.0
    least: float = 2.0
    greatest: float = -2.0
    bins: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, values: Iterable[float]) -> "Scores":
        array = np.fromiter(values, float)
        if not len(array):
            return cls()
        places, counts = np.unique((array.clip(-1, 1) + 1) * (_BINS / 2) // 1, return_counts=True)
        bins = Counter(dict(zip(places.astype(int).tolist(), counts.tolist(), strict=True)))
        return cls(len(array), float(array.sum()), float(array.min()), float(array.max()), bins)

    def add(self, other: "Scores") -> None:
        self.count += other.count
        self.total += other.total
        self.least, self.greatest = min(self.least, other.least), max(self.greatest, other.greatest)
        self.bins.update(other.bins)

    def between(self, low: float, high: float) -> int:
        """How many lie from `low` to below `high`, with an error of those in the bins of the two."""
        return sum(count for place, count in self.bins.items() if low <= (place + 0.5) * 2 / _BINS - 1 < high)


# A caption that is shown: its score or its place in a random order, the row's name, 1 or 2 for the caption, where the
# row is, as the name of the shard and the place in it.
Case = tuple[float, str, int, str, int]


@dataclass
class Statistics:
    """Counts of rows and captions.

    Attributes:
        rows: their number.
        groups, templates: number of rows in each of `GROUPS`, and of each template.
        vocabulary: by kind of attribute word, how often each is said.
        word_sums: by kind, how many are scored, the sum of the scores, and how many are below 0.
        diversity, scores: by captioner.
        lowest, highest: the captions with the least and the greatest scores.
        samples: by captioner, captions that the names of their images choose.
    """

    rows: int = 0
    groups: Counter[str] = field(default_factory=Counter)
    templates: Counter[str] = field(default_factory=Counter)
    vocabulary: dict[str, Counter[str]] = field(default_factory=dict)
    word_sums: dict[str, list[float]] = field(default_factory=dict)
    diversity: dict[str, Diversity] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)
    lowest: list[Case] = field(default_factory=list)
    highest: list[Case] = field(default_factory=list)
    samples: dict[str, list[Case]] = field(default_factory=dict)

    def add(self, other: "Statistics") -> None:
        self.rows += other.rows
        self.groups.update(other.groups)
        self.templates.update(other.templates)
        for kind, words in other.vocabulary.items():
            self.vocabulary.setdefault(kind, Counter()).update(words)
        for kind, sums in other.word_sums.items():
            mine = self.word_sums.setdefault(kind, [0, 0.0, 0])
            self.word_sums[kind] = [one + more for one, more in zip(mine, sums, strict=True)]
        for captioner, found in other.diversity.items():
            self.diversity.setdefault(captioner, Diversity()).add(found)
        for captioner, scores in other.scores.items():
            self.scores.setdefault(captioner, Scores()).add(scores)
        self.lowest = sorted([*self.lowest, *other.lowest])[:NUM_CASES]
        self.highest = sorted([*self.highest, *other.highest], key=lambda case: (-case[0], *case[1:]))[:NUM_CASES]
        for captioner, cases in other.samples.items():
            self.samples[captioner] = sorted([*self.samples.get(captioner, []), *cases])[:NUM_SAMPLES]

    def as_json(self) -> dict[str, Any]:
        content = dict(vars(self))
        content["diversity"] = {
            captioner: {
                **vars(found),
                "different": {name: part.least for name, part in found.different.items()},
                "openings": dict(found.openings.most_common(_OPENINGS)),
            }
            for captioner, found in self.diversity.items()
        }
        content["scores"] = {captioner: vars(scores) for captioner, scores in self.scores.items()}
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Statistics":
        found = cls(rows=content["rows"], groups=Counter(content["groups"]), templates=Counter(content["templates"]))
        found.vocabulary = {kind: Counter(words) for kind, words in content["vocabulary"].items()}
        found.word_sums = content["word_sums"]
        for captioner, values in content["diversity"].items():
            different = {name: Distinct(least) for name, least in values["different"].items()}
            found.diversity[captioner] = Diversity(
                **{**values, "different": different, "openings": Counter(values["openings"])}
            )
        for captioner, values in content["scores"].items():
            bins = Counter({int(place): count for place, count in values["bins"].items()})
            found.scores[captioner] = Scores(**{**values, "bins": bins})
        found.lowest, found.highest = ([tuple(case) for case in content[name]] for name in ("lowest", "highest"))
        found.samples = {name: [tuple(case) for case in cases] for name, cases in content["samples"].items()}
        return found


def words_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The kind and the text of every attribute word in a row's captions, from the quality stage if it has run."""
    words = []
    for name in ("caption1", "caption2"):
        if (known := row.get(f"{name}_words")) is None:
            words += [(kind, word) for kind, word, _, _ in find_attributes(row[name])]
        else:
            words += [(word["kind"], row[name][word["start"] : word["end"]].lower()) for word in known]
    return words


def groups_of(words: list[tuple[str, str]]) -> set[str]:
    """The groups that a row's captions put its person in."""
    kinds, said = {kind for kind, _ in words}, {word for _, word in words}
    return {name for name, of in GROUPS.items() if (of in kinds if isinstance(of, str) else of & said)}


def count_captioned(shard: str) -> Statistics:
    """The statistics of a shard of the caption stage: its rows and their groups."""
    found = Statistics()
    for row in read_rows(shard, ["caption1", "caption2"]):
        found.rows += 1
        found.groups.update(groups_of(words_of(row)))
    return found


def count_assessed(shard: str) -> Statistics:
    """The statistics of a shard of the quality stage. Raises `DataError` if it is none."""
    check_scored(shard)
    found, captions, cosines = Statistics(), dict[str, list[str]](), dict[str, list[float]]()
    name = os.path.basename(shard)
    parts = ("", "_words", "_score")
    columns = [f"caption{number}{part}" for number in (1, 2) for part in parts]
    cases: list[Case] = []
    for place, row in enumerate(read_rows(shard, ["image_path", "template_id", "captioner1", "captioner2", *columns])):
        found.rows += 1
        found.groups.update(groups_of(words_of(row)))
        found.templates[row["template_id"]] += 1
        for number in (1, 2):
            if number == 2 and row["caption2"] == row["caption1"]:
                continue  # the same caption twice: it replaced a marked one
            caption, captioner = row[f"caption{number}"], row[f"captioner{number}"]
            captions.setdefault(captioner, []).append(caption)
            for word in row[f"caption{number}_words"]:
                text = caption[word["start"] : word["end"]].lower()
                found.vocabulary.setdefault(word["kind"], Counter())[text] += 1
                if word["score"] is not None:
                    sums = found.word_sums.setdefault(word["kind"], [0, 0.0, 0])
                    sums[0] += 1
                    sums[1] += word["score"]
                    sums[2] += word["score"] < 0
            if (score := row[f"caption{number}_score"]) is not None:
                cosines.setdefault(captioner, []).append(score)
                cases.append((score, row["image_path"], number, name, place))
            draw = hashlib.blake2b(f"{row['image_path']} {number}".encode(), digest_size=6).digest()
            case = (float(int.from_bytes(draw, "big")), row["image_path"], number, name, place)
            found.samples.setdefault(captioner, []).append(case)
    found.diversity = {captioner: Diversity.of(texts) for captioner, texts in captions.items()}
    found.scores = {captioner: Scores.of(values) for captioner, values in cosines.items()}
    whole = Statistics()
    found.lowest = found.highest = cases
    whole.add(found)  # keeps of all cases those that are shown
    return whole


_COUNTERS = {"caption": count_captioned, "quality": count_assessed}


def count_shard(source: str, target: str, stage: str) -> None:
    """Write the statistics of a shard of the stage `caption` or `quality`."""
    facts = os.stat(source)  # before it is read: if it changes meanwhile, it is counted again
    content = _COUNTERS[stage](source).as_json()
    write_json(target, {"file": [facts.st_size, facts.st_mtime_ns], "statistics": content})


def stage_statistics(work: str, stage: str, shards: list[str], num_workers: int = 1) -> Statistics:
    """The statistics of all shards of the stage `caption` or `quality`; only those that are missing are counted.

    Raises:
        `DataError`: a broken shard, or one of another stage.
    """
    folder = os.path.join(work, "statistics", stage)
    pairs = [(shard, os.path.join(folder, os.path.basename(shard) + ".json")) for shard in shards]
    known = {path: _counted(shard, path) for shard, path in pairs if os.path.exists(path)}
    for path in (path for path, found in known.items() if found is None):
        os.remove(path)
    run_missing(count_shard, pairs, stage, num_workers, f"statistics: {stage}")
    total = Statistics()
    for shard, path in pairs:
        total.add(known.get(path) or _counted(shard, path) or Statistics())
    return total


def _counted(shard: str, path: str) -> Statistics | None:
    """The statistics that lie in `path`; `None` if they are of another version of the shard."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        facts = os.stat(shard)
        same = content["file"] == [facts.st_size, facts.st_mtime_ns]
        return Statistics.from_json(content["statistics"]) if same else None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: broken ({error}); delete it") from error


def row_at(shard: str, place: int) -> dict[str, Any]:
    """One row of a shard."""
    with pq.ParquetFile(shard) as parquet:
        for group in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            if place < count:
                rows = (row for batch in whole_batches(shard, parquet, 1, None, [group]) for row in batch.to_pylist())
                return next(islice(rows, place, None))
            place -= count
    raise IndexError(f"{shard} has no such row")
