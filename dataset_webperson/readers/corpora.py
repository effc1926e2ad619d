"""Readers of the pre-training corpora: LUPerson-MLLM, SYNTH-PEDES, MALS.

`load_corpus("mals", "data/MALS")` gives a `datasets.Dataset` on disk, one row per image:

| column | type | |
|---|---|---|
| `image` | `Image` | the file, decoded when it is looked at |
| `image_path` | `string` | relative to the folder of the images |
| `caption1` .. `captionN` | `string` | an image with fewer captions repeats them in order, so none is empty |
| `caption_count` | `int32` | how many of them are its own |

and the corpus's further columns. N is at least 2, so that code written for two captions per image reads any corpus.
The jsons are read in a stream: memory does not grow with their length.
"""

import fnmatch
import itertools
import os
import posixpath
import sqlite3
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from datasets import Dataset, Features, Image, List, Value
from datasets.exceptions import DatasetGenerationError

from ..caption_checks import is_template_leak
from ..findings import DataError, Findings
from ..safe_paths import SafeRoot, UnsafePathError
from .benchmark_copy import choose_base, missing_shares, usable_captions
from .benchmarks import check_choice, class_by_name
from .json_stream import JsonError, JsonShapeError, iter_dict, iter_list
from .near_hits import near_images, near_jsons

_BASE_SAMPLE = 200  # first paths tried to see which folder they start from
_READER = 1  # raise it when the same files would give other rows: a cache of another reader is not used
_WRITE_ROWS = 10_000  # rows per batch of the Arrow file: every batch costs memory when the file is opened
_JSON_FOLDERS = ("", "gene_attrs", "data/finetune/gene_attrs", "caption", "captions")


@dataclass(slots=True)
class CorpusRow:
    """One image as the corpus's json has it."""

    where: str
    path: str
    captions: list[str]
    person: int | None  # source id, where the corpus has one
    extra: dict[str, Any]


class Corpus:
    """Facts of one corpus and how its rows are read."""

    name: ClassVar[str]
    folder: ClassVar[str]
    json_patterns: ClassVar[tuple[str, ...]]
    image_folders: ClassVar[tuple[str, ...]]
    home: ClassVar[str]
    extra: ClassVar[dict[str, Any]] = {}  # further columns and their features
    official_images: ClassVar[int | None] = None  # another number is a warning: a part of a corpus trains as well
    joined_on_name: ClassVar[bool] = False  # only the file name counts: the folders in the json may not exist

    @classmethod
    def captions_per_image(cls, files: tuple[str, ...]) -> int:
        """The most captions of its own an image can have."""
        raise NotImplementedError

    @classmethod
    def rows(cls, files: tuple[str, ...], findings: Findings) -> Iterator[CorpusRow]:
        """The rows of all jsons. Defects of the json go into `findings` and the row is left out."""
        raise NotImplementedError


def _list_rows(files: tuple[str, ...], fields: tuple[str, ...], findings: Findings) -> Iterator[tuple[str, dict]]:
    """Rows of json lists that are objects and have the fields, with the place they came from."""
    for file in files:
        try:
            for number, row in enumerate(iter_list(file)):
                where = f"{file} row {number}"
                if not isinstance(row, dict):
                    findings.add("row-not-object", f"{where}: {row!r:.60}")
                elif absent := [name for name in fields if name not in row]:
                    findings.add("field-missing", f"{where}: no `{'`, `'.join(absent)}`")
                elif not isinstance(row[fields[0]], str) or not row[fields[0]]:
                    findings.add("path-unsafe", f"{where}: `{fields[0]}` is {row[fields[0]]!r:.60}")
                else:
                    yield where, row
        except (JsonShapeError, JsonError) as error:
            findings.add(error.code, str(error))


class MALS(Corpus):
    """1.5 M generated images, one caption and 27 attributes each. No ids."""

    name = "MALS"
    official_images = 1_510_330
    folder = "MALS"
    json_patterns = ("g_*_attrs.json",)
    image_folders = ("", "images", "MALS", "images/MALS", "images/CUHK-PEDES")
    home = "https://github.com/Shuyu-XJTU/APTM"
    extra = {"source_image_id": Value("string"), "label": List(Value("int8"))}
    attributes: ClassVar[int] = 27

    @classmethod
    def captions_per_image(cls, files: tuple[str, ...]) -> int:
        return 1

    @classmethod
    def rows(cls, files: tuple[str, ...], findings: Findings) -> Iterator[CorpusRow]:
        for where, row in _list_rows(files, ("image", "caption"), findings):
            captions = usable_captions(row["caption"], where, findings)
            if captions is None:
                continue
            label = row.get("label", [])
            whole = isinstance(label, list) and all(value in (-1, 0, 1) for value in label)
            if not whole or len(label) not in (0, cls.attributes):
                held = f", it has {len(label)} values" if whole else ""
                findings.add("field-missing", f"{where}: `label` must be a list of {cls.attributes} of -1, 0, 1{held}")
                continue
            extra = {"source_image_id": str(row.get("image_id", "")), "label": label}
            yield CorpusRow(where, row["image"], captions, None, extra)


