"""Near-duplicates that go are those that a slow comparison of all pairs finds, however rows lie in shards."""

import io
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from made_up_persons import person_rows, write_crops
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from dataset_webperson import near_duplicates
from dataset_webperson.construction.shards import read_rows, run_stage
from dataset_webperson.construction.stages import duplicates, hash_duplicates
from dataset_webperson.construction.stages.duplicates import DedupOptions, dedup_shard, find_duplicates
from dataset_webperson.construction.stages.embedding_cells import cells_of, grow_cells
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


@pytest.mark.parametrize(
    "max_distance, rows_in_memory", [(0, 40), (0, 10_000), (1, 10_000), (4, 100), (4, 10_000), (9, 10_000)]
)
def test_the_rows_that_go_are_those_of_a_comparison_of_all_pairs(max_distance, rows_in_memory, tmp_path):
    rows = person_rows(300, seed=max_distance)
    gone = slow_reasons(rows, max_distance)
    stay, counts = dedup(tmp_path, rows, 3, max_distance=max_distance, rows_in_memory=rows_in_memory)
    assert sorted(stay) == sorted(row["image_path"] for row in rows if row["image_path"] not in gone)
    expected = {reason: list(gone.values()).count(reason) for reason in set(gone.values())}
    assert len(expected) == 2
    assert counts == {"rows_in": 300, "rows_out": 300 - len(gone), **expected}


@pytest.mark.parametrize("kinds", [1, 3, 40])
def test_rows_are_put_in_order_as_by_sorting_all_columns(kinds):
    random = np.random.default_rng(kinds)
    for count in (0, 1, 2, 50):
        columns = [random.integers(kinds, size=count, dtype=np.uint64) for _ in range(2)] + [random.permutation(count)]
        slow = sorted(range(count), key=lambda place: [column[place] for column in columns])
        assert hash_duplicates._in_order(*columns).tolist() == slow


def test_shards_and_their_order_do_not_change_which_copy_stays(tmp_path):
    rows = person_rows(200, seed=5)
    first, _ = dedup(tmp_path / "a", rows, 1)
    shuffled = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    second, _ = dedup(tmp_path / "b", shuffled, 7)
    assert sorted(first) == sorted(second) and len(first) < 200


def test_rows_that_are_all_alike_leave_the_best_one(tmp_path):
    rows = [{**row, "phash": "f" * 16, "box": [0.0, 0.0, 100.0, 200.0]} for row in person_rows(400, 1, twins=0)]
    rows[123]["box"] = [0.0, 0.0, 101.0, 200.0]
    assert dedup(tmp_path, rows, 2, rows_in_memory=100)[0] == ["123.jpg"]
    empty, counts = dedup(tmp_path / "empty", [], 2)
    assert empty == [] and counts == {"rows_in": 0, "rows_out": 0}


@pytest.mark.parametrize("max_distance, crowd", [(2, 2), (4, 5), (9, 20)])
def test_hashes_close_to_an_earlier_one_are_those_that_a_slow_loop_finds(max_distance, crowd, monkeypatch):
    """Small crowds and alike hashes send the search down to groups of few bits."""
    monkeypatch.setattr(near_duplicates, "_CROWD", crowd)
    random, hashes = np.random.default_rng(max_distance), []
    for number in range(250):
        alike = hashes[int(random.integers(len(hashes)))] if number % 3 else int(random.integers(1 << 63))
        for bit in random.integers(0, 64, random.integers(1, 12)):
            alike ^= 1 << int(bit)
        hashes.append(alike)
    hashes = list(dict.fromkeys(hashes))
    slow = [any((one ^ other).bit_count() <= max_distance for other in hashes[:n]) for n, one in enumerate(hashes)]
    found = np.zeros(len(hashes), bool)
    for mask in near_duplicates.bands(max_distance):
        found |= near_duplicates.close_to_earlier(np.array(hashes, np.uint64), max_distance, mask)
    assert found.tolist() == slow and 10 < sum(slow) < len(hashes)


