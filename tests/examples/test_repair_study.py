"""The study of repair: its cells train on the captions that they name, and its tables hold what was counted."""

import argparse
import json
import shutil
import sys

import datasets
import numpy as np
import pytest
import torch
from places import EXAMPLES

from dataset_webperson import WebPerson

sys.path.insert(0, str(EXAMPLES / "studies"))

import cell_captions  # noqa: E402
import mended_captions  # noqa: E402
import repair_cells  # noqa: E402
import repair_gain  # noqa: E402
import repair_words  # noqa: E402
import starting_point  # noqa: E402
import swap_gain  # noqa: E402
import swapped_posteriors  # noqa: E402

from dataset_webperson.drawn.attributes import value_of_words  # noqa: E402

SMALL = {"num_train_persons": 40, "num_validation_persons": 2, "num_test_persons": 2}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    cache = tmp_path_factory.mktemp("drawn")

    def data(image_size, num_persons, noise_rate, seed):
        builder = WebPerson(cache_dir=cache, image_size=tuple(image_size), noise_rate=noise_rate, seed=seed, **SMALL)
        builder.download_and_prepare()
        return builder

    return data


def test_the_study_of_repair_writes_its_tables(drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cell_captions, "drawn_data", drawn)
    hits = {"none": 0.5, "repair": 0.6, "deleted": 0.4, "oracle": 0.7, "true": 0.8}
    trained = []

    def train(cell, noise_rate, seed, rows, args):
        trained.append((cell, seed))
        captions = cell_captions.captions_of(cell, rows, noise_rate, args)
        assert len(captions) <= 80 and captions[0]["caption1"]
        values = [100.0 * (number / 40 < hits.get(cell, 0.6)) for number in range(40)]
        return {
            "values": {way: values for way in ("t2i", "i2t")},
            "persons": {way: [n // 4 for n in range(40)] for way in ("t2i", "i2t")},
        }

    monkeypatch.setattr(repair_gain, "train_cell", train)
    options = ["--noise_rates", "0.5", "--seeds", "0", "1", "--num_persons", "32", "--reader_steps", "2"]
    options += ["--output_dir", str(tmp_path / "run"), "--results_dir", str(tmp_path / "results")]
    repair_gain.main([*options, "--cells", "repair", "oracle"])
    assert {cell for cell, _ in trained} == {"none", "repair", "oracle"}  # gains are over none
    repair_gain.main(options)
    assert len(trained) == 2 * len(cell_captions.CELLS)  # what was finished is kept
    more = tmp_path / "run" / "true_0.0_2.json"  # as of another rate, of which more seeds were trained
    more.write_text((tmp_path / "run" / "true_0.0_1.json").read_text())
    repair_gain.main([*options, "--seeds", "0", "1", "2", "--only_finished"])
    assert len(trained) == 2 * len(cell_captions.CELLS)
    capsys.readouterr()
    assert repair_gain.main([*options, "--model_name_or_path", "larger"]) == 2  # of which nothing is kept yet
    assert "was made with another setting" in capsys.readouterr().err
    found = json.loads((tmp_path / "results" / "repair_gain.json").read_text())["results"]["0.5"]
    assert found["cells"]["repair"]["t2i"]["gain"]["mean"] == pytest.approx(10)
    assert found["cells"]["true"]["seeds"] == [0, 1]
    assert found["words"]["groups"]["all"]["right_before"] == pytest.approx(0.5, abs=0.1)
    page = (tmp_path / "results" / "repair_gain.md").read_text()
    assert (
        "| oracle | 2 | 70.00" in page
        and "| colours | " in page
        and (tmp_path / "results" / "repair_gain.png").exists()
    )
    shutil.copytree(starting_point.SMALL_CLIP, tmp_path / "noisy_clip")
    elsewhere = ["--model_name_or_path", str(tmp_path / "noisy_clip"), "--output_dir", str(tmp_path / "noisy")]
    repair_gain.main([*options, *elsewhere, "--cells", "none"])
    assert (tmp_path / "results" / "repair_gain.md").read_text() == page
    noisy = (tmp_path / "results" / "repair_gain_noisy_clip.md").read_text()
    assert noisy.startswith("# Is it better to repair false words than to leave them? From noisy_clip\n")
    repair_gain.main([*options, *elsewhere[:3], str(tmp_path / "longer"), "--cells", "none", "--epochs", "4"])
    longer = (tmp_path / "results" / "repair_gain_noisy_clip_4_passes.md").read_text()
    assert longer.startswith(noisy.partition("\n")[0] + " (4 passes)\n")
    assert (tmp_path / "results" / "repair_gain_noisy_clip.md").read_text() == noisy


def test_a_run_from_another_model_has_a_page_of_its_own():
    larger = ["--model_name_or_path", "runs/clip_19m/"]
    for study in (repair_gain, swap_gain):
        ended = [
            study.beginning(study.parse(options))
            for options in ([], larger, ["--from_scratch"], ["--from_scratch", *larger])
        ]
        assert ended[:3] == [("", ""), ("_clip_19m", " From clip_19m"), ("_scratch", " From random weights")]
        assert ended[3] == ("_scratch_clip_19m", " From random weights of the shape of clip_19m")
        longer = study.beginning(study.parse([*larger, "--epochs", "2.5"]))
        assert longer == ("_clip_19m_2.5_passes", " From clip_19m (2.5 passes)")


def test_a_table_of_what_is_finished_learns_nothing(tmp_path, capsys):
    assert repair_gain.main(["--only_finished", "--output_dir", str(tmp_path / "run")]) == 2
    assert "posteriors_0.3.json: missing, so nothing is finished here" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_oracle_says_what_is_true_and_leaves_what_is_made_up(drawn, monkeypatch):
    monkeypatch.setattr(cell_captions, "drawn_data", drawn)
    rows = drawn((64, 32), 32, 0.5, 42).as_dataset(split="train")
    args = argparse.Namespace(image_size=[64, 32], num_persons=32)
    mended = cell_captions.captions_of("oracle", rows, 0.5, args)
    right = 0
    for row, other in zip(rows, mended, strict=True):
        truth, shift = json.loads(row["attributes"]), 0
        for word in row["caption1_words"]:
            posterior = {one["start"]: one for one in mended_captions.true_words(row, "caption1")}
            said = row["caption1"][word["start"] : word["end"]]
            new = posterior[word["start"]]["words"][1] if word["start"] in posterior else said
            if word["is_false"] and truth[word["attribute"]] != "none":
                assert value_of_words(word["attribute"], new) == truth[word["attribute"]]
                assert new.lower() in other["caption1"].lower()
                right += 1
            else:
                assert new == said
            shift += len(new) - len(said)
        assert abs(len(other["caption1"]) - len(row["caption1"]) - shift) <= len(row["caption1_words"])  # articles
    assert right > 40
    deleted = cell_captions.captions_of("deleted", rows, 0.5, args)
    for row, other in zip(rows, deleted, strict=True):
        kept = list(row["caption2"])
        for start, end in row["caption2_false_spans"]:
            kept[start:end] = " " * (end - start)
        assert other["caption2"].replace(" ", "") == "".join(kept).replace(" ", "") and "  " not in other["caption2"]
    assert cell_captions.captions_of("none", rows, 0.5, args) is rows
    true = cell_captions.captions_of("true", rows, 0.5, args)
    assert not any(word["is_false"] for words in true["caption1_words"] for word in words)


def test_right_words_are_counted_before_and_after():
    words = [{"start": 2, "end": 5, "attribute": "coat.color", "is_false": True}]
    row = {
        "image": None,
        "person_id": 1,
        "attributes": json.dumps({"coat.color": "blue"}),
        "caption1": "a red coat",
        "caption1_words": words,
        "caption1_posterior": [{"start": 2, "end": 5, "words": ["red", "royal blue"], "probabilities": [0.2, 0.8]}],
        "caption2": "a blue coat",
        "caption2_words": [{**words[0], "end": 6, "is_false": False}],
        "caption2_posterior": [{"start": 2, "end": 6, "words": ["blue"], "probabilities": [1.0]}],
    }
    found = repair_words.detection(datasets.Dataset.from_list([row, {**row, "person_id": 2}]), 0.3)
    everything = found["groups"]["all"]
    assert (everything["right_before"], everything["right_after"], everything["changed"]) == (0.5, 1.0, 0.5)
    assert (everything["false_of_changed"], everything["right_of_changed"]) == (1.0, 1.0)
    assert everything["posterior"]["mean"] == 1.0
    assert found["calibration_error"] == pytest.approx(np.mean([0.2, 0.0]))


def test_words_that_no_posterior_lists_are_false_with_the_estimated_share():
    words = [{"start": 2, "end": 5, "attribute": "coat.color", "is_false": number == 0} for number in range(2)]
    rows = [
        {
            "image": None,
            "person_id": number,
            "attributes": json.dumps({"coat.color": ["blue", "red"][number]}),
            **{f"caption{n}": "a red coat" for n in (1, 2)},
            **{f"caption{n}_words": [word] for n in (1, 2)},
            **{f"caption{n}_posterior": [] for n in (1, 2)},
        }
        for number, word in enumerate(words)
    ]
    found = repair_words.detection(datasets.Dataset.from_list(rows, features=_with_lists(rows)), 0.3)
    assert found["groups"]["all"]["changed"] == 0 and found["groups"]["all"]["right_after"] == 0.5
    assert found["groups"]["all"]["posterior"]["mean"] == 0.5
    assert found["calibration_error"] == pytest.approx(0.2)  # 0.3 said, 0.5 seen


def _with_lists(rows):
    """Features of rows whose lists of posteriors are empty."""
    features = datasets.Dataset.from_list(
        [{k: v for k, v in row.items() if "posterior" not in k} for row in rows]
    ).features
    return datasets.Features({**features, **{f"caption{n}_posterior": cell_captions.FEATURE for n in (1, 2)}})


def posterior_of(*probabilities):
    words = ["red", "blue", "green"][: len(probabilities)]
    return {"start": 2, "end": 5, "family": "coat.color", "words": words, "probabilities": list(probabilities)}


def test_cells_take_words_by_their_probabilities():
    row = {"caption1": "a red coat, with a cap"}

    def caption(cell, *probabilities):
        return mended_captions.caption_of(
            cell, {**row, "caption1_posterior": [posterior_of(*probabilities)]}, "caption1"
        )

    assert caption("repair", 0.3, 0.7) == ("a blue coat, with a cap", [])
    assert caption("sure", 0.3, 0.7) == ("a red coat, with a cap", [])  # 0.4 is gained
    assert caption("sure", 0.2, 0.8) == ("a blue coat, with a cap", [])
    assert caption("unlikely", 0.3, 0.45, 0.25) == ("a blue coat, with a cap", [[2, 6]])
    assert caption("unlikely", 0.3, 0.55, 0.15) == ("a blue coat, with a cap", [])
    perhaps = {**posterior_of(0.3, 0.7), "absent": 0.4}  # and 0.42 that it is blue
    assert mended_captions.caption_of("unlikely", {**row, "caption1_posterior": [perhaps]}, "caption1")[1] == [[2, 6]]
    doubted, fine = posterior_of(0.4, 0.6), posterior_of(0.6, 0.4)
    assert mended_captions.mostly_doubted([doubted, doubted, fine])
    assert not mended_captions.mostly_doubted([doubted, fine]) and not mended_captions.mostly_doubted([])


def test_doubted_captions_give_way_to_the_other_of_their_row_or_the_row_goes():
    doubted, fine = [posterior_of(0.4, 0.6)], [posterior_of(0.6, 0.4)]
    judged = [(doubted, fine), (doubted, doubted), (fine, fine)]
    rows = [
        {
            "image": None,
            "caption1": "a red coat",
            "caption2": "a red cap",
            "caption1_posterior": first,
            "caption2_posterior": second,
        }
        for first, second in judged
    ]
    found = cell_captions.captions_of("dropped", datasets.Dataset.from_list(rows), 0.5, argparse.Namespace())
    assert [(row["caption1"], row["caption2"]) for row in found] == [
        ("a red cap", "a red cap"),
        ("a red coat", "a red cap"),
    ]


def test_swap_contrast_is_fitted_to_what_is_said():
    """Evidence that is twice too timid, of words of which 30 % are false; and evidence of nothing."""
    generator = torch.Generator().manual_seed(0)
    frequency = torch.tensor([0.5, 0.3, 0.2])
    true = torch.multinomial(frequency, 6000, replacement=True, generator=generator)
    evidence = torch.randn(6000, 3, generator=generator)
    evidence[torch.arange(6000), true] += 2.0  # so that a value's log-odds are twice its evidence
    others = (true + torch.randint(1, 3, (6000,), generator=generator)) % 3
    said = torch.where(torch.rand(6000, generator=generator) < 0.3, others, true)
    found = swapped_posteriors.fitted(evidence, said, 0.3)
    counted = [((said == value).sum().item() + 0.5) / 6001.5 for value in range(3)]
    for row in range(20):
        joint = []
        for value in range(3):
            says = 0.7 if value == said[row] else 0.3 * counted[said[row]] / (1 - counted[value])
            joint.append(counted[value] * np.exp(2.0 * evidence[row, value].item()) * says)
        assert found[row].tolist() == pytest.approx([one / sum(joint) for one in joint], abs=0.1)
    assert (found.argmax(dim=1) == true).float().mean() > (said == true).float().mean() + 0.1
    assert swapped_posteriors.fitted(0 * evidence, said, 0.3) is None


def test_barred_words_change_nothing_but_their_own_place():
    """With the masked token barred, what stands in its place makes no difference to the caption."""
    model, processor = repair_cells.starting_point(False, 0, (64, 32))
    mask = model.config.mask_token_id
    ids = processor(text=["a red coat and blue trousers"], return_tensors="pt")["input_ids"]
    masked = ids.clone()
    masked[0, 2] = mask
    tower = model.gadms.text_model.eval()
    embeddings = tower.get_input_embeddings().weight
    with torch.no_grad():
        plain = tower(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        repair_cells.bar_masked(model)
        torch.testing.assert_close(tower(ids).last_hidden_state, plain)
        before = tower(masked).last_hidden_state
        embeddings[mask] += 1.0
        after = tower(masked).last_hidden_state
    others = [place for place in range(ids.shape[1]) if place != 2]
    torch.testing.assert_close(after[:, others], before[:, others])
    assert not torch.allclose(after[:, 2], before[:, 2]) and not torch.allclose(before[:, 3:], plain[:, 3:])
