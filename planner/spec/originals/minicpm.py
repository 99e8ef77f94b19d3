"""MiniCPM-V 2.6, 4.0 and 4.5: the decoder's fields at the top, a tower whose last layer may be left out, queries."""

from __future__ import annotations

from typing import Any

from planner.spec.originals.names import known
from planner.spec.originals.renamed import Values, beside

#: Decoders by the version that a configuration states. 4.0's is a llama with factors on its residual sums.
_DECODERS = {"2.5": "llama", "2.6": "qwen2", "4.0": "llama", "4.5": "qwen3"}


def minicpmv(values: Values) -> Values:
    """MiniCPM-V before 4.6.

    Raises:
        UnsupportedModelError: a version that is not known.
    """
    text_type = known(_DECODERS, str(values.get("version")), "version of MiniCPM-V")
    vision: dict[str, Any] = {"model_type": "siglip_vision_model", "vision_use_head": False}
    if values.get("drop_vision_last_layer"):
        vision["num_hidden_layers"] = values["vision_config"]["num_hidden_layers"] - 1
    slices = values.get("slice_config") or {}
    own = {
        "text_config": beside({"model_type": text_type}, values),
        "vision_config": beside(vision, values["vision_config"]),
        "max_slice_nums": slices.get("max_slice_nums"),
        "scale_resolution": slices.get("scale_resolution"),
    }
    return beside(own, values)
