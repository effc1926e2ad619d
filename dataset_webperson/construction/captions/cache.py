"""Answers that were paid for, kept in a file that outlives a killed process.

One json line an answer, appended as soon as it comes. A line that was cut off by the end of the process is passed
over. One process writes to a file at a time: each shard has its own, so that no lock is needed on any file system.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass


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
    """A mapping from keys to answers on disk; use it in a `with` block. A broken line counts as never written."""

    def __init__(self, path: str):
        self.path = path
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

    def _remember(self, line: bytes) -> None:
        try:
            fields = json.loads(line)
            key = fields.pop("key")
            self._answers[key] = Answer(**fields)
        except (ValueError, TypeError, KeyError, AttributeError):
            return

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        """The answer kept under `key`."""
        return self._answers.get(key)

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer: it is with the operating system when this returns."""
        line = json.dumps({"key": key, **asdict(answer)}) + "\n"
        os.write(self._file, line.encode())
        self._answers[key] = answer
