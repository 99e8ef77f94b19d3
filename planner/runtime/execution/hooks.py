"""A schedule executing on a model: the hooks on the model, its text tower, its decoder layers and their attention.

    before encoding  in `generate`, which encodes images before the model runs: look up their image stream
    before model     find the visual tokens and their image stream; split a prompt from its continuation
    before tower     make a `Prefill`, and put pruned layers into the cache
    before a layer   Prefill.before, or in a decode step the columns of the mask that the layer's cache holds
    its attention    Prefill.attend
    after a layer    Prefill.after
    after tower      give every row its place back

Hooks, one attribute of the model, one registered attention function and one attention name in the tower's config: that
is all that changes, and `close` puts all of it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from planner.runtime.execution import guard
from planner.runtime.execution.continuation import continued, join_logits, split
from planner.runtime.execution.decoding import Decoding
from planner.runtime.execution.prefill import Prefill
from planner.runtime.imaging.images import PIXELS, brings_pixels
from planner.runtime.imaging.stream_lookup import PromptStream, StreamLookup
from planner.runtime.model.adapters import Parts
from planner.runtime.model.attention import Call, Handler, attention_hook
from planner.runtime.model.cache import Attachment, PrunedLayer, install, past_length
from planner.runtime.model.generation import seeing_images
from planner.runtime.model.isolated import IsolatedLayer, find_fast_form
from planner.runtime.selection.encoder import EncoderScores
from planner.runtime.tensors.layout import Layout, read, visual_rows
from planner.schedule import Schedule


class StreamComplete(Exception):
    """The image stream is complete; the rest of the forward is not needed."""


class Execution:
    """A schedule on a model from construction to `close`.

    Args:
        parts: the model.
        schedule: what to execute.
        seed: of random selections, added to each selection's own.
        lookup: where image streams are looked up and kept.

    Attributes:
        last: the last prompt with an image.
        shallow: its shallow layers, where its image stream was asked for.
        ahead: stop once the image stream is complete, with `StreamComplete`.
    """

    def __init__(self, parts: Parts, schedule: Schedule, seed: int, lookup: StreamLookup) -> None:
        self.parts, self.schedule, self.seed, self.lookup = parts, schedule, seed, lookup
        self.last: Prefill | None = None
        self.shallow: PromptStream | None = None
        self.ahead = False
        self._attachment = Attachment()
        self._layout: Layout | None = None
        self._awaited: tuple[Tensor, PromptStream] | None = None
        self._prompt_logits: Tensor | None = None
        self._prefill: Prefill | None = None
        self._decoding = Decoding(schedule)
        self._diverted: Handler | None = None
        with ExitStack() as stack:
            stack.enter_context(attention_hook(list(parts.attentions), self._attend))
            self._isolated_layers = tuple(
                IsolatedLayer(layer, attention, parts.heads, self._divert)
                for layer, attention in zip(parts.layers, parts.attentions, strict=True)
            )
            probed = {int(stage.last) for stage in schedule.stages if any(s.probe for s in stage.selects)}
            isolated = (i for i in range(len(parts.layers)) if schedule.stage_of(i).visual_attention == "self")
            find_fast_form(parts.tower, self._isolated_layers, probed | set(isolated))
            self._encoder: EncoderScores | None = None
            if schedule.entry is not None and schedule.entry.rank_by == "encoder_attention":
                self._encoder = EncoderScores(parts.model)
                stack.enter_context(self._encoder.watching())
            stack.enter_context(seeing_images(parts.model, self._before_encoding))
            self._hook(stack)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Put the model back as it was. Safe to call twice."""
        self._attachment.active = False
        self._prefill = self._layout = self._awaited = None
        self._stack.close()

    def forget(self) -> None:
        """Drop what a forward that did not come to its end has left."""
        self._prefill = None

    def _hook(self, stack: ExitStack) -> None:
        def undo(hook: Any) -> None:
            stack.callback(hook.remove)

        undo(self.parts.model.register_forward_pre_hook(self._before_model, with_kwargs=True))
        undo(self.parts.model.register_forward_hook(self._after_model))
        undo(self.parts.tower.register_forward_pre_hook(self._before_tower, with_kwargs=True))
        undo(self.parts.tower.register_forward_hook(self._after_tower))
        for index, layer in enumerate(self.parts.layers):
            undo(layer.register_forward_pre_hook(self._before_layer(index), with_kwargs=True))
            undo(layer.register_forward_hook(self._after_layer(index)))

    # -- the model ---------------------------------------------------------------------------------------------------

    def _before_encoding(self, ids: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """`generate` is about to encode the images of a prompt, whose forward will not see their pixels."""
        self._awaited = None
        if self._encoder is not None:
            self._encoder.forget()
        past = past_length(kwargs.get("past_key_values"))
        guard.check_turn(kwargs, past)
        if self.schedule.empty or past:
            return kwargs
        guard.check_pixels(kwargs)
        layout = read(ids, self.parts.visual_ids, kwargs.get("attention_mask"))
        if not any(layout.visual_counts):
            return kwargs
        shallow = self.lookup.shallow(kwargs, layout)
        if shallow is None:
            return kwargs
        self._awaited = (ids, shallow)
        return kwargs if shallow.given is None else {k: v for k, v in kwargs.items() if k not in PIXELS}

    def _find_shallow(self, ids: Tensor, kwargs: dict[str, Any], layout: Layout) -> PromptStream | None:
        awaited, self._awaited = self._awaited, None
        if awaited is not None and not brings_pixels(kwargs):
            prompt, shallow = awaited
            # Beam search and several answers repeat every sample.
            times = len(ids) // len(prompt)
            if torch.equal(prompt.repeat_interleave(times, dim=0), ids):
                return shallow.repeated(times)
        return self.lookup.shallow(kwargs, layout, self.ahead)

    def _before_model(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():  # a decode step over fixed buffers: nothing to decide
            return None
        guard.check_mode(model)
        self._layout = self._prefill = self._prompt_logits = self.shallow = None
        if args:
            kwargs = {**kwargs, "input_ids": args[0]}
        ids: Any = kwargs.get("input_ids")
        past = past_length(kwargs.get("past_key_values"))
        guard.check_prompt(kwargs, past)
        if self.schedule.empty or past or not bool(visual_rows(ids, self.parts.visual_ids).any()):
            return None
        if brings_pixels(kwargs) and self._encoder is not None:
            self._encoder.forget()
        guard.check_pixels(kwargs)
        after = continued(kwargs)
        if after:
            prompt, kwargs = split(kwargs, after, self.parts.tower.config)
            output = model(*args[1:], **prompt)
            self._prompt_logits = output[0] if isinstance(output, tuple) else output.logits
            return args[1:], kwargs
        self._layout = read(ids, self.parts.visual_ids, kwargs.get("attention_mask"))
        self.shallow = self._find_shallow(ids, kwargs, self._layout)
        if self.shallow is not None and self.shallow.given is not None:
            # What the pixels would become is known: the vision encoder does not run.
            return args[1:], {**kwargs, **{name: None for name in PIXELS if name in kwargs}}
        return None

    def _after_model(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        first, self._prompt_logits = self._prompt_logits, None
        return output if first is None else join_logits(first, output)

    # -- its text tower ----------------------------------------------------------------------------------------------

    def _before_tower(
        self, tower: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        cache: Any = kwargs.get("past_key_values")
        if torch.compiler.is_compiling():
            self._decoding.layers = [] if cache is None else list(cache.layers)
            return None
        layout, self._layout = self._layout, None
        self._prefill = None
        self._decoding.clear()
        if layout is None:
            self._decoding.layers = [layer for layer in getattr(cache, "layers", []) if isinstance(layer, PrunedLayer)]
            return None
        kwargs = dict(kwargs)
        use_cache = kwargs.get("use_cache")
        if cache is None and (tower.config.use_cache if use_cache is None else use_cache):
            cache = kwargs["past_key_values"] = DynamicCache()
        caches: list[PrunedLayer] = []
        if cache is not None:
            caches = install(cache, len(self.parts.layers), self._attachment, layout.length, list(self.parts.windows))
        ranked = None if self._encoder is None else self._encoder.take(layout)
        prefill = Prefill(self.schedule, layout, self._isolated_layers, caches, self.seed, ranked, self.shallow)
        features = kwargs.pop("deepstack_visual_embeds", None)
        prefill.deepstack = list(features) if features is not None else []
        self._prefill = prefill
        return args, kwargs

    def _after_tower(self, tower: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if torch.compiler.is_compiling():
            return output
        prefill, self._prefill = self._prefill, None
        self._decoding.clear()
        if prefill is None:
            return output
        prefill.close()
        self.last = prefill
        self.lookup.remember(prefill.shallow)
        if prefill.streams.main.whole:
            return output
        # Every row gets its place back, so that logits line up with the prompt.
        wide = prefill.streams.main.restore(output[0])
        if isinstance(output, tuple):
            return (wide, *output[1:])
        output.last_hidden_state = wide
        return output

    # -- its decoder layers ------------------------------------------------------------------------------------------

    def _before_layer(self, index: int) -> Callable[..., Any]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            prefill = self._prefill
            if prefill is not None:
                hidden = args[0] if args else kwargs.pop("hidden_states")
                hidden, kwargs = prefill.before(index, hidden, kwargs)
                if self.ahead and index == self.lookup.extent.depth:
                    raise StreamComplete
                return (hidden, *args[1:]), kwargs
            if self._decoding.layers:
                return args, {**kwargs, "attention_mask": self._decoding.mask(index, args, kwargs)}
            return None

        return hook

    def _after_layer(self, index: int) -> Callable[..., Any]:
        def hook(layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if self._prefill is not None:
                return self._prefill.after(index, output)
            if self._decoding.layers:
                self._decoding.after(index)
            return output

        return hook

    # -- their attention ---------------------------------------------------------------------------------------------

    def _attend(self, call: Call) -> tuple[Tensor, Tensor | None]:
        if self._diverted is not None:
            return self._diverted(call)
        if self._prefill is not None:
            return self._prefill.attend(call)
        return self._decoding.attend(call)

    @contextmanager
    def _divert(self, handler: Handler) -> Iterator[None]:
        """Send attention calls to another handler, for layers that run outside the main stream."""
        before, self._diverted = self._diverted, handler
        try:
            yield
        finally:
            self._diverted = before
