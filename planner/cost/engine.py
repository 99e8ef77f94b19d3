"""Presets of the software that runs a model: what it reaches of a device, what it adds, which work it does.

FLOPs are counted as transformers executes them, everywhere. A serving engine executes some layers otherwise, and its
time is that of what it executes.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace
from importlib import resources

from pydantic import BaseModel, ConfigDict

from planner.cost.constants import Constants, EngineName
from planner.spec.facts import Attention, LayerSpec, ModelSpec, Tower

#: Names of the presets.
ENGINES: tuple[EngineName, ...] = ("hf", "vllm", "ideal")


class Engine(BaseModel):
    """One preset, a file in ``profiles/engines``.

    Attributes:
        name, summary: as tables show them.
        constants: of devices on which nothing was measured.
        sources: where each constant is from.
        serving: it runs routed experts only, attends to latents without expanding them, and to each image of a batch
            alone, where transformers does more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    summary: str
    constants: Constants
    sources: dict[str, str]
    serving: bool

    def executed(self, spec: ModelSpec) -> ModelSpec:
        """The model as this engine executes it."""
        return _served(spec) if self.serving else spec


@functools.cache
def engine(name: EngineName) -> Engine:
    """A preset by name."""
    text = (resources.files("planner.profiles") / "engines" / f"{name}.json").read_text(encoding="utf-8")
    return Engine.model_validate(json.loads(text))


@functools.lru_cache(maxsize=64)
def _served(spec: ModelSpec) -> ModelSpec:
    layers = tuple(_served_layer(layer) for layer in spec.decoder.layers)
    vision = None if spec.vision is None else _served_tower(spec.vision)
    if layers == spec.decoder.layers and vision == spec.vision:
        return spec
    return replace(spec, decoder=replace(spec.decoder, layers=layers), vision=vision)


def _served_layer(layer: LayerSpec) -> LayerSpec:
    routed = layer.ffn.routed
    return replace(layer, ffn=replace(layer.ffn, experts_run=routed)) if routed else layer


def _served_tower(tower: Tower) -> Tower:
    if not any(block.span == "batch" for block in tower.blocks):
        return tower
    return replace(tower, blocks=tuple(replace(block, span="image") for block in tower.blocks), mask_macs=0)


@functools.lru_cache(maxsize=64)
def absorbed(layer: LayerSpec) -> LayerSpec:
    """A decode step's layer whose latent attention expands nothing: queries are moved into the latents' space, which
    takes for the new token what expanding its own latent would, and meet the cached latents there.

    Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1.2: absorbing W_UK into W_UQ, and W_UV into W_O.
    """
    attention = layer.attention
    if not attention.expand_macs:
        return layer
    return replace(
        layer,
        attention=replace(
            attention,
            key_macs=attention.key_macs + attention.expand_macs,
            expand_macs=0,
            head_dim=attention.cached_elements,
            value_dim=_rank(attention),
        ),
    )


def _rank(attention: Attention) -> int:
    """Width r of the latent: with rope = cached - r and nope = head_dim - rope, expanding takes r H (nope + value)."""
    # r (r + head_dim - cached + value_dim) = expand_macs / heads
    half = attention.head_dim - attention.cached_elements + attention.value_dim
    product = attention.expand_macs // attention.heads
    return (math.isqrt(half * half + 4 * product) - half) // 2
