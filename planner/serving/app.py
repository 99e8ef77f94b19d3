"""Routes and keys.

Built on Starlette and uvicorn: of what an HTTP server needs they leave out only what is ours, and they hand over
requests before the body is read, which bounds need. FastAPI would add validation that pydantic does here in one line.
LitServe runs models in processes of its own and batches by its own rules, which know no plan. The serving parts of
transformers run vision models one request at a time.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from planner.runtime.imaging.image_cache import ImageCache
from planner.serving.chat import Chat, known
from planner.serving.limits import Admission, Limits, Refused
from planner.serving.metrics import Metrics
from planner.serving.prompts import Prompts
from planner.serving.reply import error_response
from planner.serving.scheduler import Run, Scheduler


def create_app(
    models: Mapping[str, Mapping[str, Any]],
    run: Run,
    prompts: Prompts,
    limits: Limits,
    cache: ImageCache | None = None,
    api_key: str | None = None,
    close: Callable[[], None] = lambda: None,
) -> Starlette:
    """The server as an ASGI application.

    Args:
        models: what a request may name as its model, and what `/v1/models` says of each.
        run: answers a batch of jobs of one model.
        prompts: makes jobs of requests.
        limits: bounds.
        cache: the image cache, to be shown in the metrics.
        api_key: what clients must send; None lets everybody in.
        close: called after the last answer.
    """
    metrics, admission = Metrics(), Admission(limits)
    scheduler = Scheduler(run, limits, metrics.batch)
    metrics.watch(scheduler, admission, cache)
    started = int(time.time())
    listed = {
        name: {"id": name, "object": "model", "created": started, "owned_by": "vlm-planner", **facts}
        for name, facts in models.items()
    }

    async def list_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": list(listed.values())})

    async def show_model(request: Request) -> Response:
        return JSONResponse(listed[known(request.path_params["name"], listed)])

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok" if scheduler.alive else "failed"}, 200 if scheduler.alive else 503)

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(scheduler.close)
            close()

    async def refuse(_: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = Refused(error.status_code, str(error.detail), "not_found")
        assert isinstance(error, Refused)
        return error_response(error)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", Chat(listed, scheduler, prompts, admission, metrics), methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", show_model),
            Route("/metrics", show_metrics),
            Route("/health", health),
        ],
        middleware=[Middleware(_Key, api_key=api_key)] if api_key else [],
        exception_handlers={HTTPException: refuse, Refused: refuse},
        lifespan=lifespan,
    )


class _Key:
    """Lets in who knows the key; anybody may ask whether the server is well."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app, self._wanted = app, f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not secrets.compare_digest(given, self._wanted):
                refused = Refused(401, "The API key is missing or wrong", "invalid_api_key")
                await error_response(refused)(scope, receive, send)
                return
        await self._app(scope, receive, send)
