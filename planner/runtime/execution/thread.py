"""What belongs to one thread while any number of them run the model: its forward, and what it has been told of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from planner.runtime.execution.decoding import Decoding
from planner.runtime.execution.prefill import Prefill, Record
from planner.runtime.imaging.stream_lookup import PromptStream
from planner.runtime.tensors.layout import Layout


class StreamComplete(Exception):
    """The image stream is complete; the rest of the forward is not needed."""


@dataclass
class Forward:
    """One forward of the model, seen by its own thread only.

    Attributes:
        layout: parts of the prompts; None where no prompt with an image runs.
        stream: their image stream, where one is asked for.
        prefill: the prompt on its way through the layers.
        decoding: a step over a pruned cache.
        traced: its layers are being compiled.
    """

    layout: Layout | None = None
    stream: PromptStream | None = None
    prefill: Prefill | None = None
    decoding: Decoding | None = None
    traced: bool = False

    def __post_init__(self) -> None:
        #: Its layers run as the model runs them, where it hides nothing.
        self.plain = self.decoding is not None and self.decoding.plain


class Thread(threading.local):
    """What belongs to the calling thread.

    Attributes:
        forward: the forward that runs.
        prompt: token ids that `generate` was called with.
        awaited: a prompt whose images `generate` has seen already, and their stream.
        prompt_lengths: where prompts end, as the user says.
        encoding: stop once the image stream is complete, with `StreamComplete`.
        stream: the stream of the last prompt.
        last: the last prompt with an image.
    """

    def __init__(self) -> None:
        self.forward: Forward | None = None
        self.prompt: Tensor | None = None
        self.awaited: tuple[Tensor, PromptStream] | None = None
        self.prompt_lengths: Sequence[int] | None = None
        self.encoding = False
        self.stream: PromptStream | None = None
        self.last: Record | None = None
