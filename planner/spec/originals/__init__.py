"""Configurations of models that bring their own code, rewritten in the field names of transformers' classes.

Many are in use in that form only. What they leave to code (the vision tower behind a name, the decoder behind a class)
is spelled out here; a tower, projector or decoder that is not known is refused by name.
"""

from __future__ import annotations

from planner.spec.originals.deepseek import deepseek_vl_v2
from planner.spec.originals.internvl import internvl_chat, llama_nemotron
from planner.spec.originals.llava import llava
from planner.spec.originals.minicpm import minicpmv
from planner.spec.originals.phi import phi4mm
from planner.spec.originals.renamed import (
    chameleon,
    ernie,
    fuyu,
    kimi,
    kosmos2,
    kosmos2_5,
    minimax_m3,
    molmo2,
    ovis2_5,
    step3p7,
    two_towers,
    videos_alone,
)

__all__ = [
    "chameleon",
    "deepseek_vl_v2",
    "ernie",
    "fuyu",
    "internvl_chat",
    "kimi",
    "kosmos2",
    "kosmos2_5",
    "llama_nemotron",
    "llava",
    "minicpmv",
    "minimax_m3",
    "molmo2",
    "ovis2_5",
    "phi4mm",
    "step3p7",
    "two_towers",
    "videos_alone",
]
