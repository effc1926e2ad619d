"""One HTML page that shows where a retriever succeeds and fails: no server, no script, no other file."""

import html
import re

import numpy as np
import torch

from dataset_webperson.drawn.attributes import WORDS
from dataset_webperson.files import replacing
from dataset_webperson.images import jpeg_uri

from ..person_retrieval.ranking import DIRECTIONS, METRICS, QueryRanks
from ..rows import all_captions
from .encoding import RetrievalSet
from .metrics import Evaluation, query_values
from .significance import bootstrap_interval

_STYLE = """
:root { --ink: #1d2129; --soft: #667085; --line: #d5d9e0; --ground: #fff; --right: #1e9640; --wrong: #d23232;
--t2i: #2a6fdb; --i2t: #d9822b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ec; --soft: #98a2b3; --line: #3a404c; --ground: #16181d;
--t2i: #6ea3f5; --i2t: #f0a858; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 74rem; padding: 0 1rem;
color: var(--ink); background: var(--ground); }
h1 { margin-bottom: 0; } h2 { margin: 2.2rem 0 .4rem; } p { max-width: 60rem; } .soft, small { color: var(--soft); }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem; text-align: left;
border-bottom: 1px solid var(--line); } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.side { display: flex; flex-wrap: wrap; gap: 1rem 3rem; margin-top: 1.2rem; }
figure { margin: .5rem 0; } figcaption { font-weight: 600; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
.query { border-top: 1px solid var(--line); padding: .7rem 0; } .query p { margin: 0 0 .4rem; }
.strip { display: flex; flex-wrap: wrap; gap: .4rem; align-items: flex-end; }
.shot { text-align: center; font-size: 12px; } .shot img { display: block; border: 4px solid var(--wrong);
border-radius: 3px; background: #888; } .shot.right img { border-color: var(--right); }
.shot.own img { border-color: var(--soft); border-style: dashed; }
.own { margin-right: 1.2rem; } .key { font-weight: 600; }
"""
_SIDES = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


def write_retrieval_page(path, dataset, encoded: RetrievalSet, evaluation: Evaluation, title: str, num_queries=8):
    """Write the page for one model on one set.

    Args:
        path: the HTML file; replaced whole or not at all.
        dataset (`datasets.Dataset`): the set that was encoded.
        encoded ([`RetrievalSet`]): its embeddings.
        evaluation ([`Evaluation`]): of these embeddings.
        title (`str`): what was measured.
        num_queries (`int`): how many of the worst and of the best queries are shown, one a person.
    """
    captions, _ = all_captions(dataset)
    ranks = evaluation.ranks
    hits = query_values(ranks["t2i"])["R@1"]
    persons = encoded.text_person_ids.numpy()
    title = html.escape(title)
    counts = f"{len(dataset):,} images, {len(captions):,} captions, {len(np.unique(persons)):,} persons"
    worst, best = _worst_and_best(encoded, ranks["t2i"].first_match_rank, num_queries)
    shots = _Shots(dataset)
    body = f"""<h1>{title}</h1><p class="soft">{counts}</p>
{_metrics(evaluation.metrics)}
<div class="side">{_recall_curve(ranks, len(dataset), len(captions))}{_rank_histogram(ranks)}</div>
<h2>By caption length</h2>
<p class="soft">Text-to-image R@1 of captions by their number of words; whiskers are 95 % intervals.</p>
{_by_length(captions, hits, persons)}
<h2>By attribute word</h2>
<p class="soft">Text-to-image R@1 of the captions that hold a word, beside {hits.mean():.1f} of all of them.
What stands in the same captions counts too.</p>
{_by_word(captions, hits, persons)}
<h2>Worst queries</h2><p class="soft">{_KEY}</p>{_queries(worst, captions, encoded, ranks["t2i"], shots)}
<h2>Best queries</h2><p class="soft">Found first, and by the widest margin over the best wrong image.</p>
{_queries(best, captions, encoded, ranks["t2i"], shots)}"""
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>
<body>{body}</body></html>
"""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace") as file:
        file.write(page)


_KEY = (
    "The image that the caption was written for (dashed), then the ten images nearest to the caption: "
    '<span class="key" style="color: var(--right)">green</span> the person described, '
    '<span class="key" style="color: var(--wrong)">red</span> another. One query a person.'
)


def recall_at(first_match_rank: np.ndarray, max_rank: int) -> np.ndarray:
    """R@1 ... R@max_rank, 0-100, of the ranks of each query's first match; float64 `(max_rank,)`."""
    counts = np.bincount(np.minimum(first_match_rank, max_rank + 1), minlength=max_rank + 2)
    return 100.0 * np.cumsum(counts[1 : max_rank + 1]) / len(first_match_rank)


