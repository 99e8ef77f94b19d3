"""Attention of visual rows to the text before them and to themselves, and to no other visual row.

A row's keys are ``p`` that it shares with the others and one of its own. Their scores stand side by side under one
softmax, so that no more than ``n (p + 1)`` pairs are computed: matrix products with the shared keys and values, and for
every row one of a single column with its own.

Shapes: ``B`` batch, ``H`` query heads, ``Hkv`` key/value heads, ``n`` visual rows, ``p`` text rows, ``dh`` head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from planner.runtime.tensors.weights import shown, working_dtype

#: Weights held at once: where the text is long, visual rows go through in chunks.
_MOST_WEIGHTS = 1 << 24


@dataclass(frozen=True)
class PrefixAttention:
    """The attention of visual rows in one layer.

    Attributes:
        query: ``[B, H, n, dh]``, rotated, as all keys are.
        own_key, own_value: ``[B, Hkv, n, dh]`` of the same rows.
        key, value: ``[B, Hkv, p, dh]`` of the text.
        mask: ``[B, 1, n, p]``, bool or additive; None: every row sees all of the text.
        scaling: factor on the scores.
        softcap: as for `planner.runtime.tensors.weights.attention_weights`.
    """

    query: Tensor
    own_key: Tensor
    own_value: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None = None

    def output(self) -> Tensor:
        """The rows' attention output, ``[B, n, H, dh]``."""
        parts = [self._output(rows) for rows in self._chunks()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def received(self) -> Tensor:
        """The weight that each text row gets from the visual rows together, ``[B, H, p]``."""
        return torch.stack([self._weights(rows)[..., :-1].sum(2) for rows in self._chunks()]).sum(0)

    def _chunks(self) -> Iterator[slice]:
        batch, heads, count, _ = self.query.shape
        step = max(1, _MOST_WEIGHTS // (batch * heads * (self.key.shape[2] + 1)))
        return (slice(start, start + step) for start in range(0, count, step))

    def _weights(self, rows: slice) -> Tensor:
        """``[B, H, r, p + 1]``: of some rows, on the text and, last, on themselves."""
        query, own_key = self.query[:, :, rows], self.own_key[:, :, rows]
        batch, heads, count, size = query.shape
        grouped = query.reshape(batch, own_key.shape[1], -1, count, size)
        shared = torch.matmul(grouped.flatten(2, 3), self.key.transpose(2, 3)).reshape(batch, heads, count, -1)
        own = torch.matmul(grouped.transpose(2, 3), own_key[..., None]).transpose(2, 3).reshape(batch, heads, count, 1)
        scores = torch.cat([shared, own], dim=-1).to(working_dtype(query)) * self.scaling
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        if self.mask is not None:
            mask = self.mask[:, :, rows]
            scores = shown(scores, nn.functional.pad(mask, (0, 1), value=1.0 if mask.dtype == torch.bool else 0.0))
        return torch.softmax(scores, dim=-1)

    def _output(self, rows: slice) -> Tensor:
        own_value = self.own_value[:, :, rows]
        weights = self._weights(rows).to(own_value.dtype)
        batch, heads, count, _ = weights.shape
        grouped = weights.reshape(batch, own_value.shape[1], -1, count, weights.shape[-1])
        shared = torch.matmul(grouped[..., :-1].flatten(2, 3), self.value).reshape(*grouped.shape[:-1], -1)
        own = torch.matmul(grouped[..., -1:].transpose(2, 3), own_value[..., None, :]).transpose(2, 3)
        return (shared + own).reshape(batch, heads, count, -1).transpose(1, 2)
