"""Finds the parts of a transformers vision-language model: text tower, layers, attention modules, visual token ids.

Parts are found by what a module *has*, not by its class. A model that lacks a part is refused, and the error names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import transformers
from torch import nn

from planner.errors import UnsupportedModelError
from planner.runtime.model.cache import KEEPS_STATES
from planner.runtime.model.hidden import HiddenForm

#: Config attributes that name the placeholder token of an image or a video.
_TOKEN_FIELDS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
#: Layer types whose cache is a list of keys and values, and the config attribute that says how far they see.
_ATTENTION = {
    "full_attention": "",
    "sliding_attention": "sliding_window",
    "chunked_attention": "attention_chunk_size",
}
#: Layer types that keep a state of fixed size: linear attention, short convolutions.
_RECURRENT = ("linear_attention", "conv")
#: Config attributes that mean something a plan cannot reach into, and what that is.
_OBSTACLES = {
    "cross_attention_layers": "cross-attention to the image",
    "kv_lora_rank": "latent (compressed) attention",
    "conv_bias": "biased convolutions, in which padding leaves a trace",
}

#: Model types with all parts, whose own way round them a plan would miss.
_UNFOLLOWED = {
    "ernie4_5_vl_moe": "sends text and images to experts of their own, by their places in the whole prompt",
    "blip-2": "hands its language model other inputs than it is given",
    "instructblip": "hands its language model other inputs than it is given",
    "instructblipvideo": "hands its language model other inputs than it is given",
    "granite4_vision": "adds visual features to layers all over its decoder",
    "janus": "decodes in a way of its own",
    "step3p7": "has layers of unlike numbers of heads",
}


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of a model that a plan works on.

    Attributes:
        model: the model whose forward takes `input_ids`.
        tower: the text tower that owns the decoder layers.
        layers: decoder layers, in order.
        attentions: attention modules by layer, in order; recurrent layers have none.
        windows: sliding window or chunk per layer, None for full attention, 0 for a recurrent layer, which attends to
            nothing.
        lenders: layers without keys and values of their own, and the earlier ones whose they read.
        chunked: layers that see their own chunk of the sequence only.
        shorter_than: tokens that a prompt must stay below, None for any: beyond, queries are scaled by their place.
        form: of the layers' hidden states.
        visual_ids: ids of placeholder tokens.
        heads: query heads.
    """

    model: Any
    tower: Any
    layers: tuple[nn.Module, ...]
    attentions: Mapping[int, nn.Module]
    windows: tuple[int | None, ...]
    visual_ids: tuple[int, ...]
    heads: int
    lenders: Mapping[int, int] = field(default_factory=dict)
    chunked: tuple[int, ...] = ()
    shorter_than: int | None = None
    form: HiddenForm = field(default_factory=HiddenForm)

    @property
    def recurrent(self) -> tuple[int, ...]:
        """Layers that keep a state in place of keys and values."""
        return tuple(layer for layer in range(len(self.layers)) if layer not in self.attentions)

    @property
    def fed_per_layer(self) -> bool:
        """Every layer gets an input of its own, made of a token and its embedding."""
        return bool(getattr(self.tower.config, "hidden_size_per_layer_input", 0))


def find_parts(model: Any) -> Parts:
    """The parts of a transformers model, also of one wrapped by PEFT or `torch.compile`.

    Raises:
        UnsupportedModelError: something a plan needs is missing; the message names it.
    """
    model = unwrap(model)
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a transformers model", "Pass a model from transformers"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{config.model_type} is an encoder-decoder", "Plans apply to decoder-only models")
    if config.model_type in _UNFOLLOWED:
        raise UnsupportedModelError(
            f"{config.model_type} {_UNFOLLOWED[config.model_type]}, so a plan is not known to be right there",
            "Use another model",
        )
    text = config.get_text_config()
    visual_ids = tuple(
        dict.fromkeys(int(token) for field in _TOKEN_FIELDS if (token := getattr(config, field, None)) is not None)
    )
    if not visual_ids:
        raise UnsupportedModelError(
            f"{config.model_type} has no image placeholder token in its config, so its visual tokens cannot be found",
            "Use an image-text-to-text model such as LLaVA, Qwen2-VL or InternVL",
        )
    for attribute, what in _OBSTACLES.items():
        if getattr(text, attribute, None):
            raise UnsupportedModelError(
                f"{config.model_type} uses {what}, which a plan cannot prune", "Use another model"
            )
    tower = _tower(model, text)
    layers = tuple(tower.layers[: text.num_hidden_layers])
    windows = _windows(text, config.model_type)
    if 0 in windows and not KEEPS_STATES:
        raise UnsupportedModelError(
            f"{config.model_type} has recurrent layers, whose states transformers {transformers.__version__} keeps in "
            "another way",
            "Use a newer release of transformers",
        )
    attentions = {
        index: _attention(layer, config.model_type) for index, layer in enumerate(layers) if windows[index] != 0
    }
    lenders = _lenders(text)
    if any("shared_kv_states" not in signature(attentions[layer].forward).parameters for layer in lenders):
        raise UnsupportedModelError(
            f"layers of {config.model_type} read keys and values of others out of the cache, and without one make "
            f"their own, in transformers {transformers.__version__}",
            "Use a newer release of transformers",
        )
    scaled = getattr(text, "attn_temperature_tuning", False)
    if scaled and any("cache_position" in signature(attention.forward).parameters for attention in attentions.values()):
        raise UnsupportedModelError(
            f"{config.model_type} scales queries by their places in the prompt in transformers "
            f"{transformers.__version__}, which fit no layer that computes fewer rows",
            "Use a newer release of transformers",
        )
    return Parts(
        model,
        tower,
        layers,
        attentions,
        windows,
        visual_ids,
        text.num_attention_heads,
        lenders,
        tuple(index for index, kind in enumerate(_types(text)) if kind == "chunked_attention"),
        # Llama 4 counts places among the rows that a layer computes, which a plan changes.
        text.floor_scale if scaled else None,
        HiddenForm(getattr(text, "altup_active_idx", None)),
    )


