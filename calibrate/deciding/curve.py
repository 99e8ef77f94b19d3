"""How much a family's members lose, from the few samples on which some of them ran.

The members of a family are nested: what one drops, a cheaper one drops too. So each sample has a dose, the share of
visual tokens that the decoder computes, below which it loses its answer, and the expected loss of a member is the share
of samples whose dose is higher. Those doses are taken to be spread log-logistically, above a floor that a family loses
at every dose (what is fixed in it, such as a layer from which on there is no image):

    loss(x) = floor + (1 - floor) / (1 + exp(slope * (x - middle))),    x the logarithm of the dose.

What middle, slope and floor may be is held as weights on a grid. So losses far above the limit, which few samples show
well, tell about those below it, which few samples do not show at all: with 40 samples a member that lost none may have
a true loss of 0.04, but hardly if members with half its tokens lose 0.05.

This guides a search. It proves nothing, and nothing that is proven rests on it (`calibrate.deciding.proof`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import expit

FloatArray = NDArray[np.float64]
#: Points of the grid, and the logarithms of what is believed of them before anything ran: half of the answers are lost
#: at 5 % of the tokens, give or take a factor of 4; often nothing is lost at every dose.
MIDDLE, SLOPE, FLOOR = (
    axis.ravel()
    for axis in np.meshgrid(
        np.linspace(np.log(0.002), np.log(3.0), 40),
        np.geomspace(0.4, 8.0, 14),
        np.array([0.0, 0.004, 0.01, 0.02, 0.05]),
        indexing="ij",
    )
)
_PRIOR = (
    -0.5 * ((MIDDLE - np.log(0.05)) / 1.4) ** 2
    - 0.5 * (np.log(SLOPE / 2.0) / 0.6) ** 2
    + np.where(FLOOR == 0, np.log(0.5), np.log(0.5 / 4))
)
_LEAST = 1e-9


class Curve:
    """What is believed of one family.

    Args:
        doses: logarithms of the members' doses, ascending.
        floor: whether there may be one.
        prior: another family's `Curve` that this one will be much like: one that it is laid over something.
    """

    def __init__(self, doses: Sequence[float], floor: bool = True, prior: Curve | None = None) -> None:
        self.doses = np.asarray(doses, np.float64)
        fallen = expit(-SLOPE[:, None] * (self.doses - MIDDLE[:, None]))
        self._losses = FLOOR[:, None] + (1 - FLOOR[:, None]) * fallen  # [grid, members]
        # Half of what is known there: the other part may lose answers too.
        self._prior = _PRIOR if prior is None else _PRIOR + 0.5 * prior._likely
        if not floor:
            self._prior = np.where(FLOOR == 0, self._prior, -np.inf)
        self.learn({})

    def learn(self, seen: Mapping[int, tuple[int, float]]) -> None:
        """Believe what was seen so far: member to number of samples and mean loss."""
        self._likely = self._likelihood(seen)
        log = self._prior + self._likely
        weights = np.exp(log - log.max())
        self.weights: FloatArray = weights / weights.sum()
        self._below: dict[float, FloatArray] = {}

    def below(self, loss: float) -> FloatArray:
        """The probability that a member's expected loss is at most `loss`, per member."""
        if loss not in self._below:
            self._below[loss] = self.weights @ (self._losses <= loss)
        return self._below[loss]

    def mean(self) -> FloatArray:
        """Expected loss per member."""
        found: FloatArray = self.weights @ self._losses
        return found

    def draws(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Expected losses as they might be, ``[count, members]``."""
        found: FloatArray = self._losses[rng.choice(len(self.weights), count, p=self.weights)]
        return found

    def _likelihood(self, seen: Mapping[int, tuple[int, float]]) -> FloatArray:
        """Logarithm per point of the grid.

        Members run on the same samples, so that their losses are no separate evidence: from the dearest member down,
        only the samples that it takes away beyond those that are lost already count for the next.
        """
        if not seen:
            return np.zeros(len(SLOPE))
        members = sorted(seen, reverse=True)
        counts = np.array([seen[one][0] for one in members], np.float64)
        means = np.clip([seen[one][1] for one in members], 0.0, 1.0)
        lost = np.clip(isotonic_regression(means, weights=counts).x, 0.0, 1.0)
        before = np.concatenate([[0.0], lost[:-1]])
        at = self._losses[:, members]
        of_left = np.concatenate([np.zeros((len(at), 1)), at[:, :-1]], axis=1)
        takes = np.clip((at - of_left) / np.maximum(1 - of_left, _LEAST), _LEAST, 1 - _LEAST)
        found: FloatArray = (counts * ((lost - before) * np.log(takes) + (1 - lost) * np.log1p(-takes))).sum(axis=1)
        return found
