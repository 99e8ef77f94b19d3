"""A prefill as compiled graphs, one for every length bucket.

Static budgets make every shape a function of the prompt's length. Prompts are padded on the left to the length of their
bucket, and inside the graph padding is text that the mask hides, so that the number of rows in every layer is fixed.
Images are encoded and tokens embedded before the graph begins; the cache that comes out of it is that of an ordinary
pruned prefill.
"""

from __future__ import annotations

import threading
import types
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers.cache_utils import DynamicCache

from planner.errors import InputError
from planner.runtime.execution.prefill import Prefill, Record
from planner.runtime.execution.thread import Forward, Thread
from planner.runtime.model.cache import Attachment, PrunedLayer, install
from planner.runtime.model.exchange import Function
from planner.runtime.selection.ranking import not_finite
from planner.runtime.tensors.layout import Layout
from planner.runtime.tensors.rows import Rows
from planner.schedule import Schedule, Threshold

#: Scores that do not depend on which text is padding.
RANKED_BY = ("none", "last_attention", "last_attention_detrended", "influence_l2", "influence_cos")
#: Where no buckets are given, lengths are rounded up to multiples of this.
STEP = 64
#: Arguments of a text tower with one entry per token, in their last dimension; embeddings in the last but one.
_PER_TOKEN = ("position_ids", "visual_pos_masks", "token_type_ids", "mm_token_type_ids")

#: Makes the prefill of a layout over some caches, given the visual rows that the schedule's entry lets in.
Make = Callable[[Layout, Mapping[int, PrunedLayer], Rows | None], Prefill]


def check_compilable(schedule: Schedule) -> None:
    """Refuse a schedule whose prefill has no fixed shapes.

    Raises:
        InputError: naming what makes them depend on the image, or on the text.
    """
    if schedule.empty:
        raise InputError("a plan that changes nothing has nothing to compile", "Use torch.compile on the model itself")
    for select in schedule.selects:
        if isinstance(select.keep, Threshold):
            raise InputError("a plan with thresholds has no fixed shapes", "Compile one that keeps counts or shares")
        if select.of == "context":
            raise InputError(
                "a plan that prunes text has no fixed shapes", "Compile one that prunes visual tokens only"
            )
        if select is not schedule.entry and select.rank_by not in RANKED_BY:
            raise InputError(
                f"a plan that ranks by '{select.rank_by}' cannot be compiled",
                f"Compile one that ranks by {', '.join(RANKED_BY[1:])}",
            )
    if any(stage.redistribute is not None for stage in schedule.stages):
        raise InputError("a plan that redistributes attention cannot be compiled", "Leave 'var' out of it")


