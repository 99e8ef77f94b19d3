"""Cache layers that hold few keys and values and say that they hold the whole prompt.

A model asks its cache how long the past is to place the next token and to size its mask. A pruned layer therefore
answers with the **logical** length, in which dropped tokens still count, and the runtime picks from the model's mask
the columns that are really there. Positions, multi-axis rotary embeddings, beam search, assisted decoding and later
turns need nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from planner.errors import RuntimeStateError
from planner.runtime.tensors.rows import Rows, gather


class Attachment:
    """Says whether the plan that filled a cache is still attached. A deep copy of the cache shares it."""

    def __init__(self) -> None:
        self.active = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        return self


class PrunedLayer(DynamicLayer):  # type: ignore[misc]
    """One decoder layer's keys and values under a plan.

    Args:
        attachment: shared with the handle that makes this layer.
        length: logical length of the prompt.
        window: sliding window of the layer, None for full attention.

    Attributes:
        index: ``[B, p]`` original index of each prompt row held, -1 for an empty slot.
        filled: ``[B, p]``, None when no slot is empty.
        sinks, visual: ``[B, n]`` visual sink rows and visual rows of the prompt, only in layers that redistribute
            attention.
    """

    def __init__(self, attachment: Attachment, length: int, window: int | None = None) -> None:
        super().__init__()
        self.is_sliding = window is not None
        self.window = window
        self.record_past = False
        self.attachment = attachment
        self._length = length
        self._prefilling = True
        self.index: Tensor | None = None
        self.filled: Tensor | None = None
        self.sinks: Tensor | None = None
        self.visual: Tensor | None = None

    @property
    def generated(self) -> int:
        """Keys held after the prompt's."""
        return 0 if self.index is None else int(self.keys.shape[-2] - self.index.shape[1])

    def fill(self, keys: Tensor, values: Tensor, rows: Rows) -> None:
        """Hold exactly these prompt rows."""
        self._store(keys, values)
        self._set_rows(rows.index, rows.filled if rows.ragged else None)

    def keep(self, rows: Rows, held: Rows) -> None:
        """Keep only `rows` of the `held` ones."""
        index = held.slots_of(rows)
        self.fill(gather(self.keys, index, dim=2), gather(self.values, index, dim=2), rows)

    def _store(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def _set_rows(self, index: Tensor, filled: Tensor | None) -> None:
        self.index, self.filled = index.to(self.device), None if filled is None else filled.to(self.device)

    def close(self) -> None:
        """The prompt is complete: from here on tokens are appended."""
        self._prefilling = False
        self.forget()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append generated tokens; during the prefill, take the keys and values of the rows that run."""
        if not self.attachment.active:
            raise RuntimeStateError(
                "this KV cache was filled under a plan that has been detached",
                "Attach the plan again, or start from an empty cache",
            )
        if self._prefilling:
            self._store(key_states, value_states)
            return key_states, value_states
        self.keys = torch.cat([self.keys, key_states], dim=-2)
        self.values = torch.cat([self.values, value_states], dim=-2)
        self._length += key_states.shape[-2]
        return self.keys, self.values

    def forget(self) -> None:
        """Drop prompt rows that a sliding window has passed for every sample."""
        if self.window is None or self.record_past or self.index is None or self._length < self.window:
            return
        gone = int((self.index <= self._length - self.window).all(dim=0).sum())
        if gone:
            self.keys, self.values = self.keys[:, :, gone:], self.values[:, :, gone:]
            self._set_rows(self.index[:, gone:], None if self.filled is None else self.filled[:, gone:])
        over = self.generated - (self.window - 1)  # only once the whole prompt is out of state
        if over > 0:
            self.keys, self.values = self.keys[:, :, over:], self.values[:, :, over:]

    def get_seq_length(self, *args: Any) -> int:
        """Logical tokens seen: 0 until the prompt has gone through, as an ordinary cache would say."""
        return 0 if self._prefilling else self._length

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Keys the model's mask must cover: all logical ones. Up to 5.2 the argument is a tensor of positions."""
        new = int(query_length.shape[0]) if isinstance(query_length, Tensor) else int(query_length)
        return self.get_seq_length() + new, 0

    def activate_past_recording(self) -> None:
        """Assisted decoding will take tokens back: keep what a sliding window has passed."""
        self.record_past = True

    def crop(self, max_length: int) -> None:
        """Take back the newest tokens: negative, how many; positive, the length to keep.

        Raises:
            RuntimeStateError: the cut would go into the pruned prompt.
        """
        remove = -max_length if max_length < 0 else self._length - max_length
        if max_length == 0 or remove <= 0 or self._prefilling:
            return
        if remove > self.generated:
            raise RuntimeStateError(
                "a pruned prompt cannot be cropped", "Crop generated tokens only, or start from an empty cache"
            )
        self.keys, self.values = self.keys[..., :-remove, :], self.values[..., :-remove, :]
        self._length -= remove

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Give every beam the past of the beam it continues."""
        self._per_sample(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample."""
        self._per_sample(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some samples."""
        self._per_sample(lambda x: x[indices, ...])

    def _per_sample(self, change: Any) -> None:
        for name in ("keys", "values", "index", "filled", "sinks", "visual"):
            held = getattr(self, name)
            if held is not None:
                setattr(self, name, change(held))

    def reset(self) -> None:
        """An emptied cache could not be told from a prompt without rows."""
        raise RuntimeStateError("a cache filled under a plan cannot be reset and used again", "Make a new cache")


def past_length(cache: Any) -> int:
    """Logical length of a cache, 0 for none."""
    return int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0


def install(
    cache: DynamicCache, layers: int, attachment: Attachment, length: int, windows: list[int | None]
) -> list[PrunedLayer]:
    """Put pruned layers into an ordinary, empty cache.

    Raises:
        RuntimeStateError: the cache is of a kind whose shapes a plan cannot change.
    """
    if type(cache) is not DynamicCache:
        raise RuntimeStateError(
            f"a plan cannot shrink a {type(cache).__name__}",
            "Use the default DynamicCache (no cache_implementation), or detach the plan",
        )
    if getattr(cache, "offloading", False):
        raise RuntimeStateError("a plan cannot shrink an offloaded cache", "Use DynamicCache() without offloading")
    pruned = [PrunedLayer(attachment, length, windows[layer]) for layer in range(layers)]
    cache.layers[:] = pruned
    return pruned
