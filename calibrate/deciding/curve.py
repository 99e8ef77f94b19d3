"""How much a family's members lose, from the few samples on which some of them ran.

The members of a family are nested: what one drops, a cheaper one drops too. So each sample has a dose, the share of
visual tokens that the decoder computes, below which it loses its answer, and the expected loss of a member is the share
of samples whose dose is higher. Those doses are taken to be spread log-logistically, above a floor that a family loses
at every dose (what is fixed in it, such as a layer from which on there is no image), or that fades only as the dose
nears the whole: some answers hang on tokens that any choice but the whole may drop, however well the others fare:

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
from scipy.special import expit, logsumexp

FloatArray = NDArray[np.float64]
#: Floors that a family may have, and how likely each is of a rule that nothing is known about. Most rules cost
#: something that a hundred samples hardly show. Thinking half of them free, a ladder begins with one that is not, and
#: ends there: on four draws of `tests.repeat_decisions` the plans of ``windowed`` are .26 of dense in place of .41.
FLOORS = np.array([0.0, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08])
_UNKNOWN = np.array([0.15, 0.1, 0.2, 0.25, 0.2, 0.05, 0.05])
#: Of a family that may lose nothing: that changes nothing at the whole dose, where the floor fades to nothing, or wins
#: back what is lost by what is fixed in it.
MAY_BE_NONE = np.array([0.5, 0.12, 0.14, 0.12, 0.07, 0.03, 0.02])
#: Points of the grid. Before anything ran, half of the answers are lost at 2 % of the tokens, or 4 times more or fewer.
MIDDLE, SLOPE, FLOOR = (
    axis.ravel()
    for axis in np.meshgrid(
        np.linspace(np.log(0.002), np.log(3.0), 36), np.geomspace(0.4, 40.0, 15), FLOORS, indexing="ij"
    )
)
_PRIOR = -0.5 * ((MIDDLE - np.log(0.02)) / 1.4) ** 2 - 0.5 * (np.log(SLOPE / 2.0) / 0.8) ** 2
_LEAST = 1e-9


class Curve:
    """What is believed of one family.

    Args:
        doses: logarithms of the members' doses, ascending.
        floors: how likely each of `FLOORS` is; None: as of a rule that nothing is known about.
        fading: the floor falls to nothing at the whole dose, and is likely as of any such family.
        prior: of the family that this one lays over something.
    """

    def __init__(
        self,
        doses: Sequence[float],
        floors: FloatArray | None = None,
        prior: Curve | None = None,
        *,
        fading: bool = False,
    ) -> None:
        self.doses = np.asarray(doses, np.float64)
        fallen = expit(-SLOPE[:, None] * (self.doses - MIDDLE[:, None]))
        lowest = FLOOR[:, None] * (-np.expm1(np.minimum(self.doses, 0.0)) if fading else 1.0)
        self._losses = lowest + (1 - lowest) * fallen  # [grid, members]
        if floors is None:
            floors = MAY_BE_NONE if fading else _UNKNOWN
        with np.errstate(divide="ignore"):  # what cannot be stays impossible
            floor = np.log(floors)
        self._prior = _PRIOR + np.tile(floor, len(FLOOR) // len(FLOORS))
        if prior is not None:
            # Half of what is known of that family, whatever its floor is: laid over something, it may fall otherwise.
            self._prior = self._prior + 0.5 * np.repeat(logsumexp(prior._known(), axis=1), len(FLOORS))
        self.learn({})

    def learn(self, seen: Mapping[int, tuple[int, float]]) -> None:
        """Believe what was seen so far: member to number of samples and mean loss."""
        self._likely = self._likelihood(seen)
        log = self._prior + self._likely
        weights = np.exp(log - log.max())
        self.weights: FloatArray = weights / weights.sum()
        self._up_to: FloatArray = self.weights.cumsum()
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

    def drawn(self, luck: float) -> FloatArray:
        """Expected losses of the members as they might be, for `luck` drawn evenly from [0, 1)."""
        place = min(int(np.searchsorted(self._up_to, luck * self._up_to[-1], side="right")), len(self.weights) - 1)
        return np.asarray(self._losses[place], np.float64)

    def floors(self, member: int) -> FloatArray:
        """How likely it is that a member loses each of `FLOORS`: of a family that it is the fixed part of."""
        places = np.abs(FLOORS - self._losses[:, [member]]).argmin(axis=1)
        return np.asarray(np.bincount(places, self.weights, len(FLOORS)), np.float64)

    def quantiles(self, levels: FloatArray) -> FloatArray:
        """Expected losses as they might be, from good to bad luck: ``[levels, members]`` for levels in (0, 1)."""
        order = np.argsort(self._losses.mean(axis=1), kind="stable")
        places = np.minimum(np.searchsorted(np.cumsum(self.weights[order]), levels), len(order) - 1)
        return np.asarray(self._losses[order[places]], np.float64)

    def _known(self) -> FloatArray:
        """What was seen, by middle and slope, and by floor as likely as it was before: logarithms
        ``[middles and slopes, floors]``."""
        before = (self._prior - _PRIOR).reshape(-1, len(FLOORS))
        found: FloatArray = (before - logsumexp(before, axis=1, keepdims=True)) + self._likely.reshape(before.shape)
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
