"""A model's facts, as far as they cost something: frozen, hashable, and independent of any configuration's spelling.

Work is stated in multiply-adds (``_macs``) per token, so that a convention can call each one or two FLOPs. Biases,
norms, activations, rotary embeddings and softmax are elementwise and not part of any count here, as they are not in
torch's or fvcore's counters.
"""

from __future__ import annotations

from planner.spec.facts.decoder import Attention, AttentionKind, Decoder, FeedForward, LayerSpec
from planner.spec.facts.model import ModelSpec, Storage
from planner.spec.facts.processor import ImageRule, Marks, VideoRule
from planner.spec.facts.vision import Block, Projector, Tower

__all__ = [
    "Attention",
    "AttentionKind",
    "Block",
    "Decoder",
    "FeedForward",
    "ImageRule",
    "LayerSpec",
    "Marks",
    "ModelSpec",
    "Projector",
    "Storage",
    "Tower",
    "VideoRule",
]
