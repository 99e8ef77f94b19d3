"""DeepSeek-VL2 and DeepSeek-OCR, whose files carry one model type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.errors import UnsupportedModelError
from planner.spec.config import Config
from planner.spec.originals.renamed import Values, beside


def deepseek_vl_v2(values: Values) -> Values:
    """Either of them.

    Raises:
        UnsupportedModelError: neither, by its projector.
    """
    projector, vision = values["projector_config"], values["vision_config"]
    text = values["language_config"]
    # Without latent attention it is the first DeepSeek's decoder. The class's default is to have it.
    latent = text.get("use_mla") is not False
    own: dict[str, Any] = {"text_config": beside({"model_type": "deepseek_v2" if latent else "deepseek"}, text)}
    kind = str(projector.get("projector_type"))
    if kind == "downsample_mlp_gelu":
        own |= {"model_type": "deepseek_vl2", "vision_config": _siglip(Config(vision, "vision_config"))}
    elif kind == "linear" and isinstance(vision.get("width"), Mapping):
        own |= {"model_type": "deepseek_ocr", "vision_config": _pair(vision["width"])}
    else:
        raise UnsupportedModelError(
            f"the projector '{kind}' is not known, and its cost is not guessed", "Known: downsample_mlp_gelu, linear"
        )
    return beside(own, values)


def _siglip(vision: Config) -> dict[str, Any]:
    """timm's SigLIP, of which the patches are taken and no head runs."""
    width = vision.size("width", default=1152)
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": width,
        "intermediate_size": int(width * float(vision.get("mlp_ratio", default=3.7362))),
        "num_hidden_layers": vision.layers("layers", default=27),
        "num_attention_heads": vision.size("heads", default=16),
        "image_size": vision.size("image_size", default=384),
        "patch_size": vision.size("patch_size", default=14),
        "vision_use_head": False,
    }


def _pair(towers: Values) -> dict[str, Any]:
    """Segment Anything's encoder, and CLIP's on what it makes of sixteen patches."""
    first, second = (Config(towers[name], name) for name in ("sam_vit_b", "clip-l-14-224"))
    return {
        "model_type": "unlimited_ocr_vision",
        "sam_config": {
            "hidden_size": first.size("width"),
            "num_hidden_layers": first.layers("layers"),
            "num_attention_heads": first.size("heads"),
            "global_attn_indexes": list(first.numbers("global_attn_indexes")),
            "downsample_channels": list(first.numbers("downsample_channels")),
        },
        "encoder_config": {
            "hidden_size": second.size("width"),
            "num_hidden_layers": second.layers("layers"),
            "num_attention_heads": second.size("heads"),
            "intermediate_size": 4 * second.size("width"),
        },
    }
