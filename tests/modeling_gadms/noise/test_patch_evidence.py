"""Patch evidence estimates a likelihood ratio, finds false words, and training hides them."""

import copy
import itertools
import json
import math

import datasets
import forked
import pytest
import torch
from as_script import run_as_script
from places import EXAMPLES
from safetensors.torch import save
from tiny import COLOURS, tiny_model, tiny_processor, tiny_rows

from dataset_webperson import DataError
from modeling_gadms.masking_gadms import mask_captions
from modeling_gadms.noise.kept_evidence import kept
from modeling_gadms.noise.patch_evidence import PatchEvidence, hide_words, train_patch_evidence
from modeling_gadms.towers_gadms import valid_tokens
from modeling_gadms.training.arguments import GADMSTrainingArguments
from modeling_gadms.training.collator import PairCollator
from modeling_gadms.training.trainer import GADMSTrainer


@pytest.fixture(scope="module")
def pair():
    processor = tiny_processor()
    return tiny_model(vocab_size=len(processor.tokenizer)).gadms, processor


def learn(pair, rows, steps=60, rate=1e-3, **options):
    return train_patch_evidence(*pair, rows, steps, rate, batch_size=32, progress=False, **options)


@pytest.fixture(scope="module")
def learnt(pair):
    return learn(pair, tiny_rows(400))


def wrong_colours(rows):
    """The rows with the first colour of `caption1` replaced, and where it stands."""
    changed = []
    for row in rows:
        words = row["caption1"].split()
        place = next(place for place, word in enumerate(words) if word in COLOURS)
        named = {word for word in words if word in COLOURS}
        words[place] = next(colour for colour in COLOURS if colour not in named)
        start = len(" ".join(words[:place])) + 1
        caption = " ".join(words)
        changed.append({**row, "caption1": caption, "caption1_false_spans": [[start, start + len(words[place])]]})
    return changed


def prepared(pair, rows):
    batch = pair[1](text=[row["caption1"] for row in rows], images=[row["image"] for row in rows], return_tensors="pt")
    return batch["pixel_values"], batch["input_ids"]


def score(evidence, pixel_values, input_ids):
    with torch.no_grad():
        return evidence.score(evidence.keys(pixel_values), input_ids)


def test_false_colours_speak_against_the_image_and_true_ones_for_it(pair, learnt):
    held_out = tiny_rows(60, seed=7)
    false = wrong_colours(held_out)
    true_scores, false_scores = [], []
    for rows, found in ((held_out, true_scores), (false, false_scores)):
        scores = score(learnt, *prepared(pair, rows))
        inside = PairCollator(pair[1]).tokens_in(
            [row["caption1"] for row in rows], [row["caption1_false_spans"] for row in false]
        )
        found += [row[where].mean().item() for row, where in zip(scores, inside, strict=True)]
    below = sum(one < other for one, other in zip(false_scores, true_scores, strict=True))
    assert below >= 57 and torch.tensor(false_scores).median() < -0.5 < torch.tensor(true_scores).median()


def test_evidence_is_a_ratio_of_likelihoods_and_ignores_the_rest_of_the_batch(pair, learnt):
    pixel_values, input_ids = prepared(pair, tiny_rows(5, seed=3))
    input_ids[2, 4:] = 0
    input_ids[2, 4] = input_ids.max()  # a short caption, padded
    found = score(learnt, pixel_values, input_ids)
    with torch.no_grad():
        for row, ids in enumerate(input_ids):
            end = int(ids.argmax())
            alone = score(learnt, pixel_values[row : row + 1], ids[None, : end + 1])
            torch.testing.assert_close(found[row, : end + 1], alone[0], rtol=1e-4, atol=1e-5)
            assert (found[row, end:] == 0).all() and found[row, 0] == 0
            own_keys = learnt.keys(pixel_values[row : row + 1])[0]
            for place in range(1, end):
                words = torch.cat([learnt.embedding(ids[place + offset]) for offset in (-1, 0, 1)])
                query = learnt.query(words)

                def likelihood(keys, query=query):
                    return sum(torch.exp(query @ key / math.sqrt(len(query) / 2)) for key in keys)

                others = sum(likelihood(keys) for keys in learnt.reference_keys) / len(learnt.reference_keys)
                expected = torch.log(likelihood(own_keys) / others)
                torch.testing.assert_close(found[row, place], expected, rtol=1e-3, atol=1e-4)


