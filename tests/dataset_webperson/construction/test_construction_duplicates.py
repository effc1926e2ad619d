"""Near-duplicates that go are those that a slow comparison of all pairs finds, however rows lie in shards."""

import io
import os

import numpy as np
import pytest
import torch
from made_up_persons import person_rows, write_crops
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from dataset_webperson.construction.shards import read_rows, run_stage
from dataset_webperson.construction.stages.duplicates import DedupOptions, dedup_shard, find_duplicates
from dataset_webperson.construction.stages.embedding_duplicates import EmbeddingOptions
from dataset_webperson.findings import DataError


def in_order(rows):
    """Best first, by the words of the module: larger box, higher score, and a fixed order of names."""
    import hashlib

    def key(row):
        x0, y0, x1, y1 = row["box"]
        name = int.from_bytes(hashlib.blake2b(row["image_path"].encode(), digest_size=8).digest(), "big")
        return -(x1 - x0) * (y1 - y0), -row["box_score"], name

    return sorted(rows, key=key)


def slow_reasons(rows, max_distance):
    """All pairs, one after the other."""
    ordered, reasons = in_order(rows), {}
    for number, row in enumerate(ordered):
        before = ordered[:number]
        if any(other["image_sha256"] == row["image_sha256"] for other in before):
            reasons[row["image_path"]] = "duplicate_bytes"
        elif any((int(other["phash"], 16) ^ int(row["phash"], 16)).bit_count() <= max_distance for other in before):
            reasons[row["image_path"]] = "duplicate_phash"
    return reasons


def dedup(tmp_path, rows, shards, **options):
    """Names that stay, and counts."""
    crops = write_crops(tmp_path / "1_crop", rows, shards)
    options = DedupOptions(plan=str(tmp_path / "2_dedup" / "plan"), **options)
    find_duplicates(crops, options)
    counts = run_stage(dedup_shard, crops, str(tmp_path / "2_dedup"), options)
    outputs = [os.path.join(tmp_path, "2_dedup", os.path.basename(path)) for path in crops]
    assert not os.path.exists(os.path.join(options.plan, "work"))
    return [row["image_path"] for path in outputs for row in read_rows(path)], counts


@pytest.mark.parametrize("max_distance", [0, 1, 4, 9])
@pytest.mark.parametrize("rows_in_memory", [1, 40, 10_000])
def test_the_rows_that_go_are_those_of_a_comparison_of_all_pairs(max_distance, rows_in_memory, tmp_path):
    rows = person_rows(300, seed=max_distance)
    gone = slow_reasons(rows, max_distance)
    stay, counts = dedup(tmp_path, rows, 3, max_distance=max_distance, rows_in_memory=rows_in_memory)
    assert sorted(stay) == sorted(row["image_path"] for row in rows if row["image_path"] not in gone)
    expected = {reason: list(gone.values()).count(reason) for reason in set(gone.values())}
    assert len(expected) == 2
    assert counts == {"rows_in": 300, "rows_out": 300 - len(gone), **expected}


def test_shards_and_their_order_do_not_change_which_copy_stays(tmp_path):
    rows = person_rows(200, seed=5)
    first, _ = dedup(tmp_path / "a", rows, 1)
    shuffled = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    second, _ = dedup(tmp_path / "b", shuffled, 7)
    assert sorted(first) == sorted(second) and len(first) < 200


def test_rows_that_are_all_alike_leave_the_best_one(tmp_path):
    rows = [{**row, "phash": "f" * 16, "box": [0.0, 0.0, 100.0, 200.0]} for row in person_rows(400, 1, twins=0)]
    rows[123]["box"] = [0.0, 0.0, 101.0, 200.0]
    assert dedup(tmp_path, rows, 2, rows_in_memory=10)[0] == ["123.jpg"]
    empty, counts = dedup(tmp_path / "empty", [], 2)
    assert empty == [] and counts == {"rows_in": 0, "rows_out": 0}


def test_added_shards_and_a_missing_plan_are_refused(tmp_path):
    crops = write_crops(tmp_path / "1_crop", person_rows(20, 0), 2)
    options = DedupOptions(plan=str(tmp_path / "2_dedup" / "plan"))
    with pytest.raises(DataError, match="run `find_duplicates` on all shards first"):
        dedup_shard(crops[0], str(tmp_path / "out.parquet"), options)
    find_duplicates(crops[:1], options)
    with pytest.raises(DataError, match="made for other shards.*delete .*2_dedup"):
        find_duplicates(crops, options)
    with pytest.raises(ValueError, match="max_distance must be in 0..16, not 17"):
        DedupOptions(max_distance=17)


@pytest.mark.parametrize("clusters", [1, 4])
def test_close_embeddings_of_a_model_go_too(clusters, tmp_path):
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        vision_config={**vision, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path / "model")
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path / "model")
    random = np.random.default_rng(0)
    rows, images = person_rows(80, seed=2, twins=0), {}
    for number, row in enumerate(rows):
        image = Image.fromarray(random.integers(0, 256, (2, 2, 3), dtype=np.uint8)).resize((32, 32))
        if number % 3 == 2:
            image = images[rows[number - 1]["image_path"]]
        images[row["image_path"]] = image
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        row["image"]["bytes"] = buffer.getvalue()
    with torch.no_grad():
        pixels = processor(images=list(images.values()), return_tensors="pt")
        found = model.get_image_features(**pixels)
    vectors = found if isinstance(found, torch.Tensor) else found.pooler_output
    vectors = torch.nn.functional.normalize(vectors, dim=-1).numpy().astype(np.float16).astype(np.float32)
    by_name = dict(zip(images, vectors, strict=True))
    # In the middle of the widest gap of all cosines that count: rounding does not decide.
    cosines = np.sort((vectors @ vectors.T)[np.triu_indices(80, 1)])[-60:-5]
    place = int(np.argmax(np.diff(cosines)))
    limit = float(cosines[place : place + 2].mean())
    options = EmbeddingOptions(str(tmp_path / "model"), min_cosine=min(limit, 1.0), clusters=clusters)
    stay, counts = dedup(tmp_path, rows, 3, max_distance=0, embedding=options)
    ordered = [row["image_path"] for row in in_order(rows)]
    gone = [
        name
        for number, name in enumerate(ordered)
        if any(by_name[name] @ by_name[other] >= limit for other in ordered[:number])
    ]
    assert counts["duplicate_embedding"] + len(stay) == 80
    if clusters == 1:
        assert set(stay) == set(ordered) - set(gone) and len(gone) > 20
    else:
        # Pairs across a border are missed, the same picture twice never is.
        assert set(ordered) - set(gone) <= set(stay) and counts["duplicate_embedding"] >= 26
