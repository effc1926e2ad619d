"""Parquet shards read in a stream, reshuffled each epoch, and continued exactly from any row.

stream = ShuffledParquet("org/webperson", seed=0)            # or a folder
loader = DataLoader(stream, sampler=stream.order(epoch=0), batch_size=64, num_workers=4)
rows = split_dataset_by_node(stream.iterable(epoch=0), rank, world_size)

The order of an epoch is computed beforehand from the seed, the epoch and the sizes of the row groups, so that every
row has a position and reading can start at any. Row groups are shuffled among all shards and laid end to end; that is
cut into lanes, a lane into windows of a few thousand rows, and rows are shuffled within their window. A reader of a
lane has one window in memory and reads the next meanwhile. A window mixes as a shuffle buffer of its size does, and
nothing is lost when reading stops: the state is one number, the position.
"""

import bisect
import copy
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..findings import DataError
from ..images import decode_rgb
from ..removed import read_removed
from .image_column import as_struct, missing_places, refuse_type

_FOOTER_READERS = 16  # connections that read the shards' footers at the start


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `start` to `stop` (excluded) of a row group."""

    file: int
    group: int
    start: int
    stop: int


@dataclass(slots=True)
class Lane:
    """Windows of an epoch that are read one after the other; window `i` has the rows from `starts[i]` on."""

    windows: list[list[Piece]]
    starts: list[int]
    rows: int


class ShuffledParquet:
    """The rows of one split of a parquet data set, by their position in the shuffled order of an epoch.

    `stream[epoch, position]` is a row, its image decoded to upright RGB. Reading positions in order, by as many
    readers as there are lanes, reads every row group once, those cut between two lanes twice.

    The order depends on `seed`, `batch_size`, `lanes`, `window_rows`, `first_row` and the files, and on nothing else:
    not on processes, workers, or where reading was resumed. With lanes = processes x workers every loader worker has a
    lane of its own; another number gives the right rows as well, but several windows are then kept by a worker.

    Args:
        source (`str`): a folder or a Hub id that `load_dataset` loads as parquet, or a list of parquet files.
        split (`str`): which split.
        seed (`int`): of the order.
        batch_size (`int`): rows in succession that come from one lane.
        lanes (`int`): readers that can work side by side.
        window_rows (`int`): rows that are mixed, at least; a window of 2,000 rows of 20 kB is 40 MB, and a reader
            holds two.
        first_row (`int`): that many rows at the start of the split are left out, for a held-out part.
        columns (`list[str]`, *optional*): read only these.
        decode (`bool`): `False` leaves images as `{"bytes", "path"}`.
        removed (`str`, *optional*): a `removed.parquet` whose pictures are left out, for an older copy of a release.

    Raises:
        `DataError`: the source is not parquet, has no such split, or no rows; or no `image_sha256`, by which `removed`
            names pictures.
    """

    def __init__(
        self,
        source: str | list[str],
        *,
        split: str = "train",
        seed: int = 0,
        batch_size: int = 1,
        lanes: int = 1,
        window_rows: int = 2000,
        first_row: int = 0,
        columns: list[str] | None = None,
        decode: bool = True,
        removed: str | None = None,
    ):
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("lanes", lanes, 1),
            ("window_rows", window_rows, 1),
            ("first_row", first_row, 0),
        ):
            if value < least:
                raise ValueError(f"{name}={value}; at least {least}")
        self.files = source if isinstance(source, list) else parquet_files(source, split)
        self.seed, self.batch_size, self.lanes, self.window_rows = seed, batch_size, lanes, window_rows
        self.decode = decode
        with ThreadPoolExecutor(_FOOTER_READERS) as pool:
            self._footers = list(pool.map(_read_footer, self.files))
        schema = self._footers[0].schema.to_arrow_schema()
        self.features = datasets.Features.from_arrow_schema(schema)
        self._root = source if isinstance(source, str) and os.path.isdir(source) else ""
        if "image" in self.features and not isinstance(self.features["image"], datasets.Image):
            refuse_type(schema.field("image").type, self.files[0])
            self.features["image"] = datasets.Image()
        if columns is not None:
            self.features = datasets.Features({name: self.features[name] for name in columns})
        self._groups = _leave_out(
            [
                Piece(file, group, 0, footer.row_group(group).num_rows)
                for file, footer in enumerate(self._footers)
                for group in range(footer.num_row_groups)
            ],
            first_row,
        )
        if listed := read_removed(removed):
            if "image_sha256" not in schema.names:
                raise DataError(
                    f"{source}: no column image_sha256, by which {removed} names pictures; prepare a copy without "
                    "them by WebPerson(removed=...)"
                )
            self._groups = list(self._without(listed))
        self._rows = sum(piece.stop - piece.start for piece in self._groups)
        if not self._rows:
            raise DataError(f"{source}: no rows in {len(self.files)} parquet files after leaving out {first_row:,}")
        self._start()

    def _without(self, removed: Mapping[str, str]) -> Iterator[Piece]:
        """The row groups without the rows of pictures that a list names."""
        digests = pa.array(removed, pa.string())
        for piece in self._groups:
            with (
                _open(self.files[piece.file]) as file,
                pq.ParquetFile(file, metadata=self._footers[piece.file]) as parquet,
            ):
                column = parquet.read_row_group(piece.group, ["image_sha256"], use_threads=False)["image_sha256"]
            start = piece.start
            for gone in [*np.flatnonzero(pc.is_in(column, digests).to_numpy()).tolist(), piece.stop]:
                if start < (stop := min(gone, piece.stop)):
                    yield Piece(piece.file, piece.group, start, stop)
                start = max(start, gone + 1)

    def _start(self) -> None:
        self._plan: tuple[tuple, list[Lane]] | None = None
        self._windows: dict[int, tuple[tuple[int, int], list[dict[str, Any]]]] = {}
        self._ahead: dict[int, tuple[tuple[int, int], Future]] = {}
        self._reader: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process needs; windows and threads stay."""
        return {name: value for name, value in vars(self).items() if name not in _OWN_TO_A_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    @property
    def column_names(self) -> list[str]:
        return list(self.features)

    def __len__(self) -> int:
        """Rows of an epoch."""
        return self._rows

    def arranged(self, *, batch_size: int, lanes: int) -> "ShuffledParquet":
        """The same rows for batches of another size or another number of readers, in another order."""
        other = copy.copy(self)
        other.batch_size, other.lanes = batch_size, lanes
        return other

    def undecoded(self) -> "ShuffledParquet":
        """The same rows in the same order, with images as `{"bytes", "path"}`."""
        other = copy.copy(self)
        other.decode = False
        return other

    def take(self, count: int) -> list[dict[str, Any]]:
        """The first rows of epoch 0."""
        return [self[0, position] for position in range(min(count, len(self)))]

    def order(self, epoch: int, start: int = 0) -> "Positions":
        """The keys of an epoch from position `start` on, for the `sampler` of a `DataLoader`."""
        return Positions(epoch, start, len(self))

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """The row at `(epoch, position)`.

        Raises:
            `IndexError`: no such position.
            `DataError`: the image or the shard is broken; names it.
        """
        row = self._raw(*key)
        if not self.decode or row.get("image") is None:
            return row
        data, path = row["image"]["bytes"], row["image"]["path"]
        if data is None and path:
            try:
                with open(os.path.join(self._root, path), "rb") as file:
                    data = file.read()
            except OSError as error:
                raise DataError(
                    f"{path}: {error.strerror}, looked for in {self._root or os.getcwd()}; put the image files there, "
                    "or write a release, which embeds them: dataset_webperson.release"
                ) from error
        name = f"{row.get('image_path') or path} at position {key[1]} of epoch {key[0]}"
        return {**row, "image": decode_rgb(data or b"", name)}

    def iterable(self, epoch: int) -> datasets.IterableDataset:
        """The rows of an epoch as an `IterableDataset`, in the order of lanes and windows.

        Its shards are the windows, so `state_dict()` after any row and `load_state_dict()` continue with the next,
        reading again at most a window. `split_dataset_by_node` shares windows out when their number, a multiple of
        `lanes`, can be divided by the number of nodes: make `lanes` a multiple of nodes x workers.
        """
        plan = self._lanes(epoch)
        longest = max(len(lane.windows) for lane in plan)
        # Lanes of equally many windows, some of them empty: `datasets` shares out shards only where all get as many.
        windows = [
            (lane, number if number < len(plan[lane].windows) else None)
            for lane in range(len(plan))
            for number in range(longest)
        ]
        return datasets.IterableDataset.from_generator(
            _window_rows,
            features=self.features if self.decode else _undecoded(self.features),
            gen_kwargs={"stream": self, "epoch": epoch, "windows": windows},
        )

    # ---- the order

    def _lanes(self, epoch: int) -> list[Lane]:
        key = (epoch, self.seed, self.batch_size, self.lanes, self.window_rows)
        if self._plan is None or self._plan[0] != key:
            self._plan = (key, self._make_plan(epoch))
            self._windows.clear()
            self._ahead.clear()
        return self._plan[1]

    def _make_plan(self, epoch: int) -> list[Lane]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self._groups))
        pieces = iter([self._groups[index] for index in order])
        plan, rest = [], None
        for rows in lane_rows(self._rows, self.batch_size, self.lanes):
            lane = Lane([], [], rows)
            place, missing = 0, rows
            window: list[Piece] = []
            held = 0
            while missing:
                piece = rest or next(pieces)
                size = min(piece.stop - piece.start, missing)
                window.append(Piece(piece.file, piece.group, piece.start, piece.start + size))
                rest = Piece(piece.file, piece.group, piece.start + size, piece.stop)
                rest = rest if rest.stop > rest.start else None
                held, missing = held + size, missing - size
                if held >= self.window_rows or not missing:
                    lane.windows.append(window)
                    lane.starts.append(place)
                    window, place, held = [], place + held, 0
            plan.append(lane)
        return plan

    def _raw(self, epoch: int, position: int) -> dict[str, Any]:
        if not 0 <= position < self._rows:
            raise IndexError(f"position {position} of {self._rows}")
        lanes = self._lanes(epoch)
        batch, place = divmod(position, self.batch_size)
        turn, number = divmod(batch, self.lanes)
        row = turn * self.batch_size + place
        starts = lanes[number].starts
        window = bisect.bisect_right(starts, row) - 1
        return self._window(epoch, number, window)[row - starts[window]]

    # ---- reading

    def _window(self, epoch: int, lane: int, window: int) -> list[dict[str, Any]]:
        """The rows of a window, shuffled; the lane's next window is then read in the background."""
        key = (epoch, window)
        windows = self._lanes(epoch)[lane].windows
        if self._process != os.getpid():  # after a fork: the thread that reads ahead stayed behind
            self._start()
        if lane not in self._windows or self._windows[lane][0] != key:
            ahead_key, future = self._ahead.pop(lane, (None, None))
            self._windows.pop(lane, None)  # given up before the next is taken: two are held, not three
            if future is not None and ahead_key == key:
                rows = future.result()
            else:
                rows = self._read(windows[window], [epoch, lane, window])
            self._windows[lane] = (key, rows)
            if (following := window + 1) < len(windows):
                self._reader = self._reader or ThreadPoolExecutor(1)
                future = self._reader.submit(self._read, windows[following], [epoch, lane, following])
                self._ahead[lane] = ((epoch, following), future)
        return self._windows[lane][1]

    def _read(self, pieces: list[Piece], place: list[int]) -> list[dict[str, Any]]:
        table = pa.concat_tables([self._read_piece(piece) for piece in pieces])
        order = np.random.default_rng([self.seed, *place]).permutation(len(table))
        rows = table.to_pylist()
        for row in rows if "image" in self.features else ():
            row["image"] = as_struct(row["image"])
        return [rows[index] for index in order]

    def _read_piece(self, piece: Piece) -> pa.Table:
        name = self.files[piece.file]
        try:
            footer, remote = self._footers[piece.file], not os.path.exists(name)
            with _open(name) as file, pq.ParquetFile(file, metadata=footer, pre_buffer=remote) as parquet:
                table = parquet.read_row_group(piece.group, columns=self.column_names, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{name}: row group {piece.group} cannot be read ({error}); download it again") from error
        table = table.slice(piece.start, piece.stop - piece.start).replace_schema_metadata()
        for column in table.column_names:
            if column in ("image", "captions") or (column[:7] == "caption" and column[7:].isdigit()):
                if len(places := missing_places(table.column(column))):
                    before = sum(footer.row_group(group).num_rows for group in range(piece.group)) + piece.start
                    raise DataError(
                        f"{name} row {before + places[0]}: nothing in the column {column}; fill it, or write a "
                        "release without such rows: dataset_webperson.release --on_bad_images warn"
                    )
        return table


_OWN_TO_A_PROCESS = ("_plan", "_windows", "_ahead", "_reader", "_process")


@dataclass(frozen=True)
class Positions:
    """`(epoch, position)` for the positions `start` to `stop` (excluded), in order."""

    epoch: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, position) for position in range(self.start, self.stop))


