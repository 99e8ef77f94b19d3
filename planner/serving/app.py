"""What a client sees: routes, keys, admission, answers whole or as a stream.

Built on Starlette and uvicorn: of what an HTTP server needs they leave out only what is ours, and they hand over
requests before the body is read, which bounds need. FastAPI would add validation that pydantic does here in one line.
LitServe runs models in processes of its own and batches by its own rules, which know no plan. The serving parts of
transformers run vision models one request at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from planner.errors import PlannerError
from planner.runtime.imaging.image_cache import ImageCache
from planner.serving import protocol
from planner.serving.job import Job
from planner.serving.limits import Admission, Limits, Refused, Ticket
from planner.serving.metrics import Metrics
from planner.serving.pictures import fetched
from planner.serving.prompts import Prompts
from planner.serving.protocol import ChatRequest
from planner.serving.scheduler import Run, Scheduler

_log = logging.getLogger(__name__)
#: Requests whose pictures are decoded at once: only so many are in memory whole.
PREPARING = 2
#: HTTP status of a request whose client has gone, in logs and metrics.
GONE = 499


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
        return JSONResponse(listed[_known(request.path_params["name"], listed)])

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
        return _error(error)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", _Chat(listed, scheduler, prompts, admission, metrics), methods=["POST"]),
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
                await _error(refused)(scope, receive, send)
                return
        await self._app(scope, receive, send)


@dataclass
class _Chat:
    """``POST /v1/chat/completions``, from the first byte to the last."""

    models: Mapping[str, Any]
    scheduler: Scheduler
    prompts: Prompts
    admission: Admission
    metrics: Metrics
    preparing: anyio.CapacityLimiter | None = field(default=None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply, limits = _Reply(scope, receive, send), self.admission.limits
        self.preparing = self.preparing or anyio.CapacityLimiter(PREPARING)
        try:
            request = Request(scope, receive)
            with self.admission.enter(_declared_bytes(request, limits)) as ticket, anyio.fail_after(limits.seconds):
                job = await self._job(request, ticket, reply)
                if not await _while_connected(receive, partial(self._answer, job, reply)):
                    reply.status = GONE
        except Refused as refused:
            await reply.refuse(refused)
        except TimeoutError:
            await reply.refuse(Refused(504, f"The request took more than {limits.seconds:g} seconds", "timeout"))
        except ClientDisconnect:  # before the body was whole
            pass
        except Exception:
            _log.exception("a request failed")
            await reply.refuse(Refused(500, "The server failed to answer. Its log says why", "internal_error"))
        finally:
            self.metrics.replied(reply.model, reply.status)

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await anyio.to_thread.run_sync(function, *args, limiter=self.preparing)

    async def _job(self, request: Request, ticket: Ticket, reply: _Reply) -> Job:
        """Reads a request and makes a job of it. What was sent is let go on return: only the job's inputs wait."""
        limits = self.admission.limits
        body = await _body(request, limits)
        size = len(body)
        asked: ChatRequest = await self._in_thread(protocol.read_request, body, limits.values)
        del body
        reply.model = _known(asked.model, self.models)
        web = await fetched(asked.urls, self.prompts.sources, limits, ticket, size)
        job: Job = await self._in_thread(self.prompts.job, asked, web)
        ticket.hold(job.bytes)
        return job

    async def _answer(self, job: Job, reply: _Reply) -> None:
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        job.tell = lambda piece: _tell(loop, pieces, piece)
        self.scheduler.submit(job)
        try:
            if job.watched:
                await _stream(job, pieces, reply)
            else:
                text = "".join([piece async for piece in _until_end(pieces)])
                _check(job)
                await reply.json(protocol.completion(reply.identity, job.model, text, job.finish, job.usage()))
        finally:
            self.scheduler.cancel(job)
        self.metrics.answered(job, time.monotonic() - job.arrived)


