"""One copy of a benchmark as it lies on a disk: its rows, and everything that is wrong with them."""

import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..findings import Findings, share
from ..safe_paths import SafeRoot, UnsafePathError
from .json_stream import JsonError, JsonShapeError, iter_list
from .near_hits import near_images, near_jsons

SPLITS = ("train", "validation", "test")
_SPLIT_NAMES = {
    "train": "train",
    "val": "validation",
    "validation": "validation",
    "valid": "validation",
    "test": "test",
}
_PRE_SPLIT = re.compile(
    r"(?:(?P<prefix>[a-z][a-z-]*)_)?(?P<split>train|val|test)(?P<suffix>_reid)?\.json", re.IGNORECASE
)
_PATH_FIELDS = ("file_path", "img_path", "image")
_CAPTION_FIELDS = ("captions", "caption")
_ID_FIELDS = ("id", "image_id")
_BASE_SAMPLE = 200  # paths tried to see which sub-folder the json's paths start from


@dataclass(frozen=True)
class Counts:
    """How many persons, images and captions."""

    ids: int
    images: int
    captions: int

    def __str__(self) -> str:
        captions = f", {self.captions:,} captions" if self.captions else ""
        return f"{self.ids:,} ids, {self.images:,} images{captions}"


@dataclass(frozen=True)
class KnownCopy:
    """An old or wrong copy in circulation, recognised by its number of persons per split."""

    ids: dict[str, int]
    message: str


class Benchmark:
    """Facts of one benchmark. A subclass fills them in; nothing else is needed to read it."""

    name: ClassVar[str]
    folder: ClassVar[str]  # the usual name of its folder
    json_names: ClassVar[tuple[str, ...]]
    image_folders: ClassVar[tuple[str, ...]]  # where the json's paths may start from, below the folder; "" is itself
    prefixes: ClassVar[tuple[str, ...]]  # of the file names of jsons split beforehand, lower case
    first_id: ClassVar[int]
    home: ClassVar[str]  # where the official copy is distributed
    official: ClassVar[dict[str, Counts]] = {}  # by split
    official_total: ClassVar[Counts | None] = None  # where only the whole is known
    known_copies: ClassVar[tuple[KnownCopy, ...]] = ()
    id_starts_file_name: ClassVar[bool] = False  # the first four digits of a file name are the person's id
    caption_per_row: ClassVar[bool] = False  # rows with one caption in a list may repeat an image by design
    only_split: ClassVar[str | None] = None  # of rows that name none
    searched_alone: ClassVar[bool] = False  # an image without captions is there to be searched
    raw_json: ClassVar[tuple[str, str] | None] = None  # a file that the json is made of, and how


@dataclass(slots=True)
class ImageRow:
    """One image of a benchmark with all its captions."""

    image_path: str  # relative to the image root
    file: str  # absolute
    person: int
    split: str
    captions: list[str]
    extra: dict[str, Any]
    folder: str  # first folder of the path in the json, for shares of what is missing
    present: bool = True


@dataclass
class BenchmarkCopy:
    """What was read of one copy: its rows, the jsons they came from, and where its images lie."""

    benchmark: type[Benchmark]
    json_files: list[str]
    image_root: str
    rows: list[ImageRow] = field(default_factory=list)

    def counts(self) -> dict[str, Counts]:
        """Counts by split, of what the json names (images that are missing included)."""
        counts = {}
        for split in SPLITS:
            rows = [row for row in self.rows if row.split == split]
            if rows:
                captions = sum(len(row.captions) for row in rows)
                counts[split] = Counts(len({row.person for row in rows}), len(rows), captions)
        return counts


def _split_order(pair: tuple[str, str | None]) -> int:
    return SPLITS.index(pair[1] or "")


