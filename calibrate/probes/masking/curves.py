"""The conditions of the masking curves, each from what was computed before it differs.

A ``*_before`` curve has a rule in ``[0, k)`` and a dense model from there on. One pass under the rule in all layers
gives the states from which each of its points goes on. The others are dense up to the layer that differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from calibrate.probes.masking.replay import Replay
from calibrate.probes.masking.sight import Sight

#: Log-probabilities ``[samples, V]`` of the first answer token at a point, for some samples of the batch.
Point = Callable[[int, Sequence[int]], Tensor]

_HIDDEN = Sight(text="none")
#: Curve to the sight of its rule in the first layer and in the others.
BEFORE = {
    "prefix_before": (Sight("prefix", "none"),) * 2,
    "prefix_open_before": (Sight("prefix", "full"),) * 2,
    "alone_before": (Sight("self", "none"),) * 2,
    "self_before": (Sight("self", "full"),) * 2,
    "merged_before": (Sight("self", "merge"), Sight("self", "none")),
    "masked_before": (_HIDDEN,) * 2,
}
#: The names of all curves.
CURVES = (*BEFORE, "masked_from", "skipped")
#: Curves of a rule before a layer; they can be bisected.
RULES = frozenset(BEFORE)
#: Curves whose visual rows stay the dense model's, so that their passes run the rows after the image alone.
TEXT_ONLY = frozenset({"masked_before", "masked_from", "skipped"})


def points_of(name: str, layers: int) -> range:
    """The layers k of a curve, ascending."""
    if name == "merged_before":
        return range(1, max(2, layers // 2))
    return range(1, layers + 1) if name in BEFORE else range(layers)


def point_of(name: str, replay: Replay) -> Point:
    """What executes a curve's points."""
    layers = replay.layers
    if name in BEFORE:
        first, others = BEFORE[name]
        everywhere, states = replay.rule([first, *[others] * (layers - 1)])
        return lambda k, samples: everywhere[list(samples)] if k == layers else replay.go_on(states, k, samples=samples)

    def dense_before(k: int, samples: Sequence[int]) -> Tensor:
        hidden = 1 if name == "skipped" else layers - k
        return replay.go_on(replay.states, k, [None] * k + [_HIDDEN] * hidden + [None] * (layers - k - hidden), samples)

    return dense_before
