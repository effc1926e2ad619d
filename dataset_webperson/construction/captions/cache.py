"""Answers that were paid for, kept in a file that outlives a killed process.

One json line per answer, appended as soon as it comes. A line that was cut off by the end of the process is passed
over. One process writes to a file at a time: each shard has its own, so that no lock is needed on any file system.
Lines without a key tell what was paid for replies of no use, so that the tokens of all runs together are known.
"""

import hashlib
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from glob import escape, glob
from typing import Any

from ...files import write_json

TOKENS = ("prompt_tokens", "completion_tokens")
_SPENT = ".spent.json"


@dataclass(frozen=True)
class Answer:
    """One answer of a caption server.

    Args:
        text: the message.
        cut_off: it ran out of tokens.
        prompt_tokens, completion_tokens: as the server counted them, 0 where it did not.
    """

    text: str
    cut_off: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0


def cache_key(*parts: str | int | float) -> str:
    """A key of everything that an answer depends on."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class AnswerCache:
    """A mapping from keys to answers on disk; use it in a `with` block. A broken line counts as never written.

    Attributes:
        spent: tokens of all runs, by name and captioner: `prompt_tokens1`, `completion_tokens2`.
    """

    def __init__(self, path: str):
        self.path = path
        self.spent: Counter[str] = Counter()
        self._answers: dict[str, Answer] = {}

    def __enter__(self) -> "AnswerCache":
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        ends_whole = True
        if os.path.exists(self.path):
            with open(self.path, "rb") as file:
                for line in file:
                    ends_whole = line.endswith(b"\n")
                    self._remember(line)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if not ends_whole:
            os.write(self._file, b"\n")  # the next line must not be glued to the torn one
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._file)
        write_json(os.path.splitext(self.path)[0] + _SPENT, dict(sorted(self.spent.items())))

    def _remember(self, line: bytes) -> None:
        try:
            fields = json.loads(line)
            self._count(fields, fields.pop("captioner", 0))
            key = fields.pop("key")
            if fields["text"] is None:
                self._answers.pop(key, None)
            else:
                self._answers[key] = Answer(**fields)
        except (ValueError, TypeError, KeyError, AttributeError):
            return

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        """The answer kept under `key`."""
        return self._answers.get(key)

    def put(self, key: str, answer: Answer, captioner: int = 0) -> None:
        """Keep an answer of captioner 1 or 2: it is with the operating system when this returns."""
        self._append({"key": key, **asdict(answer), "captioner": captioner})
        self._answers[key] = answer

    def forget(self, key: str) -> None:
        """Drop an answer, so that it is asked for again; what it cost stays counted."""
        self._append({"key": key, "text": None})
        self._answers.pop(key, None)

    def waste(self, captioner: int, prompt_tokens: int, completion_tokens: int) -> None:
        """Count the tokens of a reply that is of no use."""
        if prompt_tokens or completion_tokens:
            self._append(dict(zip(TOKENS, (prompt_tokens, completion_tokens), strict=True)) | {"captioner": captioner})

    def _append(self, fields: dict[str, Any]) -> None:
        os.write(self._file, (json.dumps(fields) + "\n").encode())
        self._count(fields, fields.get("captioner", 0))

    def _count(self, fields: dict[str, Any], captioner: int) -> None:
        for name in TOKENS:
            if isinstance(tokens := fields.get(name), int) and tokens:
                self.spent[f"{name}{captioner}"] += tokens


def tokens_spent(folder: str) -> Counter[str]:
    """The tokens that all shards of a folder of answers cost, over all runs; see `AnswerCache.spent`."""
    total: Counter[str] = Counter()
    for path in glob(os.path.join(escape(folder), "*" + _SPENT)):
        with open(path, encoding="utf-8") as file:
            total.update(json.load(file))
    return total