class SynthPEDES(Corpus):
    """4.8 M images of 0.3 M persons, two or three generated captions each, and one built from attributes."""

    name = "SYNTH-PEDES"
    official_images = 4_791_711
    folder = "SYNTH-PEDES"
    json_patterns = ("synthpedes-dataset.json", "synthpedes_dataset.json")
    image_folders = ("", "images", "imgs")
    home = "https://github.com/Zplusdragon/PLIP"
    extra = {
        "source_person_id": Value("int64"),
        "attributes": List(Value("string")),
        "prompt_caption": List(Value("string")),
    }

    @classmethod
    def captions_per_image(cls, files: tuple[str, ...]) -> int:
        return 3

    @classmethod
    def rows(cls, files: tuple[str, ...], findings: Findings) -> Iterator[CorpusRow]:
        # Both spellings of the name hold the same rows.
        for where, row in _list_rows(files[:1], ("file_path", "captions", "id"), findings):
            captions = usable_captions(row["captions"], where, findings)
            person = row["id"]
            if isinstance(person, str) and person.isdecimal():
                findings.add("id-as-string", f"{where}: {person!r}")
                person = int(person)
            elif not isinstance(person, int) or isinstance(person, bool):
                findings.add("id-not-integer", f"{where}: id {person!r:.40}")
                continue
            if captions is None:
                continue
            lists = {}
            for name in ("attributes", "prompt_caption"):
                value = row.get(name) or []
                lists[name] = [str(part) for part in (value if isinstance(value, list) else [value])]
            yield CorpusRow(where, row["file_path"], captions, person, {"source_person_id": person, **lists})


class LUPersonMLLM(Corpus):
    """1.02 M images of LUPerson with up to four captions, one per json; the jsons are joined on the file name."""

    name = "LUPerson-MLLM"
    folder = "LUPerson-MLLM"
    # Dynamic and static instructions (d, s), two captioners: caption1 is Td-qwen where an image has it.
    json_patterns = ("Td-qwen.json", "Td-shikra.json", "Ts-qwen.json", "Ts-shikra.json")
    image_folders = ("", "images", "imgs", "LUPerson-MLLM", "LUPerson_images/LUPerson-MLLM", "LUPerson_images")
    home = "https://huggingface.co/datasets/TwT-6/LUPerson-MLLM-captions"
    extra = {"caption_sources": List(Value("string"))}
    joined_on_name = True

    @classmethod
    def captions_per_image(cls, files: tuple[str, ...]) -> int:
        return len(files)

    @classmethod
    def rows(cls, files: tuple[str, ...], findings: Findings) -> Iterator[CorpusRow]:
        # sqlite sorts on disk: a temporary database, gone when it is closed, so a join of any size stays small.
        connection = sqlite3.connect("")
        try:
            connection.execute("CREATE TABLE captions (name TEXT, source INTEGER, path TEXT, caption TEXT)")
            for source, file in enumerate(files):
                entries = cls._entries(file, source, findings)
                connection.executemany("INSERT INTO captions VALUES (?, ?, ?, ?)", entries)
            query = "SELECT name, source, path, caption FROM captions ORDER BY name, source, rowid"
            for name, group in itertools.groupby(connection.execute(query), key=lambda entry: entry[0]):
                captions, path = {}, ""
                for _, source, key, caption in group:
                    if source in captions:
                        findings.add("name-twice", f"{files[source]}: {name}, as {path} and {key}")
                    else:
                        captions[source] = caption
                        path = path or key
                sources = [os.path.basename(files[source]).removesuffix(".json") for source in captions]
                where = f"{files[min(captions)]} key {path}"
                yield CorpusRow(where, path, list(captions.values()), None, {"caption_sources": sources})
        finally:
            connection.close()

    @staticmethod
    def _entries(file: str, source: int, findings: Findings) -> Iterator[tuple[str, int, str, str]]:
        try:
            for key, value in iter_dict(file):
                captions = usable_captions(value, f"{file} key {key}", findings)
                if not key:
                    findings.add("path-unsafe", f"{file}: an empty key")
                elif captions:
                    yield posixpath.basename(key), source, key, captions[0]
        except (JsonShapeError, JsonError) as error:
            findings.add(error.code, str(error))


