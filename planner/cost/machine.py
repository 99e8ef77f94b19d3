"""A device with its engine: from the work of a step to its time.

Every class of operations in every decoder layer computes its FLOPs and reads its bytes, each at the share of the
device's peak that is reached (`planner.cost.constants`). A layer reads all its weights however few rows it runs.
Numbers in, numbers out; arrays, with an entry per schedule, in, arrays out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from planner.cost import formulas
from planner.cost.conventions import Convention
from planner.cost.engine import absorbed, engine
from planner.cost.flops import Cell
from planner.cost.hardware import Hardware
from planner.cost.memory import layer_bits, reached_experts
from planner.cost.selector import Number
from planner.cost.staircase import Segment
from planner.errors import InputError
from planner.spec.facts import LayerSpec, ModelSpec
from planner.workload import Workload

#: Classes of operations; attention reads the cache, the others read weights.
CLASSES = (
    "vision", "projector", "attention_projections", "attention_scores", "ffn", "elementwise", "lm_head", "selector",
    "communication",
)  # fmt: skip


class Part(NamedTuple):
    """Equal layers, or something beside them: how often, and milliseconds of each class, computing and reading."""

    times: Number
    ms_by_class: dict[str, Number]
    computing_ms: Number
    reading_ms: Number


@dataclass(frozen=True)
class Step:
    """A tower's pass, or the decoder's.

    Attributes:
        parts: what the device does.
        overhead_ms: the host's time.
    """

    parts: tuple[Part, ...]
    overhead_ms: Number

    @property
    def device_ms(self) -> Number:
        """All parts."""
        return sum(part.times * sum(part.ms_by_class.values()) for part in self.parts)

    @property
    def ms_by_class(self) -> dict[str, Number]:
        """The device's time per class."""
        found: dict[str, Number] = {}
        for part in self.parts:
            for name, ms in part.ms_by_class.items():
                found[name] = found.get(name, 0.0) + part.times * ms
        return found

    def without(self, name: str) -> Step:
        """The same step but for a class."""
        parts = (
            part._replace(ms_by_class={key: ms for key, ms in part.ms_by_class.items() if key != name})
            for part in self.parts
        )
        return Step(tuple(parts), self.overhead_ms)


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
            counted: FLOPs by component, whole batch; those of the decoder layers are counted anew.
            generic: as in `cost`.
        """
        batch, constants, decoder = workload.batch, self.constants, spec.decoder
        work = _Work(self, spec, workload)
        for segment, layer, layers in cells:
            macs = formulas.layer_macs(rule, layer, segment, decoder, generic)
            twice = _second_pass(segment)
            # What the cache forgets afterwards is read here all the same.
            whole = segment.alone or segment.cached_visual is segment.visual
            seen = segment if whole else segment._replace(cached_visual=segment.visual)
            cached = formulas.cached_elements(layer, seen, decoder)
            work.add_layers(layer, layers, macs, batch * _rows_run(segment), cached, twice, segment.prefix)
            work.overhead_us = work.overhead_us + layers * (1 + twice) * constants.layer_us
        work.add("lm_head", counted["lm_head"], decoder.head_macs * workload.weight_bits / 8)
        work.add("selector", counted["selector"], 0)
        work.hand_over(batch * workload.prompt_tokens)
        work.overhead_us = work.overhead_us + constants.step_us
        return self._sight(spec, workload, counted), work.step()

    def _sight(self, spec: ModelSpec, workload: Workload, counted: dict[str, Number]) -> Step:
        """Tower and projector."""
        work = _Work(self, spec, workload)
        tower, projector = spec.vision, spec.projector
        if counted["vision"] and tower is not None and projector is not None:
            stored = sum(block.repeat * block.macs for block in tower.layers)
            size = workload.weight_bits / 8
            work.add("vision", counted["vision"], stored * size)
            work.add("projector", counted["projector"], (projector.macs + projector.patch_macs) * size)
            work.overhead_us = self.constants.tower_layer_us * sum(block.repeat for block in tower.layers)
        return work.step()

    def decode(self, spec: ModelSpec, workload: Workload, cells: Sequence[Cell], ahead: int) -> Step:
        """One decode step of the whole batch, `ahead` generated tokens after the prompt."""
        batch, decoder = workload.batch, spec.decoder
        work = _Work(self, spec, workload)
        for segment, layer, layers in cells:
            macs = formulas.decode_macs(absorbed(layer) if self.engine.serving else layer, segment, decoder, ahead)
            work.add_layers(layer, layers, macs, batch, macs[4])
            work.add("selector", layers * (2 * batch) * macs[3], 0)
        work.add("lm_head", 2 * batch * decoder.head_macs, decoder.head_macs * workload.weight_bits / 8)
        work.hand_over(batch)
        work.overhead_us = self.constants.layer_us * spec.layers + self.constants.step_us
        return work.step()

    def ms(self, step: Step) -> Number:
        """Time of a step: the device's and the host's, side by side or one after the other."""
        device = step.device_ms
        if not self.asynchronous:
            return device + step.overhead_ms
        return device + step.overhead_ms - formulas.least(device, step.overhead_ms)

    def bound(self, *steps: Step) -> str:
        """What takes the larger part of the time."""
        if sum(step.overhead_ms for step in steps) > sum(step.device_ms for step in steps):
            return "overhead"
        parts = [part for step in steps for part in step.parts]
        computing = sum(part.times * part.computing_ms for part in parts)
        return "compute" if computing >= sum(part.times * part.reading_ms for part in parts) else "memory"


class _Work:
    """Work of a step as it adds up, on each of the devices that share it."""

    def __init__(self, machine: Machine, spec: ModelSpec, workload: Workload) -> None:
        self.machine, self.spec, self.workload = machine, spec, workload
        self.layer_size = layer_bits(spec, workload) / 8
        self.value_size = workload.kv_bits / 8
        #: A row's hidden state.
        self.row_bytes = spec.hidden_size * self.value_size
        self.parts: list[Part] = []
        self.overhead_us: Number = 0.0

    def add_layers(
        self,
        layer: LayerSpec,
        layers: Number,
        macs: Sequence[Number],
        rows: Number,
        cached: Number,
        twice: Number = 0,
        asks: bool = False,
    ) -> None:
        """Equal decoder layers.

        Args:
            macs: of one layer and request: projections, scores, feed-forward.
            rows: that run, whole batch.
            cached: elements cached per request.
            twice: 1 where isolated rows read the weights a second time.
            asks: those rows have queries and keys too.
        """
        machine, attention, ffn, batch = self.machine, layer.attention, layer.ffn, self.workload.batch
        flops = [2 * batch * one for one in macs[:3]]
        again = attention.projection_macs if asks else attention.value_macs + attention.output_macs
        projected = attention.projection_macs + twice * again
        work = [
            ("attention_projections", flops[0], projected * self.layer_size, machine.parallel.tp),
            ("attention_scores", flops[1], cached * (batch * self.value_size), machine.parallel.tp),
        ]
        fed = (1 + twice) * (ffn.dense_macs * self.layer_size)
        waits: Number = 0.0
        if ffn.experts:
            routed = ffn.experts_run * ffn.expert_macs / ffn.macs
            read = reached_experts(ffn, rows) * (ffn.expert_macs * self.layer_size)
            work.append(("ffn", flops[2] * (1 - routed), fed, machine.parallel.tp))
            work.append(("ffn", flops[2] * routed, read, machine.parallel.expert_shares))
        else:
            work.append(("ffn", flops[2], fed, machine.parallel.tp))
        touched = rows * (_touched(layer, self.spec.hidden_size) * self.value_size * machine.elementwise)
        work.append(("elementwise", 0.0, touched, machine.parallel.tp))
        if machine.parallel.devices > 1:
            sent = rows * self.row_bytes
            waits = 2 * machine.parallel.all_reduce_ms(sent, machine.link_bytes_per_ms)
            if ffn.experts:
                waits = waits + 2 * machine.parallel.all_to_all_ms(sent * ffn.experts_run, machine.link_bytes_per_ms)
        self._add(layers, work, waits)

    def add(self, name: str, flops: Number, read_bytes: Number) -> None:
        """Work beside the layers."""
        self._add(1, [(name, flops, read_bytes, self.machine.parallel.tp)])

    def _add(self, times: Number, work: Sequence[tuple[str, Number, Number, int]], waits: Number = 0.0) -> None:
        """Name, FLOPs, bytes and devices that share them, `times` as often; and what is waited for others."""
        machine = self.machine
        ms_by_class: dict[str, Number] = {}
        computing_ms: Number = 0.0
        reading_ms: Number = 0.0
        for name, flops, read_bytes, shares in work:
            attends = name in ("attention_scores", "selector")
            rate = machine.attention_flops_per_ms if attends else machine.matmul_flops_per_ms
            computing, reading = flops / (rate * shares), read_bytes / (machine.bytes_per_ms * shares)
            ms = computing + reading - machine.constants.overlap * formulas.least(computing, reading)
            ms_by_class[name] = ms_by_class[name] + ms if name in ms_by_class else ms
            computing_ms, reading_ms = computing_ms + computing, reading_ms + reading
        if machine.parallel.devices > 1:
            ms_by_class["communication"] = waits
        self.parts.append(Part(times, ms_by_class, computing_ms, reading_ms))

    def hand_over(self, rows: int) -> None:
        """Rows pass from stage to stage of a pipeline."""
        if self.machine.parallel.pp > 1:
            ms = self.machine.parallel.hand_over_ms(rows * self.row_bytes, self.machine.link_bytes_per_ms)
            self.parts.append(Part(1, {"communication": ms}, 0.0, 0.0))

    def step(self) -> Step:
        return Step(tuple(self.parts), self.overhead_us / 1000)


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
