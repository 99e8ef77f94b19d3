"""Scores before layer 0, for every piece of the prompts: from the vision encoder, projected features, or at random."""

from __future__ import annotations

import torch
from torch import Tensor

from planner.runtime.selection import orders
from planner.runtime.selection.frames import frame_change, frame_uniqueness
from planner.runtime.selection.pieces import Pieces
from planner.runtime.selection.scores import random
from planner.runtime.tensors.layout import Layout
from planner.runtime.tensors.rows import Rows
from planner.runtime.tensors.weights import working_dtype
from planner.schedule import Fraction, Select, kept


def scores_of(
    select: Select, seed: int, layout: Layout, pieces: Pieces, embeddings: Tensor, attention: Tensor | None
) -> Tensor:
    """Scores ``[P, r]``; NaN where what they are made of is not finite.

    Args:
        select: what is ranked by.
        seed: of random scores, added to the selection's own.
        layout: parts of the prompts.
        pieces: within which scores are compared.
        embeddings: ``[B, n, d]`` what enters the text tower.
        attention: ``[B, n]`` received in the vision encoder, where it is read.
    """
    rows, device = pieces.rows, pieces.rows.index.device
    received = None if attention is None else pieces.pick(attention)
    if select.rank_by == "encoder_attention" and received is not None:
        return received
    if select.rank_by == "random":
        visual = Rows.of(layout.visual, layout.visual_counts)
        return pieces.pick(visual.per_row(random(layout, visual, seed + select.seed, -1), 0.0))
    features = pieces.pick(embeddings)
    norm: Tensor = features.to(working_dtype(features)).norm(dim=-1)
    if select.rank_by == "encoder_norm":
        return norm.to(device)
    if select.rank_by == "frame_change":
        return frame_change(features, pieces).to(device)
    count = int(kept(select.keep, rows.width))
    if select.rank_by == "pivot_distance":
        found = orders.pivot_distance(features, select.pivots)
    elif select.rank_by == "max_min_distance":
        found = orders.max_min_distance(features, count)
    elif select.rank_by == "frame_uniqueness":
        found = frame_uniqueness(features, pieces, count)
    elif received is not None:
        salient = int(kept(Fraction(fraction=select.salient), count))
        found = orders.salient_then_distant(features, received, salient, count)
        norm = norm + received.to(norm)
    else:
        question = _question(layout, embeddings)[pieces.owner.to(embeddings.device)]
        found = orders.determinantal(features, count, question)
    # The number of a pick is finite whatever it was picked by.
    return torch.where(torch.isfinite(norm), found, float("nan")).to(device)


def _question(layout: Layout, embeddings: Tensor) -> Tensor:
    """Mean embedding of the text after the image, ``[B, d]``; zeros where there is none."""
    after = layout.after.to(embeddings.device)
    total = (embeddings * after[..., None]).sum(1, dtype=torch.promote_types(embeddings.dtype, torch.float32))
    return total / after.sum(1, keepdim=True).clamp(min=1)
