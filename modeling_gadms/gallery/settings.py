"""The one small file that says what a gallery is; it is replaced whole, and read again whenever it is needed."""

import json
import os
from typing import Any

from dataset_webperson import DataError
from dataset_webperson.files import write_json

FILE = "gallery.json"
FORMAT = 1


def read_settings(folder: str | os.PathLike) -> dict[str, Any]:
    """`{"format", "table", "model", "audit", "threshold", "calibration"}`.

    Raises:
        DataError: no gallery there, or of a later format.
    """
    path = os.path.join(folder, FILE)
    try:
        with open(path, encoding="utf-8") as file:
            settings = json.load(file)
    except FileNotFoundError as error:
        raise DataError(f"{folder}: no gallery there; make one with the command `create`") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); restore the file from a copy") from error
    if settings.get("format") != FORMAT:
        raise DataError(f"{path}: of format {settings.get('format')}, not {FORMAT}; use the version that wrote it")
    return settings


def change_settings(folder: str | os.PathLike, **values: Any) -> None:
    """Replace some values."""
    write_json(os.path.join(folder, FILE), {**read_settings(folder), **values})
