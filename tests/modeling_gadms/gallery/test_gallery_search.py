"""Searching: exact against plain numpy, ties and index included; weights, examples, groups, opt-out and threads."""

import builtins
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny import tiny_model, tiny_rows

from dataset_webperson import DataError
from dataset_webperson.near_duplicates import perceptual_hash
from modeling_gadms.gallery import Gallery, asking
from modeling_gadms.gallery import rows as table_rows
from modeling_gadms.gallery.filters import any_of
from modeling_gadms.gallery.opt_out import OptOut
from modeling_gadms.gallery.rows import Rows, vector_array
from modeling_gadms.gallery.searching import find


@pytest.fixture(scope="module")
def gallery(model, tmp_path_factory):
    made = Gallery.create(tmp_path_factory.mktemp("gallery") / "people", model)
    made.add(tiny_rows(40))
    return made


def made_rows(folder, vectors):
    rows = Rows.create(folder, "rows", vectors.shape[1], "float16")
    rows.add_columns({"camera": "number"})
    records = [
        {"id": f"{number * 7919 % len(vectors):032x}", "uri": str(number), "source": "", "sha256": "", "phash": 0}
        | {"file_size": 0, "file_time": 0, "camera": number % 10}
        for number in range(len(vectors))
    ]
    rows.append(rows.as_table(records, vectors))
    return rows, records


def plain(vectors, records, query, k, holds=lambda record: True):
    """The same in whole numbers, one row at a time: unit vectors in multiples of 2**-26, equal scores by id."""

    def whole(vector):
        length = np.sqrt(sum(float(number) ** 2 for number in vector))
        return [round(float(number) / length * 2**26) for number in vector]

    stored, query, scored = vectors.astype(np.float16), whole(query), []
    for vector, record in zip(stored, records, strict=True):
        if holds(record):
            scored.append((-sum(a * b for a, b in zip(whole(vector), query, strict=True)) / 2**52, record["id"]))
    return sorted(scored)[:k]


def keep_all(records):
    return list(range(len(records)))


def test_exact_search_is_plain_arithmetic_ties_included(tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2000, 32))
    vectors[500:700] = vectors[500]  # more equal rows than are fetched at first
    vectors[1000:1300] = vectors[1000] + 1e-3 * rng.standard_normal((300, 32))  # closer than the engine can tell
    rows, records = made_rows(tmp_path, vectors)
    queries = [vectors[500], vectors[1000], vectors[3], rng.standard_normal(32), 100 * rng.standard_normal(32)]
    for query in queries:
        for where, holds in ((None, lambda record: True), ("`camera` = 3", lambda record: record["camera"] == 3)):
            found = find(rows, query, 20, ["uri"], where=where, exact=True, keep=keep_all)
            expected = plain(vectors, records, query, 20, holds)
            assert [row["id"] for row in found.rows] == [number for _, number in expected]
            assert np.allclose(found.cosines, [-cosine for cosine, _ in expected], atol=1e-12)
    everything = find(rows, queries[0], 5000, ["uri"], where=None, exact=True, keep=keep_all)
    assert len(everything.rows) == 2000


