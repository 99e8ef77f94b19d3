"""Cache layers that hold few keys and values and say that they hold the whole prompt; states of recurrent layers.

A model asks its cache how long the past is to place the next token and to size its mask. A pruned layer therefore
answers with the **logical** length, in which dropped tokens still count, and the runtime picks from the model's mask
the columns that are really there. Positions, multi-axis rotary embeddings, beam search, assisted decoding and later
turns need nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import DynamicCache, DynamicLayer

from planner.errors import RuntimeStateError
from planner.runtime.tensors.rows import Rows, gather


class Attachment:
    """Says whether the plan that filled a cache is still attached. A deep copy of the cache shares it."""

    def __init__(self) -> None:
        self.active = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        return self

    def check(self) -> None:
        """Refuse a step over a cache whose plan is no longer there.

        Raises:
            RuntimeStateError: it has been detached.
        """
        if not self.active:
            raise RuntimeStateError(
                "this KV cache was filled under a plan that has been detached",
                "Attach the plan again, or start from an empty cache",
            )


#: Of a recurrent layer. Older releases keep states in caches of single families.
StateLayer: Any = getattr(cache_utils, "LinearAttentionLayer", object)
KEEPS_STATES = "number_of_states" in inspect.signature(StateLayer).parameters


class PrunedState(StateLayer):  # type: ignore[misc]
    """One recurrent layer's states under a plan: those after the rows that the layer ran. They cannot forget any.

    Args:
        attachment: shared with the handle that makes this layer.
    """

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment
        super().__init__()

    @property
    def has_previous_state(self) -> dict[int, bool]:
        """Which states there are. Every step asks, so that a step without the plan ends here."""
        self.attachment.check()
        return self._has_previous_state

    @has_previous_state.setter
    def has_previous_state(self, value: dict[int, bool]) -> None:
        self._has_previous_state = value


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
        #: Of the step at hand, keys held after the prompt's before it, and the prompt rows that are held.
        self.step: tuple[int, Tensor | None] = (0, None)

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
        self.attachment.check()
        if self._prefilling:
            self._store(key_states, value_states)
            return key_states, value_states
        self.step = self.generated, self.index
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


class BorrowingLayer(PrunedLayer):
    """A decoder layer that reads keys and values of an earlier one: which of that layer's rows it may see.

    Args:
        lender: the earlier layer.
    """

    def __init__(self, lender: PrunedLayer) -> None:
        super().__init__(lender.attachment, lender._length, lender.window)
        self.lender = lender
        self._slots: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)

    @property
    def generated(self) -> int:
        """Keys after the prompt's that the lender held before this step."""
        return self.lender.step[0]

    def fill(self, keys: Tensor, values: Tensor, rows: Rows) -> None:
        """See exactly these prompt rows."""
        self.device = rows.index.device
        self._set_rows(rows.index, rows.filled if rows.ragged else None)

    def keep(self, rows: Rows, held: Rows) -> None:
        """See only `rows` of the `held` ones."""
        self.fill(self.keys, self.values, rows)

    def pick(self, states: Tensor) -> Tensor:
        """Keys or values ``[B, Hkv, k, dh]`` of a step, of all that the lender holds: those this layer may see."""
        held, mine = self.lender.step[1], self.index
        assert held is not None and mine is not None
        if self._slots[0] is not held or self._slots[1] is not mine:
            # A row that the lender's window has passed is hidden by the mask: any other may stand for it.
            self._slots = held, mine, (held[:, None, :] == mine[:, :, None]).int().argmax(-1)
        slots = self._slots[2]
        assert slots is not None
        return torch.cat([gather(states, slots, dim=2), states[:, :, held.shape[1] :]], dim=2)

    def forget(self) -> None:
        """Do not look for prompt rows that a sliding window has passed for every sample."""
        if self.window is None or self.index is None or self.lender.record_past:
            return
        gone = int((self.index <= self.lender._length - self.window).all(dim=0).sum())
        if gone:
            self._set_rows(self.index[:, gone:], None if self.filled is None else self.filled[:, gone:])

    def get_seq_length(self, *args: Any) -> int:
        """Logical tokens seen."""
        return self.lender.get_seq_length()

    def crop(self, max_length: int) -> None:
        """The lender takes tokens back."""


def past_length(cache: Any) -> int:
    """Logical length of a cache, 0 for none."""
    return int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0


def pruned_layers(cache: Any) -> dict[int, PrunedLayer]:
    """Of a cache that a plan has filled, the layers with keys and values, by layer; of any other cache none."""
    layers = getattr(cache, "layers", None) or []
    return {index: layer for index, layer in enumerate(layers) if isinstance(layer, PrunedLayer)}


def install(
    cache: DynamicCache,
    attachment: Attachment,
    length: int,
    windows: Sequence[int | None],
    lenders: Mapping[int, int],
) -> dict[int, PrunedLayer]:
    """Put pruned layers into an ordinary, empty cache; gives those with keys and values, by layer.

    Args:
        cache: that of a prompt.
        attachment: of the plan.
        length: logical length of the prompt.
        windows: sliding window per layer, None for full attention, 0 for a recurrent layer.
        lenders: layers that read the keys and values of earlier ones, and these.

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
    layers: list[Any] = []
    for index, size in enumerate(windows):
        if index in lenders:
            layers.append(BorrowingLayer(layers[lenders[index]]))
            continue
        layer = PrunedState(attachment) if size == 0 else PrunedLayer(attachment, length, size)
        if index < len(cache.layers) and getattr(cache.layers[index], "record_past", False):
            layer.activate_past_recording()  # assisted decoding has asked for it already
        layers.append(layer)
    cache.layers[:] = layers
    return pruned_layers(cache)
