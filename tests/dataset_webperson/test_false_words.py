"""The benchmark of false words: what is written, and what scoring a method on it says."""

import json
import sys

import datasets
import numpy as np
import PIL.Image
import pytest
from places import EXAMPLES
from tiny import tiny_model, tiny_processor

from dataset_webperson.drawn.rows import generate_rows
from dataset_webperson.false_words import main as write
from modeling_gadms.false_words.word_detection import false_word_metrics

sys.path.insert(0, str(EXAMPLES))

import score_false_words  # noqa: E402

SMALL = ["--image_size", "64", "32", "--num_train_persons", "80", "--num_test_persons", "20", "--noise_rate", "0.4"]


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark") / "false_words"
    write([*SMALL, "--output_dir", str(folder)])
    return folder


def own_data(folder, sizes=((64, 32),), attribute="coat.color", begin="a man in a {} coat", change=None):
    """80 images to learn from and 8 to be scored, in turn of these sizes; each has a caption with one listed word."""
    for split, count in (("train", 80), ("test", 8)):
        rows = []
        for number in range(count):
            color = ("red", "blue")[number % 2]
            caption, (height, width) = begin.format(color), sizes[number % len(sizes)]
            start = caption.index(color)
            word = {"start": start, "end": start + len(color), "attribute": attribute, "is_false": number % 3 == 0}
            row = {"image": PIL.Image.new("RGB", (width, height), color), "image_path": f"{split}/{number}.png"}
            rows.append({**row, "person_id": number, "caption1": caption, "caption1_words": [word]})
            if change is not None:
                change(rows[-1])
        (folder / "data").mkdir(parents=True, exist_ok=True)
        features = datasets.Features({**datasets.Dataset.from_list(rows).features, "image": datasets.Image()})
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "data" / f"{split}-0.parquet")
    return ["--data_root", str(folder), "--output_file", str(folder / "found"), "--evidence_steps", "2"]


@pytest.fixture
def learning_nothing(monkeypatch):
    """Whatever is refused is refused before it is learnt from."""

    def fail(*arguments, **options):
        raise AssertionError("something is learnt")

    for name in ("train_value_reader", "train_patch_evidence", "word_suspicions"):
        monkeypatch.setattr(score_false_words, name, fail)


def test_the_benchmark_loads_as_two_noisy_splits_of_other_persons(benchmark, tmp_path, capsys):
    data = datasets.load_dataset(str(benchmark), cache_dir=str(tmp_path))
    assert {name: len(rows) for name, rows in data.items()} == {"train": 80, "test": 20}
    assert not set(data["train"]["person_id"]) & set(data["test"]["person_id"])
    options = {"image_size": (64, 32), "views_per_person": 1, "noise_rate": 0.4, "seed": 0, "mistake_correlation": 0.5}
    for row, expected in zip(data["test"], generate_rows("train", 80, 100, **options), strict=True):
        assert row["caption2_words"] == expected["caption2_words"] and row["caption1"] == expected["caption1"]
        assert row["image"].size == (32, 64)
    flags = [word["is_false"] for rows in data.values() for words in rows["caption1_words"] for word in words]
    assert np.mean(flags) == pytest.approx(0.4, abs=0.06)
    card = (benchmark / "README.md").read_text()
    assert "80 drawn images to learn from and 20 to be scored, 64 x 32 pixels" in card and "$" not in card
    taken, wrong = ["--output_dir", str(benchmark)], ["--output_dir", "x", "--noise_rate", "1"]
    for given, words in ((taken, "already exists"), (wrong, "noise_rate")):
        assert write(given) == 2 and words in capsys.readouterr().err


def test_a_folder_may_be_named_with_a_slash_at_its_end(tmp_path, capsys):
    few = ["--image_size", "50", "30", "--num_train_persons", "1", "--num_test_persons", "1"]
    for folder in ("slash/", "deep//down/"):
        assert write([*few, "--output_dir", f"{tmp_path}/{folder}"]) == 0, capsys.readouterr().err
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["README.md", "data"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "slash"]
    assert write([*few, "--output_dir", f"{tmp_path}/slash/"]) == 2 and "already exists" in capsys.readouterr().err


