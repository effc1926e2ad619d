"""The demonstration of the construction, in miniature and without photographs."""

import json
import os
import re
from pathlib import Path

import forked
import pyarrow.parquet as pq
import pytest
from places import REPO

from dataset_webperson.construction.drawn_persons import NOISE_RATES, draw_crops, measure_scores, scores_by_kind
from dataset_webperson.construction.shards import read_rows, shard_counts, shard_writer

NUM_DRAWN, MAX_STEPS = 60, 2


def demonstrate(folder):
    """`examples/demo_webperson.py` where no photo models are."""
    environment = {**os.environ, "GADMS_PHOTOS": str(folder / "nowhere")}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPO), "HF_DATASETS_CACHE": str(folder / "cache")}
    command = [REPO / "examples" / "demo_webperson.py", "--output_dir", folder / "out"]
    command += ["--num_drawn", str(NUM_DRAWN), "--max_steps", str(MAX_STEPS)]
    result = forked.run(command, cwd=folder, env=environment)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo-webperson")
    return folder, demonstrate(folder)


def test_the_demonstration_releases_every_drawing_with_the_captions_of_its_captioners(demo):
    folder, printed = demo
    assert "drawn crops alone are used" in printed and f"num_rows: {NUM_DRAWN}" in printed
    files = sorted((folder / "out" / "released" / "data").iterdir())
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    truth = json.loads((folder / "out" / "truth.json").read_text())
    assert len(rows) == len({row["image_path"] for row in rows}) == NUM_DRAWN
    for row in rows:
        for number, captioner in enumerate(NOISE_RATES, 1):
            assert row[f"captioner{number}"] == captioner and row[f"caption{number}_problems"] == []
            assert row[f"caption{number}"] == truth[captioner][row["image_sha256"]]
    true = re.search(r"^true +(\d+) +(\S+) *$", printed, re.MULTILINE)
    false = re.search(r"^with false words +(\d+) +(\S+) +(\S+)$", printed, re.MULTILINE)
    assert int(true[1]) + int(false[1]) == 2 * NUM_DRAWN and int(true[1]) >= NUM_DRAWN
    assert float(false[2]) < float(true[2]) and 0.6 < float(false[3]) <= 1
    assert "<img" in (folder / "out" / "report.html").read_text()


def test_the_demonstration_pretrains_on_what_it_released(demo):
    folder, _ = demo
    facts = json.loads((folder / "out" / "pretrained" / "run_facts.json").read_text())
    assert facts["steps"] == MAX_STEPS
    assert json.loads((folder / "out" / "pretrained" / "metrics.json").read_text())["test_images"] == NUM_DRAWN // 6


def test_drawn_crops_are_the_same_each_time_and_only_careless_captions_have_false_words(tmp_path):
    paths = [str(tmp_path / name / "drawn.parquet") for name in "ab"]
    (captions, spans), again = (draw_crops(path, 12) for path in paths)
    assert again == (captions, spans) and Path(paths[0]).read_bytes() == Path(paths[1]).read_bytes()
    assert shard_counts(paths[0]) == {"rows_in": 12, "rows_out": 12}
    assert not any(spans[caption] for caption in captions["truthful"].values())
    assert any(spans[caption] for caption in captions["careless"].values())
    assert set(captions["truthful"]) == {row["image_sha256"] for row in read_rows(paths[0])}


def test_scores_are_measured_as_counting_pairs_of_true_and_false_says(tmp_path):
    import pyarrow as pa

    word = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("score", pa.float32())])
    columns = [("caption", pa.string()), ("caption_score", pa.float32()), ("caption_words", pa.list_(word))]
    schema = pa.schema([(name.replace("caption", f"caption{i}"), kind) for i in (1, 2) for name, kind in columns])
    # "red" at 2..5 is false in the first caption; the last caption's truth is not known.
    captions = {
        "a red coat": (0.25, [(2, 5, 0.5), (6, 10, 0.5)]),
        "a blue hat": (0.5, [(2, 6, 0.75), (7, 10, 0.25)]),
        "a sad cap": (0.125, [(6, 9, 0.5)]),
        "nonsense": (0.0, [(0, 3, 1.0)]),
    }
    spans = {"a red coat": [(2, 5)], "a blue hat": [], "a sad cap": []}
    with shard_writer(str(tmp_path / "a.parquet"), schema) as shard:
        for pair in (("a red coat", "a blue hat"), ("a sad cap", "nonsense")):
            row = {}
            for i, text in enumerate(pair, 1):
                score, words = captions[text]
                named = [dict(zip(("start", "end", "score"), word, strict=True)) for word in words]
                row |= {f"caption{i}": text, f"caption{i}_score": score, f"caption{i}_words": named}
            shard.write(row)
    of_captions, of_words = measure_scores([str(tmp_path / "a.parquet")], spans)
    by_kind = {kind: scores.tolist() for kind, scores in scores_by_kind([str(tmp_path / "a.parquet")], spans).items()}
    assert by_kind == {"true": [0.5, 0.125], "with false words": [0.25], "nonsense": [0.0]}
    assert of_captions == 0.5  # 0.5 lies above 0.25, 0.125 below it
    assert of_words == (0.5 + 1 + 0 + 0.5) / 4  # 0.5, 0.75, 0.25, 0.5 against 0.5
