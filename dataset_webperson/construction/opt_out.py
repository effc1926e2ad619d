"""The opt-out list: pictures that people or sites asked to be left out, by address, site or content.

python -m dataset_webperson.construction.opt_out IMAGE ... >> opt_out.txt    # the lines that name these pictures

| line | leaves out |
|---|---|
| `url:ADDRESS` | the picture at this address |
| `domain:SITE` | all pictures of a site and of its subdomains |
| `sha256:DIGITS` | the picture whose file, as downloaded or as released, has this hash |
| `phash:DIGITS` | pictures that look like it, as downloaded or as released, whatever their size and compression |
"""

import hashlib
import os
import re
import sys
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any
from urllib.parse import urlsplit

from ..command_line import CommandParser, command
from ..findings import DataError
from ..images import decode_rgb
from ..near_duplicates import bands, perceptual_hash

_KINDS = ("url", "sha256", "domain", "phash")
_DIGITS = {"sha256": re.compile(r"[0-9a-f]{64}"), "phash": re.compile(r"[0-9a-f]{16}")}
NEAR = 4  # of the 64 bits in which a perceptual hash may differ from one of the list


class OptOut:
    """The rows to leave out.

    Args:
        urls: whole addresses. Scheme, a leading `www.`, a fragment and a slash at the end make no difference.
        sha256s: hashes of the file on the web or of the crop, 64 hexadecimal digits.
        domains: sites, each including all its subdomains.
        phashes: perceptual hashes (`near_duplicates.perceptual_hash`), 16 hexadecimal digits.
    """

    def __init__(
        self,
        urls: Iterable[str] = (),
        sha256s: Iterable[str] = (),
        domains: Iterable[str] = (),
        phashes: Iterable[str] = (),
    ):
        self.path = ""
        self.urls = frozenset(_plain_url(url) for url in urls)
        self.sha256s = frozenset(value.lower() for value in sha256s)
        self.domains = frozenset(domain.lower().strip(".").removeprefix("www.") for domain in domains)
        self.phashes = frozenset(value.lower() for value in phashes)

    @cached_property
    def digest(self) -> str:
        """What tells this list from another."""
        kinds = (self.urls, self.sha256s, self.domains, *([self.phashes] if self.phashes else []))
        entries = [sorted(kind) for kind in kinds]
        return hashlib.sha256(repr(entries).encode()).hexdigest()

    def __bool__(self) -> bool:
        return bool(self.urls or self.sha256s or self.domains or self.phashes)

    def __reduce__(self) -> Any:
        # Millions of entries are not sent to a process with each shard: it reads their file, once.
        return (OptOut.from_file, (self.path,)) if self.path else super().__reduce__()

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "OptOut":
        """The list of a file, see `_read`. A process reads a file once, and again when it has changed."""
        try:
            facts = os.stat(path)
        except OSError as error:
            raise DataError(
                f"{os.fspath(path)}: the opt-out list cannot be read ({error}); check `opt_out`"
            ) from error
        return _read_once(os.fspath(path), facts.st_size, facts.st_mtime_ns)

    @classmethod
    def _read(cls, path: str) -> "OptOut":
        """Read the lines of a list; empty ones and comments (`#`) are skipped.

        Raises:
            `DataError`: no such file, or a line of another form, which is quoted. No line is ignored silently.
        """
        found: dict[str, list[str]] = {kind: [] for kind in _KINDS}
        try:
            with open(path, encoding="utf-8-sig") as file:
                lines = file.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: the opt-out list cannot be read ({error}); check `opt_out`") from error
        for number, line in enumerate(lines, 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            kind, _, value = line.partition(":")
            value = value.strip()
            bad_hash = kind in _DIGITS and not _DIGITS[kind].fullmatch(value.lower())
            if kind not in _KINDS or not value or bad_hash:
                raise DataError(
                    f"{path} line {number}: {line[:80]!r} is not an entry; write `url:` or `domain:` and a "
                    "value, `sha256:` and 64 hexadecimal digits, or `phash:` and 16"
                )
            found[kind].append(value)
        return cls(found["url"], found["sha256"], found["domain"], found["phash"])

    @cached_property
    def _by_band(self) -> list[tuple[int, dict[int, list[int]]]]:
        """The perceptual hashes by each group of their bits: close ones agree in one of the groups."""
        groups: list[tuple[int, dict[int, list[int]]]] = [(mask, {}) for mask in bands(NEAR)]
        for value in (int(digits, 16) for digits in self.phashes):
            for mask, found in groups:
                found.setdefault(value & mask, []).append(value)
        return groups

    def looks_like_one(self, phash: int) -> bool:
        """Whether a perceptual hash differs in at most `NEAR` bits from one of the list."""
        return bool(self.phashes) and any(
            (phash ^ value).bit_count() <= NEAR
            for mask, found in self._by_band
            for value in found.get(phash & mask, ())
        )

    def excludes(
        self, url: str | None, sha256s: Iterable[str | None] = (), phashes: Iterable[str | None] = ()
    ) -> str | None:
        """Why a picture is left out: `"url"`, `"domain"`, `"sha256"`, `"phash"`, or `None`.

        Args:
            url: its address.
            sha256s, phashes: of its file on the web and of the crop, in hexadecimal digits.
        """
        if self.sha256s and any(value and value.lower() in self.sha256s for value in sha256s):
            return "sha256"
        if self.phashes and any(value and self.looks_like_one(int(value, 16)) for value in phashes):
            return "phash"
        if not url:
            return None
        if self.urls and _plain_url(url) in self.urls:
            return "url"
        if not self.domains:
            return None
        host = host_of(url)
        # "a.b.org" belongs to the sites "a.b.org", "b.org" and "org"
        parts = host.split(".")
        return "domain" if any(".".join(parts[start:]) in self.domains for start in range(len(parts))) else None


@lru_cache(maxsize=1)
def _read_once(path: str, size: int, time: int) -> OptOut:
    found = OptOut._read(path)
    found.path = path
    return found


def host_of(url: str) -> str:
    """The host of an address, in lower case; "" where there is none."""
    try:
        return (urlsplit(url if "//" in url else f"//{url}").hostname or "").strip(".")
    except ValueError:  # brackets that enclose no valid address
        return ""


def _plain_url(url: str) -> str:
    bare = url.strip().partition("#")[0]
    bare = bare.split("://", 1)[-1]
    host, slash, rest = bare.partition("/")
    return host.lower().removeprefix("www.") + (slash + rest).rstrip("/")


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(prog="python -m dataset_webperson.construction.opt_out", description=__doc__)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="picture files")
    for path in parser.parse_args(arguments).images:
        with open(path, "rb") as file:
            data = file.read()
        phash = perceptual_hash(decode_rgb(data, path))
        sys.stdout.write(f"# {path}\nsha256:{hashlib.sha256(data).hexdigest()}\nphash:{phash:016x}\n")


if __name__ == "__main__":
    sys.exit(main())
