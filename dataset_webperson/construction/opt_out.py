"""The opt-out list: pictures that people or sites asked to be left out, by address, site or content."""

import hashlib
import os
import re
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any
from urllib.parse import urlsplit

from ..findings import DataError

_KINDS = ("url", "sha256", "domain")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class OptOut:
    """The rows to leave out.

    Args:
        urls: whole addresses. Scheme, a leading `www.`, a fragment and a slash at the end make no difference.
        sha256s: hashes of the file on the web or of the crop, 64 hexadecimal digits.
        domains: sites, each including all its subdomains.
    """

    def __init__(self, urls: Iterable[str] = (), sha256s: Iterable[str] = (), domains: Iterable[str] = ()):
        self.path = ""
        self.urls = frozenset(_plain_url(url) for url in urls)
        self.sha256s = frozenset(value.lower() for value in sha256s)
        self.domains = frozenset(domain.lower().strip(".").removeprefix("www.") for domain in domains)

    @cached_property
    def digest(self) -> str:
        """What tells this list from another."""
        entries = [sorted(kind) for kind in (self.urls, self.sha256s, self.domains)]
        return hashlib.sha256(repr(entries).encode()).hexdigest()

    def __bool__(self) -> bool:
        return bool(self.urls or self.sha256s or self.domains)

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
        """Read lines `url:ADDRESS`, `sha256:DIGITS` and `domain:SITE`; empty lines and comments (`#`) are skipped.

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
            bad_hash = kind == "sha256" and not _SHA256.fullmatch(value.lower())
            if kind not in _KINDS or not value or bad_hash:
                raise DataError(
                    f"{path} line {number}: {line[:80]!r} is not an entry; write `url:` or `domain:` and a "
                    "value, or `sha256:` and 64 hexadecimal digits"
                )
            found[kind].append(value)
        return cls(found["url"], found["sha256"], found["domain"])

    def excludes(self, url: str | None, *sha256s: str | None) -> str | None:
        """Why a picture is left out: `"url"`, `"domain"`, `"sha256"`, or `None`."""
        if any(value and value.lower() in self.sha256s for value in sha256s):
            return "sha256"
        if not url:
            return None
        if self.urls and _plain_url(url) in self.urls:
            return "url"
        host = _host(url)
        # "a.b.org" belongs to the sites "a.b.org", "b.org" and "org"
        parts = host.split(".")
        return "domain" if any(".".join(parts[start:]) in self.domains for start in range(len(parts))) else None


@lru_cache(maxsize=1)
def _read_once(path: str, size: int, time: int) -> OptOut:
    found = OptOut._read(path)
    found.path = path
    return found


def _host(url: str) -> str:
    try:
        return (urlsplit(url if "//" in url else f"//{url}").hostname or "").strip(".")
    except ValueError:  # brackets that enclose no valid address
        return ""


def _plain_url(url: str) -> str:
    bare = url.strip().partition("#")[0]
    bare = bare.split("://", 1)[-1]
    host, slash, rest = bare.partition("/")
    return host.lower().removeprefix("www.") + (slash + rest).rstrip("/")
