"""Orders in which visual tokens are picked by their projected features, before the decoder has seen them.

Each function returns a score ``[P, r]`` over the r tokens of P pieces: minus the place at which a token is picked, so
that the ordinary selection keeps the first ones. Similarity is the cosine of two features, in float32 or better. A pick
costs one row of similarities; where all pairs are needed, a block of rows is there at a time: no ``[r, r]`` matrix is
held.
"""

from __future__ import annotations

import torch
from torch import Tensor

from planner.runtime.tensors.weights import working_dtype

#: Similarities held at once where all pairs are needed, per piece.
_BLOCK = 1 << 20
#: What CDPruner adds to relevance, so that the least relevant token can still be picked.
_FLOOR = 1e-6
#: Gains that differ by less are equal, and the earlier token is picked: two tokens that are each other's nearest have
#: one distance, row breaks are all the same, and which of them is picked must not depend on how a sum was rounded, nor
#: on the batch.
EQUAL = 1e-6


def unit_rows(features: Tensor) -> Tensor:
    """Features ``[..., d]`` of length 1, in the working precision; zeros stay zeros."""
    wide = features.to(working_dtype(features))
    unit: Tensor = wide / wide.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(wide.dtype).tiny)
    return unit


def pivot_distance(features: Tensor, pivots: int) -> Tensor:
    """DART: the `pivots` tokens of the largest norm, then the others, from the least similar to any pivot on.

    The order is the same for every budget.

    Args:
        features: ``[P, r, d]``.
        pivots: how many; all tokens where there are fewer.
    """
    unit = unit_rows(features)
    picks, norm = _Picks(unit), features.to(unit.dtype).norm(dim=-1)
    slack = EQUAL * norm.amax(1, keepdim=True)
    chosen = torch.cat([picks.best(norm, slack) for _ in range(min(pivots, unit.shape[1]))], dim=1)
    nearest = (_similarities(unit, chosen).amax(1) / EQUAL).round().masked_fill(~picks.free, float("inf"))
    place = chosen.shape[1] + nearest.argsort(dim=1, stable=True).argsort(dim=1)
    return torch.where(picks.free, -place.to(unit.dtype), picks.scores)


def max_min_distance(features: Tensor, count: int) -> Tensor:
    """DivPrune: first the token whose nearest neighbour is farthest, then always the one farthest from all picked.

    A smaller budget keeps the first of what a larger one keeps.

    Args:
        features: ``[P, r, d]``.
        count: picks to make.
    """
    unit = unit_rows(features)
    alone, picks = -_nearest_other(unit), _Picks(unit)
    nearest = torch.full_like(alone, float("-inf"))
    count = min(count, unit.shape[1])
    for made in range(count):
        slot = picks.best(-nearest if made else alone, EQUAL)
        if made + 1 < count:
            nearest = torch.maximum(nearest, _similarities(unit, slot)[:, 0])
    return picks.scores


def salient_then_distant(features: Tensor, attention: Tensor, salient: int, count: int) -> Tensor:
    """VisPruner: first the tokens of the highest attention, then always the one farthest from all picked.

    Args:
        features: ``[P, r, d]``.
        attention: ``[P, r]`` that each receives in the vision encoder.
        salient: picks by attention.
        count: picks to make.
    """
    unit = unit_rows(features)
    attention, picks = attention.to(unit), _Picks(unit)
    nearest = torch.full_like(attention, float("-inf"))
    count = min(count, unit.shape[1])
    for made in range(count):
        slot = picks.best(attention) if made < salient else picks.best(-nearest, EQUAL)
        if made + 1 < count:
            nearest = torch.maximum(nearest, _similarities(unit, slot)[:, 0])
    return picks.scores


