"""The one small file that says what a gallery is; it is replaced whole, and read again once it has changed."""

import json
import os
from typing import Any

from dataset_webperson import DataError
from dataset_webperson.files import write_json

from .unchanged import read_if_changed

FILE = "gallery.json"
FORMAT = 1


def read_settings(folder: str | os.PathLike) -> dict[str, Any]:
    """`{"format", "table", "index", "model", "audit", "threshold", "calibration"}`.

    Raises:
        DataError: no gallery there, or of a later format.
    """
    path = os.path.join(folder, FILE)
    try:
        settings = json.loads(_text(folder))
    except FileNotFoundError as error:
        raise DataError(f"{folder}: no gallery there; make one with the command `create`") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); restore the file from a copy") from error
    if settings.get("format") != FORMAT:
        raise DataError(f"{path}: of format {settings.get('format')}, not {FORMAT}; use the version that wrote it")
    return settings


@read_if_changed(FILE)
def _text(folder: str | os.PathLike) -> str:
    with open(os.path.join(folder, FILE), encoding="utf-8") as file:
        return file.read()


def change_settings(folder: str | os.PathLike, **values: Any) -> None:
    """Replace some values."""
    write_json(os.path.join(folder, FILE), {**read_settings(folder), **values})
