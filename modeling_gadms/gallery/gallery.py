"""A gallery on disk: made once, extended, asked by sentences and images, and explained."""

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataset_webperson import DataError
from dataset_webperson.files import file_size, write_json
from dataset_webperson.images import decode_rgb, open_image, to_rgb

from . import adding, explaining, exporting, measuring
from .asking import Question, answer, hits_of, refuse_count, refuse_texts, weights_of
from .audit import Audit
from .captions import read_captions
from .columns import column_name, infer_kinds
from .filters import equals
from .finishing import delete_ids, finish, list_skipped, one_process, opted_out_ids, read_skipped
from .image_towers import ImageTower
from .items import Source, open_items
from .locks import writing
from .models import Encoder, as_encoder, differences, digest_of, public_facts, refuse_other
from .opt_out import extend_opt_out, read_opt_out
from .reports import Report
from .rows import INDEXES, Rows, vector_array
from .searching import Found, Hit, unit
from .settings import FILE, FORMAT, change_settings, read_settings

UNLIKE = 0.5  # weight of "not this" beside the query, as in Rocchio's relevance feedback
_UNCALIBRATED = {"calibration": None, "threshold": 0.5}
_BUILT_IN = {"id": "text", "uri": "text", "source": "text"}  # columns that filters know in every gallery


