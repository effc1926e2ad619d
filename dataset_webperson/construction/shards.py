"""Shards of a stage: written whole, counts included, by a pool of processes or an engine; only those missing are made.

A stage is a function `stage(source, target, options) -> counts`: it reads the shard `source`, writes the parquet
`target` whole and depends on nothing else, so that it gives the same bytes wherever it runs. The counts (`rows_in`,
`rows_out`, and one per reason for leaving rows out) are in the metadata of the parquet, so every shard has them.
Images are written once, by the first stage: the shards of the others name the file that has them
(`rows.joined_parquet`), and whoever reads rows is given them with their images.
"""

import dataclasses
import json
import multiprocessing
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..command_line import in_one_line, is_mistake
from ..files import write_json, write_text, written_once
from ..findings import DataError
from ..release_shards import leaves
from ..rows.joined_parquet import whole_batches
from .opt_out import OptOut
from .progress import Counts, Follow, followed_by, start_worker
from .public_names import file_digest

Stage = Callable[[str, str, Any], dict[str, int]]
Pairs = list[tuple[str, str]]


class Engine(Protocol):
    """What works on shards in the place of this machine's processes, such as a cluster; see `engines`."""

    def __call__(self, part: Callable[[str, str, Any], Any], pairs: Pairs, options: Any, name: str) -> Iterator[str]:
        """Call `part(source, target, options)` for all pairs, somewhere; yields each target once it is there."""


_engine: ContextVar[Engine | None] = ContextVar("engine", default=None)


@contextmanager
def on_engine(engine: Engine | None) -> Iterator[None]:
    """Within the block, `run_stage` and `run_missing` let this engine do the work."""
    token = _engine.set(engine)
    try:
        yield
    finally:
        _engine.reset(token)


GROUP_ROWS = 100
_BATCH_ROWS = 1_000
_LOOK_S = 0.5  # between two looks at how far the workers are
_FEW = 32  # shards
FEW_PARTS = 8
# Options marked like this may differ between two runs in one folder: they do not affect the output.
CHANGEABLE = {"changeable": True}
# The path of a file that people may edit between two runs: what is in it counts too.
EDITABLE = {"editable": True}
_DIGEST = "_sha256"


class ShardWriter:
    """Writes the rows of a parquet shard; see `shard_writer`. The caller adds to `counts`."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema):
        self.counts: Counter[str] = Counts(rows_in=0, rows_out=0)
        self._writer, self._schema = writer, schema
        self._rows: list[dict[str, Any]] = []
        self._table = schema.empty_table()

    def write(self, row: dict[str, Any]) -> None:
        """Add a row; columns that it lacks are null."""
        self._rows.append(row)
        if len(self._rows) == GROUP_ROWS:
            self.flush()

    def write_batch(self, batch: pa.RecordBatch | pa.Table) -> None:
        """Add rows as they are, which copies no row by itself; a stage adds all its rows like this, or none."""
        batch = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        self._table = pa.concat_tables([self._table, batch.cast(self._schema)])
        whole = len(self._table) - len(self._table) % GROUP_ROWS
        if whole:
            self._write(self._table.slice(0, whole))
            self._table = self._table.slice(whole)

    def flush(self) -> None:
        if self._rows:
            self._write(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []
        if len(self._table):
            self._write(self._table)

    def _write(self, table: pa.Table) -> None:
        self._writer.write_table(table, row_group_size=GROUP_ROWS)
        self.counts["rows_out"] += len(table)


@contextmanager
def shard_writer(target: str, schema: pa.Schema) -> Iterator[ShardWriter]:
    """A writer for the shard `target`, which appears, `counts` in its metadata, when the block ends without an error.

    with shard_writer(target, schema) as shard:
        for row in rows:
            shard.counts["rows_in"] += 1
            shard.write(row)
    """
    # Row groups are small: to begin with ZSTD in each column of each would take longer than all the rest.
    compression = {name: "NONE" if name == "image.bytes" else "SNAPPY" for name in leaves(schema)}
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    # A separate name for each writer: a process that outlived its killed parent must not write into our file.
    part = f"{target}.{uuid.uuid4().hex}.part"
    try:
        # Fixed settings: equal rows give equal bytes. JPEGs do not shrink, so they are not compressed again.
        with pq.ParquetWriter(
            part, schema, compression=compression, use_dictionary=False, write_statistics=False
        ) as writer:
            shard = ShardWriter(writer, schema)
            yield shard
            shard.flush()
            writer.add_key_value_metadata({"counts": json.dumps(dict(sorted(shard.counts.items())))})
        os.replace(part, target)
    finally:
        if os.path.exists(part):
            os.remove(part)


def read_rows(path: str, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a shard, with one row group in memory at a time. Raises `DataError` for a broken file."""
    for batch in _batches(path, GROUP_ROWS, columns):
        yield from batch.to_pylist()


