"""Tiny models of further families: what `tests.tiny.configs` and `tests.tiny.prompts` are for those that every matrix
covers. Each entry makes a configuration and says what the processor gives for one picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.tiny.configs import (
    HIDDEN,
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    SIDE,
    VIDEO,
    VISION_END,
    VISION_START,
    VOCAB,
    Config,
    _anyres,
    _clip,
    _gemma3,
    _mrope,
    _qwen3_vision,
    _qwen_ids,
    _qwen_tower,
    _siglip,
    text,
    tower,
)

#: Noise of a shape.
Noise = Callable[..., torch.Tensor]
#: Tensors of one picture, and its visual tokens.
Picture = tuple[dict[str, torch.Tensor], int]
#: Rows and columns of patches, in the order a sample's images take them; of every second sample the others.
GRIDS, RAGGED_GRIDS = ((4, 8), (8, 4)), ((8, 8), (4, 4))


@dataclass(frozen=True)
class Extra:
    """One family.

    Attributes:
        class_name: model class of transformers.
        make: configuration of a given number of decoder layers.
        picture: of noise, the picture's number, and whether the sample is odd.
        marks: whether a start and an end token stand around a picture.
        typed: the model asks which tokens are of a picture, and takes positions of three axes.
        join: dimension along which pixels of several pictures stand.
        config: the model type whose configuration the class takes, where it is not its own.
        processor, size: of families whose pictures are filled up: what the processor's file says, and the width and
            height of every sample's first picture.
    """

    class_name: str
    make: Callable[[int], Config]
    picture: Callable[[Noise, int, bool], Picture]
    marks: bool = False
    typed: bool = False
    join: int = 0
    config: str = ""
    processor: dict[str, Any] | None = None
    size: tuple[int, int] | None = None


def _grid(size: int, merge: int = 2, frames: int = 2, patch: int = 4, flat: bool = True, **more: int) -> Any:
    """Patches of a picture at its own size, one after the other."""

    def picture(noise: Noise, number: int, odd: bool) -> Picture:
        rows, columns = (RAGGED_GRIDS if odd else GRIDS)[number % 2]
        pixels = noise(rows * columns, 3 * frames * patch * patch) if flat else noise(rows * columns, 3, patch, patch)
        named = {name: torch.tensor([value]) for name, value in more.items()}
        found = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, rows, columns]]), **named}
        return found, rows * columns // merge**2

    return picture


def _square(side: int, tokens: int) -> Any:
    def picture(noise: Noise, number: int, odd: bool) -> Picture:
        return {"pixel_values": noise(1, 3, side, side)}, tokens

    return picture


def _ids(**more: int) -> Config:
    return {"image_token_id": IMAGE, "video_token_id": VIDEO, **more}


def _exaone(layers: int) -> Config:
    vision = _qwen_tower(
        hidden_size=16, intermediate_size=24, out_hidden_size=HIDDEN, window_size=16, fullatt_block_indexes=[1],
        num_key_value_heads=1,
    )  # fmt: skip
    kinds = ["full_attention" if layer % 3 == 2 else "sliding_attention" for layer in range(layers)]
    decoder = text(layers, model_type="exaone4", sliding_window=12, layer_types=kinds)
    return {"vision_config": vision, "text_config": decoder, **_ids()}


def _hyperclovax(layers: int) -> Config:
    vision = _qwen_tower(
        model_type="qwen2_5_vl_vision", hidden_size=16, intermediate_size=24, out_hidden_size=20, window_size=16,
        fullatt_block_indexes=[1],
    )  # fmt: skip
    return {"vision_config": vision, "text_config": text(layers, model_type="hyperclovax"), **_ids()}


def _ovis2(layers: int) -> Config:
    vision = tower("ovis2_vision", vocab_size=40, num_visual_indicator_tokens=5, hidden_stride=2)
    decoder = text(layers, model_type="qwen2")
    return {
        "vision_config": vision,
        "text_config": decoder,
        "image_token_id": IMAGE,
        "visual_indicator_token_ids": [115, 116, 117, 118, 119],
        "hidden_size": HIDDEN,
        "vocab_size": decoder["vocab_size"],
    }


def _granite_docling(layers: int) -> Config:
    vision = tower(
        "granite_docling_vision", image_size=32, patch_size=4, out_hidden_size=HIDDEN, scale_factor=2,
        deepstack_visual_indexes=[0, 1], use_fine_route=False, num_attention_heads=4,
    )  # fmt: skip
    return {"vision_config": vision, "text_config": text(layers), "image_token_id": IMAGE}


def _pixtral_sizes(noise: Noise, number: int, odd: bool) -> Picture:
    height, width = ((32, 32), (24, 32))[(number + odd) % 2]
    return {
        "pixel_values": noise(1, 3, height, width),
        "image_sizes": torch.tensor([[height, width]]),
    }, height * width // 64


def _lighton(layers: int) -> Config:
    return {
        "vision_config": tower("pixtral", image_size=48, patch_size=4, head_dim=8),
        "text_config": text(layers, model_type="qwen3", head_dim=16),
        "image_token_id": IMAGE,
        "spatial_merge_size": 2,
    }


def _video_llama_3(layers: int) -> Config:
    vision = tower("video_llama_3_vision", patch_size=4)
    del vision["image_size"]
    return {"vision_config": vision, "text_config": text(layers, model_type="qwen2"), **_ids()}


def _muse(layers: int) -> Config:
    vision = tower(
        "muse_glimmer_vision", patch_size=4, pos_emb_height=4, pos_emb_width=4, patch_temporal=2, merge_size=2
    )
    del vision["image_size"]
    decoder = text(layers, head_dim=8, sliding_window=12)
    return {
        "vision_config": vision,
        "text_config": decoder,
        **_ids(),
        "out_hidden_size": 64,
        "projector_hidden_size": 40,
    }


def _cosmos3_edge(layers: int) -> Config:
    vision = tower("cosmos3_edge_vision", patch_size=4, num_patches=16, spatial_merge_size=2)
    del vision["image_size"]
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    decoder = text(layers, head_dim=16, rope_parameters=rope)
    return {"vision_config": vision, "text_config": decoder, **_qwen_ids(), "projector_hidden_size": 40}


def _glm(layers: int, **vision: Any) -> Config:
    return {
        "vision_config": _qwen_tower(
            hidden_size=16, out_hidden_size=HIDDEN, intermediate_size=24, image_size=32, **vision
        ),
        "text_config": text(layers, **_mrope(2, 1, 1)),
        **_ids(image_start_token_id=IMAGE_START, image_end_token_id=IMAGE_END),
        "video_start_token_id": VISION_START,
        "video_end_token_id": VISION_END,
    }


def _glm_moe(layers: int) -> Config:
    made = _glm(layers)
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 20}
    groups = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    # Half of a head's size is rotated: two angles.
    made["text_config"] = text(layers, head_dim=8, **experts, **groups, **_mrope(1, 1, 0))
    return made


def _lfm2(layers: int) -> Config:
    vision = tower("siglip2_vision_model", patch_size=4, num_patches=16, vision_use_head=False)
    del vision["image_size"]
    kinds = ["full_attention" if layer % 3 == 2 else "conv" for layer in range(layers)]
    decoder = text(
        layers, model_type="lfm2", layer_types=kinds, conv_L_cache=3, block_multiple_of=8, intermediate_size=60
    )
    return {
        "vision_config": vision,
        "text_config": decoder,
        "image_token_id": IMAGE,
        "projector_hidden_size": 40,
        "downsample_factor": 2,
    }


def _siglip_rows(noise: Noise, number: int, odd: bool) -> Picture:
    """All are filled up to 64 patches, here with nothing but patches."""
    rows, columns = ((4, 8), (8, 4))[(number + odd) % 2]
    mask = torch.zeros(1, 64, dtype=torch.int32)
    mask[:, : rows * columns] = 1
    return {
        "pixel_values": noise(1, 64, 3 * 4 * 4),
        "spatial_shapes": torch.tensor([[rows, columns]]),
        "pixel_attention_mask": mask,
    }, rows * columns // 4


_HYBRID = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 4,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
}


def _hybrid(layers: int, **more: Any) -> Config:
    kinds = ["full_attention" if layer % 3 == 2 else "linear_attention" for layer in range(layers)]
    vision = _qwen3_vision()
    del vision["deepstack_visual_indexes"]
    return {
        "vision_config": vision,
        "text_config": text(layers, **_HYBRID, layer_types=kinds, **more),
        **_qwen_ids(),
    }


def _omni(layers: int) -> Config:
    vision = _qwen_tower(
        hidden_size=16, intermediate_size=24, out_hidden_size=HIDDEN, window_size=16, fullatt_block_indexes=[1]
    )
    audio = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "output_dim": 32}
    return {
        "vision_start_token_id": VISION_START,
        "vision_config": vision,
        "text_config": text(layers, **_mrope(2, 1, 1)),
        "audio_config": audio,
        "image_token_index": IMAGE,
        "video_token_index": VIDEO,
        "audio_token_index": 119,
    }


def _gemma4(layers: int, **more: Any) -> Config:
    kinds = ["full_attention" if layer % 3 == 2 else "sliding_attention" for layer in range(layers)]
    decoder = text(
        layers, head_dim=8, global_head_dim=16, num_global_key_value_heads=1, attention_k_eq_v=True,
        sliding_window=12, layer_types=kinds, hidden_size_per_layer_input=8, vocab_size_per_layer_input=128,
        enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=20, **more,
    )  # fmt: skip
    vision = tower("gemma4_vision", patch_size=4, num_key_value_heads=2, head_dim=8, pooling_kernel_size=2)
    del vision["image_size"]
    return {"vision_config": vision, "text_config": decoder, "image_token_id": IMAGE, "audio_config": None}


def _positioned(noise: Noise, number: int, odd: bool) -> Picture:
    """A grid of patches with their places, filled up to 36."""
    rows, columns = ((4, 8), (4, 6))[(number + odd) % 2]
    places = torch.full((1, 36, 2), -1)
    grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(-1)
    places[0, : rows * columns] = grid
    pixels = torch.zeros(1, 36, 3 * 4 * 4, dtype=noise(1).dtype)
    pixels[0, : rows * columns] = noise(rows * columns, 3 * 4 * 4)
    return {"pixel_values": pixels, "image_position_ids": places}, rows * columns // 4


def _janus(layers: int) -> Config:
    vision = tower("janus_vision_model", projection_dim=HIDDEN, depth=2, mlp_ratio=2.0)
    del vision["intermediate_size"]
    vq = {"base_channels": 32, "latent_channels": 32, "channel_multiplier": [1], "num_embeddings": 8}
    return {
        "vision_config": vision,
        "vq_config": {**vq, "num_res_blocks": 1, "projection_dim": HIDDEN, "image_token_embed_dim": HIDDEN},
        "text_config": text(layers, model_type="llama"),
        "image_token_id": IMAGE,
    }


def _kimi(layers: int) -> Config:
    latent = {
        "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12, "q_lora_rank": 12,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "first_k_dense_replace": 1,
        "n_group": 1, "topk_group": 1, "num_key_value_heads": 4, "n_shared_experts": 1,
    }  # fmt: skip
    vision = tower("kimi_k25_vision", patch_size=4, pos_emb_height=8, pos_emb_width=8)
    del vision["image_size"]
    return {
        "vision_config": vision,
        "text_config": text(layers, model_type="deepseek_v3", **latent),
        **_ids(),
        "projection_hidden_size": 16,
    }


def _paddle(layers: int) -> Config:
    vision = tower("paddleocr_vl_vision", patch_size=4, spatial_merge_size=2)
    return {"vision_config": vision, "text_config": text(layers, head_dim=8, **_mrope(2, 1, 1)), **_qwen_ids()}


def _paddle_grid(noise: Noise, number: int, odd: bool) -> Picture:
    found, tokens = _grid(3, flat=False)(noise, number, odd)
    return found, tokens


def _deepseek_vl(layers: int) -> Config:
    return {"vision_config": _siglip(), "text_config": text(layers, model_type="llama"), "image_token_id": IMAGE}


def _next_video(layers: int) -> Config:
    return {**_anyres(layers, _clip(patch_size=8), model_type="llama"), "video_token_index": VIDEO}


def _unpadded(noise: Noise, number: int, odd: bool) -> Picture:
    """Base view and tiles of 24 x 24 in 3 x 3 patches, as of LLaVA-NeXT."""
    height = (24, 32)[(number + odd) % 2]
    tiles, tokens = (2, 9 + 3 * 7) if height == 24 else (4, 9 + 4 * 7)
    pixels = torch.zeros(1, 5, 3, SIDE, SIDE, dtype=noise(1).dtype)
    pixels[:, : 1 + tiles] = noise(1, 1 + tiles, 3, SIDE, SIDE)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([[height, 48]])}, tokens


def _minicpm(layers: int, version: str = "v4_6") -> Config:
    vision = tower(f"minicpm{version}_vision", image_size=32, patch_size=4, insert_layer_id=0)
    kinds = ["full_attention" if layer % 3 == 2 else "linear_attention" for layer in range(layers)]
    decoder = text(layers, model_type="qwen3_5_text", **_HYBRID, layer_types=kinds)
    return {"vision_config": vision, "text_config": decoder, **_ids(), "image_size": 32, "insert_layer_id": 0}


def _packed(noise: Noise, number: int, odd: bool) -> Picture:
    """Patches of a picture side by side."""
    rows, columns = (RAGGED_GRIDS if odd else GRIDS)[number % 2]
    found = {"pixel_values": noise(1, 3, 4, 4 * rows * columns), "target_sizes": torch.tensor([[rows, columns]])}
    return found, rows * columns // 16


def _unmerged(noise: Noise, number: int, odd: bool) -> Picture:
    """The same where the tower merges nothing."""
    found, tokens = _packed(noise, number, odd)
    return found, 4 * tokens


def _qianfan(layers: int) -> Config:
    return {
        "vision_config": {**tower("qianfan_ocr_vision"), "image_size": [32, 32], "patch_size": [4, 4]},
        "text_config": text(layers, model_type="qwen3", head_dim=16),
        "image_token_id": IMAGE,
        "image_seq_length": 16,
    }


def _omni3(layers: int) -> Config:
    experts = {"moe_intermediate_size": 20, "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 2}
    audio = {
        "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "output_dim": 32,
        "downsample_hidden_size": 8,
    }  # fmt: skip
    return {
        "vision_start_token_id": VISION_START,
        "vision_config": _qwen3_vision(),
        "text_config": text(layers, head_dim=16, **experts, **_mrope(4, 2, 2, mrope_interleaved=True)),
        "audio_config": audio,
        **_ids(audio_token_id=119),
    }


def _compass(layers: int) -> Config:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    ropes = {"full_attention": rope, "sliding_attention": rope}
    decoder = text(layers, num_attention_heads=2, num_key_value_heads=1, rope_parameters=ropes)
    kinds = ["full_attention" if layer % 3 == 2 else "sliding_attention" for layer in range(layers)]
    return {
        "vision_config": _qwen3_vision(),
        "text_config": {**decoder, "layer_types": kinds, "sliding_window": 12},
        **_qwen_ids(),
    }


def _unified(layers: int) -> Config:
    kinds = ["full_attention" if layer % 3 == 2 else "sliding_attention" for layer in range(layers)]
    decoder = text(layers, head_dim=8, global_head_dim=16, sliding_window=12, layer_types=kinds)
    vision = {
        "patch_size": 4, "pooling_kernel_size": 2, "mm_embed_dim": 20, "mm_posemb_size": 16, "output_proj_dims": 20,
    }  # fmt: skip
    return {"vision_config": vision, "text_config": decoder, "image_token_id": IMAGE, "audio_config": None}


def _large_patches(noise: Noise, number: int, odd: bool) -> Picture:
    rows, columns = ((2, 4), (2, 3))[(number + odd) % 2]
    places = torch.full((1, 9, 2), -1)
    places[0, : rows * columns] = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(-1)
    return {"pixel_values": noise(1, 9, 3 * 8 * 8), "image_position_ids": places}, rows * columns


def _idefics2(layers: int) -> Config:
    sampler = {
        "hidden_size": HIDDEN, "resampler_n_latents": 6, "resampler_depth": 2, "resampler_n_heads": 4,
        "resampler_head_dim": 6, "num_key_value_heads": 2,
    }  # fmt: skip
    return {
        "vision_config": tower("idefics2_vision"),
        "perceiver_config": sampler,
        "text_config": text(layers, model_type="mistral", sliding_window=None),
        "image_token_id": IMAGE,
    }


def _nested(noise: Noise, number: int, odd: bool) -> Picture:
    return {"pixel_values": noise(1, 3, SIDE, SIDE)}, 6


def _aria(layers: int) -> Config:
    decoder = text(layers, model_type="aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=2)
    return {
        "vision_config": tower("idefics3_vision", image_size=980, patch_size=140),
        "text_config": decoder,
        "image_token_index": IMAGE,
        "projector_patch_to_query_dict": {49: 6},
    }


def _blip2(layers: int) -> Config:
    former = {
        "hidden_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 28,
        "cross_attention_frequency": 2, "encoder_hidden_size": 16, "vocab_size": 30,
    }  # fmt: skip
    decoder = text(layers, model_type="opt", ffn_dim=48, word_embed_proj_dim=HIDDEN, num_key_value_heads=4)
    return {
        "vision_config": tower("blip_2_vision_model"),
        "qformer_config": former,
        "text_config": decoder,
        "num_query_tokens": 6,
        "image_token_index": IMAGE,
    }


def _instructblip(layers: int) -> Config:
    """A Q-Former that reads the instruction, in the decoder's words."""
    made = _blip2(layers)
    made["qformer_config"]["vocab_size"] = VOCAB
    made["vision_config"] = tower("instructblip_vision_model")
    return made


