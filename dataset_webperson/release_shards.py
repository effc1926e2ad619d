"""The parquet files of a release, laid out so that little of the next revision's bytes is new.

A file holds the rows with their images; a small one beside it the captions alone, joined by `image_sha256`. Storage
that cuts files into chunks by their content, as the Hub's does (about 64 kB each), keeps equal chunks once, so that a
revision costs the chunks around what changed. Four things keep these few (`release_files/revisions.md`):

- a group of rows ends where the name of its last image says so, not after a count, so that the groups behind a row
  that goes stay as they are; a file ends with a group;
- pages end by their content too (`use_content_defined_chunking`);
- a group is some megabytes: where captions change, the chunks at both ends of its captions are new as well;
- whatever tells of the captions lies together behind the images, so there is one such place in a group.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from datasets.table import embed_table_storage

from .files import replacing

# Chosen by measurement: `release_files/layout.md` and `release_files/revisions.md`.
ROWS_PER_SHARD = 10_000
ROW_GROUP_ROWS = 1_000
_ZSTD_LEVEL = 15  # captions take 15 % less than at level 1, for 40 ms of 1,000
_OWN = ("image", "image_path", "caption1", "caption2")
# Columns of a construction that tell how a caption came about, and those named after a caption.
_OF_CAPTIONS = ("template_id", "prompt_version")


@dataclass(frozen=True)
class Layout:
    """How rows lie in parquet.

    Args:
        rows_per_shard: source rows per file, at least; rows left out are not replaced.
        row_group_rows: rows per row group, about: three quarters to twice as many. A group is the least that a stream
            reads at a time.
    """

    rows_per_shard: int = ROWS_PER_SHARD
    row_group_rows: int = ROW_GROUP_ROWS

    def __post_init__(self) -> None:
        if not 1 <= self.row_group_rows <= self.rows_per_shard:
            raise ValueError(
                f"rows_per_shard={self.rows_per_shard} and row_group_rows={self.row_group_rows}: a row group needs "
                "at least one row, and a shard at least one row group"
            )

    def ends_group(self, image_path: str, rows: int) -> bool:
        """Whether a group of so far `rows` rows ends with the one of this name."""
        return 4 * rows >= 3 * self.row_group_rows and (self._is_mark(image_path) or rows >= 2 * self.row_group_rows)

    def ends_shard(self, image_path: str, rows: int) -> bool:
        """Whether a file of so far `rows` source rows ends with the one of this name."""
        over = rows - self.rows_per_shard
        return over >= 0 and (self._is_mark(image_path) or over >= 2 * self.row_group_rows)

    def _is_mark(self, image_path: str) -> bool:
        digest = hashlib.sha256(image_path.encode("utf-8", "replace")).digest()
        return int.from_bytes(digest[:8], "big") % max(1, self.row_group_rows // 4) == 0


def release_features(features: Features) -> Features:
    """The columns of a release from those of its source, with `image_sha256`: first what tells of the captions."""
    further = [name for name in features if name not in (*_OWN, "image_sha256")]
    of_captions = [name for name in further if tells_of_captions(name)]
    of_images = [name for name in further if not tells_of_captions(name)]
    kinds = {**features, "image_sha256": Value("string")}
    return Features({name: kinds[name] for name in (*_OWN, *of_captions, "image_sha256", *of_images)})


def caption_features(features: Features) -> Features:
    """The columns of the captions alone: `image_sha256`, `image_path`, and those that tell of the captions."""
    names = ["image_sha256", "image_path", *filter(tells_of_captions, features)]
    return Features({name: features[name] for name in names})


def tells_of_captions(name: str) -> bool:
    """Whether a column changes with the captions, or holds them."""
    return name.startswith("caption") or name in _OF_CAPTIONS


def write_shard(stem: str, rows: Iterable[dict[str, Any]], features: Features, layout: Layout) -> None:
    """Write `<stem>.parquet` and `<stem>.captions.parquet`, each whole or not at all.

    Args:
        stem: path without an ending.
        rows: with the columns of `features`.
        features: as `release_features` gives them.
        layout: where groups end.
    """
    of_captions = caption_features(features)
    with ExitStack() as stack:
        captions = stack.enter_context(_writer(f"{stem}.captions.parquet", release_schema(of_captions)))
        joined = stack.enter_context(_writer(f"{stem}.parquet", release_schema(features)))
        for group in _groups(rows, layout):
            table = pa.table([[row[name] for row in group] for name in features], schema=joined.schema)
            joined.write_table(table, row_group_size=len(table))
            captions.write_table(table.select(list(of_captions)).cast(captions.schema), row_group_size=len(table))


def hashed(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows with `image_sha256` of the bytes of their image, whatever they had there."""
    return ({**row, "image_sha256": hashlib.sha256(row["image"]["bytes"]).hexdigest()} for row in rows)


def _groups(rows: Iterable[dict[str, Any]], layout: Layout) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if layout.ends_group(row["image_path"], len(group)):
            yield group
            group = []
    if group:
        yield group


@contextmanager
def _writer(path: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    text = [name for name in leaves(schema) if name != "image.bytes"]
    with (
        replacing(path) as part,
        pq.ParquetWriter(
            part,
            schema,
            # JPEGs do not shrink; text does. Least and greatest values of pictures would only fill the footer.
            compression={**dict.fromkeys(text, "ZSTD"), "image.bytes": "NONE"},
            compression_level=dict.fromkeys(text, _ZSTD_LEVEL),
            use_dictionary=False,
            write_statistics=False,
            use_content_defined_chunking=True,
        ) as writer,
    ):
        yield writer


def leaves(schema: pa.Schema) -> list[str]:
    """The columns that parquet makes of a schema: `image.bytes`, `image.path`, `tags.list.element`, ..."""
    buffer = io.BytesIO()
    pq.write_table(schema.empty_table(), buffer)
    stored = pq.read_metadata(buffer).schema
    return [stored.column(number).path for number in range(len(stored))]


def release_schema(features: Features) -> pa.Schema:
    """The Arrow schema, with the features written so that `datasets` 3.x and newer read them alike."""
    described = json.dumps({"info": {"features": _older_form(features.to_dict())}})
    return features.arrow_schema.with_metadata({"huggingface": described})


def _older_form(feature: Any) -> Any:
    """Lists as `datasets` 3.x writes them, `[feature]`: it does not know the type "List"."""
    if isinstance(feature, dict) and feature.get("_type") in ("List", "LargeList") and feature.get("length", -1) == -1:
        return [_older_form(feature["feature"])]
    if isinstance(feature, dict):
        return {name: _older_form(value) for name, value in feature.items()}
    return feature


def write_whole(rows: Dataset, path: str) -> None:
    """Write all rows into one file, with their images inside."""
    rows = rows.with_format("arrow").map(
        embed_table_storage, batched=True, batch_size=ROW_GROUP_ROWS, keep_in_memory=True
    )
    with replacing(path) as temporary:
        rows.with_format(None).to_parquet(temporary, batch_size=ROW_GROUP_ROWS)