def test_learning_repeats_bit_for_bit_and_leaves_the_model_and_torchs_generator_alone(pair):
    rows, before = tiny_rows(70), {name: value.clone() for name, value in pair[0].state_dict().items()}
    torch.manual_seed(1)
    first = learn(pair, rows, steps=3)
    drawn = torch.rand(1)
    torch.manual_seed(2)
    second = learn(pair, rows, steps=3)
    assert all(value.equal(second.state_dict()[name]) for name, value in first.state_dict().items())
    torch.manual_seed(1)
    assert torch.rand(1).equal(drawn)
    assert all(value.equal(before[name]) for name, value in pair[0].state_dict().items())
    assert not learn(pair, rows, steps=3, seed=1).key[1].weight.equal(first.key[1].weight)


def test_a_tower_with_rate_0_stays_and_another_learns(pair):
    start = {name: value for name, value in pair[0].state_dict().items() if not name.startswith("text")}
    for rate, unchanged in ((0.0, True), (1e-3, False)):
        tower = learn(pair, tiny_rows(70), steps=2, rate=rate).tower.state_dict()
        same = [tower[name].equal(value) for name, value in start.items() if value.dim() > 1]
        assert all(same) if unchanged else not any(same)
        assert not any(name.startswith("text") for name in tower), "the text tower has no part"


def test_too_few_rows_are_refused(pair):
    with pytest.raises(ValueError, match="20 rows do not fill one batch of 32"):
        learn(pair, tiny_rows(20))


def test_hidden_words_are_those_below_the_threshold_in_characters(pair, learnt):
    rows = datasets.Dataset.from_list(wrong_colours(tiny_rows(30, seed=9)))
    found = hide_words(learnt, pair[1], rows, threshold=0.5, batch_size=7, progress=False)
    assert found.column_names == [*rows.column_names, "caption1_hidden_spans", "caption2_hidden_spans"]
    hit = 0
    for row in found:
        for name in ("caption1", "caption2"):
            pixel_values, input_ids = prepared(pair, [{**row, "caption1": row[name]}])
            scores = score(learnt, pixel_values, input_ids)[0]
            hidden = PairCollator(pair[1]).tokens_in([row[name]], [row[f"{name}_hidden_spans"]])[0]
            clear = valid_tokens(input_ids)[0] & ((scores + 0.5).abs() > 1e-3)
            assert hidden[clear].equal(scores[clear] < -0.5)
        hit += row["caption1_false_spans"][0] in row["caption1_hidden_spans"]
        spans = row["caption1_hidden_spans"]
        assert all(one[1] < other[0] for one, other in itertools.pairwise(spans)), "tokens that touch are one span"
    assert hit >= 20
    with pytest.raises(ValueError, match="threshold must be above 0"):
        hide_words(learnt, pair[1], rows, threshold=0.0)
    with pytest.raises(ValueError, match="threshold must be above 0"):
        hide_words(learnt, pair[1], rows, threshold=float("nan"))


def with_value(rows, place, name, value):
    changed = list(rows.with_format(None))
    changed[place] = {**changed[place], name: value}
    return datasets.Dataset.from_list(changed, features=rows.features)


def test_a_caption_without_words_has_none_to_hide(pair, learnt):
    rows = with_value(tiny_rows(8), 3, "caption1", "")
    assert score(learnt, *prepared(pair, list(rows)))[3].eq(0).all()
    found = hide_words(learnt, pair[1], rows, threshold=0.01, batch_size=3, progress=False)
    assert found[3]["caption1_hidden_spans"] == [] and any(found["caption1_hidden_spans"])
    for number in range(32):
        rows = with_value(tiny_rows(32) if number == 0 else rows, number, "caption1", "")
        rows = with_value(rows, number, "caption2", "")
    with pytest.raises(ValueError, match="no words in any caption of .*.png"):
        learn(pair, rows, steps=1)


