"""Fixed shapes: after a pruned prefill, decode over static buffers, so that a step compiles once as a whole graph.

    with attach(model, schedule) as handle, torch.inference_mode():
        output = model(**inputs, use_cache=True, logits_to_keep=1)
        cache = fix(output.past_key_values, max_new_tokens=64)
        step = torch.compile(model, fullgraph=True)
        logits = step(input_ids=token, past_key_values=cache).logits

Every layer has the length that its stage left it, plus room for what is generated: shapes differ from layer to layer
and never from step to step. Plans meant for graphs carry counts, not thresholds, which make the prompt's shapes
depend on the image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from planner.errors import InputError, RuntimeStateError
from planner.runtime.execution.packing import GONE
from planner.runtime.model.cache import BorrowingLayer, PrunedLayer, PrunedState


class FixedLayer(PrunedLayer):
    """A pruned layer whose buffers do not grow.

    Args:
        layer: the layer after the prefill.
        room: tokens that can be appended.
    """

    is_compileable = True

    def __init__(self, layer: PrunedLayer, room: int) -> None:
        super().__init__(layer.attachment, layer.get_seq_length(), layer.window)
        assert layer.index is not None
        self._prefilling = False
        self.room = room
        held = layer.keys.shape[2]
        self._store(
            torch.nn.functional.pad(layer.keys, (0, 0, 0, room)), torch.nn.functional.pad(layer.values, (0, 0, 0, room))
        )
        self.index, self.filled = layer.index, layer.filled
        self.sinks, self.visual = layer.sinks, layer.visual
        self._logical = self._length + room
        #: Written in place, so that a captured graph finds them where they were.
        self.length = torch.tensor(self._length, device=self.device)
        self.slot = torch.tensor([held], device=self.device)

    @property
    def generated(self) -> int:
        """One less than the room: with a step's token that offers every appended column; the mask hides the rest."""
        return self.room - 1

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one token into its slot."""
        self.keys.index_copy_(2, self.slot, key_states)
        self.values.index_copy_(2, self.slot, value_states)
        self.slot.add_(1)
        self.length.add_(1)
        return self.keys, self.values

    def get_seq_length(self, *args: Any) -> Any:
        """Logical tokens seen, a tensor."""
        return self.length

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """The whole logical length that can ever be, so that masks keep one shape."""
        return self._logical, 0

    def get_max_length(self) -> int:
        """Logical tokens that fit."""
        return self._logical

    get_max_cache_shape = get_max_length

    def forget(self) -> None:
        """Nothing leaves a fixed buffer; the mask hides what a sliding window has passed."""

    def crop(self, max_length: int) -> None:
        """Refused: assisted decoding needs a cache that can take tokens back."""
        raise RuntimeStateError("a fixed cache cannot be cropped", "Use the ordinary cache for assisted decoding")


def fix(cache: Cache, max_new_tokens: int) -> Cache:
    """Exchange the layers of a cache that a pruned prefill has filled for fixed ones, in place.

    Args:
        cache: the prefill's `past_key_values`.
        max_new_tokens: tokens that will be generated at most.

    Raises:
        InputError: no room asked for.
        RuntimeStateError: the cache was not filled under a plan, has gone past its prompt, is ragged or has packed
            positions.
    """
    if max_new_tokens < 1:
        raise InputError(
            f"max_new_tokens must be at least 1, got {max_new_tokens}", "Ask for the tokens you will generate"
        )
    layers = list(cache.layers)
    if any(isinstance(layer, (PrunedState, BorrowingLayer)) for layer in layers):
        raise RuntimeStateError(
            "a cache with states of recurrent layers, or with keys that several layers read, cannot be fixed",
            "Decode over the ordinary cache",
        )
    if not layers or not all(type(layer) is PrunedLayer for layer in layers):
        raise RuntimeStateError(
            "only a cache filled under a plan can be fixed", "Run the prompt with the plan attached"
        )
    if getattr(cache, GONE, None) is not None:
        raise RuntimeStateError(
            "a cache with packed positions cannot be fixed: steps over it count on from the whole prompt",
            "Use a plan with positions 'original'",
        )
    if any(layer.generated for layer in layers):
        raise RuntimeStateError("the cache holds generated tokens already", "Fix it right after the prompt")
    cache.layers[:] = [FixedLayer(layer, max_new_tokens) for layer in layers]
    return cache
