"""What becomes of the tokens that an entry drops: nothing, or part of the mean that a kept token becomes.

A merge is said as targets: for every row the row that it joins, itself where it is kept, -1 where it joins none. The
same targets hold for all that a visual token brings: its embedding, and the features that deepstack families add later.
"""

from __future__ import annotations

import torch
from torch import Tensor

from planner.runtime.selection.orders import unit_rows
from planner.runtime.tensors.rows import Rows, gather

#: Similarities held at once, per piece.
_BLOCK = 1 << 20


def into_last(scores: Tensor, ranked: Rows, stays: Rows) -> Tensor:
    """Targets ``[P, n]`` that unite all dropped rows with the kept row of the lowest score.

    Args:
        scores: ``[P, r]`` of the ranked rows; of equal ones the later is lower.
        ranked, stays: the rows chosen among, and those kept, at least one a piece.
    """
    kept = ranked.pick(stays.mask)
    place = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    last = place.masked_fill(~kept, -1).argmax(1, keepdim=True)
    joined = ranked.index.gather(1, last).expand_as(ranked.index)
    return ranked.per_row(torch.where(kept, ranked.index, joined), -1)


def into_nearest(features: Tensor, ranked: Rows, stays: Rows) -> Tensor:
    """Targets ``[P, n]`` that unite every dropped row with the kept row it is most like, by cosine.

    Args:
        features: ``[P, r, d]`` of the ranked rows.
        ranked, stays: the rows chosen among, and those kept, at least one a piece.
    """
    unit = unit_rows(features)
    chosen = gather(unit, ranked.slots_of(stays))
    empty = ~stays.filled.to(unit.device)[:, None]
    step, found = max(1, _BLOCK // max(stays.width, 1)), []
    for start in range(0, ranked.width, step):
        cosine = torch.matmul(unit[:, start : start + step], chosen.transpose(1, 2))
        found.append(cosine.masked_fill(empty, -2.0).argmax(2))
    nearest = stays.index.gather(1, torch.cat(found, dim=1).to(stays.index.device))
    return ranked.per_row(torch.where(ranked.pick(stays.mask), ranked.index, nearest), -1)


def united(x: Tensor, targets: Tensor) -> Tensor:
    """`x` ``[B, n, d]`` with every row that others join replaced by the mean of all that joined, itself included."""
    targets = targets.to(x.device)
    dtype = torch.promote_types(x.dtype, torch.float32)
    # What joins nothing adds to a row of its own, which is cut off.
    index = torch.where(targets >= 0, targets, x.shape[1])
    total = x.new_zeros(x.shape[0], x.shape[1] + 1, x.shape[2], dtype=dtype)
    total.scatter_add_(1, index[..., None].expand_as(x), x.to(dtype))
    count = total.new_zeros(total.shape[:2]).scatter_add_(1, index, torch.ones_like(index, dtype=dtype))
    count = count[:, :-1, None]
    return torch.where(count > 1, total[:, :-1] / count.clamp(min=1), x.to(dtype)).to(x.dtype)