async def _stream(job: Job, pieces: asyncio.Queue[str | None], reply: _Reply) -> None:
    """The answer as server-sent events. The first comes with the first token, so that until then a failure is an HTTP
    status."""
    first = await pieces.get()
    _check(job)
    identity, model = reply.identity, job.model
    await reply.event(protocol.chunk(identity, model, {"role": "assistant", "content": ""}))
    if first is not None:
        await reply.event(protocol.chunk(identity, model, {"content": first}))
        async for piece in _until_end(pieces):
            await reply.event(protocol.chunk(identity, model, {"content": piece}))
    _check(job)
    await reply.event(protocol.chunk(identity, model, {}, job.finish))
    if job.counted:
        await reply.event(protocol.usage_chunk(identity, model, job.usage()))
    await reply.event("[DONE]")
    await reply.end()


async def _until_end(pieces: asyncio.Queue[str | None]) -> AsyncIterator[str]:
    while (piece := await pieces.get()) is not None:
        yield piece


def _tell(loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[str | None], piece: str | None) -> None:
    """From the scheduler's thread to the event loop, which may be closed where a server was killed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(pieces.put_nowait, piece)


def _check(job: Job) -> None:
    """Raises why there is no answer, where there is none."""
    if isinstance(job.error, PlannerError):
        raise Refused(400, str(job.error), "invalid_prompt") from job.error
    if job.error is not None:
        raise Refused(500, "The model failed on this request. The server's log says why", "internal_error")


class _Reply:
    """What goes back to a client.

    Attributes:
        identity: of the answer.
        model: of the answer, for the metrics.
        status: what was sent; `GONE` until something was.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self.identity, self.model, self.status = f"chatcmpl-{uuid.uuid4().hex}", "unknown", GONE
        self._streaming = False

    async def json(self, data: Mapping[str, Any]) -> None:
        """A whole answer."""
        self.status = 200
        await JSONResponse(data)(self._scope, self._receive, self._send)

    async def event(self, data: dict[str, Any] | str) -> None:
        """A piece of a stream."""
        if not self._streaming:
            self.status, self._streaming = 200, True
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": protocol.event(data), "more_body": True})

    async def end(self) -> None:
        """The end of a stream."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def refuse(self, refused: Refused) -> None:
        """An error; in a stream that has begun its last event. Who does not read it is not waited for."""
        self.status = refused.status
        with anyio.move_on_after(1):
            if self._streaming:
                await self.event(protocol.error_body(refused))
                await self.end()
            else:
                await _error(refused)(self._scope, self._receive, self._send)


def _error(refused: Refused) -> Response:
    headers = {"Retry-After": "1"} if refused.status in (429, 503) else None
    return JSONResponse(protocol.error_body(refused), refused.status, headers)


def _known(name: str, models: Mapping[str, Any]) -> str:
    if name not in models:
        raise Refused(404, f"There is no model {name[:200]!r} here. Models: {', '.join(models)}", "model_not_found")
    return name


def _declared_bytes(request: Request, limits: Limits) -> int:
    """Bytes of a request's body, as its head says; the largest that is taken where it does not.

    Raises:
        Refused: 413, it is too large; 415, it is no JSON. A browser asks before it sends JSON to another site, and gets
            no leave: no web page can use a server on its visitor's machine.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "Send the request as application/json", "invalid_content_type")
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdecimal() else limits.body_bytes
    if size > limits.body_bytes:
        raise _too_large(limits)
    return size


async def _body(request: Request, limits: Limits) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limits.body_bytes:
            raise _too_large(limits)
    return bytes(body)


def _too_large(limits: Limits) -> Refused:
    return Refused(413, f"The request is larger than {limits.body_bytes:,} bytes. Send smaller images", "too_large")


async def _while_connected(receive: Receive, work: Callable[[], Awaitable[None]]) -> bool:
    """Do some work, unless the client goes: it is cancelled then. Whether it was done."""
    failure: Exception | None = None
    done = False
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            await work()
            done = True
        except Exception as error:
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return done
