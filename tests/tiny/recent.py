"""Tiny models of families whose experts, heads or views are unlike those of `tests.tiny.extra`; see there."""

from __future__ import annotations

import torch

from tests.tiny.configs import HIDDEN, IMAGE, Config, text, tower
from tests.tiny.extra import Extra, Noise, Picture, _grid, _ids, _square

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


RECENT: dict[str, Extra] = {
    "ernie4_5_vl_moe": Extra(
        "Ernie4_5_VLMoeForConditionalGeneration", _ernie, _grid(3, frames=1), marks=True, typed=True
    ),
    "minimax_m3_vl": Extra("MiniMaxM3SparseForConditionalGeneration", _minimax_m3, _grid(3)),
    "molmo2": Extra(
        "Molmo2ForConditionalGeneration",
        _molmo2,
        _two_views,
        typed=True,
        processor={"max_crops": 1, "overlap_margins": [1, 1]},
        size=(16, 16),
    ),
    "step3p7": Extra("Step3p7ForConditionalGeneration", _step3, _square(32, 4)),
}
