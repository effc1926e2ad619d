"""Copies of a gallery's rows for other engines: faiss, parquet, and Qdrant."""

import json
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset_webperson import DataError
from dataset_webperson.files import replacing, write_text

from .columns import OWN, as_given
from .models import refuse_other
from .rows import Rows, vector_array
from .searching import unit

POINTS = 500  # sent to Qdrant at a time: a request of 512 numbers each takes about 6 MB, of at most 32


def export_parquet(rows: Rows, target: str | os.PathLike) -> int:
    """One parquet file with ids, names, hashes, metadata and vectors, without the pictures.

    Args:
        rows (`Rows`): of the gallery.
        target (`str`): a file that does not exist.
    """
    _refuse_taken(target)
    names = [name for name in rows.table.schema.names if name != "picture"]
    schema = pa.schema([rows.table.schema.field(name) for name in names])
    count = 0
    with replacing(target) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for batch in rows.batches(names):
            writer.write_batch(batch.select(names))
            count += len(batch)
    return count


def export_faiss(rows: Rows, target: str | os.PathLike) -> int:
    """A flat float16 index of inner products, and its rows as JSON lines in `<target>.jsonl`, in the same order.

    Args:
        rows (`Rows`): of the gallery.
        target (`str`): a file that does not exist.
    """
    try:
        import faiss
    except ImportError as error:
        raise DataError("export to faiss needs faiss, which is not installed; pip install faiss-cpu") from error
    _refuse_taken(target)
    index = faiss.IndexScalarQuantizer(rows.dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    lines = []
    for values, vectors in _parts(rows):
        index.add(vectors.astype(np.float32))
        lines += [json.dumps(row) + "\n" for row in values]
    write_text(f"{os.fspath(target)}.jsonl", "".join(lines))
    with replacing(target) as temporary:
        faiss.write_index(index, temporary)
    return index.ntotal


def export_qdrant(
    rows: Rows,
    target: Any,
    *,
    model: dict[str, Any],
    collection: str = "gallery",
    shard_number: int | None = None,
    replication_factor: int | None = None,
    quantization: str = "int8",
) -> int:
    """A collection of a Qdrant server or cluster, with metadata as payload, for [`QdrantGallery`] to search.

    Repeated, it writes over the same points, and removes those whose rows are gone.

    Args:
        rows (`Rows`): of the gallery.
        target: an address such as `http://localhost:6333`, a folder for the client's local mode (for tests: its makers
            say not beyond 20,000 rows), or a `QdrantClient`.
        model (`dict`): the facts of the model that made the rows, which are kept with the collection.
        collection (`str`): its name.
        shard_number, replication_factor (`int`, *optional*): of the collection, as Qdrant takes them.
        quantization (`str`): `"int8"` keeps int8 vectors in memory and rescores with the originals on disk, `"none"`
            has the originals alone.

    Raises:
        DataError: the client is not installed, or another model made the collection.
    """
    from .qdrant import EXPORT, connect, is_local  # a gallery is what it searches

    client = connect(target)
    from qdrant_client import models

    facts = {"model": model, "columns": rows.kinds}
    scalar = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
    if client.collection_exists(collection):
        made_by = (client.get_collection(collection).config.metadata or {}).get("model", model)
        refuse_other(made_by, model, f"collection {collection}")
        client.update_collection(collection, metadata=facts)
    else:
        client.create_collection(
            collection,
            vectors_config=models.VectorParams(
                size=rows.dimension, distance=models.Distance.COSINE, on_disk=True, datatype=models.Datatype.FLOAT16
            ),
            shard_number=shard_number,
            replication_factor=replication_factor,
            quantization_config=models.ScalarQuantization(scalar=scalar) if quantization == "int8" else None,
            metadata=facts,
        )
    types = models.PayloadSchemaType
    schema = {"number": types.FLOAT, "text": types.KEYWORD, "time": types.DATETIME, "bool": types.BOOL}
    if not is_local(client):
        for name, kind in {**rows.kinds, "uri": "text", "source": "text", EXPORT: "text"}.items():
            client.create_payload_index(collection, name, schema[kind])
    this, count = uuid.uuid4().hex, 0
    for values, vectors in _parts(rows, "sha256", "phash"):
        points = [
            models.PointStruct(
                id=str(uuid.UUID(row["id"])),
                vector=vector.tolist(),
                payload={**row, "phash": f"{row['phash']:016x}", EXPORT: this},  # it does not fit Qdrant's integers
            )
            for row, vector in zip(values, vectors, strict=True)
        ]
        for first in range(0, len(points), POINTS):
            client.upsert(collection, points[first : first + POINTS])
        count += len(points)
    earlier = models.Filter(must_not=[models.FieldCondition(key=EXPORT, match=models.MatchValue(value=this))])
    client.delete(collection, models.FilterSelector(filter=earlier))
    if client is not target:
        client.close()
    return count


def _parts(rows: Rows, *more: str) -> Iterator[tuple[list[dict[str, Any]], np.ndarray]]:
    """Ids, names, metadata and `more` of some rows, and their unit vectors."""
    names = ["id", "uri", "source", *more, *(name for name in rows.table.schema.names if name not in OWN)]
    for batch in rows.batches([*names, "vector"]):
        values = [{name: as_given(value) for name, value in row.items()} for row in batch.select(names).to_pylist()]
        yield values, unit(vector_array(batch["vector"]))


def _refuse_taken(target: str | os.PathLike) -> None:
    if os.path.exists(target):
        raise DataError(f"{target}: exists already; delete it, or choose another name")


EXPORTS: dict[str, Callable[..., int]] = {"faiss": export_faiss, "parquet": export_parquet, "qdrant": export_qdrant}
