"""Bounds on everything that a client can make large, and how a request beyond them is told so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


class Refused(Exception):
    """A request that is not answered, as HTTP says it.

    Args:
        status: HTTP status.
        message: cause and remedy, for the client.
        code: what programs look at.
    """

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Limits:
    """What a request, and all of them together, may take.

    Attributes:
        requests: admitted at once: read, prepared, waiting or answered. More are told to come back (429).
        pending_bytes: of all of them together, bodies and model inputs.
        body_bytes: of one request, and of the images that are fetched for it.
        images, pixels: of one request together, before they are resized.
        context: tokens of prompt and answer together.
        answer_tokens: longest answer; a request that asks for more gets an answer of this length.
        seconds: from a request's first byte to its last.
        batch, batch_tokens: requests that run together, and their tokens with padding and answers.
    """

    requests: int = 64
    pending_bytes: int = 1 << 30
    body_bytes: int = 20 << 20
    images: int = 16
    pixels: int = 40_000_000
    context: int = 4096
    answer_tokens: int = 512
    seconds: float = 120.0
    batch: int = 8
    batch_tokens: int = 32_768

    @property
    def characters(self) -> int:
        """Longest text that is tokenised: no prompt that fits has more than 32 to a token."""
        return 32 * self.context

    @property
    def values(self) -> int:
        """Values in a request's JSON: a message or part takes a few, and a comma in a text about a token."""
        return 10_000 + self.context


@dataclass
class Admission:
    """How many requests are admitted, and what they hold. Used on the event loop only.

    Attributes:
        limits: bounds.
        admitted, bytes: requests, and what they hold.
    """

    limits: Limits
    admitted: int = 0
    bytes: int = 0
    _full: str = field(default="The server is busy. Try again in a moment", repr=False)

    @contextmanager
    def enter(self, size: int) -> Iterator[Ticket]:
        """A request is admitted inside the block.

        Args:
            size: bytes that it is about to send.

        Raises:
            Refused: 429, there is no room; 413, the request never fits.
        """
        if self.admitted >= self.limits.requests:
            raise Refused(429, self._full, "server_busy")
        ticket = Ticket(self)
        ticket.hold(size)
        self.admitted += 1
        try:
            yield ticket
        finally:
            self.admitted -= 1
            ticket.release()


class Ticket:
    """What one request holds."""

    def __init__(self, admission: Admission) -> None:
        self._admission, self._bytes = admission, 0

    def hold(self, size: int) -> None:
        """It holds this many bytes now, instead of what it held before.

        Raises:
            Refused: 429, they are not free now; 413, they never are.
        """
        admission = self._admission
        if size > admission.limits.pending_bytes:
            raise Refused(413, f"The request takes {size:,} bytes, more than the server has for all", "too_large")
        if admission.bytes - self._bytes + size > admission.limits.pending_bytes:
            raise Refused(429, admission._full, "server_busy")
        admission.bytes += size - self._bytes
        self._bytes = size

    def release(self) -> None:
        """It holds nothing any more."""
        self._admission.bytes -= self._bytes
        self._bytes = 0
