"""The JSON API: what it answers, what it refuses, and that a refusal is one line."""

import base64
import io
import json
import threading

import numpy as np
import pytest
from fastapi.testclient import TestClient
from galleries import tiny_gallery
from PIL import Image
from places import EXAMPLES

from dataset_webperson import DataError
from modeling_gadms.gallery import Gallery
from modeling_gadms.gallery.server import create_app
from modeling_gadms.gallery.server.filters import where_of
from modeling_gadms.gallery.server.limits import MAX_UPLOAD
from modeling_gadms.gallery.settings import change_settings

HERE = "http://127.0.0.1"
RED = {"texts": ["a person in a red coat"]}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    return tiny_gallery(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def client(gallery):
    return TestClient(create_app(gallery), base_url=HERE, raise_server_exceptions=False)


def refused(answer, status, *words):
    """Whether an answer is a refusal in one line that says these words."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    line = answer.json()["error"]
    assert "\n" not in line and "Traceback" not in line and len(line) <= 500
    assert all(word in line for word in words), line
    return line


def png(size=(16, 32), colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_search_gives_what_the_gallery_gives(client, gallery):
    answer = client.post("/api/search", json=RED | {"k": 5, "where": "camera = 1"})
    assert answer.status_code == 200
    expected = gallery.search(RED["texts"], k=5, where="camera = 1")
    found = answer.json()["hits"]
    assert [(hit["id"], hit["uri"], hit["metadata"]) for hit in found] == [
        (hit.id, hit.uri, hit.metadata) for hit in expected
    ]
    np.testing.assert_allclose([hit["score"] for hit in found], [hit.score for hit in expected])
    assert {hit["metadata"]["camera"] for hit in found} == {1}


def test_weights_images_and_dislikes_reach_the_gallery(client, gallery):
    first, second = (hit.id for hit in gallery.search("red", k=2))
    query = {"texts": ["red", "blue"], "text_weights": [1, 3], "images": [first], "image_weights": [2]}
    found = client.post("/api/search", json=query | {"unlike": [second], "collapse": "camera", "k": 3}).json()["hits"]
    options = {"text_weights": [1, 3], "image_weights": [2], "unlike": [second], "collapse": "camera", "k": 3}
    expected = gallery.search(["red", "blue"], [f"id:{first}"], **options)
    assert [hit["id"] for hit in found] == [hit.id for hit in expected]


def test_an_uploaded_image_finds_itself_by_form_and_by_json(client, gallery):
    row = gallery.search("blue", k=1)[0].id
    buffer = io.BytesIO()
    gallery.image(row).save(buffer, "PNG")
    by_form = client.post("/api/search", data={"k": "1"}, files={"uploads": ("x.png", buffer.getvalue())})
    coded = base64.b64encode(buffer.getvalue()).decode()
    by_json = client.post("/api/search", json={"uploads": [coded], "k": 1})
    assert by_form.json() == by_json.json()
    assert by_json.json()["hits"][0]["score"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ({}, 400, []),
        ({"texts": [""]}, 400, []),
        ({"texts": ["x" * 10_000]}, 422, ["texts.0", "1000"]),
        ({"texts": ["red"] * 11}, 422, ["texts", "10"]),
        (RED | {"k": 0}, 422, ["k"]),
        (RED | {"k": 100_000}, 422, ["k", "500"]),
        (RED | {"where": "no_such = 1"}, 400, ["no_such"]),
        (RED | {"where": "camera = "}, 400, ["filter"]),
        (RED | {"where": "camera = 1; drop table rows"}, 400, ["filter"]),
        (RED | {"text_weights": [1, 2]}, 400, []),
        (RED | {"collapse": "no_such"}, 400, ["no_such"]),
        (RED | {"limit": 3}, 422, ["limit"]),
        ({"images": ["../../etc/passwd"]}, 400, ["etc/passwd"]),
        ({"images": [str(EXAMPLES / "pictures" / "gallery.png")]}, 400, ["no image with the id"]),
        (RED | {"unlike": ["nobody"]}, 400, ["nobody"]),
        ({"uploads": [base64.b64encode(b"no image").decode()]}, 400, ["uploaded image"]),
        ({"uploads": ["not base64!"]}, 422, ["uploads.0"]),
    ],
)
def test_a_bad_query_is_refused_in_one_line(client, query, status, words):
    refused(client.post("/api/search", json=query), status, *words)


def test_what_is_no_query_at_all_is_refused(client):
    refused(client.post("/api/search", content=b"{", headers={"content-type": "application/json"}), 422)
    refused(client.post("/api/search", content=b"<xml/>", headers={"content-type": "text/xml"}), 415, "text/xml")
    refused(client.post("/api/search", content=b"x", headers={"content-type": "multipart/form-data"}), 400)
    refused(client.get("/api/search"), 405)
    refused(client.get("/nothing"), 404)


def test_a_broken_and_an_unpacking_image_are_refused(client):
    refused(client.post("/api/search", files={"uploads": png()[:40]}), 400, "uploaded image")
    bomb = io.BytesIO()
    Image.new("1", (7_000, 7_000)).save(bomb, "PNG")
    refused(client.post("/api/search", files={"uploads": bomb.getvalue()}), 400, "49,000,000 pixels")


def test_fifty_megabytes_are_refused_before_they_are_read(client):
    def body():
        yield b"x"
        raise AssertionError("read on")

    headers = {"content-length": str(50 * 2**20), "content-type": "application/json"}
    refused(client.post("/api/search", content=body(), headers=headers), 413, "10 MB")


def test_a_body_that_does_not_say_its_length_is_cut_off(client):
    pieces = (b" " * 2**20 for _ in range(MAX_UPLOAD // 2**20 + 2))
    refused(client.post("/api/search", content=pieces, headers={"content-type": "application/json"}), 413, "10 MB")


def test_images_are_sent_small_enough_and_may_be_kept_for_a_while(client, gallery):
    row = gallery.search("red", k=1)[0].id
    answer = client.get(f"/api/images/{row}?size=16")
    assert answer.headers["content-type"] == "image/jpeg"
    assert max(Image.open(io.BytesIO(answer.content)).size) == 16
    assert "max-age" in answer.headers["cache-control"] and "private" in answer.headers["cache-control"]
    again = client.get(f"/api/images/{row}?size=16", headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304 and not again.content
    whole = client.get(f"/api/images/{row}")
    assert Image.open(io.BytesIO(whole.content)).size == gallery.image(row).size


@pytest.mark.parametrize("row", ["nobody", "..%2F..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd", "..", "%00"])
def test_an_image_outside_the_gallery_is_refused(client, row):
    answer = client.get(f"/api/images/{row}")
    assert answer.status_code == 404 and "root:" not in answer.text


def test_a_mistake_names_no_folder_of_this_machine(gallery, tmp_path, monkeypatch):
    folder = tmp_path / "Anna Smith" / "photos"
    folder.mkdir(parents=True)
    (folder / "one.png").write_bytes(png())
    encoder = gallery.encoder()
    made = Gallery.create(tmp_path / "Anna Smith" / "her people", encoder)
    made.add(folder)
    change_settings(made.path, model={**made.model_facts, "id": str(tmp_path / "Anna Smith" / "model")})
    client = TestClient(create_app(made), base_url=HERE, raise_server_exceptions=False)
    (folder / "one.png").unlink()
    row = made.search("red", k=1)[0].id
    lines = [refused(client.get(f"/api/images/{row}"), 404, "one.png")]
    lines.append(refused(client.get("/api/explain", params={"text": "red", "id": row}), 400, "one.png"))
    monkeypatch.setattr(made, "_encoder", None)  # as in a server that has just been started
    lines.append(refused(client.post("/api/search", json=RED), 400, "model"))
    page = client.post("/", data={"texts": "red"}).text
    (made.path / "opt_out.txt").write_text("nonsense")
    lines.append(refused(client.get(f"/api/images/{row}"), 404, "opt_out.txt"))
    for shown in (*lines, page):
        assert "Anna" not in shown and "Smith" not in shown and str(tmp_path) not in shown, shown


@pytest.mark.parametrize("size", ["1", "100000", "large"])
def test_the_size_of_an_image_is_bounded(client, gallery, size):
    row = gallery.search("red", k=1)[0].id
    refused(client.get(f"/api/images/{row}?size={size}"), 422, "size")


def test_an_explanation_is_that_of_the_gallery(client, gallery):
    row = gallery.search("a red coat", k=1)[0].id
    found = client.get("/api/explain", params={"text": "a red coat", "id": row}).json()
    expected = gallery.explain("a red coat", row)
    assert [word for word, _ in found["words"]] == ["a", "red", "coat"]
    np.testing.assert_allclose([value for _, value in found["words"]], [value for _, value in expected.words])
    np.testing.assert_allclose(found["patches"], expected.patches, rtol=1e-5)
    refused(client.get("/api/explain", params={"text": "red", "id": "nobody"}), 400, "nobody")
    refused(client.get("/api/explain", params={"id": row}), 422, "text")


def test_columns_and_figures_are_those_of_the_gallery(client, gallery):
    assert client.get("/api/columns").json() == gallery.columns
    stats = client.get("/api/stats").json()
    assert stats["model"]["weights_sha256"] == gallery.model_facts["weights_sha256"]
    assert stats["threshold"] == gallery.threshold and stats["images"] == len(gallery)


@pytest.mark.parametrize("name, shown", [("/home/anna/runs/demo", "demo"), ("org/person-search", "org/person-search")])
def test_a_folder_of_this_machine_is_not_published(tmp_path, name, shown):
    gallery = tiny_gallery(tmp_path, count=2)
    change_settings(gallery.path, model={**gallery.model_facts, "id": name})
    client = TestClient(create_app(gallery), base_url=HERE)
    assert client.get("/api/stats").json()["model"] == {**gallery.model_facts, "id": shown}
    assert "/home/anna" not in client.get("/").text


def test_the_documentation_is_whole_without_a_network(client):
    schema = client.get("/openapi.json").json()
    assert {"/api/search", "/api/explain", "/api/images/{id}", "/api/stats", "/api/columns"} == set(schema["paths"])
    for body in schema["paths"]["/api/search"]["post"]["requestBody"]["content"].values():
        assert set(body["schema"]["properties"]) >= {"texts", "uploads", "where", "k", "purpose"}
    page = client.get("/docs").text
    assert "https://" not in page and "<script src" not in page and "/api/explain" in page


def test_a_bug_gives_no_traceback_to_the_client(client, gallery, monkeypatch):
    def fail(*args, **options):
        raise KeyError("secret")

    monkeypatch.setattr(gallery, "search", fail)
    assert "secret" not in refused(client.post("/api/search", json=RED), 500)


def test_two_threads_ask_at_once_and_each_has_its_own_answer(client):
    words = ["red", "green", "blue", "black"]
    alone = {word: client.post("/api/search", json={"texts": [word]}).json() for word in words}
    together = {}

    def ask(word):
        for _ in range(5):
            together.setdefault(word, []).append(client.post("/api/search", json={"texts": [word]}).json())

    threads = [threading.Thread(target=ask, args=(word,)) for word in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == {word: [alone[word]] * 5 for word in words}


def test_a_logged_gallery_asks_for_a_purpose_and_keeps_it(tmp_path):
    gallery = tiny_gallery(tmp_path)
    gallery.audit.switch(True)
    client = TestClient(create_app(gallery), base_url=HERE)
    refused(client.post("/api/search", json=RED), 400, "purpose")
    refused(client.post("/api/search", json=RED | {"purpose": " "}), 400, "purpose")
    found = client.post("/api/search", json=RED | {"purpose": "a lost child", "k": 2}).json()["hits"]
    (line,) = [json.loads(line) for line in open(gallery.audit.path, encoding="utf-8")]
    assert line["purpose"] == "a lost child" and "red coat" in line["query"] and line["who"] == "testclient"
    assert [hit["id"] for hit in line["hits"]] == [hit["id"] for hit in found]
    asked = {"text": "a green coat", "id": found[1]["id"]}
    refused(client.get("/api/explain", params=asked), 400, "purpose")
    assert "purpose" in client.get("/why", params=asked).text
    explained = client.get("/api/explain", params=asked | {"purpose": "case 7"}).json()
    assert client.get("/why", params=asked | {"purpose": "case 8"}).status_code == 200
    _, *lines = [json.loads(line) for line in open(gallery.audit.path, encoding="utf-8")]
    assert [line["purpose"] for line in lines] == ["case 7", "case 8"]
    for line in lines:
        assert json.loads(line["query"]) == {"explain": "a green coat"} and line["who"] == "testclient"
        hit = {"id": found[1]["id"], "uri": found[1]["uri"], "score": round(explained["score"], 4)}
        assert line["hits"] == [hit]
    page = client.post("/", data={"texts": "red", "purpose": "case 9"}).text
    assert "&amp;purpose=case%209" in page


def test_filters_of_the_page_become_one_filter():
    columns = {"camera": "number", "site": "text", "time": "time", "night": "bool"}
    fields = {
        "filter.camera.from": "3",
        "filter.camera.to": " 4.5 ",
        "filter.site.is": "O'Hare",
        "filter.night.is": "",
    }
    assert where_of(None, {}, columns) is None
    assert (
        where_of(" ", fields | {"filter.night.is": ""}, columns)
        == "camera >= 3 and camera <= 4.5 and site = 'O''Hare'"
    )
    assert where_of("a or b", {"filter.night.is": "no"}, columns) == "(a or b) and night = false"
    assert where_of("", {"filter.site.is": "north%"}, columns) == "site like 'north%'"
    assert where_of("", {"filter.time.from": "2024-01-01T10:00"}, columns) == "time >= '2024-01-01T10:00'"
    for field, value in [("filter.camera.is", "three"), ("filter.id.is", "x"), ("filter.site.like", "x")]:
        with pytest.raises(DataError, match="number|no such filter"):
            where_of("", {field: value}, columns)