class Gallery:
    """Images with their vectors and metadata in a folder, and the model that made them.

    Made by [`Gallery.create`] or [`Gallery.open`]. All methods are safe to call from several threads, and several
    processes may read one gallery while one writes.

    Attributes:
        path (`Path`): the folder.
        audit ([`Audit`]): the record of queries, off unless the owner switched it on.
    """

    def __init__(self, path: str | os.PathLike, model: Any = None) -> None:
        self.path = Path(path)
        self.audit = Audit(self.path)
        self._lock = threading.RLock()
        self._encoder: Encoder | None = None
        self._rows_held: Rows | None = None
        settings = read_settings(self.path)
        if model is not None:
            encoder = as_encoder(model, ImageTower.recorded(settings["model"]))
            refuse_other(settings["model"], encoder.facts, self.path)
            self._encoder = encoder

    @classmethod
    def create(
        cls,
        path: str | os.PathLike,
        model: Any,
        *,
        dtype: str = "float16",
        index: str = "compact",
        image_tower: str | os.PathLike = "float32",
    ) -> "Gallery":
        """Make an empty gallery.

        Args:
            path (`str`): a folder that does not exist, or is empty.
            model: folder or Hub id of a model, `(model, processor)`, or an [`Encoder`].
            dtype (`str`): of the vectors on disk, `"float16"` or `"float32"`.
            index (`str`): how vectors are kept in memory once there are many: `"compact"`, 4 bits for each number, or
                `"int8"`. What is found by either is scored by the vectors on disk.
            image_tower (`str`): what encodes the images, `"float32"`, `"bfloat16"`, or an `.onnx` file of the model's
                image tower, see [`image_towers`]; an [`Encoder`] has its own.

        Raises:
            DataError: there is something already, or the model cannot be loaded.
        """
        if dtype not in ("float16", "float32"):
            raise DataError(f"vectors are kept in float16 or float32, not {dtype}; int8 is an index")
        if index not in INDEXES:
            raise DataError(f"an index is {' or '.join(INDEXES)}, not {index}")
        if os.path.exists(os.path.join(path, FILE)):
            raise DataError(f"{path}: holds a gallery already; open it, or choose another folder")
        if os.path.exists(path) and (not os.path.isdir(path) or os.listdir(path)):
            raise DataError(f"{path}: exists and is not empty; choose a folder of its own for the gallery")
        encoder = as_encoder(model, ImageTower.chosen(image_tower))
        os.makedirs(path, exist_ok=True)
        Rows.create(path, "rows", encoder.dimension, dtype)
        settings = {"table": "rows", "index": index, "model": {**encoder.facts, "dtype": dtype}}
        # last: without this file the folder is no gallery
        write_json(os.path.join(path, FILE), {"format": FORMAT, **settings, **_UNCALIBRATED, "audit": False})
        gallery = cls(path)
        gallery._encoder = encoder
        return gallery

    @classmethod
    def open(cls, path: str | os.PathLike, model: Any = None) -> "Gallery":
        """Open a gallery.

        Args:
            path (`str`): its folder, or the address of a copy on object storage, such as `s3://bucket/people`, which
                `export("lance", address)` has made and which is only searched.
            model: `None` loads the recorded one, at its recorded revision, at its first use; else a folder, a Hub id,
                or `(model, processor)`.

        Raises:
            DataError: no gallery there, or it was made by another model.
        """
        if "://" in os.fspath(path):
            from .stored import StoredGallery  # a gallery itself

            return StoredGallery(os.fspath(path), model)
        return cls(path, model)

    # what it is

    def __len__(self) -> int:
        return self._rows().count()

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self)

    @property
    def model_facts(self) -> dict[str, Any]:
        """`id`, `revision`, `weights_sha256`, `image_size`, `normalisation` and `dtype` of the model that made it."""
        return read_settings(self.path)["model"]

    @property
    def columns(self) -> dict[str, str]:
        """The metadata columns and what they hold: `"text"`, `"number"`, `"time"` or `"bool"`."""
        return self._rows().kinds

    @property
    def threshold(self) -> float:
        """The calibrated share under which a result is said not to fit."""
        return float(read_settings(self.path)["threshold"])

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """`(uri, reason)` of each image that could not be read when it was last offered."""
        return read_skipped(self.path)

    @property
    def _index(self) -> str:
        return read_settings(self.path).get("index", INDEXES[0])

    def _rows(self) -> Rows:
        """The table that is current, which `rebuild` replaces."""
        name = read_settings(self.path)["table"]
        with self._lock:
            if self._rows_held is None or self._rows_held.name != name:
                self._rows_held = Rows(self.path, name)
            return self._rows_held

    def encoder(self) -> Encoder:
        """The model, loaded at the first use, checked against the recorded one.

        Raises:
            DataError: it cannot be loaded, or is another than made the gallery.
        """
        recorded = self.model_facts
        with self._lock:
            if self._encoder is None or differences(recorded, self._encoder.facts):
                if not recorded["id"]:
                    raise DataError(f"{self.path}: made by a model of no name; pass it as `model`")
                if "/" not in recorded["id"] and not os.path.isdir(recorded["id"]):  # a copy tells the name alone
                    raise DataError(
                        f"{self.path}: made by the model {recorded['id']}, which lay elsewhere; say where it lies, by "
                        "--model or `model`"
                    )
                self._encoder = Encoder(recorded["id"], recorded["revision"], ImageTower.recorded(recorded))
            refuse_other(recorded, self._encoder.facts, self.path)
            return self._encoder

    # what is in it

    def add(
        self,
        source: Source,
        metadata: Any = None,
        *,
        batch_size: int = 32,
        num_workers: int = 0,
        progress: bool = False,
    ) -> Report:
        """Add images; what is there already is not encoded again, so an interrupted call is simply repeated.

        Args:
            source: a folder with all its sub-folders, a list of paths and PIL images, a `datasets.Dataset` with an
                image column, `.parquet` or `.tar` (WebDataset) files or a folder of them, or the Hub id of a data set.
                Images that are no files of their own are kept in the gallery.
            metadata: a csv, jsonl or parquet file with a column `uri`, a dictionary `{uri: {column: value}}`, or, for
                a list, a list of dictionaries.
            batch_size (`int`): images encoded at a time.
            num_workers (`int`): processes that read images ahead.
            progress (`bool`): show a bar with rate and time left.

        Returns:
            [`Report`]: images that cannot be read are left out and listed there.

        Raises:
            DataError: no such source, metadata that does not fit, or another process is writing.
        """
        with writing(self.path):
            items = open_items(source, metadata)
            options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "progress": progress}
            report = adding.take_in(self._rows(), self.encoder(), items, read_opt_out(self.path), **options)
            finish(self.path, self._rows(), self._index, report)
        return report

    def sync(
        self, folder: str | os.PathLike, *, batch_size: int = 32, num_workers: int = 0, progress: bool = False
    ) -> Report:
        """Bring the gallery to the state of a folder: add new images, encode changed ones again, remove vanished ones.

        A file is changed if its size or time differs and its content too. The opt-out list is applied to all rows.

        Args:
            folder (`str`): as it was added.
            batch_size, num_workers, progress: as in [`add`].

        Raises:
            DataError: no such folder, or it is empty while the gallery has images from it.
        """
        if not os.path.isdir(folder):
            raise DataError(f"{folder}: no such folder; to remove its images use `remove`")
        with writing(self.path):
            rows, items = self._rows(), open_items(folder)
            if items.folder is None:
                raise DataError(f"{folder}: holds shards, not images; add them with `add`")
            known = adding.Known(rows, equals("source", items.folder))
            walked = replace(items, make=lambda: known.ticked_off(items.make(), folder))
            options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "progress": progress}
            report = adding.take_in(rows, self.encoder(), walked, read_opt_out(self.path), known=known, **options)
            with one_process() as is_first:
                if is_first:
                    report.removed = delete_ids(rows, known.not_seen())
                    report.opted_out += delete_ids(rows, opted_out_ids(rows, read_opt_out(self.path)))
            finish(self.path, self._rows(), self._index, report)
        return report

    def remove(self, ids: Sequence[str] | None = None, where: str | None = None) -> int:
        """Remove rows, from the disk too.

        Args:
            ids (`Sequence[str]`, *optional*): of rows.
            where (`str`, *optional*): a filter, as in [`search`]; with `ids` too, both must hold.

        Returns:
            how many there were.

        Raises:
            DataError: neither is given, or the filter cannot be understood.
        """
        if ids is None and where is None:
            raise DataError("nothing says what to remove; give ids or a filter")
        with writing(self.path):
            rows = self._rows()
            sql = self._sql(rows, where)
            if ids is None:
                removed = rows.delete(str(sql))
            else:
                removed = delete_ids(rows, list(ids), sql)
            if removed:
                rows.purge(self._index)
        return removed

    def update(self, ids: Sequence[str], metadata: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> int:
        """Change metadata of rows; columns that are not named stay.

        Args:
            ids (`Sequence[str]`): of rows.
            metadata: a dictionary for all of them, or one for each.

        Returns:
            how many of the ids there are.

        Raises:
            DataError: a value does not fit its column, or the numbers differ.
        """
        values = [metadata] * len(ids) if isinstance(metadata, Mapping) else list(metadata)
        if len(values) != len(ids):
            raise DataError(f"{len(values)} rows of metadata for {len(ids)} ids; give one for each, or one for all")
        named = [{column_name(name): value for name, value in row.items()} for row in values]
        with writing(self.path):
            rows = self._rows()
            rows.add_columns(infer_kinds(named))
            return adding.set_metadata(rows, dict(zip(ids, named, strict=True)))

    def opt_out(self, entries: Sequence[str]) -> tuple[int, int]:
        """Put entries on the opt-out list and remove what they name.

        Args:
            entries (`Sequence[str]`): `sha256:DIGITS`, `uri:PATTERN` or `phash:DIGITS`.

        Returns:
            how many entries are new, and how many rows were removed.
        """
        with writing(self.path):
            rows, added = self._rows(), extend_opt_out(self.path, entries)
            removed = delete_ids(rows, opted_out_ids(rows, read_opt_out(self.path)))
            if removed:
                rows.purge(self._index)
        return added, removed

    def rebuild(
        self,
        model: Any,
        *,
        image_tower: str | os.PathLike = "float32",
        batch_size: int = 32,
        num_workers: int = 0,
        progress: bool = False,
    ) -> Report:
        """Encode every image again, by another model or another image tower of the same one.

        The gallery answers by the old one until the new one is whole. An interrupted call goes on where it stopped.
        Calibration is lost.

        Args:
            model: folder or Hub id, or `(model, processor)`.
            image_tower (`str`): as in [`create`].
            batch_size, num_workers, progress: as in [`add`].

        Raises:
            DataError: the model cannot be loaded, or a rebuild by a third model was interrupted.
        """
        encoder = as_encoder(model, ImageTower.chosen(image_tower))
        with writing(self.path):
            settings = read_settings(self.path)
            name = f"rows_{digest_of(encoder.facts)}"
            if not differences(settings["model"], encoder.facts):
                raise DataError(f"{self.path}: made by this model already; nothing to rebuild")
            old = self._rows()
            with one_process() as is_first:
                if is_first and not os.path.exists(self.path / f"{name}.lance"):
                    Rows.create(self.path, name, encoder.dimension, settings["model"]["dtype"])
            new = Rows(self.path, name)
            options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "progress": progress}
            report = adding.take_in(new, encoder, adding.kept_items(old), read_opt_out(self.path), **options)
            with one_process() as is_first:
                if is_first:
                    new.tidy(self._index)
                    facts = {**encoder.facts, "dtype": settings["model"]["dtype"]}
                    change_settings(self.path, table=name, model=facts, calibration=None)
                    old.drop()
            with self._lock:
                self._encoder = encoder
            list_skipped(self.path, report)
        return report

    # asking it

    def search(
        self,
        texts: str | Sequence[str] = (),
        images: Sequence[Any] = (),
        *,
        text_weights: Sequence[float] | None = None,
        image_weights: Sequence[float] | None = None,
        k: int = 10,
        where: str | None = None,
        exact: bool = False,
        unlike: Sequence[str] = (),
        collapse: str | None = None,
    ) -> list[Hit]:
        """The images that fit best.

        Args:
            texts (`str` or `Sequence[str]`): a description, or several phrasings of one, which are averaged.
            images (`Sequence`): PIL images, paths, or rows as `"id:<id>"` for "more like this"; a row that is asked
                for is not among the results.
            text_weights, image_weights (`Sequence[float]`, *optional*): weights of the queries, 1 each by default.
            k (`int`): number of results.
            where (`str`, *optional*): a filter on metadata, as `"camera = 3 and time > '2024-01-01'"`, applied before
                the search; see [`to_sql`].
            exact (`bool`): compare every row. Without an index, which large galleries have, every search is exact.
            unlike (`Sequence[str]`): ids of rows to move away from; they are not among the results.
            collapse (`str`, *optional*): `"phash"` shows one of near-duplicates, a column one of each of its values.

        Returns:
            `list[Hit]`: the best first; equal scores in the order of their ids.

        Raises:
            DataError: nothing is asked, a query or filter cannot be used, or the gallery was made by another model.
        """
        phrasings = [texts] if isinstance(texts, str) else list(texts)
        refuse_count(k)
        weights = weights_of(phrasings, text_weights, "texts"), weights_of(images, image_weights, "images")
        if not sum(map(sum, weights)):
            raise DataError("nothing is asked; give a description or an image")
        refuse_texts(phrasings)
        encoder = self.encoder()
        sentence = np.array(weights[0]) @ encoder.texts(phrasings) if sum(weights[0]) else None
        left_out = {image.removeprefix("id:") for image in images if isinstance(image, str) and image[:3] == "id:"}
        parts = [weight * self._image_vector(image) for image, weight in zip(images, weights[1], strict=True)]
        query: np.ndarray = np.sum([*parts, *([] if sentence is None else [sentence])], axis=0)
        query = query / sum(map(sum, weights))
        if unlike:
            query = query - UNLIKE * np.mean([self._row_vector(number) for number in unlike], axis=0)
        if not np.any(np.abs(query) > 1e-6):
            raise DataError("the queries cancel each other; change their weights")
        without = frozenset({*left_out, *unlike})
        return self._hits(Question(query, k, self._sql(self._rows(), where), exact, without, collapse, sentence))

    def search_batch(
        self, texts: Sequence[str], *, k: int = 10, where: str | None = None, exact: bool = False
    ) -> list[list[Hit]]:
        """The results of several descriptions, each by itself; as [`search`] gives them one at a time."""
        refuse_texts(texts)
        if not texts:
            return []
        sql = self._sql(self._rows(), where)
        queries = self.encoder().texts(texts)
        return [self._hits(Question(query, k, sql, exact, sentence=query)) for query in queries]

    def _hits(self, question: Question) -> list[Hit]:
        return hits_of(self.path, list(self.columns), question, self._answer(question))

    def _answer(self, question: Question) -> Found:
        return answer(self.path, self._rows, question)

    def _sql(self, rows: Rows, where: str | None) -> str | None:
        return rows.condition(where, {**rows.kinds, **_BUILT_IN}) if where and where.strip() else None

    def _image_vector(self, image: Any) -> np.ndarray:
        if isinstance(image, str) and image.startswith("id:"):
            return self._row_vector(image.removeprefix("id:"))
        if isinstance(image, Image.Image):
            return self.encoder().images([to_rgb(image)])[0]
        return self.encoder().images([open_image(image)])[0]

    def _row_vector(self, number: str) -> np.ndarray:
        found = self._row(number, ["vector"])
        return unit(vector_array(found["vector"]))[0]

    def _row(self, number: str, columns: list[str]) -> Any:
        found = self._rows().row(number, columns)
        if not len(found):
            raise DataError(f"no image with the id {number[:40]!r} in this gallery; it may have been removed")
        return found

    def image(self, id: str) -> Image.Image:
        """The picture of a row, upright and RGB.

        Raises:
            DataError: no such row, an opted-out one, or its file has vanished or cannot be read.
        """
        (row,) = self._row(id, ["uri", "source", "sha256", "phash", "picture"]).to_pylist()
        if read_opt_out(self.path).excludes(row["uri"], row["sha256"], row["phash"]):
            raise DataError(f"no image with the id {id[:40]!r} in this gallery; it may have been removed")
        if row["picture"] is not None:
            return decode_rgb(row["picture"], row["uri"])
        file = adding.file_of(row["source"], row["uri"])
        try:
            return open_image(file)
        except DataError as error:  # named as results name it, wherever the folder lies
            raise DataError(str(error).replace(file, row["uri"])) from error

    def uri(self, id: str) -> str:
        """The name of a row's image.

        Raises:
            DataError: no such row.
        """
        return self._row(id, ["uri"])["uri"][0].as_py()

    def explain(self, query: str | Sequence[str], id: str) -> explaining.Explanation:
        """Why an image fits a description: word by word, patch by patch.

        Args:
            query (`str` or `Sequence[str]`): a description, or several phrasings.
            id (`str`): of the row.

        Raises:
            DataError: no such row, no description, or a model that is no GA-DMS.
        """
        texts = [query] if isinstance(query, str) else list(query)
        refuse_texts(texts)
        if not texts:
            raise DataError("nothing to explain; give a description")
        picture, encoder = self.image(id), self.encoder()
        return encoder.explain(texts, picture)

    # how good it is

    def calibrate(
        self,
        captions: str | os.PathLike | Sequence[tuple[str, str]],
        *,
        same: str | None = None,
        threshold: float = 0.5,
    ) -> dict[str, float]:
        """Learn from captions of the gallery's images how likely a match of a given score is true.

        Args:
            captions: a file, see [`read_captions`], or pairs `(uri, caption)`.
            same (`str`, *optional*): a column, such as `person_id`, whose value tells images of which the same
                captions are true.
            threshold (`float`): the share under which a result is said not to fit.

        Returns:
            `{"captions", "true_share", "error", "error_low", "error_high"}`: the expected calibration error, measured
            on captions that the curve was not fitted on, with its 95 % interval.

        Raises:
            DataError: captions that name no image of the gallery, or that tell nothing apart.
        """
        if not 0 < threshold < 1:
            raise DataError(f"a threshold of {threshold}: it is a share between 0 and 1")
        pairs = read_captions(captions) if isinstance(captions, str | os.PathLike) else list(captions)
        with writing(self.path):
            known = measuring.known_images(self._rows(), pairs, same)
            if len(known) < 2:
                raise DataError("1 caption: one half of them fits the curve and the other measures it; give hundreds")
            learned, facts = measuring.calibrated(self._rows(), self._answer, self.encoder(), known)
            learned.save(self.path)
            change_settings(self.path, calibration=facts, threshold=threshold)
        return facts

    def check(
        self, captions: str | os.PathLike | Sequence[str], *, sample: int = 200, seed: int = 0
    ) -> dict[str, Any]:
        """How many of the ten best images the ordinary search finds, for captions and for the gallery's own vectors.

        Args:
            captions: a file, see [`read_captions`], or texts; they need not belong to images of the gallery.
            sample (`int`): queries of each kind.
            seed (`int`): of the choice.

        Returns:
            `{"text_recall", "vector_recall", "indexed"}`: recall@10 in 0-1; 1 where there is no index.
        """
        texts = [text for _, text in read_captions(captions)] if isinstance(captions, str | os.PathLike) else captions
        queries = self.encoder().texts(measuring.sampled(list(texts), sample, seed))
        vectors = np.concatenate([*measuring.sampled_vectors(self._rows(), sample, seed)] or [queries[:0]])
        return {
            "text_recall": measuring.recall(self._answer, queries),
            "vector_recall": measuring.recall(self._answer, vectors),
            "indexed": (self._rows().index_facts() or {}).get("indexed", 0),
        }

    def export(self, kind: str, target: Any, **options: Any) -> int:
        """Copy the rows to `"faiss"`, `"parquet"`, `"qdrant"`, or `"lance"` on object storage; returns how many.

        See [`exporting`] for targets and options.

        Raises:
            DataError: another kind, a target that exists, or a package that is not installed.
        """
        if kind not in exporting.EXPORTS:
            raise DataError(f"export to {', '.join(exporting.EXPORTS)}, not to {kind!r}")
        if kind == "qdrant":  # a collection is searched without the gallery's own rows, and says what made it
            options = {"model": public_facts(self.model_facts), **options}
        if kind == "lance":
            options = {"folder": self.path, **options}
        return exporting.EXPORTS[kind](self._rows(), target, **options)

    def stats(self) -> dict[str, Any]:
        """Counts, sizes and settings, as `python -m modeling_gadms.gallery stats` prints them."""
        rows, settings = self._rows(), read_settings(self.path)
        count = rows.count()
        size = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        return {
            "images": count,
            "dimension": rows.dimension,
            "disk": file_size(size),
            "disk_per_million": file_size(round(size / count * 1e6)) if count else None,
            "index": rows.index_facts(),
            "columns": rows.kinds,
            "model": settings["model"],
            "calibration": settings["calibration"],
            "threshold": settings["threshold"],
            "audit": settings["audit"],
            "opt_out": len(read_opt_out(self.path)),
            "skipped": len(self.skipped),
        }
