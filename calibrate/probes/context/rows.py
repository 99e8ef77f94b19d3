"""Attention weights of some rows of a prompt, and what these rows see; never an n x n matrix."""

from __future__ import annotations

import torch

from planner.runtime.model.attention import Call
from planner.runtime.tensors.weights import attention_weights

#: Rows at a time.
CHUNK = 128


def row_weights(call: Call, rows: torch.Tensor) -> torch.Tensor:
    """Weights of some rows, ``[H, R, n]``."""
    mask = None if call.mask is None else call.mask[:1, :, rows]
    return attention_weights(call.query[:, :, rows], call.key, mask, call.scaling)[0]


def visible(mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Which keys some rows may attend to, ``[R, n]``, from a layer's boolean or additive mask."""
    seen = mask[0, 0, rows]
    return seen if mask.dtype == torch.bool else seen > torch.finfo(mask.dtype).min / 2
