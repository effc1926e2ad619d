"""A small language of conditions on metadata, and the engine's SQL for it.

    camera = 3 and time between '2024-01-01' and '2024-02-01' and not (site like 'north%' or night = true)

Nothing of the user's text reaches the engine as it is: names are looked up among the columns, literals are written
anew. A comparison with a missing value is neither true nor false, as in SQL: `camera != 3` leaves out rows without a
camera, and `camera is null` finds them.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from dataset_webperson import DataError

from .columns import parse_time

MAX_CHARACTERS = 2000
MAX_DEPTH = 30  # of parentheses and `not`
_COMPARISONS = {"=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_KEYWORDS = ("and", "or", "not", "in", "between", "like", "is", "null", "true", "false")
_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])"
    r"|(?P<word>[A-Za-z_]\w*)|(?P<sign>==|!=|<>|<=|>=|[=<>(),]))"
)


def to_sql(text: str, columns: Mapping[str, str]) -> str:
    """The condition as SQL.

    Args:
        text (`str`): conditions `name = literal` (also `!= < <= > >=`), `name in (..)`, `name between a and b`,
            `name like 'a%'`, `name is null`, each but the first also with `not`; joined by `and`, `or`, `not` and
            parentheses. Literals are numbers, `'texts'` (a quote is doubled), `true`, `false`; a time is a text.
        columns (`Mapping[str, str]`): the kind of each known column.

    Raises:
        DataError: it cannot be understood, a column is unknown, or a literal does not fit its column.

    >>> to_sql("camera in (1, 2) and not name = 'O''Neill'", {"camera": "number", "name": "text"})
    "(`camera` in (1.0, 2.0) and (not (`name` = 'O''Neill')))"
    """
    return _Parser(text, columns).parse()


class _Parser:
    """Recursive descent; each method reads what it is named for and returns its SQL."""

    def __init__(self, text: str, columns: Mapping[str, str]) -> None:
        if len(text) > MAX_CHARACTERS:
            raise DataError(f"filter of {len(text):,} characters: at most {MAX_CHARACTERS:,}; shorten it")
        self.text, self.columns = text, columns
        self.tokens = self._split()
        self.place = self.depth = 0

    def _split(self) -> list[tuple[str, str]]:
        tokens, place = [], 0
        while self.text[place:].strip():
            match = _TOKEN.match(self.text, place)
            if match is None:
                self._fail(f"{self.text[place:].strip()[:20]!r} is not understood")
            kind = str(match.lastgroup)
            value = match[kind]
            if kind == "word" and value.lower() in _KEYWORDS:
                kind, value = "keyword", value.lower()
            tokens.append((kind, value))
            place = match.end()
        return [*tokens, ("end", "")]

    def _fail(self, what: str) -> NoReturn:
        shown = " ".join(self.text.split())
        shown = f"{shown[:80]}..." if len(shown) > 80 else shown
        raise DataError(f"filter {shown!r}: {what}; write e.g. camera = 3 and time > '2024-01-01'")

    def _next(self, *values: str) -> bool:
        """Whether the next token is one of these keywords or signs; if so it is passed."""
        kind, value = self.tokens[self.place]
        if kind in ("keyword", "sign") and value in values:
            self.place += 1
            return True
        return False

    def _need(self, value: str) -> None:
        if not self._next(value):
            self._fail(f"{value!r} is missing before {self._shown()}")

    def _shown(self) -> str:
        kind, value = self.tokens[self.place]
        return "the end" if kind == "end" else repr(value[:40])

    def parse(self) -> str:
        sql = self.either()
        if self.tokens[self.place][0] != "end":
            self._fail(f"{self._shown()} is not expected")
        return sql

    def either(self) -> str:
        parts = [self.both()]
        while self._next("or"):
            parts.append(self.both())
        return parts[0] if len(parts) == 1 else f"({' or '.join(parts)})"

    def both(self) -> str:
        parts = [self.negation()]
        while self._next("and"):
            parts.append(self.negation())
        return parts[0] if len(parts) == 1 else f"({' and '.join(parts)})"

    def negation(self) -> str:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._fail(f"more than {MAX_DEPTH} parentheses within each other")
        if self._next("not"):
            sql = f"(not ({self.negation()}))"
        elif self._next("("):
            sql = self.either()
            self._need(")")
        else:
            sql = self.condition()
        self.depth -= 1
        return sql

    def condition(self) -> str:
        kind, name = self.tokens[self.place]
        if kind != "word":
            self._fail(f"the name of a column is missing before {self._shown()}")
        if name not in self.columns:
            self._fail(f"no column {name!r}, only {', '.join(sorted(self.columns))}")
        self.place += 1
        column = f"`{name}`"
        kind, value = self.tokens[self.place]
        if kind == "sign" and value in _COMPARISONS:
            self.place += 1
            if self.columns[name] == "bool" and _COMPARISONS[value] not in ("=", "!="):
                self._fail(f"{name} holds true or false, which {value!r} cannot compare")
            return f"{column} {_COMPARISONS[value]} {self.literal(name)}"
        if self._next("is"):
            word = "is not null" if self._next("not") else "is null"
            self._need("null")
            return f"{column} {word}"
        negated = "not " if self._next("not") else ""
        if self._next("in"):
            self._need("(")
            values = [self.literal(name)]
            while self._next(","):
                values.append(self.literal(name))
            self._need(")")
            return f"{column} {negated}in ({', '.join(values)})"
        if self._next("between"):
            least = self.literal(name)
            self._need("and")
            return f"{column} {negated}between {least} and {self.literal(name)}"
        if self._next("like"):
            if self.columns[name] != "text":
                self._fail(f"like compares texts, and {name} holds {self.columns[name]}")
            return f"{column} {negated}like {self.literal(name)}"
        self._fail(f"a comparison with {name} is missing before {self._shown()}")

    def literal(self, name: str) -> str:
        kind, value = self.tokens[self.place]
        if kind == "end":
            self._fail("a value is missing at the end")
        wanted = self.columns[name]
        self.place += 1
        if wanted == "number" and kind == "number" and math.isfinite(float(value)):
            return repr(float(value))
        if wanted == "bool" and kind == "keyword" and value in ("true", "false"):
            return value
        if kind == "text":
            plain: Any = value[1:-1].replace("''", "'")
            if wanted == "text":
                return _quoted(plain)
            if wanted == "time":
                try:
                    return f"timestamp {_quoted(parse_time(plain).isoformat(sep=' '))}"
                except ValueError:
                    self._fail(f"{plain[:40]!r} is no time; times look like '2024-01-31' or '2024-01-31 18:30'")
        examples = {"number": "3", "text": "'north'", "bool": "true", "time": "'2024-01-31'"}
        self._fail(f"{name} holds {wanted}, as {examples[wanted]}, not {value[:40]}")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def any_of(column: str, values: list[str]) -> str:
    """SQL that holds where a text column of the gallery's own is one of some values."""
    return f"`{column}` in ({', '.join(_quoted(value) for value in values)})" if values else "false"


def equals(column: str, value: str) -> str:
    """SQL that holds where a text column of the gallery's own has a value."""
    return f"`{column}` = {_quoted(value)}"
