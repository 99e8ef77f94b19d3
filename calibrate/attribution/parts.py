"""The parts of a model that head attribution needs, found by what they are called and refused by name when missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from planner.errors import UnsupportedModelError

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Parts:
    """A vision-language model, taken apart.

    Attributes:
        tower: the text decoder stack (embeddings in, normalised hidden states out).
        attentions: the attention module of each decoder layer.
        head: the output embedding, hidden size to vocabulary.
        heads, kv_heads: query heads and key/value heads of every layer.
        image_token_id: the id that stands for a visual token in ``input_ids``.
    """

    tower: nn.Module
    attentions: tuple[nn.Module, ...]
    head: nn.Linear
    heads: int
    kv_heads: int
    image_token_id: int

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self.attentions)

    def key_source(self, layer: int) -> nn.Module:
        """The last module a key passes before the rotary embedding."""
        attention = self.attentions[layer]
        norm: nn.Module | None = getattr(attention, "k_norm", None)
        return attention.get_submodule("k_proj") if norm is None else norm


def find_parts(model: nn.Module) -> Parts:
    """Locate the text tower, its attention modules and the output embedding of a Hugging Face model.

    Raises:
        UnsupportedModelError: a part is missing; the message names it.
    """
    name = type(model).__name__
    tower = model.get_decoder() if hasattr(model, "get_decoder") else None
    layers = getattr(tower, "layers", None)
    if tower is None or layers is None:
        raise _missing(name, "a text decoder with .layers")
    attentions = []
    for index, layer in enumerate(layers):
        attention = getattr(layer, "self_attn", None)
        if attention is None:
            raise _missing(name, f"layer {index}'s .self_attn")
        absent = [part for part in _PROJECTIONS if not hasattr(attention, part)]
        if absent:
            raise _missing(name, f"layer {index}'s self_attn.{absent[0]}")
        attentions.append(attention)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None or not hasattr(head, "weight"):
        raise _missing(name, "an output embedding with a weight")
    config: Any = tower.config
    image_token_id = getattr(model.config, "image_token_id", getattr(model.config, "image_token_index", None))
    if image_token_id is None:
        raise _missing(name, "config.image_token_id")
    return Parts(
        tower=tower,
        attentions=tuple(attentions),
        head=head,
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        image_token_id=int(image_token_id),
    )


def _missing(model: str, part: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"head attribution needs {part}, and {model} has none",
        "Leave the attribution probe out for this model.",
    )


@contextmanager
def attention_as(tower: nn.Module, name: str, attend: Any, mask: Any) -> Iterator[None]:
    """Let the tower's layers call ``attend`` for attention and ``mask`` for their masks, inside the block only.

    ``mask`` is registered too, since a name without a mask function makes transformers drop the padding mask silently.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    config: Any = tower.config
    before = config._attn_implementation
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, mask)
    try:
        config._attn_implementation = name
        yield
    finally:
        config._attn_implementation = before
        AttentionInterface._global_mapping.pop(name, None)
        AttentionMaskInterface._global_mapping.pop(name, None)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where scores are computed: the model's dtype, but never less than float32."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
