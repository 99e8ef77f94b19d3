"""Configurations of tiny models, one entry per family.

Numbers are small and unequal where a mix-up would otherwise pass: 4 query heads on 2 key/value heads, a head size apart
from hidden / heads in some towers, sliding windows shorter than the prompt, a vision feature layer before the last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

VOCAB = 128
HIDDEN = 32
#: Special token ids, above every id a prompt's text uses.
IMAGE, VIDEO, VISION_START, VISION_END, IMAGE_START, IMAGE_END = 120, 121, 122, 123, 124, 125
PAD, FIRST_TEXT, LAST_TEXT = 0, 5, 110
#: Side of a picture in pixels for families with a fixed resolution, and their patch side.
SIDE, PATCH = 24, 6

Config = dict[str, Any]


def text(layers: int, **changes: Any) -> Config:
    """The fields nearly every decoder config shares."""
    return {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        **changes,
    }


def tower(model_type: str, **changes: Any) -> Config:
    """The fields CLIP, SigLIP and their kin share."""
    return {
        "model_type": model_type,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        **changes,
    }


def _clip(**changes: Any) -> Config:
    return tower("clip_vision_model", projection_dim=16, **changes)


def _siglip(**changes: Any) -> Config:
    return tower("siglip_vision_model", vision_use_head=False, **changes)


def _qwen_tower(**changes: Any) -> Config:
    return {"depth": 3, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2, **changes}


_TOWERS = {
    "llama": {},
    "mistral": {"head_dim": 16, "sliding_window": 12},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16},
}


def _llava(layers: int, text_type: str = "llama") -> Config:
    return {
        "vision_config": _clip(),
        "text_config": text(layers, model_type=text_type, **_TOWERS[text_type]),
        "image_token_index": IMAGE,
        "image_seq_length": (SIDE // PATCH) ** 2,
    }


def _anyres(layers: int, vision: Config, **changes: Any) -> Config:
    pinpoints = [[24, 48], [48, 24], [48, 48]]
    return {
        "vision_config": vision,
        "text_config": text(layers, **changes),
        "image_token_index": IMAGE,
        "image_grid_pinpoints": pinpoints,
    }


def _qwen_ids() -> Config:
    return {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
    }


def _mrope(*sections: int, **changes: Any) -> Config:
    return {"rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": list(sections), **changes}}


def _qwen3_vision() -> Config:
    return _qwen_tower(
        hidden_size=16,
        intermediate_size=24,
        out_hidden_size=HIDDEN,
        num_position_embeddings=64,
        deepstack_visual_indexes=[0, 1],
    )


def _idefics(layers: int) -> Config:
    vision = tower("", image_size=32, patch_size=4)
    del vision["model_type"]
    decoder = text(layers, model_type="llama")
    return {
        "vision_config": vision,
        "text_config": decoder,
        "image_token_id": IMAGE,
        "scale_factor": 2,
        "pad_token_id": PAD,
    }


def _gemma3(layers: int) -> Config:
    kinds = ["full_attention" if layer % 3 == 2 else "sliding_attention" for layer in range(layers)]
    decoder = text(layers, head_dim=16, query_pre_attn_scalar=16, sliding_window=12, layer_types=kinds)
    return {
        "vision_config": _siglip(image_size=32, patch_size=4),
        "text_config": decoder,
        "mm_tokens_per_image": 16,
        "image_token_index": IMAGE,
        "boi_token_index": IMAGE_START,
        "eoi_token_index": IMAGE_END,
    }


def _llama4(layers: int) -> Config:
    decoder = text(
        layers,
        head_dim=8,
        intermediate_size_mlp=40,
        num_local_experts=4,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        no_rope_layer_interval=2,
        attention_chunk_size=12,
    )
    vision = tower(
        "llama4_vision_model",
        image_size=32,
        patch_size=4,
        intermediate_size=64,
        vision_output_dim=24,
        projector_input_dim=24,
        projector_output_dim=24,
        pixel_shuffle_ratio=0.5,
    )
    return {
        "vision_config": vision,
        "text_config": decoder,
        "image_token_index": IMAGE,
        "boi_token_index": IMAGE_START,
        "eoi_token_index": IMAGE_END,
    }


def _mllama(layers: int) -> Config:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_global_layers": 2,
        "attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        "max_num_tiles": 2,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        "intermediate_layers_indices": [0, 2],
        "vision_output_dim": 48,
    }
    decoder = text(
        layers,
        cross_attention_layers=[layer for layer in range(layers) if layer % 3 == 1],
        rope_scaling={"rope_type": "default"},
    )
    return {"vision_config": vision, "text_config": decoder, "image_token_index": IMAGE}


def _cohere(layers: int) -> Config:
    return text(layers, model_type="cohere2", sliding_window=12, layer_norm_eps=1e-5, tie_word_embeddings=True)


_EXPERTS = {"moe_intermediate_size": 20, "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 2}

#: family: (model class of transformers, config of a given number of decoder layers)
FAMILIES: dict[str, tuple[str, Callable[[int], Config]]] = {
    "llava": ("LlavaForConditionalGeneration", _llava),
    **{
        f"llava-{name}": ("LlavaForConditionalGeneration", lambda layers, name=name: _llava(layers, name))  # type: ignore[misc]
        for name in ("mistral", "qwen2", "qwen3", "gemma")
    },
    "llava_next": ("LlavaNextForConditionalGeneration", lambda n: _anyres(n, _clip(patch_size=8), model_type="llama")),
    "llava_onevision": (
        "LlavaOnevisionForConditionalGeneration",
        lambda n: {**_anyres(n, _siglip(patch_size=8), model_type="qwen2"), "video_token_index": VIDEO},
    ),
    "vipllava": (
        "VipLlavaForConditionalGeneration",
        lambda n: {**_llava(n), "vision_feature_layers": [-2, -3]},
    ),
    "video_llava": ("VideoLlavaForConditionalGeneration", lambda n: {**_llava(n), "video_token_index": VIDEO}),
    "qwen2_vl": (
        "Qwen2VLForConditionalGeneration",
        lambda n: {
            "vision_config": _qwen_tower(embed_dim=16, hidden_size=HIDDEN, mlp_ratio=2),
            "text_config": text(n, **_mrope(2, 1, 1)),
            **_qwen_ids(),
        },
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration",
        lambda n: {
            "vision_config": _qwen_tower(
                hidden_size=16, intermediate_size=24, out_hidden_size=HIDDEN, window_size=16, fullatt_block_indexes=[1]
            ),
            "text_config": text(n, **_mrope(2, 1, 1)),
            **_qwen_ids(),
        },
    ),
    "qwen3_vl": (
        "Qwen3VLForConditionalGeneration",
        lambda n: {
            "vision_config": _qwen3_vision(),
            "text_config": text(n, head_dim=16, **_mrope(4, 2, 2, mrope_interleaved=True)),
            **_qwen_ids(),
        },
    ),
    "qwen3_vl_moe": (
        "Qwen3VLMoeForConditionalGeneration",
        lambda n: {
            "vision_config": _qwen3_vision(),
            "text_config": text(n, head_dim=16, **_EXPERTS, **_mrope(4, 2, 2, mrope_interleaved=True)),
            **_qwen_ids(),
        },
    ),
    "internvl": (
        "InternVLForConditionalGeneration",
        lambda n: {
            "vision_config": {**tower("internvl_vision"), "image_size": [32, 32], "patch_size": [4, 4]},
            "text_config": text(n, model_type="qwen2"),
            "image_token_id": IMAGE,
            "image_seq_length": 16,
        },
    ),
    "idefics3": ("Idefics3ForConditionalGeneration", _idefics),
    "smolvlm": ("SmolVLMForConditionalGeneration", _idefics),
    "gemma3": ("Gemma3ForConditionalGeneration", _gemma3),
    "paligemma": (
        "PaliGemmaForConditionalGeneration",
        lambda n: {
            "vision_config": _siglip(projection_dim=HIDDEN),
            "text_config": text(n, model_type="gemma", num_key_value_heads=1, head_dim=16),
            "image_token_index": IMAGE,
            "projection_dim": HIDDEN,
        },
    ),
    "paligemma2": (
        "PaliGemmaForConditionalGeneration",
        lambda n: {
            "vision_config": _siglip(projection_dim=HIDDEN),
            "text_config": text(
                n,
                model_type="gemma2",
                head_dim=16,
                query_pre_attn_scalar=16,
                sliding_window=16,
                # Low enough to bend most scores: their standard deviation is about 2.6.
                attn_logit_softcapping=2.0,
                final_logit_softcapping=3.0,
            ),
            "image_token_index": IMAGE,
            "projection_dim": HIDDEN,
        },
    ),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        lambda n: {
            "vision_config": tower("pixtral", image_size=48, patch_size=4, head_dim=8),
            "text_config": text(n, model_type="mistral", head_dim=16, sliding_window=None),
            "image_token_index": IMAGE,
            "spatial_merge_size": 2,
            "vision_feature_layer": -1,
        },
    ),
    "aya_vision": (
        "AyaVisionForConditionalGeneration",
        lambda n: {
            "vision_config": _siglip(image_size=32, patch_size=4),
            "text_config": _cohere(n),
            "image_token_index": IMAGE,
            "alignment_intermediate_size": 24,
        },
    ),
    "cohere2_vision": (
        "Cohere2VisionForConditionalGeneration",
        lambda n: {
            "vision_config": _siglip(image_size=32, patch_size=4),
            "text_config": _cohere(n),
            "image_token_id": IMAGE,
            "alignment_intermediate_size": 24,
        },
    ),
    "glm4v": (
        "Glm4vForConditionalGeneration",
        lambda n: {
            "vision_config": _qwen_tower(hidden_size=16, out_hidden_size=HIDDEN, intermediate_size=24, image_size=32),
            "text_config": text(n, **_mrope(2, 1, 1)),
            "image_token_id": IMAGE,
            "video_token_id": VIDEO,
            "image_start_token_id": IMAGE_START,
            "image_end_token_id": IMAGE_END,
            "video_start_token_id": VISION_START,
            "video_end_token_id": VISION_END,
        },
    ),
    "llama4": ("Llama4ForConditionalGeneration", _llama4),
    "mllama": ("MllamaForConditionalGeneration", _mllama),
    "llama": ("LlamaForCausalLM", lambda n: text(n)),
    "mixtral": (
        "MixtralForCausalLM",
        lambda n: text(n, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    ),
}
