"""The application: routes, error handlers and the outermost layer, put together from settings and plugins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from taskyard import __version__
from taskyard.certificates import check_certificates
from taskyard.database import postgres_url
from taskyard.errors import TaskyardError
from taskyard.metrics import Tally
from taskyard.plugins import Registry
from taskyard.settings import Settings
from taskyard_api import openapi, problems
from taskyard_api.access import Gate
from taskyard_api.draining import Draining
from taskyard_api.edge import BASE, Edge
from taskyard_api.hosts import Hosts, misdirected
from taskyard_api.measures import alarming_requests
from taskyard_api.origins import Origins
from taskyard_api.routes import actions, catalogue, deliveries, health, live, metrics, queues, submissions, tasks
from taskyard_api.service import Service

#: Headers of ours that a web page may read, where web pages may call at all.
EXPOSED = ("ETag", "Idempotency-Replayed", "Location", "Preference-Applied", "RateLimit", "RateLimit-Policy", "Retry-After", "Taskyard-Warning", "X-Request-ID")
#: Answers of so many bytes are compressed for clients that take gzip. This level takes half the time of the default, for a few percent more bytes.
GZIP_FROM, GZIP_LEVEL = 1024, 4
DESCRIPTION = f"""Typed background tasks. The same calls answer under `/api`, and with a trailing slash.
Times are RFC 3339 with an offset, from 1970-01-01 to 9999-12-30; whole numbers are written without a fraction (`5`, not `5.0`); the character
U+0000 is refused wherever it stands, and so is a number that a 64-bit float would change (`1e-400`, or more digits than it has): send such a number
as text. Names of objects come back in another order, and a name that is there twice in one is refused.
Every request may bring an `X-Request-ID`, and every answer has one.
Errors are problem details (RFC 9457); their `type` ends in a stable slug and starts with `{problems.TYPE_PREFIX}`."""


def create_app(settings: Settings, registry: Registry) -> FastAPI:
    """The REST service as an ASGI application.

    It starts while the database is away: calls that need it answer 503 until it is back.

    Raises:
        ConfigurationError: database.url is not set, or is no PostgreSQL URL.
    """
    check_certificates(postgres_url(settings.database))
    own = Tally()
    draining = Draining()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = Service(settings, registry, own)
        try:
            yield
        finally:
            await app.state.service.close()

    app = FastAPI(
        title="Taskyard",
        version=__version__,
        description=DESCRIPTION,
        redirect_slashes=False,
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
        exception_handlers={
            TaskyardError: problems.on_taskyard_error,
            RequestValidationError: problems.on_bad_parameters,
            HTTPException: problems.on_http_error,
        },
    )
    parts = [(BASE, part.router) for part in (live, submissions, actions, tasks, queues, deliveries, catalogue)]
    for prefix, router in (*parts, ("", health.router), ("", metrics.router)):
        app.include_router(router, prefix=prefix)
        own.restore(alarming_requests(router.routes, prefix))
    app.state.draining = draining
    # No key is ever in an answer, and browsers send none by themselves: BREACH finds nothing to guess. Streams of events are not packed.
    app.add_middleware(GZipMiddleware, minimum_size=GZIP_FROM, compresslevel=GZIP_LEVEL)
    if settings.asks_for_keys:
        app.add_middleware(Gate)
    else:
        app.add_middleware(Origins, allowed=settings.api.cors_origins)
    app.add_middleware(Edge, max_body_bytes=settings.api.max_body_bytes, own=own, draining=draining, root_path=settings.api.root_path)
    if settings.api.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.api.cors_origins, allow_methods=["*"], allow_headers=["*"], expose_headers=EXPOSED)
    if (names := settings.host_names) is not None:
        # Around all others: CORS answers some requests by itself.
        app.add_middleware(Hosts, names=names, refuse=Edge(misdirected, max_body_bytes=settings.api.max_body_bytes, own=own, draining=draining))
    _document(app, registry, settings)
    return app


def _document(app: FastAPI, registry: Registry, settings: Settings) -> None:
    """Have /openapi.json show the installed task types."""

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = openapi.document(
                app, registry, with_keys=settings.asks_for_keys, subscriptions=settings.deliveries.subscriptions, root_path=settings.api.root_path
            )
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]  # FastAPI's documented way to change the document
