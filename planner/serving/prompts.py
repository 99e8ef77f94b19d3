"""From a request to the inputs of a model, within the server's limits.

Every request is encoded alone, with the processor and template that the plan was calibrated with; batches are made of
these inputs. What one request holds can therefore neither move nor spoil another's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from planner.errors import PlannerError
from planner.serving.job import Growth, Job
from planner.serving.limits import Limits, Refused
from planner.serving.pictures import Sources, pictures
from planner.serving.protocol import ChatRequest, ImagePart


class Encoder(Protocol):
    """What makes inputs of conversations (`calibrate.inputs.encode.Encoder`).

    Attributes:
        visual_ids: tokens that stand for an image.
        placeholders: texts that stand for one.
    """

    @property
    def visual_ids(self) -> Any: ...
    @property
    def placeholders(self) -> frozenset[str]: ...

    def request(self, conversation: list[dict[str, Any]], pictures: Sequence[Any]) -> dict[str, Any]:
        """Inputs of one conversation; raises `PlannerError` where there are none."""


class Prompts:
    """Makes jobs of requests, from any thread.

    Args:
        encoder: of the model; used by one thread at a time, since tokenizers keep settings between calls.
        decode: tokens to text; used by another thread.
        ends: tokens that end an answer.
        limits: of a request.
        sources: where pictures may come from.
    """

    def __init__(
        self,
        encoder: Encoder,
        decode: Callable[[list[int]], str],
        ends: frozenset[int],
        limits: Limits,
        sources: Sources,
    ) -> None:
        self.limits, self.sources = limits, sources
        self._encoder, self._decode, self._ends = encoder, decode, ends
        self._encoding = threading.Lock()

    def job(self, asked: ChatRequest, web: dict[str, bytes]) -> Job:
        """A request as the scheduler takes it.

        Args:
            asked: the request.
            web: pictures that were fetched for it.

        Raises:
            Refused: 400, it is beyond a limit or no prompt that the model takes.
        """
        from planner.runtime.batched import shape_of

        self._check(asked)
        shown = pictures(asked.urls, web, self.sources, self.limits)
        try:
            with self._encoding:
                inputs = self._encoder.request(_conversation(asked), shown)
        except PlannerError as error:
            raise Refused(400, str(error), "invalid_prompt") from error
        ids = inputs["input_ids"][0]
        visual = sum(int((ids == token).sum()) for token in self._encoder.visual_ids.tolist())
        if bool(visual) != bool(shown):
            raise Refused(400, "The chat template does not show the images of the request", "invalid_prompt")
        free = self.limits.context - len(ids)
        if free < 1:
            cause = f"The prompt has {len(ids)} tokens, prompt and answer together may have {self.limits.context}"
            raise Refused(400, cause, "context_length_exceeded")
        return Job(
            model=asked.model,
            inputs=inputs,
            shape=shape_of(inputs),
            prompt_tokens=len(ids),
            visual_tokens=visual,
            limit=min(asked.limit or free, free, self.limits.answer_tokens),
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=asked.seed,
            ends=frozenset() if asked.ignore_eos else self._ends,
            growth=Growth(self._decode, asked.stops),
            watched=asked.stream,
            counted=asked.stream_options.include_usage,
        )

    def _check(self, asked: ChatRequest) -> None:
        """Refuse what cannot be a prompt before anything is made of it."""
        texts = ["".join(part.text for part in one.parts if not isinstance(part, ImagePart)) for one in asked.messages]
        if sum(map(len, texts)) > self.limits.characters:
            cause = f"The prompt has more than {self.limits.characters:,} characters, which no {self.limits.context:,} "
            raise Refused(400, f"{cause}tokens can hold", "context_length_exceeded")
        if asked.messages[-1].role != "user":
            raise Refused(400, "The last message must be the user's", "invalid_prompt")
        if any(one.role != "user" and _images(one.parts) for one in asked.messages):
            raise Refused(400, "Images belong into the user's messages", "invalid_prompt")
        # Such words would move the prompt's images. A template joins parts, so they are looked at joined.
        for word in self._encoder.placeholders:
            if any(word.lower() in text.lower() for text in texts):
                raise Refused(400, f"The text {word!r} stands for an image. Leave it out", "invalid_prompt")


def _images(parts: Sequence[Any]) -> int:
    return sum(isinstance(part, ImagePart) for part in parts)


def _conversation(asked: ChatRequest) -> list[dict[str, Any]]:
    """As chat templates read it."""
    return [
        {
            "role": "system" if one.role == "developer" else one.role,
            "content": [
                {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
                for part in one.parts
            ],
        }
        for one in asked.messages
    ]
