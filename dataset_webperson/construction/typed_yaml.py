"""Dataclasses from the values of a YAML file, with every name and type checked."""

import dataclasses
import types
import typing
from typing import Any

from ..findings import DataError


def fill(kind: type, values: Any, where: str) -> Any:
    """A dataclass `kind` from a mapping, nested sections included. Raises `DataError`, which names the place."""
    if not isinstance(values, dict):
        raise DataError(f"{where}: `name: value` lines belong here, not {values!r:.60}")
    parts = {part.name: part for part in dataclasses.fields(kind)}
    if unknown := sorted(str(name) for name in values.keys() - parts.keys()):
        raise DataError(f"{where}: no such option: {', '.join(unknown)}; the options are {', '.join(parts)}")
    hints = typing.get_type_hints(kind)
    given = {name: _value(hints[name], value, f"{where}: {name}") for name, value in values.items()}
    required = dataclasses.MISSING
    missing = [
        name
        for name, part in parts.items()
        if name not in given and part.default is required and part.default_factory is required
    ]
    if missing:
        raise DataError(f"{where}: {', '.join(missing)} is missing")
    try:
        return kind(**given)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in choices:
        return None
    for choice in choices:
        if isinstance(choice, type) and dataclasses.is_dataclass(choice):
            return fill(choice, value, where)
    if float in choices and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML reads 1e-5 as text
        except ValueError:
            pass
    kinds = [typing.get_origin(choice) for choice in choices]
    if isinstance(value, list) and tuple in kinds:
        element = typing.get_args(choices[kinds.index(tuple)])[0]
        return tuple(_value(element, part, where) for part in value)
    if dict in kinds and not isinstance(value, dict):
        raise DataError(f"{where}: `name: value` lines belong here, not {value!r:.60}")
    plain = tuple(choice for choice in choices if choice in (str, int, float, bool))
    if plain and (not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain)):
        raise DataError(f"{where}: {value!r:.60} is not {' or '.join(choice.__name__ for choice in plain)}")
    return tuple(value) if isinstance(value, list) else value
