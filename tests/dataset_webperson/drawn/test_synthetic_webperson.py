"""The synthetic WebPerson: true where it says so, false where it says so, and the same everywhere."""

import hashlib
import io
import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image, ImageDraw

from dataset_webperson import WebPerson, WebPersonConfig
from dataset_webperson.contact_sheet import main as contact_sheet_main
from dataset_webperson.drawn.attributes import (
    _NEAR_GROUPS,
    COLOR_GROUPS,
    COLOR_RGB,
    COLOR_WORDS,
    HAIR_RGB,
    WORDS,
    absent_things,
    far_values,
    near,
    sample_person,
    sample_view,
    value_of_words,
    visible_attributes,
)
from dataset_webperson.drawn.captions import _REQUIRED, MAX_WORDS, MIN_VALUES, MIN_WORDS
from dataset_webperson.drawn.figures import _Canvas, _fill, draw_person
from dataset_webperson.drawn.rows import FIRST_PERSON_ID, generate_rows

CAPTIONS = ("caption1", "caption2")


def rows_of(split, stop, noise_rate=0.3, image_size=(32, 16), seed=0, views=2, start=0, **further):
    options = {"image_size": image_size, "views_per_person": views, "noise_rate": noise_rate, "seed": seed}
    return list(generate_rows(split, start, stop, **options, **further))


