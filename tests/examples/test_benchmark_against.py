"""Two copies of the code beside each other."""

import sys

from places import REPO

sys.path.insert(0, str(REPO / "examples"))
import benchmark_against
from benchmark_against import main, table


def test_medians_stand_beside_their_spread():
    found = {"ranking": [(2.0, 1.0), (4.0, 3.0), (3.0, 1.5)]}
    assert table(found, 3).splitlines()[-1] == "| ranking | 3.00 | 1.50 | 1.00 | 3.00 |"


def test_two_copies_take_turns_in_processes_of_their_own(capsys, monkeypatch):
    monkeypatch.setattr(benchmark_against, "make_release", lambda source, out, layout: source)
    monkeypatch.setattr(benchmark_against, "make_source", lambda folder, rows: folder)
    monkeypatch.setattr(benchmark_against, "WORKER", REPO / "tests" / "helpers" / "timed_twice.py")
    assert main([str(REPO), "--rounds", "2"]) in (0, None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["| one | 1.00 | 1.00 | 1.00 | 1.00 |", "| two | 1.00 | 1.00 | 1.00 | 1.00 |"]
    assert main(["no-such-commit"]) == 2
    assert "git has no such commit" in capsys.readouterr().err
