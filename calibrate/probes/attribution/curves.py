"""Faithfulness and completeness of an order of heads: does it rank the heads that matter first (head attribution 4.2)?

Faithfulness of k heads is the normalised logit with only the first k of an order intact; completeness the one with
those k ablated. A good order needs few heads for faithfulness above 0.8 and completeness below 0.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from calibrate.probes.attribution.response import Vector
from calibrate.probes.stats import Array

FAITHFUL, COMPLETE = 0.8, 0.2
#: Up to here every k is run; beyond, this many are, and then every k around the crossing.
EVERY_K = 160
RANDOM_ORDERS = 5

Respond = Callable[[torch.Tensor], Vector]


@dataclass(frozen=True)
class Curve:
    """One order's curves at the numbers of heads that were run.

    Attributes:
        heads: numbers of heads k, ascending.
        faithfulness, completeness: normalised logits at each k.
        faithful_heads, complete_heads: smallest k with faithfulness above `FAITHFUL`, completeness below `COMPLETE`.
    """

    heads: tuple[int, ...]
    faithfulness: Vector
    completeness: Vector
    faithful_heads: int
    complete_heads: int

    def at(self, counts: list[int]) -> Vector:
        """Faithfulness and completeness at some of the numbers that were run, ``[2, counts]``."""
        where = [self.heads.index(k) for k in counts]
        return np.stack([self.faithfulness[where], self.completeness[where]])


def grid(total: int) -> list[int]:
    """Numbers of heads at which every order is run: all of them, or equally spaced ones where there are many."""
    return sorted({round(k) for k in np.linspace(0, total, min(total, EVERY_K) + 1)})


def curve(order: Array, respond: Respond) -> Curve:
    """Curves of one order of heads (most important first, ``[N]`` head numbers)."""
    total = len(order)
    faithfulness: dict[int, float] = {}
    completeness: dict[int, float] = {}

    def run(counts: list[int], values: dict[int, float], intact: bool) -> None:
        counts = [k for k in counts if k not in values]
        masks = torch.full((len(counts), total), not intact)
        for row, k in enumerate(counts):
            masks[row, torch.as_tensor(order[:k].copy())] = intact
        values.update(zip(counts, respond(masks).tolist() if counts else [], strict=True))

    coarse = grid(total)
    for values, intact in ((faithfulness, True), (completeness, False)):
        run(coarse, values, intact)
        crossing = _first(values, intact, total)
        run(list(range(max([k for k in coarse if k < crossing], default=0), crossing)), values, intact)
    # Both curves at the same k: those run for one crossing only are left out of the picture, not of the crossing.
    shared = tuple(sorted(faithfulness.keys() & completeness.keys()))
    return Curve(
        heads=shared,
        faithfulness=np.asarray([faithfulness[k] for k in shared]),
        completeness=np.asarray([completeness[k] for k in shared]),
        faithful_heads=_first(faithfulness, True, total),
        complete_heads=_first(completeness, False, total),
    )


def _first(values: dict[int, float], faithful: bool, total: int) -> int:
    hits = [k for k, value in values.items() if (value > FAITHFUL if faithful else value < COMPLETE)]
    return min(hits, default=total)


def single_head_effects(respond: Respond, total: int) -> Vector:
    """How much the normalised logit falls when one head alone is ablated, ``[N]``: the Causal order (appendix A.4)."""
    return 1 - respond(~torch.eye(total, dtype=torch.bool))


def compare_orders(
    respond: Respond, coefficients: Vector, attention: Vector, causal: Vector, seed: int
) -> dict[str, Curve]:
    """Curves of head attribution beside the paper's baselines; ``random`` is the mean of several seeded orders.

    Args:
        coefficients, attention, causal: importance of each head, ``[N]``.
    """
    curves = {
        name: curve(np.argsort(-values, kind="stable"), respond)
        for name, values in (("attribution", coefficients), ("attention", attention), ("causal", causal))
    }
    generator = np.random.default_rng(seed)
    drawn = [curve(generator.permutation(len(coefficients)), respond) for _ in range(RANDOM_ORDERS)]
    counts = grid(len(coefficients))
    faithfulness, completeness = np.mean([one.at(counts) for one in drawn], axis=0)
    curves["random"] = Curve(
        heads=tuple(counts),
        faithfulness=faithfulness,
        completeness=completeness,
        faithful_heads=round(float(np.mean([one.faithful_heads for one in drawn]))),
        complete_heads=round(float(np.mean([one.complete_heads for one in drawn]))),
    )
    return curves
