"""The shallow layers of a plan, whose visual rows do not depend on the question: which they are, and what is known of
them when a prompt arrives.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from planner.errors import InputError, UnsupportedModelError
from planner.runtime.imaging.image_cache import ImageCache
from planner.runtime.imaging.image_stream import ImageStream, Key, States, join_states
from planner.runtime.imaging.images import Image, brings_pixels, brings_sounds, images_of, whole
from planner.runtime.imaging.prefixes import prefixes
from planner.runtime.model.adapters import Parts
from planner.runtime.model.fingerprint import model_fingerprint
from planner.runtime.tensors.layout import Layout
from planner.runtime.tensors.rows import Rows
from planner.schedule import Schedule

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamExtent:
    """How far the image stream of a plan reaches.

    Attributes:
        depth: first layer that does not belong to it; 0 where the plan has no image stream.
        kept: states that are kept: those entering these layers.
        rules: what visual rows and text see of each other in these layers, where visual rows depend on the text before
            them; empty where they do not.
    """

    depth: int
    kept: frozenset[int]
    rules: str = ""

    @classmethod
    def of(cls, schedule: Schedule, deepstack: int = 0) -> StreamExtent:
        """The extent of a schedule.

        Args:
            deepstack: as for `Schedule.image_stream_layers`.
        """
        depth = int(schedule.image_stream_layers(deepstack))
        read = {layer for layer in range(depth) if schedule.stage_of(layer).text_to_visual != "none"}
        kept = frozenset(read | ({depth} if depth and depth < schedule.layers else set()))
        if not schedule.image_stream_reads_prefix(deepstack):
            return cls(depth, kept)
        rules = (
            f"{stage.first}-{stage.last - 1} image sees {stage.visual_attention}, text sees {stage.text_to_visual}"
            for stage in schedule.stages
            if stage.first < depth
        )
        return cls(depth, kept, "; ".join(rules))

    def __str__(self) -> str:
        states = f"states {'+'.join(map(str, sorted(self.kept)))}"
        return f"0-{self.depth - 1} ({states}{self.rules and '; '}{self.rules})"


@dataclass
class PromptStream:
    """The shallow layers of one prompt.

    Attributes:
        extent: which layers, and which states.
        keys, counts: images of the batch in order, and the visual tokens of each.
        samples: visual tokens of each sample.
        given: what they become, ``[visual tokens of the batch, d]`` by layer; None: it has to be computed.
        taken: what was computed, in the same form.
    """

    extent: StreamExtent
    keys: list[Key]
    counts: list[int]
    samples: tuple[int, ...]
    given: States | None = None
    taken: States = field(default_factory=dict)

    def take(self, layer: int, hidden: Tensor, rows: Rows) -> None:
        """Note the rows entering a layer."""
        if layer in self.extent.kept:
            self.taken[layer] = hidden[rows.filled.to(hidden.device)]

    def forget(self) -> None:
        """What is computed for the images is theirs in this prompt only: it is not kept."""
        self.keys = []

    def give(self, layer: int, rows: Rows, like: Tensor) -> Tensor:
        """The rows entering a layer, ``[B, a, d]``."""
        assert self.given is not None
        state = self.given[layer].to(like.device, like.dtype)
        hidden = state.new_zeros(*rows.index.shape, state.shape[-1])
        hidden[rows.filled.to(like.device)] = state
        return hidden

    def repeated(self, times: int) -> PromptStream:
        """Of a batch in which every sample stands so many times, one after the other."""
        if times == 1:
            return self
        samples = tuple(tokens for tokens in self.samples for _ in range(times))
        given = self.given
        if given is not None:
            parts = {layer: torch.split(state, list(self.samples)) for layer, state in given.items()}
            given = {layer: torch.cat([x for x in states for _ in range(times)]) for layer, states in parts.items()}
        per_sample = self._images_of_samples()
        if per_sample is None:  # images that could not be told apart: what is computed for them is not kept
            return PromptStream(self.extent, [], [], samples, given)
        order = [image for images in per_sample for _ in range(times) for image in images]
        keys, counts = [self.keys[i] for i in order], [self.counts[i] for i in order]
        return PromptStream(self.extent, keys, counts, samples, given)

    def _images_of_samples(self) -> list[range] | None:
        """Which images each sample holds; None where one reaches over several samples."""
        found, image = [], 0
        for tokens in self.samples:
            first = image
            while tokens > 0:
                tokens -= self.counts[image]
                image += 1
            if tokens < 0:
                return None
            found.append(range(first, image))
        return found

    def stream(self) -> ImageStream:
        """What is known of the images by now; nothing where the prompt did not get through the shallow layers."""
        states = self.taken if self.given is None else self.given
        if not self.keys or set(states) != self.extent.kept:
            return ImageStream({})
        parts = {layer: torch.split(state.detach(), self.counts) for layer, state in states.items()}
        return ImageStream(
            {key: {layer: parts[layer][i].clone() for layer in sorted(parts)} for i, key in enumerate(self.keys)}
        )


class StreamLookup:
    """Looks up the images of a prompt.

    Args:
        parts: the model.
        schedule: the plan's.
        stream: a stream that holds all images that will come.
        cache: a cache, which need not.

    Raises:
        InputError: both are given, or the plan has no image stream that could be used.
        UnsupportedModelError: no image of the model has one.
        PlanMismatchError: the stream is another model's or another plan's.
    """

    def __init__(self, parts: Parts, schedule: Schedule, stream: ImageStream | None, cache: ImageCache | None) -> None:
        vision = getattr(parts.model.config, "vision_config", None)  # Fuyu has none
        deepstack = getattr(vision, "deepstack_visual_indexes", None) or ()
        self.parts, self.stream, self.cache = parts, stream, cache
        self.extent = StreamExtent.of(schedule, len(deepstack))
        if stream is not None or cache is not None:
            self._check_model()
        self._model = ""
        if cache is not None and not self.extent.depth:
            _log.warning("the image cache stays empty: this plan has no shallow layers that depend on an image alone")
        if stream is None:
            return
        if cache is not None:
            raise InputError(
                "image_stream and image_cache are two ways to the same",
                "Give one of them; cache.add(stream) puts a stream into a cache",
            )
        self.check_plan()
        stream.check(self.model, str(self.extent))

    @property
    def model(self) -> str:
        """The model's fingerprint, looked at once."""
        if not self._model:
            self._model = model_fingerprint(self.parts.model)
        return self._model

    def _check_model(self) -> None:
        if self.parts.fed_per_layer:
            raise UnsupportedModelError(
                f"{self.parts.model.config.model_type} has no image streams: every layer gets an input of its own from "
                "the image's features, which a stream does not hold",
                "Leave image_cache and image_stream out",
            )

    def check_plan(self) -> None:
        """Refuse a plan without an image stream.

        Raises:
            InputError: its visual rows do not start isolated, or not for long enough.
            UnsupportedModelError: no image of the model has one.
        """
        self._check_model()
        if not self.extent.depth:
            raise InputError(
                "the plan has no image stream: its visual tokens see each other from layer 0 "
                "(or before the last layer that adds vision features)",
                "Use a plan whose first stage has visual_attention 'prefix' or 'self', such as visipruner",
            )

    def stream_of(self, kwargs: dict[str, Any], layout: Layout, encode: bool = False) -> PromptStream | None:
        """The image stream of a prompt that holds an image; None where nobody asks for it.

        Args:
            kwargs: the model's arguments. With a stream the pixels may be left out: the images of the prompt are then
                the stream's, in its order.
            encode: the stream is asked for, whatever is known.

        Raises:
            InputError: there is a stream and it does not hold the images, or not behind the prompt's sound.
        """
        if not self.extent.depth or not (encode or self.stream is not None or self.cache is not None):
            return None
        if brings_pixels(kwargs):
            images = images_of(kwargs, layout, self.parts.visual_ids, self.parts.model.config)
        elif kwargs.get("mm_encoder_outputs"):
            if self.stream is not None:
                raise InputError(
                    "the prompt brings features of its images in place of pixels, which cannot be told apart",
                    "Pass the pixel values and no mm_encoder_outputs",
                )
            return None
        elif self.stream is not None:
            images = [Image(key.image, len(next(iter(states.values())))) for key, states in self.stream.images.items()]
            if not whole(images, layout):
                raise InputError(
                    f"the prompt has {sum(layout.visual_counts)} visual tokens and no pixels, the image stream has "
                    f"{sum(image.tokens for image in images)} of {len(images)} images",
                    "Pass the pixel values, or a stream of just the prompt's images in their order",
                )
        else:
            return None
        behind = [""] * len(images)
        if self.extent.rules and brings_sounds(kwargs):
            # What stands before an image is told apart by its words, and those of all sounds are the same.
            if self.stream is None and not encode:
                return None
            raise InputError(
                "the prompt brings a sound, which its images may see under this plan, and no image stream tells sounds "
                "apart",
                "Leave image_stream out, or use a plan whose visual tokens see only themselves",
            )
        if self.extent.rules:
            behind = prefixes(images, layout, kwargs.get("position_ids"))
        keys = [Key(self.model, str(self.extent), one.digest, at) for one, at in zip(images, behind, strict=True)]
        source = self.cache if self.stream is None else self.stream
        found = source.find(keys) if source is not None else None
        counts, given = [image.tokens for image in images], None if found is None else join_states(found)
        return PromptStream(self.extent, keys, counts, layout.visual_counts, given)

    def remember(self, prompt: PromptStream | None) -> None:
        """Put what a prompt has computed into the cache, where there is one."""
        if self.cache is not None and prompt is not None and prompt.given is None:
            self.cache.add(prompt.stream())
