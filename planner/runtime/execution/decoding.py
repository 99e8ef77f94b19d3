"""Steps after the prompt, over a cache that a plan has pruned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from planner.runtime.model.attention import Call
from planner.runtime.model.cache import BorrowingLayer, PrunedLayer, pruned_layers
from planner.runtime.model.hidden import token_count
from planner.runtime.selection.redistribute import redistribute_step
from planner.runtime.tensors.masks import columns
from planner.schedule import Schedule


class Decoding:
    """What the layers of a forward over a pruned cache need.

    Args:
        schedule: the plan's.
        layers: the cache's pruned layers, by layer.
    """

    def __init__(self, schedule: Schedule, layers: Mapping[int, PrunedLayer] | None = None) -> None:
        self.schedule = schedule
        self.layers: Mapping[int, PrunedLayer] = layers or {}
        #: Its layers run as the model runs them, and so does its attention.
        whole = not any(layer.filled is not None or layer.window is not None for layer in self.layers.values())
        self.plain = whole and schedule.positions == "original"
        borrows = any(isinstance(layer, BorrowingLayer) for layer in self.layers.values())
        self.plain_attention = not borrows and all(stage.redistribute is None for stage in schedule.stages)
        #: Masks of this step, by what they are of.
        self._masks: dict[Any, Any] = {}

    @classmethod
    def over(cls, schedule: Schedule, cache: Any) -> Decoding | None:
        """A step over a cache; None where a plan has not filled it."""
        layers = pruned_layers(cache)
        return cls(schedule, layers) if layers else None

    def before(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """A layer's arguments, with the columns of the model's mask that its cache holds."""
        cache = self.layers.get(index)
        if cache is None or (kwargs.get("attention_mask") is None and cache.filled is None):
            return kwargs
        return {**kwargs, "attention_mask": self._mask(cache, args, kwargs)}

    def _mask(self, cache: PrunedLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        mask = kwargs.get("attention_mask")
        hidden = args[0] if args else kwargs["hidden_states"]
        assert cache.index is not None
        new = cache.generated + token_count(hidden)
        if torch.compiler.is_compiling():
            return columns(mask, cache.index, cache.filled, new)
        # Layers that hold the same rows share one.
        key = (id(mask), id(cache.index), cache.generated)
        if key not in self._masks:
            self._masks[key] = (mask, columns(mask, cache.index, cache.filled, new))
        return self._masks[key][1]  # type: ignore[no-any-return]

    def attend(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """A layer's attention: the kernel, and where the plan says so with its weights redistributed."""
        borrowing = self.layers[call.layer]
        if isinstance(borrowing, BorrowingLayer):
            call.key, call.value = borrowing.pick(call.key), borrowing.pick(call.value)
        output, weights = call.run()
        rule = self.schedule.stage_of(call.layer).redistribute
        if rule is not None:
            output = redistribute_step(call, rule, self.layers[call.layer], output)
        return output, weights

    def after(self, index: int) -> None:
        """A layer has run."""
        cache = self.layers.get(index)
        if cache is not None and cache.window is not None:
            cache.forget()
