"""The command that finds families of words, on the captions of drawings."""

import itertools
import sys
from types import SimpleNamespace

import datasets
from places import EXAMPLES

from dataset_webperson.drawn.attributes import sample_person, sample_view
from dataset_webperson.drawn.captions import write_caption
from modeling_gadms.noise.word_families import plain_families, read_families

sys.path.insert(0, str(EXAMPLES))

import find_families as command  # noqa: E402


def drawn_captions(count, noise):
    """Captions of drawn persons, without their pictures."""
    found = {"caption1": [], "caption2": []}
    for index in range(count):
        person, view = sample_person(0, "train", index), sample_view(0, "train", index, 0)
        for name, texts in found.items():
            texts.append(write_caption(person, view, noise, 0, "train", index, 0, name).text)
    return datasets.Dataset.from_dict(found)


def test_the_command_finds_the_families_of_drawings_from_noisy_captions(tmp_path, capsys, monkeypatch):
    file = tmp_path / "families.json"
    options = ["--dataset_name", "synthetic", "--output_file", str(file)]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLES / "find_families.py")])
    assert command.main([*options, "--similarity", "1.5"]) == 2
    assert "similarity must lie between 0 and 1" in capsys.readouterr().err
    rows = drawn_captions(3000, 0.3)
    monkeypatch.setattr(command, "load_pairs", lambda source, seed: SimpleNamespace(train=rows))
    assert not command.main([*options, "--num_rows", "2900"])
    shown = capsys.readouterr().out
    found, true = read_families(str(file)), plain_families()
    assert f"{len(found)} families of" in shown and "from 2900 rows" in shown
    colours = true["color"].value_of
    family = next(family for family in found.values() if "red" in family.value_of)
    words = family.value_of.keys() & colours.keys()
    assert len(words) >= 0.6 * len(colours) and len(words) == len(family.value_of)
    joined = [pair for words in family.values.values() for pair in itertools.combinations(words, 2)]
    right = sum(colours[one] == colours[other] for one, other in joined)
    assert len(joined) >= 8 and right >= 0.9 * len(joined)
    assert command.main(options) == 2 and "already exists" in capsys.readouterr().err
