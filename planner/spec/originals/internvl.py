"""InternVL with its own code, and what tiles images in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.spec.config import Config
from planner.spec.originals.names import known
from planner.spec.originals.renamed import beside, renamed

#: InternVL's decoders by their classes.
_DECODERS = {
    "InternLM2ForCausalLM": "internlm2",
    "InternLM3ForCausalLM": "internlm3",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}


def internvl_chat(values: Mapping[str, Any]) -> dict[str, Any]:
    """InternVL 1.5 to 3.5 with their own code.

    Raises:
        UnsupportedModelError: a decoder that is not known.
    """
    config = Config(values, "internvl_chat")
    text, vision = dict(config.block("llm_config").values), dict(config.block("vision_config").values)
    if not text.get("model_type"):
        text["model_type"] = known(_DECODERS, str(next(iter(text.get("architectures") or [""]))), "decoder class")
    side = config.get("force_image_size", default=vision.get("image_size", 448))
    whole = {
        "model_type": "internvl",
        "text_config": text,
        "vision_config": {**vision, "model_type": "internvl_vision", "image_size": side},
        "downsample_ratio": config.get("downsample_ratio", default=0.5),
        "vision_feature_layer": config.get("select_layer", default=-1),
    }
    return {**whole, "max_dynamic_patch": config.get("max_dynamic_patch", default=12)}


#: RADIO's towers by the width that a configuration states; only the one is in use, and its other sizes are its code's.
_RADIO = {"1280": {"model_type": "radio"}}


def llama_nemotron(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Llama Nemotron Nano VL: InternVL's tiles and pixel shuffle with RADIO as the tower.

    Raises:
        UnsupportedModelError: a tower of another width.
    """
    vision = known(_RADIO, str(values.get("vit_hidden_size") or 1280), "width of RADIO")
    side = values.get("force_image_size") or 512
    own = {
        **renamed(values, image_token_id="img_context_token_id"),
        "text_config": values["llm_config"],
        "vision_config": {**vision, "image_size": side, "patch_size": values.get("patch_size") or 16},
    }
    return beside(own, values)
