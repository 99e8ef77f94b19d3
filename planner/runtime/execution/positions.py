"""Positions of decode steps in families with several position axes.

Such a model keeps on itself by how much its last prompt's positions differ from its length (``rope_deltas``), and reads
it when a step comes without positions. Another thread's prompt may have been there in between, so the difference is
kept with the cache as well, and steps get their positions from there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planner.runtime.model.adapters import Parts
from planner.runtime.model.cache import past_length

#: Where a cache carries the difference, ``[B, 1]``.
_DELTA = "_planner_rope_delta"


class Positions:
    """Positions for a model's forwards.

    Args:
        parts: the model.
    """

    def __init__(self, parts: Parts) -> None:
        self._several_axes = any(hasattr(module, "rope_deltas") for module in parts.model.modules())

    def note(self, kwargs: dict[str, Any]) -> None:
        """Keep the difference of a prompt that enters the text tower, given the tower's arguments."""
        cache, position_ids = kwargs.get("past_key_values"), kwargs.get("position_ids")
        if not self._several_axes or cache is None or past_length(cache):
            return
        if not isinstance(position_ids, Tensor) or position_ids.ndim != 3:
            return
        mask = kwargs.get("attention_mask")
        length: Any = position_ids.shape[-1]
        if isinstance(mask, Tensor) and mask.ndim == 2:
            length = mask.sum(dim=1).to(position_ids.device)
        setattr(cache, _DELTA, (position_ids[-3:].amax(dim=(0, 2)) + 1 - length)[:, None])

    def supplied(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """A step's arguments, with positions ``[3, B, q]`` where the model would look into its own memory."""
        cache = kwargs.get("past_key_values")
        delta, ids = getattr(cache, _DELTA, None), kwargs.get("input_ids")
        if delta is None or ids is None or kwargs.get("position_ids") is not None:
            return kwargs
        batch, new = ids.shape
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            place = mask.long().cumsum(dim=1)[:, -new:].sub(1).clamp(min=0).to(ids.device)
        else:
            past = past_length(cache)
            place = torch.arange(past, past + new, device=ids.device).expand(batch, -1)
        delta = delta.to(ids.device).repeat_interleave(batch // len(delta), dim=0)
        return {**kwargs, "position_ids": (place + delta).expand(3, batch, new)}
