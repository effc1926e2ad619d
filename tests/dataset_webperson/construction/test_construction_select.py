"""Addresses from COYO's metadata: survivors of each rule, the quota of faceless pictures, one of each hash."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_webperson.construction.opt_out import OptOut
from dataset_webperson.construction.shards import read_rows, run_stage
from dataset_webperson.construction.stages import select_urls
from dataset_webperson.construction.stages.select_urls import SelectOptions, select_shard, unique_urls
from dataset_webperson.findings import DataError


def coyo(path, count, seed, first_id=0):
    random = np.random.default_rng(seed)
    rows = [
        {
            "id": first_id + number,
            "url": f"https://site{number % 7}.org/{number}.jpg",
            "text": "a text that is not read",
            "width": int(random.integers(150, 600)),
            "height": int(random.integers(150, 600)),
            "image_phash": f"{random.integers(0, count):016x}",
            "num_faces": int(random.integers(0, 2) * random.integers(0, 4)),
            "nsfw_score_opennsfw2": float(random.random() ** 3),
            "nsfw_score_gantman": float(random.random() ** 3),
            "watermark_score": float(random.random()) if number % 11 else None,
        }
        for number in range(count)
    ]
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return rows


def problem(row, options):
    """The rules, one row at a time."""
    if any(value is None for value in row.values()):
        return "value_missing"
    if min(row["width"], row["height"]) < options.min_side:
        return "side"
    if row["watermark_score"] > options.max_watermark:
        return "watermark"
    nsfw = row["nsfw_score_opennsfw2"] > options.max_nsfw_opennsfw2
    return "nsfw" if nsfw or row["nsfw_score_gantman"] > options.max_nsfw_gantman else ""


@pytest.mark.parametrize("batch", [7, 1 << 16])
def test_each_rule_states_its_survivors_and_faceless_pictures_keep_their_quota(batch, tmp_path, monkeypatch):
    monkeypatch.setattr(select_urls, "_BATCH", batch)
    rows = coyo(tmp_path / "coyo" / "a.parquet", 600, seed=0)
    options = SelectOptions(faceless_share=0.25)
    counts = select_shard(str(tmp_path / "coyo" / "a.parquet"), str(tmp_path / "a.parquet"), options)
    expected = Counter(problem(row, options) for row in rows)
    passed = {row["id"]: row for row in rows if not problem(row, options)}
    faced = {number for number, row in passed.items() if row["num_faces"] > 0}
    kept = {row["id"] for row in read_rows(str(tmp_path / "a.parquet"))}
    assert faced <= kept <= set(passed)
    assert len(kept - faced) == len(faced) // 3  # a quarter of all
    over = len(passed) - len(kept)
    assert over > 0 and expected.pop("") == len(passed)
    assert counts == {"rows_in": 600, "rows_out": len(kept), "faceless_over_quota": over, **expected}


def test_faceless_pictures_all_stay_below_the_quota_and_none_at_quota_zero(tmp_path):
    rows = coyo(tmp_path / "coyo" / "a.parquet", 300, seed=1)
    source = str(tmp_path / "coyo" / "a.parquet")
    assert "faceless_over_quota" not in select_shard(source, str(tmp_path / "b"), SelectOptions(faceless_share=0.9))
    select_shard(source, str(tmp_path / "c"), SelectOptions(faceless_share=0.0))
    faces = {row["id"]: row["num_faces"] for row in rows}
    assert all(faces[row["id"]] for row in read_rows(str(tmp_path / "c")))


def test_one_address_of_each_hash_stays_the_one_with_the_lowest_id(tmp_path):
    rows = coyo(tmp_path / "coyo" / "a.parquet", 200, seed=2) + coyo(tmp_path / "coyo" / "b.parquet", 200, 3, 1_000)
    sources = [str(tmp_path / "coyo" / name) for name in ("a.parquet", "b.parquet")]
    (tmp_path / "list.txt").write_text("domain:site3.org\n")
    options = SelectOptions(faceless_share=0.9, rows_in_memory=10, opt_out=str(tmp_path / "list.txt"))
    counts = run_stage(select_shard, sources, str(tmp_path / "0_select"), options)
    assert counts["opted_out_domain"] > 5
    shards = [str(tmp_path / "0_select" / name) for name in ("a.parquet", "b.parquet")]
    first: dict[str, int] = {}
    selected = [row for shard in shards for row in read_rows(shard)]
    for row in sorted(selected, key=lambda row: row["id"]):
        first.setdefault(row["image_phash"], row["id"])
    expected = {"rows_in": len(selected), "duplicate_phash": len(selected) - len(first), "rows_out": len(first)}
    for _ in range(2):
        assert unique_urls(shards, str(tmp_path / "0_urls"), options) == expected
    listed = [row for name in ("a", "b") for row in read_rows(str(tmp_path / "0_urls" / f"{name}.parquet"))]
    assert [row["id"] for row in listed] == sorted(first.values())
    urls = {row["id"]: row["url"] for row in rows}
    assert all(row["url"] == urls[row["id"]] and "site3.org" not in row["url"] for row in listed)
    assert sorted(path.name for path in (tmp_path / "0_urls").iterdir()) == [
        "a.parquet",
        "b.parquet",
        "opted_out.json",
    ]


def test_who_opts_out_later_is_gone_from_the_addresses_too(tmp_path):
    coyo(tmp_path / "coyo" / "a.parquet", 200, seed=2)
    folders = [str(tmp_path / name) for name in ("0_select", "0_urls")]
    opt_out = None

    def addresses():
        options = SelectOptions(opt_out=opt_out)
        lists = OptOut.from_file(opt_out) if opt_out else OptOut()
        run_stage(select_shard, [str(tmp_path / "coyo" / "a.parquet")], folders[0], options, opt_out=lists)
        counts = unique_urls([f"{folders[0]}/a.parquet"], folders[1], options)
        return counts, [row["url"] for row in read_rows(f"{folders[1]}/a.parquet")]

    before, urls = addresses()
    (tmp_path / "list.txt").write_text("domain:site3.org\n")
    opt_out = str(tmp_path / "list.txt")
    for _ in range(2):
        after, left = addresses()
        assert left == [url for url in urls if "site3.org" not in url] and 0 < len(left) < len(urls)
        gone = len(urls) - len(left)
        assert after == before | {"rows_out": len(left), "opted_out_domain": gone}


def test_metadata_without_a_column_is_one_error_that_names_it(tmp_path):
    pq.write_table(pa.table({"id": [1], "url": ["u"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="a.parquet: no column height.*give COYO's metadata"):
        select_shard(str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet"), SelectOptions())