def read_batches(path: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a shard as they lie in it, some megabytes at a time. Raises `DataError` for a broken file."""
    yield from _batches(path, _BATCH_ROWS, columns)


def _batches(path: str, size: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path) as parquet:
            yield from whole_batches(path, parquet, size, columns)
    except (pa.ArrowException, OSError) as error:
        raise _not_whole(path, error) from error


def read_table(path: str, columns: list[str] | None = None) -> pa.Table:
    """Columns of a whole shard. Raises `DataError` for a broken file."""
    try:
        with pq.ParquetFile(path, memory_map=True) as parquet:
            return parquet.read(columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise _not_whole(path, error) from error


def _not_whole(path: str, error: Exception) -> DataError:
    return DataError(f"{path}: not a whole parquet file ({error}); delete it and run the stage again")


def shard_counts(path: str) -> dict[str, int]:
    """The counts in a shard's metadata. Raises `DataError` if there are none."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
        return json.loads(metadata[b"counts"])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: not a shard of a stage ({error}); delete it and run the stage again") from error


def rows_schema(path: str) -> pa.Schema:
    """The schema for a copy of a shard's rows: without the counts, which belong to the original."""
    schema = pq.read_schema(path)
    metadata = {name: value for name, value in (schema.metadata or {}).items() if name != b"counts"}
    return schema.with_metadata(metadata or None)


def remove_opted_out(path: str, opt_out: OptOut) -> int:
    """Rewrite a shard without the rows that an opt-out list excludes; they are counted as `opted_out_<reason>`.

    Returns:
        The number of rows removed. A shard without such rows is not touched.
    """
    if not opt_out:
        return 0
    schema = rows_schema(path)
    names = ["url", "source_sha256", "image_sha256", *(["source_phash", "phash"] if opt_out.phashes else [])]
    names = [name for name in names if name in schema.names]
    rows = read_table(path, names).to_pylist() if names else []
    reasons = [
        opt_out.excludes(
            row.get("url"),
            (row.get("source_sha256"), row.get("image_sha256")),
            (row.get("source_phash"), row.get("phash")),
        )
        for row in rows
    ]
    removed = Counter(f"opted_out_{reason}" for reason in reasons if reason)
    if not removed:
        return 0
    counts = shard_counts(path)
    with shard_writer(path, schema) as shard:
        shard.counts.update(counts)
        shard.counts["rows_out"] = 0
        shard.counts.update(removed)
        for row, reason in zip(read_rows(path, schema.names), reasons, strict=True):
            if not reason:
                shard.write(row)
    return sum(removed.values())


def shard_targets(sources: Iterable[str], folder: str) -> dict[str, str]:
    """`{source: target}`, the targets named from the sources. Raises `DataError` if two sources share a name."""
    targets: dict[str, str] = {}
    taken: dict[str, str] = {}
    for source in sources:
        name = os.path.splitext(os.path.basename(source))[0] + ".parquet"
        if name in taken:
            raise DataError(f"{source} and {taken[name]}: shards of the same name; rename one")
        taken[name] = source
        targets[source] = os.path.join(folder, name)
    return targets


def begin_stage(folder: str, options: Any) -> None:
    """Make the folder of a stage, or continue in it if it was begun with the same options.

    Half-written files of an interrupted run are removed.

    Raises:
        `DataError`: the folder was begun with other options; the message names those that differ.
    """
    clear_half_written(folder)
    wanted = json.loads(json.dumps(_fixed_options(options))) or {}
    begun = written_once(os.path.join(folder, "options.json"), wanted) or {}
    # Older code had fewer options, and kept no digests: one that it did not know and that is off now changes nothing.
    names = sorted(
        name
        for name in begun.keys() | wanted.keys()
        if begun.get(name) != wanted.get(name) and (name in begun or (wanted[name] and not name.endswith(_DIGEST)))
    )
    if names:
        shown = [f"what is in {name.removesuffix(_DIGEST)}" if name.endswith(_DIGEST) else name for name in names]
        raise DataError(
            f"{folder}: was begun with other options ({', '.join(shown)}); restore them, or delete this folder and "
            "those of the later stages"
        )


def clear_half_written(folder: str) -> None:
    """Make the folder if it is missing, and remove half-written files that killed writers left in it, or below it."""
    os.makedirs(folder, exist_ok=True)
    for place, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".part"):
                os.remove(os.path.join(place, name))