def length_groups(lengths: np.ndarray, num_groups=6) -> list[tuple[int, int]]:
    """Ranges (first, last) of lengths with about as many captions each; fewer where lengths repeat."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, num_groups + 1), method="inverted_cdf"))
    if len(edges) == 1:
        return [(int(edges[0]), int(edges[0]))]
    starts = [edges[0], *(edges[1:-1] + 1)]
    return [(int(start), int(stop)) for start, stop in zip(starts, edges[1:], strict=True)]


def attribute_words(captions: list[str]) -> dict[str, list[int]]:
    """Which captions hold which words of person attributes; in "dark blue", "blue" is not counted by itself."""
    words = {word for values in WORDS.values() for synonyms in values.values() for word in synonyms}
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    finder = re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])")
    holders: dict[str, list[int]] = {}
    for number, caption in enumerate(captions):
        for word in set(finder.findall(caption.lower())):
            holders.setdefault(word, []).append(number)
    return holders


def _worst_and_best(encoded: RetrievalSet, first_match_rank: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    margin = np.empty(len(encoded.text_embeds))
    for start in range(0, len(margin), 1024):
        scores = encoded.text_embeds[start : start + 1024] @ encoded.image_embeds.T
        right = encoded.text_person_ids[start : start + 1024, None] == encoded.image_person_ids[None]
        best_right = scores.masked_fill(~right, -torch.inf).amax(dim=1)
        margin[start : start + 1024] = (best_right - scores.masked_fill(right, -torch.inf).amax(dim=1)).numpy()
    order = np.lexsort((margin, -first_match_rank))
    found = first_match_rank[order] == 1
    persons = encoded.text_person_ids.numpy()
    return _one_a_person(order[~found], persons, count), _one_a_person(order[found][::-1], persons, count)


def _one_a_person(queries: np.ndarray, persons: np.ndarray, count: int) -> list[int]:
    first = np.sort(np.unique(persons[queries], return_index=True)[1])[:count]
    return queries[first].tolist()


def _metrics(metrics: dict) -> str:
    head = "".join(f'<th class="number">{name}</th>' for name in METRICS)
    lines = ""
    for direction, of_direction in metrics.items():
        cells = (of_direction[name] for name in METRICS)
        numbers = "".join(
            f'<td class="number"><b>{i.mean:.2f}</b> <small>{i.low:.1f} to {i.high:.1f}</small></td>' for i in cells
        )
        lines += f"<tr><td>{DIRECTIONS[direction]}</td>{numbers}</tr>"
    return f"<table><tr><th></th>{head}</tr>{lines}</table>"


def _figure(caption: str, width: int, height: int, content: str) -> str:
    return (
        f'<figure><figcaption>{caption}</figcaption><svg viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{caption}">{content}</svg></figure>'
    )


def _percent_axis(left: int, right: int, top: int, bottom: int) -> str:
    content = ""
    for percent in (0, 25, 50, 75, 100):
        y = bottom - (bottom - top) * percent / 100
        content += f'<line x1="{left}" x2="{right}" y1="{y}" y2="{y}" stroke="var(--line)"/>'
        content += f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{percent}</text>'
    return content


def _legend(left: int, y: int) -> str:
    content = ""
    for number, (direction, words) in enumerate(DIRECTIONS.items()):
        x = left + 130 * number
        content += f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="var(--{direction})"/>'
        content += f'<text x="{x + 18}" y="{y}">{words}</text>'
    return content


def _recall_curve(ranks: dict[str, QueryRanks], num_images: int, num_captions: int) -> str:
    left, right, top, bottom = 40, 490, 12, 230
    last = min(100, max(num_images, num_captions))
    content = _percent_axis(left, right, top, bottom)

    def x_of(rank):
        return left + (right - left) * np.log(rank) / max(np.log(last), 1e-9)

    for rank in (1, 2, 5, 10, 20, 50, 100):
        if rank <= last:
            content += f'<text x="{x_of(rank):.1f}" y="{bottom + 18}" text-anchor="middle">{rank}</text>'
    for direction, found in ranks.items():
        recalls = recall_at(found.first_match_rank, last)
        points = " ".join(
            f"{x_of(rank):.1f},{bottom - (bottom - top) * recall / 100:.1f}" for rank, recall in enumerate(recalls, 1)
        )
        content += f'<polyline points="{points}" fill="none" stroke="var(--{direction})" stroke-width="2.5"/>'
    return _figure("Recall within the first k (%)", 510, 280, content + _legend(left, 272))


def _rank_histogram(ranks: dict[str, QueryRanks]) -> str:
    left, right, top, bottom = 40, 490, 12, 230
    worst = max(int(found.first_match_rank.max()) for found in ranks.values())
    lasts = [1, *(side for side in _SIDES if side < worst), max(worst, 2)]
    step = (right - left) / len(lasts)
    content = _percent_axis(left, right, top, bottom)
    for number, last in enumerate(lasts):
        first = lasts[number - 1] + 1 if number else 1
        x = left + step * number
        label = f"{last}" if first == last else f"{first}-{last}"
        content += f'<text x="{x + step / 2:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>'
        for place, (direction, found) in enumerate(ranks.items()):
            inside = (found.first_match_rank >= first) & (found.first_match_rank <= last)
            height = (bottom - top) * inside.mean()
            content += (
                f'<rect x="{x + step * (0.15 + 0.35 * place):.1f}" y="{bottom - height:.1f}" '
                f'width="{step * 0.33:.1f}" height="{height:.1f}" fill="var(--{direction})">'
                f"<title>rank {label}: {inside.sum():,} of {len(inside):,}</title></rect>"
            )
    return _figure("Rank of the first match (% of queries)", 510, 280, content + _legend(left, 272))


def _by_length(captions: list[str], hits: np.ndarray, persons: np.ndarray) -> str:
    lengths = np.array([len(caption.split()) for caption in captions])
    groups = length_groups(lengths)
    left, top, bottom, step = 40, 12, 190, 105
    right = left + step * len(groups)
    content = _percent_axis(left, right, top, bottom)
    for number, (first, last) in enumerate(groups):
        inside = (lengths >= first) & (lengths <= last)
        interval = bootstrap_interval(hits[inside], groups=persons[inside], num_resamples=2000)
        x = left + step * (number + 0.5)
        y, high, low = (bottom - (bottom - top) * v / 100 for v in (interval.mean, interval.high, interval.low))
        content += f'<rect x="{x - 24}" y="{y:.1f}" width="48" height="{bottom - y:.1f}" fill="var(--t2i)"/>'
        content += f'<line x1="{x}" x2="{x}" y1="{high:.1f}" y2="{low:.1f}" stroke="var(--ink)" stroke-width="1.5"/>'
        content += f'<text x="{x + 5}" y="{high - 4:.1f}">{interval.mean:.0f}</text>'
        label = f"{first} words" if first == last else f"{first}-{last} words"
        content += f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{label}</text>'
        content += f'<text x="{x}" y="{bottom + 34}" text-anchor="middle">n = {inside.sum():,}</text>'
    return _figure("", right + 10, 235, content).replace("<figcaption></figcaption>", "")


def _by_word(captions: list[str], hits: np.ndarray, persons: np.ndarray, num_words=15) -> str:
    fewest = max(10, len(captions) // 200)
    found = []
    for word, holders in attribute_words(captions).items():
        if len(holders) >= fewest:
            found.append((hits[holders].mean(), word, holders))
    if not found:
        return f"<p>No attribute word stands in {fewest} captions or more.</p>"
    found.sort(key=lambda item: (item[0], item[1]))
    half = min(num_words, -(-len(found) // 2))
    tables = ""
    for name, part in (("hardest", found[:half]), ("easiest", found[half:][-half:][::-1])):
        lines = ""
        for mean, word, holders in part:
            interval = bootstrap_interval(hits[holders], groups=persons[holders], num_resamples=2000)
            lines += (
                f'<tr><td>{html.escape(word)}</td><td class="number">{len(holders):,}</td><td class="number">'
                f"<b>{mean:.1f}</b> <small>{interval.low:.0f} to {interval.high:.0f}</small></td></tr>"
            )
        head = f'<tr><th>{name}</th><th class="number">captions</th><th class="number">R@1</th></tr>'
        tables += f"<table>{head}{lines}</table>" if part else ""
    return f'<div class="side">{tables}</div>'


def _queries(queries: list[int], captions: list[str], encoded: RetrievalSet, ranks: QueryRanks, shots) -> str:
    if not queries:
        return "<p>None.</p>"
    top = (encoded.text_embeds[queries] @ encoded.image_embeds.T).topk(min(10, len(encoded.image_embeds)))
    content = ""
    for query, scores, images in zip(queries, top.values.tolist(), top.indices.tolist(), strict=True):
        own = int(encoded.text_image_index[query])
        strip = f'<div class="shot own">{shots(own)}own image</div>'
        for score, image in zip(scores, images, strict=True):
            right = encoded.image_person_ids[image] == encoded.text_person_ids[query]
            mark = "&#10003;" if right else "&#10007;"
            strip += f'<div class="shot{" right" if right else ""}">{shots(image)}{score:.3f} {mark}</div>'
        content += (
            f'<div class="query"><p>{html.escape(captions[query])} <span class="soft">First match at rank '
            f'{int(ranks.first_match_rank[query]):,}.</span></p><div class="strip">{strip}</div></div>'
        )
    return content


class _Shots:
    """Images of a data set as `<img>` with the picture inside, each made once."""

    def __init__(self, dataset, height=128):
        self.dataset, self.height, self.made = dataset, height, {}

    def __call__(self, index: int) -> str:
        if index not in self.made:
            row = self.dataset[index]
            image = row["image"].convert("RGB")
            size = (max(round(self.height * image.width / image.height), 1), self.height)
            address = jpeg_uri(image.resize(size), 82)
            name = html.escape(row["image_path"], quote=True)
            self.made[index] = (
                f'<img src="{address}" width="{size[0]}" height="{size[1]}" alt="{name}" title="{name}">'
            )
        return self.made[index]
