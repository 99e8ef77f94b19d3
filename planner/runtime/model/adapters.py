"""Finds the parts of a transformers vision-language model: text tower, layers, attention modules, visual token ids.

Parts are found by what a module *has*, not by its class. A model that lacks a part is refused, and the error names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from planner.errors import UnsupportedModelError

#: Config attributes that name the placeholder token of an image or a video.
_TOKEN_FIELDS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
#: Layer types whose cache is a list of keys and values.
_LAYER_TYPES = {"full_attention": False, "sliding_attention": True}
#: Config attributes that mean something a plan cannot reach into, and what that is.
_OBSTACLES = {
    "num_kv_shared_layers": "key/value sharing between layers",
    "hidden_size_per_layer_input": "per-layer inputs",
    "cross_attention_layers": "cross-attention to the image",
    "kv_lora_rank": "latent (compressed) attention",
    "linear_key_head_dim": "linear-attention layers",
}

#: Model types with all parts, whose own way round them a plan would miss.
_UNFOLLOWED = {
    "ernie4_5_vl_moe": "sends text and images to experts of their own, by their places in the whole prompt",
    "blip-2": "hands its language model other inputs than it is given",
    "instructblip": "hands its language model other inputs than it is given",
    "instructblipvideo": "hands its language model other inputs than it is given",
    "janus": "decodes in a way of its own",
    "step3p7": "has layers of unlike numbers of heads",
}


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of a model that a plan works on.

    Attributes:
        model: the model whose forward takes `input_ids`.
        tower: the text tower that owns the decoder layers.
        layers, attentions: decoder layers and their attention modules, in order.
        windows: sliding window per layer, None for full attention.
        visual_ids: ids of placeholder tokens.
        heads: query heads.
    """

    model: Any
    tower: Any
    layers: tuple[nn.Module, ...]
    attentions: tuple[nn.Module, ...]
    windows: tuple[int | None, ...]
    visual_ids: tuple[int, ...]
    heads: int


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
    if not visual_ids or not hasattr(config, "vision_config"):
        raise UnsupportedModelError(
            f"{config.model_type} has no image placeholder token in its config, so its visual tokens cannot be found",
            "Use an image-text-to-text model such as LLaVA, Qwen2-VL or InternVL",
        )
    for field, what in _OBSTACLES.items():
        if getattr(text, field, None):
            raise UnsupportedModelError(
                f"{config.model_type} uses {what}, which a plan cannot prune", "Use another model"
            )
    tower = _tower(model, text)
    layers = tuple(tower.layers[: text.num_hidden_layers])
    attentions = tuple(_attention(layer, config.model_type) for layer in layers)
    return Parts(
        model, tower, layers, attentions, _windows(text, config.model_type), visual_ids, text.num_attention_heads
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


def _windows(text: Any, family: str) -> tuple[int | None, ...]:
    types = getattr(text, "layer_types", None)
    window = getattr(text, "sliding_window", None)
    if types is None:
        # Without layer types every layer is alike; Mistral slides whenever it has a window.
        slides = window is not None and getattr(text, "use_sliding_window", True)
        types = ["sliding_attention" if slides else "full_attention"] * text.num_hidden_layers
    unknown = sorted(set(types) - set(_LAYER_TYPES))
    if unknown:
        raise UnsupportedModelError(
            f"{family} has layers of type {', '.join(unknown)}, which a plan cannot prune", "Use another model"
        )
    return tuple(window if _LAYER_TYPES[kind] else None for kind in types)
