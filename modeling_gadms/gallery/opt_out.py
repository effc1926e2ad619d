"""The opt-out list of a gallery: images that must not be in it, by content, by name, or by likeness."""

import fnmatch
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dataset_webperson import DataError

from .unchanged import read_if_changed

FILE = "opt_out.txt"
NEAR = 4  # bits in which the perceptual hash of a copy may differ; two unrelated pictures differ in about 32
_FORMS = {"sha256": re.compile(r"[0-9a-f]{64}"), "uri": re.compile(r".+"), "phash": re.compile(r"[0-9a-f]{16}")}


class OptOut:
    """Lines `sha256:DIGITS`, `uri:PATTERN` (`*`, `?` and `[..]` as in a shell) and `phash:DIGITS` of `opt_out.txt`.

    Args:
        folder (`str`): of the gallery.

    Raises:
        DataError: a line of another form, which is quoted. No line is ignored silently.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.path = os.path.join(folder, FILE)
        found: dict[str, list[str]] = {kind: [] for kind in _FORMS}
        try:
            with open(self.path, encoding="utf-8-sig") as file:
                lines = file.read().splitlines()
        except FileNotFoundError:
            lines = []
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path}: cannot be read ({error}); restore the file") from error
        for number, line in enumerate(map(str.strip, lines), 1):
            if line and not line.startswith("#"):
                kind, value = _entry(line, f"{self.path} line {number}")
                found[kind].append(value)
        self.sha256s = frozenset(found["sha256"])
        self.patterns = tuple(found["uri"])
        self.phashes = np.array([int(value, 16) for value in found["phash"]], dtype=np.uint64)

    def __len__(self) -> int:
        return len(self.sha256s) + len(self.patterns) + len(self.phashes)

    @property
    def columns(self) -> list[str]:
        """Of a gallery's rows, those that [`excludes_row`] compares, `uri` apart."""
        return ["sha256"] * bool(self.sha256s) + ["phash"] * bool(len(self.phashes))

    def excludes_uri(self, uri: str) -> bool:
        """By name alone, before the image is read."""
        return any(fnmatch.fnmatchcase(uri, pattern) for pattern in self.patterns)

    def excludes(self, uri: str, sha256: str, phash: int) -> bool:
        """Whether the image must not be shown or kept."""
        near = len(self.phashes) and (np.bitwise_count(self.phashes ^ np.uint64(phash)) <= NEAR).any()
        return bool(sha256 in self.sha256s or self.excludes_uri(uri) or near)

    def excludes_row(self, row: Mapping[str, Any]) -> bool:
        """The same for a row of a gallery with `uri` and `columns`."""
        return self.excludes(row["uri"], row.get("sha256", ""), row.get("phash", 0))


@read_if_changed(FILE)
def read_opt_out(folder: str | os.PathLike) -> OptOut:
    """The list of a gallery. Raises `DataError` as [`OptOut`]."""
    return OptOut(folder)


def _entry(line: str, where: str) -> tuple[str, str]:
    kind, _, value = line.partition(":")
    value = value.strip() if kind == "uri" else value.strip().lower()
    if kind not in _FORMS or not _FORMS[kind].fullmatch(value):
        raise DataError(
            f"{where}: {line[:80]!r} is not an entry; write sha256: and 64 hexadecimal digits, uri: and a pattern, or "
            "phash: and 16 hexadecimal digits"
        )
    return kind, value


def extend_opt_out(folder: str | os.PathLike, entries: Iterable[str]) -> int:
    """Append entries that the list does not hold; returns how many.

    Raises:
        DataError: an entry is of another form; then none is added.
    """
    path = os.path.join(folder, FILE)
    lines = [":".join(_entry(entry.strip(), "opt-out")) for entry in entries]
    held: set[str] = set()
    if os.path.exists(path):
        with open(path, encoding="utf-8-sig") as file:
            held = set(file.read().splitlines())
    new = [line for line in dict.fromkeys(lines) if line not in held]
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in new))
    return len(new)
