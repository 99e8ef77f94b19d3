"""From vision tower to decoder: the projector's facts and the rule that turns pixels into tokens, one reader per kind;
a family's file names its reader (`planner.spec.config`).

Readers take the configurations of the whole model and of its tower, the tower's facts, and the decoder's hidden size.
"""

from __future__ import annotations

from planner.spec.projectors.every_patch import (
    anyres,
    deepseek_vl_hybrid,
    embedded,
    janus,
    llava,
    mllama,
    paligemma,
    unprojected,
    video_llama_3,
    vipllava,
)
from planner.spec.projectors.merging import (
    deepseek_ocr,
    deepseek_ocr2,
    deepseek_vl2,
    deepstacked,
    ernie,
    glm4v,
    hunyuan,
    merged,
    minicpm,
    mistral3,
    muse_glimmer,
    patch_merger,
    patch_merger_projected,
    projected_then_merged,
    step3,
)
from planner.spec.projectors.parts import ProjectorParts
from planner.spec.projectors.pooling import gemma3, gemma4, got_ocr2, mobilevlm, phi4
from planner.spec.projectors.queries import (
    aria,
    idefics2,
    kosmos2,
    kosmos2_5,
    molmo2,
    q_former,
    resampled,
    windowed_q_formers,
)
from planner.spec.projectors.shuffling import granite_docling, idefics3, internvl, lfm2_vl, llama4, shuffled_gate
from planner.spec.projectors.vocabulary import ovis2, quantised

__all__ = [
    "ProjectorParts",
    "anyres",
    "aria",
    "deepseek_ocr",
    "deepseek_ocr2",
    "deepseek_vl2",
    "deepseek_vl_hybrid",
    "deepstacked",
    "embedded",
    "ernie",
    "gemma3",
    "gemma4",
    "glm4v",
    "got_ocr2",
    "granite_docling",
    "hunyuan",
    "idefics2",
    "idefics3",
    "internvl",
    "janus",
    "kosmos2",
    "kosmos2_5",
    "lfm2_vl",
    "llama4",
    "llava",
    "merged",
    "minicpm",
    "mistral3",
    "mllama",
    "mobilevlm",
    "molmo2",
    "muse_glimmer",
    "ovis2",
    "paligemma",
    "patch_merger",
    "patch_merger_projected",
    "phi4",
    "projected_then_merged",
    "q_former",
    "quantised",
    "resampled",
    "shuffled_gate",
    "step3",
    "unprojected",
    "video_llama_3",
    "vipllava",
    "windowed_q_formers",
]
