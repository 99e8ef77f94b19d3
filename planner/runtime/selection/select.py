"""From scores to the rows that are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from planner.runtime.tensors.rows import Rows
from planner.schedule import Keep, Threshold, kept


def survivors(scores: Tensor, ranked: Rows, keep: Keep) -> Rows:
    """The rows that a selection keeps, in prompt order.

    Args:
        scores: ``[B, r]`` over the ranked rows; ties go to the earlier row.
        ranked: the rows ranked; empty slots never survive.
        keep: how many. Counts and fractions follow `planner.schedule.kept` with the rows each sample has left; a
            threshold keeps what reaches it, at least and at most as many as it says.
    """
    counts = _counts(scores, ranked, keep)
    order = scores.masked_fill(~ranked.filled, float("-inf")).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    stays = rank < torch.tensor(counts, device=order.device)[:, None]
    mask = torch.zeros(order.shape[0], ranked.length + 1, dtype=torch.bool, device=order.device)
    mask.scatter_(1, torch.where(ranked.filled, ranked.index, ranked.length), stays)
    return Rows.of(mask[:, :-1], counts)


def _counts(scores: Tensor, ranked: Rows, keep: Keep) -> tuple[int, ...]:
    if not isinstance(keep, Threshold):
        return tuple(int(kept(keep, present)) for present in ranked.counts)
    reach = ((scores >= keep.threshold) & ranked.filled).sum(1).tolist()
    return tuple(
        min(max(min(int(count), keep.at_most), keep.at_least), present)
        for count, present in zip(reach, ranked.counts, strict=True)
    )
