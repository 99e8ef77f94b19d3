"""What goes back to a client: an answer whole or as a stream, or an error."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import anyio
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from planner.serving import protocol
from planner.serving.limits import Refused

#: HTTP status of a request whose client has gone, in metrics.
GONE = 499


class Reply:
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
                await error_response(refused)(self._scope, self._receive, self._send)


def error_response(refused: Refused) -> Response:
    """An error as HTTP."""
    headers = {"Retry-After": "1"} if refused.status in (429, 503) else None
    return JSONResponse(protocol.error_body(refused), refused.status, headers)
