"""Latency as a roofline model of each layer: an estimate, never a measurement, and labelled as one.

Every class of operations in every decoder layer computes its FLOPs and reads its bytes, each at the share of the
device's peak that is reached (`planner.cost.constants`). A layer reads all its weights however few rows it runs, so
fewer FLOPs do not mean proportionally less time: a layer of 10 rows is bound by reading, and so is the decode step of
a small batch, whatever was pruned. Overhead of layers and steps comes on top, or decides where the device waits for
the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from planner.cost import formulas
from planner.cost.conventions import CONVENTIONS, Convention
from planner.cost.engine import Engine, absorbed, engine
from planner.cost.flops import Cell, Cost, cells_of
from planner.cost.hardware import Hardware
from planner.cost.memory import held_bytes, reached_experts
from planner.cost.selector import Number
from planner.cost.staircase import Segment
from planner.cost.vision import vision_flops
from planner.spec.facts import LayerSpec, ModelSpec
from planner.workload import Workload

#: Classes of operations; attention reads the cache, the others read weights.
CLASSES = (
    "vision", "projector", "attention_projections", "attention_scores", "ffn", "elementwise", "lm_head", "selector"
)  # fmt: skip


@dataclass(frozen=True)
class Latency:
    """An estimate.

    Attributes:
        hardware, engine: names.
        prefill_ms: time to the first token.
        vision_ms: of that, tower and projector.
        decode_ms: per further token, at the middle of the answer, for the whole batch in step.
        total_ms: prefill and the rest of the answer.
        prefill_bound, decode_bound: ``compute`` or ``memory``: what takes the larger part of the device's time; or
            ``overhead``, where the device waits for the host most of the time.
        prefill_ms_by_class, decode_ms_by_class: the device's time per class, without overhead.
        memory_bytes: weights and the largest KV cache.
        fits: they fit in the device's memory.
    """

    hardware: str
    engine: str
    prefill_ms: float
    vision_ms: float
    decode_ms: float
    total_ms: float
    prefill_bound: str
    decode_bound: str
    prefill_ms_by_class: dict[str, float]
    decode_ms_by_class: dict[str, float]
    memory_bytes: int
    fits: bool
    estimate: bool = True


def latency(cost: Cost, hardware: Hardware, with_engine: Engine | None = None) -> Latency:
    """Estimate the time of a cost on a device.

    Args:
        cost: under `causal` (what a causal kernel executes) or `exact`.
        hardware: a row, see `planner.cost.hardware`.
        with_engine: what runs the model, see `planner.cost.engine`; transformers by default.
    """
    runs = with_engine or engine("hf")
    workload, rule = cost.workload, CONVENTIONS[cost.convention]
    spec = runs.executed(cost.spec)
    cells = cost.cells if spec is cost.spec else cells_of(spec, cost.segments)
    machine = Machine(hardware, runs)
    vision, prefill = machine.prefill(spec, workload, cells, rule, cost.prefill, cost.generic)
    step = machine.decode(spec, workload, cells, (workload.output_tokens - 1) // 2)
    vision_ms, prefill_ms, decode_ms = machine.ms(vision), machine.ms(prefill), machine.ms(step)
    held = held_bytes(cost)
    return Latency(
        hardware=hardware.name,
        engine=runs.name,
        prefill_ms=vision_ms + prefill_ms,
        vision_ms=vision_ms,
        decode_ms=decode_ms,
        total_ms=vision_ms + prefill_ms + decode_ms * (workload.output_tokens - 1),
        prefill_bound=machine.bound(vision, prefill),
        decode_bound=machine.bound(step),
        prefill_ms_by_class=vision.ms_by_class | prefill.ms_by_class,
        decode_ms_by_class=step.ms_by_class,
        memory_bytes=held,
        fits=held <= hardware.memory_gb * 1e9,
    )


class Step(NamedTuple):
    """A tower's pass, or the decoder's.

    Attributes:
        ms_by_class: the device's time.
        computing_ms, reading_ms: what it consists of; where they overlap their sum is more.
        overhead_ms: the host's time.
    """

    ms_by_class: dict[str, Number]
    computing_ms: Number
    reading_ms: Number
    overhead_ms: Number


class Machine:
    """A device with an engine: from work to time. Numbers in, numbers out; arrays in, arrays out."""

    def __init__(self, hardware: Hardware, runs: Engine) -> None:
        self.constants = runs.reached(hardware)
        self.serving = runs.serving
        self.matmul_flops_per_ms = hardware.peak_tflops * self.constants.matmul * 1e9
        self.attention_flops_per_ms = hardware.peak_tflops * self.constants.attention * 1e9
        self.bytes_per_ms = hardware.bandwidth_gbs * self.constants.memory * 1e6
        #: What a byte of elementwise work takes of reading a byte of weights.
        self.elementwise = self.constants.memory / self.constants.elementwise

    def prefill(
        self,
        spec: ModelSpec,
        workload: Workload,
        cells: Sequence[Cell],
        rule: Convention,
        counted: dict[str, Number],
        generic: bool = False,
    ) -> tuple[Step, Step]:
        """The tower's pass and the decoder's, until the first token.

        Args:
            spec: as the engine executes it, and so the `cells`.
            rule: how attention pairs are counted.
            counted: FLOPs by component as transformers executes them, whole batch; those of the decoder layers are
                counted anew.
            generic: as in `cost`.
        """
        batch, constants, decoder = workload.batch, self.constants, spec.decoder
        work = _Work(self)
        for segment, layer, layers in cells:
            macs = formulas.layer_macs(rule, layer, segment, decoder, generic)
            times = layers * (2 * batch)
            twice = _second_pass(segment)
            projected, fed = _layer_elements(layer, batch * segment.rows, twice)
            cached = formulas.cached_elements(layer, segment, decoder) * batch * workload.kv_bits / 8
            work.overhead_us = work.overhead_us + layers * (1 + twice) * constants.layer_us
            work.add("attention_projections", times * macs[0], layers * _bytes(projected, workload))
            work.add("attention_scores", times * macs[1], layers * cached)
            work.add("ffn", times * macs[2], layers * _bytes(fed, workload))
            passed = layers * batch * _rows_run(segment) * _touched(layer, decoder.hidden_size)
            work.add("elementwise", 0.0, passed * workload.kv_bits / 8 * self.elementwise)
        work.add("lm_head", counted["lm_head"], _bytes(decoder.head_macs, workload))
        work.add("selector", counted["selector"], 0)
        seen = _Work(self)
        tower, projector = spec.vision, spec.projector
        if counted["vision"] and tower is not None and projector is not None:
            flops = counted["vision"]
            if self.serving:
                flops = vision_flops(spec, workload.images, workload.visual_tokens, batch, ranks=False)[0]
            stored = sum(block.repeat * block.macs for block in tower.blocks)
            seen.add("vision", flops, _bytes(stored, workload))
            seen.add("projector", counted["projector"], _bytes(projector.macs + projector.patch_macs, workload))
            seen.overhead_us = constants.tower_layer_us * sum(block.repeat for block in tower.blocks)
        work.overhead_us = work.overhead_us + constants.step_us
        return seen.step(), work.step()

    def decode(self, spec: ModelSpec, workload: Workload, cells: Sequence[Cell], ahead: int) -> Step:
        """One decode step of the whole batch, `ahead` generated tokens after the prompt."""
        batch, decoder = workload.batch, spec.decoder
        work = _Work(self)
        for segment, stored, layers in cells:
            layer = absorbed(stored) if self.serving else stored
            macs = formulas.decode_macs(layer, segment, decoder, ahead)
            times = layers * (2 * batch)
            projected, fed = _layer_elements(layer, batch, 0)
            cached = formulas.cached_elements(layer, segment, decoder, ahead) * batch * workload.kv_bits / 8
            work.add("attention_projections", times * macs[0], layers * _bytes(projected, workload))
            work.add("attention_scores", times * macs[1], layers * cached)
            work.add("ffn", times * macs[2], layers * _bytes(fed, workload))
            passed = layers * batch * _touched(layer, decoder.hidden_size)
            work.add("elementwise", 0.0, passed * workload.kv_bits / 8 * self.elementwise)
            work.add("selector", times * macs[3], 0)
        work.add("lm_head", 2 * batch * decoder.head_macs, _bytes(decoder.head_macs, workload))
        work.overhead_us = self.constants.layer_us * spec.layers + self.constants.step_us
        return work.step()

    def ms(self, step: Step) -> Number:
        """Time of a step: the device's and the host's, side by side or one after the other."""
        device = sum(step.ms_by_class.values())
        if not self.constants.asynchronous:
            return device + step.overhead_ms
        return device + step.overhead_ms - formulas.least(device, step.overhead_ms)

    def bound(self, *steps: Step) -> str:
        """What takes the larger part of the time."""
        device = sum(sum(step.ms_by_class.values()) for step in steps)
        if sum(step.overhead_ms for step in steps) > device:
            return "overhead"
        computing = sum(step.computing_ms for step in steps)
        return "compute" if computing >= sum(step.reading_ms for step in steps) else "memory"


class _Work:
    """Work of a step as it adds up."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.ms_by_class: dict[str, Number] = {}
        self.computing_ms: Number = 0.0
        self.reading_ms: Number = 0.0
        self.overhead_us: Number = 0.0

    def add(self, name: str, flops: Number, read_bytes: Number) -> None:
        machine = self.machine
        attends = name in ("attention_scores", "selector")
        computing = flops / (machine.attention_flops_per_ms if attends else machine.matmul_flops_per_ms)
        reading = read_bytes / machine.bytes_per_ms
        hidden = machine.constants.overlap * formulas.least(computing, reading)
        self.ms_by_class[name] = self.ms_by_class.get(name, 0.0) + computing + reading - hidden
        self.computing_ms = self.computing_ms + computing
        self.reading_ms = self.reading_ms + reading

    def step(self) -> Step:
        return Step(self.ms_by_class, self.computing_ms, self.reading_ms, self.overhead_us / 1000)


