"""Tiny models of families whose experts, heads or views are unlike those of `tests.tiny.extra`; see there."""

from __future__ import annotations

import torch

from tests.tiny.configs import (
    HIDDEN,
    IMAGE,
    SIDE,
    VISION_END,
    VISION_START,
    VOCAB,
    Config,
    _anyres,
    _clip,
    text,
    tower,
)
from tests.tiny.extra import Extra
from tests.tiny.further import _ids, _muse
from tests.tiny.pictures import Noise, Picture, _grid, _pixtral_sizes, _square, _unpadded

EXPERTS = {"moe_intermediate_size": 20, "num_experts_per_tok": 2}


def _molmo2(layers: int) -> Config:
    """Features of two layers, the last of which is deeper than the other."""
    vision = tower("molmo2_vision", image_size=[16, 16], patch_size=4, num_key_value_heads=2, head_dim=8)
    adapter = {
        "vision_feature_layer": [2, 1], "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2,
        "head_dim": 8, "intermediate_size": 40, "text_hidden_size": HIDDEN,
    }  # fmt: skip
    decoder = text(layers, head_dim=8)
    return {"vision_config": vision, "adapter_config": adapter, "text_config": decoder, "image_patch_id": IMAGE}


def _two_views(noise: Noise, number: int, odd: bool) -> Picture:
    """Four by four patches twice, each of two by two squares."""
    places = torch.arange(32).view(2, 2, 2, 2, 2).transpose(2, 3).reshape(8, 4)
    found = {
        "pixel_values": noise(1, 2, 16, 3 * 4 * 4),
        "image_token_pooling": places + 32 * number,
        "image_grids": torch.tensor([[2, 2, 2, 2]]),
    }
    return found, 8


def _step3(layers: int) -> Config:
    vision = tower("step3p5_vision", image_size=32, patch_size=4, mlp_ratio=1.5)
    kinds = ["full_attention" if layer % 3 == 0 else "sliding_attention" for layer in range(layers)]
    decoder = text(
        layers, head_dim=8, n_routed_experts=4, share_expert_dim=12, sliding_window=12, layer_types=kinds,
        num_sliding_attention_heads=6, mlp_layer_types=["dense"] + ["sparse"] * (layers - 1), **EXPERTS,
    )  # fmt: skip
    return {"vision_config": vision, "text_config": decoder, "image_token_id": IMAGE}


def _minimax_m3(layers: int) -> Config:
    vision = tower("minimax_m3_vl_vision", patch_size=4, temporal_patch_size=2, spatial_merge_size=2)
    kinds = ["full_attention" if layer % 2 == 0 else "minimax_m3_sparse" for layer in range(layers)]
    decoder = text(
        layers, head_dim=8, rotary_dim=4, num_local_experts=4, num_experts_per_tok=2, dense_intermediate_size=40,
        shared_intermediate_size=12, layer_types=kinds, mlp_layer_types=["dense"] + ["sparse"] * (layers - 1),
        index_n_heads=2, index_head_dim=8, index_block_size=8, index_topk_blocks=2,
    )  # fmt: skip
    return {
        "vision_config": vision,
        "text_config": decoder,
        "image_token_index": IMAGE,
        "video_token_index": IMAGE + 1,
        "projector_hidden_size": 40,
    }


def _ernie(layers: int) -> Config:
    vision = {
        "depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_merge_size": 2,
    }  # fmt: skip
    decoder = text(
        layers, moe_num_experts=4, moe_k=2, moe_num_shared_experts=1, moe_intermediate_size=[20, 12],
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    )  # fmt: skip
    return {"vision_config": vision, "text_config": decoder, **_ids()}


def _muse_spark(layers: int) -> Config:
    """Experts at a width of their own; its audio tower never runs."""
    made = _muse(layers)
    made["vision_config"]["model_type"] = "muse_spark_vision"
    experts = {"num_local_experts": 4, "moe_hidden_size": 24, **EXPERTS}
    made["text_config"] |= {**experts, "mlp_layer_types": ["dense"] + ["sparse"] * (layers - 1)}
    audio = {"patch_sizes": [4], "hidden_sizes": [8], "depths": [1], "num_hidden_layers": 1, "out_hidden_size": HIDDEN}
    return {**made, "audio_config": audio}


def _mistral_large4(layers: int) -> Config:
    """Of four layers the last rotates nothing, the third reads the second's latents, and two choose keys."""
    decoder = text(
        layers, num_key_value_heads=4, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=12,
        n_routed_experts=4, n_shared_experts=1, n_group=1, topk_group=1, **EXPERTS,
        index_n_heads=2, index_head_dim=12, index_topk=5,
        kv_source_layers=[1 if layer == 2 else layer for layer in range(layers)],
        indexer_types=["shared" if layer % 2 else "full" for layer in range(layers)],
    )  # fmt: skip
    return {
        "vision_config": tower("pixtral", image_size=48, patch_size=4, head_dim=8),
        "text_config": decoder,
        "image_token_index": IMAGE,
        "spatial_merge_size": 2,
    }


