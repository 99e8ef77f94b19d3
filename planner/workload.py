"""The workload of a model: images, prompt, answer, batch and element sizes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from planner.errors import InputError

Size = Annotated[int, Field(ge=1, le=1 << 20)]
Tokens = Annotated[int, Field(ge=0, le=1 << 24)]


class Workload(BaseModel):
    """One request: ``system_tokens + visual_tokens + text_tokens`` of prompt, then `output_tokens` of answer.

    Attributes:
        visual_tokens: visual tokens of all images together.
        text_tokens: text after the image (context, question, role tokens).
        system_tokens: text before the image.
        output_tokens: answer length; the prefill produces the first one.
        between_tokens: how many of the `text_tokens` stand between images. Visual tokens that see the text before them
            are computed with the system tokens and these, as a mask over all of them cuts nothing off.
        mark_tokens: how many of the system and text tokens are marks that a processor puts around and among pictures;
            experts for what is seen take them too.
        context_tokens: how many of the `text_tokens` are long context that may be pruned.
        batch: equal requests side by side.
        images: ``(width, height)`` in pixels, for the vision tower's cost; empty means one image of the model's own
            size.
        videos: ``(width, height, frames)`` of each video, with the frames that the model gets.
        image_stream_cached: a further question about an image whose stream is cached, so that neither the vision tower
            nor the layers in which visual rows are isolated compute anything for them.
        weight_bits, kv_bits: element sizes (16, 8 or 4 bits).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    visual_tokens: Tokens
    text_tokens: Tokens = 64
    system_tokens: Tokens = 10
    between_tokens: Tokens = 0
    mark_tokens: Tokens = 0
    output_tokens: Annotated[int, Field(ge=1, le=1 << 24)] = 64
    context_tokens: Tokens = 0
    batch: Annotated[int, Field(ge=1, le=1 << 16)] = 1
    images: tuple[tuple[Size, Size], ...] = ()
    videos: tuple[tuple[Size, Size, Size], ...] = ()
    image_stream_cached: bool = False
    weight_bits: Annotated[int, Field(ge=1, le=64)] = 16
    kv_bits: Annotated[int, Field(ge=1, le=64)] = 16

    @model_validator(mode="after")
    def _consistent(self) -> Workload:
        for name in ("context_tokens", "between_tokens"):
            if (part := getattr(self, name)) > self.text_tokens:
                raise ValueError(f"{name} ({part}) cannot exceed text_tokens ({self.text_tokens})")
        if self.mark_tokens > (words := self.system_tokens + self.text_tokens):
            raise ValueError(f"mark_tokens ({self.mark_tokens}) cannot exceed system_tokens + text_tokens ({words})")
        if self.prompt_tokens == 0:
            raise ValueError("an empty prompt costs nothing: give visual, text or system tokens")
        return self

    @classmethod
    def of(cls, **values: Any) -> Workload:
        """A workload from what a user gave.

        Raises:
            InputError: a value is negative, absurd, or contradicts another; the value is named.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            given = f", got {first['input']!r}" if name else ""
            raise InputError(f"workload: {name + ': ' if name else ''}{message}{given}", "Check the sizes") from error

    @property
    def prompt_tokens(self) -> int:
        """Prompt length of one request."""
        return self.system_tokens + self.visual_tokens + self.text_tokens
