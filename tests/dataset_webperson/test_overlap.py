"""Images that stand in the training of one benchmark and are held out by another: all that are planted are found."""

import json

import numpy as np
import pytest
from made_up_datasets import write_copy
from overlapping_copies import two_copies

from dataset_webperson.doctor import main
from dataset_webperson.image_audit import ImageFacts
from dataset_webperson.overlap import image_set, overlaps


def findings(folder, *roots):
    code = main([*map(str, roots), "--output_dir", str(folder), "--partial", "--num_workers", "1"])
    assert code == 0
    reports = json.loads((folder / "report.json").read_text())["datasets"]
    return {one["name"]: {finding["code"]: finding for finding in one["findings"]} for one in reports}


@pytest.mark.parametrize("together", [False, True])
def test_the_doctor_finds_all_that_two_benchmarks_share_and_nothing_else(tmp_path, together):
    icfg, rstp, persons = two_copies(tmp_path)
    found = findings(tmp_path / "out", *([tmp_path] if together else [icfg, rstp]))
    counts = {"ICFG-PEDES": 3, "RSTPReid": 1}
    for name, of_one in found.items():
        images, shared = of_one["image-elsewhere-held-out"], of_one["person-elsewhere-held-out"]
        assert images["severity"] == shared["severity"] == "warning"
        assert images["count"] == counts[name] and shared["count"] == len(persons[name])
        named = {int(example["text"].split(",")[0].removeprefix("person ")) for example in shared["examples"]}
        assert named == persons[name]
        assert all(len(example["images"]) == 2 for example in images["examples"])
    texts = " ".join(example["text"] for example in found["ICFG-PEDES"]["image-elsewhere-held-out"]["examples"])
    assert "in test of RSTPReid: 0 of 64 bits differ" in texts and "in validation of RSTPReid" in texts
    assert "elsewhere" not in "".join(findings(tmp_path / "one", icfg)["ICFG-PEDES"])


def test_options_of_one_folder_are_refused_for_two(tmp_path, capsys):
    icfg, rstp = write_copy("icfg", tmp_path), write_copy("rstp", tmp_path)
    assert main([str(icfg), str(rstp), "--dataset", "rstpreid", "--output_dir", str(tmp_path / "out")]) == 2
    assert "are of one folder; give one" in capsys.readouterr().err


def test_every_close_pair_of_training_and_held_out_images_of_other_benchmarks_counts(tmp_path):
    """Against a loop over all pairs of images."""
    rng = np.random.default_rng(0)
    sets, bases = [], rng.integers(0, 2**63, 12)
    for number, (name, split) in enumerate((n, s) for n in "abc" for s in ("train", "validation", "test")):
        rows, facts = [], {}
        for image in range(7):
            path = str(tmp_path / f"{number}_{image}")
            flipped = sum(1 << int(bit) for bit in rng.choice(63, rng.integers(0, 8), replace=False))
            facts[path] = ImageFacts(hash=int(rng.choice(bases)) ^ flipped)
            rows.append((path, path, 10 * number + image // 2))
            with open(path, "wb") as file:
                file.write(bytes([facts[path].hash % 3]))
        facts[rows[3][0]].problem = "image-unreadable"
        sets.append(image_set(name, split, split == "train", rows, facts))
    assert all(len(one.paths) == 6 for one in sets)
    found = {(one.training.name, one.held_out.name, one.held_out.split): one for one in overlaps(sets)}
    expected = 0
    for a in sets:
        for b in sets:
            pairs = [
                (i, j)
                for i, left in enumerate(a.hashes.tolist())
                for j, right in enumerate(b.hashes.tolist())
                if (left ^ right).bit_count() <= 4 and a.split == "train" and b.split != "train" and a.name != b.name
            ]
            if pairs:
                overlap = found[a.name, b.name, b.split]
                assert [tuple(pair) for pair in overlap.pairs[:, :2].tolist()] == pairs
                assert overlap.persons() == {a.persons[i] for i, _ in pairs}
                same = {i for i, j in pairs if open(a.files[i], "rb").read() == open(b.files[j], "rb").read()}
                assert overlap.same_files() == len(same)
                assert {pair[0] for pair in overlap.nearest_pairs()} == set(overlap.images())
                expected += 1
    assert expected == len(found) > 3
