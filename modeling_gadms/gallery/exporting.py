"""Copies of a gallery's rows: for faiss, as parquet, in Qdrant, and as Lance tables on object storage."""

import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset_webperson import DataError
from dataset_webperson.files import replacing, write_text

from . import calibration, opt_out, settings
from .columns import OWN, as_given
from .models import public_facts, refuse_other
from .rows import INDEXES, Rows, connect, vector_array
from .searching import unit

EXPORT = "gallery-export"  # payload: which export wrote the point; no column of a user can have this name
ROWS, FILES = "rows", "gallery_files"  # Lance tables: the gallery's own, and its small files, name and content
KEPT = (settings.FILE, calibration.FILE, opt_out.FILE)
LANCE_FAILURES = (OSError, RuntimeError, ValueError)  # whatever the storage answers
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


def qdrant_client_of(target: Any) -> Any:
    """A client for an address such as `http://localhost:6333`, or for a folder of the client's local mode.

    The key of a server that wants one is read from `QDRANT_API_KEY`.

    Raises:
        DataError: the client is not installed.
    """
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise DataError("Qdrant needs its client, which is not installed; pip install qdrant-client") from error
    if isinstance(target, QdrantClient):
        return target
    address = os.fspath(target)
    if "://" in address:
        return QdrantClient(url=address, api_key=os.environ.get("QDRANT_API_KEY"), check_compatibility=False)
    return QdrantClient(path=address)


def is_local(client: Any) -> bool:
    """Whether a client keeps its collections itself, without indexes and approximation."""
    options = client.init_options
    return bool(options.get("path")) or options.get("location") == ":memory:"


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
    client = qdrant_client_of(target)
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


def export_lance(rows: Rows, target: str | os.PathLike, *, folder: Path) -> int:
    """The whole gallery as Lance tables, pictures that are kept in it too; an earlier copy is replaced.

    Args:
        rows (`Rows`): of the gallery.
        target (`str`): `s3://...`, `gs://...`, `az://...` or a folder; keys are read from the environment, as lancedb
            does (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`, ...).
        folder (`Path`): of the gallery.

    Raises:
        DataError: the storage refuses, or holds other tables of these names.
    """
    files = {name: (folder / name).read_bytes() for name in KEPT if (folder / name).exists()}
    told = settings.read_settings(folder)
    told |= {"table": ROWS, "model": public_facts(told["model"])}
    files[settings.FILE] = json.dumps(told).encode()
    content = {"name": pa.array(files), "data": pa.array(files.values(), pa.large_binary())}
    schema = rows.table.schema
    parts = (batch.select(schema.names) for batch in rows.batches(schema.names))
    try:
        database = connect(target)
        is_copy = _holds(database, FILES)
        if _holds(database, ROWS) and not is_copy:
            raise DataError(f"{target}: holds a table {ROWS} that is no copy of a gallery; choose another place")
        # the small files come last: without them it is no gallery
        database.create_table(
            ROWS, pa.RecordBatchReader.from_batches(schema, parts), mode="overwrite" if is_copy else "create"
        )
        copy = Rows(target, ROWS)
        # an earlier copy may hold rows that were removed since
        copy.settle(settings.read_settings(folder).get("index", INDEXES[0]))
        database.create_table(FILES, pa.table(content), mode="overwrite" if is_copy else "create")
        return copy.count()
    except DataError:
        raise
    except LANCE_FAILURES as error:
        raise DataError(f"{target}: cannot be written ({' '.join(str(error).split()):.200}); check it") from error


def _holds(database: Any, name: str) -> bool:
    try:
        database.open_table(name)
    except ValueError:  # not found
        return False
    return True


def _refuse_taken(target: str | os.PathLike) -> None:
    if os.path.exists(target):
        raise DataError(f"{target}: exists already; delete it, or choose another name")


EXPORTS: dict[str, Callable[..., int]] = {
    "faiss": export_faiss,
    "parquet": export_parquet,
    "qdrant": export_qdrant,
    "lance": export_lance,
}
