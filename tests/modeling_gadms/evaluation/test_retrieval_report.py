"""The retrieval page: the right queries, frames and groups, and nothing from outside."""

import re
from html.parser import HTMLParser

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_rows

from modeling_gadms.evaluation.encoding import RetrievalSet
from modeling_gadms.evaluation.metrics import evaluate_embeddings
from modeling_gadms.evaluation.report_page import attribute_words, length_groups, recall_at, write_retrieval_page


def random_set(rows, noise, seed=0):
    """Captions near their own image's embedding, two per row."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.nn.functional.normalize(torch.randn(len(rows), 16, generator=generator), dim=-1)
    index = torch.arange(len(rows)).repeat_interleave(2)
    texts = images[index] + noise * torch.randn(len(index), 16, generator=generator)
    persons = torch.tensor(rows["person_id"][:])
    return RetrievalSet(images, torch.nn.functional.normalize(texts, dim=-1), persons, persons[index], index)


class Page(HTMLParser):
    """The frames and the addresses of a page whose tags are all closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.shots, self.captions = [], [], [], []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        self.addresses += [value for name, value in attributes.items() if name in ("src", "href")]
        if attributes.get("class") == "query":
            self.shots.append([])
        if (attributes.get("class") or "").startswith("shot"):
            self.shots[-1].append((attributes["class"], None))
        if tag == "img":
            self.shots[-1][-1] = (self.shots[-1][-1][0], attributes["title"])

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    rows = tiny_rows(24)
    encoded = random_set(rows, noise=0.6)
    evaluation = evaluate_embeddings(encoded, num_resamples=100)
    path = tmp_path_factory.mktemp("report") / "page.html"
    write_retrieval_page(path, rows, encoded, evaluation, "a <b> model", num_queries=3)
    return rows, encoded, evaluation, path.read_text(encoding="utf-8")


def test_the_page_needs_no_other_file_and_escapes_what_it_is_given(written):
    *_, text = written
    page = Page(text)
    assert page.addresses.count("data:,") == 1  # the icon, without which a browser asks the server for one
    pictures = [address for address in page.addresses if not address.startswith("#") and address != "data:,"]
    assert pictures and all(address.startswith("data:image/jpeg;base64,") for address in pictures)
    assert text.count("<script") == 1 and not re.search(r"https?:|url\(|@import", text)
    assert "<h1>a &lt;b&gt; model</h1>" in text and "24 images, 48 captions, 12 persons" in text


def test_worst_and_best_queries_are_those_of_a_slow_search_and_framed_right(written):
    rows, encoded, evaluation, text = written
    ranks = evaluation.ranks["t2i"].first_match_rank
    scores = (encoded.text_embeds @ encoded.image_embeds.T).numpy()
    right = encoded.text_person_ids[:, None].numpy() == encoded.image_person_ids[None].numpy()
    margins = [row[own].max() - row[~own].max() for row, own in zip(scores, right, strict=True)]

    def first_of_each_person(queries):
        seen, kept = set(), []
        for query in queries:
            person = int(encoded.text_person_ids[query])
            if person not in seen:
                seen.add(person)
                kept.append(query)
        return kept[:3]

    worst = sorted((q for q in range(48) if ranks[q] > 1), key=lambda q: (-ranks[q], margins[q]))
    best = sorted((q for q in range(48) if ranks[q] == 1), key=lambda q: -margins[q])
    expected = first_of_each_person(worst) + first_of_each_person(best)
    assert len(expected) == 6
    shots = Page(text).shots
    paths = rows["image_path"][:]
    for query, shown in zip(expected, shots, strict=True):
        assert shown[0] == ("shot own", paths[int(encoded.text_image_index[query])])
        order = np.argsort(-scores[query], kind="stable")[:10]
        assert shown[1:] == [("shot right" if right[query, i] else "shot", paths[i]) for i in order]
        row = rows[int(encoded.text_image_index[query])]
        caption = row["caption1"] if query % 2 == 0 else row["caption2"]
        assert f'<p dir="auto">{caption} <span' in text and f"First match at rank {ranks[query]}." in text


