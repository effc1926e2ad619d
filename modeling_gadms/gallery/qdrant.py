"""A gallery whose rows lie in Qdrant, asked by the same search call: [`QdrantGallery`]."""

import os
import uuid
from typing import Any

import numpy as np
import pyarrow as pa

from dataset_webperson import DataError
from dataset_webperson.findings import reason_of

from .columns import ARROW, parse_time
from .exporting import is_local, qdrant_client_of
from .filters import Comparison, Junction, parse
from .models import refuse_other
from .read_only import ReadOnlyGallery
from .rows import vector_column

SEARCH_WIDTH = 128  # points that Qdrant's graph keeps in sight
OVERSAMPLING = 2.0  # of the int8 vectors, which are rescored by the originals
_OWN = {"id": pa.string(), "uri": pa.string(), "source": pa.string(), "sha256": pa.string(), "phash": pa.uint64()}


class QdrantGallery(ReadOnlyGallery):
    """A gallery with its rows in a Qdrant collection, where `export("qdrant", ...)` has put them.

    The folder says what the collection does not: the model, the calibration, the opt-out list, and whether queries are
    recorded. Its own rows are not read, and need not be there. To change rows, change the gallery and export it again.

    Args:
        path (`str`): the folder of the gallery that was exported, or a copy of it.
        url: an address such as `http://localhost:6333`, a folder of the client's local mode, or a `QdrantClient`.
        collection (`str`): its name.
        model: as in [`Gallery.open`].

    Raises:
        DataError: no such collection, or another model made it.
    """

    def __init__(self, path: str | os.PathLike, url: Any, collection: str = "gallery", model: Any = None) -> None:
        super().__init__(path, model)
        self._collection = _Collection(qdrant_client_of(url), collection)
        self.place = f"collection {collection}"
        refuse_other(self._collection.facts["model"], self.model_facts, self.place)

    def _rows(self) -> Any:
        return self._collection

    def close(self) -> None:
        """Give the connection up; a folder of the local mode can then be opened by others."""
        self._collection.client.close()


class _Collection:
    """What searching needs of [`Rows`], of a collection."""

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name = client, name
        try:
            if not client.collection_exists(name):
                raise DataError(f"collection {name}: is not there; make it by the command `export --to qdrant`")
            config = client.get_collection(name).config
        except DataError:
            raise
        except Exception as error:  # the client's errors have no common type
            reason = reason_of(error)
            raise DataError(f"collection {name}: Qdrant does not answer ({reason}); check the address") from error
        self.facts = config.metadata or {}
        if not {"model", "columns"} <= self.facts.keys():
            raise DataError(f"collection {name}: was not written by a gallery; export one to it")
        self.dimension: int = config.params.vectors.size

    @property
    def kinds(self) -> dict[str, str]:
        return self.facts["columns"]

    def count(self) -> int:
        return self.client.count(self.name).count

    def index_facts(self) -> dict[str, int]:
        indexed = self.client.get_collection(self.name).indexed_vectors_count or 0
        return {"indexed": indexed, "unindexed": max(0, self.count() - indexed)}

    def condition(self, text: str, kinds: dict[str, str]) -> Any:
        return to_qdrant(text, kinds)

    def nearest(self, vector: np.ndarray, count: int, where: Any, exact: bool, columns: list[str]) -> pa.Table:
        """As [`Rows.nearest`]."""
        from qdrant_client import models

        quantized = models.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=OVERSAMPLING)
        how = models.SearchParams(exact=exact, hnsw_ef=max(SEARCH_WIDTH, 2 * count), quantization=quantized)
        points = self.client.query_points(
            self.name,
            vector.astype(np.float32).tolist(),
            query_filter=where,
            limit=count,
            with_payload=True,
            with_vectors=True,
            search_params=None if is_local(self.client) else how,
        ).points
        distances = pa.array([1 - point.score for point in points], pa.float32())
        return self._table(points, columns).append_column("_distance", distances)

    def row(self, number: str, columns: list[str]) -> pa.Table:
        """As [`Rows.row`]."""
        try:
            key = str(uuid.UUID(number))
        except ValueError:
            return self._table([], columns)
        return self._table(self.client.retrieve(self.name, [key], with_payload=True, with_vectors=True), columns)

    def _table(self, points: list[Any], columns: list[str]) -> pa.Table:
        found: dict[str, pa.Array] = {}
        for name in columns:
            if name == "vector":
                vectors = np.array([point.vector for point in points], dtype=np.float32).reshape(-1, self.dimension)
                found[name] = vector_column(vectors, pa.list_(pa.float32(), self.dimension))
                continue
            values = [point.payload.get(name) for point in points]
            if name == "phash":
                values = [int(value, 16) for value in values]
            elif self.kinds.get(name) == "time":
                values = [None if value is None else parse_time(value) for value in values]
            elif self.kinds.get(name) == "number":
                values = [None if value is None else float(value) for value in values]
            kind = _OWN.get(name) or (ARROW[self.kinds[name]] if name in self.kinds else pa.large_binary())
            found[name] = pa.array(values, kind)
        return pa.table(found)


def to_qdrant(text: str, columns: dict[str, str]) -> Any:
    """A condition, see [`to_sql`], as a filter of Qdrant.

    Raises:
        DataError: it cannot be understood, or compares texts by more than equality, which Qdrant cannot.
    """
    from qdrant_client import models

    condition = _filter(parse(text, columns), False)
    return condition if isinstance(condition, models.Filter) else models.Filter(must=[condition])


def _filter(tree: Junction | Comparison, negated: bool) -> Any:
    """Negations are moved to the comparisons: a missing value satisfies neither one nor its opposite."""
    from qdrant_client import models

    if isinstance(tree, Junction):
        if tree.word == "not":
            return _filter(tree.parts[0], not negated)
        parts = [_filter(part, negated) for part in tree.parts]
        is_all = (tree.word == "and") != negated  # not (a and b) is (not a) or (not b)
        return models.Filter(must=parts) if is_all else models.Filter(should=parts)
    negated = negated != tree.negated
    missing = models.IsEmptyCondition(is_empty=models.PayloadField(key=tree.column))
    if tree.sign == "null":
        return models.Filter(must_not=[missing]) if negated else missing
    if tree.sign == "!=":
        negated, tree = not negated, Comparison(tree.column, tree.kind, "=", tree.values)
    holds = _comparison(tree)
    return models.Filter(must_not=[holds, missing]) if negated else holds


def _comparison(tree: Comparison) -> Any:
    from qdrant_client import models

    field = models.FieldCondition
    if tree.sign == "in":
        equal = [_comparison(Comparison(tree.column, tree.kind, "=", (value,))) for value in tree.values]
        return models.Filter(should=equal)
    if tree.kind in ("text", "bool"):
        if tree.sign != "=":
            raise DataError(f"filter on {tree.column}: Qdrant compares texts by = and in alone; use one of these")
        return field(key=tree.column, match=models.MatchValue(value=tree.values[0]))
    ends = {"=": ("gte", "lte"), "between": ("gte", "lte"), "<": ("lt",), "<=": ("lte",), ">": ("gt",), ">=": ("gte",)}
    values = tree.values * 2 if tree.sign == "=" else tree.values
    span = models.Range if tree.kind == "number" else models.DatetimeRange
    return field(key=tree.column, range=span(**dict(zip(ends[tree.sign], values, strict=True))))
