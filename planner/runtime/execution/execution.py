"""A schedule executing on a model: what stands around the model's forward, its text tower, its decoder layers and their
attention.

    generate         where the prompt ends; before it encodes images, their image stream is looked up
    the model        find the visual tokens and their image stream; split a prompt from its continuation
    its text tower   make a `Prefill`, and put pruned layers into the cache; afterwards give every row its place back
    a layer          Prefill.before and Prefill.after, or in a decode step the columns of the mask that its cache holds
    its attention    Prefill.attend

Methods of single objects are wrapped, one attention function is registered and one attention name stands in the tower's
config: that is all that changes, and `close` puts all of it back.

Any number of threads may run the model. What a forward needs is in a `Forward` that only its own thread sees, what a
request needs after its prompt is in its cache; on the model, and here, is only what all of them share.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from planner.errors import RuntimeStateError
from planner.runtime.execution import guard
from planner.runtime.execution.compiled import CompiledPrefill
from planner.runtime.execution.continuation import prompt_ends, split
from planner.runtime.execution.decoding import Decoding
from planner.runtime.execution.gate import Gate
from planner.runtime.execution.packing import check_axes, pack_prompt, pack_step
from planner.runtime.execution.positions import Positions
from planner.runtime.execution.prefill import Prefill, Record
from planner.runtime.execution.thread import Forward, StreamComplete, Thread
from planner.runtime.imaging.images import PIXELS, brings_pixels
from planner.runtime.imaging.stream_lookup import PromptStream, StreamLookup
from planner.runtime.model.adapters import Parts
from planner.runtime.model.attention import Call, attention_hook
from planner.runtime.model.cache import Attachment, PrunedLayer, install, past_length, pruned_layers
from planner.runtime.model.exchange import Function, uncopied, wrapped
from planner.runtime.model.generation import generating, prompt_of
from planner.runtime.model.isolated import Diversion, IsolatedLayer, find_fast_form
from planner.runtime.model.recurrent import RecurrentLayer
from planner.runtime.selection.entry import Entry
from planner.runtime.tensors.layout import Layout, read_layout, visual_rows
from planner.runtime.tensors.rows import Rows
from planner.schedule import Schedule

_log = logging.getLogger(__name__)


class Execution:
    """A schedule on a model from construction to `close`.

    Args:
        parts: the model.
        schedule: what to execute.
        seed: of random selections, added to each selection's own.
        lookup: where image streams are looked up and kept.
    """

    def __init__(self, parts: Parts, schedule: Schedule, seed: int, lookup: StreamLookup) -> None:
        check_axes(schedule, parts)
        self.parts, self.schedule, self.seed, self.lookup = parts, schedule, seed, lookup
        self.thread = Thread()
        self._last: Record | None = None
        self._told = False
        self._gate = Gate()
        self._attachment = Attachment()
        self._positions = Positions(parts)
        #: Of steps that are compiled, whose code cannot look at what belongs to a thread; empty between them.
        self._compiled = Decoding(schedule)
        self._diversion = Diversion()
        self.compiled: CompiledPrefill | None = None
        self._entry: Entry | None = None
        self._signature = inspect.signature(parts.model.forward)
        self._isolated_layers = tuple(
            IsolatedLayer(layer, parts.attentions[index], parts.heads, self._diversion, parts.form)
            if index in parts.attentions
            else RecurrentLayer(layer, index, self._diversion)
            for index, layer in enumerate(parts.layers)
        )
        with ExitStack() as stack:
            if not schedule.empty:
                self._install(stack)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Put the model back as it was, once the forwards that run now are through. Safe to call twice.

        Raises:
            RuntimeStateError: called from inside a forward of the model.
        """
        with self._gate.closing() as first:
            if first:
                self._attachment.active = False
                self._stack.close()

    @property
    def last(self) -> Record | None:
        """The calling thread's last prompt with an image; that of any thread, where this one had none."""
        return self.thread.last or self._last

    def _install(self, stack: ExitStack) -> None:
        parts = self.parts
        self._attention = stack.enter_context(attention_hook(parts.attentions, self._attend, self._traced, self._idle))
        self._find_fast_forms(stack)
        if self.schedule.entry is not None:
            self._entry = Entry(parts, self.schedule.entry, self.seed)
            stack.enter_context(self._entry.watching())
        stack.enter_context(generating(parts.model, self._around_generate, self._before_encoding))
        around = self._compilable(self._run, self._in_fixed_step)
        stack.enter_context(wrapped(parts.model, "forward", around))
        stack.enter_context(wrapped(parts.tower, "forward", self._compilable(self._tower, self._fixed_tower)))
        for index, layer in enumerate(parts.layers):
            eager, fixed = partial(self._layer, index), partial(self._fixed_layer, index)
            stack.enter_context(wrapped(layer, "forward", self._compilable(eager, fixed)))
        for module in {parts.model, getattr(parts.model, "model", parts.model), parts.tower, *parts.layers}:
            stack.enter_context(uncopied(module))

    def _find_fast_forms(self, stack: ExitStack) -> None:
        schedule, layers = self.schedule, range(len(self.parts.layers))
        chosen = {int(stage.last) for stage in schedule.stages if any(s.probe for s in stage.selects)}
        # Rows that see the text before them need all projections, except where they are cached and text reads them.
        for index in layers:
            stage = schedule.stage_of(index)
            if stage.visual_attention == "self" or (stage.isolated and stage.text_to_visual != "none"):
                chosen.add(index)
        with ExitStack() as trial:
            for index in chosen:
                trial.enter_context(self._isolated_layers[index].skippable())
            find_fast_form(self.parts.tower, self._isolated_layers, chosen)
        for layer in self._isolated_layers:
            if layer.fast:
                stack.enter_context(layer.skippable())

    def _compilable(self, eager: Callable[..., Any], fixed: Callable[..., Any]) -> Callable[[Function], Function]:
        """What stands around a forward: `eager`; in compiled steps over fixed buffers `fixed`, which is traced.

        Any other compiled code leaves its graph here and comes back in the original.
        """
        outside, thread = torch.compiler.disable(eager), self.thread

        def around(original: Function) -> Function:
            def forward(*args: Any, **kwargs: Any) -> Any:
                current = thread.forward
                if torch.compiler.is_compiling():
                    if _over_fixed_buffers(kwargs):
                        return fixed(original, args, kwargs)
                    if current is not None and current.traced:
                        return eager(original, args, kwargs)
                    return outside(original, args, kwargs)
                if current is not None and current.plain and kwargs.get("attention_mask") is None:
                    return original(*args, **kwargs)  # a step that the model takes as it is: no time to lose
                return eager(original, args, kwargs)

            return forward

        return around

    # -- generate ----------------------------------------------------------------------------------------------------

    def _around_generate(self, original: Function) -> Function:
        def generate(*args: Any, **kwargs: Any) -> Any:
            thread = self.thread
            before, thread.prompt = thread.prompt, prompt_of(self.parts.model, args, kwargs)
            try:
                return original(*args, **kwargs)
            finally:
                thread.prompt, thread.awaited = before, None

        return generate

    def _before_encoding(self, ids: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """`generate` is about to encode the images of a prompt, whose forward will not see their pixels."""
        thread = self.thread
        thread.awaited = None
        if guard.check_turn(kwargs) or past_length(kwargs.get("past_key_values")):
            return kwargs
        guard.check_pixels(kwargs)
        layout = read_layout(ids, self.parts.visual_ids, kwargs.get("attention_mask"))
        if self._entry is not None:
            self._entry.begin(kwargs, layout)
        stream = self.lookup.stream_of(kwargs, layout) if any(layout.visual_counts) else None
        if stream is None:
            return kwargs
        thread.awaited = (ids, stream)
        return kwargs if stream.given is None else {k: v for k, v in kwargs.items() if k not in PIXELS}

    # -- the model ---------------------------------------------------------------------------------------------------

    def _run(self, original: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._gate.passing() as attached:
            if not attached:
                return original(*args, **kwargs)
            guard.check_mode(self.parts.model)
            named = {**self._signature.bind_partial(*args).arguments, **kwargs} if args else kwargs
            return self._forward(original, named)

    def _in_fixed_step(self, original: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return original(*args, **kwargs)

    def _forward(self, original: Function, kwargs: dict[str, Any]) -> Any:
        ids, past = kwargs.get("input_ids"), past_length(kwargs.get("past_key_values"))
        guard.check_prompt(kwargs, past)
        guard.check_attention(self.parts, self._attention)
        if guard.check_turn(kwargs):
            warnings.warn("an image arrived after a turn without one: this prompt runs without the plan", stacklevel=2)
        if past:
            with self._opened(Forward(decoding=Decoding.over(self.schedule, kwargs["past_key_values"]))):
                return original(**self._positions.supplied(kwargs))
        assert ids is not None
        if not bool(visual_rows(ids, self.parts.visual_ids).any()):
            with self._opened(Forward()):
                return original(**kwargs)
        guard.check_pixels(kwargs)
        if brings_pixels(kwargs) and self._entry is not None:
            self._entry.begin(kwargs, read_layout(ids, self.parts.visual_ids, kwargs.get("attention_mask")))
        ends = prompt_ends(kwargs, self.parts.visual_ids, self.thread.prompt_lengths, self.thread.prompt)
        if ends is None:
            return self._prompt(original, kwargs)
        parts = split(kwargs, ends, self.parts)
        prompt = self._prompt(original, parts.prompt)
        return parts.join(self.parts.model, prompt, self._forward(original, parts.rest))

    def _prompt(self, original: Function, kwargs: dict[str, Any]) -> Any:
        layout = read_layout(kwargs["input_ids"], self.parts.visual_ids, kwargs.get("attention_mask"))
        stream = self._find_stream(kwargs, layout)
        if stream is not None and stream.given is not None:
            # What the pixels would become is known: the vision encoder does not run.
            kwargs = {**kwargs, **{name: None for name in PIXELS if name in kwargs}}
        guard.check_length(layout.length, self.parts)
        forward = Forward(layout, stream)
        self.thread.stream = stream
        with self._opened(forward):
            output = original(**kwargs)
        if forward.prefill is None or not forward.prefill.complete:
            raise RuntimeStateError(
                "the plan did not take effect: the model's forward went past the layers it was attached to",
                "Attach the plan after everything else that replaces parts of the model",
            )
        return output

    @contextmanager
    def _opened(self, forward: Forward) -> Iterator[None]:
        before, self.thread.forward = self.thread.forward, forward
        try:
            yield
        finally:
            self.thread.forward = before

    def _find_stream(self, kwargs: dict[str, Any], layout: Layout) -> PromptStream | None:
        thread = self.thread
        awaited, thread.awaited = thread.awaited, None
        if awaited is not None and not brings_pixels(kwargs):
            prompt, stream = awaited
            # Beam search and several answers repeat every sample.
            times = len(layout.ids) // len(prompt)
            if torch.equal(prompt.repeat_interleave(times, dim=0), layout.ids):
                if thread.prompt is not None:  # without a cache, `generate` will come with this prompt again
                    thread.awaited = awaited
                return stream.repeated(times)
        return self.lookup.stream_of(kwargs, layout, thread.encoding)

    # -- its text tower ----------------------------------------------------------------------------------------------

    def _tower(self, original: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        forward = self.thread.forward
        if forward is None and self._gate.open:
            raise RuntimeStateError(
                "the text tower was called without the model's forward, so that a plan could not take effect",
                "Call the model itself, its forward or generate, or detach the plan",
            )
        if self.parts.lenders and "logits_to_keep" in kwargs:
            # Or the tower would let the last row alone into layers that borrow keys, past the rows a plan knows of.
            kwargs = {**kwargs, "logits_to_keep": None}
        if forward is None or forward.layout is None:
            self._positions.note(kwargs)
            return original(*args, **pack_step(kwargs))
        return self._tower_prefill(forward, forward.layout, original, args, dict(kwargs))

    def _tower_prefill(
        self, forward: Forward, layout: Layout, original: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        cache, use_cache = kwargs.get("past_key_values"), kwargs.get("use_cache")
        if cache is None and (self.parts.tower.config.use_cache if use_cache is None else use_cache):
            cache = kwargs["past_key_values"] = DynamicCache()
        caches: Mapping[int, PrunedLayer] = {}
        if cache is not None:
            caches = install(cache, self._attachment, layout.length, self.parts.windows, self.parts.lenders)
        self._positions.note(kwargs)
        features = list(kwargs.pop("deepstack_visual_embeds", None) or [])
        entered = None
        if self._entry is not None:
            found = self._entry.enter(layout, kwargs["inputs_embeds"], features)
            entered, kwargs["inputs_embeds"], features = found.stays, found.embeddings, found.features
            if self.schedule.positions == "packed":
                kwargs = pack_prompt(kwargs, layout.visual & ~entered.mask)
        prefill = self._prefill(layout, caches, entered, forward.stream)
        prefill.check_sight()
        forward.prefill = prefill
        if self.compiled is not None and not args and self.compiled.serves(layout, forward, entered):
            hidden, record = self.compiled(original, layout, caches, entered, features, kwargs)
            for layer in caches.values():
                layer.close()
            prefill.complete = len(record.tokens) == self.schedule.layers
            self._note(record, layout)
            return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache)
        prefill.deepstack = features
        output = original(*args, **kwargs)
        prefill.close()
        self._note(prefill.record, layout)
        self.lookup.remember(prefill.image_stream)
        if prefill.streams.main.whole:
            return output
        # Every row gets its place back, so that logits line up with the prompt.
        wide = prefill.streams.main.restore(output[0])
        if isinstance(output, tuple):
            return (wide, *output[1:])
        output.last_hidden_state = wide
        return output

    def _note(self, record: Record, layout: Layout) -> None:
        """Keep what a prompt computed, and tell of the first one of which a plan that drops tokens dropped none."""
        self._last = self.thread.last = record
        if self._told or not self.schedule.selects:
            return
        text = tuple(valid - visual for valid, visual in zip(layout.valid_counts, layout.visual_counts, strict=True))
        if all(layer == (layout.visual_counts, text) for layer in record.tokens):
            self._told = True
            _log.warning(
                "the plan dropped nothing of a prompt with %s visual and %s text tokens: it keeps as many, or more",
                *(" or ".join(map(str, sorted(set(counts)))) for counts in (layout.visual_counts, text)),
            )

    def _prefill(
        self,
        layout: Layout,
        caches: Mapping[int, PrunedLayer],
        entered: Rows | None = None,
        stream: PromptStream | None = None,
    ) -> Prefill:
        parts = self.parts
        return Prefill(
            self.schedule,
            layout,
            self._isolated_layers,
            caches,
            self.seed,
            entered,
            stream,
            parts.windows,
            parts.lenders,
        )

    def compile_prefill(self, buckets: Sequence[int] | None, options: dict[str, Any]) -> None:
        """From now on run prompts through compiled graphs, see `CompiledPrefill`."""
        guard.check_fixed_shapes(self.parts)
        self.compiled = CompiledPrefill(self.schedule, self._prefill, self.thread, self.parts.windows, buckets, options)

    def _fixed_tower(self, original: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._compiled.layers = pruned_layers(kwargs["past_key_values"])
        output = original(*args, **kwargs)
        self._compiled.layers = {}
        return output

    # -- its decoder layers ------------------------------------------------------------------------------------------

    def _layer(self, index: int, original: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        forward = self.thread.forward
        if forward is None:
            return original(*args, **kwargs)
        decoding = forward.decoding
        if decoding is not None:
            output = original(*args, **decoding.before(index, args, kwargs))
            decoding.after(index)
            return output
        prefill = forward.prefill
        if prefill is None:
            return original(*args, **kwargs)
        hidden, kwargs = prefill.before(index, *self._isolated_layers[index].named(args, kwargs))
        if self.thread.encoding and index == self.lookup.extent.depth:
            raise StreamComplete
        return prefill.after(index, original(self.parts.form.given(hidden), **kwargs))

    def _fixed_layer(self, index: int, original: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return original(*args, **self._compiled.before(index, args, kwargs))

    # -- their attention ---------------------------------------------------------------------------------------------

    def _traced(self) -> bool:
        return bool(self._compiled.layers) or (self.thread.forward is not None and self.thread.forward.traced)

    def _idle(self) -> bool:
        forward = self.thread.forward
        return forward is not None and forward.decoding is not None and forward.decoding.plain_attention

    def _attend(self, call: Call) -> tuple[Tensor, Tensor | None]:
        if torch.compiler.is_compiling() and self._compiled.layers:
            return self._compiled.attend(call)
        handler, forward = self._diversion.handler, self.thread.forward
        if handler is not None:
            return handler(call)
        if forward is None:
            return call.run()
        if forward.prefill is not None:
            return forward.prefill.attend(call)
        return call.run() if forward.decoding is None else forward.decoding.attend(call)


def _over_fixed_buffers(kwargs: dict[str, Any]) -> bool:
    """Whether a forward runs over a cache of fixed buffers (`planner.runtime.fix`)."""
    layers: Any = getattr(kwargs.get("past_key_values"), "layers", None)
    return layers is not None and len(layers) > 0 and getattr(layers[0], "is_compileable", False) is True