@pytest.mark.parametrize(("index", "kind"), [("compact", "IvfRq"), ("int8", "IvfSq")])
def test_an_index_is_made_above_a_size_and_finds_nearly_all(tmp_path, monkeypatch, index, kind):
    monkeypatch.setattr(table_rows, "INDEX_FROM", 2000)
    monkeypatch.setattr(table_rows, "UNINDEXED", 200)
    monkeypatch.setattr(table_rows, "PARTS", 2)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2000, 32))
    rows, records = made_rows(tmp_path, vectors)
    assert rows.index_facts() is None
    rows.tidy(index)
    assert rows.index_facts() == {"indexed": 2000, "unindexed": 0, "parts": 1}
    assert kind in [found.index_type for found in rows.table.list_indices()]
    shares = []
    for query in rng.standard_normal((20, 32)):
        right = [row["id"] for row in find(rows, query, 10, ["uri"], where=None, exact=True, keep=keep_all).rows]
        near = find(rows, query, 10, ["uri"], where=None, exact=False, keep=keep_all)
        shares.append(len({row["id"] for row in near.rows} & set(right)) / 10)
    assert np.mean(shares) > 0.95
    ordered = plain(vectors, records, query, 2000)
    assert right == [number for _, number in ordered[:10]]
    # scored by the vectors themselves, whatever the index rounds
    scores = {number: -cosine for cosine, number in ordered}
    assert np.allclose(near.cosines, [scores[row["id"]] for row in near.rows], atol=1e-12)
    filtered = find(rows, query, 10, ["camera"], where="`camera` = 3", exact=False, keep=keep_all)
    assert len(filtered.rows) == 10 and {row["camera"] for row in filtered.rows} == {3}
    # the few that a filter leaves lie anywhere: partitions are entered until there are enough
    far = [number for _, number in ordered[-3:]]
    rare = find(rows, query, 3, ["uri"], where=any_of("id", far), exact=False, keep=keep_all)
    assert [row["id"] for row in rare.rows] == far
    # rows that the index does not know are found, and put into it once they are many; of many parts one is made
    for first, parts in ((5000, 2), (6000, 1)):
        extra = [{**record, "id": f"{first + place:032x}"} for place, record in enumerate(records[:300])]
        rows.append(rows.as_table(extra, rng.standard_normal((300, 32))))
        vector = vector_array(rows.read(["vector"], f"`id` = '{first:032x}'")["vector"])[0]
        assert find(rows, vector, 1, ["uri"], where=None, exact=False, keep=keep_all).rows[0]["id"] == f"{first:032x}"
        rows.tidy(index)
        assert rows.index_facts() == {"indexed": first // 1000 * 300 + 800, "unindexed": 0, "parts": parts}


def test_vectors_that_the_compact_index_cannot_take_are_indexed_too(tmp_path):
    rows, _ = made_rows(tmp_path, np.random.default_rng(0).standard_normal((300, 20)))
    rows.make_index("compact")
    assert "IvfSq" in [found.index_type for found in rows.table.list_indices()]


def stored(gallery):
    found = gallery._rows().read(["id", "uri", "vector"])
    vectors = vector_array(found["vector"]).astype(np.float64)
    return found["id"].to_pylist(), vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_phrasings_images_and_weights_are_averaged_and_unlike_is_taken_away(gallery, model):
    ids, vectors = stored(gallery)
    texts = gallery.encoder().texts(["a red coat", "somebody in red"])
    image = gallery.image(ids[4])
    picture = gallery.encoder().images([image])[0]

    def check(hits, query, left_out=()):
        scores = vectors @ query
        expected = [place for place in np.argsort(-scores, kind="stable") if ids[place] not in left_out][:10]
        assert np.allclose([hit.score for hit in hits], scores[expected], atol=1e-5)
        assert not {hit.id for hit in hits} & set(left_out)

    check(gallery.search("a red coat"), texts[0])
    check(gallery.search(["a red coat", "somebody in red"]), texts.mean(axis=0))
    check(gallery.search(["a red coat", "somebody in red"], text_weights=[3, 1]), (3 * texts[0] + texts[1]) / 4)
    check(gallery.search("a red coat", [image]), (texts[0] + picture) / 2)
    check(gallery.search("a red coat", [image], image_weights=[3]), (texts[0] + 3 * picture) / 4)
    check(gallery.search(images=[f"id:{ids[4]}"]), vectors[4], [ids[4]])
    away = texts[0] - 0.5 * (vectors[1] + vectors[2]) / 2
    check(gallery.search("a red coat", unlike=[ids[1], ids[2]]), away, [ids[1], ids[2]])
    batch = gallery.search_batch(["a red coat", "somebody in red"], k=3)
    for hits, text in zip(batch, ("a red coat", "somebody in red"), strict=True):
        alone = gallery.search(text, k=3)
        assert [hit.id for hit in hits] == [hit.id for hit in alone]
        assert np.allclose([hit.score for hit in hits], [hit.score for hit in alone], atol=1e-5)


def test_one_of_each_group_is_shown(gallery):
    by_person = gallery.search("a red coat", k=20, collapse="person_id")
    persons = [hit.metadata["person_id"] for hit in by_person]
    assert len(persons) == len(set(persons)) == 20
    every = gallery.search("a red coat", k=40)
    firsts = {}
    for hit in every:
        firsts.setdefault(hit.metadata["person_id"], hit.id)
    assert [hit.id for hit in by_person] == list(firsts.values())
    kept = []
    for hit in every:
        value = perceptual_hash(gallery.image(hit.id))
        if all((value ^ other).bit_count() > 4 for _, other in kept):
            kept.append((hit.id, value))
    assert 1 < len(kept) < 40
    assert [hit.id for hit in gallery.search("a red coat", k=40, collapse="phash")] == [number for number, _ in kept]


def test_what_is_opted_out_is_not_shown_even_while_its_row_is_there(model, tmp_path):
    gallery = Gallery.create(tmp_path / "people", model)
    gallery.add(tiny_rows(8))
    first = gallery.search("a red coat")[0]
    (tmp_path / "people" / "opt_out.txt").write_text(f"# on request\nuri:{first.uri}\n")
    assert len(gallery) == 8 and first.id not in {hit.id for hit in gallery.search("a red coat")}
    with pytest.raises(DataError, match="may have been removed"):
        gallery.image(first.id)


def test_a_search_reads_small_files_only_when_they_have_changed(gallery, monkeypatch):
    gallery.search("a red coat")
    opened, truly = [], builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda file, *rest, **more: opened.append(file) or truly(file, *rest, **more)
    )
    hits = gallery.search("a red coat")
    assert not gallery.audit.enabled and opened == []
    gallery.audit.switch(True)
    try:
        assert gallery.audit.enabled and len([file for file in opened if str(file).endswith("gallery.json")]) == 1
    finally:
        gallery.audit.switch(False)
    list_of = gallery.path / "opt_out.txt"
    list_of.write_text(f"uri:{hits[0].uri}\n")
    try:
        assert gallery.search("a red coat")[0] == hits[1]
    finally:
        list_of.unlink()
    assert gallery.search("a red coat") == hits


