"""Isolated visual rows on their way through the layers, beside the main stream.

Rows that see only themselves go through a layer before its main stream does. Rows that see the text before them need
the text's keys and values, and text that reads them needs theirs: they go through the layer while its main stream is at
its attention, where all of them meet. Rows that skip a layer, or whose states are known from a cached image stream, do
not go at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planner.runtime.execution.layer_state import IsolatedRows
from planner.runtime.imaging.stream_lookup import PromptStream
from planner.runtime.model.attention import Call
from planner.runtime.model.isolated import IsolatedLayer, part_of_kwargs
from planner.runtime.selection.streams import Streams
from planner.runtime.tensors.masks import behind, part
from planner.runtime.tensors.prefix import PrefixAttention
from planner.runtime.tensors.rows import Rows, gather
from planner.schedule import Stage


class Beside:
    """Takes the isolated rows of one prefill through its layers.

    Args:
        streams: the rows of the prefill.
        layers: how isolated rows run.
        image_stream: their image stream, to be read or filled.
        known: masks and position tables by identity, shared with the prefill.
    """

    def __init__(
        self,
        streams: Streams,
        layers: tuple[IsolatedLayer, ...],
        image_stream: PromptStream | None,
        known: dict[Any, Any],
    ) -> None:
        self.streams, self.layers, self.image_stream, self._known = streams, layers, image_stream, known

    def run(self, layer: int, stage: Stage, kwargs: dict[str, Any]) -> IsolatedRows | None:
        """Take the rows through a layer, or make them wait for the keys of its text.

        Args:
            kwargs: the layer's keyword arguments for the whole prompt.

        Returns:
            What they were before the layer, and what text sees of them; None where there are no isolated rows.
        """
        entering = self.streams.isolated
        if entering is None:
            return None
        found = IsolatedRows(entering.rows, entering.hidden, read=stage.text_to_visual != "none")
        inside = part_of_kwargs(kwargs, found.rows, None, self._known)
        image_stream = self.image_stream
        if image_stream is not None and layer < image_stream.extent.depth:
            if image_stream.given is not None:
                if found.read:
                    found.hidden = image_stream.give(layer, found.rows, found.hidden)
                    call = self.layers[layer].project(found.hidden, inside, keys=True, values=True)
                    _show(found, stage, call.key, call.value)
                return found
            if stage.visual_attention == "prefix" and self._text_looks_ahead(kwargs.get("attention_mask")):
                image_stream.forget()
            image_stream.take(layer, found.hidden, found.rows)
        if stage.visual_attention == "skip":
            if found.read:
                call = self.layers[layer].project(found.hidden, inside, keys=True, values=True)
                _show(found, stage, call.key, call.value)
            return found
        if stage.visual_attention == "prefix":
            found.waiting, found.mask = inside, self._sight(kwargs.get("attention_mask"), found.rows)
            return found
        hidden, key, value = self.layers[layer].run(found.hidden, inside, found.read)
        self.streams.advance(hidden)
        if found.read:
            _show(found, stage, key, value)
        return found

    def run_behind(self, text: Call, isolated: IsolatedRows) -> None:
        """Take rows that wait for it through a layer whose main stream, the text, is at its attention."""
        if isolated.waiting is None:
            return
        slots = self.streams.main.slots_of(self.streams.ahead())
        key, value = gather(text.key, slots, dim=2), gather(text.value, slots, dim=2)

        def attend(call: Call) -> tuple[Tensor, Tensor | None]:
            isolated.attention = PrefixAttention(
                call.query, call.key, call.value, key, value, isolated.mask, call.scaling, call.softcap
            )
            if isolated.read:
                isolated.key, isolated.shown = call.key, call.value
            return isolated.attention.output(), None

        self.streams.advance(self.layers[text.layer].run_with(attend, isolated.hidden, isolated.waiting))

    def _sight(self, mask: Tensor | None, asking: Rows) -> Tensor | None:
        """What rows see of the text before them; None: all that any of them does."""
        ahead, layout = self.streams.ahead(), self.streams.layout
        if torch.compiler.is_compiling():  # see part_of_kwargs
            return behind(mask, asking, ahead)
        if mask is None and layout.one_block and min(layout.ahead_counts) == ahead.width:
            return None
        key = ("sight", id(mask), id(asking), id(ahead))
        if key not in self._known:
            self._known[key] = (mask, asking, ahead, behind(mask, asking, ahead))
        return self._known[key][3]  # type: ignore[no-any-return]

    def _text_looks_ahead(self, mask: Tensor | None) -> bool:
        """Whether text before an image sees what comes after it, as in bidirectional prompts: then the image does."""
        ahead, present = self.streams.ahead(), self.streams.present()
        if mask is None or not ahead.width:
            return False
        key = ("looks ahead", id(mask), id(ahead), id(present))
        if key not in self._known:
            seen = part(mask, ahead, present)
            assert seen is not None
            sees = seen[:, 0] if seen.dtype == torch.bool else seen[:, 0] > torch.finfo(seen.dtype).min / 2
            later = (present.index[:, None, :] > ahead.index[:, :, None]) & ahead.filled[:, :, None]
            self._known[key] = (mask, ahead, present, bool((sees & later.to(sees.device)).any()))
        return self._known[key][3]  # type: ignore[no-any-return]


def _show(isolated: IsolatedRows, stage: Stage, key: Tensor | None, value: Tensor | None) -> None:
    """Let text see keys and values of the rows; after a merge, one row's value in the place of every value."""
    isolated.key, isolated.shown = key, value
    if stage.text_to_visual != "merge" or value is None:
        return
    rows = isolated.rows
    # The first visual row of a sample stands behind its empty slots.
    start = torch.tensor([min(rows.width - count, rows.width - 1) for count in rows.counts], device=rows.index.device)
    isolated.merged = Rows(
        rows.index.gather(1, start[:, None]), tuple(min(count, 1) for count in rows.counts), rows.length
    )
    isolated.shown = gather(value, start[:, None], dim=2).expand_as(value)
