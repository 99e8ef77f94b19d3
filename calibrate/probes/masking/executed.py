"""Masking curves where a pass cannot be taken apart: layers that keep states, read the keys of others, or take inputs
of their own.

Each point is executed as a plan would be, from the first layer on. A recurrent layer hides the image from the text by
leaving it out of the sequence that the text continues, so a curve has the points that such layers can run, which may be
none (`planner.runtime.execution.guard`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import takewhile
from typing import Any

from torch import Tensor

from calibrate.inputs.encode import Inputs
from calibrate.probes.masking.curves import BEFORE, points_of
from calibrate.probes.masking.sight import Sight
from calibrate.running.execute import able, first_logits
from planner.schedule import Count, Schedule, Select, Stage

_NOTHING = Select(rank_by="none", keep=Count(count=0))


class Executed:
    """The first answer token's log-probabilities of a batch under each condition.

    Args:
        layers: of the decoder.

    Attributes:
        dense: log-probabilities ``[B, V]`` of the model as it is.
    """

    def __init__(self, model: Any, inputs: Inputs, layers: int) -> None:
        self.model, self.inputs, self.layers = model, inputs, layers
        self.dense = first_logits(model, inputs)
        # A bisected curve asks for one point several times, each time for other samples.
        self._logits = cache(self._executed)

    def able(self, name: str) -> list[int]:
        """The points of a curve that this model's layers can run; of a rule those up to the first that they cannot,
        since what lies between two points is read off them."""
        points = points_of(name, self.layers)
        select = takewhile if name in BEFORE else filter
        can_run = able(self.model)
        return list(select(lambda k: can_run(schedule(name, k, self.layers)), points))

    def point(self, name: str, k: int, samples: Sequence[int]) -> Tensor:
        """A point of a curve, for some samples of the batch."""
        return self._logits(name, k)[list(samples)]

    def _executed(self, name: str, k: int) -> Tensor:
        return first_logits(self.model, self.inputs, schedule(name, k, self.layers))


def schedule(name: str, k: int, layers: int) -> Schedule:
    """What a point of a curve executes; from the layer on where the text does not see the image, it is dropped."""
    if name == "masked_from":
        whole = Stage(first=k, last=layers)
        if k == 0:
            return Schedule(stages=(whole,), entry=_NOTHING)
        return Schedule(stages=(Stage(first=0, last=k, selects=(_NOTHING,)), whole))
    if name == "skipped":
        stages = [(0, k, None), (k, k + 1, Sight(text="none")), (k + 1, layers, None)]
    else:
        first, others = BEFORE[name]
        stages = [(0, 1, first), (1, k, others), (k, layers, None)]
    return Schedule(stages=tuple(_stage(*stage) for stage in stages if stage[0] < stage[1]))


def _stage(first: int, last: int, sight: Sight | None) -> Stage:
    if sight is None:
        return Stage(first=first, last=last)
    return Stage(
        first=first,
        last=last,
        visual_attention=sight.visual,
        text_to_visual=sight.text,
        cache_visual="all" if sight.text == "full" else "none",
    )
