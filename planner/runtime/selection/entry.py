"""The selection before layer 0: its scores, from the vision encoder or from what it gives to the decoder.

It happens where the text tower begins, so that it is the same for compiled prefills, whose graphs begin there too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from planner.runtime.selection import orders
from planner.runtime.selection.encoder import EncoderScores
from planner.runtime.tensors.layout import Layout
from planner.runtime.tensors.rows import Rows, gather
from planner.schedule import FEATURE_ORDERS, Select, kept


class Entry:
    """A schedule's entry on a model.

    Args:
        model: the vision-language model.
        select: what the entry selects.

    Raises:
        UnsupportedModelError: it ranks by the vision encoder, whose patches cannot be followed or attention not seen.
    """

    def __init__(self, model: Any, select: Select) -> None:
        self.select = select
        self._encoder = EncoderScores(model) if select.rank_by == "encoder_attention" else None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collect what images leave in the vision encoder while the block runs."""
        if self._encoder is None:
            yield
            return
        with self._encoder.watching():
            yield

    def begin(self, kwargs: dict[str, Any]) -> None:
        """The images among a model's arguments are about to be encoded.

        Raises:
            UnsupportedModelError: the encoder's scores cannot be followed for them.
        """
        if self._encoder is not None:
            self._encoder.check(kwargs)
            self._encoder.forget()

    def scores(self, layout: Layout, embeddings: Tensor) -> Tensor | None:
        """Scores ``[B, n]`` of the visual rows, 0 elsewhere; None where the entry reads none.

        Args:
            layout: parts of the prompts.
            embeddings: ``[B, n, d]`` what enters the text tower.

        Raises:
            UnsupportedModelError: patches and visual tokens do not match.
        """
        if self._encoder is not None:
            return self._encoder.take(layout)
        if self.select.rank_by in FEATURE_ORDERS:
            return _ordered(self.select, layout, embeddings)
        return None


def _ordered(select: Select, layout: Layout, embeddings: Tensor) -> Tensor:
    ranked = Rows.of(layout.visual, layout.visual_counts)
    features = gather(embeddings, ranked.index)
    count = max(int(kept(select.keep, present)) for present in ranked.counts)
    if select.rank_by == "pivot_distance":
        scores = orders.pivot_distance(features, ranked, select.pivots)
    elif select.rank_by == "max_min_distance":
        scores = orders.max_min_distance(features, ranked, count)
    else:
        scores = orders.determinantal(features, ranked, count, _question(layout, embeddings))
    # Numbers of picks are finite whatever they were picked by: what is not a number has to stay none.
    scores = torch.where(torch.isfinite(features).all(-1), scores, float("nan"))
    # An empty slot writes to a column of its own, which is cut off.
    target = torch.where(ranked.filled, ranked.index, ranked.length).to(scores.device)
    return scores.new_zeros(len(scores), ranked.length + 1).scatter_(1, target, scores)[:, :-1]


def _question(layout: Layout, embeddings: Tensor) -> Tensor:
    """Mean embedding of the text after the image, ``[B, d]``; zeros where there is none."""
    after = layout.after.to(embeddings.device)
    total = (embeddings * after[..., None]).sum(1, dtype=torch.promote_types(embeddings.dtype, torch.float32))
    return total / after.sum(1, keepdim=True).clamp(min=1)
