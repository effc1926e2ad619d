"""Results in parts: each group has the queries that a loop over all captions finds, and their figures."""

import re

import numpy as np
import pytest
from tiny import tiny_rows

from dataset_webperson.drawn.attributes import WORDS
from modeling_gadms.evaluation.breakdown import (
    CAMERA,
    LENGTH,
    NO_CAMERAS,
    PERSON,
    WORD,
    break_down,
    breakdown_table,
    cameras_of,
    query_groups,
)
from modeling_gadms.evaluation.metrics import evaluate_ranks
from modeling_gadms.person_retrieval.ranking import rank_queries


def with_names(rows, names):
    return rows.remove_columns("image_path").add_column("image_path", names)


@pytest.fixture(scope="module")
def setting():
    rows = tiny_rows(40)
    rows = with_names(rows, [f"sub/{number // 2:04d}_c{number % 3 + 1}_{number:04d}.jpg" for number in range(40)])
    rows = rows.map(lambda row, number: {"caption1": row["caption1"] + " and so on" * (number % 3)}, with_indices=True)
    rng = np.random.default_rng(0)
    texts, images = (rng.standard_normal((count, 8)).astype(np.float32) for count in (80, 40))
    persons = np.array(rows["person_id"][:])
    ranks = rank_queries(texts, images, persons.repeat(2), persons)
    evaluation = evaluate_ranks({"t2i": ranks}, {"t2i": persons.repeat(2)}, num_resamples=10)
    return rows, evaluation, break_down(rows, evaluation)


def test_every_group_has_the_figures_of_a_loop_over_all_captions(setting):
    rows, evaluation, found = setting
    ranks = evaluation.ranks["t2i"]
    known = {synonym for values in WORDS.values() for synonyms in values.values() for synonym in synonyms}
    seen = dict.fromkeys((WORD, LENGTH, CAMERA, PERSON), 0)
    for group in found["groups"]:
        hits, precisions, persons, query = [], [], set(), 0
        for row in rows:
            for caption in (row["caption1"], row["caption2"]):
                if group["by"] == WORD:
                    others = [word for word in known if group["group"] in word and word != group["group"]]
                    text = caption.lower()
                    for longer in sorted(others, key=len, reverse=True):
                        text = re.sub(rf"(?<![\w-]){re.escape(longer)}(?![\w-])", "", text)
                    inside = re.search(rf"(?<![\w-]){re.escape(group['group'])}(?![\w-])", text) is not None
                elif group["by"] == LENGTH:
                    first, last = map(int, group["group"].split("-"))
                    inside = first <= len(caption.split()) <= last
                elif group["by"] == CAMERA:
                    inside = f"_c{group['group']}_" in row["image_path"]
                else:
                    inside = str(row["person_id"]) == group["group"]
                if inside:
                    hits.append(100.0 * (ranks.first_match_rank[query] == 1))
                    precisions.append(100.0 * ranks.average_precision[query])
                    persons.add(row["person_id"])
                query += 1
        seen[group["by"]] += 1
        assert (group["queries"], group["persons"]) == (len(hits), len(persons)), group
        means = group["R@1"].mean, group["mAP"].mean
        assert means == pytest.approx((np.mean(hits), np.mean(precisions)))
        assert group["mAP"].low <= group["mAP"].mean <= group["mAP"].high
        assert group["by"] != WORD or len(hits) >= 10
    assert seen[CAMERA] == 3 and seen[PERSON] == 20 and min(seen.values()) > 1


def test_the_table_has_hard_words_first_and_says_how_many_persons_are_never_found(setting):
    found = setting[2]
    table = breakdown_table(found, "Parts")
    of_words = [float(row[4].split()[0]) for row in table.rows if row[0] == WORD]
    assert of_words == sorted(of_words) and sum(row[0] == PERSON for row in table.rows) == 10
    never = sum(group["R@1"].mean == 0 for group in found["groups"] if group["by"] == PERSON)
    assert f"Of 20 persons, {never} are first for none" in table.notes[0] and len(table.notes) == 1


NAMES = [("0002_c3s1_{:06d}_03.jpg", 3), ("0000_c14_{:04d}.jpg", 14), ("0001_{:03d}_07_0303morning_8_0.jpg", 7)]


@pytest.mark.parametrize("name, camera", NAMES)
def test_cameras_are_read_from_the_names_of_the_field_s_sets(name, camera):
    rows = tiny_rows(4)
    assert cameras_of(with_names(rows, [name.format(number) for number in range(4)])) == [camera] * 4
    assert cameras_of(with_names(rows, [name.format(0), name.format(1), "x.jpg", "y.jpg"])) is None
    assert cameras_of(rows.add_column("camera", [5, 6, 5, 6])) == [5, 6, 5, 6]


def test_a_set_without_cameras_says_so():
    rows = tiny_rows(4)
    persons = np.array(rows["person_id"][:])
    embeds = np.eye(8, dtype=np.float32)
    ranks = rank_queries(embeds, embeds[::2], persons.repeat(2), persons)
    found = break_down(rows, evaluate_ranks({"t2i": ranks}, {"t2i": persons.repeat(2)}, num_resamples=10))
    assert found["notes"] == [NO_CAMERAS] and CAMERA not in {group["by"] for group in found["groups"]}


def test_one_length_is_no_range():
    rows = tiny_rows(10).map(lambda _: {"caption1": "a woman in red", "caption2": "a man in blue"})
    (name,) = query_groups(rows)[LENGTH]
    assert name == "4"
