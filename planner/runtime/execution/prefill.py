"""One prefill under a schedule: which rows each layer runs, what its attention sees, what its cache keeps.

The state moves from layer to layer. At the first layer of a stage what the previous stage selected is dropped from
wherever it is, and the streams part or join as the stage says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planner.errors import RuntimeStateError
from planner.runtime.execution.beside import Beside
from planner.runtime.execution.cache_writer import CacheWriter
from planner.runtime.execution.layer_state import LayerState
from planner.runtime.imaging.stream_lookup import PromptStream
from planner.runtime.model.attention import Call
from planner.runtime.model.cache import PrunedLayer
from planner.runtime.model.isolated import IsolatedLayer, first, part_of_kwargs, with_first
from planner.runtime.selection.ranking import Ranking, ranked_rows, reads_attention
from planner.runtime.selection.redistribute import redistribute_rows
from planner.runtime.selection.scores import BY_ATTENTION, Scored
from planner.runtime.selection.select import survivors
from planner.runtime.selection.streams import Streams
from planner.runtime.tensors.layout import Layout
from planner.runtime.tensors.masks import hide, padding, part
from planner.runtime.tensors.rows import Rows, gather
from planner.schedule import Schedule, Select, Stage


@dataclass(frozen=True, eq=False)
class Record:
    """What a prefill did.

    Attributes:
        schedule: what it executed.
        visual: ``[B, n]`` visual rows of the prompts.
        kept: what each selection has kept.
        tokens: visual and text rows that each layer ran, per sample.
    """

    schedule: Schedule
    visual: Tensor
    kept: list[Rows]
    tokens: list[tuple[tuple[int, ...], tuple[int, ...]]]


class Prefill:
    """The prefill of one batch.

    Args:
        schedule: what to execute.
        layout: parts of the prompts.
        isolated_layers: per layer, how isolated visual rows run and how a layer is probed.
        caches: the cache's layers with keys and values, empty without a cache.
        seed: of random selections.
        entered: the visual rows that the schedule's entry lets in, None without one.
        image_stream: that of the shallow layers, to be read or filled.
        windows: sliding window per layer, None for full attention, 0 for a recurrent layer.
        lenders: layers that read the keys and values of earlier ones, and these.

    Attributes:
        deepstack: visual features that the family adds after each of the first layers.
        record: what it has done so far.
        complete: every layer has run under it.
    """

    def __init__(
        self,
        schedule: Schedule,
        layout: Layout,
        isolated_layers: tuple[IsolatedLayer, ...],
        caches: Mapping[int, PrunedLayer],
        seed: int,
        entered: Rows | None = None,
        image_stream: PromptStream | None = None,
        windows: Sequence[int | None] = (),
        lenders: Mapping[int, int] | None = None,
    ) -> None:
        self.schedule, self.layout, self.isolated_layers = schedule, layout, isolated_layers
        self.image_stream, self.windows, self.lenders = image_stream, windows, lenders or {}
        #: Keys and values of layers that lend them, and whose they are.
        self._lent: dict[int, tuple[Tensor, Tensor, Rows]] = {}
        self.deepstack: list[Tensor] = []
        self.streams = Streams(layout)
        self.writer = CacheWriter(caches, self.streams)
        self.ranking, self.entered = Ranking(self.streams, seed), entered
        self.record = Record(schedule, layout.visual, [], [])
        self._scored: Scored | None = None
        self.complete = False
        self._state: LayerState | None = None
        #: Masks and position tables made for one layer that fit the next; by identity, kept beside what they are of.
        self._known: dict[Any, Any] = {}
        self.beside = Beside(self.streams, isolated_layers, image_stream, self._known)

    # -- a layer's life: before, attend, after -----------------------------------------------------------------------

    def before(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """What the layer runs on: the rows and keyword arguments of the main stream."""
        stage, streams = self.schedule.stage_of(layer), self.streams
        if layer == stage.first:
            hidden = self._enter(stage, hidden, kwargs)
        self.record.tokens.append((streams.visual.counts, streams.text.counts))
        isolated = self.beside.run(layer, stage, kwargs)
        keys = streams.present() if isolated is not None and isolated.read else streams.main
        mask = self._mask(kwargs.get("attention_mask"), keys, stage, self.isolated_layers[layer].recurrent)
        self._state = LayerState(stage, hidden, keys, isolated)
        return hidden, part_of_kwargs(kwargs, streams.main, mask, self._known)

    def attend(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """The layer's attention: the kernel, with the keys and values of rows outside the main stream."""
        state = self._state
        assert state is not None
        isolated, stage = state.isolated, state.stage
        if isolated is not None:
            self.beside.run_behind(call, isolated)
        if isolated is not None and isolated.key is not None and isolated.shown is not None:
            order = self.streams.order(state.keys, isolated.rows)
            call.key = gather(torch.cat([isolated.key, call.key], dim=2), order, dim=2)
            call.value = gather(torch.cat([isolated.shown, call.value], dim=2), order, dim=2)
        if call.layer in self.lenders:
            key, value, rows = self._lent[self.lenders[call.layer]]
            slots = rows.slots_of(state.keys)
            call.key, call.value = gather(key, slots, dim=2), gather(value, slots, dim=2)
        elif call.layer in self.lenders.values():
            self._lent[call.layer] = call.key, call.value, state.keys
        output, weights = call.run()
        if stage.redistribute is not None:
            scored, asking = self._scored_by(state, call, output), self.streams.text_after()
            output, state.sinks = redistribute_rows(scored, asking, stage.redistribute)
        if call.layer == stage.last - 1 and any(reads_attention(select) for select in stage.selects):
            self._scored = self._scored_by(state, call, output)
        return output, weights

    def after(self, layer: int, output: Any) -> Any:
        """What goes on to the next layer; fills the layer's cache."""
        state, self._state = self._state, None
        assert state is not None
        form = self.isolated_layers[layer].form
        hidden = form.rows(first(output))
        self.writer.fill(layer, state)
        if layer < len(self.deepstack):
            hidden = self.streams.add_to_visual(self.deepstack[layer], hidden)
        if layer == self.schedule.layers - 1:
            hidden = self._leave(self.schedule.stages[-1], layer + 1, hidden, None)
        return with_first(output, form.given(hidden))

    def close(self) -> None:
        """The prompt is through."""
        self.writer.close()
        self._known.clear()
        self.complete = len(self.record.tokens) == self.schedule.layers

    # -- stages ------------------------------------------------------------------------------------------------------

    def _enter(self, stage: Stage, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        layer, streams, image_stream = int(stage.first), self.streams, self.image_stream
        if image_stream is not None and layer == image_stream.extent.depth and streams.isolated is not None:
            if image_stream.given is not None:
                streams.advance(image_stream.give(layer, streams.isolated.rows, hidden))
            else:
                image_stream.take(layer, streams.isolated.hidden, streams.isolated.rows)
        if layer > 0:
            hidden = self._leave(self.schedule.stage_of(layer - 1), layer, hidden, kwargs)
        elif self.entered is not None:
            self.record.kept.append(self.entered)
            hidden = streams.keep_visual(self.entered, hidden)
        if stage.isolated and streams.isolated is None and streams.visual.width:
            return streams.part(hidden)
        if not stage.isolated and streams.isolated is not None:
            return streams.join(hidden)
        return hidden

    def _leave(self, stage: Stage, layer: int, hidden: Tensor, kwargs: dict[str, Any] | None) -> Tensor:
        """Drop what the stage that ends at `layer` selects, from the streams and from the caches of the stage."""
        for select in stage.selects:
            hidden = self._drop(select, layer, hidden, kwargs)
        self._scored = None
        self.writer.trim(stage)
        return hidden

    def _drop(self, select: Select, layer: int, hidden: Tensor, kwargs: dict[str, Any] | None) -> Tensor:
        ranked = ranked_rows(select, self.streams)
        if ranked.width == 0:
            self.record.kept.append(ranked)
            return hidden
        scored = self._scored
        if select.probe and kwargs is not None:
            scored = self.ranking.probe(select, self.isolated_layers[layer], hidden, kwargs, self._known)
        stays = survivors(self.ranking.score(select, layer, ranked, scored), ranked, select.keep)
        self.record.kept.append(stays)
        if select.of == "context":
            return self.streams.keep_context(ranked, stays, hidden)
        return self.streams.keep_visual(stays, hidden)

    def check_sight(self) -> None:
        """Refuse selections by the attention of a layer whose window shows the last row no visual token.

        Raises:
            RuntimeStateError: naming the layer, and those that would do.
        """
        for stage in self.schedule.stages:
            for select in stage.selects:
                layer = int(stage.last) - (not select.probe)
                if select.rank_by in BY_ATTENTION and select.of == "visual":
                    self._check_sight(layer, self.windows[layer])

    def _check_sight(self, layer: int, window: int | None) -> None:
        if window is None:
            return
        position = torch.arange(self.layout.length, device=self.layout.ids.device)
        nearest = torch.where(self.layout.visual, position, -1).amax(1)
        if bool(((nearest >= 0) & (self.layout.last - nearest >= window)).any()):
            full = [i for i, other in enumerate(self.windows) if other is None]
            raise RuntimeStateError(
                f"layer {layer} would rank visual tokens by its attention, but its sliding window of {window} tokens "
                "does not reach the image from the end of this prompt",
                f"Rank after a layer with full attention: {', '.join(map(str, full)) or 'this model has none'}",
            )

    # -- one layer ---------------------------------------------------------------------------------------------------

    def _mask(self, mask: Tensor | None, keys: Rows, stage: Stage, recurrent: bool) -> Tensor | None:
        main = self.streams.main
        if recurrent:
            return padding(mask, main)
        hides = not stage.isolated and stage.text_to_visual == "none"
        if torch.compiler.is_compiling():  # see part_of_kwargs
            return self._made_mask(mask, keys, hides)
        key = ("mask", id(mask), id(main), id(keys), hides)
        if key not in self._known:
            self._known[key] = (mask, main, keys, self._made_mask(mask, keys, hides))
        return self._known[key][3]  # type: ignore[no-any-return]

    def _made_mask(self, mask: Tensor | None, keys: Rows, hides: bool) -> Tensor | None:
        main = self.streams.main
        made = part(mask, main, keys)
        if hides:
            # Only bidirectional prompts have text before the image that could see it.
            made = hide(made, main, main.pick(self.streams.text.mask), main.pick(self.layout.visual))
        return made

    def _scored_by(self, state: LayerState, call: Call, output: Tensor) -> Scored:
        isolated = None if state.isolated is None else state.isolated.hidden
        hidden, rows = self.streams.together(state.hidden, isolated), self.streams.present()
        hidden = self.isolated_layers[call.layer].form.seen(hidden)
        scored = Scored(call, output, self.streams.main, state.keys, hidden, rows, self.layout)
        if state.isolated is not None and state.isolated.attention is not None:
            scored.isolated, scored.ahead = state.isolated.attention, self.streams.ahead()
        return scored