def find_jsons(
    benchmark: type[Benchmark], root: str, annotations: str | None = None, need_prefix: bool = False
) -> tuple[str, list[tuple[str, str | None]]]:
    """Find the json files of a benchmark.

    Args:
        root: the benchmark's folder, or the folder above it.
        annotations: a json, or a folder of jsons split beforehand, that lies elsewhere.
        need_prefix: accept a json split beforehand only when its name begins with one of the benchmark's prefixes.

    Returns:
        The folder the dataset lies in, and `(json path, split)` pairs; the split is `None` where the rows tell it. No
        pair when nothing was found.
    """
    if annotations is not None and os.path.isfile(annotations):
        match = _PRE_SPLIT.fullmatch(os.path.basename(annotations))
        return _dataset_folder(benchmark, root), [
            (annotations, _SPLIT_NAMES[match["split"].lower()] if match else None)
        ]
    folders = [annotations] if annotations is not None else [root, os.path.join(root, benchmark.folder)]
    for folder in folders:
        home = folder if annotations is None else _dataset_folder(benchmark, root)
        for name in benchmark.json_names:
            if os.path.isfile(os.path.join(folder, name)):
                return home, [(os.path.join(folder, name), None)]
        for place in (folder, os.path.join(folder, "processed_data")):
            groups: dict[tuple[str, str], list[tuple[str, str | None]]] = defaultdict(list)
            for name in sorted(os.listdir(place)) if os.path.isdir(place) else ():
                match = _PRE_SPLIT.fullmatch(name)
                prefix = (match["prefix"] or "").lower() if match else ""
                if match and (prefix in benchmark.prefixes or not (prefix or need_prefix)):
                    style = (prefix, match["suffix"] or "")
                    groups[style].append((os.path.join(place, name), _SPLIT_NAMES[match["split"].lower()]))
            if groups:
                # Several styles side by side hold the same rows: read the most complete one.
                most_complete = max(groups.values(), key=len)
                return home, sorted(most_complete, key=_split_order)
    return _dataset_folder(benchmark, root), []


def _dataset_folder(benchmark: type[Benchmark], root: str) -> str:
    below = os.path.join(root, benchmark.folder)
    return below if os.path.isdir(below) else root


