"""A question to a gallery: which queries can be used, and how what is found becomes results."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataset_webperson import DataError

from .calibration import read_calibration
from .columns import as_given
from .opt_out import read_opt_out
from .rows import Rows
from .searching import Found, Hit, find, first_of_each_group, unit
from .settings import read_settings

MAX_TEXT = 1000  # characters of one phrasing; the model reads 77 tokens, some 300 characters
MAX_RESULTS = 10_000


@dataclass(frozen=True)
class Question:
    """What is looked for.

    Attributes:
        direction (`np.ndarray` of shape `(dimension,)`): the query; its length is that of the scores.
        k (`int`): number of results.
        where (`str`, *optional*): a condition of the table that rows must satisfy.
        exact (`bool`): compare every row.
        left_out (`frozenset[str]`): ids that are not among the results.
        collapse (`str`, *optional*): column of which each value is shown once.
        sentence (`np.ndarray`, *optional*): the part of the query that is text, which calibration judges.
    """

    direction: np.ndarray
    k: int
    where: Any = None
    exact: bool = False
    left_out: frozenset[str] = frozenset()
    collapse: str | None = None
    sentence: np.ndarray | None = None


def weights_of(queries: Sequence[Any], weights: Sequence[float] | None, name: str) -> list[float]:
    """A weight for each query, 1 by default. Raises `DataError` where they do not fit."""
    values = [1.0] * len(queries) if weights is None else [float(weight) for weight in weights]
    if len(values) != len(queries):
        raise DataError(f"{len(values)} weights for {len(queries)} {name}; give one for each")
    if any(not 0 <= value < np.inf for value in values):
        raise DataError(f"weights of {name} are {values}; they are at least 0")
    return values


def refuse_texts(texts: Sequence[str]) -> None:
    """Stop at a description that is none. Raises `DataError`."""
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"a description is text, not {text!r:.60}")
        if not text.strip():
            raise DataError("the description is empty; say whom to look for")
        if len(text) > MAX_TEXT:
            raise DataError(f"a description of {len(text):,} characters; shorten it to {MAX_TEXT:,}")


def refuse_count(k: int) -> None:
    """Stop at a number of results that nobody looks at. Raises `DataError`."""
    if not 1 <= k <= MAX_RESULTS:
        raise DataError(f"k = {k}: ask for 1 to {MAX_RESULTS:,} results")


def answer(folder: str | os.PathLike, current: Callable[[], Rows], question: Question) -> Found:
    """The rows that answer a question, without those of the opt-out list.

    Args:
        folder (`str`): of the gallery.
        current (`Callable`): gives the table that is current, which another process may replace.
        question (`Question`): what is looked for.

    Raises:
        DataError: no column to collapse by, or the gallery was rebuilt while it was searched.
    """
    rows, opt_out, collapse = current(), read_opt_out(folder), question.collapse
    if collapse is not None and collapse not in ("phash", "sha256", *rows.kinds):
        raise DataError(f"no column {collapse!r} to collapse by, only {', '.join(sorted(['phash', *rows.kinds]))}")

    def keep(records: list[dict[str, Any]]) -> list[int]:
        places = [
            place
            for place, row in enumerate(records)
            if row["id"] not in question.left_out and not opt_out.excludes_row(row)
        ]
        if collapse is None:
            return places
        return [places[place] for place in first_of_each_group([records[place] for place in places], collapse)]

    def found() -> Found:
        # every column that is read of the rows the engine proposes costs a search of a million 4 ms
        columns = {"id", "uri", *rows.kinds, *opt_out.columns} | ({collapse} if collapse else set())
        return find(
            rows, question.direction, question.k, columns, where=question.where, exact=question.exact, keep=keep
        )

    try:
        return found()
    except (OSError, RuntimeError, ValueError):
        if current().name != rows.name:  # the query is the old model's, and of no use in the new table
            raise DataError(f"{folder}: was rebuilt by another model just now; ask again") from None
        # another process has purged the version that was being read: once more, from the present one
        return found()


def hits_of(folder: str | os.PathLike, columns: Sequence[str], question: Question, found: Found) -> list[Hit]:
    """Rows as people see them, with the calibrated share where the gallery has one and a sentence was asked.

    Args:
        folder (`str`): of the gallery.
        columns (`Sequence[str]`): the user's.
        question (`Question`): what was looked for.
        found (`Found`): its answer.
    """
    length, shares = float(np.linalg.norm(question.direction)), [None] * len(found.rows)
    if question.sentence is not None and found.rows and read_settings(folder)["calibration"] is not None:
        direction = unit(question.sentence)
        cosines = unit(found.vectors) @ direction
        shares = read_calibration(folder).probabilities(direction, cosines).tolist()
    return [
        Hit(
            row["id"],
            row["uri"],
            float(length * cosine),
            share,
            {name: as_given(row.get(name)) for name in columns},
        )
        for row, cosine, share in zip(found.rows, found.cosines, shares, strict=True)
    ]
