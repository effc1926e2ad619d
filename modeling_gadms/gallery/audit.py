"""A record of who asked what, when and why, kept where the owner of a gallery switches it on."""

import datetime
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dataset_webperson import DataError

from .searching import Hit
from .settings import change_settings, read_settings

FILE = "audit.jsonl"


class Audit:
    """The audit log of a gallery: `audit.jsonl`, one object a line, only ever appended to.

    Args:
        folder (`str`): of the gallery.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = folder
        self.path = os.path.join(folder, FILE)

    @property
    def enabled(self) -> bool:
        """Whether queries are recorded; off unless the owner switched it on."""
        return bool(read_settings(self.folder)["audit"])

    def switch(self, on: bool) -> None:
        """Switch it on or off; what was recorded stays."""
        change_settings(self.folder, audit=on)

    @contextmanager
    def asked(self, who: str, query: str, purpose: str | None) -> Iterator[list[Hit]]:
        """A query that is being answered: refused before without a purpose, recorded after with what is shown.

        Args:
            who, query, purpose: as in [`record`].

        Yields:
            a list that takes what is shown.
        """
        self.refuse_without_purpose(purpose)
        shown: list[Hit] = []
        yield shown
        self.record(who, query, purpose or "", shown)

    def refuse_without_purpose(self, purpose: str | None) -> None:
        """Stop a query that does not say what it is for, where queries are recorded.

        Raises:
            DataError: no purpose is given.
        """
        if self.enabled and not (purpose or "").strip():
            raise DataError("this gallery records its queries: say what the search is for as its purpose")

    def record(self, who: str, query: str, purpose: str, hits: Sequence[Hit]) -> None:
        """Append one query; nothing while the log is off.

        Args:
            who (`str`): who asked, as far as it is known.
            query (`str`): what was asked.
            purpose (`str`): why.
            hits (`Sequence[Hit]`): what was shown; ids and scores are kept.

        Raises:
            DataError: no purpose is given.
        """
        if not self.enabled:
            return
        self.refuse_without_purpose(purpose)
        line = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "who": who,
            "query": query,
            "purpose": purpose.strip(),
            "hits": [{"id": hit.id, "uri": hit.uri, "score": round(hit.score, 4)} for hit in hits],
        }
        with open(self.path, "a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # lines of several processes do not mix
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