def test_scores_of_a_file_are_those_of_the_metric_and_methods_are_run(benchmark, tmp_path, capsys):
    test = datasets.load_dataset("parquet", data_files=str(benchmark / "data" / "test-*.parquet"), split="train")
    rng = np.random.default_rng(0)
    scores = {
        row["image_path"]: {name: rng.random(len(row[f"{name}_words"])).tolist() for name in ("caption1", "caption2")}
        for row in test
    }
    file, out = tmp_path / "mine.json", tmp_path / "results" / "found"
    file.write_text(json.dumps(scores))
    mixed = tmp_path / "mixed.json"  # the same, of one caption for each word, of the other for spans
    spans = {
        row["image_path"]: [
            {"start": word["start"], "end": word["end"], "score": score}
            for word, score in zip(row["caption2_words"], scores[row["image_path"]]["caption2"], strict=True)
        ]
        for row in test
    }
    mixed.write_text(json.dumps({path: {**one, "caption2": spans[path]} for path, one in scores.items()}))
    options = ["--data_root", str(benchmark), "--output_file", str(out), "--evidence_steps", "2"]
    options += ["--oracle_persons", "20"]
    methods = ["random", "masked", "evidence", "posterior", "entropy", "oracle", "all"]
    score_false_words.main([*options, "--predictions", str(file), str(mixed), "--methods", *methods])
    found = json.loads((tmp_path / "results" / "found.json").read_text())["results"]
    assert set(found) == {str(file), str(mixed), *methods} and found[str(mixed)] == found[str(file)]
    expected = false_word_metrics(
        [scores[row["image_path"]][name] for row in test for name in ("caption1", "caption2")],
        [row[f"{name}_words"] for row in test for name in ("caption1", "caption2")],
        groups=[row["person_id"] for row in test for _ in range(2)],
    )
    groups, visible = found[str(file)].pop("by_group"), found[str(file)].pop("visible")
    assert found[str(file)] == json.loads(json.dumps(expected))
    assert found["masked"]["AUROC"] > 0.58 > found["random"]["AUROC"]  # the small CLIP knows what it sees
    assert 0 < groups["last third"]["num_words"] < expected["num_words"] and found["all"]["AUROC"] > 0.58
    assert visible["AUROC"] > 0 and found["oracle"]["visible"]["of_oracle"] == 1
    assert found["posterior"]["ECE"] is not None and found["evidence"]["ECE"] is None
    assert "the reader has learnt of no family" in capsys.readouterr().out  # in two steps
    text = (tmp_path / "results" / "found.md").read_text()
    told = "{num_false:,} false of {num_words:,})".format(**groups["things made up"])
    assert "Things that are made up, and things of wrong value, stand among the true words" in text
    assert f"| {file} | " in text and f"| things made up ({told} |" in text and "| bag.color | " in text

    capsys.readouterr()
    first = next(iter(scores))
    for wrong in (None, "x", {"start": 1, "end": 2}):
        file.write_text(json.dumps({**scores, first: {**scores[first], "caption2": [wrong]}}))
        assert score_false_words.main([*options, "--predictions", str(file)]) == 2
        assert f"{first} caption2: {wrong!r} is no score" in capsys.readouterr().err
    file.write_text(json.dumps({"elsewhere.png": {}}))
    for more, words in (
        (["--predictions", str(file)], "has no scores for"),
        (["--predictions", str(tmp_path / "none.json")], "none.json: cannot be read"),
    ):
        assert score_false_words.main([*options, *more]) == 2
        assert words in capsys.readouterr().err
    for more, words in (
        ([], "give --predictions FILE"),
        (["--methods", "random", "all"], "all joins other scores: give two"),
        (["--methods", "random", "--oracle_persons", "1"], "must be at least 2; got 1"),
        (["--methods", "random", "--tower_learning_rate", "nan"], "must be at least 0; got nan"),
    ):
        with pytest.raises(SystemExit, match="2"):
            score_false_words.main([*options, *more])
        assert words in capsys.readouterr().err
    assert score_false_words.main([*options, "--methods", "evidence", "surprise"]) == 2
    assert "surprise asks the decoder of pre-training, and the model has none" in capsys.readouterr().err
    assert score_false_words.main(["--data_root", str(tmp_path), "--methods", "random"]) == 2
    assert "no data/train-*.parquet" in capsys.readouterr().err


