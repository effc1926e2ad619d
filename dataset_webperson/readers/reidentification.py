"""Readers of Market-1501 and MSMT17, whose queries are images: re-identification, without captions.

`load_reidentification("market-1501", "data/Market-1501-v15.09.15")` gives a `datasets.DatasetDict` of `query` and
`gallery`, one row an image, with `image`, `image_path`, `captions` (none), `person_id` and `camera`; not train.

Layouts, counts and names are those that public loaders share. Either data set may have either layout:

- folders `query` and `bounding_box_test`, in which names begin with person and camera, `0001_c1s1_000151_01.jpg`.
  Person -1 is junk, neither right nor wrong, and is left out. Person 0 of Market-1501 is a distractor: wrong for every
  query.
- `list_query.txt` and `list_gallery.txt` with lines `0000/0000_000_01_0303morning_0015_0.jpg 0`: a path below `test`
  or `mask_test_v2`, and the person; the third part of the name is the camera. The ids of train begin at 0 again, and
  are other persons.
"""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from datasets import Dataset, DatasetDict, Features, Image, List, Value

from ..findings import DataError, Findings
from ..safe_paths import SafeRoot, UnsafePathError
from .benchmark_copy import Counts, choose_base, missing_shares
from .benchmarks import accept, check_choices, class_by_name, warn_of

JUNK = -1
PARTS = {"query": ("query", "list_query.txt"), "gallery": ("bounding_box_test", "list_gallery.txt")}
_LISTED_FOLDERS = ("test", "mask_test_v2", "")  # below which the paths of a list lie
_NAME = re.compile(r"(-1|\d+)_c(\d+)")
_LISTED_NAME = re.compile(r"(\d+)_\d+_(\d+)_")
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp")


class Reidentification:
    """Facts of one data set."""

    name: ClassVar[str]
    folders: ClassVar[tuple[str, ...]]  # usual names of its folder
    home: ClassVar[str]
    official: ClassVar[dict[str, Counts]]  # without junk; distractors are images of nobody
    distractor: ClassVar[int | None] = None  # a person that no query shows


class Market1501(Reidentification):
    name = "Market-1501"
    folders = ("Market-1501-v15.09.15", "Market-1501", "market1501")
    home = "http://www.liangzheng.org/Project/project_reid.html"
    official = {"query": Counts(750, 3368, 0), "gallery": Counts(750, 15913, 0)}
    distractor = 0


class MSMT17(Reidentification):
    name = "MSMT17"
    folders = ("MSMT17_V1", "MSMT17_V2", "MSMT17", "msmt17")
    home = "http://www.pkuvmc.com/publications/msmt17.html"
    official = {"query": Counts(3060, 11659, 0), "gallery": Counts(3060, 82161, 0)}


REIDENTIFICATION: dict[str, type[Reidentification]] = {"market-1501": Market1501, "msmt17": MSMT17}


def reidentification_class(name: str | type[Reidentification]) -> type[Reidentification]:
    """The class for a name such as `"market-1501"`; upper case, `-` and `_` do not matter. A class is itself.

    Raises:
        `DataError`: no such data set.
    """
    return class_by_name("re-identification data set", name, REIDENTIFICATION)


def recognised(root: str) -> list[type[Reidentification]]:
    """The data sets that lie in a folder, by its name or those of the folders in it, else by their layout."""
    found = []
    for kind in REIDENTIFICATION.values():
        named = os.path.basename(os.path.realpath(root)) in kind.folders
        if (named and _has_part(root)) or any(_has_part(os.path.join(root, name)) for name in kind.folders):
            found.append(kind)
    if not found and all(_has(root, part) for part in PARTS):
        found.append(MSMT17 if os.path.isfile(os.path.join(root, PARTS["query"][1])) else Market1501)
    return found


def _has(folder: str, part: str) -> bool:
    images, listed = PARTS[part]
    return os.path.isdir(os.path.join(folder, images)) or os.path.isfile(os.path.join(folder, listed))


def _has_part(folder: str) -> bool:
    return any(_has(folder, part) for part in PARTS)


@dataclass(slots=True)
class PersonImage:
    """An image of a person by a camera."""

    image_path: str  # relative to the folder of the data set
    file: str  # absolute
    person: int
    camera: int
    present: bool = True


@dataclass
class ReidentificationCopy:
    """What was read of one copy: its images by part, and how many more are junk."""

    kind: type[Reidentification]
    root: str
    images: dict[str, list[PersonImage]] = field(default_factory=dict)
    junk: int = 0

    def counts(self) -> dict[str, Counts]:
        return {part: counts_of(self.kind, [image.person for image in found]) for part, found in self.images.items()}


def counts_of(kind: type[Reidentification], persons: Sequence[int]) -> Counts:
    """Counts of images by the person in each."""
    return Counts(len(set(persons) - {kind.distractor}), len(persons), 0)


def read_reidentification(kind: type[Reidentification], root: str, findings: Findings) -> ReidentificationCopy:
    """Read a copy and put everything that is wrong with it into `findings`.

    Raises:
        `DataError`: `root` is not a folder.
    """
    root = SafeRoot(root).root
    places = [root, *(os.path.join(root, name) for name in kind.folders)]
    safe = SafeRoot(next(filter(_has_part, places), root))
    copy = ReidentificationCopy(kind, safe.root)
    for part, (folder, list_name) in PARTS.items():
        if os.path.isfile(listed := os.path.join(safe.root, list_name)):
            images = list(_listed(safe, listed, findings))
        elif os.path.isdir(os.path.join(safe.root, folder)):
            images = list(_named(safe, folder, findings))
        else:
            findings.add(
                "folder-missing", f"{safe.root}: the {part} is in {folder}/ or {list_name}, and neither is there"
            )
            continue
        copy.images[part] = [image for image in images if image.person != JUNK]
        copy.junk += len(images) - len(copy.images[part])
    _check_files(copy, findings)
    _check_persons(copy, findings)
    _check_counts(copy, findings)
    return copy


