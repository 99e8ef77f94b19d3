"""Attach a schedule to an unmodified transformers model.

    handle = attach(model, schedule)
    model.generate(**inputs)
    handle.detach()

Hooks on the model, its text tower and its decoder layers, one registered attention function and one attention name in
the tower's config: that is all that changes, and all of it is put back.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from planner.errors import InputError, RuntimeStateError
from planner.runtime import guard
from planner.runtime.adapters import Parts, find_parts
from planner.runtime.attention import Call, Handler, seam
from planner.runtime.cache import Lease, PrunedLayer, install, past_length
from planner.runtime.continuation import continued, joined, split
from planner.runtime.encoder import EncoderScores
from planner.runtime.image_cache import ImageCache, Stream, extent, fingerprint, images_of
from planner.runtime.layout import Layout, read, visual_rows
from planner.runtime.masks import columns
from planner.runtime.prefill import Prefill
from planner.runtime.redistribute import redistribute_step
from planner.runtime.report import Report, kept_of, report_of
from planner.runtime.stream import Loner, find_fast_form
from planner.schedule import Schedule

#: Text towers that have a plan attached.
_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def attach(model: Any, schedule: Schedule, seed: int = 0, image_cache: ImageCache | None = None) -> Handle:
    """Make a model execute a schedule in every prompt that holds an image.

    Args:
        model: a transformers vision-language model in evaluation mode, also wrapped by PEFT or dispatched by
            accelerate.
        schedule: what to execute; it must have the model's number of layers.
        seed: of random selections, added to each selection's own.
        image_cache: an `ImageCache` in which the image stream of shallow layers is looked up and stored, or None.

    Raises:
        UnsupportedModelError: the model lacks a part that is needed; the message names it.
        ScheduleError: the schedule does not fit the model.
        RuntimeStateError: training mode, another attention kernel than sdpa or eager, or a plan is attached already.
    """
    return Handle(model, schedule, seed, image_cache)


class _Encoded(Exception):
    """The image stream is complete; the rest of the forward is not needed."""


class Handle:
    """A plan on a model, until `detach`. A context manager, too."""

    def __init__(self, model: Any, schedule: Schedule, seed: int = 0, image_cache: ImageCache | None = None) -> None:
        self.parts: Parts = find_parts(model)
        guard.check_schedule(schedule, self.parts)
        guard.check_mode(self.parts.model)
        if self.parts.tower in _attached:
            raise RuntimeStateError("a plan is attached to this model already", "Detach it first")
        self.schedule, self.seed, self.image_cache = schedule, seed, image_cache
        self._lease = Lease()
        self._layout: Layout | None = None
        self._stream: Stream | None = None
        self._ahead = False
        self._prompt_logits: Tensor | None = None
        self._prefill: Prefill | None = None
        self._last: Prefill | None = None
        self._pruned: list[PrunedLayer] = []
        self._diverted: Handler | None = None
        self._known: dict[Any, Any] = {}
        with ExitStack() as stack:
            _attached.add(self.parts.tower)
            stack.callback(_attached.discard, self.parts.tower)
            stack.enter_context(seam(list(self.parts.attentions), self._attend))
            self._loners = tuple(
                Loner(layer, attention, self.parts.heads, self._divert)
                for layer, attention in zip(self.parts.layers, self.parts.attentions, strict=True)
            )
            self._check_fast_form()
            self._encoder: EncoderScores | None = None
            if schedule.entry is not None and schedule.entry.rank_by == "encoder_attention":
                self._encoder = EncoderScores(self.parts.model)
                stack.enter_context(self._encoder.watching())
            self._depth, self._kept_layers = extent(schedule)
            self._fingerprint = ""
            self._hook(stack)
            self._stack = stack.pop_all()

    # -- for users ---------------------------------------------------------------------------------------------------

    @property
    def report(self) -> Report | None:
        """Tokens per layer of the last prefill with an image; None before the first."""
        return None if self._last is None else report_of(self._last)

    @property
    def kept(self) -> list[list[list[int]]]:
        """What the last prefill kept: ``kept[select][sample]``, for each selection of the schedule.

        Visual tokens are numbered among the sample's visual tokens (patch order), context tokens among the whole
        prompt.
        """
        return [] if self._last is None else kept_of(self._last)

    def encode_image(self, **inputs: Any) -> list[str]:
        """Compute the image stream of the images in a prompt ahead of any question, into the image cache.

        Args:
            inputs: what the processor gives for any prompt that holds the images; its text does not matter.

        Returns:
            The images' keys in the cache.

        Raises:
            InputError: there is no image cache, no image, or the plan has no shallow stage in which visual tokens are
                alone.
        """
        if self.image_cache is None or not self._depth:
            raise InputError(
                "an image stream takes an image cache, and a plan whose first stage runs visual tokens alone",
                "Attach with image_cache=ImageCache() a plan with visual_attention 'self' from layer 0",
            )
        self._ahead = True
        try:
            with torch.no_grad(), suppress(_Encoded):
                self.parts.model(**inputs, use_cache=False)
        finally:
            self._ahead, prefill, self._prefill = False, self._prefill, None
        stream = self._stream
        if stream is None:
            raise InputError("the prompt holds no image", "Pass input_ids with image tokens, and pixel_values")
        if stream.given is None and prefill is not None:
            stream.store(self.image_cache)
        return stream.keys

    def detach(self) -> None:
        """Put the model back as it was. Safe to call twice."""
        self._lease.active = False
        self._prefill = self._layout = None
        self._stack.close()

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    # -- attaching ---------------------------------------------------------------------------------------------------

    def _hook(self, stack: ExitStack) -> None:
        def undo(hook: Any) -> None:
            stack.callback(hook.remove)

        undo(self.parts.model.register_forward_pre_hook(self._before_model, with_kwargs=True))
        undo(self.parts.model.register_forward_hook(self._after_model))
        undo(self.parts.tower.register_forward_pre_hook(self._before_tower, with_kwargs=True))
        undo(self.parts.tower.register_forward_hook(self._after_tower, with_kwargs=True))
        for index, layer in enumerate(self.parts.layers):
            undo(layer.register_forward_pre_hook(self._before_layer(index), with_kwargs=True))
            undo(layer.register_forward_hook(self._after_layer(index)))

    @contextmanager
    def _divert(self, handler: Handler) -> Iterator[None]:
        """Send attention calls to another handler, for layers that run outside the main stream."""
        before, self._diverted = self._diverted, handler
        try:
            yield
        finally:
            self._diverted = before

    def _check_fast_form(self) -> None:
        probed = {int(stage.last) for stage in self.schedule.stages if any(s.probe for s in stage.selects)}
        alone = (i for i in range(len(self.parts.layers)) if self.schedule.stage_of(i).visual_attention == "self")
        find_fast_form(self.parts.tower, self._loners, probed | set(alone))

    # -- hooks -------------------------------------------------------------------------------------------------------

    def _before_model(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():  # a decode step over fixed buffers: nothing to decide
            return None
        guard.check_mode(model)
        self._layout = self._prefill = self._prompt_logits = self._stream = None
        if self._encoder is not None:
            self._encoder.forget()
        if args:
            kwargs = {**kwargs, "input_ids": args[0]}
        ids: Any = kwargs.get("input_ids")
        past = past_length(kwargs.get("past_key_values"))
        guard.check_prompt(kwargs, past)
        if self.schedule.empty or past or not bool(visual_rows(ids, self.parts.visual_ids).any()):
            return None
        guard.check_pixels(kwargs)
        after = continued(kwargs)
        if after:
            prompt, kwargs = split(kwargs, after, self.parts.tower.config)
            output = model(*args[1:], **prompt)
            self._prompt_logits = output[0] if isinstance(output, tuple) else output.logits
            return args[1:], kwargs
        self._layout = read(ids, self.parts.visual_ids, kwargs.get("attention_mask"))
        self._stream = self._find_stream(self.image_cache, kwargs, self._layout)
        if self._stream is not None and self._stream.given is not None:
            # What the pixels would become is known: the vision encoder does not run.
            return args[1:], {**kwargs, "pixel_values": None}
        return None

    def _find_stream(self, cache: ImageCache | None, kwargs: dict[str, Any], layout: Layout) -> Stream | None:
        if cache is None or not self._depth or kwargs.get("pixel_values") is None:
            return None
        if not self._fingerprint:
            shallow = list(self.parts.layers[: self._depth])
            self._fingerprint = fingerprint(self.parts.model, self._kept_layers, self._depth, shallow)
        keys, counts = images_of(self.parts.model, kwargs, sum(layout.visual_counts), self._fingerprint)
        stream = Stream(self._depth, self._kept_layers, keys, counts)
        found = cache.get(keys)
        if found is not None:
            stream.given = {layer: torch.cat([states[layer] for states in found]) for layer in self._kept_layers}
        return stream

    def _after_model(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        first, self._prompt_logits = self._prompt_logits, None
        return output if first is None else joined(first, output)

    def _before_tower(
        self, tower: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        cache: Any = kwargs.get("past_key_values")
        if torch.compiler.is_compiling():
            self._pruned = [] if cache is None else list(cache.layers)
            return None
        layout, self._layout = self._layout, None
        self._prefill = None
        self._known.clear()
        if layout is None:
            self._pruned = [layer for layer in getattr(cache, "layers", []) if isinstance(layer, PrunedLayer)]
            return None
        kwargs = dict(kwargs)
        use_cache = kwargs.get("use_cache")
        if cache is None and (tower.config.use_cache if use_cache is None else use_cache):
            cache = kwargs["past_key_values"] = DynamicCache()
        caches: list[PrunedLayer] = []
        if cache is not None:
            caches = install(cache, len(self.parts.layers), self._lease, layout.length, list(self.parts.windows))
        ranked = None if self._encoder is None else self._encoder.take(layout)
        prefill = Prefill(self.schedule, layout, self._loners, caches, self.seed, ranked, self._stream)
        features = kwargs.pop("deepstack_visual_embeds", None)
        prefill.deepstack = list(features) if features is not None else []
        self._prefill = prefill
        return args, kwargs

    def _after_tower(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if torch.compiler.is_compiling():
            return output
        prefill, self._prefill = self._prefill, None
        self._known.clear()
        if prefill is None:
            return output
        prefill.close()
        self._last = prefill
        if self.image_cache is not None and prefill.stream is not None and prefill.stream.given is None:
            prefill.stream.store(self.image_cache)
        hidden = output[0]
        rows = prefill.main
        if rows.whole:
            return output
        # Give every row its place back; dropped rows are zeros, so that logits line up with the prompt.
        wide = hidden.new_zeros(hidden.shape[0], rows.length + 1, hidden.shape[-1])
        target = torch.where(rows.filled, rows.index, rows.length).to(hidden.device)
        wide = wide.scatter(1, target[..., None].expand_as(hidden), hidden)[:, :-1]
        if isinstance(output, tuple):
            return (wide, *output[1:])
        output.last_hidden_state = wide
        return output

    def _before_layer(self, index: int) -> Callable[..., Any]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            prefill = self._prefill
            if prefill is not None:
                hidden = args[0] if args else kwargs.pop("hidden_states")
                hidden, kwargs = prefill.before(index, hidden, kwargs)
                if self._ahead and index == self._depth:
                    raise _Encoded
                return (hidden, *args[1:]), kwargs
            if self._pruned:
                return args, {**kwargs, "attention_mask": self._decode_mask(index, args, kwargs)}
            return None

        return hook

    def _after_layer(self, index: int) -> Callable[..., Any]:
        def hook(layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if self._prefill is not None:
                return self._prefill.after(index, output)
            if self._pruned:
                self._pruned[index].forget()
            return output

        return hook

    # -- attention ---------------------------------------------------------------------------------------------------

    def _attend(self, call: Call) -> tuple[Tensor, Tensor | None]:
        if self._diverted is not None:
            return self._diverted(call)
        if self._prefill is not None:
            return self._prefill.attend(call)
        output, weights = call.run()
        if self._pruned:
            rule = self.schedule.stage_of(call.layer).redistribute
            if rule is not None:
                output = redistribute_step(call, rule, self._pruned[call.layer], output)
        return output, weights

    def _decode_mask(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The columns of the model's mask that this layer's cache holds; layers that hold the same share one."""
        cache, mask = self._pruned[index], kwargs.get("attention_mask")
        if mask is None and cache.filled is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        assert cache.index is not None
        new = cache.generated + hidden.shape[1]
        if torch.compiler.is_compiling():
            return columns(mask, cache.index, cache.filled, new)
        key = (id(mask), id(cache.index), cache.generated)
        if key not in self._known:
            self._known[key] = (mask, columns(mask, cache.index, cache.filled, new))
        return self._known[key][1]  # type: ignore[no-any-return]