def test_captions_that_the_tokenizer_changes_are_refused(tmp_path, learning_nothing, capsys):
    data = own_data(tmp_path, begin="Tom &amp; Jerry on a {} coat")
    for method in ("gass", "evidence", "posterior"):
        assert score_false_words.main([*data, "--methods", method]) == 2
        assert "test/0.png: caption1 is read as 'tom & jerry on a red coat'" in capsys.readouterr().err


def test_scores_of_a_wrong_shape_are_refused_before_anything_is_learnt(tmp_path, learning_nothing, capsys):
    data = own_data(tmp_path)
    right, file = {f"test/{number}.png": {"caption1": [0.5]} for number in range(8)}, tmp_path / "mine.json"
    span = {"start": 0, "end": 3, "score": 0.5}
    for wrong, words in (
        (0.5, "0.5 is no list; give a number for each of the 1 words, or a list of spans"),
        (None, "None is no list"),
        (span, "is no list; give a number for each"),
        ([span, 0.3], "has both numbers and spans; give the one or the other"),
        ([[0.5]], "[0.5] is no score; give a number or start, end and score"),
        ([0.5, 0.5], "has 2 scores for 1 words; give one for each, in their order"),
    ):
        file.write_text(json.dumps({**right, "test/3.png": {"caption1": wrong}}))
        assert score_false_words.main([*data, "--predictions", str(file), "--methods", "evidence"]) == 2
        error = capsys.readouterr().err
        assert f"{file}: test/3.png caption1: " in error and words in error
    for allowed in ([span], [], [span, span]):
        file.write_text(json.dumps({**right, "test/3.png": {"caption1": allowed}}))
        assert score_false_words.main([*data, "--predictions", str(file)]) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row.pop("caption1_words"), "no column caption1_words in data/test-*.parquet; the README.md"),
        (lambda row: [row.pop(name) for name in ("image_path", "person_id")], "no column image_path, person_id"),
        (lambda row: row.update(caption1=None), "a missing caption in caption1 in 8 of 8 rows"),
        (lambda row: row.update(image=None), "no image in 8 of 8 rows"),
        (lambda row: row["caption1_words"][0].pop("is_false"), "test/0.png caption1_words: {'start': 11, "),
        (lambda row: row["caption1_words"][0].update(end=99), "is no word of 'a man in a red coat'; give start, end"),
        (lambda row: row.update(caption1_words=None), "caption1_words: None is no word"),
        (
            lambda row: row.update(attributes={"upper.color": "red"}),
            "test/0.png: attributes: {'upper.color': 'red'} is",
        ),
        (lambda row: row.update(attributes="[1]"), "test/0.png: attributes: '[1]' is no JSON of an object; write it"),
        (lambda row: row["caption1_words"][0].update(is_false=True), "no word of data/test-*.parquet is true"),
        (lambda row: row["caption1_words"][0].update(is_false=False), "no word of data/test-*.parquet is false"),
        (lambda row: row["caption1_words"].clear(), "no word of data/test-*.parquet is false"),
    ],
)
def test_data_that_list_no_words_to_tell_apart_are_refused(tmp_path, learning_nothing, capsys, change, words):
    data = own_data(tmp_path, change=change)
    assert score_false_words.main([*data, "--methods", "evidence"]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}: " in error and words in error


