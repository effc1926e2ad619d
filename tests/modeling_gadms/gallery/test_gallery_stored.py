"""A copy of a gallery on object storage gives the same results, and is only searched.

The address is lancedb's own for a local folder that is treated as an object storage; no S3 server runs here.
"""

import pytest
from fastapi.testclient import TestClient
from qdrant_client import QdrantClient
from tiny import save_published, tiny_rows

from dataset_webperson import DataError
from modeling_gadms.gallery import Gallery, StoredGallery, server
from modeling_gadms.gallery.__main__ import main


@pytest.fixture
def gallery(tmp_path, model):
    made = Gallery.create(tmp_path / "people", model)
    rows = tiny_rows(20)
    made.add([row["image"] for row in rows], [{"camera": number % 3} for number in range(20)])
    return made


@pytest.fixture
def address(tmp_path):
    return f"file-object-store://{tmp_path}/bucket/people"


def test_a_copy_is_opened_by_its_address_and_finds_the_same(gallery, address, model):
    assert gallery.export("lance", address) == 20
    copy = Gallery.open(address, model)
    assert isinstance(copy, StoredGallery) and copy.path.name == "people"
    question = {"texts": ["a red coat", "red"], "where": "camera < 2", "collapse": "phash"}
    assert copy.search(**question) == gallery.search(**question)
    number = copy.search("a red coat")[0].id
    assert copy.image(number).tobytes() == gallery.image(number).tobytes()  # pictures without files travel too
    for change in (copy.add, copy.remove, copy.rebuild, copy.opt_out, copy.export):
        with pytest.raises(DataError, match="file-object-store.*: is only searched; change the gallery"):
            change("x")


def test_copies_do_not_tell_where_the_model_lay_and_are_asked_and_served_by_its_place(tmp_path, address, monkeypatch):
    place = str(tmp_path / "model")
    save_published(place)
    gallery = Gallery.create(tmp_path / "people", place)
    gallery.add([row["image"] for row in tiny_rows(6)])
    in_qdrant = str(tmp_path / "qdrant")
    for kind, target in (("lance", address), ("qdrant", in_qdrant)):
        assert gallery.export(kind, target) == 6
    copy = Gallery.open(address)
    assert copy.model_facts["id"] == "model" and str(tmp_path) not in (copy.path / "gallery.json").read_text()
    client = QdrantClient(path=in_qdrant)
    assert client.get_collection("gallery").config.metadata["model"]["id"] == "model"
    client.close()
    with pytest.raises(DataError, match="made by the model model, which lay elsewhere; say where it lies, by --"):
        copy.search("a coat")
    served = []
    monkeypatch.setattr(server, "run_app", lambda app, listener: served.append(app))
    for options in ([address, "--model", place], [str(gallery.path), "--url", in_qdrant]):
        assert main(["serve", *options, "--port", "0"]) == 0
    expected = [hit.id for hit in gallery.search("a coat", exact=True)]
    for app in served:
        answer = TestClient(app, base_url="http://127.0.0.1").post("/api/search", json={"texts": ["a coat"]})
        assert [hit["id"] for hit in answer.json()["hits"]] == expected, answer.text


def test_another_copy_forgets_what_was_removed_and_keeps_the_opt_out_list(gallery, address, model, tmp_path):
    first, second = (hit.id for hit in gallery.search("a coat", k=2))
    sha256 = gallery._rows().row(second, ["sha256"])["sha256"][0].as_py()
    assert gallery.export("lance", address) == 20
    before = {file for file in (tmp_path / "bucket" / "people" / "rows.lance").rglob("*.lance") if file.is_file()}
    gallery.remove([first])
    (gallery.path / "opt_out.txt").write_text(f"sha256:{sha256}\n")
    assert gallery.export("lance", address) == 19
    assert before and not any(file.exists() for file in before)
    assert not {first, second} & {hit.id for hit in Gallery.open(address, model).search("a coat", k=20)}


def test_what_is_no_copy_is_refused(gallery, address, model, tmp_path):
    with pytest.raises(DataError, match="no copy of a gallery can be read there"):
        Gallery.open(address, model)
    with pytest.raises(DataError, match="holds a table rows that is no copy"):
        gallery.export("lance", gallery.path)
    gallery.audit.switch(True)
    gallery.export("lance", address)
    with pytest.raises(DataError, match="its queries are to be recorded"):
        Gallery.open(address, model)
