"""The rows of a gallery on disk: a LanceDB table, and all that is asked of it."""

import datetime
import functools
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from dataset_webperson import DataError

from .columns import ARROW, OWN, SQL
from .filters import equals, to_sql

# An exact search reads all vectors: 75 CPU ms at 100,000 rows of 512 dimensions. An index makes it 10.
INDEX_FROM = 100_000
UNINDEXED = 20_000  # rows that the index does not know are compared one by one, 15 CPU ms; then they are put into it
PARTS = 8  # each time as a part of their own, which costs every search 3 CPU ms; then all is indexed again
# Partitions, of about 4,096 rows, that a search enters; where it finds too few rows there, it enters all.
# At 300,000 rows the 50 rows that are compared exactly then hold all of the ten best for captions.
PROBES = 20
CODE_BITS = 4  # for each number of a vector in the compact index
INDEXES = ("compact", "int8")
# What the engine may keep in memory; the index of 3.5 million rows of 512 dimensions fits. Parts that do not are read
# from the disk when they are needed.
INDEX_CACHE, METADATA_CACHE = 1024**3, 64 * 1024**2
_ALL_MOVED = 10_000  # so few rows that all of them are rewritten when some are removed
FRAGMENTS = 64  # pieces of a table from which they are joined


@functools.cache
def _session() -> Any:
    """What all galleries of a process keep in memory."""
    import lancedb

    return lancedb.Session(index_cache_size_bytes=INDEX_CACHE, metadata_cache_size_bytes=METADATA_CACHE)


def connect(folder: str | os.PathLike) -> Any:
    """The database in a folder, or at an address such as `s3://...`.

    Each reading looks up whether another process has written.
    """
    try:
        import lancedb  # an extra, and a second to import
    except ImportError as error:
        raise DataError("a gallery needs lancedb, which is not installed; pip install gadms[gallery]") from error
    always = datetime.timedelta(0)
    return lancedb.connect(os.fspath(folder), read_consistency_interval=always, session=_session())


