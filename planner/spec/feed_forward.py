"""Feed-forward blocks of a text decoder: dense ones, and mixtures of experts by their family's rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.errors import InputError
from planner.spec.altup import before_attention, behind_feed_forward
from planner.spec.config import Config
from planner.spec.facts import FeedForward


def sparse_layers(config: Config, data: Mapping[str, Any], count: int) -> tuple[bool, ...]:
    """Which layers hold experts, by the family's rule."""
    experts = data.get("experts")
    if experts is None or not config.size(experts["count"], *experts.get("aliases", ()), least=0, default=0):
        return (False,) * count
    rule = experts["layers"]
    if rule == "all":
        return (True,) * count
    if rule == "flagged":
        return (bool(config.get(experts["flag"])),) * count
    if rule == "stepped":
        step, dense = config.size("decoder_sparse_step", default=1), config.numbers("mlp_only_layers")
        return tuple(index not in dense and (index + 1) % step == 0 for index in range(count))
    if rule == "after_dense":
        if config.get("mlp_layer_types") is not None:
            return tuple(name == "sparse" for name in config.get("mlp_layer_types"))
        first = config.size("first_k_dense_replace", least=0)
        return tuple(index >= first for index in range(count))
    listed = config.get("moe_layers")
    step = config.size("interleave_moe_layer_step", least=0)
    return tuple(
        (index in listed) if listed is not None else (step > 0 and (index + 1) % step == 0) for index in range(count)
    )


def feed_forward(config: Config, data: Mapping[str, Any], sparse: bool, wide: int = 1, layer: int = 0) -> FeedForward:
    """Of a dense or a sparse layer.

    Args:
        wide: how many times its width a dense block has.
        layer: which one it is, where a configuration lists the widths of dense blocks.

    Raises:
        InputError: a width is missing or absurd.
    """
    hidden, matrices = config.size("hidden_size"), 3 if data["ffn"] == "gated" else 2
    # An input per layer: this layer's share of the projection in front of all, its gate, and the way back.
    front = hidden * config.size("hidden_size_per_layer_input", default=0, least=0)
    beside = 3 * front + before_attention(config) + behind_feed_forward(config)
    experts = data.get("experts")
    if not sparse or experts is None:
        dense = matrices * hidden * wide * _dense_width(config, data, layer)
        return FeedForward(dense_macs=beside + dense, front_macs=front)
    count = config.size(experts["count"], *experts.get("aliases", ()))
    per_token = config.size(experts["per_token"])
    width, visual_width = _expert_widths(config, experts)
    shared = config.size(experts["shared"], least=0) if "shared" in experts else 0
    if "shared_count" in experts:
        shared = config.size(experts["shared_count"], default=0, least=0) * width
    if experts.get("beside_dense"):
        shared += wide * _dense_width(config, data, layer)
    router = hidden * count + (hidden if experts.get("shared_gate") else 0)
    # Muse Spark's experts run at a width of their own: tokens are brought to it, and back.
    inside = config.size(experts["inside"]) if "inside" in experts else hidden
    brought = 2 * hidden * inside if "inside" in experts else 0
    return FeedForward(
        dense_macs=beside + router + brought + matrices * hidden * shared,
        front_macs=front,
        expert_macs=matrices * inside * width,
        visual_expert_macs=matrices * inside * visual_width,
        experts=count,
        experts_run=count if experts.get("runs_all") else per_token,
        routed=per_token if experts.get("runs_all") else 0,
    )


def _expert_widths(config: Config, experts: Mapping[str, Any]) -> tuple[int, int]:
    """Of a routed expert, and of one for visual tokens; 0 where there are none."""
    if not experts.get("by_modality"):
        return config.size(experts["width"]), 0
    text, visual, *_ = config.numbers(experts["width"])
    return text, visual


def listed_widths(config: Config, count: int) -> tuple[int, ...]:
    """Widths of dense blocks where a configuration lists them, layer by layer; else nothing.

    Raises:
        InputError: there is not one for each layer, or one is absurd.
    """
    if not isinstance(config.get("intermediate_size"), (list, tuple)):
        return ()
    listed = config.numbers("intermediate_size")
    if len(listed) != count or min(listed) < 1:
        raise InputError(
            f"{config.where}.intermediate_size must be the widths of {count} layers, got {list(listed)}",
            "Check the configuration",
        )
    return listed


def _dense_width(config: Config, data: Mapping[str, Any], layer: int) -> int:
    if isinstance(config.get("intermediate_size"), (list, tuple)):
        return config.numbers("intermediate_size")[layer]
    experts = data.get("experts", {})
    width = config.size(*((experts["dense"],) if "dense" in experts else ("intermediate_size", "ffn_dim")))
    if not (data.get("adjusted_width") and config.get("block_auto_adjust_ff_dim")):
        return width
    # LFM2 states the width before two thirds are taken and rounded up to a multiple.
    multiple = config.size("block_multiple_of")
    width = int(float(config.get("block_ffn_dim_multiplier", default=1.0)) * int(2 * width / 3))
    return -(-width // multiple) * multiple