def _second_pass(segment: Segment) -> Number:
    """Isolated visual rows pass a layer apart from the text, and read its weights a second time."""
    return 1 * (segment.visual > 0) if segment.alone and not segment.streamed else 0


def _rows_run(segment: Segment) -> Number:
    """Rows that pass a layer, whatever they see there."""
    return segment.system + segment.text if segment.streamed else segment.rows


def _touched(layer: LayerSpec, hidden: int) -> float:
    """Elements that elementwise work reads and writes per row, one operation after the other.

    Two norms (2 each of the hidden size) and two residual sums (3 each); rotary embedding of queries and keys (two
    products, a rotation and a sum: 10); of the feed-forward's inner size the activation (2) and the product with the
    gate (3).
    """
    attention, ffn = layer.attention, layer.ffn
    turned = attention.heads * attention.head_dim + attention.key_macs / hidden
    return 10 * hidden + 10 * turned + 5 * ffn.macs / (3 * hidden)


def _layer_elements(layer: LayerSpec, rows: Number, twice: Number) -> tuple[Number, Number]:
    """Weights that a layer reads for `rows` rows: attention, feed-forward."""
    attention, ffn = layer.attention, layer.ffn
    projected = attention.projection_macs + twice * (attention.value_macs + attention.output_macs)
    experts = reached_experts(ffn, rows) * ffn.expert_macs if ffn.experts else 0
    return projected, (1 + twice) * ffn.dense_macs + experts


def _bytes(elements: Number, workload: Workload) -> Number:
    return elements * workload.weight_bits / 8
