"""Tiny models of further families: what `tests.tiny.configs` and `tests.tiny.prompts` are for those that every matrix
covers. Each entry makes a configuration and says what the processor gives for one picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.tiny.configs import SIDE, Config, _gemma3, _mrope, _qwen3_vision, _qwen_ids, text
from tests.tiny.further import (
    _aria,
    _blip2,
    _compass,
    _cosmos3_edge,
    _deepseek_vl,
    _exaone,
    _gemma4,
    _glm,
    _glm_moe,
    _got,
    _granite_docling,
    _hybrid,
    _hyperclovax,
    _idefics2,
    _instructblip,
    _instructblip_video,
    _janus,
    _kimi,
    _lfm2,
    _lighton,
    _minicpm,
    _muse,
    _next_video,
    _omni,
    _omni3,
    _ovis2,
    _paddle,
    _qianfan,
    _unified,
    _video_llama_3,
)
from tests.tiny.pictures import (
    Noise,
    Picture,
    _clip_of_two,
    _grid,
    _large_patches,
    _nested,
    _packed,
    _paddle_grid,
    _pixtral_sizes,
    _positioned,
    _siglip_rows,
    _square,
    _unmerged,
    _unpadded,
)


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
