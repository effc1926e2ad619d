"""What the site of a picture says of its use: in the headers of its answer, where these were kept, and in robots.txt.

| what is kept | what leaves a picture out | reason |
|---|---|---|
| `headers` in its json, or in a column | `X-Robots-Tag` with one of `DIRECTIVES` | `reserved_robots_tag` |
| the same | `TDM-Reservation: 1` | `reserved_tdm` |
| `robots.folder`, files `HOST.txt` | rules (RFC 9309) for one of `robots.agents` | `reserved_robots_txt` |

Nothing is fetched: what was not kept is not known. img2dataset keeps no headers, but obeys `X-Robots-Tag` itself; it
does not ask for robots.txt. Licences in pages, `ai.txt`, `/.well-known/tdmrep.json` and terms of service are not read.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote, urlsplit

DIRECTIVES = frozenset(("noai", "noimageai", "noindex", "noimageindex", "none"))
AGENTS = ("img2dataset", "CCBot")  # who downloads, and who found the addresses of COYO
_WITH_VALUE = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
_LINE = re.compile(r"\s*([A-Za-z-]+)\s*:\s*([^#]*)")
_MOST_BYTES = 500_000  # of a robots.txt, as RFC 9309 has it


@dataclass(frozen=True)
class RobotsOptions:
    """The files robots.txt that were fetched with the pictures.

    Args:
        folder: of files `HOST.txt`, such as `www.example.org.txt`; a host without one reserves nothing.
        agents: names of crawlers; a picture that one of them may not have is left out.
    """

    folder: str
    agents: tuple[str, ...] = AGENTS

    def forbids(self, url: str | None) -> bool:
        """Whether robots.txt keeps a picture from one of the agents."""
        try:
            parts = urlsplit(url or "")
            host = (parts.hostname or "").strip(".")
        except ValueError:  # brackets that enclose no valid address
            return False
        if not host or not re.fullmatch(r"[\w.-]+", host):
            return False
        rules = _robots_of(os.path.join(self.folder, f"{host}.txt"))
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return rules is not None and not all(rules.allows(agent, path) for agent in self.agents)


@lru_cache(maxsize=4_096)
def _robots_of(path: str) -> "Robots | None":
    try:
        with open(path, "rb") as file:
            return Robots(file.read(_MOST_BYTES).decode("utf-8", "replace"))
    except OSError:
        return None


class Robots:
    """The rules of a robots.txt: of all that match a path the longest decides, and of equal ones that which allows."""

    def __init__(self, text: str):
        self._groups: dict[str, list[tuple[str, bool]]] = {}
        agents: list[str] = []
        begun = False  # with the rules of the present agents
        for line in text.splitlines():
            found = _LINE.match(line)
            if not found:
                continue
            name, value = found[1].lower(), found[2].strip()
            if name == "user-agent":
                agents = [*([] if begun else agents), value.lower()]
                begun = False
                self._groups.setdefault(value.lower(), [])
            elif name in ("allow", "disallow"):
                begun = True
                if value:
                    for agent in agents:
                        self._groups[agent].append((value, name == "allow"))

    def allows(self, agent: str, path: str) -> bool:
        """Whether a crawler may have a path, which includes the query."""
        rules = self._groups.get(agent.lower(), self._groups.get("*", []))
        path = _plain(path)
        matching = [(len(pattern), allowed) for pattern, allowed in rules if _pattern(pattern).match(path)]
        return max(matching)[1] if matching else True


@lru_cache(maxsize=4_096)
def _pattern(text: str) -> re.Pattern[str]:
    """A path of a rule: `*` stands for anything, `$` for the end."""
    whole = text.endswith("$")
    parts = [re.escape(_plain(part)) for part in text.removesuffix("$").split("*")]
    return re.compile(".*".join(parts) + ("$" if whole else ""), re.DOTALL)


def _plain(path: str) -> str:
    return quote(unquote(path, errors="replace"), safe="/?&=:;,+@!~'()")


def reserved_by(headers: Any) -> str:
    """Why the headers of an answer keep a picture out, as `reserved_robots_tag`; "" if they do not.

    >>> reserved_by({"X-Robots-Tag": "img2dataset: noai"}), reserved_by({"tdm-reservation": 0})
    ('reserved_robots_tag', '')

    Args:
        headers: a mapping, or pairs, of names and values; a value may be a list. Anything else says nothing.
    """
    for name, value in _pairs(headers):
        if name == "tdm-reservation" and value.strip() == "1":
            return "reserved_tdm"
        if name == "x-robots-tag" and _excludes(value):
            return "reserved_robots_tag"
    return ""


def _pairs(headers: Any) -> Iterable[tuple[str, str]]:
    if isinstance(headers, str | bytes):
        try:
            headers = json.loads(headers)
        except (ValueError, RecursionError):
            return
    items = headers.items() if isinstance(headers, Mapping) else headers if isinstance(headers, list | tuple) else ()
    for item in items:
        if isinstance(item, list | tuple) and len(item) == 2:
            for value in item[1] if isinstance(item[1], list | tuple) else [item[1]]:
                yield str(item[0]).strip().lower(), str(value)


def _excludes(value: str) -> bool:
    """Whether an X-Robots-Tag speaks to everybody, or to one of `AGENTS`, and has a directive of `DIRECTIVES`."""
    agent, colon, rest = value.partition(":")
    if colon and agent.strip().lower() not in _WITH_VALUE and "," not in agent:
        if agent.strip().lower() not in {"*", *map(str.lower, AGENTS)}:
            return False
        value = rest
    return any(part.strip().lower() in DIRECTIVES for part in value.split(","))
