"""Observe attention while a model runs with its fused kernel: the signals that probes read.

    with observe(model, callback):
        model(**inputs)

The kernel gets the model's inputs and its result is passed on unchanged, so the logits are bit-identical. What a view
offers is computed on access.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from planner.errors import RuntimeStateError
from planner.runtime.attach import attached_towers
from planner.runtime.model.adapters import check_attending, find_parts
from planner.runtime.model.attention import Call, attention_hook
from planner.runtime.model.cache import past_length
from planner.runtime.tensors.layout import Layout, read_layout
from planner.runtime.tensors.masks import causal
from planner.runtime.tensors.rows import Rows, gather
from planner.runtime.tensors.weights import Influence, attention_weights, influence, working_dtype


@dataclass
class LayerView:
    """One decoder layer in a forward pass: ``n`` query rows, ``k`` keys (``n == k`` in a prefill).

    Attributes:
        layer: index, from 0.
        hidden: ``[B, n, d]`` the layer's input; of several hidden states a token, the one the layer runs on.
        query: ``[B, H, n, dh]``; key, value: ``[B, Hkv, k, dh]``, rotated, as the kernel got them.
        output: ``[B, n, H, dh]`` before the output projection.
        mask: ``[B, 1, n, k]``, bool or additive, or None for causal.
        scaling, softcap: as the kernel got them.
        visual, valid: ``[B, k]`` which keys are visual tokens, and which are not padding.
        last: ``[B]`` the last valid query row.
    """

    layer: int
    hidden: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None
    visual: Tensor
    valid: Tensor
    last: Tensor
    _last_weights: Tensor | None = field(default=None, repr=False)

    def weights(self, rows: Tensor | None = None) -> Tensor:
        """Attention weights of some rows, ``[B, H, R, k]``, float32 (float64 for a float64 model).

        Args:
            rows: ``[B, R]`` indices of query rows; None: the last valid row.
        """
        if rows is None:
            if self._last_weights is None:
                self._last_weights = self._weights(self.last[:, None])
            return self._last_weights
        return self._weights(rows)

    def _weights(self, rows: Tensor) -> Tensor:
        mask = self.mask
        if mask is not None:
            mask = gather(mask, rows, dim=2)
        elif self.query.shape[2] > 1:
            keys = self.key.shape[2]
            # The kernel aligned the causal triangle with the first key: a prefill.
            everything = Rows.all(rows.shape[0], keys, rows.device)
            mask = causal(Rows(rows, (rows.shape[1],) * rows.shape[0], keys), everything)
        return attention_weights(gather(self.query, rows, dim=2), self.key, mask, self.scaling, self.softcap)

    @cached_property
    def _influence(self) -> Influence:
        return influence(self.weights()[:, :, 0], self.value, gather(self.output, self.last[:, None])[:, 0])

    def influence(self) -> Influence:
        """Effect on the last valid row's output of zeroing each key's weight, all keys at once (VisiPruner eq. 6-8)."""
        return self._influence

    def value_norms(self) -> Tensor:
        """L2 norm of each value vector, ``[B, Hkv, k]`` (sparsity appendix)."""
        norms: Tensor = torch.linalg.vector_norm(self.value.to(working_dtype(self.value)), dim=-1)
        return norms


@contextmanager
def observe(model: Any, callback: Callable[[LayerView], None], layers: Collection[int] | None = None) -> Iterator[None]:
    """Call `callback` once per decoder layer in every forward of the model inside the block.

    In decode steps `visual` and `valid` go on from the prompt seen last inside the block.

    Args:
        model: a transformers vision-language model.
        callback: gets a `LayerView`; an exception it raises ends the forward.
        layers: only these layers; None: all.

    Raises:
        UnsupportedModelError: the model lacks a part that is needed, such as attention in one of `layers`; the message
            names it.
        RuntimeStateError: another attention kernel than sdpa or eager, or a plan is attached.
    """
    parts = find_parts(model)
    if parts.tower in attached_towers:
        raise RuntimeStateError("a plan is attached to this model", "Detach it before measuring")
    watched = range(len(parts.layers)) if layers is None else sorted(set(layers))
    if not set(watched) <= set(parts.attentions):
        check_attending(parts, "observing every layer")
    layout: list[Layout] = []
    hidden: dict[int, Tensor] = {}

    def before_model(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs.get("input_ids")
        if past_length(kwargs.get("past_key_values")) == 0:
            if ids is None:
                raise RuntimeStateError("visual tokens cannot be found without input_ids", "Pass input_ids")
            layout[:] = [read_layout(ids, parts.visual_ids, kwargs.get("attention_mask"))]

    def before_layer(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden[index] = parts.form.seen(parts.form.rows(args[0] if args else kwargs["hidden_states"]))

        return hook

    def attend(call: Call) -> tuple[Tensor, Tensor | None]:
        output, weights = call.run()
        if call.layer in hidden and layout:
            callback(_view(call, output, hidden.pop(call.layer), layout[0]))
        return output, weights

    with ExitStack() as stack:
        hooks = [parts.model.register_forward_pre_hook(before_model, with_kwargs=True)]
        hooks += [parts.layers[i].register_forward_pre_hook(before_layer(i), with_kwargs=True) for i in watched]
        for hook in hooks:
            stack.callback(hook.remove)
        stack.enter_context(attention_hook(parts.attentions, attend))
        yield


def _view(call: Call, output: Tensor, hidden: Tensor, layout: Layout) -> LayerView:
    device, keys, rows = call.key.device, call.key.shape[2], call.query.shape[2]
    new = keys - layout.length
    visual, valid, last = layout.visual, layout.valid, layout.last
    if new:
        visual = nn.functional.pad(visual, (0, new))
        valid = nn.functional.pad(valid, (0, new), value=True)
        last = torch.full_like(last, rows - 1)
    return LayerView(
        layer=call.layer,
        hidden=hidden,
        query=call.query,
        key=call.key,
        value=call.value,
        output=output,
        mask=call.mask,
        scaling=call.scaling,
        softcap=call.softcap,
        visual=visual.to(device),
        valid=valid.to(device),
        last=last.to(device),
    )
