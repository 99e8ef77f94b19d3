"""Steps after the prompt, over a cache that a plan has pruned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planner.runtime.model.attention import Call
from planner.runtime.model.cache import PrunedLayer
from planner.runtime.selection.redistribute import redistribute_step
from planner.runtime.tensors.masks import columns
from planner.schedule import Schedule


class Decoding:
    """What the layers of a forward without a prompt need.

    Args:
        schedule: the plan's.

    Attributes:
        layers: the cache's pruned layers; none where the forward has nothing to do with a plan.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.layers: list[PrunedLayer] = []
        #: Masks of this step, by what they are of.
        self._masks: dict[Any, Any] = {}

    def clear(self) -> None:
        """Drop what was made for one step."""
        self._masks.clear()

    def mask(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The columns of the model's mask that a layer's cache holds; layers that hold the same share one."""
        cache, mask = self.layers[index], kwargs.get("attention_mask")
        if mask is None and cache.filled is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        assert cache.index is not None
        new = cache.generated + hidden.shape[1]
        if torch.compiler.is_compiling():
            return columns(mask, cache.index, cache.filled, new)
        key = (id(mask), id(cache.index), cache.generated)
        if key not in self._masks:
            self._masks[key] = (mask, columns(mask, cache.index, cache.filled, new))
        return self._masks[key][1]  # type: ignore[no-any-return]

    def attend(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """A layer's attention: the kernel, and where the plan says so with its weights redistributed."""
        output, weights = call.run()
        rule = self.schedule.stage_of(call.layer).redistribute if self.layers else None
        if rule is not None:
            output = redistribute_step(call, rule, self.layers[call.layer], output)
        return output, weights

    def after(self, index: int) -> None:
        """A layer has run."""
        self.layers[index].forget()
