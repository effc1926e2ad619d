"""The page: a form, what it found, and why. It works without its script, which only spares reloading."""

import base64
import io
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response
from fastapi import Query as Parameter
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from dataset_webperson import DataError
from dataset_webperson.pages import render

from ..asking import MAX_TEXT
from ..explaining import Explanation
from ..gallery import Gallery
from ..models import public_facts
from .api import results_of, who_asks
from .errors import explain_error
from .filters import FILTER, where_of
from .guard import LOGIN, Door
from .limits import MAX_UPLOAD, Workers
from .queries import MAX_PURPOSE, Query, Text, decode_upload, explain, query_of_form, search

_KEPT_SIDE = 448  # pixels of an uploaded image as the page keeps it for the next search
_REFUSED = (DataError, ValidationError, HTTPException)


def page_router(gallery: Gallery, workers: Workers) -> APIRouter:
    """The pages of a gallery; the API's documentation leaves them out."""
    router = APIRouter(include_in_schema=False)

    def page(query: Query, filters: Mapping[str, str], status: int = 200, **values: Any) -> HTMLResponse:
        values = {"results": None, "problem": None, **values}
        html = render(
            "gallery.html",
            title=gallery.path.resolve().name,
            num_images=len(gallery),
            model=public_facts(gallery.model_facts)["id"] or "a model",
            columns=gallery.columns,
            needs_purpose=gallery.audit.enabled,
            max_text=MAX_TEXT,
            max_upload=MAX_UPLOAD,
            query=query,
            uploads=[base64.b64encode(data).decode("ascii") for data in query.uploads],
            filters=filters,
            **values,
        )
        return HTMLResponse(html, status)

    @router.get("/")
    async def first_page() -> HTMLResponse:
        return page(Query(), {})

    @router.post("/")
    async def found_page(request: Request) -> HTMLResponse:
        query, filters = Query(), {}
        try:
            async with request.form(max_files=4, max_fields=300, max_part_size=MAX_UPLOAD) as form:
                filters = {name: str(value) for name, value in form.items() if name.startswith(FILTER)}
                query = await query_of_form(form)
            where = where_of(query.where, filters, gallery.columns)
            query = query.model_copy(update={"uploads": await workers.run(_shrink, query.uploads)})
            hits = await workers.run(search, gallery, query.model_copy(update={"where": where}), who_asks(request))
        except _REFUSED as error:
            status, problem = explain_error(error, gallery)
            return page(query, filters, status, problem=problem)
        return page(query, filters, results=results_of(gallery, hits))

    @router.get("/why")
    async def why_page(
        request: Request,
        text: Annotated[list[Text], Parameter(max_length=10)],
        id: Annotated[str, Parameter(max_length=200)],
        purpose: Annotated[str, Parameter(max_length=MAX_PURPOSE)] = "",
    ) -> HTMLResponse:
        shown: dict[str, Any] = {"title": "Why it matches", "id": id, "problem": None, "cases": []}
        try:
            who = who_asks(request)
            shown["cases"] = [_case(await workers.run(explain, gallery, part, id, purpose, who)) for part in text]
        except _REFUSED as error:
            status, problem = explain_error(error, gallery)
            return HTMLResponse(render("why.html", **shown | {"problem": problem}), status)
        return HTMLResponse(render("why.html", **shown))

    return router


def login_router(door: Door) -> APIRouter:
    """The page that asks for the token."""
    router = APIRouter(include_in_schema=False)

    @router.get(LOGIN)
    async def login_page() -> HTMLResponse:
        return HTMLResponse(render("login.html", title="Gallery", problem=None))

    @router.post(LOGIN)
    async def log_in(request: Request, token: Annotated[str, Form(max_length=500)] = "") -> Response:
        if not door.is_token(token.strip()):
            problem = "This is not the token of this gallery"
            return HTMLResponse(render("login.html", title="Gallery", problem=problem), 401)
        response = RedirectResponse("/", 303)
        door.let_in(request, response)
        return response

    return router


def _case(found: Explanation) -> dict[str, Any]:
    """An explanation as the page draws it, with `share`s from -1 to 1 of the largest."""
    most = max((abs(value) for _, value in found.words), default=0.0) or 1.0
    words = [{"text": word, "value": value, "share": value / most} for word, value in found.words]
    patches = found.patches / (abs(found.patches).max(initial=0.0) or 1.0)
    return {"score": found.score, "words": words, "patches": patches.tolist(), "against": found.against}


def _shrink(uploads: list[bytes]) -> list[bytes]:
    """Uploaded images as the page keeps them, small, so that the next search can have them too."""
    kept = []
    for data in uploads:
        image = decode_upload(data)
        image.thumbnail((_KEPT_SIDE, _KEPT_SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95)
        kept.append(buffer.getvalue())
    return kept
