"""Packed positions: what an entry drops leaves no gap, so that later tokens count on from the tokens that were kept.

That is how engines see a prompt whose image embeddings were pruned before it reached them. The prompt's positions are
packed where it enters the text tower; how many tokens have gone is kept with the cache, and later steps move by that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planner.errors import ScheduleError
from planner.runtime.model.adapters import Parts
from planner.runtime.model.cache import past_length
from planner.schedule import Schedule

#: Where a cache carries how many tokens of its prompt have gone, ``[B, 1]``.
GONE = "_planner_gone"


def check_axes(schedule: Schedule, parts: Parts) -> None:
    """Refuse packed positions in families that place visual tokens on several axes.

    Raises:
        ScheduleError: the text after an image does not count its tokens there, so nothing can be packed.
    """
    if schedule.positions == "packed" and any(hasattr(module, "rope_deltas") for module in parts.model.modules()):
        raise ScheduleError(
            "this family places visual tokens on several axes, where dropped ones leave no gap to be packed",
            "Use positions 'original'",
        )


def pack_prompt(kwargs: dict[str, Any], gone: Tensor) -> dict[str, Any]:
    """A text tower's arguments for a prompt without gaps.

    Args:
        kwargs: the tower's arguments.
        gone: ``[B, n]`` tokens that the entry drops.
    """
    batch, length = gone.shape
    positions = kwargs.get("position_ids")
    if positions is None:
        positions = torch.arange(length, device=gone.device).expand(batch, length)
    before = gone.cumsum(1) - gone.long()
    if kwargs.get("past_key_values") is not None:
        setattr(kwargs["past_key_values"], GONE, gone.sum(1, keepdim=True))
    packed = positions - before.to(positions.device)
    mask = kwargs.get("attention_mask")
    if mask is None:  # or positions that do not count by one would be taken for several prompts in one row
        mask = torch.ones_like(gone, dtype=torch.long)
    return {**kwargs, "position_ids": packed, "attention_mask": mask}


def pack_step(kwargs: dict[str, Any]) -> dict[str, Any]:
    """A text tower's arguments for what follows such a prompt."""
    cache = kwargs.get("past_key_values")
    gone = getattr(cache, GONE, None)
    if gone is None:
        return kwargs
    batch, new = kwargs["inputs_embeds"].shape[:2]
    positions = kwargs.get("position_ids")
    if positions is None:
        past = past_length(cache)
        positions = torch.arange(past, past + new, device=gone.device).expand(batch, new)
    moved = gone.repeat_interleave(batch // len(gone), dim=0).to(positions.device)
    return {**kwargs, "position_ids": positions - moved}