def _fixed_options(options: Any) -> Any:
    if not dataclasses.is_dataclass(options):
        return options
    parts = [part for part in dataclasses.fields(options) if not part.metadata.get("changeable")]
    fixed = {part.name: _fixed_options(getattr(options, part.name)) for part in parts}
    for part in parts:
        if part.metadata.get("editable") and (digest := file_digest(fixed[part.name])):
            fixed[part.name + _DIGEST] = digest
    return fixed


def run_stage(
    stage: Stage,
    sources: list[str],
    folder: str,
    options: Any,
    num_workers: int = 1,
    opt_out: OptOut | None = None,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Run a stage on every source whose shard is missing in `folder`.

    Args:
        stage: a function of a module, so that processes can find it.
        sources: input shards.
        folder: where the outputs go, `<source's name>.parquet`.
        options: the stage's dataclass. Fields with the metadata `CHANGEABLE` may differ from the previous run.
        num_workers: number of processes; with 1 the work is done in this one, unless an engine does it, and with 0 in
            any case.
        opt_out: rows that it excludes are removed from old and new shards.
        sizes: rows of each source, for the time left; those of a parquet need not be given.

    Returns:
        The sum of all shards' counts.

    Raises:
        `DataError`: other options than before, a bad shard, or a killed worker. Finished shards stay.
    """
    targets = shard_targets(sources, folder)
    begin_stage(folder, options)
    missing = [(source, target) for source, target in targets.items() if not os.path.exists(target)]
    waiting = {target for _, target in missing}
    if opt_out:
        recheck([target for target in targets.values() if target not in waiting], folder, opt_out, num_workers)
        stage = _WithOptOut(stage, opt_out)
    name = os.path.basename(os.path.normpath(folder))
    left = [_rows_of(source, sizes) for source, _ in missing]
    done = sum(shard_counts(target)["rows_in"] for target in targets.values() if target not in waiting)
    rows = None if None in left else done + sum(filter(None, left))
    with tqdm(total=rows, initial=done, desc=name, unit=" rows") as bar:
        finished = len(targets) - len(missing)
        bar.set_postfix_str(f"{finished}/{len(targets)} shards")
        for _ in _finished(stage, missing, options, num_workers, name, bar.update):
            finished += 1
            bar.set_postfix_str(f"{finished}/{len(targets)} shards")
    if opt_out:
        _write_checked(list(targets.values()), folder, opt_out)
    total: Counter[str] = Counter(rows_in=0, rows_out=0)
    for target in targets.values():
        total.update(shard_counts(target))
    return dict(total)


@dataclass(frozen=True)
class _WithOptOut:
    """A stage that leaves out what an opt-out list excludes, wherever it runs."""

    stage: Stage
    opt_out: OptOut

    def __call__(self, source: str, target: str, options: Any) -> dict[str, int]:
        self.stage(source, target, options)
        remove_opted_out(target, self.opt_out)
        return shard_counts(target)


def recheck(targets: list[str], folder: str, opt_out: OptOut, num_workers: int = 1) -> None:
    """Remove opted-out rows from the finished shards, but from none that this very list was applied to before."""
    path = os.path.join(folder, "opted_out.json")
    checked: dict[str, int] = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        checked = record["shards"] if record["list"] == opt_out.digest else {}
    todo = [target for target in targets if checked.get(os.path.basename(target)) != os.stat(target).st_mtime_ns]
    if todo:
        marks = os.path.join(folder, "checked")
        shutil.rmtree(marks, ignore_errors=True)  # of a run that was killed
        # A mark is empty: named like a shard, it would be a broken one to all who glob after a kill.
        pairs = [(target, os.path.join(marks, f"{os.path.basename(target)}.done")) for target in todo]
        workers = num_workers if len(todo) > _FEW else 0  # processes take longer to start than a few are looked at
        for _ in _finished(_remove, pairs, opt_out, workers, "opt-out"):
            pass
        shutil.rmtree(marks)
    _write_checked(targets, folder, opt_out)


def _remove(source: str, target: str, opt_out: OptOut) -> None:
    """Remove the opted-out rows of the shard `source`; `target` is a mark that says so."""
    remove_opted_out(source, opt_out)
    write_text(target, "")


def _write_checked(targets: list[str], folder: str, opt_out: OptOut) -> None:
    shards = {os.path.basename(target): os.stat(target).st_mtime_ns for target in targets}
    write_json(os.path.join(folder, "opted_out.json"), {"list": opt_out.digest, "shards": shards})


def _rows_of(source: str, sizes: Mapping[str, int] | None) -> int | None:
    if sizes and source in sizes:
        return sizes[source]
    try:
        return pq.read_metadata(source).num_rows if source.endswith(".parquet") else None
    except (pa.ArrowException, OSError):  # the stage itself says what is wrong
        return None


def run_missing(
    part: Callable[[str, str, Any], Any],
    pairs: Iterable[tuple[str, str]],
    options: Any,
    num_workers: int,
    name: str,
    short: bool = False,
) -> None:
    """Call `part(source, target, options)` for each pair whose target is missing, which it writes whole.

    Unlike the shards of a stage, targets may be files of any kind. Where a part is `short`, of seconds, a few of them
    are called here: processes, or an engine, would take as long to start.
    """
    pairs = list(pairs)
    missing = [(source, target) for source, target in pairs if not os.path.exists(target)]
    num_workers = 0 if short and len(missing) <= FEW_PARTS else num_workers
    with tqdm(total=len(pairs), initial=len(pairs) - len(missing), desc=name) as bar:
        for _ in _finished(part, missing, options, num_workers, name):
            bar.update()


def _finished(
    stage: Callable[[str, str, Any], Any],
    pairs: Pairs,
    options: Any,
    num_workers: int,
    name: str,
    follow: Follow | None = None,
) -> Iterator[str]:
    """The targets, in the order in which they are finished; `follow` is called with the rows as they are taken in."""
    engine = _engine.get()
    if engine and pairs and num_workers:
        for target in engine(stage, pairs, options, name):
            if follow:
                follow(shard_counts(target)["rows_in"])
            yield target
        return
    follow = follow or (lambda rows: None)
    num_workers = min(num_workers, len(pairs))
    if num_workers <= 1:
        for source, target in pairs:
            with followed_by(follow):
                stage(source, target, options)
            yield target
        return
    spawn = multiprocessing.get_context("spawn")
    rows, started, seen = spawn.Value("q", 0), spawn.Value("q", 0), 0
    with (
        threads_for(num_workers),
        ProcessPoolExecutor(num_workers, spawn, initializer=start_worker, initargs=(rows, started)) as pool,
    ):
        todo = iter(pairs)
        running: dict[Future[None], tuple[str, str]] = {}
        try:
            while True:
                while len(running) < num_workers and (pair := next(todo, None)) is not None:
                    running[pool.submit(in_worker, stage, *pair, options)] = pair
                if not running:
                    return
                finished = wait(running, timeout=_LOOK_S, return_when=FIRST_COMPLETED).done
                now = rows.get_obj().value  # without its lock, which a killed worker may hold
                follow(now - seen)
                seen = now
                for future in finished:
                    _, target = running.pop(future)
                    future.result()
                    yield target
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process was killed, perhaps for lack of memory; run the command again, with fewer workers "
                "or smaller batches: finished shards are kept"
            ) from error


def in_worker(stage: Callable[[str, str, Any], Any], source: str, target: str, options: Any) -> None:
    """Run the stage; a user's mistake leaves the process as a `DataError`, which is reported in one line."""
    try:
        stage(source, target, options)
    except ValueError as error:
        if is_mistake(error):
            raise DataError(in_one_line(error)) from error
        raise


@contextmanager
def threads_for(num_workers: int) -> Iterator[None]:
    """Share out the cores: each process that starts inside the block gets its share of the threads."""
    before = os.environ.get("OMP_NUM_THREADS")
    if before is None:
        os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // num_workers))
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