def lane_rows(rows: int, batch_size: int, lanes: int) -> list[int]:
    """Rows of each lane when batches are dealt out to lanes in turn; the last batch may be short."""
    batches = -(-rows // batch_size)
    counts = [(batches // lanes + (lane < batches % lanes)) * batch_size for lane in range(lanes)]
    counts[(batches - 1) % lanes] -= batches * batch_size - rows
    return counts


def parquet_files(source: str, split: str = "train") -> list[str]:
    """The parquet files of a split of what `load_dataset(source)` loads, local paths or `hf://` addresses.

    Raises:
        `DataError`: it is not parquet, or has no such split.
    """
    builder = datasets.load_dataset_builder(source)
    files = builder.config.data_files or {}
    if split not in files:
        raise DataError(f"{source}: no split {split!r}; it has {', '.join(files) or 'none'}")
    names = [str(name) for name in files[split]]
    if other := [name for name in names if not name.endswith(".parquet")]:
        raise DataError(f"{source}: {other[0]} is not parquet; write a release of it first: dataset_webperson.release")
    return names


def _open(name: str) -> pa.NativeFile | IO[bytes]:
    # Arrow reads a local file best by itself.
    return pa.OSFile(name) if os.path.exists(name) else fsspec.open(name, "rb").open()


def _read_footer(name: str) -> pq.FileMetaData:
    try:
        with _open(name) as file:
            return pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: not a whole parquet file ({error}); download it again") from error


def _leave_out(pieces: list[Piece], rows: int) -> list[Piece]:
    """The pieces without the first `rows` rows."""
    kept = []
    for piece in pieces:
        start = min(piece.start + rows, piece.stop)
        rows -= start - piece.start
        if start < piece.stop:
            kept.append(Piece(piece.file, piece.group, start, piece.stop))
    return kept


def _undecoded(features: datasets.Features) -> datasets.Features:
    return datasets.Features(
        {name: datasets.Image(decode=False) if name == "image" else kind for name, kind in features.items()}
    )


def _window_rows(
    stream: ShuffledParquet, epoch: int, windows: list[tuple[int, int | None]]
) -> Iterator[dict[str, Any]]:
    for lane, window in windows:
        if window is not None:
            yield from stream._window(epoch, lane, window)
