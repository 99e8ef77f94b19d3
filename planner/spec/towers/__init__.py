"""The vision towers' facts, one reader per architecture; a family's file names its reader (`planner.spec.config`).

Readers take the vision configuration and its model type, and give a `Tower`. Feature layers behind the selected one
still run in transformers, so they count.
"""

from __future__ import annotations

from planner.spec.towers.attending import (
    clip,
    convolved,
    embedder,
    gemma4,
    glm4v_vision,
    minicpm,
    mllama_vision,
    native,
    patches,
    pix2struct,
    pixtral,
    qwen2,
    qwen2_5,
    radio,
    sam,
    sam_and_clip,
    sam_and_queries,
    siglip2,
    siglip_and_sam,
    step3,
    vqgan,
    windowed,
)
from planner.spec.towers.mobilenet import mobilenet_v5

__all__ = [
    "clip",
    "convolved",
    "embedder",
    "gemma4",
    "glm4v_vision",
    "minicpm",
    "mllama_vision",
    "mobilenet_v5",
    "native",
    "patches",
    "pix2struct",
    "pixtral",
    "qwen2",
    "qwen2_5",
    "radio",
    "sam",
    "sam_and_clip",
    "sam_and_queries",
    "siglip2",
    "siglip_and_sam",
    "step3",
    "vqgan",
    "windowed",
]
