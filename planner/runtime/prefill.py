"""One prefill under a schedule: which rows each layer runs, what its attention sees, what its cache keeps.

The state moves from layer to layer. `main` is the stream that goes through the unmodified layers; while visual tokens
see only themselves they are `alone`, outside it. At the first layer of a stage what the previous stage selected is
dropped from wherever it is, and the streams part or join as the stage says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planner.errors import RuntimeStateError
from planner.runtime import scores
from planner.runtime.attention import Call
from planner.runtime.cache import PrunedLayer
from planner.runtime.image_cache import Stream
from planner.runtime.layout import Layout
from planner.runtime.masks import hide, part
from planner.runtime.redistribute import redistribute
from planner.runtime.rows import Rows, gather
from planner.runtime.scores import Scored
from planner.runtime.select import survivors
from planner.runtime.sight import Alone, Sight
from planner.runtime.stream import Loner, first, part_of_kwargs, with_first
from planner.runtime.weights import sink_value, weighted_values, working_dtype
from planner.schedule import Redistribute, Schedule, Select, Stage, Threshold


class Prefill:
    """The prefill of one batch.

    Args:
        schedule: what to execute.
        layout: parts of the prompts.
        loners: per layer, how visual rows run alone and how a layer is probed.
        caches: the cache's layers, empty without a cache.
        seed: of random selections.
        stream: the image stream of the shallow layers, to be read or filled.
        entry_scores: scores of the visual rows that exist before layer 0, ``[B, n]``, for the schedule's entry.
    """

    def __init__(
        self,
        schedule: Schedule,
        layout: Layout,
        loners: tuple[Loner, ...],
        caches: list[PrunedLayer],
        seed: int,
        entry_scores: Tensor | None = None,
        stream: Stream | None = None,
    ) -> None:
        self.schedule, self.layout, self.loners, self.caches, self.seed = schedule, layout, loners, caches, seed
        self.entry_scores, self.stream = entry_scores, stream
        batch = layout.ids.shape[0]
        self.main = Rows.all(batch, layout.length, layout.ids.device)
        self.alone: Rows | None = None
        self.alone_hidden: Tensor | None = None
        self.visual = Rows.of(layout.visual, layout.visual_counts)
        self.text = Rows.of(
            layout.valid & ~layout.visual,
            tuple(valid - visual for valid, visual in zip(layout.valid_counts, layout.visual_counts, strict=True)),
        )
        self.deepstack: list[Tensor] = []
        self.kept: list[Rows] = []
        self.tokens: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        self._scored: Scored | None = None
        self._sight: Sight | None = None
        self._held: list[Rows] = []
        self._known: dict[Any, Any] = {}

    # -- a layer's life: before, attend, after -----------------------------------------------------------------------

    def before(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """What the layer runs on: the hidden states and keyword arguments of the main stream."""
        stage = self.schedule.stage_of(layer)
        if layer == stage.first:
            hidden = self._enter(stage, hidden, kwargs)
        self.tokens.append((self.visual.counts, self.text.counts))
        alone = self._run_alone(layer, stage, kwargs) if self.alone is not None else None
        keys = self._union() if alone is not None and alone.key is not None else self.main
        mask = self._mask(kwargs.get("attention_mask"), keys, stage)
        self._sight = Sight(stage, hidden, keys, alone)
        return hidden, part_of_kwargs(kwargs, self.main, mask, self._known)

    def attend(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """The layer's attention: the kernel, with the keys and values of rows outside the main stream."""
        sight = self._sight
        assert sight is not None
        if sight.alone is not None and sight.alone.key is not None and sight.alone.shown is not None:
            order = self._order(sight.keys)
            call.key = gather(torch.cat([sight.alone.key, call.key], dim=2), order, dim=2)
            call.value = gather(torch.cat([sight.alone.shown, call.value], dim=2), order, dim=2)
        output, weights = call.run()
        if sight.stage.redistribute is not None:
            output = self._redistribute(sight.stage.redistribute, sight, call, output)
        if call.layer == sight.stage.last - 1 and any(_scores_here(select) for select in sight.stage.selects):
            self._scored = self._scored_by(sight, call, output)
        return output, weights

    def after(self, layer: int, output: Any) -> Any:
        """What goes on to the next layer; fills the layer's cache."""
        sight, self._sight = self._sight, None
        hidden = first(output)
        if self.caches:
            assert sight is not None
            self._fill(self.caches[layer], sight)
        if layer < len(self.deepstack):
            hidden = self._add_deepstack(self.deepstack[layer], hidden)
        if layer == self.schedule.layers - 1:
            hidden = self._leave(self.schedule.stages[-1], layer + 1, hidden, None)
        return with_first(output, hidden)

    def close(self) -> None:
        """The prompt is through."""
        for cache in self.caches:
            cache.close()
        self._known.clear()

    # -- stages ------------------------------------------------------------------------------------------------------

    def _enter(self, stage: Stage, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        layer = int(stage.first)
        if self.stream is not None and layer == self.stream.depth and self.alone is not None:
            assert self.alone_hidden is not None
            if self.stream.given is not None:
                self.alone_hidden = self.stream.give(layer, self.alone, hidden)
            else:
                self.stream.take(layer, self.alone_hidden, self.alone)
        if layer == 0:
            if self.schedule.entry is not None:
                hidden = self._drop(self.schedule.entry, 0, hidden, None)
        else:
            hidden = self._leave(self.schedule.stage_of(layer - 1), layer, hidden, kwargs)
        if stage.visual_attention == "self" and self.alone is None and self.visual.width:
            self.alone, self.alone_hidden = self.visual, gather(hidden, self.main.slots_of(self.visual))
            hidden = self._move_main(self.text, hidden)
        elif stage.visual_attention == "full" and self.alone is not None:
            union = self._union()
            hidden = self._joined(hidden, union)
            self.main, self.alone, self.alone_hidden = union, None, None
        return hidden

    def _leave(self, stage: Stage, layer: int, hidden: Tensor, kwargs: dict[str, Any] | None) -> Tensor:
        """Drop what the stage that ends at `layer` selects, from the streams and from the caches of the stage."""
        for select in stage.selects:
            scored = self._scored
            if select.probe and kwargs is not None:
                scored = self._probe(layer, hidden, kwargs, select)
            hidden = self._drop(select, layer, hidden, scored)
        self._scored = None
        if self.caches and stage.cache_visual == "kept" and stage.text_to_visual != "merge" and stage.selects:
            for passed in range(int(stage.first), int(stage.last)):
                self._trim(passed)
        return hidden

    def _drop(self, select: Select, layer: int, hidden: Tensor, scored: Scored | None) -> Tensor:
        if select.of == "context":
            flags = self.text.mask & self.layout.after & ~self.layout.protected(select.protect)
            ranked = Rows.of(flags, tuple(int(count) for count in flags.sum(1).tolist()))
        else:
            ranked = self.visual
        if ranked.width == 0:
            self.kept.append(ranked)
            return hidden
        stays = survivors(self._score(select, layer, ranked, scored, hidden), ranked, select.keep)
        self.kept.append(stays)
        if select.of == "context":
            rest = self.text.mask & ~(ranked.mask & ~stays.mask)
            counts = (t - r + s for t, r, s in zip(self.text.counts, ranked.counts, stays.counts, strict=True))
            self.text = Rows.of(rest, tuple(counts))
        elif self.alone is not None:
            assert self.alone_hidden is not None
            self.alone_hidden = gather(self.alone_hidden, self.alone.slots_of(stays))
            self.visual = stays
            self.alone = stays if stays.width else None
            return hidden
        else:
            self.visual = stays
        return self._move_main(self.text if self.alone is not None else self._both(), hidden)

    def _score(self, select: Select, layer: int, ranked: Rows, scored: Scored | None, hidden: Tensor) -> Tensor:
        if select.rank_by == "none":
            return torch.zeros(ranked.index.shape, device=ranked.index.device)
        if select.rank_by == "random":
            return scores.random(self.layout, ranked, self.seed + select.seed, layer - 1)
        if select.rank_by in scores.BY_ATTENTION:
            assert scored is not None
            found = scores.BY_ATTENTION[select.rank_by](scored, ranked)
            relative = isinstance(select.keep, Threshold) and select.keep.relative
            found = scores.relative(scored, found) if relative else found
        elif select.rank_by == "encoder_norm":
            found = gather(hidden, self.main.slots_of(ranked)).to(working_dtype(hidden)).norm(dim=-1)
        else:
            assert self.entry_scores is not None
            found = self.entry_scores.gather(1, ranked.index.clamp(min=0))
        if not bool(torch.isfinite(found).all()):
            raise RuntimeStateError(
                f"the score '{select.rank_by}' after layer {layer - 1} is not finite",
                "Check the pixel values and the model for NaN or infinite numbers",
            )
        return found.to(ranked.index.device)

    def _probe(self, layer: int, hidden: Tensor, kwargs: dict[str, Any], select: Select) -> Scored:
        """Keys (and values) of all rows and the last row's query in the layer that comes next, which has not run."""
        loner = self.loners[layer]
        rows = self._union() if self.alone is not None else self.main
        hidden = self._joined(hidden, rows) if self.alone is not None else hidden
        last = Rows(self.layout.last[:, None], (1,) * hidden.shape[0], self.layout.length)
        influences = select.rank_by != "last_attention"
        call = loner.project(hidden, part_of_kwargs(kwargs, rows, None, self._known), keys=True, values=influences)
        asking = loner.project(
            gather(hidden, rows.slots_of(last)), part_of_kwargs(kwargs, last, None, self._known), query=True
        )
        call.query, call.mask = asking.query, part(kwargs.get("attention_mask"), last, rows)
        return Scored(call, None, last, rows, hidden, rows, self.layout)

    # -- streams -----------------------------------------------------------------------------------------------------

    def _both(self) -> Rows:
        """Text and visual rows in prompt order."""
        counts = tuple(t + v for t, v in zip(self.text.counts, self.visual.counts, strict=True))
        return Rows.of(self.text.mask | self.visual.mask, counts)

    def _union(self) -> Rows:
        """The rows of the main stream and of those alone, in prompt order."""
        assert self.alone is not None
        key = ("union", id(self.main), id(self.alone))
        if key not in self._known:
            self._known[key] = (self.main, self.alone, self._both())
        return self._known[key][2]  # type: ignore[no-any-return]

    def _with(self, added: Rows) -> Rows:
        """The main stream and some rows outside it, in prompt order."""
        if added is self.alone:
            return self._union()
        counts = tuple(m + a for m, a in zip(self.main.counts, added.counts, strict=True))
        return Rows.of(self.main.mask | added.mask, counts)

    def _order(self, union: Rows, added: Rows | None = None) -> Tensor:
        """Where the rows of a union are in ``[added | main]``; by default the rows that run alone were added."""
        added = self.alone if added is None else added
        assert added is not None
        is_added = added.mask.gather(1, union.index.clamp(min=0))
        return torch.where(is_added, added.slots_of(union), self.main.slots_of(union) + added.width)

    def _joined(self, hidden: Tensor, union: Rows) -> Tensor:
        assert self.alone_hidden is not None
        return gather(torch.cat([self.alone_hidden.to(hidden.device), hidden], dim=1), self._order(union))

    def _move_main(self, rows: Rows, hidden: Tensor) -> Tensor:
        hidden = gather(hidden, self.main.slots_of(rows))
        self.main = rows
        return hidden

    def _run_alone(self, layer: int, stage: Stage, kwargs: dict[str, Any]) -> Alone:
        assert self.alone is not None and self.alone_hidden is not None
        rows, before = self.alone, self.alone_hidden
        reads = stage.text_to_visual != "none"
        inside = part_of_kwargs(kwargs, rows, None, self._known)
        key: Tensor | None
        value: Tensor | None
        if self.stream is not None and layer < self.stream.depth and self.stream.given is not None:
            if not reads:
                return Alone(before, None, None, None)
            before = self.stream.give(layer, rows, before)
            call = self.loners[layer].project(before, inside, keys=True, values=True)
            key, value = call.key, call.value
        else:
            if self.stream is not None and layer < self.stream.depth:
                self.stream.take(layer, before, rows)
            self.alone_hidden, key, value = self.loners[layer].run(before, inside, reads)
        if not reads:
            return Alone(before, None, None, None)
        if stage.text_to_visual != "merge":
            return Alone(before, key, value, None)
        # The first visual row of a sample stands behind its empty slots.
        start = torch.tensor(
            [min(rows.width - count, rows.width - 1) for count in rows.counts], device=rows.index.device
        )
        merged = Rows(rows.index.gather(1, start[:, None]), tuple(min(count, 1) for count in rows.counts), rows.length)
        return Alone(before, key, gather(value, start[:, None], dim=2).expand_as(value), merged)

    def _mask(self, mask: Tensor | None, keys: Rows, stage: Stage) -> Tensor | None:
        hides = stage.visual_attention == "full" and stage.text_to_visual == "none"
        key = ("mask", id(mask), id(self.main), id(keys), hides)
        if key not in self._known:
            made = part(mask, self.main, keys)
            if hides:
                # Only bidirectional prompts have text before the image that could see it.
                made = hide(made, self.main, self.main.pick(self.text.mask), self.main.pick(self.layout.visual))
            self._known[key] = (mask, self.main, keys, made)
        return self._known[key][3]  # type: ignore[no-any-return]

    def _add_deepstack(self, features: Tensor, hidden: Tensor) -> Tensor:
        """Visual features that the family adds after this layer, ``[visual tokens of the batch, d]``."""
        place = self.layout.visual.flatten().cumsum(0).reshape(self.layout.visual.shape) - 1
        features = features.to(hidden.device, hidden.dtype)
        if self.alone is not None:
            assert self.alone_hidden is not None
            self.alone_hidden = self.alone_hidden + features[place.gather(1, self.alone.index.clamp(min=0))]
            return hidden
        index = self.main.index.clamp(min=0)
        is_visual = self.main.pick(self.layout.visual)[..., None]
        return hidden + features[place.gather(1, index).clamp(min=0)] * is_visual.to(hidden.device)

    # -- attention and cache -----------------------------------------------------------------------------------------

    def _layer_input(self, sight: Sight) -> tuple[Tensor, Rows]:
        """Hidden states of all present rows at the layer's input."""
        if self.alone is None or sight.alone is None:
            return sight.hidden, self.main
        union = self._union()
        return gather(torch.cat([sight.alone.hidden, sight.hidden], dim=1), self._order(union)), union

    def _scored_by(self, sight: Sight, call: Call, output: Tensor) -> Scored:
        hidden, rows = self._layer_input(sight)
        return Scored(call, output, self.main, sight.keys, hidden, rows, self.layout)

    def _redistribute(self, rule: Redistribute, sight: Sight, call: Call, output: Tensor) -> Tensor:
        """Text rows after the image, with edited weights; the other rows as the kernel gave them."""
        scored = self._scored_by(sight, call, output)
        visual = sight.keys.pick(self.layout.visual)
        sinks = (sink_value(scored.hidden, rule.sink_dims) >= rule.tau).gather(
            1, scored.hidden_rows.slots_of(sight.keys)
        )
        sight.sinks = sinks & visual
        asking = Rows.of(self.text.mask & self.layout.after, self._after_counts())
        slots = self.main.slots_of(asking)
        weights = redistribute(scored.weights(slots), sight.sinks, visual, rule)
        edited = weighted_values(weights, call.value).to(output.dtype)
        # Empty slots write to a row of their own, which is cut off.
        wide = torch.cat([output, output[:, :1]], dim=1)
        target = torch.where(asking.filled, slots, output.shape[1])[..., None, None].expand_as(edited)
        return wide.scatter(1, target, edited)[:, :-1]

    def _after_counts(self) -> tuple[int, ...]:
        layout = self.layout
        system = (
            valid - visual - after
            for valid, visual, after in zip(layout.valid_counts, layout.visual_counts, layout.after_counts, strict=True)
        )
        return tuple(text - before for text, before in zip(self.text.counts, system, strict=True))

    def _fill(self, cache: PrunedLayer, sight: Sight) -> None:
        """Put into the layer's cache what decoding may attend to (selections at the end of the stage may trim it)."""
        rows, alone, stage = self.main, sight.alone, sight.stage
        cache.fill(cache.keys, cache.values, rows)
        if alone is None:
            if stage.cache_visual == "none" and self.visual.width:
                cache.keep(self.text, rows)
                rows = self.text
        elif stage.cache_visual != "none" and alone.key is not None and alone.shown is not None:
            added = self.alone if alone.merged is None else alone.merged
            assert added is not None
            rows = self._with(added)
            order = self._order(rows, added)
            key, value = alone.key, alone.shown
            if alone.merged is not None:
                slot = self.alone.slots_of(added) if self.alone is not None else added.index
                key, value = gather(key, slot, dim=2), gather(value, slot, dim=2)
            cache.fill(
                gather(torch.cat([key, cache.keys], dim=2), order, dim=2),
                gather(torch.cat([value, cache.values], dim=2), order, dim=2),
                rows,
            )
        if sight.sinks is not None:
            cache.visual, cache.sinks = self.layout.visual, sight.keys.spread(sight.sinks)
        self._held.append(rows)

    def _trim(self, layer: int) -> None:
        """Keep the visual rows that survived, in the cache of a layer that ran before they were chosen."""
        held = self._held[layer]
        text = held.mask & ~self.layout.visual
        counts = tuple(int(count) for count in text.sum(1).tolist())
        rows = Rows.of(text | self.visual.mask, tuple(t + v for t, v in zip(counts, self.visual.counts, strict=True)))
        self.caches[layer].keep(rows, held)
        self._held[layer] = rows


def _scores_here(select: Select) -> bool:
    return select.rank_by in scores.BY_ATTENTION and not select.probe