def read_copy(
    benchmark: type[Benchmark],
    root: str,
    findings: Findings,
    annotations: str | None = None,
    image_root: str | None = None,
) -> BenchmarkCopy:
    """Read a copy and put everything that is wrong with its json, ids, splits, counts and files into `findings`.

    Nothing is raised for a defect of the copy: `load_benchmark` raises what is found here, the doctor reports it.

    Raises:
        `DataError`: `root` or `image_root` is not a folder.
    """
    root = SafeRoot(root).root
    home, jsons = find_jsons(benchmark, root, annotations)
    images = SafeRoot(image_root or home)
    copy = BenchmarkCopy(benchmark, [path for path, _ in jsons], images.root)
    if not jsons:
        tried = ", ".join(
            [
                *benchmark.json_names,
                "train_reid.json",
                "processed_data/train.json",
                f"{benchmark.prefixes[0]}_train.json",
            ]
        )
        near = _raw_json(benchmark, home) or near_jsons(annotations or home, benchmark.json_names)
        findings.add("json-missing", f"{annotations or home}: looked for {tried}" + (f"; {near}" if near else ""))
        return copy
    parsed = [row for path, split in jsons for row in _parse_json(benchmark, path, split, findings)]
    sample = [row.path for row in parsed[:: max(1, len(parsed) // _BASE_SAMPLE)]]
    base, hits = choose_base(benchmark.image_folders, images, sample)
    copy.rows = _merge_rows(parsed, base, images, findings)
    _check_files(copy, findings, "" if hits else near_images(images.root, sample, base))
    _check_persons(copy, findings)
    _check_counts(copy, findings)
    return copy


@dataclass(slots=True)
class _JsonRow:
    where: str
    path: str
    person: int
    split: str
    captions: list[str]
    single: bool  # the json gives one caption per row, so an image has several rows by design
    extra: dict[str, Any]


def _raw_json(benchmark: type[Benchmark], home: str) -> str:
    """That the file lies there which the json is made of, and how; else ""."""
    name, cure = benchmark.raw_json or ("", "")
    path = os.path.join(home, name)
    return f"{path} lies there, of which it is made: {cure}" if name and os.path.isfile(path) else ""


def _parse_json(benchmark: type[Benchmark], path: str, split: str | None, findings: Findings) -> Iterator[_JsonRow]:
    try:
        for number, row in enumerate(iter_list(path)):
            if parsed := _parse_row(benchmark, row, f"{path} row {number}", split, findings):
                yield parsed
    except (JsonShapeError, JsonError) as error:
        findings.add(error.code, str(error))


def _parse_row(
    benchmark: type[Benchmark], row: Any, where: str, split: str | None, findings: Findings
) -> _JsonRow | None:
    if not isinstance(row, dict):
        findings.add("row-not-object", f"{where}: {row!r:.60}")
        return None
    names = [
        next((name for name in names if name in row), None) for names in (_PATH_FIELDS, _CAPTION_FIELDS, _ID_FIELDS)
    ]
    path_field, caption_field, id_field = names
    for found, choices in zip(names, (_PATH_FIELDS, _CAPTION_FIELDS, _ID_FIELDS), strict=True):
        if found is None:
            findings.add("field-missing", f"{where}: no `{'` or `'.join(choices)}`")
            return None
    split = split or (benchmark.only_split if "split" not in row else None)
    if split is None and "split" not in row:
        findings.add("field-missing", f"{where}: no `split`")
        return None
    path = row[path_field]
    if not isinstance(path, str) or not path:
        findings.add("path-unsafe", f"{where}: `{path_field}` is {path!r:.60}")
        return None
    person = _parse_id(row[id_field], where, findings)
    captions: list[str] | None = []
    if row[caption_field] != [] or not benchmark.searched_alone:
        captions = usable_captions(row[caption_field], where, findings)
    row_split = split or _SPLIT_NAMES.get(str(row["split"]).lower())
    if row_split is None:
        findings.add("split-unknown", f"{where}: split {row['split']!r:.40}")
    if person is None or captions is None or row_split is None:
        return None
    extra = {name: value for name, value in row.items() if name not in (*names, "split")}
    single = isinstance(row[caption_field], str) or (benchmark.caption_per_row and len(captions) == 1)
    return _JsonRow(where, path, person, row_split, captions, single, extra)


def _parse_id(value: Any, where: str, findings: Findings) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*\d+\s*", value):
        findings.add("id-as-string", f"{where}: {value!r:.40}")
        return int(value)
    findings.add("id-not-integer", f"{where}: id {value!r:.40}")
    return None


def usable_captions(value: Any, where: str, findings: Findings) -> list[str] | None:
    """The captions of a row as a list, or `None` with a finding: a caption that is no string, or none at all."""
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list):
        findings.add("caption-not-text", f"{where}: captions {value!r:.60}")
        return None
    for caption in captions:
        if not isinstance(caption, str):
            findings.add("caption-not-text", f"{where}: caption {caption!r:.60}")
            return None
    if not captions:
        findings.add("captions-missing", where)
        return None
    return captions


def choose_base(folders: Sequence[str], images: SafeRoot, sample: Sequence[str]) -> tuple[str, int]:
    """The folder (one of `folders`) from which most of the sampled paths lead to a file, and how many do.

    The first of equals wins, so with no file at all it is the usual folder.
    """

    def hits(folder: str) -> int:
        found = 0
        for path in sample:
            try:
                found += os.path.isfile(images.resolve(path, folder))
            except UnsafePathError:
                continue
        return found

    best = max(folders, key=hits)
    return best, hits(best)


def _merge_rows(parsed: list[_JsonRow], base: str, images: SafeRoot, findings: Findings) -> list[ImageRow]:
    """One row an image, in order of first appearance."""
    merged: dict[str, ImageRow] = {}
    for row in parsed:
        try:
            file = images.resolve(row.path, base)
        except UnsafePathError as error:
            findings.add("path-unsafe", f"{row.where}: {error}")
            continue
        image_path = posixpath.normpath(posixpath.join(base, row.path))
        before = merged.get(image_path)
        if before is None:
            head, slash, _ = row.path.partition("/")
            folder = head if slash else base or "."
            merged[image_path] = ImageRow(image_path, file, row.person, row.split, row.captions, row.extra, folder)
        elif before.person != row.person:
            text = f"{row.where}: {row.path} is person {row.person} here, {before.person} before"
            findings.add("image-two-persons", text, (file,))
        elif before.split != row.split:
            text = f"{row.where}: {row.path} is in {row.split} here, in {before.split} before"
            findings.add("image-two-splits", text, (file,))
        else:
            new = row.captions
            if not row.single:
                findings.add("image-two-rows", f"{row.where}: {row.path}", (file,))
                new = [text for text in new if text not in before.captions]
            before.captions = before.captions + new
    return list(merged.values())


def _check_files(copy: BenchmarkCopy, findings: Findings, near: str) -> None:
    wanted: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    for row in copy.rows:
        wanted[row.folder] += 1
        try:
            empty = os.stat(row.file).st_size == 0
        except OSError:
            row.present = False
            missing[row.folder] += 1
            findings.add("image-missing", row.image_path)
            continue
        if empty:
            row.present = False
            findings.add("image-empty", row.image_path)
    if missing:
        detail = missing_shares(missing, wanted) + f" under {copy.image_root}"
        findings.set_detail("image-missing", detail + (f"; {near}" if near else ""))


def missing_shares(missing: Counter[str], wanted: Counter[str]) -> str:
    """Which share of each folder's images is missing, worst folders first."""
    texts = [
        f"{share(count, wanted[folder])} of the images of `{folder}/` are missing ({count:,} of {wanted[folder]:,})"
        for folder, count in missing.most_common(8)
    ]
    if len(missing) > len(texts):
        texts.append(f"and {sum(missing.values()) - sum(c for _, c in missing.most_common(8)):,} more elsewhere")
    return ", ".join(texts)


def _check_persons(copy: BenchmarkCopy, findings: Findings) -> None:
    benchmark = copy.benchmark
    first_of: dict[int, dict[str, ImageRow]] = defaultdict(dict)
    for row in copy.rows:
        first_of[row.person].setdefault(row.split, row)
        digits = os.path.basename(row.image_path)[:4]
        if benchmark.id_starts_file_name and digits.isdigit() and int(digits) != row.person:
            findings.add("id-differs-from-name", f"{row.image_path} has id {row.person}", (row.file,))
    for person, rows in first_of.items():
        if person < benchmark.first_id:
            text = f"id {person}; {benchmark.name} begins at {benchmark.first_id}"
            findings.add("id-below-first", text)
        if len(rows) > 1:
            text = f"person {person} is in {' and '.join(rows)}"
            findings.add("person-two-splits", text, tuple(row.file for row in rows.values()))


def _check_counts(copy: BenchmarkCopy, findings: Findings) -> None:
    benchmark, counts = copy.benchmark, copy.counts()
    for known in benchmark.known_copies:
        if {split: count.ids for split, count in counts.items()} == known.ids:
            findings.add("old-copy", f"{known.message} ({copy.json_files[0]}); the present one: {benchmark.home}")
            return
    for split, official in benchmark.official.items():
        if split not in counts:
            findings.add("split-missing", f"no {split} rows in {', '.join(copy.json_files)}")
        elif counts[split] != official:
            text = f"{split} has {counts[split]}; official: {official}; get it at {benchmark.home}"
            findings.add("counts-differ", text)
    total = Counts(len({row.person for row in copy.rows}), len(copy.rows), sum(len(row.captions) for row in copy.rows))
    if benchmark.official_total not in (None, total):
        text = f"all splits together have {total}; official: {benchmark.official_total}; get it at {benchmark.home}"
        findings.add("counts-differ", text)