class Rows:
    """One table, safe for threads; each reading sees what other processes have written.

    Args:
        folder (`str`): of the gallery.
        name (`str`): of the table.
    """

    def __init__(self, folder: str | os.PathLike, name: str) -> None:
        self._database = connect(folder)
        self.name = name
        self.table = self._database.open_table(name)

    @classmethod
    def create(cls, folder: str | os.PathLike, name: str, dimension: int, dtype: str) -> "Rows":
        """An empty table for vectors of `dimension` numbers, `"float16"` or `"float32"`."""
        number = pa.float16() if dtype == "float16" else pa.float32()
        schema = pa.schema(
            [
                pa.field("id", pa.string(), nullable=False),
                pa.field("uri", pa.string(), nullable=False),
                pa.field("source", pa.string(), nullable=False),
                pa.field("sha256", pa.string(), nullable=False),
                pa.field("phash", pa.uint64(), nullable=False),
                pa.field("file_size", pa.int64(), nullable=False),
                pa.field("file_time", pa.int64(), nullable=False),
                pa.field("vector", pa.list_(number, dimension), nullable=False),
                pa.field("picture", pa.large_binary()),
            ]
        )
        connect(folder).create_table(name, schema=schema)
        return cls(folder, name)

    @property
    def kinds(self) -> dict[str, str]:
        """The user's columns and their kinds."""
        names = {arrow: kind for kind, arrow in ARROW.items()}
        return {field.name: names[field.type] for field in self.table.schema if field.name not in OWN}

    @property
    def dimension(self) -> int:
        return self.table.schema.field("vector").type.list_size

    def count(self, where: str | None = None) -> int:
        return self.table.count_rows(where)

    def add_columns(self, kinds: dict[str, str]) -> None:
        """Columns that the table lacks; earlier rows have no value there."""
        known = self.table.schema.names
        if missing := {name: f"cast(null as {SQL[kind]})" for name, kind in kinds.items() if name not in known}:
            self.table.add_columns(missing)

    def as_table(self, records: list[dict[str, Any]], vectors: np.ndarray) -> pa.Table:
        """Rows for [`append`]: `records` without their vectors, and `vectors` `(rows, dimension)`."""
        schema = self.table.schema
        columns = {
            field.name: pa.array([record.get(field.name) for record in records], field.type)
            for field in schema
            if field.name != "vector"
        }
        columns["vector"] = vector_column(vectors, schema.field("vector").type)
        return pa.table([columns[name] for name in schema.names], schema=schema)

    def append(self, rows: pa.Table) -> None:
        """Write new rows in one step, whole or not at all."""
        self.table.add(rows)

    def replace(self, rows: pa.Table) -> None:
        """Write rows in one step in the place of those with the same ids."""
        self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def delete(self, where: str) -> int:
        return int(self.table.delete(where).num_deleted_rows or 0)

    def read(self, columns: list[str], where: str | None = None) -> pa.Table:
        return self._scan(columns, where).to_arrow()

    def row(self, number: str, columns: list[str]) -> pa.Table:
        """The row of an id, or none."""
        return self.read(columns, equals("id", number))

    def condition(self, text: str, kinds: dict[str, str]) -> str:
        """A filter text as this table's own condition. Raises `DataError`."""
        return to_sql(text, kinds)

    def batches(self, columns: list[str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        """The same, a part at a time."""
        yield from self._scan(columns, where).to_batches(4096)

    def _scan(self, columns: list[str], where: str | None) -> Any:
        query = self.table.search().select(columns)
        return query.where(where) if where else query

    def take(self, places: Iterable[int], columns: list[str]) -> pa.Table:
        """Rows by their place in the table."""
        return self.table.take_offsets(sorted(places)).select(columns).to_arrow()

    def nearest(self, vector: np.ndarray, count: int, where: str | None, exact: bool, columns: list[str]) -> pa.Table:
        """About the `count` rows of the highest cosine with `vector`, and `_distance`, one minus the cosine.

        Conditions hold before the search. It is exact, up to rounding, with `exact` or where there is no index.
        """
        query = self.table.search(vector.astype(np.float32), vector_column_name="vector")
        query = query.distance_type("cosine").select([*columns, "_distance"]).limit(count)
        if where:
            query = query.where(where, prefilter=True)
        if exact:
            return query.bypass_vector_index().to_arrow()
        found = query.nprobes(PROBES).to_arrow()
        if len(found) == count:
            return found
        # the rows that a filter leaves may lie anywhere: all partitions (0 is no limit)
        return query.maximum_nprobes(0).to_arrow()

    def index_facts(self) -> dict[str, int] | None:
        """Rows inside and outside the index, and its parts; `None` where there is none."""
        for index in self.table.list_indices():
            if index.columns == ["vector"]:
                facts = self.table.index_stats(index.name)
                return {
                    "indexed": facts.num_indexed_rows,
                    "unindexed": facts.num_unindexed_rows,
                    "parts": facts.num_indices,
                }
        return None

    def tidy(self, index: str = "compact") -> None:
        """Join small pieces, and make or extend the index where the gallery is large enough for one."""
        facts = self.index_facts()
        new = self.count() >= INDEX_FROM if facts is None else facts["unindexed"] > UNINDEXED
        if new or self.table.stats()["fragment_stats"]["num_fragments"] > FRAGMENTS:
            self.settle(index)

    def settle(self, index: str = "compact") -> None:
        """Join small pieces, delete older versions, and see that the index holds all rows in few parts."""
        with warnings.catch_warnings():  # readers in other processes look the version up before they read
            warnings.simplefilter("ignore", UserWarning)
            self.table.optimize(cleanup_older_than=datetime.timedelta(0), delete_unverified=True)
        facts = self.index_facts()
        if self.count() >= INDEX_FROM if facts is None else facts["parts"] > PARTS:
            self.make_index(index)

    def make_index(self, index: str = "compact") -> None:
        """Index the vectors, and the ids, by which rows are fetched and replaced.

        Args:
            index (`str`): `"compact"`, 4 bits for each number of a rotated vector (RaBitQ), or `"int8"`, 8 bits.
        """
        from lancedb.index import BTree, IvfRq, IvfSq

        # RaBitQ takes numbers by eights
        compact = index == "compact" and self.dimension % 8 == 0
        codes = IvfRq("cosine", num_bits=CODE_BITS) if compact else IvfSq("cosine")
        self.table.create_index("vector", config=codes)
        self.table.create_index("id", config=BTree())

    def purge(self, index: str = "compact") -> None:
        """Rewrite what holds removed rows, and delete the older versions that still have them.

        The engine rewrites a piece of the table, and its part of the index, only once a tenth of its rows are gone.
        So an eighth are moved to a new piece first: ids are evenly spread.
        """
        moved = "`id` < '20'" if self.count() > _ALL_MOVED else "true"
        self.table.update(where=moved, values_sql={"uri": "uri"})
        self.settle(index)

    def drop(self) -> None:
        self._database.drop_table(self.name)


def vector_column(vectors: np.ndarray, kind: pa.DataType) -> pa.Array:
    """`(rows, dimension)` numbers as a column of the table."""
    number = kind.value_type
    flat = np.ascontiguousarray(vectors, dtype=number.to_pandas_dtype()).ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, number), kind.list_size)


def vector_array(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of vectors as `(rows, dimension)`, in the numbers that it holds."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of no chunks
        column = pa.array([], column.type)
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
