"""The configurations that ship are complete, and the local one runs."""

from pathlib import Path

import pytest
import yaml
from caption_server import CaptionServer, serve
from datasets import load_dataset
from made_up_persons import GOOD, picture, stub_crop_shard
from places import REPO

from dataset_webperson import build
from dataset_webperson.construction.config import read_config

CONFIGS = REPO / "examples" / "configs"


@pytest.mark.parametrize("name", ["local", "yolo", "hosted", "slurm"])
def test_every_option_of_a_configuration_exists(name):
    path = CONFIGS / f"webperson_{name}.yaml"
    config = read_config(path)
    assert config.caption and config.quality and config.release
    assert all(len(line) < 120 for line in path.read_text().splitlines())
    assert len(list(CONFIGS.iterdir())) == 4 and (config.engine.slurm is not None) == (name == "slurm")


def test_the_local_configuration_goes_from_images_to_a_release(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "crop_shard", stub_crop_shard)
    values = yaml.safe_load((CONFIGS / "webperson_local.yaml").read_text())
    Path(values["source"]).mkdir(parents=True)
    for number in range(3):
        Path(values["source"], f"{number}.png").write_bytes(picture(GOOD, seed=number))
    with serve(CaptionServer()) as server:
        server.models = ["tiny-vlm"]
        for name in ("captioner1", "captioner2"):
            values["caption"][name]["base_url"] = server.url
        values["num_workers"] = 1
        Path("config.yaml").write_text(yaml.safe_dump(values))
        assert build.main(["config.yaml"]) == 0
    rows = load_dataset(values["release"]["out"], split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 3 and "you@example.org" in Path(values["release"]["out"], "README.md").read_text()
