"""What may be asked: a query, read from JSON or from a form, with a bound on everything in it."""

import base64
import io
import json
import warnings
from typing import Annotated, Any

from PIL import Image
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from dataset_webperson import DataError
from dataset_webperson.images import decode_rgb

from ..asking import MAX_TEXT
from ..explaining import Explanation
from ..gallery import Gallery
from ..searching import Hit
from .limits import MAX_UPLOAD

MAX_RESULTS = 500
MAX_PURPOSE = 500  # characters
MAX_PIXELS = 40_000_000  # of an uploaded image: a small file can unpack to gigabytes

Text = Annotated[str, Field(max_length=MAX_TEXT)]
RowId = Annotated[str, Field(max_length=200)]
Weight = Annotated[float, Field(allow_inf_nan=False)]


class Query(BaseModel):
    """A search: descriptions, images, or both."""

    model_config = ConfigDict(extra="forbid")

    texts: list[Text] = Field(
        default=[], max_length=10, description="Descriptions of one person; several are averaged."
    )
    text_weights: list[Weight] | None = Field(default=None, description="One weight for each description.")
    images: list[RowId] = Field(
        default=[], max_length=10, description="Ids of images of the gallery: more like these."
    )
    uploads: list[Base64Bytes] = Field(
        default=[], max_length=4, description="Image files in base64, as further queries."
    )
    image_weights: list[Weight] | None = Field(
        default=None, description="One weight for each image, those of the gallery first."
    )
    k: int = Field(default=24, ge=1, le=MAX_RESULTS, description="Number of results.")
    where: str | None = Field(
        default=None, max_length=2000, description="Filter on the columns: camera = 3 and hour < 12."
    )
    exact: bool = Field(default=False, description="Compare with every image, also where there is an index.")
    unlike: list[RowId] = Field(
        default=[], max_length=50, description="Ids of images that results should not resemble."
    )
    collapse: str | None = Field(default=None, max_length=200, description="Column of which each value is shown once.")
    purpose: str | None = Field(
        default=None, max_length=MAX_PURPOSE, description="Why this is asked; needed where queries are recorded."
    )


async def read_query(request: Request) -> Query:
    """The query in the body of a request, as JSON or as a form.

    Raises:
        pydantic.ValidationError: a value is missing, of another type, or over its bound.
        HTTPException: the body is of neither kind (415), or is cut off (400).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return Query.model_validate_json(await request.body())
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        async with request.form(max_files=4, max_fields=200, max_part_size=MAX_UPLOAD) as form:
            return await query_of_form(form)
    raise HTTPException(415, f"Content-Type: {kind[:60] or 'missing'}; send application/json or multipart/form-data")


async def query_of_form(form: FormData) -> Query:
    """The query in a form. Its fields are named as those of [`Query`]; `uploads` are files or base64, empty ones none.

    Raises:
        pydantic.ValidationError: a value is of another type, or over its bound.
    """
    values: dict[str, Any] = {}
    for name in Query.model_fields:
        given: list[Any] = [value for value in form.getlist(name) if not isinstance(value, str) or value.strip()]
        if name == "uploads":
            files = [base64.b64encode(await file.read()).decode() for file in given if isinstance(file, UploadFile)]
            given = [value for value in given if isinstance(value, str)] + [file for file in files if file]
        if not given:
            continue
        is_list = name in ("texts", "text_weights", "images", "uploads", "image_weights", "unlike")
        values[name] = given if is_list else given[-1]
    return Query.model_validate(values)


def decode_upload(data: bytes) -> Image.Image:
    """An uploaded image, upright and RGB. Raises `DataError` for what is none, or too large."""
    name = "uploaded image"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:  # its header alone
                pixels = image.width * image.height
    except Exception:  # what is wrong with it is said below
        pixels = 0
    if pixels > MAX_PIXELS:
        raise DataError(f"{name}: {pixels:,} pixels, over the limit of {MAX_PIXELS:,}; send a smaller one")
    return decode_rgb(data, name)


def search(gallery: Gallery, query: Query, who: str) -> list[Hit]:
    """What a query finds, written to the audit log where that is on.

    Raises:
        DataError: the gallery refuses the query, or the log needs a purpose.
    """
    with gallery.audit.asked(who, _in_words(query), query.purpose) as hits:
        # ids are marked as such, so that nothing that a client sends is ever taken for a path
        images = [f"id:{row}" for row in query.images] + [decode_upload(data) for data in query.uploads]
        hits += gallery.search(
            query.texts,
            images,
            text_weights=query.text_weights,
            image_weights=query.image_weights,
            k=query.k,
            where=query.where,
            exact=query.exact,
            unlike=query.unlike,
            collapse=query.collapse,
        )
    return hits


def explain(gallery: Gallery, text: str, row: str, purpose: str, who: str) -> Explanation:
    """Why a row matches, written to the audit log as a search is.

    Raises:
        DataError: the gallery cannot explain it, or the log needs a purpose.
    """
    with gallery.audit.asked(who, json.dumps({"explain": text}, ensure_ascii=False), purpose) as shown:
        found = gallery.explain(text, row)
        shown.append(Hit(row, gallery.uri(row), found.score, None, {}))
    return found


def _in_words(query: Query) -> str:
    """A query as the audit log keeps it; of uploaded images, that there were some."""
    asked = query.model_dump(exclude={"uploads", "purpose"}, exclude_defaults=True)
    if query.uploads:
        asked["uploads"] = len(query.uploads)
    return json.dumps(asked, ensure_ascii=False)
