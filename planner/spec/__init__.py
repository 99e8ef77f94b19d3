"""What a model is made of, read from its configuration: no weights, no torch."""

from __future__ import annotations

from planner.spec.facts import Attention, Decoder, FeedForward, LayerSpec, ModelSpec, Projector, Tower
from planner.spec.read import shipped, shipped_model

__all__ = [
    "Attention",
    "Decoder",
    "FeedForward",
    "LayerSpec",
    "ModelSpec",
    "Projector",
    "Tower",
    "shipped",
    "shipped_model",
]
