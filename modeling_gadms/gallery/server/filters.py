"""The filter fields of the page as one filter text of the gallery."""

from collections.abc import Mapping

from dataset_webperson import DataError

FILTER = "filter."  # the names of filter fields: filter.COLUMN.is, .from and .to
_SIGNS = {"is": "=", "from": ">=", "to": "<="}


def where_of(where: str | None, filters: Mapping[str, str], columns: Mapping[str, str]) -> str | None:
    """The filter that is typed and those that are filled in, joined by `and`; `None` without any.

    Args:
        where: a filter as the gallery reads it, such as `camera = 3 or camera = 5`.
        filters: what the fields hold, by their names; empty ones do not count.
        columns: the gallery's columns, and what each holds.

    Raises:
        DataError: a field is of no column, or holds no number where the column holds numbers.
    """
    parts = [f"({where})"] if where and where.strip() else []
    for field, value in filters.items():
        column, _, way = field.removeprefix(FILTER).rpartition(".")
        if not value.strip():
            continue
        if column not in columns or way not in _SIGNS:
            raise DataError(f"{field}: the gallery has no such filter; reload the page")
        kind = columns[column]
        sign = "like" if kind == "text" and "%" in value else _SIGNS[way]
        parts.append(f"{column} {sign} {_literal(column, value.strip(), kind)}")
    return " and ".join(parts) or None


def _literal(column: str, value: str, kind: str) -> str:
    if kind == "number":
        try:
            return repr(float(value)) if not value.lstrip("+-").isdigit() else str(int(value))
        except ValueError:
            raise DataError(f"{column}: {value[:40]!r} is not a number; write digits") from None
    if kind == "bool":
        return "true" if value == "yes" else "false"
    quoted = value.replace("'", "''")
    return f"'{quoted}'"
