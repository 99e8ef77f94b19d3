"""Bytes that a model holds: weights and cache."""

from __future__ import annotations

from planner.cost.flops import Cost
from planner.cost.selector import Number
from planner.spec.facts import FeedForward, ModelSpec
from planner.workload import Workload


def held_bytes(cost: Cost) -> int:
    """Weights, and the KV cache at the end of the answer."""
    weights = sum(weights_stored(cost.spec, cost.workload).values())
    return weights + cost.kv_cache_bytes_after(cost.workload.output_tokens - 1)


def weights_stored(spec: ModelSpec, workload: Workload) -> dict[str, int]:
    """Bytes of all matrices, by class."""
    kinds = [(layer.attention, layer.ffn, prefix[-1]) for layer, prefix in spec.decoder.kinds]
    elements = {
        "attention_projections": sum(count * attention.projection_macs for attention, _, count in kinds),
        "ffn": sum(count * (ffn.dense_macs + ffn.experts * ffn.expert_macs) for _, ffn, count in kinds),
        "lm_head": spec.decoder.head_macs,
        "vision": 0,
        "projector": 0,
    }
    if spec.vision is not None and spec.projector is not None:
        elements["vision"] = sum(block.repeat * block.macs for block in spec.vision.blocks)
        elements["projector"] = spec.projector.macs + spec.projector.patch_macs
    return {name: -(-count * workload.weight_bits // 8) for name, count in elements.items()}


def reached_experts(ffn: FeedForward, rows: Number) -> Number:
    """Distinct routed experts that `rows` rows are expected to reach, if each row draws its own at random."""
    missed = (1 - ffn.experts_run / ffn.experts) ** rows
    return ffn.experts * (1 - missed)
