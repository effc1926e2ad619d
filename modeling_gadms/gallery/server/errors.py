"""One line for everything that goes wrong, and never a traceback for the client."""

import os
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from dataset_webperson import DataError
from dataset_webperson.command_line import in_one_line

from ..gallery import Gallery

_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^/\s'\"]+/)+")  # of an absolute path, without its last name
_LONGEST = 500  # characters of a problem: a client's own input does not come back whole


def explain_error(error: Exception, gallery: Gallery) -> tuple[int, str]:
    """The HTTP status and the line that a client is told of a mistake; of files, their last names alone."""
    if isinstance(error, ValidationError | RequestValidationError):
        status, problem = 422, "; ".join(_field_problem(part) for part in error.errors()[:3])
    elif isinstance(error, HTTPException):
        status, problem = error.status_code, error.detail
    elif isinstance(error, DataError):
        status, problem = 400, without_folders(in_one_line(error), gallery)
    else:  # a bug: the server prints its traceback, where the owner sees it
        status, problem = 500, "server: failed at this request; its terminal says why"
    problem = " ".join(problem.split())
    return status, problem if len(problem) <= _LONGEST else problem[: _LONGEST - 1] + "…"


def _field_problem(part: Any) -> str:
    """`texts.0: String should have at most 1000 characters`"""
    place = ".".join(str(step) for step in part["loc"] if step not in ("body", "query", "path"))
    return f"{place or 'query'}: {part['msg']}"


def without_folders(text: str, gallery: Gallery) -> str:
    """A problem without the folders of this machine. Those of the gallery and its model may have spaces in them."""
    known = {str(gallery.path), str(gallery.path.resolve())}
    try:
        facts = gallery.model_facts
        known |= {str(facts[name]) for name in ("id", "image_tower_file") if facts.get(name)}
    except DataError:  # the gallery itself cannot be read
        pass
    for path in sorted(filter(os.path.isabs, known), key=len, reverse=True):
        text = text.replace(path, os.path.basename(path))
    return _FOLDERS.sub("", text)


def answer_errors(app: FastAPI, gallery: Gallery) -> None:
    """Let an application answer every error with `{"error": line}`."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        status, problem = explain_error(error, gallery)
        return JSONResponse({"error": problem}, status, getattr(error, "headers", None))

    for kind in (ValidationError, RequestValidationError, HTTPException, DataError, Exception):
        app.add_exception_handler(kind, answer)
