"""The demonstration of the gallery, its Space, and its server under load, as a user starts them."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import forked
import pytest
from hub_server import TOKEN, environment, running_hub
from places import EXAMPLES, REPO

from modeling_gadms.gallery import Gallery

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}


@contextmanager
def started(command, folder, environment=ENVIRONMENT):
    """The address that a server prints, and what it printed before."""
    with open(folder / "errors.txt", "w+", encoding="utf-8") as errors:
        server = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            lines = []
            while not lines or "http://" not in lines[-1]:
                lines.append(server.stdout.readline())
                assert lines[-1], (folder / "errors.txt").read_text()[-3000:]
            yield "http://" + lines[-1].rpartition("http://")[2].strip(), lines
        finally:
            server.terminate()
            server.wait()


def ask(address, body):
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}/api/search", body.encode(), headers)) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


def test_the_demonstration_builds_a_gallery_and_opens_it_again_at_once(folder, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import demo_search

    served = []
    monkeypatch.setattr(demo_search, "serve", lambda path, port: served.append((path, port)))
    command = ["--output_dir", str(folder), "--num_images", "60", "--port", "7000", "--no_browser"]
    assert demo_search.main(command) == 0
    assert "drawing 60 images" in capsys.readouterr().out
    gallery = Gallery.open(folder / "drawings")
    found = gallery.search("a woman in a red coat", k=5, where="camera < 6")
    assert len(found) == 5 and all(0 < hit.probability < 1 for hit in found)
    assert len(gallery.search("a man", k=60, collapse="person")) == 30
    assert demo_search.main(command) == 0
    assert capsys.readouterr().out == "" and served == [(folder / "drawings", 7000)] * 2
    assert demo_search.main([*command, "--num_images", "80"]) == 0
    assert "has 60 drawings from an earlier call" in capsys.readouterr().out
    assert demo_search.main([*command, "--model", str(EXAMPLES / "small_clip")]) == 2  # not the one that made it
    assert "small_clip has other weights; ask with the model" in capsys.readouterr().err.splitlines()[-1]
    assert len(served) == 3


def test_the_demonstration_shows_a_folder_as_it_is_now(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import demo_search

    monkeypatch.setattr(demo_search, "serve", lambda path, port: None)
    images = tmp_path / "people"
    images.mkdir()
    for picture in sorted((folder / "images").iterdir())[:3]:
        shutil.copy(picture, images)
    model = ["--model", str(folder / "small_clip"), "--output_dir", str(tmp_path / "out"), "--no_browser"]
    assert demo_search.main(["--images", str(images), *model]) == 0
    assert "3 added" in capsys.readouterr().out
    next(images.iterdir()).unlink()
    assert demo_search.main(["--images", str(images), *model]) == 0
    assert "1 removed" in capsys.readouterr().out
    namesake = tmp_path / "others" / "people"
    shutil.copytree(images, namesake)
    assert demo_search.main(["--images", str(namesake), *model]) == 0
    assert "2 added" in capsys.readouterr().out  # into a gallery of its own
    assert demo_search.main(["--images", str(tmp_path / "nowhere"), *model]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_many_clients_are_served_without_an_error(folder, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    import benchmark_gallery_server

    assert benchmark_gallery_server.main([str(folder / "drawings"), "--clients", "4", "--seconds", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "errors 0" in printed and "p99" in printed and "memory of the server" in printed


def test_the_space_is_pushed_whole_and_runs_by_itself(tmp_path):
    with running_hub() as hub:
        command = [EXAMPLES / "publish.py", "space", EXAMPLES / "space", "org/gallery"]
        pushed = forked.run(command, env=environment(hub.endpoint, tmp_path / "cache", TOKEN))
        assert pushed.returncode == 0, pushed.stderr
        tree = hub["spaces/org/gallery"].tree()
    space = tmp_path / "space"
    for name, content in tree.items():
        path = space / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert "sdk: docker" in (space / "README.md").read_text() and not any("__pycache__" in name for name in tree)
    listed = {line.partition(">")[0] for line in (space / "requirements.txt").read_text().splitlines()}
    known = (REPO / "pyproject.toml").read_text()
    assert listed and all(f'"{name}>' in known for name in listed)
    alone = {**ENVIRONMENT, "PYTHONPATH": str(space)}
    with started(["app.py", "--port", "0", "--num_images", "40"], space, alone) as (address, lines):
        assert "40 drawings" in lines[-1]
        assert ask(address, '{"texts": ["a man"], "k": 3}')["hits"]
