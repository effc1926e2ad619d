"""A release read by `datasets` 3.6 and by the current version; `make test-datasets3` sets both up."""

import json
import os
import subprocess
import sys

import pytest
from hub_server import environment, hub
from made_up_webperson import write_images
from places import HELPERS

from dataset_webperson.release import main

PYTHON = os.environ.get("DATASETS3_PYTHON")

pytestmark = pytest.mark.skipif(PYTHON is None, reason="run by `make test-datasets3`, in an environment of its own")


def read(python, wanted, endpoint, cache):
    process = subprocess.run(
        [python, str(HELPERS / "print_rows.py"), json.dumps(wanted)],
        env=environment(endpoint, cache),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    root = tmp_path_factory.mktemp("release")
    source = write_images(root / "source", 23)
    options = ["--repository", "org/webperson", "--contact", "x@example.org"]
    options += ["--rows_per_shard", "9", "--row_group_rows", "4"]
    assert main(["--source", str(source), "--output_dir", str(root / "out"), *options]) == 0
    with hub("org/webperson", {"main": root / "out", "script": root / "out-script"}) as endpoint:
        yield root, endpoint


def test_folder_and_repository_plain_and_streaming_give_the_same_rows_in_both_versions(served):
    root, endpoint = served
    places = [str(root / "out"), "org/webperson"]
    wanted = [[place, {"streaming": streaming}] for place in places for streaming in (False, True)]
    old, new = (read(python, wanted, endpoint, root / name) for name, python in (("3", PYTHON), ("5", sys.executable)))
    assert old["version"].startswith("3.6.") and int(new["version"].split(".")[0]) >= 4
    assert old["found"] == new["found"] and old["found"].count(old["found"][0]) == 4
    assert len(old["found"][0]["rows"]) == 23


def test_the_loading_script_gives_the_rows_of_main_in_version_3(served):
    root, endpoint = served
    script = str(root / "out-script" / "webperson.py")
    wanted = [["org/webperson", {}]]
    for streaming in (False, True):
        options = {"streaming": streaming, "trust_remote_code": True}
        wanted.append(["org/webperson", {**options, "revision": "script"}])
        wanted.append([script, {**options, "data_dir": str(root / "out")}])
    found = read(PYTHON, wanted, endpoint, root / "3-script")["found"]
    assert len(found) == 5 and found.count(found[0]) == 5
