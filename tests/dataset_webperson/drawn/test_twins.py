"""Twins differ in one attribute that every view shows and every caption names."""

import json
from collections import Counter
from dataclasses import asdict

import pytest

from dataset_webperson import WebPerson, WebPersonConfig
from dataset_webperson.drawn.attributes import far_values, near, sample_person, value_of_words
from dataset_webperson.drawn.rows import generate_rows
from dataset_webperson.drawn.twins import twin_of

OPTIONS = {"image_size": (32, 16), "views_per_person": 4, "noise_rate": 0.5, "seed": 0}


@pytest.fixture(scope="module")
def pairs():
    """Person, twin and attribute."""
    people = [sample_person(0, "test", index) for index in range(300)]
    return [(person, *twin_of(person, 0, "test", index)) for index, person in enumerate(people)]


@pytest.fixture(scope="module")
def rows():
    return list(generate_rows("test", 0, 16, twins=True, **OPTIONS))


def test_twins_differ_in_one_field_of_values_that_are_plainly_apart(pairs):
    seen = Counter()
    for person, twin, attribute in pairs:
        (field,) = [name for name, value in asdict(person).items() if asdict(twin)[name] != value]
        assert asdict(twin)[field] in far_values(attribute, asdict(person)[field])
        assert field.replace("_", ".") in (attribute, attribute.replace("person.", ""), attribute.split(".")[0])
        seen[attribute] += 1
    assert len(seen) > 15 and max(seen.values()) < len(pairs) / 5, seen


def test_no_twin_contradicts_itself(pairs):
    for _, twin, attribute in pairs:
        outer = [twin.coat_color] if twin.coat != "none" else [twin.top_color, twin.dress_color]
        legs = [twin.lower_color, twin.dress_color]
        hair = {"blonde": "yellow", "ginger": "orange", "none": "beige"}.get(twin.hair_color, twin.hair_color)
        touching = {"shoes": legs, "bag": outer + legs, "carry": outer + legs, "hat": [hair]}
        touching["coat"] = [twin.top_color, *legs]
        for thing, others in touching.items():
            color = getattr(twin, f"{thing}_color")
            assert color == "none" or not any(near("top.color", color, other) for other in others), (thing, twin)
        assert (twin.hair_color == "none") == (twin.hair_length == "bald")
        assert (twin.carry_color == "none") == (twin.carry in ("none", "phone"))
        sleeves = {"t-shirt": ["short"], "tank top": ["sleeveless"], "shirt": ["long", "short"], "none": ["none"]}
        assert twin.top_sleeve in sleeves.get(twin.top, ["long"])
        if twin.carry == "shopping bag" and attribute in ("bag.kind", "carry.kind"):
            assert twin.bag not in ("handbag", "shoulder bag")


def test_every_caption_names_what_its_twin_has_not(rows):
    by_person = {}
    for row in rows:
        by_person.setdefault(row["person_id"], []).append(row)
    assert {own[0]["twin_person_id"] for own in by_person.values()} == set(by_person)
    for person, own in by_person.items():
        assert {row["twin_person_id"] for row in own} == {person ^ 1}
        for row, beside in zip(own, by_person[person ^ 1], strict=True):
            truth, other = json.loads(row["attributes"]), json.loads(beside["attributes"])
            changing = {"pose.action", "view.direction"}
            (differing,) = [name for name in truth if truth[name] != other[name] and name not in changing]
            for name in ("caption1", "caption2"):
                (word,) = [word for word in row[f"{name}_words"] if word["attribute"] == differing]
                said = row[name][word["start"] : word["end"]].lower()
                assert value_of_words(differing, said) == truth[differing] and not word["is_false"]
            assert row["image"]["bytes"] != beside["image"]["bytes"]


def test_the_even_persons_and_the_training_set_stay_as_they_are(rows):
    plain = list(generate_rows("test", 0, 16, **OPTIONS))
    for row, before in zip(rows, plain, strict=True):
        assert (row["attributes"] == before["attributes"]) == (row["person_id"] % 2 == 0)
        assert "twin_person_id" not in before
    trained, with_twins = (list(generate_rows("train", 0, 2, twins=twins, **OPTIONS)) for twins in (False, True))
    assert with_twins == [{**row, "twin_person_id": None} for row in trained]
    assert list(generate_rows("test", 7, 8, twins=True, **OPTIONS)) == rows[28:32]


def test_the_builder_lists_the_twins_of_test(tmp_path, rows):
    sizes = {"num_train_persons": 2, "num_validation_persons": 2, "num_test_persons": 16}
    builder = WebPerson(config_name="synthetic", cache_dir=tmp_path, twins=True, **OPTIONS, **sizes)
    builder.download_and_prepare()
    for split, expected in (("test", [row["twin_person_id"] for row in rows]), ("validation", [None] * 8)):
        assert builder.as_dataset(split=split)["twin_person_id"][:] == expected
    assert WebPerson(config_name="synthetic", cache_dir=tmp_path, **OPTIONS, **sizes).cache_dir != builder.cache_dir
    for options in ({"num_test_persons": 5}, {"twins": 1}):
        with pytest.raises(ValueError, match="twins"):
            WebPersonConfig(**{"twins": True} | options)
