"""Scores for a selection: from a layer's attention, a probe of the next layer, the vision encoder or at random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planner.errors import RuntimeStateError
from planner.runtime.model.isolated import IsolatedLayer, part_of_kwargs
from planner.runtime.selection import scores
from planner.runtime.selection.scores import Scored
from planner.runtime.selection.streams import Streams
from planner.runtime.tensors.masks import part
from planner.runtime.tensors.rows import Rows, gather
from planner.schedule import Select, Threshold


def ranked_rows(select: Select, streams: Streams) -> Rows:
    """The rows among which a selection chooses."""
    if select.of == "visual":
        return streams.visual
    layout = streams.layout
    flags = streams.text.mask & layout.after & ~layout.protected(select.protect)
    return Rows.of(flags, tuple(int(count) for count in flags.sum(1).tolist()))


def not_finite(score: str) -> RuntimeStateError:
    """The error for a score that is NaN or infinite."""
    return RuntimeStateError(
        f"the score {score} is not finite", "Check the pixel values and the model for NaN or infinite numbers"
    )


def reads_attention(select: Select) -> bool:
    """Whether a selection is scored by the attention of the layer that has just run."""
    return select.rank_by in scores.BY_ATTENTION and not select.probe


class Ranking:
    """Scores the rows of one prefill.

    Args:
        streams: the rows.
        seed: of random selections, added to each selection's own.
    """

    def __init__(self, streams: Streams, seed: int) -> None:
        self.streams, self.seed = streams, seed
        #: In compiled code, whether scores are numbers: flags that are looked at after it.
        self.finite: list[Tensor] = []

    def score(self, select: Select, layer: int, ranked: Rows, scored: Scored | None) -> Tensor:
        """Scores of the ranked rows, ``[B, r]``.

        Args:
            layer: the layer that comes next.
            scored: the attention to score by, where the selection reads any.

        Raises:
            RuntimeStateError: a score is NaN or infinite.
        """
        if select.rank_by == "none":
            return torch.zeros(ranked.index.shape, device=ranked.index.device)
        if select.rank_by == "random":
            return scores.random(self.streams.layout, ranked, self.seed + select.seed, layer - 1)
        assert scored is not None
        found = scores.BY_ATTENTION[select.rank_by](scored, ranked)
        if isinstance(select.keep, Threshold) and select.keep.relative:
            found = scores.relative(scored, found)
        finite = torch.isfinite(found).all()
        if torch.compiler.is_compiling():
            self.finite.append(finite)
        elif not bool(finite):
            raise not_finite(f"'{select.rank_by}' after layer {layer - 1}")
        return found.to(ranked.index.device)

    def probe(
        self, select: Select, isolated: IsolatedLayer, hidden: Tensor, kwargs: dict[str, Any], known: dict[Any, Any]
    ) -> Scored:
        """Keys (and values) of all rows and the last row's query in the layer that comes next, which has not run."""
        rows, layout = self.streams.present(), self.streams.layout
        hidden = self.streams.together(hidden)
        last = Rows(layout.last[:, None], (1,) * hidden.shape[0], layout.length)
        influences = select.rank_by.startswith("influence")
        call = isolated.project(hidden, part_of_kwargs(kwargs, rows, None, known), keys=True, values=influences)
        asking = isolated.project(
            gather(hidden, rows.slots_of(last)), part_of_kwargs(kwargs, last, None, known), query=True
        )
        call.query, call.mask = asking.query, part(kwargs.get("attention_mask"), last, rows)
        return Scored(call, None, last, rows, isolated.form.seen(hidden), rows, layout)