def test_bad_data_is_refused_before_anything_is_learnt(pair, learnt):
    rows = tiny_rows(40)
    for bad, message in (
        (with_value(rows, 37, "caption2", None), "row 37: caption2 is None"),
        (rows.remove_columns("image_path"), "lacks image_path"),
        (spans_of_persons(rows), "already has caption1_hidden_spans, caption2_hidden_spans"),
    ):
        with pytest.raises(ValueError, match=message):
            learn(pair, bad, steps=1)
        with pytest.raises(ValueError, match=message):
            hide_words(learnt, pair[1], bad, threshold=0.5)
    with pytest.raises(ValueError, match="row 2, image 002.png: cannot be read"):
        hide_words(learnt, pair[1], with_value(rows, 2, "image", None), threshold=0.5, progress=False)


def test_a_loss_that_is_not_finite_stops_learning(pair):
    with pytest.raises(FloatingPointError, match="loss is nan on the images .*lower tower_learning_rate"):
        learn(pair, tiny_rows(64), rate=1e30, steps=20)


def spans_of_persons(rows):
    """The rows, with every "person" and "someone" to be hidden."""
    for name, word in (("caption1", "person"), ("caption2", "someone")):
        places = [caption.index(word) for caption in rows[name]]
        rows = rows.add_column(f"{name}_hidden_spans", [[[place, place + len(word)]] for place in places])
    return rows


@pytest.mark.parametrize("name", ["hidden_spans", None])
def test_named_spans_are_hidden_before_alignment_and_nothing_else(pair, name):
    rows = [{**row, "epoch": epoch} for epoch, row in enumerate(spans_of_persons(tiny_rows(8)))]
    batch = PairCollator(pair[1], hidden_spans=name)(rows)
    arguments = GADMSTrainingArguments(output_dir="unused", use_cpu=True, hidden_spans=name)
    scores = torch.zeros(batch["input_ids"].shape)  # of which the paper's masks hide a fifth
    mask_token_id = pair[0].config.mask_token_id
    views = mask_captions(batch["input_ids"], scores, batch["mask_uniforms"], arguments.masks(), mask_token_id)
    for ids, hidden in zip(batch["input_ids"], views.noise_mask, strict=True):
        told = pair[1].tokenizer.decode(ids[hidden]).replace(" ", "")
        assert (told in ("person", "someone")) == (name is not None)


def test_training_without_the_columns_is_refused_at_the_start(pair, tmp_path):
    arguments = GADMSTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, hidden_spans="hidden_spans", per_device_train_batch_size=4
    )
    model = tiny_model(vocab_size=len(pair[1].tokenizer))
    with pytest.raises(ValueError, match="lacks caption1_hidden_spans, caption2_hidden_spans; examples/repair"):
        GADMSTrainer(model, arguments, pair[1], train_dataset=tiny_rows(8))
    trainer = GADMSTrainer(model, arguments, pair[1], train_dataset=spans_of_persons(tiny_rows(8)))
    assert trainer.data_collator.hidden_spans == "hidden_spans"
    with pytest.raises(ValueError, match="masking=none hides none"):
        GADMSTrainingArguments(output_dir=str(tmp_path), use_cpu=True, masking="none", hidden_spans="hidden_spans")


