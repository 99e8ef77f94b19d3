"""How a checkpoint stores its weights: tied embeddings, and quantised decoder layers.

A plan does not depend on any of it, so it is no part of what tells two computations apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.spec.config import Config
from planner.spec.facts import Storage

#: Bits per weight of formats whose configuration gives no number, scales included.
_FORMATS = {
    "fp8": 8.0,
    "fbgemm_fp8": 8.0,
    "NVFP4": 4.5,  # a byte of scale per 16 weights
    "FP8": 8.0,
    "mxfp4": 4.25,  # a byte of scale per 32 weights
}


def read_storage(values: Mapping[str, Any], text: Mapping[str, Any], defaults: Mapping[str, Any]) -> Storage:
    """What a configuration says of its weights.

    Args:
        values: the whole model's configuration.
        text: its text decoder's block.
        defaults: of the text decoder's model type.
    """
    blocks = (values, text, defaults)
    tied = next((bool(block["tie_word_embeddings"]) for block in blocks if _has(block, "tie_word_embeddings")), False)
    found = next((block["quantization_config"] for block in blocks if _has(block, "quantization_config")), None)
    looked_up = _looked_up(Config(text, "text_config", {"defaults": defaults}))
    if not isinstance(found, Mapping):
        return Storage(tied=tied, looked_up=looked_up)
    named = (str(found[key]) for key in ("quant_method", "quant_algo") if found.get(key))
    return Storage(tied, _bits(found), " ".join(named), looked_up)


def _looked_up(text: Config) -> int:
    """Gemma 3n and 4: for every word a vector for each layer."""
    width = text.size("hidden_size_per_layer_input", default=0, least=0)
    return width and width * text.layers("num_hidden_layers") * text.size("vocab_size_per_layer_input", "vocab_size")


def _has(block: Mapping[str, Any], name: str) -> bool:
    return block.get(name) is not None


def _bits(found: Mapping[str, Any]) -> float | None:
    """Bits per weight of the decoder's matrices, scales and zero points included; None where they are not known."""
    method, algorithm = str(found.get("quant_method", "")), str(found.get("quant_algo", ""))
    if method == "bitsandbytes":
        # A float32 per block of 64, itself in 8 bits where it is quantised twice.
        scale = (8 + 32 / 256) / 64 if found.get("bnb_4bit_use_double_quant") else 32 / 64
        return 8.0 if found.get("load_in_8bit") else 4.0 + scale
    if algorithm in _FORMATS:
        return _FORMATS[algorithm]
    if method in ("awq", "gptq"):
        # A float16 scale and a zero point of the weights' own bits per group.
        return _grouped(found["bits"], found.get("group_size", 128), zero_point=True)
    if method == "compressed-tensors":
        groups = found.get("config_groups", {}).values()
        weights = next((group["weights"] for group in groups if group.get("weights")), None)
        if weights is not None and weights.get("type") == "float" and weights["num_bits"] == 4:
            return _FORMATS["NVFP4"]
        if weights is not None:
            return _grouped(
                weights["num_bits"], weights.get("group_size"), zero_point=not weights.get("symmetric", True)
            )
    if method in _FORMATS:
        return _FORMATS[method]
    return None


def _grouped(bits: int, group: int | None, zero_point: bool) -> float:
    """Bits with those of a group's scale; none per channel (no group, or -1), which are too few to count."""
    if not group or group < 0:
        return float(bits)
    return bits + (16 + (bits if zero_point else 0)) / group
