"""Schedules of one policy side by side, as segments whose numbers are arrays: a fast path of `planner.cost.sweep`.

A policy with a fast path makes a `SweepLayout` from arrays of its parameters (`Policy.layout`). A stage of no layers
costs nothing, so all its schedules have the same segments. What a layout gives must be what `cost` gives for each
schedule, as integers; the tests compare them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.staircase import Scoring, Segment
from planner.schedule import Select
from planner.workload import Workload

__all__ = [
    "Array",
    "Scoring",
    "SweepColumns",
    "SweepLayout",
    "budget",
    "column",
    "inside",
    "segment",
    "share_of",
    "whole_layers",
]

Array = NDArray[Any]
#: Parameters by key, one entry per schedule.
SweepColumns = Mapping[str, Array]


class SweepLayout(NamedTuple):
    """Many schedules.

    Attributes:
        segments: as `planner.cost.staircase.lay` makes them of one.
        entry: a selection before the decoder that all of them share; only its score matters here.
        streams: they leave an image stream behind, and the workload says that it is cached.
    """

    segments: tuple[Segment, ...]
    entry: Select | None = None
    streams: bool = False


def segment(workload: Workload, first: Any, last: Any, visual: Any, **rule: Any) -> Segment:
    """Layers ``[first, last)`` over `visual` tokens and all text; without a rule, as the model has them."""
    rule = {"cached_visual": visual, **rule}
    return Segment(
        first=first,
        last=last,
        system=workload.system_tokens,
        text=workload.text_tokens,
        visual=visual,
        prompt_text=workload.text_tokens,
        prompt_visual=workload.visual_tokens,
        between=workload.between_tokens,
        marks=workload.mark_tokens,
        **rule,
    )


def column(given: SweepColumns, key: str, default: Any) -> Array:
    """A parameter's array, or its default as often."""
    count = len(next(iter(given.values()))) if given else 1
    return given[key] if key in given else np.full(count, default)


def inside(values: Array, least: float, most: float) -> bool:
    """Whether all lie in ``[least, most]``."""
    return bool(((values >= least) & (values <= most)).all())


def whole_layers(values: Array, least: float, most: float) -> Array | None:
    """Layers as integers; None where one is no whole layer in ``[least, most]``."""
    if not inside(values, least, most) or (values != np.floor(values)).any():
        return None
    return values.astype(np.int64)


def share_of(share: Array, present: Any) -> Array:
    """A share of the tokens present, by `planner.schedule.kept`: the nearest whole number, halves up, at least one."""
    there = np.asarray(present).astype(np.int64)
    return np.clip((share * there + 0.5).astype(np.int64), np.minimum(1, there), there)


def budget(keep: Array, present: int) -> Array | None:
    """Budgets as `planner.policies.base.keep_of` reads them: below 1 a share, else a number; None where one is neither
    a share nor whole."""
    if not inside(keep, 0, 1 << 31) or ((keep >= 1) & (keep != np.floor(keep))).any():
        return None
    is_share = (keep > 0) & (keep < 1)
    return np.minimum(np.where(is_share, share_of(keep, present), keep.astype(np.int64)), present)
