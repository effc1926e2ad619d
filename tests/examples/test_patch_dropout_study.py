"""The study of patch dropout, on runs that are made up."""

import json
import sys

import pytest
from places import EXAMPLES
from tiny import tiny_config

sys.path[:0] = [str(EXAMPLES / "studies"), str(EXAMPLES)]

import patch_dropout  # noqa: E402


def test_runs_are_paired_by_seed_and_query_and_kept(tmp_path, monkeypatch, capsys):
    trained = []

    def train_cell(cell, noise_rate, seed, args, **options):
        trained.append((options["patch_dropout"], seed, args.num_persons, args.epochs))
        lost = [100.0, 0.0] if options["patch_dropout"] else [100.0, 100.0]
        return {"values": {"R@1": [*lost, 0.0, 100.0 * seed]}, "persons": [1, 1, 2, 2]}

    monkeypatch.setattr(patch_dropout, "train_cell", train_cell)
    monkeypatch.setattr(patch_dropout, "GADMSConfig", tiny_config)
    argv = ["--images", "40", "--output_dir", str(tmp_path / "runs"), "--results_dir", str(tmp_path)]
    for _ in range(2):  # the second finds all its runs
        assert patch_dropout.main(argv) == 0
    assert trained == [(share, seed, 20, 1.0) for share in (0.0, 0.5) for seed in (0, 1)]
    kept = json.loads((tmp_path / "patch_dropout.json").read_text())
    found = kept["results"]
    assert "results_dir" not in kept["arguments"] and kept["arguments"]["images"] == 40
    assert found["0.0"]["by_seed"] == [50, 75] and found["0.5"]["by_seed"] == [25, 50]
    assert found["0.5"]["difference"]["mean"] == -25 and found["0.0"]["difference"]["mean"] == 0
    assert found["0.5"]["gflop"] < 0.7 * found["0.0"]["gflop"]
    assert "| 0.5 | " in capsys.readouterr().out


def test_operations_are_fewer_by_nearly_the_share_left_out():
    whole, half = (patch_dropout.tower_gflop(share, patch_dropout.GADMSConfig()) for share in (0.0, 0.5))
    assert whole == pytest.approx(104.1, rel=0.01), "as the study of costs counts them"
    assert 0.48 < half / whole < 0.53
