"""What lies where a file was looked for: other spellings, archives that were not unpacked, a folder in a folder."""

import os
from collections.abc import Sequence

from .json_stream import JsonError, JsonShapeError, iter_list

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".rar", ".7z", ".gz")
_MAX_ENTRIES = 10_000  # of a folder that are looked at


def near_jsons(folder: str, names: Sequence[str]) -> str:
    """What in `folder` or one folder below may be one of the json files `names`, in words, or "".

    Found are the same name in other cases, archives, and other jsons that hold a list.
    """
    told = []
    wanted = {name.lower() for name in names}
    for place, entries in _folders(folder):
        for name in entries:
            path = os.path.join(place, name)
            if name.lower() in wanted:
                told.append(f"{path} lies there: rename it to {next(n for n in names if n.lower() == name.lower())}")
            elif name.lower().endswith(_ARCHIVES):
                told.append(f"{path} lies there: unpack it")
            elif name.lower().endswith(".json") and os.path.isfile(path):
                told.append(_other_json(path, names))
    return "; ".join(told[:4])


def _other_json(path: str, names: Sequence[str]) -> str:
    try:
        first = next(iter_list(path), None)
    except (JsonError, JsonShapeError):
        return f"{path} lies there, which is another file"
    if isinstance(first, dict) and "split" in first:
        return f"{path} lies there: if it is the json, pass it as annotations"
    return f"{path} lies there, whose rows have no split; {names[0]} is the one with splits"


def near_images(root: str, sample: Sequence[str], base: str) -> str:
    """Where below `root` images that are missing from `base` lie after all, in words, or ""."""
    for path in sample[:20]:
        folder, name = os.path.split(os.path.join(root, base, path))
        for other in _listing(folder):
            if other != name and other.lower() == name.lower():
                return f"{os.path.join(folder, other)} lies there: rename the files, or unpack them again"
        for place, _ in _folders(os.path.join(root, base) if base else root):
            if os.path.isfile(os.path.join(place, path)):
                above = os.path.dirname(place) if base and os.path.basename(place) == base else place
                return f"{os.path.join(place, path)} lies there: pass {above} as image_root"
    for place, entries in _folders(root):
        for name in entries:
            if name.lower().endswith(_ARCHIVES):
                return f"{os.path.join(place, name)} lies there: unpack it"
    return ""


def _folders(folder: str) -> list[tuple[str, list[str]]]:
    """A folder and the folders in it, each with its names."""
    names = _listing(folder)
    below = [os.path.join(folder, name) for name in names[:200] if os.path.isdir(os.path.join(folder, name))]
    return [(folder, names), *((place, _listing(place)) for place in below)]


def _listing(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry, _ in zip(entries, range(_MAX_ENTRIES), strict=False))
    except OSError:
        return []