def described(*arguments, **options):
    """What `rows_of` gives, with a black picture: to draw persons takes longer than to describe them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataset_webperson.drawn.rows.draw_person", lambda *_: Image.new("RGB", (1, 1)))
        return rows_of(*arguments, **options)


@pytest.fixture(scope="module")
def noisy_rows():
    return rows_of("train", 300)


@pytest.fixture(scope="module")
def true_rows():
    return described("test", 300)


def words_of(rows):
    """(row, said, word, value) of every attribute word: what the caption says, and the value it names."""
    for row in rows:
        for name in CAPTIONS:
            for word in row[f"{name}_words"]:
                said = row[name][word["start"] : word["end"]]
                said = said[0].lower() + said[1:]  # it may open a sentence
                yield row, said, word, value_of_words(word["attribute"], said)


def person_and_view(row):
    split, index, view = re.fullmatch(r"(\w+)/(\d+)_(\d+)\.png", row["image_path"]).groups()
    return sample_person(0, split, int(index)), sample_view(0, split, int(index), int(view))


def pixels(row):
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))


# The truth of captions.


def test_every_false_word_is_plainly_false_and_every_other_word_is_true(noisy_rows):
    kinds = {"swapped": 0, "absent": 0, "true": 0}
    for row, _, word, value in words_of(noisy_rows):
        truth = json.loads(row["attributes"])[word["attribute"]]
        if not word["is_false"]:
            assert value == truth, (row["image_path"], word)
            kinds["true"] += 1
        elif truth == "none":
            slot = word["attribute"].split(".")[0]
            assert slot in ("bag", "hat", "glasses", "carry")
            kinds["absent"] += 1
        else:
            assert not near(word["attribute"], value, truth), (row["image_path"], word)
            kinds["swapped"] += 1
    assert min(kinds.values()) > 200


def test_no_bag_is_named_for_a_paper_bag_or_the_other_way_round():
    for row, _, word, value in words_of(described("train", 400, noise_rate=1.0)):
        truth = json.loads(row["attributes"])
        if word["attribute"] == "bag.kind" and truth["carry.kind"] == "shopping bag":
            assert value not in ("handbag", "shoulder bag")
        if word["attribute"] == "carry.kind" and truth["bag.kind"] in ("handbag", "shoulder bag"):
            assert value != "shopping bag"


def test_a_wrong_colour_leaves_the_noun_true(noisy_rows):
    pairs = {}
    for row, _, word, _ in words_of(noisy_rows):
        if word["attribute"] in ("bag.color", "bag.kind") and json.loads(row["attributes"])["bag.kind"] != "none":
            pairs.setdefault((row["image_path"], id(row)), {})[word["attribute"]] = word["is_false"]
    mixed = {(flags.get("bag.color"), flags.get("bag.kind")) for flags in pairs.values()}
    assert {(True, False), (False, True), (False, False)} <= mixed


def test_captions_of_validation_and_test_are_true(true_rows):
    rows = true_rows + described("validation", 50, noise_rate=1.0)
    assert not any(word["is_false"] for _, _, word, _ in words_of(rows))
    assert all(row[f"{name}_false_spans"] == [] for row in rows for name in CAPTIONS)


def test_true_words_name_only_what_the_picture_shows(noisy_rows, true_rows):
    for row, _, word, value in words_of(noisy_rows[:200]):
        if not word["is_false"]:
            person, view = person_and_view(row)
            assert visible_attributes(person, view)[word["attribute"]] == value
    for row, _, word, _ in words_of(true_rows):
        _, view = person_and_view(row)
        assert not (view.direction == "back" and word["attribute"] == "glasses.kind")


@pytest.mark.parametrize("noise_rate", [0.0, 0.1, 0.3, 0.5, 1.0])
def test_the_share_of_false_words_is_the_noise_rate(noise_rate):
    flags = [word["is_false"] for _, _, word, _ in words_of(described("train", 250, noise_rate=noise_rate))]
    assert abs(np.mean(flags) - noise_rate) <= 4 * (noise_rate * (1 - noise_rate) / len(flags)) ** 0.5 + 0.01


@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
def test_both_captions_are_wrong_together_as_often_as_asked(correlation):
    together, alike, shares = [], [], []
    for row in described("train", 250, views=1, noise_rate=0.4, seed=3, mistake_correlation=correlation):
        said = {}
        for name in ("caption1", "caption2"):
            words = row[f"{name}_words"]
            shares += [word["is_false"] for word in words]
            said[name] = {
                word["attribute"]: (
                    word["is_false"],
                    value_of_words(word["attribute"], row[name][word["start"] : word["end"]].lower()),
                )
                for word in words
            }
        for attribute in said["caption1"].keys() & said["caption2"].keys():
            if attribute.split(".")[0] in ("bag", "hat", "glasses", "carry"):
                continue  # these can be made up in one and named truly in the other
            (first, one), (second, other) = said["caption1"][attribute], said["caption2"][attribute]
            together.append(first == second)
            if first and second:
                alike.append(one == other)
    assert np.mean(shares) == pytest.approx(0.4, abs=0.03)
    # by themselves both are true or both false in 0.4 ** 2 + 0.6 ** 2 of the cases
    assert np.mean(together) == pytest.approx(correlation + (1 - correlation) * 0.52, abs=0.04)
    assert all(alike) if correlation == 1 else np.mean(alike) < 0.9


def test_false_spans_are_the_spans_of_false_words(noisy_rows):
    for row in noisy_rows:
        for name in CAPTIONS:
            words = row[f"{name}_words"]
            assert row[f"{name}_false_spans"] == [[w["start"], w["end"]] for w in words if w["is_false"]]
            assert all(a["end"] < b["start"] for a, b in zip(words, words[1:], strict=False))


def test_every_attribute_word_of_a_caption_has_a_span(noisy_rows):
    vocabulary = {word for values in WORDS.values() for words in values.values() for word in words}
    telling = re.compile(r"\b(?:" + "|".join(sorted(map(re.escape, vocabulary), key=len, reverse=True)) + r")\b", re.I)
    for row in noisy_rows:
        for name in CAPTIONS:
            rest = row[name]
            for word in reversed(row[f"{name}_words"]):
                rest = rest[: word["start"]] + "_" + rest[word["end"] :]
            assert not telling.search(rest), (rest, telling.search(rest))


def test_no_word_tells_by_itself_that_it_is_false():
    """Guess from how often the same word was false in other captions: hardly better than chance."""
    rows = described("train", 1200, views=1)
    seen, scores = {}, {True: [], False: []}
    for _, said, word, _ in words_of(rows[:800]):
        seen.setdefault((word["attribute"], said), []).append(word["is_false"])
    for _, said, word, _ in words_of(rows[800:]):
        flags = seen.get((word["attribute"], said), [])
        scores[word["is_false"]].append((sum(flags) + 3) / (len(flags) + 10))
    false, true = np.array(scores[True])[:, None], np.array(scores[False])[None]
    assert np.mean((false > true) + 0.5 * (false == true)) < 0.55


# The language of captions.


def test_captions_have_12_to_45_words_and_at_least_five_attributes(noisy_rows, true_rows):
    for row in noisy_rows + true_rows:
        for name in CAPTIONS:
            assert MIN_WORDS <= len(row[name].split()) <= MAX_WORDS
            assert len({word["attribute"] for word in row[f"{name}_words"]}) >= MIN_VALUES
    assert (MIN_WORDS, MAX_WORDS, MIN_VALUES) == (12, 45, 5)


def test_no_caption_speaks_of_an_attribute_twice():
    for row in described("train", 300, noise_rate=0.8):
        for name in CAPTIONS:
            attributes = [word["attribute"] for word in row[f"{name}_words"]]
            assert len(set(attributes)) == len(attributes), row[name]


def test_captions_are_tidy_sentences(noisy_rows, true_rows):
    untidy = re.compile(r"[{}<>~\[\]_]|  |\.\.|,,| [,.;:]|[,;:][,.;:]|\.\w|\bis\.|\bnone\b|^[a-z]|\. [a-z]|[^.]$")
    articles = re.compile(r"\ba(?= (?:[aeio]|umb))|\ban(?= [^aeiou])|\ba pair of (?:a|an)\b", re.I)
    for row in noisy_rows + true_rows:
        for name in CAPTIONS:
            assert not untidy.search(row[name]), row[name]
            assert not articles.search(row[name]), row[name]


def test_there_are_over_forty_templates_and_hardly_two_captions_are_equal(true_rows):
    assert len(_REQUIRED) >= 40
    captions = [row[name] for row in true_rows for name in CAPTIONS]
    assert len(set(captions)) > 0.99 * len(captions)
    masked = set()
    for row in true_rows:
        text = row["caption1"]
        for word in reversed(row["caption1_words"]):
            text = text[: word["start"]] + "_" + text[word["end"] :]
        masked.add(text)
    assert len(masked) > 300


def test_every_value_and_every_word_is_used():
    used = {(word["attribute"], value, said) for _, said, word, value in words_of(described("train", 700))}
    assert used == {
        (attribute, value, word)
        for attribute, values in WORDS.items()
        for value, words in values.items()
        for word in words
    }


# What counts as false.


def test_words_name_one_value_each_and_groups_name_known_values():
    for values in WORDS.values():
        for one, two in combinations(values.values(), 2):
            assert not set(one) & set(two)
    for attribute, groups in _NEAR_GROUPS.items():
        assert all(value in WORDS[attribute] for group in groups for value in group)
    assert all(color in COLOR_WORDS for group in COLOR_GROUPS for color in group)
    assert set(COLOR_RGB) == set(COLOR_WORDS) and set(HAIR_RGB) == set(WORDS["hair.color"])


def test_near_is_symmetric_and_every_value_but_glasses_has_a_plain_opposite():
    for attribute, values in WORDS.items():
        for one in values:
            assert near(attribute, one, one)
            assert all(near(attribute, one, two) == near(attribute, two, one) for two in values)
            assert bool(far_values(attribute, one)) == (attribute != "glasses.kind"), (attribute, one)


def test_near_synonyms_never_replace_each_other():
    for attribute, one, two in [
        ("top.color", "navy", "blue"),
        ("lower.color", "navy", "black"),
        ("coat.color", "beige", "white"),
        ("lower.garment", "jeans", "trousers"),
        ("bag.kind", "handbag", "shoulder bag"),
        ("hat.kind", "cap", "beanie"),
        ("hair.color", "black", "brown"),
    ]:
        assert two not in far_values(attribute, one)
    # Synonyms are one value, so a swap cannot choose between them.
    assert value_of_words("bag.kind", "rucksack") == value_of_words("bag.kind", "backpack")
    assert value_of_words("top.color", "dark blue") == value_of_words("top.color", "navy")
    with pytest.raises(KeyError, match="names no value"):
        value_of_words("top.color", "mauve")


def test_no_light_turns_a_colour_into_one_that_is_plainly_another():
    for brightness in (84, 97, 110):
        for tint in np.ndindex(2, 2, 2):
            gains = brightness * (97 + 6 * np.array(tint)) / 10000
            for color, rgb in COLOR_RGB.items():
                seen = np.minimum(255, np.array(rgb) * gains)
                distance = {name: np.abs(seen - other).sum() for name, other in COLOR_RGB.items()}
                closest = min(distance, key=distance.get)
                assert near("top.color", color, closest), (color, closest, brightness, tint)


# Persons and views.


def test_views_share_the_person_and_differ_in_what_is_around(noisy_rows):
    for first, second in zip(noisy_rows[::2], noisy_rows[1::2], strict=True):
        one, two = json.loads(first["attributes"]), json.loads(second["attributes"])
        changing = {"pose.action", "view.direction"}
        assert first["person_id"] == second["person_id"]
        assert {k: v for k, v in one.items() if k not in changing} == {
            k: v for k, v in two.items() if k not in changing
        }
        assert person_and_view(first)[1].direction != person_and_view(second)[1].direction
        assert first["image"]["bytes"] != second["image"]["bytes"]


def test_no_two_persons_of_a_split_are_alike(noisy_rows, true_rows):
    rows = noisy_rows[::2] + true_rows[::2]
    assert len({person_and_view(row)[0] for row in rows}) == len(rows)


def test_something_is_always_missing_so_that_it_can_be_named_by_mistake():
    assert all(absent_things(sample_person(0, "train", index)) for index in range(2000))


def test_persons_and_captions_do_not_depend_on_size_views_or_count():
    small, large = rows_of("train", 6, image_size=(32, 16)), rows_of("train", 6, image_size=(128, 48))
    for one, two in zip(small, large, strict=True):
        assert {k: v for k, v in one.items() if k != "image"} == {k: v for k, v in two.items() if k != "image"}
        assert pixels(one).shape == (32, 16, 3) and pixels(two).shape == (128, 48, 3)
    assert rows_of("train", 6, views=3)[3:5] == small[2:4]
    assert rows_of("train", 6, start=4) == small[8:]


def test_the_noise_rate_changes_captions_only():
    for one, two in zip(rows_of("train", 20, noise_rate=0.0), rows_of("train", 20, noise_rate=0.6), strict=True):
        unchanged = ("image", "image_path", "person_id", "attributes")
        assert [one[key] for key in unchanged] == [two[key] for key in unchanged]
        assert one["caption1_false_spans"] == []


def test_another_seed_gives_other_people():
    people = {sample_person(seed, "train", index) for seed in (0, 1) for index in range(50)}
    assert len(people) == 100


# Pictures.


def test_filling_covers_what_a_slow_scan_of_a_convex_polygon_covers():
    random = np.random.default_rng(0)
    for _ in range(50):
        left, right = random.integers(0, 25), random.integers(35, 60)
        points = [(left, 5), (right, random.integers(0, 20)), (right - 5, 50), (left + 4, random.integers(40, 55))]
        points = [(int(x), int(y)) for x, y in points]
        canvas = Image.new("L", (64, 64))
        _fill(ImageDraw.Draw(canvas), points, 255)
        filled = np.asarray(canvas) > 0
        edges = list(zip(points, [*points[1:], points[0]], strict=True))
        for x, y in np.ndindex(64, 64):
            # Distance to each edge, positive inside (the points run clockwise on the screen).
            inside = [
                ((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / np.hypot(x1 - x0, y1 - y0)
                for (x0, y0), (x1, y1) in edges
            ]
            if min(inside) > 1:
                assert filled[y, x]
            if min(inside) < -3:
                assert not filled[y, x]


def test_garments_have_their_colour_in_the_picture():
    """At 64 x 32, enough pixels must lie within a small distance of the lit colour of each thing."""
    for attribute, at_least in [("top_color", 16), ("lower_color", 30), ("shoes_color", 8), ("bag_color", 8)]:
        pixels_seen = []
        for index in range(60):
            person, view = sample_person(0, "train", index), sample_view(0, "train", index, 0)
            color = getattr(person, attribute)
            if color == "none" or (attribute == "top_color" and person.coat != "none"):
                continue
            image = np.asarray(draw_person(person, view, (64, 32))).astype(int)
            gains = np.array([view.brightness * tint for tint in view.tint])
            lit = np.minimum(255, np.array(COLOR_RGB[color]) * gains // 10000)
            pixels_seen.append((np.abs(image - lit).sum(-1) < 40).sum())
        assert np.mean(np.array(pixels_seen) >= at_least) > 0.9, (attribute, sorted(pixels_seen)[:8])


def test_every_attribute_changes_the_picture_where_it_is_visible():
    """Swap one thing of a person and the picture must change by more than a few pixels."""
    fields = {
        "bag.kind": "bag",
        "hat.kind": "hat",
        "carry.kind": "carry",
        "shoes.kind": "shoes",
        "glasses.kind": "glasses",
    }
    fields |= {"coat.garment": "coat", "top.garment": "top", "lower.garment": "lower", "hair.length": "hair_length"}
    fields |= {"person.gender": "gender", "dress.garment": "dress", "top.pattern": "top_pattern"}
    checked = set()
    for index in range(200):
        person, view = sample_person(0, "train", index), sample_view(0, "train", index, 0)
        for attribute, value in visible_attributes(person, view).items():
            if attribute not in fields:
                continue
            for other in far_values(attribute, value)[:1]:
                changes = {fields[attribute]: other}
                if attribute == "hair.length" and value == "bald":
                    changes["hair_color"] = "brown"
                if attribute == "carry.kind" and value == "phone":
                    changes["carry_color"] = "red"
                if attribute == "top.garment":
                    changes["top_sleeve"] = {"t-shirt": "short", "tank top": "sleeveless"}.get(other, "long")
                before = np.asarray(draw_person(person, view, (64, 32))).astype(int)
                after = np.asarray(draw_person(replace(person, **changes), view, (64, 32))).astype(int)
                assert (np.abs(before - after).sum(-1) > 60).sum() >= 8, (index, attribute, value, other)
                checked.add(attribute)
    assert checked == set(fields) - {"glasses.kind"}


def test_a_figure_is_not_stretched_by_a_tall_picture():
    view = sample_view(0, "train", 0, 0)
    for height, width in [(64, 32), (384, 128), (64, 64), (128, 32)]:
        canvas = _Canvas(height, width, view)
        assert 0.79 <= canvas.scale_y / canvas.scale_x <= 1.26
        assert canvas.scale_x * 100 <= canvas.width * 4096 and canvas.scale_y * 200 <= canvas.height * 4096


# The same on every machine.


def test_pixels_and_captions_are_pinned():
    """Change these only with `VERSION`. The pixels were the same on Pillow 11.0 and 13.0."""
    digest = {"captions": hashlib.sha256(), "pixels": hashlib.sha256()}
    for size in ((64, 32), (384, 128)):
        for row in rows_of("train", 12, image_size=size, views=4):
            digest["pixels"].update(pixels(row).tobytes())
            for name in ("image_path", "attributes", *CAPTIONS):
                digest["captions"].update(row[name].encode())
            digest["captions"].update(json.dumps([row[f"{name}_words"] for name in CAPTIONS]).encode())
    assert {name: value.hexdigest()[:16] for name, value in digest.items()} == {
        "captions": "64673fa52f581653",
        "pixels": "633bdb8dba227c62",
    }


# The builder.

SMALL = {"image_size": (32, 16), "num_train_persons": 120, "num_validation_persons": 3, "num_test_persons": 4}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    builder = WebPerson(config_name="synthetic", cache_dir=tmp_path_factory.mktemp("one"), **SMALL)
    builder.download_and_prepare()
    return builder


def test_the_builder_gives_the_rows_of_the_generator(built):
    for split, persons in (("train", 120), ("validation", 3), ("test", 4)):
        dataset = built.as_dataset(split=split)
        expected = rows_of(split, persons)
        assert len(dataset) == len(expected)
        assert dataset.remove_columns("image").to_list() == [
            {key: value for key, value in row.items() if key != "image"} for row in expected
        ]
        assert (np.asarray(dataset[1]["image"]) == pixels(expected[1])).all()


def test_two_processes_give_the_same_rows_in_the_same_order(built, tmp_path):
    builder = WebPerson(config_name="synthetic", cache_dir=tmp_path, **SMALL)
    builder.download_and_prepare(num_proc=2)
    for split in ("train", "validation", "test"):
        one, two = built.as_dataset(split=split), builder.as_dataset(split=split)
        assert one.with_format("arrow")[:].to_pylist() == two.with_format("arrow")[:].to_pylist()


def test_persons_and_paths_are_disjoint_between_splits(built):
    splits = built.as_dataset()
    ids = {split: set(dataset["person_id"]) for split, dataset in splits.items()}
    assert ids["train"] == set(range(120))
    assert ids["test"] == {FIRST_PERSON_ID["test"] + index for index in range(4)}
    assert not any(ids[one] & ids[two] for one, two in combinations(ids, 2))
    paths = [path for dataset in splits.values() for path in dataset["image_path"]]
    assert len(set(paths)) == len(paths) == 2 * (120 + 3 + 4)


def test_a_second_build_reuses_the_first(built):
    files = {path: path.stat().st_mtime_ns for path in _files(built)}
    again = WebPerson(config_name="synthetic", cache_dir=built._cache_dir_root, **SMALL)
    again.download_and_prepare()
    assert {path: path.stat().st_mtime_ns for path in _files(again)} == files
    assert len(again.as_dataset(split="test")) == 8


def _files(builder):
    return sorted(path for path in Path(builder.cache_dir).rglob("*") if path.is_file())


def test_it_is_written_as_parquet_on_request(tmp_path):
    builder = WebPerson(config_name="synthetic", cache_dir=tmp_path / "cache", **SMALL | {"num_train_persons": 3})
    builder.download_and_prepare(str(tmp_path / "out"), file_format="parquet")
    dataset = load_dataset(
        "parquet", data_files=str(tmp_path / "out" / "*train*.parquet"), cache_dir=str(tmp_path), split="train"
    )
    assert dataset["caption1"][:] == [row["caption1"] for row in rows_of("train", 3)]
    assert dataset[0]["image"].size == (16, 32)


def test_it_streams(tmp_path):
    builder = WebPerson(config_name="synthetic", cache_dir=tmp_path, **SMALL)
    row = next(iter(builder.as_streaming_dataset(split="test")))
    assert row["caption1"] == rows_of("test", 1)[0]["caption1"] and row["image"].size == (16, 32)


def test_every_option_and_the_version_have_a_cache_of_their_own(tmp_path, monkeypatch):
    changes = [
        {},
        {"image_size": (64, 32)},
        {"num_train_persons": 121},
        {"num_validation_persons": 9},
        {"num_test_persons": 9},
        {"views_per_person": 3},
        {"noise_rate": 0.31},
        {"mistake_correlation": 0.5},
        {"twins": True},
        {"seed": 1},
    ]
    folders = [
        WebPerson(config_name="synthetic", cache_dir=tmp_path, **SMALL | change).cache_dir for change in changes
    ]
    monkeypatch.setattr(WebPerson, "VERSION", "9.9.9")
    folders.append(WebPerson(config_name="synthetic", cache_dir=tmp_path, **SMALL).cache_dir)
    assert len(set(folders)) == len(folders)


def test_a_default_given_or_left_out_is_the_same_cache(tmp_path):
    left_out = WebPerson(cache_dir=tmp_path)
    given = WebPerson(config_name="synthetic", cache_dir=tmp_path, image_size=[128, 64], noise_rate=0.3, seed=0)
    assert left_out.cache_dir == given.cache_dir and "webperson" in left_out.cache_dir


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (0, 0)}, "image_size"),
        ({"image_size": (32, 64)}, "image_size"),
        ({"image_size": (64,)}, "image_size"),
        ({"image_size": 64}, "image_size"),
        ({"image_size": (64.0, 32)}, "image_size"),
        ({"image_size": (1000, 100)}, "image_size"),
        ({"noise_rate": -0.1}, "noise_rate"),
        ({"noise_rate": 1.1}, "noise_rate"),
        ({"noise_rate": float("nan")}, "noise_rate"),
        ({"noise_rate": "0.3"}, "noise_rate"),
        ({"mistake_correlation": 1.5}, "mistake_correlation"),
        ({"num_train_persons": 1}, "num_train_persons"),
        ({"num_validation_persons": 0}, "num_validation_persons"),
        ({"num_test_persons": 1}, "num_test_persons"),
        ({"num_test_persons": 2.5}, "num_test_persons"),
        ({"views_per_person": 0}, "views_per_person"),
        ({"seed": "a"}, "seed"),
        ({"config_name": "syntetic"}, "syntetic"),
    ],
)
def test_bad_options_raise_one_clear_error(options, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        WebPerson(cache_dir=tmp_path, **{"config_name": "synthetic"} | options)
    assert "\n" not in str(error.value)
    if "config_name" not in options:
        with pytest.raises(ValueError, match=message):
            WebPersonConfig(**options)


# The contact sheet.


def test_the_contact_sheet_is_written_and_bad_options_stop_it(tmp_path, capsys):
    contact_sheet_main([str(tmp_path / "sheet.png"), "--image_size", "64", "32", "--count", "9"])
    assert Image.open(tmp_path / "sheet.png").size == (8 * (128 + 150), 2 * (256 + 6))
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    for options in (["--noise_rate", "2"], ["--count", "0"], ["--image_size", "1", "1"]):
        with pytest.raises(SystemExit):
            contact_sheet_main([str(tmp_path / "no.png"), *options])
    assert "noise_rate" in capsys.readouterr().err and not (tmp_path / "no.png").exists()
    (tmp_path / "file").write_text("")
    assert contact_sheet_main([str(tmp_path / "file" / "sheet.png"), "--count", "1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
