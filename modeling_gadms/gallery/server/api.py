"""The JSON API: search, explain, images, and what the gallery holds."""

import hashlib
import io
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, HTTPException, Path, Request, Response
from fastapi import Query as Parameter
from pydantic import BaseModel

from dataset_webperson import DataError

from ..asking import MAX_TEXT
from ..explaining import Explanation
from ..gallery import Gallery
from ..models import public_facts
from ..searching import Hit
from .errors import without_folders
from .limits import Workers
from .queries import MAX_PURPOSE, Query, explain, read_query, search

LARGEST, SMALLEST = 1024, 16  # pixels of the longer side of an image that is sent
_KEPT = 600  # seconds that a browser may keep an image: one that is removed is to vanish from pages too
# the body is read by hand, for it comes in two forms
_FORMS = ("application/json", "multipart/form-data")
_BODY = {"required": True, "content": {form: {"schema": Query.model_json_schema()} for form in _FORMS}}


class Found(BaseModel):
    """One result."""

    id: str
    uri: str
    image: str
    score: float
    probability: float | None
    fits: bool | None
    metadata: dict[str, Any]


class Results(BaseModel):
    """What a search found, best first. `fits` is false for an image that is probably not described by the query."""

    hits: list[Found]
    threshold: float
    nobody_fits: bool


class Why(BaseModel):
    """Why an image matches: how far the cosine falls without each word, and what each patch of the image adds."""

    score: float
    words: list[tuple[str, float]]
    patches: list[list[float]]
    against: list[tuple[str, float]] | None


def api_router(gallery: Gallery, workers: Workers) -> APIRouter:
    """The routes below `/api`."""
    router = APIRouter(prefix="/api")

    @router.post("/search", response_model=Results, openapi_extra={"requestBody": _BODY})
    async def search_images(request: Request) -> Results:
        """Search by descriptions, images, or both. A form has the fields of the JSON; uploads are then files."""
        query = await read_query(request)
        return results_of(gallery, await workers.run(search, gallery, query, who_asks(request)))

    @router.get("/explain", response_model=Why)
    async def explain_match(
        request: Request,
        text: Annotated[str, Parameter(min_length=1, max_length=MAX_TEXT, description="The description.")],
        id: Annotated[str, Parameter(min_length=1, max_length=200, description="The image, as a search names it.")],
        purpose: Annotated[
            str, Parameter(max_length=MAX_PURPOSE, description="Why; needed where queries are recorded.")
        ] = "",
    ) -> Why:
        """Why an image of the gallery matches a description."""
        return why_of(await workers.run(explain, gallery, text, id, purpose, who_asks(request)))

    @router.get("/images/{id}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def image(
        request: Request,
        id: Annotated[str, Path(max_length=200, description="As a search names it.")],
        size: Annotated[int, Parameter(ge=SMALLEST, le=LARGEST, description="Longer side at most.")] = LARGEST,
    ) -> Response:
        """An image of the gallery, as JPEG."""
        try:
            data = await workers.run(jpeg_of, gallery, id, size)
        except DataError as error:
            raise HTTPException(404, without_folders(str(error), gallery)) from error
        headers = {"Cache-Control": f"private, max-age={_KEPT}", "ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"'}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type="image/jpeg", headers=headers)

    @router.get("/columns")
    async def columns() -> dict[str, str]:
        """The columns that a filter can name, and what each holds: text, number, time or bool."""
        return gallery.columns

    @router.get("/stats")
    async def stats() -> dict[str, Any]:
        """What the gallery holds, and the model that encoded it."""
        found = await workers.run(gallery.stats)
        return {**found, "model": public_facts(found["model"])}

    return router


def results_of(gallery: Gallery, hits: list[Hit]) -> Results:
    threshold = gallery.threshold  # read from disk
    found = [
        Found(
            id=hit.id,
            uri=hit.uri,
            image=f"/api/images/{hit.id}",
            score=hit.score,
            probability=hit.probability,
            fits=None if hit.probability is None else hit.probability >= threshold,
            metadata=hit.metadata,
        )
        for hit in hits
    ]
    nobody = bool(found) and all(hit.fits is False for hit in found)
    return Results(hits=found, threshold=threshold, nobody_fits=nobody)


def why_of(explanation: Explanation) -> Why:
    patches = np.asarray(explanation.patches, dtype=np.float64).tolist()
    return Why(score=explanation.score, words=explanation.words, patches=patches, against=explanation.against)


def jpeg_of(gallery: Gallery, row: str, size: int) -> bytes:
    """An image of the gallery, scaled down to `size` where it is larger. Raises `DataError` where there is none."""
    image = gallery.image(row)
    image.thumbnail((size, size))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def who_asks(request: Request) -> str:
    """The address of whoever sent a request."""
    return request.client.host if request.client else "unknown"
