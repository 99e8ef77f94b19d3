"""Where a sample's answer changes along a curve: bisection, sample by sample.

Every sample is measured at the same anchors: one, two, four, eight layers and so on, and all. Wherever it answers
differently at two neighbouring points, what lies between is bisected. What a sample needs depends on this sample alone,
so shards, resumed runs and merged tables agree. One thing is assumed: between two measured points with the same outcome
it is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from calibrate.probes.stats import Array


def anchors(points: int) -> list[int]:
    """Positions, among so many points, of those that every sample is measured at; the last is one."""
    doubling = {(1 << power) - 1 for power in range(points.bit_length())}
    return sorted({place for place in doubling if place < points} | {points - 1})


def bisect(points: int, samples: int, measure: Callable[[int, list[int]], Sequence[bool]]) -> None:
    """Measure what tells where each sample's answer changes.

    Args:
        points: how many, from shallow to deep.
        samples: how many.
        measure: of a point and some samples: whether their answers survive it.
    """
    # Before the first point nothing is changed, and every answer survives.
    known: list[dict[int, bool]] = [{-1: True} for _ in range(samples)]
    waiting = {anchor: list(range(samples)) for anchor in anchors(points)}
    while waiting:
        for point, group in sorted(waiting.items()):
            for sample, same in zip(group, measure(point, group), strict=True):
                known[sample][point] = bool(same)
        waiting = {}
        for sample, outcomes in enumerate(known):
            places = sorted(outcomes)
            for low, high in pairwise(places):
                if outcomes[low] != outcomes[high] and high - low > 1:
                    waiting.setdefault((low + high) // 2, []).append(sample)


def settled(measured: Array) -> Array:
    """What is known at every point.

    Args:
        measured: ``[samples, points]``: 1 the answer survived, 0 it changed, NaN not measured.

    Returns:
        The same with each gap between equal outcomes filled. What nothing settles stays NaN.
    """
    known = np.array(measured, np.float64)
    for row in known:
        places = np.flatnonzero(~np.isnan(row))
        ends = [(-1, 1.0), *((int(place), float(row[place])) for place in places)]
        for (low, before), (high, behind) in pairwise(ends):
            if before == behind:
                row[low + 1 : high] = before
    return known


def passes(points: int) -> int:
    """So many points of a sample are measured by `bisect` at most, if its answer changes once."""
    places = anchors(points)
    gaps = [high - low - 1 for low, high in zip([-1, *places], places, strict=False)]
    return len(places) + max(gap.bit_length() for gap in gaps)
