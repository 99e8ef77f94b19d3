"""Fit a hardware row to times measured on a device: the rates it reaches instead of those of its data sheet.

Nothing is assumed beyond `planner.cost.roofline` itself: the constants are those under which its predictions come
nearest to the measured times, in the mean square of relative errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from planner.cost.constants import Constants
from planner.cost.conventions import CONVENTIONS
from planner.cost.flops import Cost, cost
from planner.cost.hardware import Hardware
from planner.cost.machine import Machine
from planner.errors import InputError
from planner.schedule import dense
from planner.spec.facts import ModelSpec
from planner.workload import Workload

#: ``products``: the matrix products of all decoder layers and nothing else; ``attention``: their attention kernels;
#: ``decoder``: the text tower without its head; ``model``: a whole prefill.
Phase = Literal["products", "attention", "decoder", "model"]
#: What is measured of a text-only prompt.
ROW_PHASES: tuple[Phase, ...] = ("products", "attention", "decoder")
_MATRICES = ("attention_projections", "ffn")


@dataclass(frozen=True)
class Timing:
    """One measured phase of a prefill, in milliseconds."""

    cost: Cost
    phase: Phase
    ms: float


def predicted_ms(of: Cost, phase: Phase, hardware: Hardware) -> float:
    """What the roofline says of a phase; the engine is transformers."""
    machine = Machine(hardware)
    rule = CONVENTIONS[of.convention]
    vision, decoder = machine.prefill(of.spec, of.workload, of.cells, rule, of.prefill, of.generic)
    if phase == "attention":
        return float(decoder.ms_by_class["attention_scores"])
    if phase == "products":
        return float(sum(decoder.ms_by_class[name] for name in _MATRICES))
    if phase == "model":
        return float(machine.ms(vision) + machine.ms(decoder))
    return float(machine.ms(decoder.without("lm_head")))


def row_timings(spec: ModelSpec, bits: int, found: Iterable[tuple[int, float, float, float]]) -> list[Timing]:
    """Timings of text-only prompts: rows, milliseconds of the matrix products, of attention and of the whole decoder.

    Args:
        bits: of a weight.
    """
    timings = []
    for rows, *times in found:
        prompt = Workload(visual_tokens=0, text_tokens=rows, system_tokens=0, weight_bits=bits, kv_bits=bits)
        of = cost(spec, prompt, dense(spec.layers), "causal")
        timings += [Timing(of, phase, ms) for phase, ms in zip(ROW_PHASES, times, strict=True)]
    return timings


class _Found(NamedTuple):
    """Milliseconds per FLOP and byte, in which times are nearly linear; overheads in microseconds."""

    matmul_flop: float
    attention_flop: float
    byte: float
    elementwise_byte: float
    layer_us: float
    tower_layer_us: float
    overlap: float = 0.0


def fit(
    timings: Sequence[Timing],
    *,
    name: str,
    dtype: str,
    memory_gb: float,
    source: str,
    asynchronous: bool,
    known: Hardware | None = None,
) -> Hardware:
    """A hardware row under which the roofline gives the measured times, as nearly as it can.

    Args:
        timings: of at least two numbers of rows, and matrix products and attention alone among them: without these,
            reading weights, elementwise work and overhead cannot be told apart.
        asynchronous: the device works while the host prepares (a GPU); on a CPU one follows the other, and so do
            computing and reading.
        known: a row with the device's data-sheet peaks; constants are then shares of them, else the reached figures
            become the peaks.

    Raises:
        InputError: the measured times do not grow with the work.
    """
    from scipy.optimize import least_squares

    products = [timing for timing in timings if timing.phase == "products"]
    if len({timing.cost.prefill_flops for timing in products}) < 2 or not _grows(products):
        raise InputError(
            "the measured times do not grow with the work, so no hardware row can be fitted",
            "Measure a larger model or prompt, with more --rounds, on an idle machine",
        )
    guess = _guess(products)

    def row_of(multiples: Sequence[float]) -> Hardware:
        found = _Found(*(one * value for one, value in zip(multiples, guess, strict=False)))
        return _row(found, name, dtype, memory_gb, source, asynchronous, known)

    def errors(multiples: Sequence[float]) -> list[float]:
        row = row_of(multiples)
        return [predicted_ms(timing.cost, timing.phase, row) / timing.ms - 1 for timing in timings]

    count = len(guess) if asynchronous else len(guess) - 1
    low = [1e-3, 1e-3, 1e-3, 1e-3, 0.0, 0.0, 0.0][:count]
    high = [1e3, 1e3, 1e3, 1e3, 1e6, 1e6, 1.0][:count]
    best = least_squares(errors, [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5][:count], bounds=(low, high), x_scale="jac")
    return row_of(best.x)


def _grows(timings: Sequence[Timing]) -> bool:
    ordered = sorted(timings, key=lambda timing: timing.cost.prefill_flops)
    return ordered[-1].ms > ordered[0].ms


def _guess(products: Sequence[Timing]) -> _Found:
    """Magnitudes, from which the search takes multiples."""
    ms_per_flop = min(timing.ms / timing.cost.prefill_flops for timing in products)
    layer_us = 1000 * min(timing.ms for timing in products) / products[0].cost.spec.layers
    return _Found(ms_per_flop, 2 * ms_per_flop, 20 * ms_per_flop, 20 * ms_per_flop, layer_us, layer_us, 1.0)


def _row(
    found: _Found,
    name: str,
    dtype: str,
    memory_gb: float,
    source: str,
    asynchronous: bool,
    known: Hardware | None,
) -> Hardware:
    matmul, attention, gbs = 1e-9 / found.matmul_flop, 1e-9 / found.attention_flop, 1e-6 / found.byte
    elementwise = 1e-6 / found.elementwise_byte
    peak = max(known.peak_tflops, matmul) if known else matmul
    bandwidth = max(known.bandwidth_gbs if known else 0.0, gbs, elementwise)
    return Hardware(
        name=name,
        peak_tflops=peak,
        bandwidth_gbs=bandwidth,
        memory_gb=memory_gb,
        dtype=dtype,
        asynchronous=asynchronous,
        source=source,
        measured=Constants(
            matmul=_share(matmul, peak),
            attention=_share(attention, peak),
            memory=_share(gbs, bandwidth),
            elementwise=_share(elementwise, bandwidth),
            overlap=found.overlap,
            layer_us=found.layer_us,
            tower_layer_us=found.tower_layer_us,
        ),
    )


def _share(reached: float, peak: float) -> float:
    return min(1.0, max(1e-6, reached / peak))
