"""Configurations of the families of `tests.tiny.extra`, of a given number of decoder layers."""

from __future__ import annotations

from typing import Any

from tests.tiny.configs import (
    HIDDEN,
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    VIDEO,
    VISION_END,
    VISION_START,
    VOCAB,
    Config,
    _anyres,
    _clip,
    _mrope,
    _qwen3_vision,
    _qwen_ids,
    _qwen_tower,
    _siglip,
    text,
    tower,
)


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


def _deepseek_vl(layers: int) -> Config:
    return {"vision_config": _siglip(), "text_config": text(layers, model_type="llama"), "image_token_id": IMAGE}


def _next_video(layers: int) -> Config:
    return {**_anyres(layers, _clip(patch_size=8), model_type="llama"), "video_token_index": VIDEO}


def _minicpm(layers: int, version: str = "v4_6") -> Config:
    vision = tower(f"minicpm{version}_vision", image_size=32, patch_size=4, insert_layer_id=0)
    kinds = ["full_attention" if layer % 3 == 2 else "linear_attention" for layer in range(layers)]
    decoder = text(layers, model_type="qwen3_5_text", **_HYBRID, layer_types=kinds)
    return {"vision_config": vision, "text_config": decoder, **_ids(), "image_size": 32, "insert_layer_id": 0}


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


def _got(layers: int) -> Config:
    vision = {
        "hidden_size": 16, "output_channels": 12, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64,
        "patch_size": 4, "window_size": 6, "global_attn_indexes": [1], "mlp_dim": 24,
    }  # fmt: skip
    decoder = text(layers, model_type="qwen2")
    return {"vision_config": vision, "text_config": decoder, "image_token_index": IMAGE, "image_seq_length": 16}