def test_the_figures_on_the_page_are_those_of_the_evaluation(written):
    *_, evaluation, text = written
    for metrics in evaluation.metrics.values():
        for interval in metrics.values():
            assert f"<b>{interval.mean:.2f}</b> <small>{interval.low:.1f} to {interval.high:.1f}</small>" in text
    ranks = evaluation.ranks["t2i"].first_match_rank
    assert f"<title>rank 1: {(ranks == 1).sum()} of 48</title>" in text


def test_a_perfect_model_has_no_worst_queries_and_equal_scores_no_best(tmp_path):
    rows = tiny_rows(8)
    for encoded, missing in ((random_set(rows, noise=0), "Worst"), (random_set(rows, noise=0), "Best")):
        if missing == "Best":
            encoded.image_embeds = torch.ones(8, 16) / 4
        write_retrieval_page(
            tmp_path / "page.html", rows, encoded, evaluate_embeddings(encoded, num_resamples=10), "model"
        )
        text = (tmp_path / "page.html").read_text()
        assert re.search(f"<h2>{missing} queries</h2>.*?</p>\\s*<p>None.</p>", text, re.DOTALL)
        assert text.count("<p>None.</p>") == 1


def test_recall_is_a_count_of_ranks():
    ranks = np.random.default_rng(0).integers(1, 30, 50)
    expected = [100 * sum(rank <= k for rank in ranks) / 50 for k in range(1, 21)]
    np.testing.assert_allclose(recall_at(ranks, 20), expected)


@pytest.mark.parametrize("lengths", [[5], [4, 4, 4], [1, 2], list(range(60)), [7] * 50 + [8] * 5 + [90]])
def test_every_caption_length_is_in_exactly_one_group(lengths):
    groups = length_groups(np.array(lengths))
    assert len(groups) <= 6
    for length in lengths:
        assert sum(first <= length <= last for first, last in groups) == 1
    if len(set(lengths)) > 50:
        sizes = [sum(first <= length <= last for length in lengths) for first, last in groups]
        assert len(groups) == 6 and max(sizes) <= 2 * min(sizes)


def test_attribute_words_are_whole_and_longest():
    captions = ["A man in a dark blue t-shirt.", "Blue trousers, blue boots", "a bluest thing, and tee"]
    found = attribute_words(captions)
    assert found["dark blue"] == [0] and found["blue"] == [1] and found["t-shirt"] == [0] and found["tee"] == [2]
    assert found["man"] == [0] and "shirt" not in found


def test_a_single_image_makes_a_page(tmp_path):
    rows = tiny_rows(1)
    encoded = random_set(rows, noise=0.1)
    write_retrieval_page(
        tmp_path / "page.html", rows, encoded, evaluate_embeddings(encoded, num_resamples=10), "model"
    )
    shots = Page((tmp_path / "page.html").read_text()).shots
    assert shots == [[("shot own", "000.png"), ("shot right", "000.png")]]
    figures = (tmp_path / "page.html").read_text().split("<main")[1].split("<h2>Worst queries")[0]
    assert "R@10" in figures and "nan" not in figures.lower()


def test_images_of_any_mode_and_captions_of_any_script_are_shown(tmp_path):
    rows = []
    for number, mode in enumerate(("L", "RGBA", "P", "CMYK")):
        image = Image.new(mode, (7, 20 + number), 5)
        rows.append({"image": image, "image_path": f'{number} "q".png', "captions": [f"人 <i>{number}</i>"]})
    features = datasets.Features(
        image=datasets.Image(), image_path=datasets.Value("string"), captions=datasets.List(datasets.Value("string"))
    )
    rows = datasets.Dataset.from_list(rows, features)
    images = torch.eye(4)
    ids = torch.arange(4)
    encoded = RetrievalSet(images, images, ids, ids, ids)
    write_retrieval_page(
        tmp_path / "page.html", rows, encoded, evaluate_embeddings(encoded, num_resamples=10), "model"
    )
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(Page(text).shots) == 4 and "人 &lt;i&gt;0&lt;/i&gt;" in text and "<i>" not in text