def test_check_states_recall_for_captions_and_for_stored_vectors(gallery, monkeypatch):
    queries, truly = gallery.encoder().texts(["a red coat", "a person in green"]), Rows.nearest

    def misses_the_best_for_captions(self, vector, count, where, exact, columns):
        found = truly(self, vector, count, where, True, columns)
        is_caption = any(np.allclose(vector, query, atol=1e-6) for query in queries)
        return found.slice(1) if is_caption and not exact else found

    monkeypatch.setattr(Rows, "nearest", misses_the_best_for_captions)
    monkeypatch.setattr(Rows, "index_facts", lambda self: {"indexed": 40, "unindexed": 0, "parts": 1})
    found = gallery.check(["a red coat", "a person in green"], sample=5)
    assert found == {"text_recall": pytest.approx(0.9), "vector_recall": 1.0, "indexed": 40}


def test_an_empty_gallery_and_a_filter_without_rows_give_nothing(gallery, model, tmp_path):
    assert gallery.search("a red coat", where="person_id > 1000") == []
    assert gallery.search("a red coat", where="source != ''") == []
    assert len(gallery.search("a red coat", where="source = ''")) == 10
    empty = Gallery.create(tmp_path / "people", model)
    assert empty.search("a red coat") == [] and len(empty) == 0 and empty.stats()["images"] == 0


def test_another_model_is_refused_in_one_line(gallery, model):
    other = tiny_model(seed=1, vocab_size=len(model[1].tokenizer))
    with pytest.raises(DataError, match="other weights; ask with the model that made it"):
        Gallery.open(gallery.path, (other, model[1]))
    assert Gallery.open(gallery.path, model).search("a red coat") == gallery.search("a red coat")
    with pytest.raises(DataError, match="made by a model of no name"):
        Gallery.open(gallery.path).search("a red coat")


def test_threads_get_the_answers_of_one(gallery):
    texts = ["a red coat", "a person in green", "someone wears yellow trousers, a blue shirt, and walks by"] * 4
    expected = [gallery.search(text, k=5) for text in texts]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda text: gallery.search(text, k=5), texts)) == expected
        words = [gallery.explain(text, expected[0][0].id).words for text in texts]
        assert list(pool.map(lambda text: gallery.explain(text, expected[0][0].id).words, texts)) == words


def test_a_version_that_another_process_purges_is_read_anew(gallery, monkeypatch):
    expected, calls = gallery.search("a red coat"), []

    def purged_once(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("lance error: Not found")
        return find(*arguments, **options)

    monkeypatch.setattr(asking, "find", purged_once)
    assert gallery.search("a red coat") == expected and len(calls) == 2


def test_a_search_reads_only_the_columns_that_it_looks_at(gallery, monkeypatch, tmp_path):
    asked, nearest = [], Rows.nearest

    def recorded(self, vector, count, where, exact, columns):
        asked.append(set(columns))
        return nearest(self, vector, count, where, exact, columns)

    monkeypatch.setattr(Rows, "nearest", recorded)
    shown = {"id", "uri", "vector", *gallery.columns}
    expected = gallery.search("a red coat", k=3)
    assert gallery.search("a red coat", k=3, collapse="sha256") and asked == [shown, shown | {"sha256"}]
    (row,) = gallery._row(expected[1].id, ["sha256"]).to_pylist()
    (tmp_path / "opt_out.txt").write_text(f"sha256:{row['sha256']}\nphash:{'0' * 16}\n")
    monkeypatch.setattr(asking, "read_opt_out", lambda folder: OptOut(tmp_path))
    assert expected[1].id not in [hit.id for hit in gallery.search("a red coat", k=3)]
    assert asked[-1] == shown | {"sha256", "phash"}


def test_queries_that_cannot_be_answered_end_in_one_line(gallery):
    for options, words in (
        ({}, "nothing is asked"),
        ({"texts": ""}, "the description is empty"),
        ({"texts": "a" * 10_000}, "a description of 10,000 characters"),
        ({"texts": [3]}, "a description is text"),
        ({"texts": "a", "k": 0}, "ask for 1 to 10,000"),
        ({"texts": "a", "text_weights": [1, 2]}, "2 weights for 1 texts"),
        ({"texts": "a", "text_weights": [-1]}, "they are at least 0"),
        ({"texts": "a", "where": "height = 3"}, "no column 'height'"),
        ({"texts": "a", "unlike": ["none"]}, "no image with the id 'none'"),
    ):
        with pytest.raises(DataError, match=words) as error:
            gallery.search(**options)
        assert "\n" not in str(error.value)