class CompiledPrefill:
    """Runs prompts through compiled graphs. Graphs are made on first use, and kept.

    Args:
        schedule: what to execute.
        make: makes a prefill.
        thread: where the forward of the calling thread is.
        windows: sliding window per layer, None for full attention.
        buckets: lengths of prompts, in tokens. None: multiples of `STEP`, as prompts come.
        options: of `torch.compile`, such as ``mode="reduce-overhead"`` for CUDA graphs.

    Raises:
        InputError: the schedule has no fixed shapes, or a bucket is no length.
    """

    def __init__(
        self,
        schedule: Schedule,
        make: Make,
        thread: Thread,
        windows: Sequence[int | None],
        buckets: Sequence[int] | None,
        options: dict[str, Any],
    ) -> None:
        check_compilable(schedule)
        if buckets is not None and (not buckets or min(buckets) < 1):
            raise InputError(f"buckets {list(buckets)} are no lengths of prompts", "Give lengths of 1 token or more")
        self.schedule, self.make, self.thread, self.windows = schedule, make, thread, list(windows)
        self.buckets = None if buckets is None else sorted(buckets)
        self.options = {"fullgraph": True, "dynamic": False, **options}
        self._one_at_a_time = threading.Lock()
        self._graphs: dict[tuple[int | str, ...], Callable[..., Any]] = {}

    def bucket(self, length: int) -> int | None:
        """The length that a prompt is padded to; None where it is longer than the longest bucket."""
        if self.buckets is None:
            return -(-length // STEP) * STEP
        place = bisect_left(self.buckets, length)
        return self.buckets[place] if place < len(self.buckets) else None

    def serves(self, layout: Layout, forward: Forward, entered: Rows | None) -> bool:
        """Whether a batch has fixed shapes: every sample as many visual tokens, before the schedule's entry and after
        it, a bucket, no image stream."""
        even = len(set(layout.visual_counts)) == 1 and (entered is None or not entered.ragged)
        return forward.stream is None and even and self.bucket(layout.length) is not None

    def __call__(
        self,
        original: Function,
        layout: Layout,
        caches: Mapping[int, PrunedLayer],
        entered: Rows | None,
        features: list[Tensor],
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Record]:
        """The hidden states ``[B, n, d]`` of a batch that this serves, and what was done. Fills the caches.

        Args:
            original: the text tower's own forward.
            layout: parts of the prompts.
            caches: the cache's layers by index, empty without a cache.
            entered: the visual rows that the schedule's entry lets in, None without one.
            features: visual features that the family adds after each of the first layers.
            kwargs: arguments of the text tower.

        Raises:
            RuntimeStateError: a score is not a number.
        """
        length, bucket = layout.length, self.bucket(layout.length)
        assert bucket is not None
        pad, batch = bucket - length, len(layout.ids)
        arguments = _padded(kwargs, pad, layout)
        # Positions, for instance, come from `generate` and not from a bare forward.
        given = sorted(name for name, value in arguments.items() if value is not None)
        ahead_width, let_in = self._ahead_width(layout, bucket), 0 if entered is None else entered.counts[0]
        shape: tuple[int | str, ...] = (bucket, batch, layout.visual_counts[0], ahead_width, let_in, *given)
        visual, ahead = (nn.functional.pad(flags, (pad, 0)) for flags in (layout.visual, layout.ahead))
        inside = None if entered is None else nn.functional.pad(entered.mask, (pad, 0))
        before = self.thread.forward
        # One thread at a time, until its results are copied: a graph on a GPU writes into the same memory again.
        with self._one_at_a_time:
            if shape not in self._graphs:
                self._graphs[shape] = torch.compile(_with_code_of_its_own(self._traced()), **self.options)
            try:
                *found, tokens = self._graphs[shape](
                    original, visual, layout.visual_counts[0], ahead, ahead_width, inside, let_in, features, arguments
                )
                hidden, keys, values, index, kept, finite = tree_map_only(Tensor, Tensor.clone, found)
            finally:
                self.thread.forward = before
        if not all(bool(flag) for flag in finite):
            raise not_finite("of a selection")
        for cache, key, value, rows in zip(caches.values(), keys, values, index, strict=False):
            cache.fill(key[:, :, pad:], value[:, :, pad:], _rows(rows[:, pad:] - pad, length))
        record = Record(self.schedule, layout.visual, [_rows(rows - pad, length) for rows in kept], [])
        text = tuple(v - n for v, n in zip(layout.valid_counts, layout.visual_counts, strict=True))
        record.tokens.extend((visual, text) for visual, _ in tokens)
        return hidden[:, pad:], record

    def _ahead_width(self, layout: Layout, bucket: int) -> int:
        """Text before the last visual row that a graph has room for: prompts that differ little there share one."""
        if all(stage.visual_attention != "prefix" for stage in self.schedule.stages):
            return 0
        return min(-(-max(layout.ahead_counts) // STEP) * STEP, bucket - layout.visual_counts[0])

    def _traced(self) -> Callable[..., Any]:
        """What is compiled: the prefill of a padded batch, all tensors out."""
        make, thread, windows = self.make, self.thread, self.windows

        def run(
            original: Function,
            visual: Tensor,
            count: int,
            ahead: Tensor,
            ahead_width: int,
            inside: Tensor | None,
            let_in: int,
            features: list[Tensor],
            arguments: dict[str, Any],
        ) -> Any:
            length = visual.shape[1]
            cache = DynamicCache()
            caches = install(cache, Attachment(), length, windows, {})
            entered = None if inside is None else Rows.of(inside, (let_in,) * len(inside))
            prefill = make(_layout_of_padded(visual, count, ahead, ahead_width), caches, entered)
            prefill.deepstack = features
            thread.forward = Forward(prefill.layout, None, prefill, traced=True)
            output = original(**arguments, past_key_values=cache, use_cache=True)
            thread.forward = None
            return (
                prefill.streams.main.restore(output[0]),
                [layer.keys for layer in caches.values()],
                [layer.values for layer in caches.values()],
                [layer.index for layer in caches.values()],
                [rows.index for rows in prefill.record.kept],
                prefill.ranking.finite,
                prefill.record.tokens,
            )

        return run


def _layout_of_padded(visual: Tensor, count: int, ahead: Tensor, ahead_width: int) -> Layout:
    """The layout of a batch in which padding on the left is text, though not text that visual rows could see."""
    batch, length = visual.shape
    everything = torch.ones_like(visual)
    last = torch.full((batch,), length - 1, device=visual.device)
    after = (visual.cumsum(1) > 0) & ~visual
    # Nothing that is compiled asks how much text comes after the image, nor which text it is.
    counts = [(number,) * batch for number in (length, count, 0, ahead_width)]
    return Layout(visual, visual, everything, after, ahead, last, *counts)


def _padded(kwargs: dict[str, Any], pad: int, layout: Layout) -> dict[str, Any]:
    """A text tower's arguments, `pad` hidden rows longer on the left."""
    found = {name: value for name, value in kwargs.items() if name not in ("past_key_values", "use_cache")}
    mask = found.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and not pad and bool(mask.all()):
        mask = found["attention_mask"] = None  # nothing is hidden: the kernel's own causal form
    if mask is None and pad:
        mask = torch.ones(layout.ids.shape, dtype=torch.long, device=layout.ids.device)
    if mask is not None:
        found["attention_mask"] = _padded_mask(mask, pad)
    found["inputs_embeds"] = nn.functional.pad(found["inputs_embeds"], (0, 0, pad, 0))
    if found.get("position_ids") is None:  # or the tower would count from the first row of padding
        found["position_ids"] = torch.arange(layout.length, device=layout.ids.device)[None]
    for name in _PER_TOKEN:
        if isinstance(found.get(name), Tensor):
            found[name] = nn.functional.pad(found[name], (pad, 0))
    if isinstance(found.get("per_layer_inputs"), Tensor):  # [B, n, layers, d]
        found["per_layer_inputs"] = nn.functional.pad(found["per_layer_inputs"], (0, 0, 0, 0, pad, 0))
    if isinstance(found.get("cache_position"), Tensor):
        found["cache_position"] = torch.arange(layout.length + pad, device=layout.ids.device)
    return found


def _padded_mask(mask: Any, pad: int) -> Any:
    """A padding mask ``[B, n]``, or the masks ``[B, 1, n, n]`` that some families build before their text tower."""
    if isinstance(mask, dict):
        return {kind: None if one is None else _padded_mask(one, pad) for kind, one in mask.items()}
    if mask.ndim == 2:
        return nn.functional.pad(mask, (pad, 0))
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    wide = nn.functional.pad(mask, (pad, 0, pad, 0), value=hidden)
    # No softmax over nothing: padding sees itself.
    itself = torch.arange(pad, device=mask.device)
    wide[..., itself, itself] = True if mask.dtype == torch.bool else 0.0
    return wide


def _rows(index: Tensor, length: int) -> Rows:
    return Rows(index, (int(index.shape[1]),) * len(index), length)


def _with_code_of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of a function that compilers take for another one: they count recompilations by code."""
    assert isinstance(function, types.FunctionType)
    return types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
