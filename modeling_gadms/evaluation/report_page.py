"""One self-contained HTML page that shows where a retriever succeeds and where it fails."""

import os
import re
from dataclasses import dataclass, replace

import numpy as np
import torch
from datasets import Dataset
from markupsafe import Markup

from dataset_webperson.drawn.attributes import WORDS
from dataset_webperson.pages import Picture, embed, write_page

from ..person_retrieval.ranking import DIRECTIONS, METRICS, QueryRanks
from ..rows import all_captions
from .encoding import RetrievalSet
from .metrics import Evaluation, query_values
from .significance import Interval, bootstrap_interval


@dataclass(frozen=True)
class _Frame:
    """The plane of a chart, in the units of its SVG; percentages go up its left side."""

    left: int
    right: int
    top: int
    bottom: int

    def y(self, percent: float) -> float:
        """The height of a percentage."""
        return self.bottom - (self.bottom - self.top) * percent / 100


# The last ranks of the bars of the histogram; further ones are added while there are ranks beyond.
_BAR_ENDS = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_CHART = _Frame(left=40, right=438, top=12, bottom=210)
_NUM_NEAREST = 10  # images shown with a query


def write_retrieval_page(
    path: str | os.PathLike,
    dataset: Dataset,
    encoded: RetrievalSet,
    evaluation: Evaluation,
    title: str,
    num_queries: int = 8,
    note: str | None = None,
) -> None:
    """Write the page for one model on one set.

    Args:
        path: the HTML file; replaced whole or not at all.
        dataset (`datasets.Dataset`): the set that was encoded.
        encoded ([`RetrievalSet`]): its embeddings.
        evaluation ([`Evaluation`]): the evaluation of these embeddings.
        title (`str`): what was measured.
        num_queries (`int`): how many of the worst and of the best queries are shown, one per person.
        note (`str`, *optional*): what a reader must know of the figures, above them.
    """
    captions, _ = all_captions(dataset)
    ranks = evaluation.ranks
    hits = query_values(ranks["t2i"])["R@1"]
    persons = encoded.text_person_ids.numpy()
    worst, best = _worst_and_best(encoded, ranks["t2i"].first_match_rank, num_queries)
    pictures = _Pictures(dataset)
    lengths = _by_length(captions, hits, persons)
    fewest = max(10, len(captions) // 200)
    hardest, easiest = _by_word(captions, hits, persons, fewest)
    write_page(
        path,
        "retrieval.html",
        title=title,
        counts=f"{len(dataset):,} images, {len(captions):,} captions, {len(np.unique(persons)):,} persons",
        note=note,
        directions=DIRECTIONS,
        metric_names=METRICS,
        metric_heads=[f"#{name}" for name in METRICS],
        evaluation=evaluation,
        recall_curve=_recall_curve(ranks, len(dataset), len(captions)),
        rank_histogram=_rank_histogram(ranks),
        lengths=lengths,
        length_chart=_length_chart(lengths),
        mean_hits=hits.mean(),
        fewest=fewest,
        hardest=hardest,
        easiest=easiest,
        worst=_shown_queries(worst, captions, encoded, ranks["t2i"], pictures),
        best=_shown_queries(best, captions, encoded, ranks["t2i"], pictures),
    )


def recall_at(first_match_rank: np.ndarray, max_rank: int) -> np.ndarray:
    """R@1 to R@max_rank, 0-100, from the rank of each query's first match; float64 `(max_rank,)`."""
    counts = np.bincount(np.minimum(first_match_rank, max_rank + 1), minlength=max_rank + 2)
    return 100.0 * np.cumsum(counts[1 : max_rank + 1]) / len(first_match_rank)


def length_groups(lengths: np.ndarray, num_groups: int = 6) -> list[tuple[int, int]]:
    """Ranges (first, last) of lengths with about as many captions each; fewer where lengths repeat."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, num_groups + 1), method="inverted_cdf"))
    if len(edges) == 1:
        return [(int(edges[0]), int(edges[0]))]
    starts = [edges[0], *(edges[1:-1] + 1)]
    return [(int(start), int(stop)) for start, stop in zip(starts, edges[1:], strict=True)]


def attribute_words(captions: list[str]) -> dict[str, list[int]]:
    """Attribute word -> the captions that hold it; in "dark blue", "blue" is not counted by itself."""
    words = {word for values in WORDS.values() for synonyms in values.values() for word in synonyms}
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    finder = re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])")
    holders: dict[str, list[int]] = {}
    for number, caption in enumerate(captions):
        for word in set(finder.findall(caption.lower())):
            holders.setdefault(word, []).append(number)
    return holders


def _worst_and_best(encoded: RetrievalSet, first_match_rank: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """The queries that fail worst and those that succeed best, at most `count` of each."""
    margin = _margins(encoded)
    # Worst first: by the rank of the first match, and within a rank by the margin.
    order = np.lexsort((margin, -first_match_rank))
    found = first_match_rank[order] == 1
    persons = encoded.text_person_ids.numpy()
    return _one_per_person(order[~found], persons, count), _one_per_person(order[found][::-1], persons, count)


def _margins(encoded: RetrievalSet, block: int = 1024) -> np.ndarray:
    """How far each caption's best right image lies above its best wrong one; float64 `(num_captions,)`."""
    margins = np.empty(len(encoded.text_embeds))
    for start in range(0, len(margins), block):
        part = slice(start, start + block)
        scores = encoded.text_embeds[part] @ encoded.image_embeds.T
        right = encoded.text_person_ids[part, None] == encoded.image_person_ids[None]

        best_right = scores.masked_fill(~right, -torch.inf).amax(dim=1)
        best_wrong = scores.masked_fill(right, -torch.inf).amax(dim=1)
        margins[part] = (best_right - best_wrong).numpy()
    return margins


def _one_per_person(queries: np.ndarray, persons: np.ndarray, count: int) -> list[int]:
    """The first query of each person, in the order of `queries`."""
    first = np.sort(np.unique(persons[queries], return_index=True)[1])[:count]
    return queries[first].tolist()


def _svg(label: str, height: int, content: list[str]) -> Markup:
    """A chart as wide as its box. Nothing here is escaped: pass only numbers and fixed words."""
    return Markup(f'<svg viewBox="0 0 460 {height}" role="img" aria-label="{label}">{"".join(content)}</svg>')


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{name}>{text}</text>'


def _percent_axis(frame: _Frame) -> list[str]:
    content = []
    for percent in (0, 25, 50, 75, 100):
        y = frame.y(percent)
        content.append(f'<line class="grid" x1="{frame.left}" x2="{frame.right}" y1="{y}" y2="{y}"/>')
        content.append(_text(frame.left - 6, y + 4, str(percent), "end"))
    return content


def _recall_curve(ranks: dict[str, QueryRanks], num_images: int, num_captions: int) -> Markup:
    last = min(100, max(num_images, num_captions))
    content = _percent_axis(_CHART)

    def x_of(rank: int) -> float:
        return _CHART.left + (_CHART.right - _CHART.left) * float(np.log(rank) / max(np.log(last), 1e-9))

    for rank in (1, 2, 5, 10, 20, 50, 100):
        if rank <= last:
            content.append(_text(x_of(rank), _CHART.bottom + 19, str(rank)))
    for direction, found in ranks.items():
        recalls = recall_at(found.first_match_rank, last)
        points = " ".join(f"{x_of(rank):.1f},{_CHART.y(recall):.1f}" for rank, recall in enumerate(recalls, 1))
        content.append(f'<polyline class="{direction}" points="{points}"/>')
    return _svg("Recall within the first k, in percent of queries", 238, content)


def _rank_histogram(ranks: dict[str, QueryRanks]) -> Markup:
    worst = max(int(found.first_match_rank.max()) for found in ranks.values())
    lasts = [1, *(end for end in _BAR_ENDS if end < worst), max(worst, 2)]
    step = (_CHART.right - _CHART.left) / len(lasts)
    content = _percent_axis(_CHART)
    for number, (last, first) in enumerate(zip(lasts, [1, *(end + 1 for end in lasts)], strict=False)):
        x = _CHART.left + step * number
        # The numbers below many bars would run into each other, written in full or all of them.
        short = f"{last / 1000:.3g}k" if last >= 1000 and len(lasts) > 8 else f"{last:,}"
        if len(lasts) <= 8 or number % 2 == 0:
            content.append(_text(x + step / 2, _CHART.bottom + 19, short))
        label = f"{last}" if first == last else f"{first}-{last}"
        for place, (direction, found) in enumerate(ranks.items()):
            inside = (found.first_match_rank >= first) & (found.first_match_rank <= last)
            y = _CHART.y(100 * float(inside.mean()))
            content.append(
                f'<rect class="{direction}" x="{x + step * (0.15 + 0.35 * place):.1f}" y="{y:.1f}" '
                f'width="{step * 0.33:.1f}" height="{_CHART.bottom - y:.1f}">'
                f"<title>rank {label}: {inside.sum():,} of {len(inside):,}</title></rect>"
            )
    return _svg("Rank of the first match, in percent of queries", 238, content)


@dataclass(frozen=True)
class _LengthHits:
    """How often the captions of some lengths find their person first."""

    words: str
    captions: int
    hits: Interval


def _by_length(captions: list[str], hits: np.ndarray, persons: np.ndarray) -> list[_LengthHits]:
    lengths = np.array([len(caption.split()) for caption in captions])
    groups = []
    for first, last in length_groups(lengths):
        inside = (lengths >= first) & (lengths <= last)
        interval = bootstrap_interval(hits[inside], groups=persons[inside], num_resamples=2000)
        words = f"{first}" if first == last else f"{first}-{last}"
        groups.append(_LengthHits(words, int(inside.sum()), interval))
    return groups


def _length_chart(groups: list[_LengthHits]) -> Markup:
    step = (_CHART.right - _CHART.left) / max(len(groups), 4)
    content = _percent_axis(_CHART)
    for number, group in enumerate(groups):
        x = _CHART.left + step * (number + 0.5)
        y, high, low = (_CHART.y(value) for value in (group.hits.mean, group.hits.high, group.hits.low))
        content += [
            f'<rect class="t2i" x="{x - 20:.1f}" y="{y:.1f}" width="40" height="{_CHART.bottom - y:.1f}"/>',
            f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{high:.1f}" y2="{low:.1f}"/>',
            _text(x, _CHART.bottom + 19, group.words),
        ]
    content.append(_text((_CHART.left + _CHART.right) / 2, _CHART.bottom + 40, "words per caption"))
    return _svg("Text-to-image R@1 by the number of words, in percent", 258, content)


@dataclass(frozen=True)
class _WordHits:
    """How often the captions that hold an attribute word find their person first."""

    word: str
    captions: int
    hits: Interval


def _by_word(
    captions: list[str], hits: np.ndarray, persons: np.ndarray, fewest: int, num_words: int = 15
) -> tuple[list[_WordHits], list[_WordHits]]:
    """The hardest and the easiest of the attribute words that `fewest` captions or more hold."""
    found = []
    for word, holders in attribute_words(captions).items():
        if len(holders) >= fewest:
            found.append((hits[holders].mean(), word, holders))
    found.sort(key=lambda item: (item[0], item[1]))
    half = min(num_words, -(-len(found) // 2))

    def measured(part: list[tuple[float, str, list[int]]]) -> list[_WordHits]:
        return [
            _WordHits(
                word, len(holders), bootstrap_interval(hits[holders], groups=persons[holders], num_resamples=2000)
            )
            for _, word, holders in part
        ]

    return measured(found[:half]), measured(found[half:][-half:][::-1])


@dataclass(frozen=True)
class _FoundImage:
    """One of the images nearest to a caption."""

    picture: Picture
    score: float
    is_right: bool


@dataclass(frozen=True)
class _ShownQuery:
    """A caption, the image it was written for, and the images nearest to it."""

    caption: str
    rank: int
    own: Picture
    found: list[_FoundImage]


def _shown_queries(
    queries: list[int], captions: list[str], encoded: RetrievalSet, ranks: QueryRanks, pictures: "_Pictures"
) -> list[_ShownQuery]:
    if not queries:
        return []
    scores = encoded.text_embeds[queries] @ encoded.image_embeds.T
    top = scores.topk(min(_NUM_NEAREST, len(encoded.image_embeds)))
    shown = []
    for query, values, images in zip(queries, top.values.tolist(), top.indices.tolist(), strict=True):
        found = []
        for place, (score, image) in enumerate(zip(values, images, strict=True), 1):
            is_right = bool(encoded.image_person_ids[image] == encoded.text_person_ids[query])
            who = "the person described" if is_right else "another person"
            found.append(_FoundImage(pictures(image, f"rank {place}, {who}"), score, is_right))
        own = pictures(int(encoded.text_image_index[query]), "own image")
        shown.append(_ShownQuery(captions[query], int(ranks.first_match_rank[query]), own, found))
    return shown


class _Pictures:
    """The images of a data set as pictures of the page, each encoded once."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._encoded: dict[int, Picture] = {}

    def __call__(self, index: int, what: str) -> Picture:
        if index not in self._encoded:
            row = self._dataset[index]
            self._encoded[index] = embed(row["image"].convert("RGB"), row["image_path"])
        picture = self._encoded[index]
        return replace(picture, text=f"{what}: {picture.name}")
