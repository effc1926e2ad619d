"""The pictures of a tar: every image file is one, with the address from the json of its name or of its key.

`photo.v1.jpg` and `photo.v2.jpg` are two pictures; their addresses stand in `photo.v1.json` and `photo.v2.json`, or in
`photo.json`. Nothing is unpacked.
"""

import json
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..findings import DataError
from ..rows.cleaning import is_unicode
from ..rows.local_source import MAX_MEMBER_BYTES, MAX_TEXT_BYTES
from .file_names import file_problem, is_other_picture, readable
from .reservations import reserved_by

_HELD = 32  # pictures of one key that wait for a json before they go on without it


class BadShardError(DataError):
    """A shard that cannot be read to its end; `reason` is the name under which it is counted."""

    def __init__(self, message: str, reason: str):
        super().__init__(message, reason)
        self.message, self.reason = message, reason

    def __str__(self) -> str:
        return self.message


@dataclass(slots=True)
class SourceImage:
    """An image as downloaded: its bytes, or why there are none.

    Attributes:
        problem: `not_downloaded`, `image_missing`, or another reason under which the file is counted as rejected.
        note: what the downloader says of a picture that is not there, in short.
    """

    source_id: str
    url: str | None
    data: bytes | None
    problem: str = ""
    name: str = ""  # of its file in the shard, where that has files
    note: str = ""


@dataclass
class _Group:
    """Members of one key, the name up to its first dot."""

    key: str
    images: list[tuple[str, bytes | None]] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)  # json by name without ending; b"" for other texts
    others: dict[str, str] = field(default_factory=dict)  # name to the reason for which it is no picture
    has_images: bool = False

    def emit(self, is_last: bool = True) -> Iterator[SourceImage]:
        for name, data in self.images:
            self.has_images = True
            stem = posixpath.splitext(name)[0]
            facts = described(self.texts.get(stem) or self.texts.get(self.key) or b"")
            image = SourceImage(str(facts.get("key") or stem), None, data, name=name)
            if (url := facts.get("url")) is None or isinstance(url, str):
                image.url = url
            else:
                image.data, image.problem = None, "url_not_text"
            if reserved := reserved_by(facts.get("headers")):
                image.data, image.problem = None, image.problem or reserved
            yield image
        if is_last and not self.has_images:  # texts and other files beside a picture are its own
            for stem in self.texts:
                yield SourceImage(stem, None, None, "image_missing", stem)
            for name, reason in self.others.items():
                yield SourceImage(name, None, None, reason, name)
        self.images.clear()


def described(data: bytes) -> dict:
    """What a json beside a picture says; a broken one says nothing, which does not harm the picture."""
    try:
        facts = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def read_tar(shard: str, with_data: bool = True) -> Iterator[SourceImage]:
    """The pictures of a tar and its files that are none, in order, those of one key in memory at a time.

    Args:
        shard: path of the tar.
        with_data: without it, the bytes of pictures are passed over.

    Raises:
        `BadShardError`: it is empty (`tar_empty`), or broken before its end (`tar_cut`).
    """
    number, group, begun = 0, _Group(""), False
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every member it has seen
                if member.isdir():
                    continue
                begun, number = True, number + 1
                folder, name = posixpath.split(member.name)
                key = posixpath.join(folder, name.partition(".")[0])
                if key != group.key:
                    yield from group.emit()
                    group = _Group(key)
                elif len(group.images) >= _HELD:
                    yield from group.emit(is_last=False)
                stem, ending = posixpath.splitext(member.name)
                is_text = ending.lower() in (".json", ".txt")
                problem = "" if is_text else file_problem(name)
                if not is_unicode(member.name):
                    problem = "name_not_utf8"
                elif not member.isreg():
                    problem = "not_a_file"
                elif member.size > (MAX_TEXT_BYTES if is_text else MAX_MEMBER_BYTES):
                    problem = "file_too_large"
                if problem and is_other_picture(problem):
                    group.has_images = True  # texts beside it are its own
                    yield SourceImage(stem, None, None, problem, readable(member.name))
                elif problem:
                    group.others[member.name] = problem
                elif is_text:
                    part = tar.extractfile(member) if ending.lower() == ".json" else None
                    group.texts[stem] = (part.read() if part else b"") or group.texts.get(stem, b"")
                else:
                    part = tar.extractfile(member) if with_data else None
                    group.images.append((member.name, part.read() if part else None))
            file.seek(tar.offset)
            if begun and file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("no end of the archive")  # tarfile ends quietly in a cut header
            yield from group.emit()
    except (tarfile.TarError, EOFError, OSError) as error:
        if begun or "empty" not in str(error):
            message = f"{shard}: broken after file {number:,} ({error}); download it again"
            raise BadShardError(message, "tar_cut") from error
    if not begun:
        raise BadShardError(f"{shard}: an empty tar; download it again", "tar_empty")
