"""Does it fit: bytes of weights, cache and activations on each device, and the largest batch.

Not counted: norms and biases (below 0.1 % of the weights), and what the driver and the allocator keep for themselves.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from planner.cost.flops import Cost
from planner.cost.hardware import Hardware
from planner.cost.parallel import Parallel
from planner.cost.selector import Number
from planner.errors import UnsupportedModelError
from planner.spec.facts import FeedForward, ModelSpec
from planner.workload import Workload

#: Batches beyond this are not looked for.
LARGEST_BATCH = 1 << 16
#: Bits of a weight that is not quantised, which a workload has by default.
FULL_BITS = 16
#: Classes whose weights a quantised checkpoint stores in fewer bits.
_QUANTISED = ("attention_projections", "ffn", "experts")


@dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Attributes:
        weights: all matrices, the input embedding among them.
        kv_cache: at the end of the answer.
        activations: at most, during the prefill, logits included.
        available: the device's memory.
        largest_batch: of such requests that fits beside the weights; 0 where not even one does.
    """

    weights: int
    kv_cache: int
    activations: int
    available: int
    largest_batch: int

    @property
    def total(self) -> int:
        """Weights, cache and activations."""
        return self.weights + self.kv_cache + self.activations

    @property
    def fits(self) -> bool:
        """All of it."""
        return self.total <= self.available


def memory(cost: Cost, hardware: Hardware, eager: bool = False) -> Memory:
    """What a request, or a batch of them, takes of each device.

    Args:
        eager: attention weights are written out, as kernels other than fused ones do.
    """
    spec, workload, parallel = cost.spec, cost.workload, hardware.parallel
    weights = device_weights(spec, workload, parallel)
    cached = cost.kv_cache_bytes_after(workload.output_tokens - 1)
    # Latents are one head's worth: every device holds them whole.
    heads = max(1 if layer.attention.expand_macs else layer.attention.kv_heads for layer, _ in spec.decoder.kinds)
    kv_cache = -(-cached // (min(parallel.tp, heads) * parallel.pp))
    active = activation_bytes(cost, eager) // parallel.tp
    available = int(hardware.memory_gb * 1e9)
    each = (kv_cache + active) / workload.batch
    room = int((available - weights) / each) if each else LARGEST_BATCH
    return Memory(weights, kv_cache, active, available, max(0, min(room, LARGEST_BATCH)))


def device_weights(spec: ModelSpec, workload: Workload, parallel: Parallel) -> int:
    """Bytes of weights on the fullest device of a group."""
    stored = weights_stored(spec, workload)
    experts = stored.pop("experts")
    layers = stored["attention_projections"] + stored["ffn"]
    rest = sum(stored.values()) - layers
    cut = layers / parallel.tp + experts / parallel.expert_shares
    return round(cut / parallel.pp + rest / parallel.tp)


def weights_stored(spec: ModelSpec, workload: Workload) -> dict[str, int]:
    """Bytes of all matrices, by class; `experts` are the routed ones, `ffn` the rest of the feed-forward."""
    layers = layer_bits(spec, workload)
    return {
        name: round(count * layers / 8) if name in _QUANTISED else -(-count * workload.weight_bits // 8)
        for name, count in _elements(spec).items()
    }


@functools.lru_cache(maxsize=64)
def _elements(spec: ModelSpec) -> dict[str, int]:
    kinds = [(layer.attention, layer.ffn, prefix[-1]) for layer, prefix in spec.decoder.kinds]
    elements = {
        "embedding": spec.storage.looked_up + (0 if spec.storage.tied else spec.decoder.head_macs),
        "lm_head": spec.decoder.head_macs,
        "attention_projections": sum(count * attention.projection_macs for attention, _, count in kinds),
        "ffn": sum(count * ffn.dense_macs for _, ffn, count in kinds),
        "experts": sum(count * ffn.experts * (ffn.expert_macs + ffn.visual_expert_macs) for _, ffn, count in kinds),
        "vision": 0,
        "projector": 0,
    }
    if spec.vision is not None and spec.projector is not None:
        elements["vision"] = spec.vision.patch_macs + sum(block.repeat * block.macs for block in spec.vision.layers)
        elements["projector"] = spec.projector.macs + spec.projector.patch_macs
    return elements


def layer_bits(spec: ModelSpec, workload: Workload) -> float:
    """Bits per weight of the decoder's layers: as the checkpoint stores them, unless the workload asks for fewer.

    Raises:
        UnsupportedModelError: the checkpoint is quantised in a way that is not known, and the workload does not say.
    """
    stored = spec.storage.layer_bits
    if stored is None and workload.weight_bits == FULL_BITS:
        raise UnsupportedModelError(
            f"the quantization_config of {spec.name or spec.family} ({spec.storage.quantization}) does not say how "
            "many bits a weight takes, and they are not guessed",
            "Give --weight-bits",
        )
    return min(stored, float(workload.weight_bits)) if stored else float(workload.weight_bits)


def activation_bytes(cost: Cost, eager: bool = False) -> int:
    """The most that activations take at a time during a prefill, whole batch: one layer's, and the logits.

    Beside the residual stream and its norm stand either queries, keys, values and the attention's output, or the gate,
    the other half of the feed-forward and their product. Logits are computed on the last position, and once more in
    float32.
    """
    spec, workload, hidden = cost.spec, cost.workload, cost.spec.hidden_size
    size, most = workload.kv_bits / 8, 0.0
    for segment, layer, _ in cost.cells:
        attention, ffn = layer.attention, layer.ffn
        asked = 2 * attention.heads * attention.head_dim + (attention.key_macs + attention.value_macs) / hidden
        run = ffn.dense_macs + ffn.experts_run * ffn.expert_macs
        rows = float(segment.rows)
        held = rows * (2 * hidden + max(asked, run / hidden)) * size
        if eager:
            held += attention.heads * rows * rows * (4 + 2 * size)
        most = max(most, held)
    logits = spec.decoder.vocab_size * (size + 4)
    return round(workload.batch * (most + logits))


def reached_experts(ffn: FeedForward, rows: Number) -> Number:
    """Distinct routed experts that `rows` rows are expected to reach, if each row draws its own at random."""
    missed = (1 - ffn.experts_run / ffn.experts) ** rows
    return ffn.experts * (1 - missed)
