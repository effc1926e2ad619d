"""The application: page and API of one gallery, behind its guard."""

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse

from dataset_webperson.pages import render

from ..gallery import Gallery
from .api import api_router
from .errors import answer_errors
from .guard import Door, Guard
from .limits import BodyLimit, Workers
from .page import login_router, page_router
from .queries import Query


def create_app(gallery: Gallery, *, token: str | None = None, public: bool = False) -> FastAPI:
    """Page and API of a gallery, as an ASGI application.

    Args:
        gallery ([`Gallery`]): what is searched.
        token: what a client must know. Without one, only requests to a name of this machine are answered.
        public: answer everybody, under any name: for a demonstration over drawings, such as a Space.
    """
    # FastAPI's own documentation pages fetch scripts from elsewhere; `/docs` here does not
    app = FastAPI(title=gallery.path.resolve().name, docs_url=None, redoc_url=None)
    workers, door = Workers(), Door(token)
    app.include_router(api_router(gallery, workers))
    app.include_router(page_router(gallery, workers))
    app.include_router(login_router(door))
    answer_errors(app, gallery)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        address, query = str(request.base_url).rstrip("/"), Query.model_json_schema()
        return HTMLResponse(
            render("api.html", title=app.title, paths=app.openapi()["paths"], query=query, address=address)
        )

    app.add_middleware(BodyLimit)
    app.add_middleware(Guard, door=door, public=public)  # the outermost, as it is added last
    return app
