"""A small language of conditions on metadata, and SQL for it.

    camera = 3 and time between '2024-01-01' and '2024-02-01' and not (site like 'north%' or night = true)

A text becomes a tree, and the tree the engine's language. Nothing of the user's text reaches the engine as it is:
names are looked up among the columns, literals are written anew. A comparison with a missing value is neither true nor
false, as in SQL: `camera != 3` leaves out rows without a camera, and `camera is null` finds them.
"""

import datetime
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

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
    return _sql(parse(text, columns))


@dataclass(frozen=True)
class Comparison:
    """A column compared with literals: one of `= != < <= > >= like`, two of `between`, any of `in`, none of `null`."""

    column: str
    kind: str
    sign: str
    values: tuple[Any, ...] = ()
    negated: bool = False


@dataclass(frozen=True)
class Junction:
    """Conditions joined by `and` or `or`, or one after `not`."""

    word: str
    parts: tuple["Junction | Comparison", ...]


Tree: TypeAlias = Junction | Comparison


def parse(text: str, columns: Mapping[str, str]) -> Tree:
    """The condition as a tree; arguments and errors as in [`to_sql`]."""
    return _Parser(text, columns).parse()


def _sql(tree: Tree) -> str:
    if isinstance(tree, Junction):
        parts = [_sql(part) for part in tree.parts]
        return f"(not ({parts[0]}))" if tree.word == "not" else f"({f' {tree.word} '.join(parts)})"
    column, negated = f"`{tree.column}`", "not " if tree.negated else ""
    values = [_literal(value) for value in tree.values]
    if tree.sign == "null":
        return f"{column} is {negated}null"
    if tree.sign == "in":
        return f"{column} {negated}in ({', '.join(values)})"
    return f"{column} {negated}{tree.sign} {' and '.join(values)}"


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime.datetime):
        return f"timestamp {_quoted(value.isoformat(sep=' '))}"
    return _quoted(value) if isinstance(value, str) else repr(value)


class _Parser:
    """Recursive descent; each method reads what it is named for and returns its tree."""

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

    def parse(self) -> Tree:
        tree = self.either()
        if self.tokens[self.place][0] != "end":
            self._fail(f"{self._shown()} is not expected")
        return tree

    def either(self) -> Tree:
        parts = [self.both()]
        while self._next("or"):
            parts.append(self.both())
        return parts[0] if len(parts) == 1 else Junction("or", tuple(parts))

    def both(self) -> Tree:
        parts = [self.negation()]
        while self._next("and"):
            parts.append(self.negation())
        return parts[0] if len(parts) == 1 else Junction("and", tuple(parts))

    def negation(self) -> Tree:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._fail(f"more than {MAX_DEPTH} parentheses within each other")
        tree: Tree
        if self._next("not"):
            tree = Junction("not", (self.negation(),))
        elif self._next("("):
            tree = self.either()
            self._need(")")
        else:
            tree = self.condition()
        self.depth -= 1
        return tree

    def condition(self) -> Comparison:
        kind, name = self.tokens[self.place]
        if kind != "word":
            self._fail(f"the name of a column is missing before {self._shown()}")
        if name not in self.columns:
            self._fail(f"no column {name!r}, only {', '.join(sorted(self.columns))}")
        self.place += 1
        held = self.columns[name]
        kind, value = self.tokens[self.place]
        if kind == "sign" and value in _COMPARISONS:
            self.place += 1
            sign = _COMPARISONS[value]
            if held == "bool" and sign not in ("=", "!="):
                self._fail(f"{name} holds true or false, which {value!r} cannot compare")
            return Comparison(name, held, sign, (self.literal(name),))
        if self._next("is"):
            negated = self._next("not")
            self._need("null")
            return Comparison(name, held, "null", (), negated)
        negated = self._next("not")
        if self._next("in"):
            self._need("(")
            values = [self.literal(name)]
            while self._next(","):
                values.append(self.literal(name))
            self._need(")")
            return Comparison(name, held, "in", tuple(values), negated)
        if self._next("between"):
            least = self.literal(name)
            self._need("and")
            return Comparison(name, held, "between", (least, self.literal(name)), negated)
        if self._next("like"):
            if held != "text":
                self._fail(f"like compares texts, and {name} holds {held}")
            return Comparison(name, held, "like", (self.literal(name),), negated)
        self._fail(f"a comparison with {name} is missing before {self._shown()}")

    def literal(self, name: str) -> float | bool | str | datetime.datetime:
        kind, value = self.tokens[self.place]
        if kind == "end":
            self._fail("a value is missing at the end")
        wanted = self.columns[name]
        self.place += 1
        if wanted == "number" and kind == "number" and math.isfinite(float(value)):
            return float(value)
        if wanted == "bool" and kind == "keyword" and value in ("true", "false"):
            return value == "true"
        if kind == "text":
            plain = value[1:-1].replace("''", "'")
            if wanted == "text":
                return plain
            if wanted == "time":
                try:
                    return parse_time(plain)
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