CORPORA: dict[str, type[Corpus]] = {"luperson-mllm": LUPersonMLLM, "synth-pedes": SynthPEDES, "mals": MALS}


def corpus_class(name: str | type[Corpus]) -> type[Corpus]:
    """The class for a name such as `"synth-pedes"`; upper case, `-` and `_` do not matter. A class is itself.

    Raises:
        `DataError`: no corpus of that name.
    """
    return class_by_name("corpus", name, CORPORA)


def find_corpus_jsons(corpus: type[Corpus], root: str, annotations: str | None = None) -> tuple[str, tuple[str, ...]]:
    """The folder of a corpus (`root` or the corpus's own folder below it) and its jsons, in the order of its patterns.

    `annotations` is a json, or the folder of the jsons, that lies elsewhere. No json: an empty tuple.
    """
    below = os.path.join(root, corpus.folder)
    home = below if os.path.isdir(below) else root
    if annotations is not None and os.path.isfile(annotations):
        return home, (annotations,)
    for top in (annotations,) if annotations is not None else (root, below):
        for place in (os.path.join(top, folder) for folder in _JSON_FOLDERS):
            names = sorted(os.listdir(place)) if os.path.isdir(place) else []
            found = [name for pattern in corpus.json_patterns for name in fnmatch.filter(names, pattern)]
            if found:
                return (home if annotations is not None else top), tuple(os.path.join(place, name) for name in found)
    return home, ()


@dataclass(slots=True)
class LocatedRow:
    """A row whose image was looked for."""

    row: CorpusRow
    image_path: str  # relative to the image root
    file: str  # absolute
    present: bool


def locate_rows(
    corpus: type[Corpus], files: tuple[str, ...], images: SafeRoot, findings: Findings
) -> Iterator[LocatedRow]:
    """Rows of a corpus with the place of their image.

    What is unsafe, missing or of 0 bytes goes into `findings`, and at the end a number of rows that is not official.
    """
    rows = corpus.rows(files, findings)
    first = list(itertools.islice(rows, _BASE_SAMPLE))
    sample = [row.path for row in first]
    base, hits = choose_base(corpus.image_folders, images, sample)
    by_name = False
    if corpus.joined_on_name:
        flat_base, flat_hits = choose_base(corpus.image_folders, images, [posixpath.basename(path) for path in sample])
        by_name = flat_hits >= hits
        base = flat_base if by_name else base
        hits = max(hits, flat_hits)
    wanted: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    seen = 0
    for row in itertools.chain(first, rows):
        seen += 1
        try:
            # Where only the name counts, an absolute path says where the image lay, and leads nowhere here.
            images.check_written(row.path.lstrip("/") if by_name else row.path)
            path = posixpath.basename(row.path) if by_name else row.path
            file = images.resolve(path, base)
        except UnsafePathError as error:
            findings.add("path-unsafe", f"{row.where}: {error}")
            continue
        image_path = posixpath.normpath(posixpath.join(base, path))
        folder = path.split("/")[0] if "/" in path else base or "."
        wanted[folder] += 1
        try:
            present = os.stat(file).st_size > 0
            if not present:
                findings.add("image-empty", image_path)
        except OSError:
            present = False
            missing[folder] += 1
            findings.add("image-missing", image_path)
        yield LocatedRow(row, image_path, file, present)
    if missing:
        near = "" if hits else near_images(images.root, sample, base)
        detail = missing_shares(missing, wanted) + f" under {images.root}"
        findings.set_detail("image-missing", detail + (f"; {near}" if near else ""))
    if corpus.official_images not in (None, seen):
        text = (
            f"{seen:,} images in {len(files)} jsons; official: {corpus.official_images:,}; get them at {corpus.home}"
        )
        findings.add("counts-differ", text)
        findings.set_severity("counts-differ", "warning")


