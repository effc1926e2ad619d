"""What the report says of captions, counted shard by shard and added up: statistics take no memory for each row.

The statistics of a shard lie in `WORK/statistics/<stage>/<shard>.json`, together with the size and time of the shard,
and are counted again when these change, as after an opt-out.
"""

import json
import os
import zlib
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..files import write_text
from ..findings import DataError
from ..pages import percent
from ..rows.joined_parquet import whole_batches
from .caption_words import CaptionWords, text_hash
from .distinct import Distinct
from .shards import read_table, run_missing
from .stages.quality import check_scored

NUM_CASES = 12
NUM_SAMPLES = 20
_OPENINGS = 1_000  # openings whose number is kept
_BINS = 2_000  # of cosines, from -1 to 1
_VERSION = 2  # raise it when statistics of another version cannot be added to these
_ODD = np.uint64(0x9E3779B97F4A7C15)
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
    def of(cls, words: CaptionWords, chosen: np.ndarray) -> "Diversity":
        """Count the captions that `chosen`, bool of shape `(captions,)`, says."""
        # The hash of a pair follows from those of its words; their order matters.
        many = len(words.words) + 1
        kind = np.dtype(np.int32 if many**2 < 2**31 else np.int64)
        said, count, beside, found = np.zeros(many - 1, bool), 0, 0, [np.zeros(0, kind)]
        for block in words.blocks:
            word, lengths, mine = block.word, np.diff(block.starts), block.of(chosen)
            if not mine.all():
                word, lengths = word[np.repeat(mine, lengths)], lengths[mine]
            count += len(word)
            said[word] = True
            numbers = word.astype(kind, copy=False)
            pairs = numbers[:-1] * kind.type(many) + numbers[1:]
            ends = np.cumsum(lengths[lengths > 0])[:-1]
            pairs[ends - 1] = -1  # the last word of a caption and the first of the next
            beside += len(pairs) - len(ends)
            found.append(pc.unique(pa.array(pairs)).to_numpy())
        pairs = pc.unique(pa.array(np.concatenate(found))).to_numpy()
        pairs = pairs[pairs >= 0]
        first, second = (words.word_hashes[place] for place in np.divmod(pairs, many))
        # Three words as one number, with 0 for none.
        openings = pc.value_counts(pa.array((words.openings[chosen] + 1) @ np.array([many**2, many, 1])))
        kinds = openings.field("values").to_numpy()
        threes = np.stack([kinds // many**2, kinds // many % many, kinds % many], axis=1) - 1
        texts = [" ".join(words.words[place] for place in three if place >= 0) for three in threes.tolist()]
        hashes = {
            "captions": words.hashes[chosen],
            "words": words.word_hashes[said],
            "openings": np.array(list(map(text_hash, texts)), np.uint64),
            "pairs": first * _ODD + second,
        }
        return cls(
            int(chosen.sum()),
            count,
            beside,
            {name: Distinct.of(values) for name, values in hashes.items()},
            Counter(dict(zip(texts, openings.field("counts").to_pylist(), strict=True))),
        )

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
    def of(cls, array: np.ndarray) -> "Scores":
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


def _groups(words: CaptionWords, attributes: list[np.ndarray], named: list[tuple[str, str]]) -> Counter[str]:
    """How many rows, of two captions each, have one that puts their person into each group; see `attributes`."""
    rows = len(words.hashes) // 2
    belongs = {
        name: np.array([of == kind if isinstance(of, str) else word in of for kind, word in named])
        for name, of in GROUPS.items()
    }
    of_any = np.any(list(belongs.values()), axis=0)  # most words, such as colours, put nobody into a group
    told, row = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for block, attribute in zip(words.blocks, attributes, strict=True):
        places = np.flatnonzero(of_any[attribute])
        told.append(attribute[places])
        row.append(block.caption[places] % rows)
    attribute, rows_told = np.concatenate(told), np.concatenate(row)
    found: Counter[str] = Counter()
    for name, mine in belongs.items():
        in_group = np.zeros(rows, bool)
        in_group[rows_told[mine[attribute]]] = True
        if in_group.any():
            found[name] = int(in_group.sum())
    return found


def _both(table: pa.Table, part: str = "") -> pa.ChunkedArray:
    """A column of the first captions, and then that of the second ones."""
    return pa.chunked_array([*table[f"caption1{part}"].chunks, *table[f"caption2{part}"].chunks])


def count_captioned(shard: str) -> Statistics:
    """The statistics of a shard of the caption stage: its rows and their groups."""
    table = read_table(shard, ["caption1", "caption2"])
    words = CaptionWords.of(_both(table))
    return Statistics(len(table), _groups(words, *words.attributes()))


def count_assessed(shard: str) -> Statistics:
    """The statistics of a shard of the quality stage. Raises `DataError` if it is none."""
    check_scored(shard)
    columns = ["image_path", "template_id", "captioner1", "captioner2"]
    columns += [f"caption{number}{part}" for number in (1, 2) for part in ("", "_score")]
    table = read_table(shard, columns)
    rows, words = len(table), CaptionWords.of(_both(table))
    if not rows:
        return Statistics()
    attributes, named = words.attributes()
    found = Statistics(rows, _groups(words, attributes, named))
    found.templates.update(
        {part["values"]: part["counts"] for part in pc.value_counts(table["template_id"]).to_pylist()}
    )

    # A caption that stands twice in a row, because it replaced a marked one, counts once.
    counted = np.append(np.ones(rows, bool), pc.not_equal(table["caption1"], table["caption2"]).to_numpy())
    counts = np.zeros(len(named), np.int64)
    for block, attribute in zip(words.blocks, attributes, strict=True):
        mine = attribute if block.of(counted).all() else attribute[counted[block.caption]]
        counts += np.bincount(mine, minlength=len(named))
    counts[0] = 0  # what is no attribute
    for (kind, word), count in zip(named, counts.tolist(), strict=True):
        if count:
            found.vocabulary.setdefault(kind, Counter())[word] += count

    captioners = pa.chunked_array([*table["captioner1"].chunks, *table["captioner2"].chunks])
    encoded = captioners.combine_chunks().dictionary_encode()
    scores = pc.cast(_both(table, "_score"), pa.float64()).to_numpy()  # null becomes NaN
    scored = counted & ~np.isnan(scores)
    paths = table["image_path"].to_pylist()
    name = os.path.basename(shard)

    def cases(values: np.ndarray, chosen: np.ndarray, most: int, sign: int = 1) -> list[Case]:
        """The chosen captions with the least values, or with the greatest."""
        places = np.flatnonzero(chosen)
        if len(places) > most:
            limit = np.partition(sign * values[places], most - 1)[most - 1]
            places = places[sign * values[places] <= limit]
        shown = [
            (float(values[place]), paths[place % rows], 1 + place // rows, name, place % rows)
            for place in places.tolist()
        ]
        return sorted(shown, key=lambda case: (sign * case[0], *case[1:]))[:most]

    draws = _draws(paths)
    for number, captioner in enumerate(encoded.dictionary.to_pylist()):
        mine = counted & (encoded.indices.to_numpy() == number)
        if mine.any():
            found.diversity[captioner] = Diversity.of(words, mine)
            found.samples[captioner] = cases(draws, mine, NUM_SAMPLES)
        if (mine & scored).any():
            found.scores[captioner] = Scores.of(scores[mine & scored])
    found.lowest, found.highest = cases(scores, scored, NUM_CASES), cases(scores, scored, NUM_CASES, -1)
    if scored.any():
        found.word_sums = _word_sums(shard, counted)
    return found


def _draws(paths: list[str]) -> np.ndarray:
    """A random-looking number for each caption, `(2 * len(paths),)`, which follows from its image's name."""
    marks = np.array([zlib.crc32(path.encode()) for path in paths], np.uint64)
    mixed = (np.append(marks, marks + np.uint64(1 << 32)) + np.uint64(1)) * _ODD
    mixed = (mixed ^ mixed >> np.uint64(29)) * _ODD
    return (mixed >> np.uint64(16)).astype(np.float64)


def _word_sums(shard: str, counted: np.ndarray) -> dict[str, list[float]]:
    """By kind of word, how many are scored, the sum of their scores, and how many are below 0."""
    column = _both(read_table(shard, ["caption1_words", "caption2_words"]), "_words")
    lists = pa.concat_arrays(column.chunks)
    words = lists.flatten()
    kinds = words.field("kind").dictionary_encode()
    scores = pc.cast(words.field("score"), pa.float64()).to_numpy(zero_copy_only=False)
    mine = np.repeat(counted, np.diff(lists.offsets.to_numpy())) & ~np.isnan(scores)
    kind, score = kinds.indices.to_numpy()[mine], scores[mine]
    sums = [np.bincount(kind, weights, len(kinds.dictionary)) for weights in (None, score, score < 0)]
    named = zip(kinds.dictionary.to_pylist(), *sums, strict=True)
    return {name: [int(count), float(total), int(below)] for name, count, total, below in named if count}


_COUNTERS = {"caption": count_captioned, "quality": count_assessed}


def count_shard(source: str, target: str, stage: str) -> None:
    """Write the statistics of a shard of the stage `caption` or `quality`."""
    facts = os.stat(source)  # before it is read: if it changes meanwhile, it is counted again
    content = _COUNTERS[stage](source).as_json()
    whole = {"version": _VERSION, "file": [facts.st_size, facts.st_mtime_ns], "statistics": content}
    write_text(target, json.dumps(whole))  # without indents, which Python writes ten times more slowly


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
    run_missing(count_shard, pairs, stage, num_workers, f"statistics: {stage}", short=True)
    total = Statistics()
    for shard, path in pairs:
        total.add(known.get(path) or _counted(shard, path) or Statistics())
    return total


def _counted(shard: str, path: str) -> Statistics | None:
    """The statistics that lie in `path`; `None` if they are of another version of the shard, or of this code."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        facts = os.stat(shard)
        same = (content.get("version"), content["file"]) == (_VERSION, [facts.st_size, facts.st_mtime_ns])
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
