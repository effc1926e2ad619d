"""Exports: faiss and parquet hold the same rows, and find what the gallery finds."""

import json

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import tiny_model, tiny_processor, tiny_rows

from dataset_webperson import DataError
from modeling_gadms.gallery import Gallery


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    processor = tiny_processor()
    model = tiny_model(vocab_size=len(processor.tokenizer))
    made = Gallery.create(tmp_path_factory.mktemp("exported") / "people", (model, processor))
    made.add(tiny_rows(30))
    return made


def test_faiss_and_parquet_hold_the_rows_and_find_the_same(gallery, tmp_path):
    assert gallery.export("faiss", tmp_path / "rows.faiss") == 30
    index = faiss.read_index(str(tmp_path / "rows.faiss"))
    rows = [json.loads(line) for line in (tmp_path / "rows.faiss.jsonl").read_text().splitlines()]
    hits = gallery.search("a red coat", k=30)
    query = gallery.encoder().texts(["a red coat"]).astype(np.float32)
    scores, places = index.search(query, 30)
    by_id = {rows[place]["id"]: score for score, place in zip(scores[0], places[0], strict=True)}
    assert np.allclose([by_id[hit.id] for hit in hits], [hit.score for hit in hits], atol=1e-3)
    assert {row["uri"]: row["person_id"] for row in rows} == {hit.uri: hit.metadata["person_id"] for hit in hits}
    assert gallery.export("parquet", tmp_path / "rows.parquet") == 30
    table = pq.read_table(tmp_path / "rows.parquet")
    assert sorted(table["id"].to_pylist()) == sorted(by_id) and "picture" not in table.column_names
    vectors = np.array(table["vector"].to_pylist(), dtype=np.float64)
    assert np.allclose(vectors @ query[0], [by_id[number] for number in table["id"].to_pylist()], atol=1e-3)
    for kind, name in (("faiss", "rows.faiss"), ("parquet", "rows.parquet")):
        with pytest.raises(DataError, match="exists already"):
            gallery.export(kind, tmp_path / name)
    with pytest.raises(DataError, match="export to faiss, parquet, qdrant"):
        gallery.export("csv", tmp_path / "rows.csv")