@pytest.mark.parametrize("cut", [True, False])
def test_a_broken_file_is_refused_in_one_line(tmp_path, learning_nothing, capsys, cut):
    data = own_data(tmp_path)
    (file,) = (tmp_path / "data").glob("train-*.parquet")
    whole = file.read_bytes()
    half = len(whole) // 2
    file.write_bytes(whole[:half] if cut else whole[:100] + b"\xff" * (half - 100) + whole[half:])
    assert score_false_words.main([*data, "--methods", "evidence"]) == 2
    last = capsys.readouterr().err.rstrip().rsplit("\n", 1)[-1]
    assert f"{tmp_path}: data/*.parquet cannot be read (" in last and last.endswith("copy or write them again")


def test_images_of_any_sizes_are_read_at_one_that_suits_the_model(tmp_path, capsys):
    data = own_data(tmp_path, sizes=((50, 30), (61, 33)))
    assert score_false_words.main([*data, "--methods", "cosine"]) == 2
    error = capsys.readouterr().err
    assert "image_size (50, 30) is not a multiple of patch_size 8; the nearest is (48, 32); give" in error
    assert error.rstrip().endswith("with --image_size")
    size = ["--image_size", "48", "32"]
    assert score_false_words.main([*data, *size, "--methods", "cosine", "posterior", "evidence"]) == 0
    assert "8 images of 2 sizes (read at 48 x 32), 8 captions, 8 words" in capsys.readouterr().out
    for wrong, words in ((["-8", "8"], "image_size is a height and a width"), (["60", "32"], "(60, 32) is not a mul")):
        assert score_false_words.main([*data, "--image_size", *wrong, "--methods", "cosine"]) == 2
        assert words in capsys.readouterr().err
    assert score_false_words.main([*data, "--methods", "cosine", "--model_name_or_path", "no/model"]) == 2
    assert "--image_size" not in capsys.readouterr().err


def test_the_size_of_the_images_is_told_and_that_of_the_model_where_it_differs(tmp_path, capsys):
    data, scores = own_data(tmp_path, sizes=((50, 30),)), tmp_path / "mine.json"
    scores.write_text(json.dumps({f"test/{number}.png": {"caption1": [0.5]} for number in range(8)}))
    assert score_false_words.main([*data, "--predictions", str(scores)]) == 0
    assert "8 images of 50 x 30, 8 captions" in capsys.readouterr().out
    model = tiny_model(vocab_size=len(tiny_processor().tokenizer))
    folder, (height, width) = tmp_path / "model", model.config.vision_config.image_size
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    data += ["--methods", "cosine", "--model_name_or_path", str(folder)]
    assert score_false_words.main(data) == 0
    assert f"8 images of 50 x 30 (read at {height} x {width}), 8" in capsys.readouterr().out
    assert score_false_words.main([*data, "--image_size", str(height), str(width)]) == 0
    assert score_false_words.main([*data, "--image_size", "48", "32"]) == 2
    assert f"{folder}: reads images at {height} x {width} alone; leave out --image_size" in capsys.readouterr().err


def test_what_a_method_scores_itself_is_told_and_nothing_is_made_of_what_it_does_not_know(tmp_path, capsys, request):
    data = [*own_data(tmp_path, attribute="upper.color"), "--methods", "swap", "masked"]
    families = tmp_path / "families.json"
    families.write_text(json.dumps({"color": {"values": {"red": ["red"], "green": ["green"]}}}))
    assert score_false_words.main([*data, "--families", str(families)]) == 0
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    assert results["swap"]["scored"] == 0.5 and "scored" not in results["masked"]  # half say red, and half say blue
    assert "`swap` scores 50.0 % of the words; the others have the mean of these." in capsys.readouterr().out
    request.getfixturevalue("learning_nothing")
    assert score_false_words.main([*data, "evidence"]) == 2
    assert "swap asks what else of a family could be said, and no listed word" in capsys.readouterr().err
