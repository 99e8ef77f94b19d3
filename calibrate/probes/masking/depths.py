"""How deep a sample's answer survives: bisection, sample by sample.

Every sample is measured at the same few anchors. Between the last anchor before its first changed answer and that
anchor its depth is bisected. What a sample needs depends on this sample alone, so shards, resumed runs and merged
tables agree. Between measured points one thing is assumed: an answer that survives a depth survives the shallower ones
that were not measured, and one that changed stays changed at deeper ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from calibrate.probes.stats import Array

#: Points that every sample is measured at.
ANCHORS = 4


def anchors(points: int) -> list[int]:
    """Positions, among so many points, of those that every sample is measured at; the last is one."""
    return sorted({max(0, points * part // ANCHORS - 1) for part in range(1, ANCHORS + 1)})


def bisect(points: int, samples: int, measure: Callable[[int, list[int]], Sequence[bool]]) -> None:
    """Measure what tells each sample's depth.

    Args:
        points: how many, from shallow to deep.
        samples: how many.
        measure: of a point and some samples: whether their answers survive it.
    """
    everyone = list(range(samples))
    low, high = [-1] * samples, [points] * samples
    changed = [False] * samples
    for anchor in anchors(points):
        for sample, same in enumerate(measure(anchor, everyone)):
            if not same and not changed[sample]:
                changed[sample], high[sample] = True, anchor
            elif same and not changed[sample]:
                low[sample] = anchor
    while True:
        waiting: defaultdict[int, list[int]] = defaultdict(list)
        for sample in everyone:
            if high[sample] - low[sample] > 1:
                waiting[(low[sample] + high[sample]) // 2].append(sample)
        if not waiting:
            return
        for point, group in sorted(waiting.items()):
            for sample, same in zip(group, measure(point, group), strict=True):
                (low if same else high)[sample] = point


def settled(measured: Array) -> Array:
    """What is known at every point.

    Args:
        measured: ``[samples, points]``: 1 the answer survived, 0 it changed, NaN not measured.

    Returns:
        The same with each gap filled: 1 before the sample's first changed answer, 0 after it. A gap that nothing
        settles stays NaN.
    """
    known = np.array(measured, np.float64)
    for row in known:
        changed = np.flatnonzero(row == 0)
        survived = np.flatnonzero(row == 1)
        first = int(changed[0]) if len(changed) else len(row)
        deepest = max((int(point) for point in survived if point < first), default=-1)
        gaps = np.isnan(row)
        place = np.arange(len(row))
        row[gaps & (place < deepest)] = 1
        row[gaps & (place > first)] = 0
    return known


def passes(points: int) -> int:
    """At most so many points are measured on a sample by `bisect`."""
    places = anchors(points)
    gaps = [high - low - 1 for low, high in zip([-1, *places], places, strict=False)]
    return len(places) + max(gap.bit_length() for gap in gaps)