def determinantal(features: Tensor, count: int, question: Tensor) -> Tensor:
    """CDPruner: greedy maximum of a determinantal point process whose kernel is the similarity of two tokens times the
    relevance of both.

    Relevance is the cosine with the question, scaled to ``[0, 1]`` over the tokens of a sample. (The paper takes it
    from the text encoder that was trained with the vision encoder; the decoder's embeddings are there in every family.)
    A smaller budget keeps the first of what a larger one keeps.

    Args:
        features: ``[P, r, d]``.
        count: picks to make.
        question: ``[P, d]`` mean embedding of the text after the image; zeros where there is none.
    """
    unit = unit_rows(features)
    relevance = _scaled(torch.matmul(unit, unit_rows(question)[..., None])[..., 0])
    picks, gain, count = _Picks(unit), relevance.square(), min(count, unit.shape[1])
    # Each row: what a pick takes from the gain of all others (Cholesky factors of the kernel).
    taken = unit.new_zeros(len(unit), max(count - 1, 0), unit.shape[1])
    for made in range(count):
        gain = torch.where(gain > EQUAL * relevance.square(), gain, 0.0)
        slot = picks.best(gain, EQUAL * gain.amax(1, keepdim=True))
        if made + 1 == count:
            break
        volume, weight = gain.gather(1, slot), relevance * relevance.gather(1, slot)
        factor = weight * _similarities(unit, slot)[:, 0]
        if made:
            before = taken[:, :made]
            at_pick = before.gather(2, slot[:, None].expand(-1, made, -1)).transpose(1, 2)
            factor = factor - torch.matmul(at_pick, before)[:, 0]
        # A pick without a volume of its own takes nothing.
        taken[:, made] = torch.where(volume > 0, factor / volume.clamp(min=torch.finfo(gain.dtype).tiny).sqrt(), 0.0)
        gain = gain - taken[:, made].square()
    return picks.scores


class _Picks:
    """The picks so far, as scores.

    Attributes:
        scores: ``[P, r]`` minus the place of each pick, minus r elsewhere.
        free: ``[P, r]`` tokens that have not been picked.
    """

    def __init__(self, unit: Tensor) -> None:
        self.free = torch.ones(unit.shape[:2], dtype=torch.bool, device=unit.device)
        self.scores = unit.new_full(unit.shape[:2], -float(unit.shape[1]))
        self._made = 0

    def best(self, gain: Tensor, slack: Tensor | float = 0.0) -> Tensor:
        """Pick the free token of the largest gain ``[P, r]``, of several within `slack` the first.

        Returns:
            Its slot, ``[P, 1]``.
        """
        gain = gain.masked_fill(~self.free, float("-inf"))
        slot = (gain >= gain.amax(1, keepdim=True) - slack).to(torch.uint8).argmax(1, keepdim=True)
        self.scores.scatter_(1, slot, -float(self._made))
        self.free.scatter_(1, slot, 0)  # not False, which no trace can hold
        self._made += 1
        return slot


def _similarities(unit: Tensor, slots: Tensor) -> Tensor:
    """Cosines of the tokens in some slots ``[P, p]`` with all tokens, ``[P, p, r]``."""
    rows = unit.gather(1, slots[..., None].expand(-1, -1, unit.shape[-1]))
    return torch.matmul(rows, unit.transpose(1, 2))


def _nearest_other(unit: Tensor) -> Tensor:
    """The cosine of each token with the other one that is most like it, ``[P, r]``; -2 where there is no other."""
    width, found = unit.shape[1], []
    step = max(1, _BLOCK // width)
    for start in range(0, width, step):
        slots = torch.arange(start, min(start + step, width), device=unit.device)
        cosine = torch.matmul(unit[:, slots], unit.transpose(1, 2))
        itself = torch.arange(width, device=unit.device) == slots[:, None]
        found.append(cosine.masked_fill(itself, -2.0).amax(2))
    return torch.cat(found, dim=1)


def _scaled(cosine: Tensor) -> Tensor:
    """Cosines ``[P, r]`` scaled to ``[0, 1]`` over the tokens of each piece."""
    low, high = cosine.amin(1, keepdim=True), cosine.amax(1, keepdim=True)
    return (cosine - low + _FLOOR) / (high - low).clamp(min=_FLOOR)
