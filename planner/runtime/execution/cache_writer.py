"""What each layer of the KV cache holds after a prefill."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from planner.runtime.execution.layer_state import LayerState
from planner.runtime.model.cache import PrunedLayer
from planner.runtime.selection.streams import Streams
from planner.runtime.tensors.rows import Rows, gather
from planner.schedule import Stage


class CacheWriter:
    """Fills the cache's layers, one after the other.

    Args:
        caches: those with keys and values, by layer; none where the model runs without a cache.
        streams: the rows of the prefill.
    """

    def __init__(self, caches: Mapping[int, PrunedLayer], streams: Streams) -> None:
        self.caches, self.streams = caches, streams
        #: By layer the rows held, and how many of them are visual.
        self._held: dict[int, tuple[Rows, tuple[int, ...]]] = {}

    def fill(self, layer: int, state: LayerState) -> None:
        """Put into a layer that has run what decoding may attend to; the end of its stage may `trim` it."""
        if layer not in self.caches:
            return
        cache, streams = self.caches[layer], self.streams
        rows, isolated, stage = streams.main, state.isolated, state.stage
        visual = streams.visual.counts if isolated is None else (0,) * len(rows.counts)
        cache.fill(cache.keys, cache.values, rows)
        if isolated is None:
            if stage.cache_visual == "none" and streams.visual.width:
                cache.keep(streams.text, rows)
                rows, visual = streams.text, (0,) * len(rows.counts)
        elif stage.cache_visual != "none" and isolated.key is not None and isolated.shown is not None:
            key, value, added = isolated.key, isolated.shown, isolated.rows
            if isolated.merged is not None:
                slot, added = added.slots_of(isolated.merged), isolated.merged
                key, value = gather(key, slot, dim=2), gather(value, slot, dim=2)
            rows, visual = streams.beside(added), added.counts
            order = streams.order(rows, added)
            cache.fill(
                gather(torch.cat([key, cache.keys], dim=2), order, dim=2),
                gather(torch.cat([value, cache.values], dim=2), order, dim=2),
                rows,
            )
        if state.sinks is not None:
            cache.visual, cache.sinks = streams.layout.visual, state.keys.spread(state.sinks)
        self._held[layer] = (rows, visual)

    def trim(self, stage: Stage) -> None:
        """After the selections of a stage: keep the visual rows that survived, where the stage says so."""
        if stage.cache_visual != "kept" or stage.text_to_visual == "merge" or not stage.selects:
            return
        visual = self.streams.visual
        for layer in range(int(stage.first), int(stage.last)):
            if layer not in self.caches:
                continue
            held, seen = self._held[layer]
            text = held.mask & ~self.streams.layout.visual
            counts = (all_ - gone + v for all_, gone, v in zip(held.counts, seen, visual.counts, strict=True))
            rows = Rows.of(text | visual.mask, tuple(counts))
            self.caches[layer].keep(rows, held)
            self._held[layer] = (rows, visual.counts)

    def close(self) -> None:
        """The prompt is through."""
        for cache in self.caches.values():
            cache.close()
