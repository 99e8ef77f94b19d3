"""Slices of the attention mask that the model built.

Masks are sliced, never rebuilt, so padding, sliding windows and bidirectional image blocks stay what the model made
them. ``None`` means plain causal attention (the model counts on the kernel's ``is_causal``); it is written out only
where a part of it is no longer that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from planner.runtime.tensors.rows import Rows, gather


def part(mask: Tensor | None, queries: Rows, keys: Rows) -> Tensor | None:
    """The mask between two sets of rows.

    Args:
        mask: ``[B or 1, 1, n, n]``, bool (True: may attend) or additive float; None: causal.
        queries: query rows; an empty slot may attend to anything, so that no softmax runs over an empty set.
        keys: key rows; an empty slot is hidden.

    Returns:
        ``[B, 1, q, k]``, or None where plain causal attention is still right.
    """
    if queries.whole and keys.whole:
        return mask
    if mask is None:
        if queries is keys and not queries.ragged:
            return None
        allowed = causal(queries, keys)
    else:
        rows = gather(mask, queries.index, dim=2)
        wide = rows.transpose(1, 3)
        mask = gather(wide, keys.index, dim=1).transpose(1, 3)
        if not (queries.ragged or keys.ragged):
            return mask
        if mask.dtype != torch.bool:
            lowest = torch.finfo(mask.dtype).min
            mask = mask.masked_fill(~keys.filled.to(mask.device)[:, None, None, :], lowest)
            return mask.masked_fill(~queries.filled.to(mask.device)[:, None, :, None], 0.0)
        allowed = mask & keys.filled.to(mask.device)[:, None, None, :]
    return allowed | ~queries.filled.to(allowed.device)[:, None, :, None]


def padding(mask: Tensor | None, rows: Rows) -> Tensor | None:
    """What recurrent layers ask: which slots hold a token, ``[B, m]``; None where all do.

    Args:
        mask: ``[B, n]``, as the model made it for the whole prompt, or None.
        rows: a stream. Padding leaves it when the first row does.
    """
    if rows.whole:
        return mask
    return rows.filled if rows.ragged else None


def causal(queries: Rows, keys: Rows) -> Tensor:
    """``[B, 1, q, k]``: plain causal attention between two sets of rows, empty keys hidden."""
    before = keys.index[:, None, :] <= queries.index[:, :, None]
    return (before & keys.filled[:, None, :])[:, None]


def behind(mask: Tensor | None, queries: Rows, keys: Rows) -> Tensor:
    """The mask between two sets of rows that share none, without keys that come after the query: ``[B, 1, q, k]``.

    Args:
        mask: as for `part`.
    """
    before = causal(queries, keys)
    if mask is None:
        return before
    picked = gather(gather(mask, queries.index, dim=2).transpose(1, 3), keys.index).transpose(1, 3)
    before = before.to(picked.device)
    return picked & before if mask.dtype == torch.bool else picked.masked_fill(~before, torch.finfo(mask.dtype).min)


def hide(mask: Tensor | None, rows: Rows, askers: Tensor, hidden: Tensor) -> Tensor:
    """Remove the edges from some rows to others.

    Args:
        mask: the mask among `rows`, ``[B, 1, m, m]`` or None for causal.
        rows: the stream.
        askers, hidden: ``[B, m]`` bool per slot: queries that must not see, keys that must not be seen.
    """
    edge = (askers[:, :, None] & hidden[:, None, :])[:, None]
    if mask is None:
        mask = causal(rows, rows)
    edge = edge.to(mask.device)
    if mask.dtype == torch.bool:
        return mask & ~edge
    return mask.masked_fill(edge, torch.finfo(mask.dtype).min)


def columns(mask: Tensor | None, index: Tensor, filled: Tensor | None, new: int) -> Tensor | None:
    """The decode-time mask over what a cache layer holds.

    Args:
        mask: what the model built over the logical length, ``[B or 1, 1, q, logical]``; None: every key is seen.
        index: ``[B, p]`` logical column of each cached prompt row, -1 where the slot is empty.
        filled: ``[B, p]``, or None when no slot is empty.
        new: cached and fresh columns after the prompt, which are the last ones of the mask.
    """
    if mask is None:
        if filled is None:
            return None
        tail = torch.ones(filled.shape[0], new, dtype=torch.bool, device=filled.device)
        return torch.cat([filled, tail], dim=1)[:, None, None, :]
    logical = mask.shape[-1]
    tail = torch.arange(logical - new, logical, device=index.device).expand(index.shape[0], new)
    wanted = torch.cat([index, tail], dim=1)
    picked = gather(mask.transpose(1, 3), wanted, dim=1).transpose(1, 3)
    if filled is None:
        return picked
    seen = torch.cat([filled, torch.ones_like(tail, dtype=torch.bool)], dim=1)[:, None, None, :].to(mask.device)
    if mask.dtype == torch.bool:
        return picked & seen
    return picked.masked_fill(~seen, torch.finfo(mask.dtype).min)