def _generate(
    corpus: type[Corpus],
    files: tuple[str, ...],
    image_root: str,
    num_captions: int,
    skip_missing: bool,
    drop_template_leaks: bool,
    state: tuple,
) -> Iterator[dict[str, Any]]:
    """The rows for `Dataset.from_generator`. `state` only makes the cache's name change when the files do."""
    findings = Findings()
    written = 0
    for located in locate_rows(corpus, files, SafeRoot(image_root), findings):
        captions, extra = located.row.captions, located.row.extra
        if drop_template_leaks and any(leaks := [is_template_leak(caption) for caption in captions]):
            text = f"{located.row.where}: {captions[leaks.index(True)]:.100}"
            findings.add("caption-template-leak", text, count=sum(leaks))
            captions = [caption for caption, leak in zip(captions, leaks, strict=True) if not leak]
            if sources := extra.get("caption_sources"):
                kept = [source for source, leak in zip(sources, leaks, strict=True) if not leak]
                extra = {**extra, "caption_sources": kept}
        if not located.present or not captions:
            continue
        columns = {f"caption{n + 1}": captions[n % len(captions)] for n in range(num_captions)}
        written += 1
        yield {
            "image": located.file,
            "image_path": located.image_path,
            **columns,
            "caption_count": min(len(captions), num_captions),
            **extra,
        }
    if skip_missing:
        for code in ("image-missing", "image-empty"):
            findings.set_severity(code, "warning")
    what = f"{corpus.name} in {os.path.dirname(files[0])}"
    findings.raise_errors(what)
    if not written:
        raise DataError(f"{what}: no usable row; check the jsons, and `image_root` ({image_root})")
    for finding in findings:
        warnings.warn(f"{what}: {finding.describe()}", stacklevel=2)


def load_corpus(
    name: str | type[Corpus],
    root: str | os.PathLike,
    *,
    annotations: str | os.PathLike | None = None,
    image_root: str | os.PathLike | None = None,
    num_captions: int | None = None,
    on_missing_images: str = "error",
    drop_template_leaks: bool = True,
    cache_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Load a pre-training corpus, checked before anything is returned.

    The first call writes an Arrow file into the cache; later calls open it at once. A changed json (size or time), a
    changed folder of images (down to the folders in it) and other options make a new one.

    Args:
        name: `"luperson-mllm"`, `"synth-pedes"`, `"mals"`, or a subclass of `Corpus`.
        root: the corpus's folder, or the folder above it.
        annotations: a json, or the folder of the jsons, if they do not lie in `root`.
        image_root: where the images lie, if not in `root`. No path of a json is followed out of it.
        num_captions: how many caption columns; by default as many as an image can have, and at least 2.
        on_missing_images: `"error"`, or `"skip"` to leave out images that are missing or have 0 bytes, with a warning.
        drop_template_leaks: leave out captions that show their generator's template, with a warning that counts them.
        cache_dir: where the Arrow file goes; by default the cache of `datasets`.

    Returns:
        `Dataset` with the columns of the module's docstring, in the order of the jsons (LUPerson-MLLM: of the names).
        A row is an entry of the json: an image that is named twice comes twice.

    Raises:
        `DataError`: one error that lists all that keeps the corpus from loading, each with file and cure.
    """
    check_choice("on_missing_images", on_missing_images, ("error", "skip"))
    if num_captions is not None and num_captions < 1:
        raise ValueError(f"num_captions={num_captions}; at least 1")
    corpus = corpus_class(name)
    root = SafeRoot(root).root
    home, files = find_corpus_jsons(corpus, root, os.fspath(annotations) if annotations is not None else None)
    if not files:
        findings = Findings()
        tried = f"{annotations or home}: looked for {', '.join(corpus.json_patterns)}; get them at {corpus.home}"
        near = near_jsons(os.fspath(annotations or home), corpus.json_patterns)
        findings.add("json-missing", tried + (f"; {near}" if near else ""))
        findings.raise_errors(f"{corpus.name} in {root}")
    images = SafeRoot(image_root or home)
    if num_captions is None:
        num_captions = max(2, corpus.captions_per_image(files))
    features = Features(
        {
            "image": Image(),
            "image_path": Value("string"),
            **{f"caption{n + 1}": Value("string") for n in range(num_captions)},
            "caption_count": Value("int32"),
            **corpus.extra,
        }
    )
    try:
        return Dataset.from_generator(
            _generate,
            features=features,
            cache_dir=os.fspath(cache_dir) if cache_dir is not None else None,
            writer_batch_size=_WRITE_ROWS,
            # Tuples, not lists: `datasets` takes lists for shards.
            gen_kwargs={
                "corpus": corpus,
                "files": tuple(os.path.realpath(file) for file in files),
                "image_root": images.root,
                "num_captions": num_captions,
                "skip_missing": on_missing_images == "skip",
                "drop_template_leaks": drop_template_leaks,
                "state": _state(files, images.root),
            },
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from None
        raise


def _state(files: tuple[str, ...], image_root: str) -> tuple:
    """Size and time of each json, and time of the folder of images and of the folders in it."""
    with os.scandir(image_root) as entries:
        folders = sorted(entry.path for entry in entries if entry.is_dir())
    json_facts = tuple((os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files)
    return _READER, json_facts, tuple((folder, os.stat(folder).st_mtime_ns) for folder in (image_root, *folders))
