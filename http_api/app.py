"""The FastAPI app: its routes, its description, its documentation page."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import swagger_ui_default_parameters
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.routing import Route
from starlette.types import ASGIApp

from domain.text import json_text
from domain.version import RELEASE
from http_api import audits, counts, events, health, orders, placing, problems, requests
from http_api.edge import Edge, HeadAsGet
from http_api.lean_route import LeanRoute
from http_api.problems import ProblemDocument, documented
from http_api.services import Services

_DESCRIPTION = """
Orders of the checkout saga: each ends completed, rejected or cancelled, or is stuck and waits for an operator.

Every error is an RFC 9457 problem whose `detail` says what to do. After a 503, whose `detail` says whether anything
was done, repeat the request as it is. Amounts are in minor units of the currency.
"""
_FOR_ALL = documented(
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
_PAGE = Path(__file__).parents[1] / "web"
_DOCS_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Checkout API</title>
<link rel="stylesheet" href="/docs/assets/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script src="/docs/begin.js"></script>
</body>
</html>
"""


def build_app(services: Services) -> FastAPI:
    """Build the app on its services."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        tail = asyncio.create_task(services.tail.run())
        try:
            yield
        finally:
            tail.cancel()

    app = FastAPI(
        title="Checkout API",
        version=RELEASE,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.services = services
    routers = [module.router for module in (placing, orders, counts, requests, events, audits)]
    for router in routers:
        app.include_router(router, responses=_FOR_ALL)
    app.include_router(health.router)
    known = [route for router in (*routers, health.router) for route in router.routes if isinstance(route, Route)]
    problems.install(app, known)
    _add_docs(app)
    _add_page(app)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]  # FastAPI's own way to extend it
    return app


def build_door(services: Services) -> ASGIApp:
    """Build all that answers a request: the edge, the usual order's short way, and the app."""
    return Edge(HeadAsGet(LeanRoute(build_app(services), services)))


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description, with the problems that FastAPI does not know of."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes, tags=_TAGS
        )
        schemas = document["components"]["schemas"]
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        problem = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= problem.pop("$defs")
        schemas["ProblemDocument"] = problem
        app.openapi_schema = document
    return app.openapi_schema


_TAGS = [
    {"name": "orders", "description": "Place orders, and follow them."},
    {"name": "operators", "description": "Cancel an order, and help one that is stuck."},
    {"name": "audit", "description": "Whether every invariant of the books holds."},
    {"name": "health", "description": "For load balancers and supervisors; without a key."},
]


def _add_docs(app: FastAPI) -> None:
    """Serve Swagger UI from its package: nothing comes from elsewhere, and no script stands within the page."""
    begin = f"SwaggerUIBundle(Object.assign({json_text(_docs_options())}, {{dom_id: '#swagger-ui'}}));\n"

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_DOCS_PAGE)

    @app.get("/docs/begin.js", include_in_schema=False)
    async def docs_begin() -> Response:
        return Response(begin, media_type="text/javascript")

    assets = str(resources.files("fastapi_offline").joinpath("static"))
    app.mount("/docs/assets", StaticFiles(directory=assets), name="docs")


def _add_page(app: FastAPI) -> None:
    """Serve the operator page."""

    @app.get("/ui", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_PAGE / "index.html")

    app.mount("/ui", StaticFiles(directory=_PAGE, html=True), name="page")


def _docs_options() -> dict[str, Any]:
    return {**swagger_ui_default_parameters, "url": "/openapi.json", "tryItOutEnabled": True}
