"""Takes images into the rows of a gallery: what is new or changed is encoded and written, a chunk at a time.

Rows are written in steps that happen whole or not at all, so a process can be killed at any moment: the next one finds
which images have rows and goes on with the others.
"""

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch.distributed as dist
from tqdm.auto import tqdm

from dataset_webperson import DataError
from dataset_webperson.reading_ahead import ahead

from ..distributed_gadms import num_processes
from .columns import convert
from .filters import any_of, equals
from .items import Item, Items
from .models import Encoder
from .opt_out import OptOut
from .preparing import prepared_batches
from .reports import Report
from .rows import Rows, vector_array

PORTION = 4096  # items that are looked up, and read by one set of workers, at a time
COMMIT_ROWS = 4096  # rows written in one step
COMMIT_SECONDS = 20.0  # what a killed process may lose


class Known:
    """Which images have rows, with size and time of their files: 33 bytes for each.

    Args:
        rows (`Rows`): the table.
        where (`str`, *optional*): which of its rows.
    """

    def __init__(self, rows: Rows, where: str | None = None) -> None:
        found = rows.read(["id", "file_size", "file_time"], where)
        # 32 hexadecimal digits as 16 bytes
        ids = np.frombuffer(bytes.fromhex("".join(found["id"].to_pylist())), dtype="S16")
        order = np.argsort(ids)
        self._ids = ids[order]
        self._sizes = found["file_size"].to_numpy()[order]
        self._times = found["file_time"].to_numpy()[order]
        self._seen = np.zeros(len(order), dtype=bool)

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, number: str) -> tuple[int, int] | None:
        """Size and time of the file of a row, `None` where there is no row."""
        place = self._place(number)
        return None if place is None else (int(self._sizes[place]), int(self._times[place]))

    def _place(self, number: str) -> int | None:
        wanted = np.frombuffer(bytes.fromhex(number), dtype="S16")  # numpy drops zeros at the end, on both sides
        place = int(np.searchsorted(self._ids, wanted)[0])
        return place if place < len(self._ids) and self._ids[place] == wanted[0] else None

    def ticked_off(self, items: Iterator[Item], folder: str | os.PathLike) -> Iterator[Item]:
        """The items as they come, remembering which rows they are. The first waits until one has a row.

        Raises:
            DataError: there are rows and none of the items has one; then none was given out.
        """
        held: list[Item] | None = [] if len(self) else None
        for item in items:
            if (place := self._place(item.id)) is not None:
                self._seen[place] = True
            if held is None:
                yield item
                continue
            held.append(item)
            if place is not None:
                yield from held
                held = None
        if held is not None:
            raise DataError(
                f"{folder}: none of its {len(self)} images is there any more; is it mounted? To remove them use "
                "`remove`"
            )

    def not_seen(self) -> list[str]:
        """Ids of the rows that [`ticked_off`] did not meet."""
        return [number.ljust(16, b"\0").hex() for number in self._ids[~self._seen].tolist()]


def take_in(
    rows: Rows,
    encoder: Encoder,
    items: Items,
    opt_out: OptOut,
    *,
    known: Known | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = False,
) -> Report:
    """Encode what is new or changed among `items` and write it; every process of a launcher takes its share.

    Args:
        rows (`Rows`): the table.
        encoder (`Encoder`): the model of the gallery.
        items (`Items`): what is offered.
        opt_out (`OptOut`): what must not be taken in.
        known (`Known`, *optional*): the rows that the items may have, by default all.
        batch_size (`int`): images encoded at a time.
        num_workers (`int`): processes that read images ahead.
        progress (`bool`): show a bar with rate and time left.

    Returns:
        `Report`: of all processes together, in each of them.

    Raises:
        DataError: metadata that does not fit its column.
    """
    world = num_processes()
    rank = dist.get_rank() if world > 1 else 0
    if rank == 0:
        rows.add_columns(items.kinds)
    if world > 1:
        dist.barrier()
    intake = _Intake(rows, encoder, opt_out, batch_size, num_workers)
    known, offered = known or Known(rows), set()
    with tqdm(total=items.total, unit="image", desc="Adding images", disable=not progress or rank > 0) as bar:
        for portion in _portions(items.make(), world, rank):
            pending, metadata = [], {}
            for item in portion:
                found = known.find(item.id)
                repeated = items.folder is None and item.id in offered
                if opt_out.excludes_uri(item.uri):
                    intake.report.opted_out += 1
                elif repeated or found == ((item.size, item.time) if item.data is None else (len(item.data), 0)):
                    intake.report.unchanged += 1
                    metadata[item.id] = item.metadata
                else:
                    pending.append((item, found is not None))
                if items.folder is None:
                    offered.add(item.id)
            if any(metadata.values()):
                set_metadata(rows, metadata)
            bar.update(world * (len(portion) - len(pending)))
            for count in intake.encode(pending):
                bar.update(world * count)
        intake.commit()
    if world == 1:
        return intake.report
    reports: list[Report] = [intake.report] * world
    dist.all_gather_object(reports, intake.report)
    whole = Report()
    for report in reports:
        whole.merge(report)
    return whole


def _portions(items: Iterator[Item], world: int, rank: int) -> Iterator[list[Item]]:
    """Items of this process, some at a time. An id is random, so each process has about as many."""
    portion: list[Item] = []
    for item in items:
        if int(item.id[:8], 16) % world == rank:
            portion.append(item)
        if len(portion) >= PORTION:
            yield portion
            portion = []
    yield portion


