"""Attention weights of a few query rows, recomputed beside a fused kernel, and scores in closed form from them.

Shapes: ``B`` batch, ``H`` query heads, ``Hkv`` key/value heads, ``n`` keys, ``R`` query rows, ``dh`` head size. Each
score is one matrix product, so that the cost of a selection can be stated (`planner.cost.selector`) and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def working_dtype(x: Tensor) -> torch.dtype:
    """float32 whatever the model computes in, float64 for a float64 model."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def attention_weights(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, softcap: float | None = None
) -> Tensor:
    """Softmax weights of some query rows.

    Args:
        query: ``[B, H, R, dh]``, rotated.
        key: ``[B, Hkv, n, dh]``, rotated.
        mask: ``[B or 1, 1, R, n]``, bool or additive; None: every key is seen.
        scaling: factor on the scores.
        softcap: ``softcap * tanh(score / softcap)`` where the model has one.

    Returns:
        ``[B, H, R, n]``; a row that sees nothing is all zeros.
    """
    dtype = working_dtype(query)
    batch, heads, rows, size = query.shape
    kv_heads = key.shape[1]
    grouped = query.to(dtype).reshape(batch, kv_heads, heads // kv_heads * rows, size)
    scores = torch.matmul(grouped, key.to(dtype).transpose(2, 3)).reshape(batch, heads, rows, -1) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = shown(scores, mask)
    weights = torch.softmax(scores, dim=-1)
    if mask is None:
        return weights
    # Only where nothing is seen: a NaN in the scores has to stay one.
    return weights.masked_fill((scores == float("-inf")).all(-1, keepdim=True), 0.0)


def shown(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores with those that a mask, bool or additive, hides at minus infinity."""
    mask = mask.to(scores.device)
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, float("-inf"))
    # A float mask may add the lowest number of a smaller type: that too means "not at all".
    hidden = mask <= torch.finfo(mask.dtype).min / 2
    return (scores + mask.to(scores.dtype)).masked_fill(hidden, float("-inf"))


def weighted_values(weights: Tensor, value: Tensor) -> Tensor:
    """Attention output of some rows: ``[B, R, H, dh]`` from weights ``[B, H, R, n]`` and values ``[B, Hkv, n, dh]``."""
    batch, heads, rows, keys = weights.shape
    kv_heads = value.shape[1]
    grouped = weights.reshape(batch, kv_heads, heads // kv_heads * rows, keys)
    output = torch.matmul(grouped, value.to(weights.dtype))
    return output.reshape(batch, heads, rows, value.shape[-1]).transpose(1, 2)


@dataclass(frozen=True)
class Influence:
    """Change of a row's attention output when one token's weight is zeroed, for every token (VisiPruner eq. 6-8).

    Heads are concatenated; the output is the one before the output projection; nothing is renormalised.

    Attributes:
        l2: ``[B, n]`` norm of the change.
        cos: ``[B, n]`` cosine between the output before and after.
        output_norm: ``[B]`` norm of the output.
    """

    l2: Tensor
    cos: Tensor
    output_norm: Tensor


def influence_norm(weights: Tensor, value: Tensor) -> Tensor:
    """The L2 part of `influence` alone, which needs no product with the output: ``[B, n]``."""
    group = weights.shape[1] // value.shape[1]
    value_norm2 = value.to(weights.dtype).square().sum(-1).repeat_interleave(group, dim=1)
    return (weights.square() * value_norm2).sum(1).sqrt()


def influence(weights: Tensor, value: Tensor, output: Tensor) -> Influence:
    """Closed form of VisiPruner eq. 6-8: with ``w`` the weights, ``v`` the values and ``O`` the output of each head,

        l2[j]^2   = sum_h w[h,j]^2 |v[h,j]|^2
        O.O'[j]   = |O|^2 - sum_h w[h,j] <O[h], v[h,j]>
        |O'[j]|^2 = |O|^2 - 2 sum_h w[h,j] <O[h], v[h,j]> + l2[j]^2

    Args:
        weights: ``[B, H, n]`` of one query row.
        value: ``[B, Hkv, n, dh]``.
        output: ``[B, H, dh]`` of the same row.
    """
    dtype = weights.dtype
    batch, heads, keys = weights.shape
    kv_heads, size = value.shape[1], value.shape[-1]
    value, output = value.to(dtype), output.to(dtype)
    # One product per key/value head; the query heads of its group are the rows.
    grouped = output.reshape(batch, kv_heads, heads // kv_heads, size)
    projection = torch.matmul(grouped, value.transpose(2, 3)).reshape(batch, heads, keys)
    l2 = influence_norm(weights, value)
    along = (weights * projection).sum(1)
    norm2 = output.square().sum((1, 2))[:, None]
    after2 = (norm2 - 2 * along + l2.square()).clamp(min=0)
    denominator = (norm2 * after2).sqrt()
    # An output that vanishes has turned nowhere: call its cosine 0, as for the largest possible change.
    cos = torch.where(denominator > 0, (norm2 - along) / denominator.clamp(min=torch.finfo(dtype).tiny), 0.0)
    return Influence(l2=l2, cos=cos.clamp(-1.0, 1.0), output_norm=norm2[:, 0].sqrt())


def sink_value(hidden: Tensor, dims: tuple[int, ...]) -> Tensor:
    """``max over dims of |x_d / RMS(x)|`` (VAR), no norm weight, eps 1e-6: ``[B, n]`` from ``[B, n, d]``."""
    x = hidden.to(working_dtype(hidden))
    rms = (x.square().mean(-1) + 1e-6).sqrt()
    return x[..., list(dims)].abs().amax(-1) / rms
