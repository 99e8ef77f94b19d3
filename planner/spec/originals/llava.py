"""LLaVA's first releases: one flat block, with the vision tower behind a name and the decoder behind a class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from planner.errors import UnsupportedModelError
from planner.spec.config import Config
from planner.spec.originals.names import known

_CLIP_LARGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
#: Towers that LLaVA's checkpoints name, as its code loads them: SigLIP without its last layer and its head.
_TOWERS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14": {**_CLIP_LARGE, "image_size": 224},
    "openai/clip-vit-large-patch14-336": {**_CLIP_LARGE, "image_size": 336},
    "google/siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 26,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
#: Fields of a LLaVA configuration that its text decoder is read from.
_TEXT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "sliding_window", "use_sliding_window", "max_window_layers",
    "tie_word_embeddings",
)  # fmt: skip


def llava(values: Mapping[str, Any], text_type: str) -> dict[str, Any]:
    """``llava_llama``, ``llava_qwen`` and ``llava_mistral``: one flat block.

    Args:
        text_type: model type of the decoder.

    Raises:
        UnsupportedModelError: a tower or projector that is not known.
    """
    config = Config(values, str(values["model_type"]))
    vision = dict(known(_TOWERS, str(config.get("mm_vision_tower", "vision_tower")), "vision tower"))
    projector = str(config.get("mm_projector_type", default="linear"))
    if projector != "mlp2x_gelu":
        raise UnsupportedModelError(
            f"the projector '{projector}' is not known, and its cost is not guessed", "Known: mlp2x_gelu"
        )
    aspect = str(config.get("image_aspect_ratio", default="pad"))
    tiled = aspect.startswith("anyres")
    whole: dict[str, Any] = {
        "model_type": "llava_onevision" if "max" in aspect else "llava_next" if tiled else "llava",
        "text_config": {"model_type": text_type, **{name: values[name] for name in _TEXT if name in values}},
        "vision_config": vision,
        # SigLIP has no class token to leave out, and its code has left out the last layer already.
        "vision_feature_select_strategy": "full" if "siglip" in vision["model_type"] else "default",
    }
    if tiled:
        whole["image_grid_pinpoints"] = _pinpoints(values["image_grid_pinpoints"], vision["image_size"])
        whole["vision_aspect_ratio"] = aspect
    return whole


def _pinpoints(listed: Any, side: int) -> list[list[int]]:
    """Resolutions in pixels; ``(1x1),...,(6x6)`` stands for every grid between."""
    if not isinstance(listed, str):
        return [[int(height), int(width)] for height, width in listed]
    first, *_, last = re.findall(r"\((\d+)x(\d+)\)", listed)
    rows, columns = (range(int(first[axis]), int(last[axis]) + 1) for axis in (0, 1))
    return [[row * side, column * side] for row in rows for column in columns]
