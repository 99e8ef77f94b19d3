"""Scores of a video's tokens, frame by frame, from their projected features. Products here are elementwise."""

from __future__ import annotations

import torch
from torch import Tensor

from planner.runtime.selection.orders import unit_rows
from planner.runtime.selection.pieces import Lie, Pieces
from planner.spec.cells import shares

#: More than any change: what has no frame before it comes first.
_FIRST = 3.0
#: VidCom2's temperature: how sharply frames compete.
_TEMPERATURE = 0.01


def frame_change(features: Tensor, pieces: Pieces) -> Tensor:
    """EVS: 1 - cosine between a token and the one at its place in the frame before, ``[P, r]``.

    Args:
        features: ``[P, r, d]``.
        pieces: whose tokens they are.
    """
    unit, rows = unit_rows(features), pieces.rows
    before = torch.full(rows.index.shape, -1)
    for piece, lie in enumerate(pieces.lies):
        slot = 0
        for grid in lie:
            frame = grid.tokens // grid.frames
            slots = torch.arange(slot, slot + grid.tokens)
            before[piece, slots[frame:]] = slots[: grid.tokens - frame]
            slot += grid.tokens
    before = before.to(unit.device)
    earlier = unit.gather(1, before.clamp(min=0)[..., None].expand_as(unit))
    return torch.where(before >= 0, 1 - (unit * earlier).sum(-1), _FIRST)


def frame_uniqueness(features: Tensor, pieces: Pieces, count: int) -> Tensor:
    """VidCom2: 1 for the tokens that stay, ``[P, r]``; frames unlike the rest of the video get more of the budget.

    A token is the more unique, the less it resembles the mean of the video, and of its frame. A frame's share grows
    with the softmax over frames of its tokens' mean uniqueness in the video.

    Args:
        features: ``[P, r, d]``.
        pieces: whose tokens they are.
        count: the budget of each piece.
    """
    found = torch.zeros(features.shape[:2], device=features.device)
    for piece, lie in enumerate(pieces.lies):
        own, sizes = features[piece], frame_sizes(lie)
        in_video = _unlike(own, own.mean(0))
        means = torch.stack([part.mean() for part in in_video.split(sizes)])
        weights = 1 + torch.softmax(means / _TEMPERATURE, dim=0) - 1 / len(sizes)
        start = 0
        for size, budget in zip(sizes, allot(count, weights.tolist(), sizes), strict=True):
            frame = slice(start, start + size)
            unique = in_video[frame] + _unlike(own[frame], own[frame].mean(0))
            found[piece, start + unique.argsort(descending=True, stable=True)[:budget]] = 1.0
            start += size
    return found


def _unlike(features: Tensor, mean: Tensor) -> Tensor:
    """Minus the cosine of each token with a mean, ``[tokens]``."""
    return -(unit_rows(features) * unit_rows(mean)).sum(-1)


def frame_sizes(lie: Lie) -> list[int]:
    """Tokens of every frame; an image is one."""
    return [grid.tokens // grid.frames for grid in lie for _ in range(grid.frames)]


def allot(count: int, weights: list[float], sizes: list[int]) -> list[int]:
    """`count` tokens over frames, in proportion to weight times size; what does not fit a frame goes to the others."""
    budgets = [0] * len(sizes)
    while left := min(count, sum(sizes)) - sum(budgets):
        room = [size - budget for size, budget in zip(sizes, budgets, strict=True)]
        # Whole weights, so that the split is exact.
        wanted = [
            round(1e6 * weight) * size * (free > 0) for weight, size, free in zip(weights, sizes, room, strict=True)
        ]
        more = shares(left, wanted if sum(wanted) else room)
        budgets = [budget + min(extra, free) for budget, extra, free in zip(budgets, more, room, strict=True)]
    return budgets
