"""The parts of a model that head attribution needs beside those a plan needs, refused by name when missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from planner.errors import UnsupportedModelError
from planner.runtime.model import adapters

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, eq=False)
class AttributionParts:
    """A vision-language model, taken apart.

    Attributes:
        tower: the text decoder stack (embeddings in, normalised hidden states out).
        blocks: the decoder layers.
        attentions: the attention module of each decoder layer.
        last_mlp: feed-forward module of the last layer, None where it has another name.
        head: the output embedding, hidden size to vocabulary.
        heads, kv_heads: query heads and key/value heads of every layer.
        visual_ids: ids that stand for visual tokens in ``input_ids``.
    """

    tower: Any
    blocks: tuple[nn.Module, ...]
    attentions: tuple[nn.Module, ...]
    last_mlp: nn.Module | None
    head: Any
    heads: int
    kv_heads: int
    visual_ids: tuple[int, ...]

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self.attentions)

    def key_source(self, layer: int) -> nn.Module:
        """The last module a key passes before the rotary embedding."""
        attention = self.attentions[layer]
        norm: nn.Module | None = getattr(attention, "k_norm", None)
        return attention.get_submodule("k_proj") if norm is None else norm


def find_attribution_parts(model: Any) -> AttributionParts:
    """Locate the text tower, its attention modules and the output embedding of a transformers model.

    Raises:
        UnsupportedModelError: a part is missing; the message names it.
    """
    found = adapters.find_parts(model)
    adapters.check_attending(found, "head attribution")
    adapters.check_one_state(found, "head attribution")
    name = type(found.model).__name__
    for index, attention in found.attentions.items():
        absent = [part for part in _PROJECTIONS if not hasattr(attention, part)]
        if absent:
            raise _missing(name, f"{absent[0]} in the attention of layer {index}")
    head = found.model.get_output_embeddings()
    if getattr(head, "weight", None) is None:
        raise _missing(name, "an output embedding with a weight")
    return AttributionParts(
        tower=found.tower,
        blocks=tuple(found.layers),
        attentions=tuple(found.attentions.values()),
        last_mlp=getattr(found.layers[-1], "mlp", None),
        head=head,
        heads=found.heads,
        kv_heads=getattr(found.tower.config, "num_key_value_heads", None) or found.heads,
        visual_ids=found.visual_ids,
    )


def _missing(model: str, part: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"head attribution needs {part}, and {model} has none", "Leave the attribution probe out for this model"
    )