def test_added_shards_are_compared_with_all_and_no_old_row_goes_for_a_new_one(tmp_path):
    rows = person_rows(300, seed=7)
    crops = write_crops(tmp_path / "1_crop", rows, 3)
    options = DedupOptions(plan=str(tmp_path / "2_dedup" / "plan"))
    find_duplicates(crops[1:], options)
    plans = [os.path.join(options.plan, os.path.basename(path)) for path in crops]
    before = [(os.stat(path).st_mtime_ns, pq.read_table(path)) for path in plans[1:]]
    find_duplicates(crops, options)
    assert before == [(os.stat(path).st_mtime_ns, pq.read_table(path)) for path in plans[1:]]
    # What a comparison of all pairs finds where every old box is larger than all new ones.
    new = {row["image_path"] for row in rows[::3]}
    larger = [{**row, "box": [10 * side for side in row["box"]]} for row in rows if row["image_path"] not in new]
    gone = slow_reasons([*larger, *rows[::3]], 4)
    found = {row["image_path"]: row["reason"] for path in plans for row in read_rows(path)}
    assert found == gone and len(new & gone.keys()) > 20
    with pytest.raises(DataError, match="made with shards that are gone .00001.parquet.*delete .*2_dedup"):
        find_duplicates([crops[0], crops[2]], options)


def test_a_comparison_that_was_interrupted_goes_on_and_one_over_changed_shards_starts_over(tmp_path, monkeypatch):
    crops = write_crops(tmp_path / "1_crop", person_rows(300, seed=8), 3)
    options = DedupOptions(plan=str(tmp_path / "plan"), rows_in_memory=150)
    done = []

    def counted(name, stops_after=None):
        part = getattr(hash_duplicates, name)

        def count(source, target, search):
            if stops_after is not None and done.count(name) == stops_after:
                raise KeyboardInterrupt
            part(source, target, search)
            done.append(name)

        monkeypatch.setattr(duplicates, name, count)

    counted("write_keys")
    counted("compare_bucket", stops_after=5)
    with pytest.raises(KeyboardInterrupt):
        find_duplicates(crops, options)
    assert (done.count("write_keys"), done.count("compare_bucket")) == (3, 5)
    counted("compare_bucket")
    work = tmp_path / "plan" / "work"
    shutil.copytree(work, tmp_path / "work")
    find_duplicates(crops, options)
    assert (done.count("write_keys"), done.count("compare_bucket")) == (3, 12)
    # With what was left of the comparison, but another crop shard.
    os.remove(tmp_path / "plan" / "done.json")
    shutil.copytree(tmp_path / "work", work)
    os.utime(crops[1], (1, 1))
    find_duplicates(crops, options)
    assert (done.count("write_keys"), done.count("compare_bucket")) == (6, 24) and not work.exists()


def test_a_missing_plan_and_a_bad_distance_are_refused(tmp_path):
    crops = write_crops(tmp_path / "1_crop", person_rows(20, 0), 2)
    options = DedupOptions(plan=str(tmp_path / "2_dedup" / "plan"))
    with pytest.raises(DataError, match="run `find_duplicates` on all shards first"):
        dedup_shard(crops[0], str(tmp_path / "out.parquet"), options)
    with pytest.raises(ValueError, match="max_distance must be in 0..16, not 17"):
        DedupOptions(max_distance=17)


def test_cells_keep_nearly_all_close_pairs_together_and_compare_few_others():
    random = np.random.default_rng(0)
    vectors = random.standard_normal((3_000, 64)) * np.exp(-np.arange(64) / 20) + np.eye(64)[0] * 4
    vectors[1_500:] = vectors[:1_500] + random.standard_normal((1_500, 64)) * random.random((1_500, 1)) * 0.2
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    cells = grow_cells(vectors[::2], 40)  # two levels
    assert len(cells.first) > 2 and 30 <= cells.count <= 50
    rows, places = cells_of(cells, vectors, 0.97)
    assert set(rows) == set(range(3_000)) and 0 <= places.min() and places.max() < cells.count
    shared = [set() for _ in vectors]
    for row, place in zip(rows.tolist(), places.tolist(), strict=True):
        assert place not in shared[row]
        shared[row].add(place)
    pairs = np.argwhere(np.triu(vectors @ vectors.T >= 0.97, 1)).tolist()
    together = np.mean([bool(shared[one] & shared[other]) for one, other in pairs])
    assert len(pairs) > 1_000 and together > 0.98
    assert sum(np.bincount(places) ** 2.0) < 0.5 * 3_000**2
    one, where = cells_of(grow_cells(vectors, 1), vectors, 0.97)
    assert one.tolist() == list(range(3_000)) and not where.any()


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