def test_the_command_writes_a_data_set_and_continues_after_a_break(tmp_path, capsys):
    script, command = EXAMPLES / "repair_captions.py", ["--mode", "hide", "--image_size", "64", "32", "--steps", "2"]
    command += ["--num_persons", "40", "--tower_learning_rate", "5e-4", "--threshold", "0.01"]
    command += ["--rows_per_shard", "30", "--output_dir", str(tmp_path / "out")]

    def hide(*options):
        """The exit code of the command, and what it wrote to stderr."""
        return run_as_script(script, *command, *options), capsys.readouterr().err

    # in another process than what continues it, so that nothing may depend on the process
    done = forked.run([script, *command])
    assert done.returncode == 0 and "Learning patch evidence" in done.stderr, done.stderr
    files = sorted((tmp_path / "out" / "data").iterdir())
    assert [file.name for file in files] == ["test-00000-of-00001.parquet"] + [
        f"train-{number:05d}-of-00003.parquet" for number in range(3)
    ]
    whole = {file.name: file.read_bytes() for file in files}
    rows = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(rows) == 80 and rows[0]["image"].size == (32, 64)
    report = json.loads((tmp_path / "out-report.json").read_text(encoding="utf-8"))
    counts = {"all": 0, "hidden": 0, "false": 0, "both": 0}
    for row in rows:
        for name in ("caption1", "caption2"):
            for place in range(len(row[name])):
                hidden, false = (
                    any(start <= place < end for start, end in row[f"{name}_{kind}_spans"])
                    for kind in ("hidden", "false")
                )
                for key, value in (("all", 1), ("hidden", hidden), ("false", false), ("both", hidden and false)):
                    counts[key] += value
    assert report["doubted"] == pytest.approx(counts["hidden"] / counts["all"])
    assert report["precision"] == pytest.approx(counts["both"] / counts["hidden"])
    assert report["recall"] == pytest.approx(counts["both"] / counts["false"])

    assert set(report["images_per_second"]) == {"learning", "changing captions"}
    assert all(rate > 0 for rate in report["images_per_second"].values())
    code, errors = hide()
    assert code == 2 and "already exists: delete it" in errors

    # as a run leaves its work that was killed in the second shard
    work = tmp_path / "out.partial"
    (work / "main").mkdir(parents=True)
    (tmp_path / "out" / "data").rename(work / "main" / "data")
    (tmp_path / "out").rmdir()
    (tmp_path / "out-evidence.safetensors").rename(work / "evidence.safetensors")
    (tmp_path / "out-report.json").unlink()
    found = {"doubted", "most_doubted", "false", "precision", "recall", "output_dir", "device", "num_workers"}
    found |= {"images_per_second"}
    settings = {name: value for name, value in report.items() if name not in found}
    (work / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    for number in (1, 2):
        (work / "main" / "data" / f"train-0000{number}-of-00003.parquet").unlink()
    first = (work / "main" / "data" / "train-00000-of-00003.parquet").stat().st_ino
    code, errors = hide("--seed", "1")
    assert code == 2 and "started with other data or options" in errors
    code, errors = hide()
    assert code == 0 and "Learning patch evidence" not in errors, errors
    assert {file.name: file.read_bytes() for file in (tmp_path / "out" / "data").iterdir()} == whole
    assert (tmp_path / "out" / "data" / "train-00000-of-00003.parquet").stat().st_ino == first
    assert not work.exists()
    # of what was there already, no time can be told
    assert json.loads((tmp_path / "out-report.json").read_text(encoding="utf-8"))["images_per_second"] == {}


def test_kept_evidence_is_read_again_and_a_broken_file_is_refused(pair, tmp_path):
    file = str(tmp_path / "evidence.safetensors")
    options = {"steps": 2, "tower_learning_rate": 1e-3, "batch_size": 32, "seed": 0, "num_workers": 0}

    def evidence_of(rows):
        return kept(
            file, pair[0], lambda: PatchEvidence(pair[0]), lambda: train_patch_evidence(*pair, rows, **options)
        )

    learnt = evidence_of(tiny_rows(40)).state_dict()
    again = evidence_of(tiny_rows(1)).state_dict()
    assert learnt.keys() == again.keys() and all(torch.equal(learnt[name], again[name]) for name in again)
    for content in (b"cut off", save({"reference_keys": torch.zeros(1)})):
        (tmp_path / "evidence.safetensors").write_bytes(content)
        with pytest.raises(
            DataError, match="evidence.safetensors: broken, or not learnt from this model and for these words; delete"
        ):
            evidence_of(tiny_rows(40))


def test_the_keys_of_the_reference_images_carry_no_dropout(pair):
    gadms, processor = pair
    model = copy.deepcopy(gadms).train()
    for layer in model.vision_model.encoder.layers:
        layer.self_attn.dropout = 0.5
    rows = tiny_rows(8)  # each of them is a reference
    evidence = train_patch_evidence(model, processor, rows, 1, 0.0, batch_size=8, progress=False)
    with torch.no_grad():
        keys = evidence.keys(processor(images=rows["image"][:], return_tensors="pt")["pixel_values"])
    differences = (evidence.reference_keys[:, None] - keys).abs().amax(dim=(2, 3))
    assert differences.amin(dim=1).max() < 1e-5