def check_attending(parts: Parts, purpose: str) -> None:
    """Refuse a model with recurrent layers, or with layers that read the keys of others, for what needs to see or
    change the attention of every layer.

    Args:
        purpose: what needs it.

    Raises:
        UnsupportedModelError: naming the layers.
    """
    if parts.recurrent:
        raise UnsupportedModelError(
            f"{purpose} needs attention in every layer, and layers {', '.join(map(str, parts.recurrent))} of "
            f"{parts.model.config.model_type} are recurrent",
            "Leave it out for this model",
        )
    if parts.lenders:
        raise UnsupportedModelError(
            f"{purpose} needs keys of every layer's own, and layers {min(parts.lenders)} and above of "
            f"{parts.model.config.model_type} read those of others",
            "Leave it out for this model",
        )


def check_one_state(parts: Parts, purpose: str) -> None:
    """Refuse a model whose layers take more of a token than one hidden state, for what takes rows through layers by
    itself.

    Args:
        purpose: what does.

    Raises:
        UnsupportedModelError: naming what else they take.
    """
    states = "several hidden states a token" if parts.form.active is not None else ""
    more = states or ("inputs of their own" if parts.fed_per_layer else "")
    if more:
        raise UnsupportedModelError(
            f"{purpose} needs layers that take one hidden state a token and nothing else, and those of "
            f"{parts.model.config.model_type} take {more}",
            "Leave it out for this model",
        )


def unwrap(model: Any) -> Any:
    """The transformers model inside `torch.compile` and PEFT wrappers, whose own hooks and adapters stay in place."""
    model = getattr(model, "_orig_mod", model)
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    return model


def _tower(model: Any, text: Any) -> Any:
    """`get_decoder()` where it gives the text tower; else whoever has the layers (some releases give the model)."""
    candidates = [model.get_decoder()] if hasattr(model, "get_decoder") else []
    candidates += list(model.modules())
    for candidate in candidates:
        if isinstance(getattr(candidate, "layers", None), nn.ModuleList) and _same_tower(
            getattr(candidate, "config", None), text
        ):
            return candidate
    raise UnsupportedModelError(f"no text tower with decoder layers in {type(model).__name__}", "Use another model")


def _same_tower(config: Any, text: Any) -> bool:
    return config is text or (
        config is not None
        and config.__class__ is text.__class__
        and getattr(config, "hidden_size", None) == text.hidden_size
        and getattr(config, "num_hidden_layers", None) == text.num_hidden_layers
    )


def _attention(layer: nn.Module, family: str) -> nn.Module:
    for name, module in layer.named_children():
        if hasattr(module, "layer_idx") and hasattr(module, "config") and "attn" in name:
            return module
    raise UnsupportedModelError(
        f"a decoder layer of {family} has no self-attention module with a layer index", "Use another model"
    )


def _types(text: Any) -> list[str]:
    if getattr(text, "layer_types", None) is not None:
        return list(text.layer_types)
    # Without layer types every layer is alike; Mistral slides whenever it has a window.
    slides = getattr(text, "sliding_window", None) is not None and getattr(text, "use_sliding_window", True)
    return ["sliding_attention" if slides else "full_attention"] * int(text.num_hidden_layers)


def _lenders(text: Any) -> dict[int, int]:
    """The last layer of the same type that has keys and values, for each of the last layers that have none."""
    types = _types(text)
    own = len(types) - (getattr(text, "num_kv_shared_layers", 0) or 0)
    last = {kind: index for index, kind in enumerate(types[:own])}
    return {index: last[types[index]] for index in range(own, len(types))}


def _windows(text: Any, family: str) -> tuple[int | None, ...]:
    types = _types(text)
    unknown = sorted(set(types) - set(_ATTENTION) - set(_RECURRENT))
    if unknown:
        raise UnsupportedModelError(
            f"{family} has layers of type {', '.join(unknown)}, which a plan cannot prune", "Use another model"
        )
    return tuple(0 if kind in _RECURRENT else getattr(text, _ATTENTION[kind], None) for kind in types)
