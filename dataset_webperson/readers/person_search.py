"""CUHK-SYSU-TBPS and PRW-TBPS: persons in whole pictures, each a box, some of them described in words.

The descriptions (arXiv 2109.12965) are json lists without an ending, `CUHK-SYSU-TBPS_train` and so on, of
`{"pic_path": "s1.jpg", "id": 7, "desrciption": ["A man ...", "He ..."]}`, spelt so. Empty strings in a list are left
out, and what comes after the second belongs to it. They go with the boxes of the data set that they were written for:

- CUHK-SYSU: `annotation/Images.mat` has all boxes, `Person.mat` the persons in them, and `pool.mat` the pictures of
  the test; pictures are in `Image/SSM`.
- PRW: `annotations/<picture>.mat` has person, x, y, width and height of each box, `frame_test.mat` the pictures of the
  test; pictures are in `frames`.

Fields and files are those of public loaders of both; `.mat` files are read by scipy.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..findings import DataError, Findings
from ..safe_paths import SafeRoot
from .benchmark_copy import usable_captions
from .benchmarks import class_by_name
from .json_stream import JsonError, JsonShapeError, iter_list

NOBODY = 0  # a box of whom nothing is known
_DESCRIPTION_FIELDS = ("desrciption", "description")


@dataclass(frozen=True)
class Box:
    """A person in a picture, in pixels from its upper left corner."""

    person: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Description:
    """What was written of a person in a picture."""

    where: str
    picture: str
    person: int
    captions: list[str]


class PersonSearch:
    """Facts of one data set, and where its boxes are."""

    name: ClassVar[str]
    folder: ClassVar[str]
    pictures: ClassVar[str]  # folder of the pictures

    @classmethod
    def boxes(cls, root: str, pictures: Sequence[str]) -> dict[str, list[Box]]:
        """The boxes in each of these pictures, those of nobody included.

        Raises:
            `DataError`: a file is missing, or is not what it should be.
        """
        raise NotImplementedError

    @classmethod
    def test_pictures(cls, root: str) -> list[str]:
        """The names of the pictures that are searched. Raises `DataError` as `boxes` does."""
        raise NotImplementedError


class CUHKSYSU(PersonSearch):
    name = "CUHK-SYSU-TBPS"
    folder = "CUHK-SYSU-TBPS"
    pictures = "Image/SSM"

    @classmethod
    def boxes(cls, root: str, pictures: Sequence[str]) -> dict[str, list[Box]]:
        person_of: dict[tuple[str, tuple[float, ...]], int] = {}
        path = os.path.join(root, "annotation", "Person.mat")
        for entry in _entries(path, "Person", ("idname", "scene")):
            person = _number(str(entry["idname"]).removeprefix("p"), path, "idname")
            for scene in _as_list(entry["scene"]):
                person_of[str(scene["imname"]), _four(scene["idlocate"], path)] = person
        path, wanted = os.path.join(root, "annotation", "Images.mat"), set(pictures)
        found: dict[str, list[Box]] = {}
        for entry in _entries(path, "Img", ("imname", "box")):
            picture = str(entry["imname"])
            if picture in wanted:
                places = [_four(box["idlocate"], path) for box in _as_list(entry["box"])]
                found[picture] = [Box(person_of.get((picture, place), NOBODY), *place) for place in places]
        return found

    @classmethod
    def test_pictures(cls, root: str) -> list[str]:
        return [str(name) for name in _as_list(_variable(os.path.join(root, "annotation", "pool.mat"), ("pool",)))]


class PRW(PersonSearch):
    name = "PRW-TBPS"
    folder = "PRW-TBPS"
    pictures = "frames"

    @classmethod
    def boxes(cls, root: str, pictures: Sequence[str]) -> dict[str, list[Box]]:
        found = {}
        for picture in pictures:
            path = os.path.join(root, "annotations", f"{picture}.mat")
            rows = _variable(path, ("box_new", "anno_file", "anno_previous"))
            if getattr(rows, "shape", (0,))[-1] != 5:
                raise DataError(f"{path}: expected rows of person, x, y, width, height; use the files of PRW")
            # one box is one row, not a table of one; whom nobody knows is -2
            found[picture] = [Box(int(row[0]), *map(float, row[1:])) for row in rows.reshape(-1, 5)]
        return found

    @classmethod
    def test_pictures(cls, root: str) -> list[str]:
        names = _as_list(_variable(os.path.join(root, "frame_test.mat"), ("img_index_test",)))
        return [f"{name}.jpg" for name in names]


PERSON_SEARCH: dict[str, type[PersonSearch]] = {"cuhk-sysu-tbps": CUHKSYSU, "prw-tbps": PRW}


def person_search_class(name: str) -> type[PersonSearch]:
    """The class for a name such as `"prw-tbps"`. Raises `DataError`: no such data set."""
    return class_by_name("person search data set", name, PERSON_SEARCH)


def find_home(kind: type[PersonSearch], root: str) -> str:
    """The folder of the data set, `root` or the one of its name below it. Raises `DataError`: no such folder."""
    root = SafeRoot(root).root
    below = os.path.join(root, kind.folder)
    return below if os.path.isdir(below) else root


def read_descriptions(kind: type[PersonSearch], root: str, split: str, findings: Findings) -> list[Description]:
    """The descriptions of train or test; what is wrong with one goes into `findings`."""
    path = os.path.join(root, f"{kind.name}_{split}")
    if not os.path.isfile(path):
        findings.add("json-missing", f"{path}: the descriptions of {split}, a json without an ending")
        return []
    return list(_parsed(path, findings))


def _parsed(path: str, findings: Findings) -> Iterator[Description]:
    seen: set[tuple[str, int]] = set()
    try:
        for number, row in enumerate(iter_list(path)):
            where = f"{path} row {number}"
            if not isinstance(row, dict):
                findings.add("row-not-object", f"{where}: {row!r:.60}")
                continue
            field = next((name for name in _DESCRIPTION_FIELDS if name in row), None)
            lacking = [name for name in ("pic_path", "id") if name not in row]
            if lacking or field is None:
                names = lacking or ["` or `".join(_DESCRIPTION_FIELDS)]
                findings.add("field-missing", f"{where}: no `{names[0]}`")
                continue
            if not isinstance(row["id"], int) or isinstance(row["id"], bool) or row["id"] <= NOBODY:
                findings.add("id-not-integer", f"{where}: id {row['id']!r:.40}")
                continue
            captions = usable_captions(row[field], where, findings)
            if captions is None:
                continue
            if not (captions := _first_two(captions)):
                findings.add("captions-missing", f"{where}: {row['pic_path']}, person {row['id']}")
                continue
            if (key := (str(row["pic_path"]), row["id"])) in seen:
                findings.add("image-two-rows", f"{where}: person {key[1]} of {key[0]} is described before")
                continue
            seen.add(key)
            yield Description(where, *key, captions)
    except (JsonShapeError, JsonError) as error:
        findings.add(error.code, str(error))


def _first_two(captions: list[str]) -> list[str]:
    """Two captions at most: further pieces belong to the second."""
    kept = [text for text in captions if text.strip()]
    return [*kept[:1], " ".join(kept[1:])] if len(kept) > 1 else kept


def _variable(path: str, names: tuple[str, ...]) -> Any:
    """The variable of a MATLAB file that has one of these names."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(f"{path}: a MATLAB file needs scipy to be read; pip install scipy") from error
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such file; it is of the data set that the descriptions were written for")
    try:
        content = loadmat(path, simplify_cells=True)
    except Exception as error:  # scipy raises many kinds for a file that is cut off or another one
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: not a MATLAB file that can be read ({reason}); unpack it again") from error
    if found := [name for name in names if name in content]:
        return content[found[0]]
    others = ", ".join(name for name in content if not name.startswith("__"))
    raise DataError(f"{path}: expected the variable {' or '.join(names)}, found {others}; use the data set's own file")


def _entries(path: str, name: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """The structures of a variable, each with these fields."""
    entries = _as_list(_variable(path, (name,)))
    for entry in entries:
        if not isinstance(entry, dict) or not set(fields) <= set(entry):
            found = ", ".join(entry) if isinstance(entry, dict) else type(entry).__name__
            raise DataError(
                f"{path}: expected {name} to have {', '.join(fields)}, found {found}; use the file of CUHK-SYSU"
            )
    return entries


def _as_list(value: Any) -> list[Any]:
    """The parts of what scipy makes a list, an array, or, where there is one, the part itself."""
    return [value] if isinstance(value, (dict, str)) else list(value)


def _number(text: str, path: str, field: str) -> int:
    if not text.isdecimal():
        raise DataError(f"{path}: expected {field} such as p12, found {text!r:.40}; use the file of CUHK-SYSU")
    return int(text)


def _four(value: Any, path: str) -> tuple[float, float, float, float]:
    """x, y, width and height."""
    numbers = [float(part) for part in getattr(value, "flat", ())]
    if len(numbers) != 4:
        raise DataError(f"{path}: expected idlocate to be x, y, width, height, found {value!r:.40}; use its own file")
    return numbers[0], numbers[1], numbers[2], numbers[3]