class _Intake:
    """Encodes items and keeps the rows until they are written."""

    def __init__(self, rows: Rows, encoder: Encoder, opt_out: OptOut, batch_size: int, num_workers: int) -> None:
        self.rows, self.encoder, self.opt_out = rows, encoder, opt_out
        self.batch_size, self.num_workers = batch_size, num_workers
        self.kinds = rows.kinds
        self.report = Report()
        self.waiting: dict[bool, tuple[list[dict[str, Any]], list[np.ndarray]]]
        self._begin()

    def _begin(self) -> None:
        self.waiting = {False: ([], []), True: ([], [])}  # by whether the row exists
        self.since = time.monotonic()

    def encode(self, pending: list[tuple[Item, bool]]) -> Iterator[int]:
        """Encode items, each with whether it has a row; yields how many after each batch."""
        if not pending:
            return
        items = [item for item, _ in pending]
        exists = any_of("id", [item.id for item, has_row in pending if has_row])
        found = self.rows.read(["id", "sha256"], exists) if any(has_row for _, has_row in pending) else None
        sha256s = dict(zip(*(found[name].to_pylist() for name in ("id", "sha256")), strict=True)) if found else {}
        batches = prepared_batches(items, sha256s, self.encoder.processor, self.batch_size, self.num_workers)
        for batch in ahead(batches):
            self.report.skipped += [(items[place].uri, reason) for place, reason in batch.bad]
            self.report.unchanged += len(batch.same)
            self._touch([items[place] for place in batch.same])
            if batch.pixel_values is not None:
                vectors = self.encoder.pixels(batch.pixel_values)
                for place, facts, vector in zip(batch.places, batch.facts, vectors, strict=True):
                    self._keep(*pending[place], facts, vector)
            if sum(len(records) for records, _ in self.waiting.values()) >= COMMIT_ROWS:
                self.commit()
            elif time.monotonic() - self.since > COMMIT_SECONDS:
                self.commit()
            yield len(batch.places) + len(batch.bad) + len(batch.same)

    def _keep(self, item: Item, has_row: bool, facts: tuple[str, int, int], vector: np.ndarray) -> None:
        digest, phash, size = facts
        if self.opt_out.excludes(item.uri, digest, phash):
            self.report.opted_out += 1
            if has_row:  # the new content of a file is one that was opted out
                self.rows.delete(equals("id", item.id))
            return
        record = {
            **as_columns(item.metadata, self.kinds, item.uri),
            "id": item.id,
            "uri": item.uri,
            "source": item.source,
            "sha256": digest,
            "phash": phash,
            "file_size": item.size if item.data is None else size,
            "file_time": item.time,
            "picture": item.data,  # of an image that has no file of its own
        }
        records, vectors = self.waiting[has_row]
        records.append(record)
        vectors.append(vector)
        if has_row:
            self.report.changed += 1
        else:
            self.report.added += 1

    def _touch(self, items: list[Item]) -> None:
        """Record the new times of files whose content is the same."""
        if not items:
            return
        times = {item.id: (item.size, item.time) for item in items}
        found = self.rows.read(self.rows.table.schema.names, any_of("id", list(times)))
        records = found.drop_columns("vector").to_pylist()
        for record in records:
            record["file_size"], record["file_time"] = times[record["id"]]
        self.rows.replace(self.rows.as_table(records, vector_array(found["vector"])))
        set_metadata(self.rows, {item.id: item.metadata for item in items})

    def commit(self) -> None:
        """Write what is waiting: new rows in one step, changed ones in another."""
        for has_row, write in ((False, self.rows.append), (True, self.rows.replace)):
            records, vectors = self.waiting[has_row]
            if records:
                write(self.rows.as_table(records, np.stack(vectors)))
        self._begin()


def as_columns(metadata: Mapping[str, Any], kinds: Mapping[str, str], where: str) -> dict[str, Any]:
    """Metadata as the columns hold it; what has no column (lists, objects) is left out.

    Raises:
        DataError: a value does not fit; names the image as `where`.
    """
    return {name: convert(value, kinds[name], f"{where}: {name}") for name, value in metadata.items() if name in kinds}


def set_metadata(rows: Rows, metadata: Mapping[str, Mapping[str, Any]]) -> int:
    """Write metadata of existing rows, by id; returns how many rows were there. Rows that have it are not written.

    Raises:
        DataError: a value does not fit its column.
    """
    names, kinds = rows.table.schema.names, rows.kinds
    wanted = {number: values for number, values in metadata.items() if values}
    if not wanted:
        return rows.count(any_of("id", list(metadata)))
    found = rows.read(names, any_of("id", list(wanted)))
    changed, places = [], []
    for place, record in enumerate(found.drop_columns(["vector"]).to_pylist()):
        new = {**record, **as_columns(wanted[record["id"]], kinds, record["uri"])}
        if new != record:
            changed.append(new)
            places.append(place)
    if changed:
        rows.replace(rows.as_table(changed, vector_array(found["vector"])[places]))
    return len(found)


def kept_items(old: Rows) -> Items:
    """The images of a gallery's own rows, to be encoded by another model."""
    kinds = old.kinds
    names = [name for name in old.table.schema.names if name not in ("vector", "picture")]

    def items() -> Iterator[Item]:
        for batch in old.batches([*names, "picture"]):
            for row in batch.to_pylist():
                item = Item(row["id"], row["source"], row["uri"], {name: row[name] for name in kinds})
                item.data, item.file = row["picture"], None
                if item.data is None:
                    item.file = file_of(row["source"], row["uri"])
                    try:
                        state = os.stat(item.file)
                        item.size, item.time = state.st_size, state.st_mtime_ns
                    except OSError as error:
                        item.problem = f"{item.uri}: {error.strerror}; put the file back, or remove the row"
                yield item

    return Items(kinds, items, old.count())


def file_of(source: str, uri: str) -> str:
    """The file of a row that has one: below the folder that was added, or the name itself."""
    return os.path.join(source, uri) if source and not os.path.isabs(uri) else uri
