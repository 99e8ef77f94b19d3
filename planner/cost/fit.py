"""Fit a hardware row to times measured on a device: the rates it reaches instead of those of its data sheet.

A prefill is taken as bound by computing, a decode step by reading, and each layer costs a fixed overhead (launches):

    prefill_ms = FLOPs / rate + layers * overhead        decode_ms = bytes / bandwidth + layers * overhead

Rate, bandwidth and overhead are fitted to all measurements together, each weighted by its inverse (relative errors
count), none below zero. Two prefills of different size are needed to tell rate from overhead: dense and planned are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.cost.hardware import Efficiency, Hardware
from planner.errors import InputError


@dataclass(frozen=True)
class Timing:
    """One measured phase: ``flops`` of a prefill or ``read_bytes`` of a decode step (the other is 0), and its time."""

    flops: float
    read_bytes: float
    ms: float


def fit(
    timings: Sequence[Timing],
    *,
    layers: int,
    name: str,
    dtype: str,
    memory_gb: float,
    source: str,
    known: Hardware | None = None,
) -> Hardware:
    """A hardware row under which the roofline gives the measured times, as nearly as it can.

    Args:
        timings: prefills and decode steps.
        layers: decoder layers of the model that was measured.
        known: a row with the device's data-sheet peaks; efficiencies are then shares of them, else the reached figures
            become the peaks.

    Raises:
        InputError: the measurements contradict the model (no part of them grows with FLOPs, or with bytes).
    """
    from scipy.optimize import nnls

    table = np.array([[t.flops / t.ms, t.read_bytes / t.ms, layers / t.ms] for t in timings])
    scale = np.abs(table).max(axis=0)
    (per_flop, per_byte, overhead_ms), _ = nnls(table / scale, np.ones(len(timings)))
    if per_flop == 0 or per_byte == 0:
        raise InputError(
            "the measured times do not grow with the work, so no hardware row can be fitted",
            "Measure a larger model or prompt, with more --rounds, on an idle machine",
        )
    tflops, gbs = scale[0] / per_flop / 1e9, scale[1] / per_byte / 1e6
    peak = max(known.peak_tflops, tflops) if known else tflops
    bandwidth = max(known.bandwidth_gbs, gbs) if known else gbs
    reached = min(1.0, tflops / peak)
    return Hardware(
        name=name,
        peak_tflops=float(peak),
        bandwidth_gbs=float(bandwidth),
        memory_gb=memory_gb,
        dtype=dtype,
        source=source,
        efficiency=Efficiency(matmul=reached, attention=reached, memory=min(1.0, float(gbs / bandwidth))),
        overhead_us=float(1000 * overhead_ms / scale[2]),
    )
