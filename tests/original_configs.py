"""Configurations as published with models that bring their own code, without what no cost depends on.

Source: `config.json` of the repositories named, on the hub.
"""

from __future__ import annotations

from typing import Any

_SIGLIP = {
    "hidden_size": 1152, "image_size": 980, "intermediate_size": 4304, "model_type": "siglip", "patch_size": 14,
    "num_attention_heads": 16, "num_hidden_layers": 27,
}  # fmt: skip
_DEEPSEEK = {
    "use_mla": False, "hidden_size": 1280, "intermediate_size": 6848, "moe_intermediate_size": 896,
    "vocab_size": 129280,
    "num_hidden_layers": 12, "num_attention_heads": 10, "num_key_value_heads": 10, "n_routed_experts": 64,
    "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1, "kv_lora_rank": None,
    "q_lora_rank": None, "v_head_dim": 0, "model_type": "deepseek_v2",
}  # fmt: skip
_SIDES = [
    *((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (1, 4), (4, 1), (2, 3), (3, 2), (1, 5), (5, 1), (1, 6), (6, 1)),
    *((1, 7), (7, 1), (4, 2), (2, 4), (1, 8), (8, 1), (3, 3), (1, 9), (9, 1)),
]

#: Repository -> its configuration.
ORIGINALS: dict[str, dict[str, Any]] = {
    "moonshotai/Kimi-VL-A3B-Instruct": {
        "model_type": "kimi_vl",
        "media_placeholder_token_id": 163605,
        "text_config": {
            "model_type": "deepseek_v3", "hidden_size": 2048, "intermediate_size": 11264, "vocab_size": 163840,
            "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16, "n_shared_experts": 2,
            "num_key_value_heads": 16, "n_routed_experts": 64, "kv_lora_rank": 512, "q_lora_rank": None,
            "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "num_experts_per_tok": 6,
            "first_k_dense_replace": 1,
        },
        "vision_config": {
            "model_type": "moonvit", "patch_size": 14, "num_attention_heads": 16, "num_hidden_layers": 27,
            "hidden_size": 1152, "intermediate_size": 4304, "merge_kernel_size": [2, 2],
        },
    },
    "moonshotai/Kimi-K2.5": {
        "model_type": "kimi_k25",
        "media_placeholder_token_id": 163605,
        "text_config": {
            "model_type": "kimi_k2", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
            "num_hidden_layers": 61, "num_attention_heads": 64, "num_key_value_heads": 64, "n_shared_experts": 1,
            "n_routed_experts": 384, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64,
            "v_head_dim": 128, "qk_nope_head_dim": 128, "num_experts_per_tok": 8, "first_k_dense_replace": 1,
            "vocab_size": 163840,
        },
        "vision_config": {
            "model_type": "", "vt_hidden_size": 1152, "vt_intermediate_size": 4304, "vt_num_attention_heads": 16,
            "vt_num_hidden_layers": 27, "merge_kernel_size": [2, 2], "patch_size": 14,
        },
    },
    "openbmb/MiniCPM-V-2_6": {
        "model_type": "minicpmv",
        "version": 2.6,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 151666,
        "query_num": 64,
        "drop_vision_last_layer": False,
        "slice_config": {"max_slice_nums": 9, "patch_size": 14, "model_type": "minicpmv", "scale_resolution": 448},
        "vision_config": _SIGLIP,
    },
    "deepseek-ai/deepseek-vl2-tiny": {
        "model_type": "deepseek_vl_v2",
        "candidate_resolutions": [[384 * width, 384 * height] for width, height in _SIDES],
        "projector_config": {
            "projector_type": "downsample_mlp_gelu", "n_embed": 1280, "model_type": "mlp_projector",
        },
        "vision_config": {
            "layers": 27, "mlp_ratio": 3.7362, "model_name": "siglip_so400m_patch14_384", "model_type": "vision",
            "patch_size": 14, "width": 1152,
        },
        "language_config": _DEEPSEEK,
    },
    "deepseek-ai/DeepSeek-OCR": {
        "model_type": "deepseek_vl_v2",
        "candidate_resolutions": [[1024, 1024]],
        "projector_config": {
            "projector_type": "linear", "input_dim": 2048, "n_embed": 1280, "model_type": "mlp_projector",
        },
        "vision_config": {
            "image_size": 1024,
            "mlp_ratio": 3.7362,
            "model_name": "deeplip_b_l",
            "model_type": "vision",
            "width": {
                "clip-l-14-224": {"heads": 16, "image_size": 224, "layers": 24, "patch_size": 14, "width": 1024},
                "sam_vit_b": {
                    "downsample_channels": [512, 1024], "global_attn_indexes": [2, 5, 8, 11], "heads": 12,
                    "layers": 12, "width": 768,
                },
            },
        },
        "language_config": _DEEPSEEK,
    },
    "microsoft/Phi-4-multimodal-instruct": {
        "model_type": "phi4mm",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "vocab_size": 200064,
        "tie_word_embeddings": True,
        "img_processor": None,
        "sliding_window": 262144,
        "vision_lora": {"r": 256, "lora_alpha": 512},
    },
    "allenai/Molmo2-8B": {
        "model_type": "molmo2",
        "image_patch_id": 151938,
        "text_config": {
            "model_type": "molmo2_text", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        },
        "vit_config": {
            "model_type": "molmo2", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
            "num_attention_heads": 16, "image_default_input_size": [378, 378],
        },
        "adapter_config": {
            "model_type": "", "vit_layers": [-3, -9], "hidden_size": 1152, "num_attention_heads": 16, "head_dim": 72,
            "intermediate_size": 12288, "text_hidden_size": 4096,
        },
    },
    "AIDC-AI/Ovis2.5-9B": {
        "model_type": "ovis2_5",
        "visual_vocab_size": 65536,
        "llm_config": {
            "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        },
        "vit_config": {
            "model_type": "siglip2_navit", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
            "num_attention_heads": 16, "patch_size": 16, "image_size": 512, "hidden_stride": 2,
        },
    },
    "stepfun-ai/Step-3.7-Flash": {
        "model_type": "step3p7",
        "text_config": {
            "model_type": "step3p5", "hidden_size": 4096, "num_hidden_layers": 45, "vocab_size": 128896,
            "num_attention_heads": 64, "num_attention_groups": 8, "head_dim": 128, "intermediate_size": 11264,
            "moe_num_experts": 288, "moe_top_k": 8, "moe_intermediate_size": 1280, "share_expert_dim": 1280,
            "sliding_window": 512, "moe_layers_enum": ",".join(map(str, range(3, 45))),
            "layer_types": ["sliding_attention" if layer % 4 else "full_attention" for layer in range(48)],
            "attention_other_setting": {"num_attention_heads": 96, "num_attention_groups": 8},
        },
        "vision_config": {"width": 1536, "layers": 47, "heads": 16, "image_size": 728, "patch_size": 14},
    },
    "MiniMaxAI/MiniMax-M3": {
        "model_type": "minimax_m3_vl",
        "text_config": {
            "moe_layer_freq": [0, 0, 0] + [1] * 57,
            "sparse_attention_config": {
                "sparse_num_index_heads": 4, "sparse_index_dim": 128, "sparse_attention_freq": [0, 0, 0] + [1] * 57,
            },
        },
        "vision_config": {},
    },
    "baidu/ERNIE-4.5-VL-28B-A3B-PT": {
        "model_type": "ernie4_5_moe_vl",
        "im_patch_id": 100295,
        "hidden_size": 2560,
        "intermediate_size": 12288,
        "num_hidden_layers": 28,
        "num_attention_heads": 20,
        "num_key_value_heads": 4,
        "vocab_size": 103424,
        "moe_num_experts": [64, 64],
        "moe_intermediate_size": [1536, 512],
        "moe_k": 6,
        "moe_layer_start_index": [1, 1],
        "moe_num_shared_experts": 2,
        "tie_word_embeddings": True,
        "vision_config": {
            "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2,
            "model_type": "DFNRope_vision_transformer",
        },
    },
    "PaddlePaddle/PaddleOCR-VL": {
        "model_type": "paddleocr_vl",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 18,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "vocab_size": 103424,
        "image_token_id": 100295,
        "vision_config": {
            "model_type": "paddleocr_vl", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
            "num_attention_heads": 16, "patch_size": 14, "spatial_merge_size": 2,
        },
    },
}  # fmt: skip
