"""``POST /v1/chat/completions``, from the first byte to the last."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from planner.errors import PlannerError
from planner.serving import protocol
from planner.serving.job import Job
from planner.serving.limits import Admission, Limits, Refused, Ticket
from planner.serving.metrics import Metrics
from planner.serving.pictures import fetched
from planner.serving.prompts import Prompts
from planner.serving.protocol import ChatRequest
from planner.serving.reply import GONE, Reply
from planner.serving.scheduler import Scheduler

_log = logging.getLogger(__name__)
#: Requests whose pictures are decoded at once: only so many are in memory whole.
PREPARING = 2


@dataclass
class Chat:
    """The endpoint, an ASGI application.

    Attributes:
        models: what requests may name.
        scheduler: answers jobs.
        prompts: makes them.
        admission: who may come in.
        metrics: what is counted.
        preparing: how many requests are read or prepared at once.
    """

    models: Mapping[str, Any]
    scheduler: Scheduler
    prompts: Prompts
    admission: Admission
    metrics: Metrics
    preparing: anyio.CapacityLimiter | None = field(default=None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply, limits = Reply(scope, receive, send), self.admission.limits
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

    async def _job(self, request: Request, ticket: Ticket, reply: Reply) -> Job:
        """Reads a request and makes a job of it. What was sent is let go on return: only the job's inputs wait."""
        limits = self.admission.limits
        body = await _body(request, limits)
        size = len(body)
        asked: ChatRequest = await self._in_thread(protocol.read_request, body, limits.values)
        del body
        reply.model = known(asked.model, self.models)
        web = await fetched(asked.urls, self.prompts.sources, limits, ticket, size)
        job: Job = await self._in_thread(self.prompts.job, asked, web)
        ticket.hold(job.bytes)
        return job

    async def _answer(self, job: Job, reply: Reply) -> None:
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


async def _stream(job: Job, pieces: asyncio.Queue[str | None], reply: Reply) -> None:
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


def known(name: str, models: Mapping[str, Any]) -> str:
    """A model's name, if there is one of it."""
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