def _hunyuan(layers: int) -> Config:
    vision = tower("hunyuan_vl_vision", patch_size=4, spatial_merge_size=2, max_image_size=32)
    del vision["image_size"]
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    return {
        "vision_config": vision,
        "text_config": text(layers, head_dim=8, rope_parameters=rope),
        "image_token_id": IMAGE,
        "im_start_id": VISION_START,
        "im_end_id": VISION_END,
    }


def _ended_rows(noise: Noise, number: int, odd: bool) -> Picture:
    """A token behind every row, and one at either end."""
    found, tokens = _grid(3, frames=1)(noise, number, odd)
    rows = int(found["image_grid_thw"][0, 1]) // 2
    return found, tokens + rows + 2


_EXPERTS_OF_OCR = {"n_routed_experts": 4, "n_shared_experts": 1, **EXPERTS}
_SAM = {
    "hidden_size": 16, "output_channels": 12, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64,
    "patch_size": 4, "window_size": 6, "global_attn_indexes": [1], "mlp_dim": 24, "downsample_channels": [10, 20],
}  # fmt: skip


#: The whole of a small picture, and nothing beside it.
_SMALL_VIEW = {"tile_size": 64, "size": {"height": 64, "width": 64}}
_VIEW = {"tile_size": 192, "size": {"height": 192, "width": 192}}


def _unlimited_ocr(layers: int) -> Config:
    """A window of six tokens of the answer, behind all of the prompt."""
    second = tower("unlimited_ocr_vision_encoder", hidden_size=20, image_size=16, patch_size=4)
    dense = ["dense"] + ["sparse"] * (layers - 1)
    return {
        "vision_config": {"sam_config": _SAM, "encoder_config": second},
        "text_config": text(layers, sliding_window=6, mlp_layer_types=dense, **_EXPERTS_OF_OCR),
        "image_token_id": IMAGE,
    }


def _whole_view(noise: Noise, number: int, odd: bool) -> Picture:
    """Four by four tokens, each of four by four patches; a break behind every row, and a separator."""
    return {"pixel_values": noise(1, 3, 64, 64)}, 4 * 5 + 1


