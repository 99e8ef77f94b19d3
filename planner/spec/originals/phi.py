"""Phi-4-multimodal with its own code: the decoder's fields at the top, the tower behind a name."""

from __future__ import annotations

from planner.spec.originals.names import known
from planner.spec.originals.renamed import Values, beside

#: The one tower, with the sizes that its code gives it.
_TOWERS = {
    "siglip-so400m-patch14-448": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 448,
        "patch_size": 14,
        "vision_use_head": True,
    }
}


def phi4mm(values: Values) -> Values:
    """Phi-4-multimodal. Where there is a picture its code adds an adapter to the decoder, which is not counted.

    Raises:
        UnsupportedModelError: a tower that is not known.
    """
    name = values.get("img_processor") or "siglip-so400m-patch14-448"
    vision = known(_TOWERS, str(name), "vision tower")
    return beside({"text_config": beside({"model_type": "phi3"}, values), "vision_config": vision}, values)
