"""Latency as a roofline model of each layer: an estimate, never a measurement, and labelled as one.

A layer reads all its weights however few rows it runs (`planner.cost.machine`), so fewer FLOPs do not mean
proportionally less time: a layer of 10 rows is bound by reading, and so is the decode step of a small batch, whatever
was pruned. Overhead of layers and steps comes on top, or decides where the device waits for the host.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.cost.conventions import CONVENTIONS
from planner.cost.flops import Cost, cells_of, sight_flops
from planner.cost.hardware import Hardware
from planner.cost.machine import Machine
from planner.cost.memory import Memory, memory


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
        memory: what it takes of each device, and whether that fits.
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
    memory: Memory
    estimate: bool = True


def latency(cost: Cost, hardware: Hardware, eager: bool = False) -> Latency:
    """Estimate the time of a cost on a device, under the engine that its row names.

    Args:
        cost: under `causal` (what a causal kernel executes) or `exact`.
        hardware: a row, see `planner.cost.hardware`.
        eager: attention weights are written out, which takes memory.
    """
    machine = Machine(hardware)
    workload, rule = cost.workload, CONVENTIONS[cost.convention]
    spec = machine.engine.executed(cost.spec)
    cells, counted = cost.cells, cost.prefill
    if spec is not cost.spec:
        cells = cells_of(spec, cost.segments)
        counted = counted | {"vision": sight_flops(spec, workload, cost.schedule)[0]}
    vision, prefill = machine.prefill(spec, workload, cells, rule, counted, cost.generic)
    step = machine.decode(spec, workload, cells, (workload.output_tokens - 1) // 2)
    vision_ms, prefill_ms, decode_ms = machine.ms(vision), machine.ms(prefill), machine.ms(step)
    return Latency(
        hardware=hardware.name,
        engine=machine.engine.name,
        prefill_ms=vision_ms + prefill_ms,
        vision_ms=vision_ms,
        decode_ms=decode_ms,
        total_ms=vision_ms + prefill_ms + decode_ms * (workload.output_tokens - 1),
        prefill_bound=machine.bound(vision, prefill),
        decode_bound=machine.bound(step),
        prefill_ms_by_class=vision.ms_by_class | prefill.ms_by_class,
        decode_ms_by_class=step.ms_by_class,
        memory=memory(cost, hardware, eager),
    )
