"""Who is let in: the address, the Host, the origin and the token."""

import asyncio
import socket
import threading
import time

import pytest
from fastapi.testclient import TestClient
from galleries import running_server, tiny_gallery

from dataset_webperson import DataError
from modeling_gadms.gallery.server import address_of, create_app, is_loopback, listen, protocol, serve
from modeling_gadms.gallery.server.limits import Workers

TOKEN = "correct horse battery"


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    return tiny_gallery(tmp_path_factory.mktemp("guard"), count=4)


def client_of(gallery, host="127.0.0.1:7860", **options):
    return TestClient(create_app(gallery, **options), base_url=f"http://{host}", follow_redirects=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org"])
def test_an_address_that_others_reach_needs_a_token(host, tmp_path):
    with pytest.raises(DataError, match=f"^--host {host}: .* token") as refusal:
        serve(tmp_path, host=host)
    assert "\n" not in str(refusal.value)


def test_an_empty_token_is_none(tmp_path):
    with pytest.raises(DataError, match="--token: is empty"):
        serve(tmp_path, host="0.0.0.0", token=" ")


def test_loopback_is_known_in_each_spelling():
    assert all(map(is_loopback, ["127.0.0.1", "127.3.2.1", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "10.0.0.1", "::", "localhost.example.org", ""]))


def test_a_port_that_is_taken_is_said_in_one_line():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert address_of(taken) == f"http://127.0.0.1:{port}"
        with pytest.raises(DataError, match=f"127.0.0.1 port {port}: .*in use"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:7860", "[::1]:7860", "LOCALHOST:1"])
def test_names_of_this_machine_are_answered(gallery, host):
    assert client_of(gallery).get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1.example.org", "localhost.example.org:7860", "", "[::1"])
def test_another_name_that_leads_here_is_refused(gallery, host):
    answer = client_of(gallery).get("/api/stats", headers={"host": host})
    assert answer.status_code == 403 and answer.json()["error"].startswith("Host: ")


def test_another_site_may_not_ask(gallery):
    client = client_of(gallery)
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999"):
        answer = client.post("/api/search", json={"texts": ["red"]}, headers={"origin": origin})
        assert answer.status_code == 403 and answer.json()["error"].startswith("Origin: ")
        assert "access-control-allow-origin" not in answer.headers
    own = client.post("/api/search", json={"texts": ["red"]}, headers={"origin": "http://127.0.0.1:7860"})
    assert own.status_code == 200


def test_answers_are_kept_from_other_sites_and_from_caches(gallery):
    headers = client_of(gallery).get("/").headers
    assert headers["cache-control"] == "no-store"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "frame-ancestors 'none'"
    assert not any(name.startswith("access-control") for name in headers)


@pytest.mark.parametrize("path", ["/api/stats", "/api/columns", "/openapi.json", "/docs", "/", "/why", "/nothing"])
def test_without_the_token_nothing_is_told(gallery, path):
    client = client_of(gallery, "gallery.example.org", token=TOKEN)
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert "Authorization" in answer.json()["error"]
    assert client.get("/api/columns", headers={"authorization": f"Bearer {TOKEN}"}).json() == gallery.columns


def test_a_browser_is_asked_for_the_token_and_gets_a_cookie(gallery):
    client = client_of(gallery, "gallery.example.org", token=TOKEN)
    asked = client.get("/", headers={"accept": "text/html"})
    assert asked.status_code == 303 and asked.headers["location"] == "/login"
    assert 'type="password"' in client.get("/login").text
    assert client.post("/login", data={"token": "wrong"}).status_code == 401
    assert client.get("/").status_code == 401
    opened = client.post("/login", data={"token": TOKEN})
    assert opened.status_code == 303 and opened.headers["location"] == "/"
    cookie = opened.headers["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower() and TOKEN not in cookie
    assert client.get("/").status_code == 200
    restarted = client_of(gallery, "gallery.example.org", token=TOKEN)
    assert restarted.get("/", headers={"cookie": cookie.partition(";")[0]}).status_code == 401


def test_a_cookie_travels_over_https_alone_where_it_was_given_there(gallery):
    client = TestClient(
        create_app(gallery, token=TOKEN), base_url="https://gallery.example.org", follow_redirects=False
    )
    assert "Secure" in client.post("/login", data={"token": TOKEN}).headers["set-cookie"]


def test_a_public_demonstration_answers_under_any_name_and_in_frames(gallery):
    answer = client_of(gallery, "org-gallery.hf.space", public=True).get("/", headers={"origin": "https://hf.co"})
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == "frame-ancestors *"


def send(address, text):
    connection = socket.create_connection(address, timeout=10)
    connection.sendall(text.encode())
    return connection


HEADERS = "POST /api/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "


def test_slow_clients_do_not_hold_up_others_and_a_large_one_is_refused_at_once(gallery):
    with running_server(gallery) as address:
        slow = [send(address, f'{HEADERS}100\r\n\r\n{{"texts"') for _ in range(60)]
        body = '{"texts": ["red"], "k": 1}'
        with send(address, f"{HEADERS}{len(body)}\r\nConnection: close\r\n\r\n{body}") as quick:
            assert quick.recv(4096).startswith(b"HTTP/1.1 200")
        with send(address, f"{HEADERS}{50 * 2**20}\r\n\r\n") as large:
            assert large.recv(4096).startswith(b"HTTP/1.1 413")
        for connection in slow:
            connection.close()


def is_cut_off(connection, seconds=5.0):
    """Whether the server closes a connection over which header lines drip."""
    end = time.monotonic() + seconds
    connection.settimeout(0.05)
    while time.monotonic() < end:
        try:
            connection.sendall(b"X-Drip: 1\r\n")
            if connection.recv(4096) == b"":
                return True
        except TimeoutError:
            continue
        except OSError:  # closed while it was being sent to
            return True
    return False


def test_headers_that_drip_for_ever_are_cut_off_and_an_answer_takes_its_time(gallery, monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    answered = gallery.search

    def slowly(*args, **options):
        time.sleep(0.6)
        return answered(*args, **options)

    monkeypatch.setattr(gallery, "search", slowly)
    body = '{"texts": ["red"], "k": 1}'
    with running_server(gallery) as address:
        with send(address, "GET / HTTP/1.1\r\n") as first:
            assert is_cut_off(first)
        with send(address, f"{HEADERS}{len(body)}\r\n\r\n{body}") as second:
            assert second.recv(65536).startswith(b"HTTP/1.1 200")
            second.sendall(b"GET / HTTP/1.1\r\n")
            assert is_cut_off(second)  # after an answer too


def test_work_beyond_what_may_wait_is_refused():
    async def crowd():
        workers, running = Workers(threads=1, waiting=2), threading.Event()
        calls = [asyncio.create_task(workers.run(running.wait, 10)) for _ in range(6)]
        await asyncio.sleep(0.05)
        running.set()
        return await asyncio.gather(*calls, return_exceptions=True)

    answers = asyncio.run(crowd())
    assert answers[:3] == [True] * 3
    assert [error.status_code for error in answers[3:]] == [503] * 3
