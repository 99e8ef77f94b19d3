"""InternVL with its own code, and what tiles images in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.spec.config import Config
from planner.spec.originals.names import known

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
