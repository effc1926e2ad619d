"""A configuration is checked whole before anything is paid for, and can be tried without being run."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import yaml
from caption_server import CaptionServer, serve
from made_up_persons import stub_crop_shard, write_source
from test_construction_build import write_config

from dataset_webperson import build
from dataset_webperson.construction import preflight
from dataset_webperson.construction.captions.client import Captioner, CaptionServerError
from dataset_webperson.construction.preflight import check_captioners
from dataset_webperson.release import _FILES


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    monkeypatch.setattr(build, "crop_shard", stub_crop_shard)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with two tars, and a server that has the model that the configurations name."""
    root = tmp_path_factory.mktemp("preflight")
    write_source(root / "source", shards=2, images=3, copies=0)
    with serve(CaptionServer()) as server:
        server.models = ["made-up", "other:latest"]
        yield root / "source", server


def mistakes(root):
    """Name of the mistake -> changed sections, and what the one line says."""
    out = {"out": str(root / "out"), "contact": "privacy@example.org"}
    (root / "taken").mkdir()
    (root / "latin.md").write_bytes("caf\xe9".encode("latin-1"))
    shutil.copy(f"{_FILES}/provenance.md", root / "paper.md")
    (root / "templates.json").write_text(json.dumps({"templates": []}))
    (root / "list.txt").write_text("a.org")
    return {
        "rows": ({"release": {**out, "rows_per_shard": 0}}, "config.yaml: release: rows_per_shard=0"),
        "repository": ({"release": {**out, "repository": "webperson"}}, "write ORG/NAME"),
        "taken": ({"release": {**out, "out": str(root / "taken")}}, "taken: exists already and was not made by"),
        "provenance": ({"release": {**out, "provenance": str(root / "no.md")}}, "no.md"),
        "latin": ({"release": {**out, "provenance": str(root / "latin.md")}}, "not a UTF-8 text file"),
        "paper": ({"release": {**out, "provenance": str(root / "paper.md")}}, "says how the paper's data was made"),
        "quality": ({"quality": {"model": str(root / "nowhere")}}, "nowhere: `quality.model` cannot be opened"),
        "embedding": (
            {"dedup": {"embedding": {"model": str(root / "nowhere")}}},
            "nowhere: `dedup.embedding.model` cannot be opened",
        ),
        "opt-out": ({"opt_out": str(root / "list.txt")}, "list.txt line 1"),
        "policy": ({"on_bad_shard": "skp"}, "on_bad_shard is one of error, skip, not 'skp'"),
    }


@pytest.mark.parametrize(
    "name", "rows repository taken provenance latin paper quality embedding opt-out policy".split()
)
def test_a_mistake_is_one_line_before_any_stage(source, tmp_path, capsys, name):
    folder, server = source
    changes, told = mistakes(tmp_path)[name]
    config = write_config(tmp_path, server.url, source=str(folder), **changes)
    assert build.main([config]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert told in line
    assert not (tmp_path / "work" / "1_crop").exists() and not server.requests


def test_templates_and_the_disk_are_looked_at(source, tmp_path, capsys, monkeypatch):
    folder, server = source
    mistakes(tmp_path)
    config = write_config(tmp_path, server.url, source=str(folder))
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000))
    assert build.main([config]) == 2
    error = capsys.readouterr().err
    assert re.search(
        r"work: 1.0 kB are free, and this construction is estimated to need \d+\.\d [kM]B; make room", error
    )
    assert not (tmp_path / "work" / "1_crop").exists() and not server.requests
    values["caption"]["templates"] = str(tmp_path / "templates.json")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert build.main([config]) == 2
    assert "templates.json: no template is approved" in capsys.readouterr().err


def test_servers_are_asked_for_their_models(source):
    _, server = source
    one = Captioner(server.url, "made-up")
    check_captioners(SimpleNamespace(captioner1=one, captioner2=Captioner(server.url, "other")))
    wrong = SimpleNamespace(captioner1=one, captioner2=Captioner(server.url, "larger"))
    with pytest.raises(CaptionServerError, match="no model 'larger'; it has made-up, other:latest$"):
        check_captioners(wrong)
    with pytest.raises(CaptionServerError, match="cannot be reached .*; start the server, or check `base_url`$"):
        check_captioners(SimpleNamespace(captioner1=one, captioner2=Captioner("http://127.0.0.1:9/v1", "made-up")))


def test_a_dry_run_tells_what_the_stages_would_take_and_leaves_nothing(source, tmp_path, capsys):
    folder, server = source
    priced = {"base_url": server.url, "model": "made-up", "input_price": 5000.0, "output_price": 10_000.0}
    caption = {"captioner1": priced, "captioner2": {**priced, "seed": 1}}
    config = write_config(tmp_path, server.url, source=str(folder), caption=caption)
    assert build.main([config, "--dry_run"]) == 0
    table = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    # Six images of two persons each; every caption is 100 tokens read and 20 written.
    assert table["1_crop"][1:3] == ["6", "12"] and table["release"][1:3] == ["12", "12"]
    assert table["3_caption"][-2:] == [f"{24 * 120:,}", f"${24 * (100 * 5 + 20 * 10) / 1000:,.2f}"]
    assert list(table)[2:7] == ["1_crop", "2_dedup", "3_caption", "4_quality", "release"]
    left = sorted(path.name for path in (tmp_path / "work").iterdir())
    assert left == ["build.lock", "scan"] and not (tmp_path / "out").exists()
