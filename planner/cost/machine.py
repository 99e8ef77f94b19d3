"""A device with its engine: from the work of a step to its time.

Every class of operations in every decoder layer computes its FLOPs and reads its bytes, each at the share of the
device's peak that is reached (`planner.cost.constants`). A layer reads all its weights however few rows it runs.
Numbers in, numbers out; arrays, with an entry per schedule, in, arrays out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from planner.cost import formulas
from planner.cost.conventions import Convention
from planner.cost.engine import absorbed, engine
from planner.cost.flops import Cell
from planner.cost.hardware import Hardware
from planner.cost.memory import layer_bits, reached_experts
from planner.cost.selector import Number
from planner.cost.staircase import Segment
from planner.cost.vision import vision_flops
from planner.errors import InputError
from planner.spec.facts import LayerSpec, ModelSpec
from planner.workload import Workload

#: Classes of operations; attention reads the cache, the others read weights.
CLASSES = (
    "vision", "projector", "attention_projections", "attention_scores", "ffn", "elementwise", "lm_head", "selector",
    "communication",
)  # fmt: skip


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
    """A device with its engine, or several that share a model.

    Raises:
        InputError: several share it, and the row does not say how fast they reach each other.
    """

    def __init__(self, hardware: Hardware) -> None:
        self.parallel, self.link_bytes_per_ms = hardware.parallel, hardware.link_gbs * 1e6
        if self.parallel.devices > 1 and not self.link_bytes_per_ms:
            raise InputError(
                f"{hardware.name} has no link_gbs, so that what several of it tell each other cannot be timed",
                "Give a hardware row with link_gbs",
            )
        self.engine = engine(hardware.engine)
        self.constants = hardware.measured or self.engine.constants
        self.asynchronous = hardware.asynchronous
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
        work = _Work(self, spec, workload)
        for segment, layer, layers in cells:
            macs = formulas.layer_macs(rule, layer, segment, decoder, generic)
            twice = _second_pass(segment)
            cached = formulas.cached_elements(layer, segment, decoder)
            work.add_layers(layer, layers, macs, batch * _rows_run(segment), cached, twice)
            work.overhead_us = work.overhead_us + layers * (1 + twice) * constants.layer_us
        work.add("lm_head", counted["lm_head"], decoder.head_macs * workload.weight_bits / 8)
        work.add("selector", counted["selector"], 0)
        rows = batch * workload.prompt_tokens
        work.wait(self.parallel.hand_over_ms(rows * work.row_bytes, self.link_bytes_per_ms))
        work.overhead_us = work.overhead_us + constants.step_us
        return self._sight(spec, workload, counted), work.step()

    def _sight(self, spec: ModelSpec, workload: Workload, counted: dict[str, Number]) -> Step:
        """Tower and projector."""
        work = _Work(self, spec, workload)
        tower, projector = spec.vision, spec.projector
        if counted["vision"] and tower is not None and projector is not None:
            flops = counted["vision"]
            if self.engine.serving:
                flops = vision_flops(spec, workload.images, workload.visual_tokens, workload.batch, ranks=False)[0]
            stored = sum(block.repeat * block.macs for block in tower.blocks)
            size = workload.weight_bits / 8
            work.add("vision", flops, stored * size)
            work.add("projector", counted["projector"], (projector.macs + projector.patch_macs) * size)
            work.overhead_us = self.constants.tower_layer_us * sum(block.repeat for block in tower.blocks)
        return work.step()

    def decode(self, spec: ModelSpec, workload: Workload, cells: Sequence[Cell], ahead: int) -> Step:
        """One decode step of the whole batch, `ahead` generated tokens after the prompt."""
        batch, decoder = workload.batch, spec.decoder
        work = _Work(self, spec, workload)
        for segment, stored, layers in cells:
            layer = absorbed(stored) if self.engine.serving else stored
            macs = formulas.decode_macs(layer, segment, decoder, ahead)
            work.add_layers(layer, layers, macs, batch, formulas.cached_elements(layer, segment, decoder, ahead), 0)
            work.add("selector", layers * (2 * batch) * macs[3], 0)
        work.add("lm_head", 2 * batch * decoder.head_macs, decoder.head_macs * workload.weight_bits / 8)
        work.wait(self.parallel.hand_over_ms(batch * work.row_bytes, self.link_bytes_per_ms))
        work.overhead_us = self.constants.layer_us * spec.layers + self.constants.step_us
        return work.step()

    def ms(self, step: Step) -> Number:
        """Time of a step: the device's and the host's, side by side or one after the other."""
        device = sum(step.ms_by_class.values())
        if not self.asynchronous:
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
    """Work of a step as it adds up, on each of the devices that share it."""

    def __init__(self, machine: Machine, spec: ModelSpec, workload: Workload) -> None:
        self.machine, self.spec, self.workload = machine, spec, workload
        self.layer_size = layer_bits(spec, workload) / 8
        self.value_size = workload.kv_bits / 8
        #: A row's hidden state.
        self.row_bytes = spec.hidden_size * self.value_size
        self.ms_by_class: dict[str, Number] = {}
        self.computing_ms: Number = 0.0
        self.reading_ms: Number = 0.0
        self.overhead_us: Number = 0.0

    def add_layers(
        self, layer: LayerSpec, layers: Number, macs: Sequence[Number], rows: Number, cached: Number, twice: Number
    ) -> None:
        """Equal decoder layers.

        Args:
            macs: of one layer and request: projections, scores, feed-forward.
            rows: that run, whole batch.
            cached: elements cached per request.
            twice: 1 where the weights are read a second time.
        """
        attention, ffn, batch = layer.attention, layer.ffn, self.workload.batch
        times = layers * (2 * batch)
        projected = attention.projection_macs + twice * (attention.value_macs + attention.output_macs)
        self.add("attention_projections", times * macs[0], layers * projected * self.layer_size)
        self.add("attention_scores", times * macs[1], layers * cached * batch * self.value_size)
        fed = layers * (1 + twice) * ffn.dense_macs * self.layer_size
        if ffn.experts:
            routed = ffn.experts_run * ffn.expert_macs / ffn.macs
            read = layers * reached_experts(ffn, rows) * ffn.expert_macs * self.layer_size
            self.add("ffn", times * macs[2] * routed, read, self.machine.parallel.expert_shares)
            self.add("ffn", times * macs[2] * (1 - routed), fed)
        else:
            self.add("ffn", times * macs[2], fed)
        machine = self.machine
        touched = layers * rows * _touched(layer, self.spec.hidden_size) * self.value_size
        self.add("elementwise", 0.0, touched * machine.elementwise)
        if machine.parallel.devices > 1:
            sent = rows * self.row_bytes
            waits = 2 * machine.parallel.all_reduce_ms(sent, machine.link_bytes_per_ms)
            if ffn.experts:
                waits = waits + 2 * machine.parallel.all_to_all_ms(sent * ffn.experts_run, machine.link_bytes_per_ms)
            self.wait(layers * waits)

    def add(self, name: str, flops: Number, read_bytes: Number, shares: int = 0) -> None:
        """FLOPs and bytes of a class, over `shares` devices: by default those that cut every matrix."""
        machine = self.machine
        shares = shares or machine.parallel.tp
        attends = name in ("attention_scores", "selector")
        rate = machine.attention_flops_per_ms if attends else machine.matmul_flops_per_ms
        computing, reading = flops / (rate * shares), read_bytes / (machine.bytes_per_ms * shares)
        hidden = machine.constants.overlap * formulas.least(computing, reading)
        self.ms_by_class[name] = self.ms_by_class.get(name, 0.0) + computing + reading - hidden
        self.computing_ms = self.computing_ms + computing
        self.reading_ms = self.reading_ms + reading

    def wait(self, ms: Number) -> None:
        """For what other devices send."""
        if self.machine.parallel.devices > 1:
            self.ms_by_class["communication"] = self.ms_by_class.get("communication", 0.0) + ms

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
