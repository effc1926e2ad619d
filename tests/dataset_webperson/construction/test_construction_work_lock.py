"""Two builds never share a `work` folder."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from dataset_webperson.build import main
from dataset_webperson.construction.work_lock import work_lock
from dataset_webperson.findings import DataError

_HOLD = """
import sys, time
from dataset_webperson.construction.work_lock import work_lock
with work_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "images").mkdir()
    path = tmp_path / "build.yaml"
    path.write_text(f"source: {tmp_path / 'images'}\nwork: {tmp_path / 'work'}\n")
    return str(path)


def test_a_second_build_says_who_holds_the_folder_and_a_killed_one_holds_nothing(tmp_path, config, capsys):
    work = tmp_path / "work"
    first = subprocess.Popen([sys.executable, "-c", _HOLD, str(work)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        assert main([config]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{work / 'build.lock'}: process {first.pid} on {socket.gethostname()} is building here; " in line
        assert os.listdir(work) == ["build.lock"]
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert (work / "build.lock").read_text() == f"{first.pid} {socket.gethostname()}\n"
    assert main([config]) == 2
    assert "no image files in it" in capsys.readouterr().err  # the lock was not in the way
    assert (work / "build.lock").read_text() == ""


def test_a_process_of_another_host_may_still_run(tmp_path):
    path = tmp_path / "build.lock"
    path.write_text("7 elsewhere\n")
    with pytest.raises(DataError, match="process 7 on elsewhere is building here; .* delete this file if it is dead$"):
        with work_lock(str(tmp_path)):
            pass
    assert path.read_text() == "7 elsewhere\n"
