"""Paths that come from a json or an archive, resolved without ever leaving the dataset's folder.

Also what may be said of a path to strangers: its last part, and not where it lies on this machine.
"""

import os
import re

from .findings import DataError

_MAX_FOLDERS = 10_000  # kept at a time; a corpus may have one folder per person
_DRIVE = re.compile(r"^[A-Za-z]:")
_ABSOLUTE = re.compile(r"^(?:[/\\~]|[A-Za-z]:[/\\]|file:)")


def last_part(path: str) -> str:
    """The name of a file or folder, without the folders that it lies in.

    >>> last_part("runs/webperson/"), last_part(r"C:\\models\\person.onnx")
    ('webperson', 'person.onnx')
    """
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def end_of_path(name: str) -> str:
    """The last part of an absolute path, and any other name, such as a Hub id, as it is.

    >>> end_of_path("/home/me/models/person.onnx"), end_of_path("org/gadms")
    ('person.onnx', 'org/gadms')
    """
    return last_part(name) if _ABSOLUTE.match(name) else name


class UnsafePathError(DataError):
    """A path that is absolute, climbs with `..`, or reaches outside the folder (or nowhere) through links."""


class SafeRoot:
    """A folder that hands out absolute paths of the files below it and refuses all others.

    Args:
        root (`str` or `os.PathLike`): the folder. It may itself be a link; what it points to is the root.

    Raises:
        `DataError`: the folder does not exist or is not a folder.
    """

    def __init__(self, root: str | os.PathLike):
        try:
            self.root = os.path.realpath(root, strict=True)
        except OSError as error:
            raise DataError(f"{os.fspath(root)}: no such folder ({error.strerror}); check the path") from error
        if not os.path.isdir(self.root):
            raise DataError(f"{os.fspath(root)}: not a folder; pass the folder that holds the dataset")
        # Most files share a few folders: each folder's links are followed once, which leaves one lstat per file.
        self._folders: dict[str, str] = {}

    def resolve(self, relative: str, base: str = "") -> str:
        """The absolute path of `relative` below the sub-folder `base`; it need not exist.

        Raises:
            `UnsafePathError`: `relative` is empty, absolute, holds `..`, a backslash or a NUL, or leads out of the
                root through a symbolic link, or into a loop of links.
        """
        self.check_written(relative)
        whole = f"{base}/{relative}" if base else relative
        folder, name = os.path.split(whole)
        if folder not in self._folders:
            if len(self._folders) >= _MAX_FOLDERS:
                self._folders.clear()
            self._folders[folder] = self._real(folder) if folder else self.root
        path = os.path.join(self._folders[folder], name)
        return self._real(whole) if os.path.islink(path) else path

    def check_written(self, relative: str) -> None:
        """Refuse what can be refused without a look at the disk. Raises `UnsafePathError`."""
        try:
            os.fsencode(relative)
        except UnicodeEncodeError as error:
            raise UnsafePathError(f"{relative!a}: holds half a character, no file can be named so") from error
        if not relative or "\0" in relative:
            raise UnsafePathError(f"{relative!r}: not a file path")
        if relative.startswith("/") or _DRIVE.match(relative):
            raise UnsafePathError(f"{relative!r}: absolute path; it must be relative to {self.root}")
        if "\\" in relative:
            raise UnsafePathError(f"{relative!r}: backslash in a path; write it with `/`")
        if ".." in relative.split("/"):
            raise UnsafePathError(f"{relative!r}: `..` in a path; it must stay inside {self.root}")

    def _real(self, relative: str) -> str:
        joined = os.path.join(self.root, relative)
        try:
            real = os.path.realpath(joined, strict=True)
        except (FileNotFoundError, NotADirectoryError):
            real = os.path.realpath(joined)
        except OSError as error:
            raise UnsafePathError(f"{relative[:200]!r}: {error.strerror} in {self.root}") from error
        if real != self.root and not real.startswith(self.root.rstrip("/") + "/"):
            raise UnsafePathError(
                f"{relative!r}: a link leads out of {self.root}, to {real}; pass that place as `image_root` if it is "
                "where the images lie"
            )
        return real
