"""Attach a schedule to an unmodified transformers model.

    handle = attach(model, schedule)
    model.generate(**inputs)
    handle.detach()

Until then the model computes what the schedule says (`planner.runtime.execution`), in any number of threads; afterwards
it is as it was.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

import torch
from torch import nn

from planner.errors import InputError, RuntimeStateError
from planner.runtime.execution import guard
from planner.runtime.execution.execution import Execution
from planner.runtime.execution.thread import StreamComplete
from planner.runtime.imaging.image_cache import ImageCache
from planner.runtime.imaging.image_stream import ImageStream
from planner.runtime.imaging.stream_lookup import StreamLookup
from planner.runtime.model.adapters import Parts, find_parts
from planner.runtime.report import Report, kept_of, report_of
from planner.schedule import Schedule

#: Text towers that have a plan attached.
attached_towers: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_attaching = threading.Lock()


def attach(
    model: Any,
    schedule: Schedule,
    seed: int = 0,
    image_cache: ImageCache | None = None,
    image_stream: ImageStream | None = None,
) -> Handle:
    """Make a model execute a schedule in every prompt that holds an image.

    Args:
        model: a transformers vision-language model in evaluation mode, also wrapped by PEFT or dispatched by
            accelerate. Weights and adapters stay as they are while a plan is attached with an image stream or cache.
        schedule: what to execute; it must have the model's number of layers.
        seed: of random selections, added to each selection's own.
        image_cache: where the image streams of prompts are looked up; those that are missing are computed and kept.
        image_stream: streams of all images that will come; a prompt with another image is refused. Its pixel values
            may be left out, and the prompt's images are then the stream's, in order.

    Raises:
        UnsupportedModelError: the model lacks a part that is needed, or its images have no streams; the message says
            what is missing.
        ScheduleError: the schedule does not fit the model.
        PlanMismatchError: the image stream was made by another model, or under another plan.
        RuntimeStateError: training mode, another attention kernel than sdpa or eager, or a plan is attached already.
        InputError: an image stream for a plan that has none, or beside an image cache.
    """
    return Handle(model, schedule, seed, image_cache, image_stream)


class Handle:
    """A plan on a model, until `detach`. A context manager, too."""

    def __init__(
        self,
        model: Any,
        schedule: Schedule,
        seed: int = 0,
        image_cache: ImageCache | None = None,
        image_stream: ImageStream | None = None,
    ) -> None:
        self.parts: Parts = find_parts(model)
        guard.check_schedule(schedule, self.parts)
        guard.check_mode(self.parts.model)
        lookup = StreamLookup(self.parts, schedule, image_stream, image_cache)
        with _attaching:
            if self.parts.tower in attached_towers:
                raise RuntimeStateError("a plan is attached to this model already", "Detach it first")
            self._execution = Execution(self.parts, schedule, seed, lookup)
            attached_towers.add(self.parts.tower)

    @property
    def report(self) -> Report | None:
        """Tokens per layer of the last prefill with an image, the calling thread's or, where it ran none, any's; None
        before the first.
        """
        last = self._execution.last
        return None if last is None else report_of(last)

    @property
    def kept(self) -> list[list[list[int]]]:
        """What the last prefill kept: ``kept[select][sample]``, for each selection of the schedule.

        Visual tokens are numbered among the sample's visual tokens (patch order), context tokens among the whole
        prompt.
        """
        last = self._execution.last
        return [] if last is None else kept_of(last)

    def encode_image(self, **inputs: Any) -> ImageStream:
        """Compute the image stream of the images in a prompt ahead of any question; it goes into the image cache too,
        where there is one.

        Args:
            inputs: what the processor gives for any prompt that holds the images. What comes after them does not
                matter; where visual tokens see the text before them (`visual_attention` ``prefix``), that must be what
                will stand before them.

        Raises:
            InputError: there is no image, the plan has no shallow stage in which visual tokens are isolated, or the
                model lets text before the image see the question.
        """
        execution = self._execution
        execution.lookup.check_plan()
        thread = execution.thread
        thread.encoding, thread.stream = True, None
        try:
            with torch.no_grad(), suppress(StreamComplete):
                self.parts.model(**inputs, use_cache=False)
        finally:
            thread.encoding = False
        if thread.stream is None:
            raise InputError("the prompt holds no image", "Pass input_ids with image tokens, and pixel_values")
        execution.lookup.remember(thread.stream)
        found = thread.stream.stream()
        if not found:
            raise InputError(
                "text before the image sees what comes after it in this model, and the image sees that text",
                "Put the image first in the prompt, or use a plan whose visual tokens see only themselves",
            )
        return found

    @contextmanager
    def scoring(self, prompt_lengths: Sequence[int]) -> Iterator[None]:
        """Say where prompts end, in forwards of this thread that hold prompts and answers together.

        A plan ranks by the last token of the prompt. Labels, ``logits_to_keep`` and `generate` say by themselves where
        that is; any other forward is taken for a prompt as a whole.

            with handle.scoring([len(prompt) for prompt in prompts]):
                logits = model(**prompts_and_answers).logits

        Args:
            prompt_lengths: tokens of each sample's prompt, padding left out.
        """
        thread = self._execution.thread
        before, thread.prompt_lengths = thread.prompt_lengths, prompt_lengths
        try:
            yield
        finally:
            thread.prompt_lengths = before

    def compile_prefill(self, buckets: Sequence[int] | None = None, **options: Any) -> None:
        """From now on run prompts through compiled graphs: one, without a break, for every length bucket.

            handle.compile_prefill(buckets=(512, 1024, 2048), mode="reduce-overhead")  # CUDA graphs

        A graph is made when its bucket, batch size and number of visual tokens first occur. Prompts that graphs cannot
        serve run as before: those longer than the last bucket, batches whose samples have other numbers of visual
        tokens, prompts whose image stream is cached. The vision encoder and the output head are not compiled.

        Args:
            buckets: lengths of prompts, in tokens, up to which they are padded. None: multiples of 64.
            options: of `torch.compile`: mode, backend and so on.

        Raises:
            InputError: the plan has no fixed shapes: it has thresholds, prunes text, or ranks by scores of text.
            UnsupportedModelError: the model's layers keep states, or read the keys of others.
        """
        self._execution.compile_prefill(buckets, options)

    def detach(self) -> None:
        """Put the model back as it was, once the forwards that run now are through. Safe to call twice.

        Later steps of requests that have begun under the plan are refused, since their caches are pruned.

        Raises:
            RuntimeStateError: called from inside a forward of the model.
        """
        self._execution.close()
        attached_towers.discard(self.parts.tower)

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()