def _instructblip_video(layers: int) -> Config:
    made = _instructblip(layers)
    made["vision_config"] = tower("instructblipvideo_vision_model")
    made["video_token_index"] = made.pop("image_token_index")
    return made


def _clip_of_two(noise: Noise, number: int, odd: bool) -> Picture:
    """Two frames."""
    return {"pixel_values": noise(1, 2, 3, SIDE, SIDE)}, 12


def _got(layers: int) -> Config:
    vision = {
        "hidden_size": 16, "output_channels": 12, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64,
        "patch_size": 4, "window_size": 6, "global_attn_indexes": [1], "mlp_dim": 24,
    }  # fmt: skip
    decoder = text(layers, model_type="qwen2")
    return {"vision_config": vision, "text_config": decoder, "image_token_index": IMAGE, "image_seq_length": 16}


_SHARED = {
    "shared_expert_intermediate_size": 24,
    "moe_intermediate_size": 20,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}

#: family -> what it is made of.
EXTRA: dict[str, Extra] = {
    "aria": Extra("AriaForConditionalGeneration", _aria, _square(980, 6)),
    "blip-2": Extra("Blip2ForConditionalGeneration", _blip2, _square(SIDE, 6)),
    "cohere_compass": Extra("CohereCompassForConditionalGeneration", _compass, _grid(3), marks=True, typed=True),
    "gemma4_unified": Extra(
        "Gemma4UnifiedForConditionalGeneration",
        _unified,
        _large_patches,
        typed=True,
        processor={"max_soft_tokens": 9},
        size=(32, 16),
    ),
    "got_ocr2": Extra("GotOcr2ForConditionalGeneration", _got, _square(64, 16)),
    "idefics2": Extra(
        "Idefics2ForConditionalGeneration",
        _idefics2,
        _nested,
        processor={"size": {"shortest_edge": SIDE, "longest_edge": SIDE}},
        size=(SIDE, SIDE),
    ),
    "cosmos3_edge": Extra(
        "Cosmos3EdgeForConditionalGeneration", _cosmos3_edge, _grid(3, frames=1), marks=True, typed=True
    ),
    "cosmos3_omni": Extra(
        "Cosmos3OmniForConditionalGeneration",
        lambda n: {
            "vision_config": {**_qwen3_vision(), "model_type": "qwen3_vl_vision"},
            "text_config": text(n, model_type="qwen3_vl_text", head_dim=16, **_mrope(4, 2, 2, mrope_interleaved=True)),
            **_qwen_ids(),
        },
        _grid(3),
        marks=True,
        typed=True,
    ),
    "deepseek_vl": Extra("DeepseekVLForConditionalGeneration", _deepseek_vl, _square(SIDE, 16)),
    "exaone4_5": Extra("Exaone4_5_ForConditionalGeneration", _exaone, _grid(3), marks=True),
    "gemma4": Extra(
        "Gemma4ForConditionalGeneration",
        _gemma4,
        _positioned,
        typed=True,
        processor={"max_soft_tokens": 9},
        size=(32, 16),
    ),
    "gemma4-sharing": Extra(
        "Gemma4ForConditionalGeneration",
        lambda n: _gemma4(n, num_kv_shared_layers=n // 3),
        _positioned,
        typed=True,
        processor={"max_soft_tokens": 9},
        size=(32, 16),
    ),
    "glm46v": Extra("Glm46VForConditionalGeneration", _glm, _grid(3), marks=True, typed=True),
    "glm4v_moe": Extra("Glm4vMoeForConditionalGeneration", _glm_moe, _grid(3), marks=True, typed=True),
    "glmga": Extra("Glm46VForConditionalGeneration", _glm, _grid(3), marks=True, typed=True, config="glmga"),
    "glm_ocr": Extra("GlmOcrForConditionalGeneration", _glm, _grid(3), marks=True, typed=True),
    "granite_docling": Extra("GraniteDoclingForConditionalGeneration", _granite_docling, _square(32, 16)),
    "hyperclovax_vision_v2": Extra("HyperCLOVAXVisionV2ForConditionalGeneration", _hyperclovax, _grid(3), marks=True),
    "instructblip": Extra("InstructBlipForConditionalGeneration", _instructblip, _square(SIDE, 6)),
    "instructblipvideo": Extra("InstructBlipVideoForConditionalGeneration", _instructblip_video, _clip_of_two),
    "janus": Extra("JanusForConditionalGeneration", _janus, _square(SIDE, 16)),
    "kimi_k25": Extra("Kimi_K25ForConditionalGeneration", _kimi, _grid(3, flat=False), marks=True),
    "lfm2_vl": Extra(
        "Lfm2VlForConditionalGeneration",
        _lfm2,
        _siglip_rows,
        processor={"tile_size": 32, "max_image_tokens": 16, "min_image_tokens": 4},
        size=(32, 16),
    ),
    "lighton_ocr": Extra("LightOnOcrForConditionalGeneration", _lighton, _pixtral_sizes),
    "llava_next_video": Extra("LlavaNextVideoForConditionalGeneration", _next_video, _unpadded),
    "minicpmv4_6": Extra("MiniCPMV4_6ForConditionalGeneration", _minicpm, _packed, join=-1),
    "minicpmv4_7": Extra(
        "MiniCPMV4_7ForConditionalGeneration", lambda n: _minicpm(n, "v4_7"), _packed, typed=True, join=-1
    ),
    "minicpm_ocr": Extra("MiniCPMOcrForConditionalGeneration", lambda n: _minicpm(n, "_ocr"), _unmerged, join=-1),
    "muse_glimmer": Extra("MuseGlimmerForConditionalGeneration", _muse, _grid(3), marks=True),
    "ovis2": Extra("Ovis2ForConditionalGeneration", _ovis2, _square(SIDE, 4)),
    "paddleocr_vl": Extra("PaddleOCRVLForConditionalGeneration", _paddle, _paddle_grid, marks=True, typed=True),
    "pp_chart2table": Extra("GotOcr2ForConditionalGeneration", _got, _square(64, 16), config="pp_chart2table"),
    "qianfan_ocr": Extra("QianfanOCRForConditionalGeneration", _qianfan, _square(32, 16)),
    "qwen2_5_omni_thinker": Extra(
        "Qwen2_5OmniThinkerForConditionalGeneration", _omni, _grid(3), marks=True, typed=True
    ),
    "qwen3_5": Extra("Qwen3_5ForConditionalGeneration", _hybrid, _grid(3), marks=True, typed=True),
    "qwen3_5_moe": Extra(
        "Qwen3_5MoeForConditionalGeneration", lambda n: _hybrid(n, **_SHARED), _grid(3), marks=True, typed=True
    ),
    "qwen3_omni_moe_thinker": Extra(
        "Qwen3OmniMoeThinkerForConditionalGeneration", _omni3, _grid(3), marks=True, typed=True
    ),
    "shieldgemma2": Extra("Gemma3ForConditionalGeneration", _gemma3, _square(32, 16)),
    "video_llama_3": Extra(
        "VideoLlama3ForConditionalGeneration",
        _video_llama_3,
        _grid(3, merge=1, frames=1, image_merge_sizes=1),
        marks=True,
    ),
}
