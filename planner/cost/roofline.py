"""Latency as a roofline model: an estimate, never a measurement, and labelled as one.

Per operation class, time is the larger of FLOPs over the compute peak and bytes over the bandwidth, each times the
share of the peak that is reached; classes follow one another. Weights and the KV cache are read once a step. Fewer
FLOPs therefore do not always mean less time: a decode step of a small batch is bound by reading weights, whatever
was pruned.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.cost.flops import Cost
from planner.cost.hardware import Hardware
from planner.cost.selector import Number
from planner.spec.facts import ModelSpec
from planner.workload import Workload

#: Classes of operations that share an efficiency and a set of bytes; attention reads the cache, the others read
#: weights.
CLASSES = ("vision", "projector", "attention_projections", "attention_scores", "ffn", "lm_head", "selector")
_ATTENTION = ("attention_scores", "selector")


@dataclass(frozen=True)
class Latency:
    """A roofline estimate.

    Attributes:
        hardware: name of the device.
        prefill_ms: time to the first token.
        decode_ms: per further token, at the middle of the answer, for the whole batch in step.
        total_ms: prefill and the rest of the answer.
        prefill_bound, decode_bound: ``compute`` or ``memory``: what takes the larger part of the time.
        prefill_ms_by_class, decode_ms_by_class: per operation class.
        memory_bytes: weights and the largest KV cache.
        fits: they fit in the device's memory.
    """

    hardware: str
    prefill_ms: float
    decode_ms: float
    total_ms: float
    prefill_bound: str
    decode_bound: str
    prefill_ms_by_class: dict[str, float]
    decode_ms_by_class: dict[str, float]
    memory_bytes: int
    fits: bool
    estimate: bool = True


def latency(cost: Cost, hardware: Hardware) -> Latency:
    """Estimate the time of a cost on a device.

    Args:
        cost: under `causal` (what a causal kernel executes) or `exact`.
        hardware: a row, see `planner.cost.hardware`.
    """
    spec, workload = cost.spec, cost.workload
    weights = weight_bytes(spec, workload, workload.batch * workload.prompt_tokens)
    prefill = {name: (cost.prefill[name], weights.get(name, 0)) for name in CLASSES}
    prefill["attention_scores"] = (cost.prefill["attention_scores"], cost.kv_cache_bytes)
    middle = (workload.output_tokens - 1) // 2
    step_weights = weight_bytes(spec, workload, workload.batch)
    decode = {
        name: (workload.batch * cost.decode[name], step_weights.get(name, 0))
        for name in CLASSES
        if name not in ("vision", "projector")
    }
    added = workload.batch * (cost.decode_flops_at(middle) - cost.decode_flops_at(0))
    scores, _ = decode["attention_scores"]
    decode["attention_scores"] = (scores + added, cost.kv_cache_bytes_after(middle))
    prefill_ms, decode_ms = roofline(prefill, hardware), roofline(decode, hardware)
    overhead_ms = spec.layers * hardware.overhead_us / 1000
    first, step = sum(prefill_ms.values()) + overhead_ms, sum(decode_ms.values()) + overhead_ms
    held = sum(weights_stored(spec, workload).values()) + cost.kv_cache_bytes_after(workload.output_tokens - 1)
    return Latency(
        hardware=hardware.name,
        prefill_ms=first,
        decode_ms=step,
        total_ms=first + step * (workload.output_tokens - 1),
        prefill_bound=bound(prefill, hardware),
        decode_bound=bound(decode, hardware),
        prefill_ms_by_class=prefill_ms,
        decode_ms_by_class=decode_ms,
        memory_bytes=held,
        fits=held <= hardware.memory_gb * 1e9,
    )


def compute_ms(name: str, flops: Number, hardware: Hardware) -> Number:
    """Milliseconds of a class at the compute roof."""
    reached = hardware.efficiency.attention if name in _ATTENTION else hardware.efficiency.matmul
    return flops / (hardware.peak_tflops * reached * 1e9)


def memory_ms(read_bytes: Number, hardware: Hardware) -> Number:
    """Milliseconds of reading bytes at the bandwidth roof."""
    return read_bytes / (hardware.bandwidth_gbs * hardware.efficiency.memory * 1e6)


def roofline(work: dict[str, tuple[Number, Number]], hardware: Hardware) -> dict[str, Number]:
    """Milliseconds per class from its FLOPs and bytes; arrays in, arrays out."""
    times = {}
    for name, (flops, read_bytes) in work.items():
        computing, reading = compute_ms(name, flops, hardware), memory_ms(read_bytes, hardware)
        times[name] = _larger(computing, reading)
    return times


def bound(work: dict[str, tuple[Number, Number]], hardware: Hardware) -> str:
    """Which roof takes the larger part of the time."""
    spent = {"compute": 0.0, "memory": 0.0}
    for name, (flops, read_bytes) in work.items():
        computing, reading = compute_ms(name, flops, hardware), memory_ms(read_bytes, hardware)
        spent["compute" if computing >= reading else "memory"] += max(computing, reading)
    return max(spent, key=lambda roof: spent[roof])


def weight_bytes(spec: ModelSpec, workload: Workload, tokens: int) -> dict[str, int]:
    """Bytes of weights read by a step of `tokens` rows, by class: of experts, no more than the rows can reach."""
    stored = weights_stored(spec, workload)
    idle = 0
    for layer, prefix in spec.decoder.kinds:
        ffn = layer.ffn
        idle += prefix[-1] * (ffn.experts - min(ffn.experts, tokens * ffn.experts_run)) * ffn.expert_macs
    return {**stored, "ffn": stored["ffn"] - _bytes(idle, workload)}


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
    return {name: _bytes(count, workload) for name, count in elements.items()}


def _bytes(elements: int, workload: Workload) -> int:
    return -(-elements * workload.weight_bits // 8)


def _larger(one: Number, other: Number) -> Number:
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return max(one, other)
    import numpy as np

    return np.maximum(one, other)
