"""Scores before layer 0, for every piece of the prompts: from the vision encoder, projected features, or by lot."""

from __future__ import annotations

import torch
from torch import Tensor

from planner.runtime.selection import orders
from planner.runtime.selection.frames import frame_change, frame_uniqueness
from planner.runtime.selection.pieces import Pieces
from planner.runtime.tensors.layout import Layout
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
    features = pieces.pick(embeddings)
    if select.rank_by == "random":
        return lots(features, seed + select.seed).to(device)
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


def lots(features: Tensor, seed: int) -> Tensor:
    """Seeded scores ``[P, r]`` that depend on the piece alone, not on the question, the batch or the device: an engine
    that encodes a picture by itself draws the same.

    A lot is drawn for every place and for every channel. A token has that of its place plus that of the channel in
    which it differs most from its piece, in standard deviations of the channel, modulo 1. The place makes lots uniform
    and independent; the channel makes them others in another picture. Where rounding decides between two channels, one
    token's lot is at stake, and no other's.

    Args:
        features: ``[P, r, d]``.
        seed: of the draw.
    """
    wide = features.double()
    apart = wide - wide.mean(1, keepdim=True)
    spread = apart.square().mean(1, keepdim=True).sqrt().clamp(min=torch.finfo(wide.dtype).tiny)
    channel = (apart / spread).abs().argmax(-1).cpu()
    tokens, channels = features.shape[1:]
    drawn = torch.rand(channels + tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn[channels:] + drawn[channel]) % 1


def _question(layout: Layout, embeddings: Tensor) -> Tensor:
    """Mean embedding of the text after the image, ``[B, d]``; zeros where there is none."""
    after = layout.after.to(embeddings.device)
    total = (embeddings * after[..., None]).sum(1, dtype=torch.promote_types(embeddings.dtype, torch.float32))
    return total / after.sum(1, keepdim=True).clamp(min=1)