def _deepseek_ocr2(layers: int) -> Config:
    second = {"hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 2}
    dense = ["dense"] + ["sparse"] * (layers - 1)
    return {
        "vision_config": {"sam_config": _SAM, "encoder_config": {**second, "num_key_value_heads": 1}},
        "text_config": text(layers, mlp_layer_types=dense, **_EXPERTS_OF_OCR),
        "image_token_id": IMAGE,
    }


def _large_view(noise: Noise, number: int, odd: bool) -> Picture:
    """As many patches as there are queries, which are fixed: twelve by twelve, each of four by four."""
    return {"pixel_values": noise(1, 3, 192, 192)}, 12 * 12 + 1


def _granite4(layers: int) -> Config:
    """Four by four patches of a window become two by two queries; features of two vision layers, and of four
    offsets."""
    former = {"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 28}
    return {
        **_anyres(layers, _clip(hidden_size=64, patch_size=3), model_type="granite4_vision_text"),
        "downsample_rate": "2/4",
        "qformer_config": {**former, "cross_attention_frequency": 1},
        "deepstack_layer_map": [[1, 0], [2, 2]],
        "spatial_target_layers": [0, 1, 2, 3],
    }


def _halved_views(noise: Noise, number: int, odd: bool) -> Picture:
    """Base view and two tiles of 24 x 24, each of 4 x 4 tokens."""
    found, _ = _unpadded(noise, number, odd)
    return found, 16 + (4 if found["image_sizes"][0, 0] == 24 else 6) * 9


def _kosmos2(layers: int) -> Config:
    decoder = {
        "vocab_size": VOCAB, "embed_dim": HIDDEN, "layers": layers, "ffn_dim": 48, "attention_heads": 4,
        "pad_token_id": 0, "max_position_embeddings": 128,
    }  # fmt: skip
    return {"vision_config": tower("kosmos_2_vision_model"), "text_config": decoder, "latent_query_num": 6}


def _kosmos2_5(layers: int) -> Config:
    vision = {
        "hidden_size": 16, "patch_embed_hidden_size": 12, "intermediate_size": 24, "head_dim": 6,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_num_patches": 16,
    }  # fmt: skip
    return {**_kosmos2(layers), "vision_config": vision}


def _filled_up(noise: Noise, number: int, odd: bool) -> Picture:
    """Row and column of every patch ahead of it."""
    places = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    return {"flattened_patches": torch.cat([places[None].to(noise(1).dtype), noise(1, 16, 12)], dim=-1)}, 6


def _deepseek_vl_hybrid(layers: int) -> Config:
    """Four by four patches of one tower, sixteen by sixteen of the other."""
    return {
        "vision_config": tower("siglip_vision_model", vision_use_head=False),
        "high_res_vision_config": {"model_type": "sam_vision_model", **_SAM},
        "text_config": text(layers, model_type="llama"),
        "image_token_id": IMAGE,
    }


def _at_two_sizes(noise: Noise, number: int, odd: bool) -> Picture:
    return {"pixel_values": noise(1, 3, SIDE, SIDE), "high_res_pixel_values": noise(1, 3, 64, 64)}, 16


def _chameleon(layers: int) -> Config:
    tokeniser = {
        "embed_dim": 12, "num_embeddings": 20, "latent_channels": 8, "resolution": 24, "base_channels": 32,
        "channel_multiplier": [1, 1, 2], "num_res_blocks": 2,
    }  # fmt: skip
    words = {f"IMGIMG{''.join(chr(65 + int(digit)) for digit in str(word))}Z": word for word in range(20)}
    return {**text(layers), "vq_config": tokeniser, "vocabulary_map": {**words, "<image>": IMAGE}}


def _lfm3(layers: int) -> Config:
    vision = tower(
        "lfm3_vl_vision", patch_size=4, num_key_value_heads=1, layer_types=["conv", "full_attention", "conv"]
    )
    del vision["image_size"]
    kinds = ["full_attention" if layer % 4 == 2 else "sliding_attention" if layer % 4 == 3 else "conv"
             for layer in range(layers)]  # fmt: skip
    decoder = text(layers, model_type="lfm3", head_dim=16, layer_types=kinds, conv_L_cache=5, sliding_window=12)
    return {"vision_config": vision, "text_config": decoder, **_ids(), "projector_hidden_size": 40}


def _fuyu(layers: int) -> Config:
    decoder = text(layers, model_type="persimmon", num_key_value_heads=4)
    return {"text_config": decoder, "image_token_id": IMAGE, "patch_size": 4, "image_size": 32}


def _flat_patches(noise: Noise, number: int, odd: bool) -> Picture:
    return {"pixel_values": noise(1, 12, 3 * 4 * 4)}, 12


RECENT: dict[str, Extra] = {
    "ernie4_5_vl_moe": Extra(
        "Ernie4_5_VLMoeForConditionalGeneration", _ernie, _grid(3, frames=1), marks=True, typed=True
    ),
    "chameleon": Extra("ChameleonForConditionalGeneration", _chameleon, _square(SIDE, 36)),
    "deepseek_vl_hybrid": Extra("DeepseekVLHybridForConditionalGeneration", _deepseek_vl_hybrid, _at_two_sizes),
    "deepseek_ocr2": Extra(
        "DeepseekOcr2ForConditionalGeneration", _deepseek_ocr2, _large_view, processor=_VIEW, size=(192, 192)
    ),
    "fuyu": Extra("FuyuForCausalLM", _fuyu, _flat_patches),
    "granite4_vision": Extra("Granite4VisionForConditionalGeneration", _granite4, _halved_views),
    "hunyuan_vl": Extra("HunYuanVLForConditionalGeneration", _hunyuan, _ended_rows, marks=True, typed=True),
    "kosmos-2": Extra("Kosmos2ForConditionalGeneration", _kosmos2, _square(SIDE, 6)),
    "kosmos-2.5": Extra("Kosmos2_5ForConditionalGeneration", _kosmos2_5, _filled_up),
    "lfm3_vl": Extra("Lfm3VlForConditionalGeneration", _lfm3, _grid(3), marks=True),
    "minimax_m3_vl": Extra("MiniMaxM3SparseForConditionalGeneration", _minimax_m3, _grid(3)),
    "mistral_large4": Extra("MistralLarge4ForConditionalGeneration", _mistral_large4, _pixtral_sizes),
    "molmo2": Extra(
        "Molmo2ForConditionalGeneration",
        _molmo2,
        _two_views,
        typed=True,
        processor={"max_crops": 1, "overlap_margins": [1, 1]},
        size=(16, 16),
    ),
    "muse_spark": Extra("MuseSparkForConditionalGeneration", _muse_spark, _grid(3), marks=True),
    "step3p7": Extra("Step3p7ForConditionalGeneration", _step3, _square(32, 4)),
    "unlimited_ocr": Extra(
        "UnlimitedOcrForConditionalGeneration", _unlimited_ocr, _whole_view, processor=_SMALL_VIEW, size=(64, 64)
    ),
}
