"""The filter language: its SQL selects the rows that the same condition, written in Python, selects."""

import datetime
import random

import pytest

from dataset_webperson import DataError
from modeling_gadms.gallery.filters import MAX_CHARACTERS, to_sql
from modeling_gadms.gallery.rows import Rows

COLUMNS = {"camera": "number", "site": "text", "seen": "time", "night": "bool"}
SITES = ["north", "north gate", "South", "O'Neill", "a;b--", None]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Rows with every kind of metadata, values missing here and there, and the same rows as dictionaries."""
    import numpy as np

    rows = Rows.create(tmp_path_factory.mktemp("rows"), "rows", 4, "float16")
    rows.add_columns(COLUMNS)
    rng = random.Random(0)
    records = [
        {"id": f"{number:032x}", "uri": "", "source": "", "sha256": "", "phash": 0, "file_size": 0, "file_time": 0}
        | {
            "camera": rng.choice([-1.5, 0.0, 1.0, 2.0, 3.0, None]),
            "site": rng.choice(SITES),
            "seen": rng.choice([None, *(datetime.datetime(2024, month, 1, 12) for month in (1, 2, 3))]),
            "night": rng.choice([True, False, None]),
        }
        for number in range(200)
    ]
    rows.append(rows.as_table(records, np.ones((len(records), 4))))
    return rows, records


def kleene(value, other, operation):
    """A comparison of which a missing value makes neither true nor false."""
    return None if value is None else operation(value, other)


def random_condition(rng, depth):
    """A condition as text, and as a function of a row that gives True, False or None."""
    if depth and rng.random() < 0.7:
        word = rng.choice(["and", "or", "not"])
        text, first = random_condition(rng, depth - 1)
        if word == "not":
            return f"not ({text})", lambda row: None if first(row) is None else not first(row)
        other, second = random_condition(rng, depth - 1)
        decisive = word == "or"  # one such part decides, whatever the other is

        def joined(row):
            values = [first(row), second(row)]
            return decisive if decisive in values else None if None in values else not decisive

        return f"({text}) {word.upper() if rng.random() < 0.5 else word} ({other})", joined
    name = rng.choice(list(COLUMNS))
    if rng.random() < 0.15:
        return f"{name} is null", lambda row: row[name] is None
    if name == "camera":
        low = rng.choice([-1.5, 0, 1, 2])
        sign, operation = rng.choice(
            [
                ("=", lambda a, b: a == b),
                ("!=", lambda a, b: a != b),
                ("<", lambda a, b: a < b),
                (">=", lambda a, b: a >= b),
            ]
        )
        if rng.random() < 0.3:
            return f"camera between {low} and 2.5", lambda row: kleene(row["camera"], low, lambda a, b: b <= a <= 2.5)
        if rng.random() < 0.3:
            return f"camera not in ({low}, 3)", lambda row: kleene(row["camera"], low, lambda a, b: a not in (b, 3))
        return f"camera {sign} {low}", lambda row: kleene(row["camera"], low, operation)
    if name == "site":
        site = rng.choice(SITES[:-1])
        if rng.random() < 0.5:
            return "site like 'north%'", lambda row: kleene(row["site"], "", lambda a, b: a.startswith("north"))
        quoted = site.replace("'", "''")
        return f"site = '{quoted}'", lambda row: kleene(row["site"], site, lambda a, b: a == b)
    if name == "night":
        return "night = true", lambda row: row["night"]
    moment = datetime.datetime(2024, 2, 1)
    return "seen > '2024-02-01'", lambda row: kleene(row["seen"], moment, lambda a, b: a > b)


def test_a_condition_selects_what_it_selects_in_python(table):
    rows, records = table
    rng = random.Random(1)
    counts = []
    for _ in range(60):
        text, holds = random_condition(rng, 3)
        found = rows.read(["id"], to_sql(text, COLUMNS))["id"].to_pylist()
        assert found == [row["id"] for row in records if holds(row)], text
        counts.append(len(found))
    assert 5 < len(set(counts)), "the conditions differ too little to tell anything"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("size = 3", "no column 'size', only camera, night, seen, site"),
        ("camera = 'three'", "camera holds number, as 3, not 'three'"),
        ("camera = 1e999", "camera holds number"),
        ("site > 3", "site holds text"),
        ("seen = 'yesterday'", "'yesterday' is no time"),
        ("night < true", "night holds true or false"),
        ("camera like '3'", "like compares texts"),
        ("camera = ", "a value is missing at the end"),
        ("camera", "a comparison with camera is missing before the end"),
        ("camera = 3 or", "the name of a column is missing before the end"),
        ("camera = 3 camera = 4", "'camera' is not expected"),
        ("(camera = 3", "')' is missing before the end"),
        ("camera in 3", "'(' is missing before '3'"),
        ("site = 'a' ; drop table rows", "'; drop table rows' is not understood"),
        ("site = 'a or 1=1", '"\'a or 1=1" is not understood'),
        ("camera = 3 -- all", "'-- all' is not understood"),
        ("1 = 1", "the name of a column is missing before '1'"),
        ("`camera` = 3", "'`camera` = 3' is not understood"),
        ("camera = camera", "camera holds number, as 3, not camera"),
        ("abs(camera) = 3", "no column 'abs'"),
        ("not " * 40 + "camera = 3", "more than 30 parentheses"),
        ("camera = 3" + " " * MAX_CHARACTERS, "at most 2,000"),
    ],
)
def test_what_is_not_understood_is_named_in_one_line(text, words):
    with pytest.raises(DataError) as error:
        to_sql(text, COLUMNS)
    assert words in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_quote_in_a_text_stays_a_text():
    assert to_sql("site = 'x'' or ''1''=''1'", COLUMNS) == "`site` = 'x'' or ''1''=''1'"
