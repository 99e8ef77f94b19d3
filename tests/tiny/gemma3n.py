"""Tiny models of Gemma 3n. Its tower is a convolutional network of a package that is not installed: SigLIP's layers
stand in for it, and give what it gives, one map of features a picture. See `tests.tiny.extra`.
"""

from __future__ import annotations

import functools
from typing import Any

import transformers

from tests.tiny.configs import IMAGE, PATCH, SIDE, Config, text
from tests.tiny.extra import Extra
from tests.tiny.pictures import _square

#: Ids from here on are embedded as words of a picture, and of a sound.
PICTURES, SOUNDS = 112, 126
#: Patches of a picture, on each side.
PATCHES = SIDE // PATCH


@functools.cache
def _stand_in() -> Any:
    """The configuration of a tower that is known to transformers' `AutoModel`."""

    class Vision(transformers.Gemma3nVisionConfig):
        model_type = "siglip_vision_model"

    class Tower(transformers.SiglipVisionModel):
        config_class = Vision

        def forward(self, pixel_values: Any, **_: Any) -> Any:
            output = super().forward(pixel_values)
            output.last_hidden_state = output.last_hidden_state.mT.unflatten(-1, (PATCHES, PATCHES))
            return output

    transformers.AutoModel.register(Vision, Tower)
    return Vision


def _gemma3n(layers: int, sharing: int = 0) -> Config:
    kinds = ["full_attention" if layer % 3 == 2 else "sliding_attention" for layer in range(layers)]
    decoder = text(
        layers, head_dim=8, intermediate_size=[48 if layer % 2 else 40 for layer in range(layers)], sliding_window=12,
        layer_types=kinds, hidden_size_per_layer_input=8, vocab_size_per_layer_input=PICTURES, laurel_rank=6,
        altup_num_inputs=3, altup_active_idx=1, num_kv_shared_layers=sharing, final_logit_softcapping=3.0,
        activation_sparsity_pattern=[0.0 if layer % 2 else 0.6 for layer in range(layers)],
    )  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_channels": 3, "image_size": SIDE, "patch_size": PATCH, "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6, "attention_dropout": 0.0, "vision_use_head": False,
        "vocab_size": SOUNDS - PICTURES, "vocab_offset": PICTURES,
    }  # fmt: skip
    audio = {
        "vocab_size": 4, "vocab_offset": SOUNDS, "input_feat_size": 16, "hidden_size": 12,
        "conf_num_attention_heads": 2, "conf_num_hidden_layers": 1, "sscp_conv_channel_size": [4, 2],
    }  # fmt: skip
    return {
        "text_config": decoder,
        "vision_config": _stand_in()(**vision),
        "audio_config": audio,
        "image_token_id": IMAGE,
        "audio_token_id": SOUNDS,
        "vision_soft_tokens_per_image": PATCHES**2,
        "audio_soft_tokens_per_image": 6,
    }


GEMMA3N: dict[str, Extra] = {
    "gemma3n": Extra("Gemma3nForConditionalGeneration", _gemma3n, _square(SIDE, PATCHES**2)),
    "gemma3n-sharing": Extra(
        "Gemma3nForConditionalGeneration", lambda n: _gemma3n(n, sharing=n // 3), _square(SIDE, PATCHES**2)
    ),
}
