"""A gallery in Qdrant, in its client's local mode: the same call gives the same results as the gallery's own rows."""

import random
import shutil

import pytest
from qdrant_client import QdrantClient
from test_gallery_filters import COLUMNS, SITES, random_condition
from tiny import tiny_model, tiny_rows

from dataset_webperson import DataError
from modeling_gadms.gallery import Gallery, QdrantGallery


@pytest.fixture(scope="module")
def gallery(tmp_path_factory, model):
    """Sixty images, some of them twice, with every kind of metadata, values missing here and there."""
    made = Gallery.create(tmp_path_factory.mktemp("qdrant") / "people", model)
    rng = random.Random(0)
    images = [row["image"] for row in tiny_rows(50)]
    rows = [
        {
            "camera": rng.choice([-1.5, 0, 1, 2, 3, None]),
            "site": rng.choice(SITES),
            "seen": rng.choice([None, "2024-01-01", "2024-02-01T12:00:00", "2024-03-01"]),
            "night": rng.choice([True, False, None]),
        }
        for _ in range(60)
    ]
    made.add(images + images[:10], rows)
    return made


@pytest.fixture(scope="module")
def client(gallery):
    client = QdrantClient(":memory:")
    assert gallery.export("qdrant", client) == 60
    return client


@pytest.fixture(scope="module")
def remote(gallery, client, model):
    return QdrantGallery(gallery.path, client, model=model)


def same(found, right):
    assert [hit.id for hit in found] == [hit.id for hit in right]
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in right], abs=1e-6)
    assert [(hit.uri, hit.metadata, hit.probability) for hit in found] == [
        (hit.uri, hit.metadata, hit.probability) for hit in right
    ]


def test_every_way_to_ask_gives_the_same_results(gallery, remote):
    assert len(remote) == 60 and remote.columns == gallery.columns
    hits = gallery.search("a red coat", exact=True)
    image, picture = f"id:{hits[0].id}", tiny_rows(3)[2]["image"]
    for question in (
        {"texts": "a red coat", "k": 60},
        {"texts": ["a red coat", "someone in red"], "text_weights": [1, 2], "where": "camera < 2"},
        {"texts": "a red coat", "images": [image, picture], "unlike": [hits[3].id]},
        {"texts": "a red coat", "collapse": "phash", "k": 60},
        {"texts": "a red coat", "collapse": "site", "k": 60},
    ):
        same(remote.search(**question), gallery.search(**question, exact=True))
    texts = ["a coat", "a red bag"]
    for found, right in zip(remote.search_batch(texts, k=5), gallery.search_batch(texts, k=5), strict=True):
        same(found, right)
    assert remote.uri(hits[0].id) == hits[0].uri and remote.stats()["images"] == 60


def test_filters_hold_as_in_the_gallery(gallery, remote):
    rng, counts = random.Random(2), set()
    for _ in range(30):
        text, _holds = random_condition(rng, 3)
        if "like" in text:
            with pytest.raises(DataError, match="Qdrant compares texts by = and in alone"):
                remote.search("a coat", where=text)
            continue
        right = {hit.id for hit in gallery.search("a coat", where=text, k=60)}
        assert {hit.id for hit in remote.search("a coat", where=text, k=60)} == right, text
        counts.add(len(right))
    assert len(counts) > 5, "the conditions differ too little to tell anything"
    for text in (
        "site in ('South', 'a;b--')",
        "not seen between '2024-01-15' and '2024-02-15'",
        "seen = '2024-03-01'",
    ):
        same(remote.search("a coat", where=text, k=60), gallery.search("a coat", where=text, k=60))
    with pytest.raises(DataError, match="no column 'size', only camera, id, night"):
        remote.search("a coat", where="size = 3")


def test_another_export_removes_what_is_gone_and_the_opt_out_list_holds_at_once(gallery, model, tmp_path):
    shutil.copytree(gallery.path, tmp_path / "people")
    copy, client = Gallery.open(tmp_path / "people", model), QdrantClient(":memory:")
    assert copy.export("qdrant", client, quantization="none") == 60
    remote = QdrantGallery(tmp_path / "people", client, model=model)
    first, second = (hit.id for hit in copy.search("a coat", k=2))
    copy.remove([first])
    assert first in {hit.id for hit in remote.search("a coat")}  # until it is exported again
    assert copy.export("qdrant", client) == 59 == client.count("gallery").count
    assert first not in {hit.id for hit in remote.search("a coat", k=60)}
    with pytest.raises(DataError, match="no image with the id"):
        remote.search(images=[f"id:{first}"])
    copy.opt_out([f"uri:{copy.uri(second)}"])
    assert second not in {hit.id for hit in remote.search("a coat", k=60)}


def test_what_cannot_be_asked_is_said(gallery, client, remote, tmp_path, model):
    with pytest.raises(DataError, match="collection other: is not there; make it by the command"):
        QdrantGallery(gallery.path, client, "other", model=model)
    for change in (remote.add, remote.sync, remote.remove, remote.update, remote.rebuild, remote.opt_out):
        with pytest.raises(DataError, match="collection gallery: is only searched"):
            change("x")
    other = Gallery.create(tmp_path / "other", (tiny_model(vocab_size=len(model[1].tokenizer), seed=1), model[1]))
    with pytest.raises(DataError, match="collection gallery: made by the model .* has other weights"):
        QdrantGallery(other.path, client)
    with pytest.raises(DataError, match="collection gallery: made by the model .* has other weights"):
        other.export("qdrant", client)
    with pytest.raises(DataError, match="Qdrant does not answer"):
        QdrantGallery(gallery.path, "http://127.0.0.1:9", model=model)


def test_the_columns_of_the_filter_test_are_those_here(gallery):
    assert gallery.columns == COLUMNS
