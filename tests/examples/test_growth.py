"""The growth of a construction is measured part by part, at each number of rows."""

import queue
import sys
from types import SimpleNamespace

import pytest
from places import EXAMPLES

from dataset_webperson.construction.stages import duplicates


@pytest.fixture
def growth(monkeypatch):
    """The module, whose parts work in this process."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from pipeline_benchmark import growth, growth_inputs

    class Inline(SimpleNamespace):
        def start(self):
            self.target(*self.args)

        def join(self):
            pass

    monkeypatch.setattr(growth, "_SPAWN", SimpleNamespace(Queue=queue.Queue, Process=Inline))
    monkeypatch.setattr(growth_inputs, "ROWS_OF_SHARD", 20)
    monkeypatch.setattr(duplicates, "embedding_shards", duplicates.embedding_shards)  # a part replaces it
    yield growth
    for name in [name for name in sys.modules if name.startswith("pipeline_benchmark")]:
        del sys.modules[name]


def test_every_part_is_measured_and_the_exponent_is_that_of_the_rows(growth, tmp_path, capsys):
    names = [part.__name__ for part in growth.PARTS]
    growth.run_growth(str(tmp_path), str(tmp_path / "growth.json"), [40, 80], names)
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| part | 40 rows | 80 rows | exponent |"
    assert [line.split("|")[1].strip() for line in table[2:]] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["growth.json"]  # the rows are gone
    seconds = {10: 0.5, 100: 6.0, 1_000: 54.0}
    records = [
        {"part": "hashes", "rows": rows, "seconds": took, "wall_seconds": took, "gigabytes": 0.25}
        for rows, took in seconds.items()
    ]
    assert growth.growth_table(records).splitlines()[-1] == (
        "| hashes | 0.50 s, 0.25 GB | 6.00 s, 0.25 GB | 54.00 s, 0.25 GB | 0.95 |"
    )
