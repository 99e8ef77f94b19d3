"""Chat completions as OpenAI's clients speak them: the requests that are understood, and the answers.

A field that would change the answer and is not supported is refused, unless it holds what changes nothing. Fields that
are about bookkeeping are taken and ignored. `null` means that a field is not there, as clients send it.
"""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from planner.serving.limits import Refused

Role = Literal["system", "developer", "user", "assistant"]


class _Given(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


class TextPart(_Given):
    """Words."""

    type: Literal["text"]
    text: str


class ImageUrl(_Given):
    """Where a picture is. `detail` is taken and ignored: the model's processor decides."""

    url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"


class ImagePart(_Given):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Given):
    """One turn. Other fields, as clients return them with an answer, are ignored; calls of tools are refused."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: Role
    content: Annotated[str | Annotated[list[Part], Field(max_length=256)], Field(union_mode="left_to_right")]
    tool_calls: Annotated[list[Any], Field(max_length=0)] = []

    @property
    def parts(self) -> tuple[TextPart | ImagePart, ...]:
        """Text and pictures in order."""
        text = self.content
        return (TextPart(type="text", text=text),) if isinstance(text, str) else tuple(text)


class StreamOptions(_Given):
    """What a stream says besides text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TextFormat(_Given):
    """The only format of answers."""

    type: Literal["text"]


class ChatRequest(_Given):
    """The body of ``POST /v1/chat/completions``."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=16)]
    ) = []
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    # Supported with the one value that changes nothing.
    n: Literal[1] = 1
    frequency_penalty: Literal[0] = 0
    presence_penalty: Literal[0] = 0
    logprobs: Literal[False] = False
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] = {}
    tools: Annotated[list[Any], Field(max_length=0)] = []
    tool_choice: Literal["none", "auto"] = "none"
    response_format: TextFormat = TextFormat(type="text")
    # Bookkeeping.
    user: str = ""
    metadata: dict[str, str] = {}
    store: bool = False
    service_tier: str = ""
    parallel_tool_calls: bool = False
    prompt_cache_key: str = ""
    safety_identifier: str = ""

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer; None where the client does not say."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def urls(self) -> list[str]:
        """Where its pictures are, in order."""
        return [part.image_url.url for one in self.messages for part in one.parts if isinstance(part, ImagePart)]


def read_request(body: bytes, values: int) -> ChatRequest:
    """A request from its JSON.

    Args:
        body: UTF-8.
        values: most values that the JSON may hold: a parser makes many times their bytes of them.

    Raises:
        Refused: 400; the message names the first field that is wrong.
    """
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > values:
        raise Refused(400, f"The request's JSON holds more than {values:,} values", "too_many_values")
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        worst = max(
            error.errors(include_url=False, include_context=False, include_input=False), key=lambda one: len(one["loc"])
        )
        # The branches of "text or a list of parts" say nothing to a client.
        where = ".".join(str(step) for step in worst["loc"] if not str(step).startswith(("str", "list[")))
        message = f"{where}: {worst['msg']}" if where else worst["msg"]
        raise Refused(400, message[:500], "invalid_request") from None


def error_body(refused: Refused) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(refused.status, "invalid_request_error" if refused.status < 500 else "server_error")
    return {"error": {"message": refused.message, "type": kind, "param": None, "code": refused.code}}


def completion(identity: str, model: str, text: str, finish: str, usage: dict[str, Any]) -> dict[str, Any]:
    """A whole answer."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return {**_head(identity, model, "chat.completion"), "choices": [choice], "usage": usage}


def chunk(identity: str, model: str, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    """A piece of an answer."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {**_head(identity, model, "chat.completion.chunk"), "choices": [choice]}


def usage_chunk(identity: str, model: str, usage: dict[str, Any]) -> dict[str, Any]:
    """The last piece, where a client asks for it."""
    return {**_head(identity, model, "chat.completion.chunk"), "choices": [], "usage": usage}


def event(data: dict[str, Any] | str) -> bytes:
    """A server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def _head(identity: str, model: str, kind: str) -> dict[str, Any]:
    return {"id": identity, "object": kind, "created": int(time.time()), "model": model}