def _named(safe: SafeRoot, folder: str, findings: Findings) -> Iterator[PersonImage]:
    """Images of a folder, by their names, in their order."""
    for name in sorted(os.listdir(os.path.join(safe.root, folder))):
        if not name.lower().endswith(_IMAGES):  # Thumbs.db, a readme
            continue
        match = _NAME.match(name)
        if match is None:
            findings.add("image-name", f"{folder}/{name}: expected <person>_c<camera>..., as 0001_c1s1_000151_01.jpg")
            continue
        try:
            file = safe.resolve(name, folder)
        except UnsafePathError as error:
            findings.add("path-unsafe", str(error))
            continue
        yield PersonImage(f"{folder}/{name}", file, int(match[1]), int(match[2]))


def _listed(safe: SafeRoot, listed: str, findings: Findings) -> Iterator[PersonImage]:
    """Images that a list names, in its order."""
    with open(listed, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file]
    pairs = [(number, line.rpartition(" ")) for number, line in enumerate(lines, 1) if line]
    base, _ = choose_base(_LISTED_FOLDERS, safe, [path for _, (path, _, _) in pairs[:: max(1, len(pairs) // 200)]])
    for number, (path, _, person) in pairs:
        where = f"{listed} line {number}"
        if not path or not person.isdecimal():
            findings.add("list-line", f"{where}: {lines[number - 1]!r:.80}, expected <path> <person>")
            continue
        match = _LISTED_NAME.match(os.path.basename(path))
        if match is None:
            findings.add("image-name", f"{where}: {path}, expected <person>_<number>_<camera>_...")
            continue
        try:
            image = safe.resolve(path, base)
        except UnsafePathError as error:
            findings.add("path-unsafe", f"{where}: {error}")
            continue
        if int(match[1]) != int(person):
            findings.add("id-differs-from-name", f"{where}: {path} has id {person}", (image,))
        yield PersonImage(posixpath.join(base, path), image, int(person), int(match[2]))


def _check_files(copy: ReidentificationCopy, findings: Findings) -> None:
    wanted: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    part_of: dict[str, str] = {}
    for part, images in copy.images.items():
        for image in images:
            wanted[part] += 1
            if (before := part_of.setdefault(image.file, part)) != part:
                findings.add("image-two-splits", f"{image.image_path} is in {before} and {part}", (image.file,))
            try:
                empty = os.stat(image.file).st_size == 0
            except OSError:
                missing[part] += 1
                findings.add("image-missing", image.image_path)
            else:
                if not empty:
                    continue
                findings.add("image-empty", image.image_path)
            image.present = False
    if missing:
        findings.set_detail("image-missing", missing_shares(missing, wanted) + f" under {copy.root}")


def _check_persons(copy: ReidentificationCopy, findings: Findings) -> None:
    if "gallery" not in copy.images:
        return
    cameras: dict[int, set[int]] = {}
    for image in copy.images["gallery"]:
        cameras.setdefault(image.person, set()).add(image.camera)
    for image in copy.images.get("query", ()):
        if image.person == copy.kind.distractor:
            text = f"{image.image_path}: {image.person} stands for no person"
        elif cameras.get(image.person, set()) <= {image.camera}:
            text = f"{image.image_path}: person {image.person} is not in the gallery by another camera"
        else:
            continue
        findings.add("query-unmatched", text, (image.file,))


def _check_counts(copy: ReidentificationCopy, findings: Findings) -> None:
    for part, found in copy.counts().items():
        if found != copy.kind.official[part]:
            text = f"{part} has {found}; official: {copy.kind.official[part]}; get it at {copy.kind.home}"
            findings.add("counts-differ", text)


def load_reidentification(
    name: str | type[Reidentification],
    root: str | os.PathLike,
    *,
    on_count_mismatch: str = "error",
    on_missing_images: str = "error",
) -> DatasetDict:
    """`query` and `gallery` of a data set, checked before anything is returned.

    Args:
        name: `"market-1501"`, `"msmt17"`, or a subclass of `Reidentification`.
        root: its folder, or the folder above it.
        on_count_mismatch, on_missing_images: as in `load_benchmark`.

    Raises:
        `DataError`: one error that lists all that keeps the copy from loading, each with file and cure.
    """
    check_choices(on_count_mismatch, on_missing_images)
    kind, findings = reidentification_class(name), Findings()
    copy = read_reidentification(kind, os.fspath(root), findings)
    accept(findings, on_count_mismatch, on_missing_images)
    what = f"{kind.name} in {os.fspath(root)}"
    findings.raise_errors(what)
    present = {part: [image for image in images if image.present] for part, images in copy.images.items()}
    for part, images in present.items():
        if not images:
            raise DataError(f"{what}: no usable image in the {part}; check what {copy.root} holds")
    warn_of(findings, what)
    return DatasetDict({part: _table(images) for part, images in present.items()})


def _table(images: list[PersonImage]) -> Dataset:
    columns = {
        "image": [image.file for image in images],
        "image_path": [image.image_path for image in images],
        "captions": [[] for _ in images],
        "person_id": [image.person for image in images],
        "camera": [image.camera for image in images],
    }
    numbers = {"person_id": Value("int64"), "camera": Value("int64")}
    features = Features(
        {"image": Image(), "image_path": Value("string"), "captions": List(Value("string")), **numbers}
    )
    return Dataset.from_dict(columns, features=features)
