"""Exact tests and bounds of an expected loss.

* 0/1 losses: the binomial tail. The bound that comes with it is Clopper and Pearson's.
* losses of at most 1: betting against the hypothesis that the mean is at the limit (Waudby-Smith and Ramdas, Estimating
  means of bounded random variables by betting, 2024). Hoeffding-Bentkus is valid too; it was weaker on all losses with
  values inside (0, 1) that were tried.

Both need independent observations.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaincinv
from scipy.stats import binom

FloatArray = NDArray[np.float64]

#: Of two bettors: the share of the first, who learns from the samples before; the other always stakes this much.
_LEARNING, _STEADY_STAKE = 0.6, 0.69
#: The largest stake, as a share of what may be lost on one sample; samples that the first bettor starts with.
_LARGEST_STAKE, _PRIOR_SAMPLES = 0.98, 10.0


def p_value(losses: FloatArray, limit: float, *, binary: bool) -> float:
    """An upper bound of the probability of losses this small, if their expectation were the limit or more."""
    if binary:
        return float(binom.cdf(int(losses.sum()), len(losses), limit))
    return min(1.0, math.exp(-_log_wealth(losses, limit, _stakes(losses, limit))))


def upper_bound(losses: FloatArray, level: float, limit: float, *, binary: bool) -> float:
    """The expected loss is below this, unless something happened that has at most probability `level`.

    Args:
        limit: where the bettor's stakes are best; the bound is valid whatever it is.
    """
    n = len(losses)
    if binary:
        misses = int(losses.sum())
        return 1.0 if misses == n else float(betaincinv(misses + 1, n - misses, 1 - level))
    stakes, wanted = _stakes(losses, limit), -math.log(level)

    def excess(mean: float) -> float:
        return _log_wealth(losses, mean, stakes) - wanted

    # Wealth grows with the mean that is bet against, so that one crossing separates what is rejected from the rest.
    low, high = max(float(losses.mean()), -1.0), 1 - 1e-9
    if excess(high) < 0:
        return 1.0
    return float(low if excess(low) >= 0 else brentq(excess, low, high, xtol=1e-9))


def _stakes(losses: FloatArray, limit: float) -> FloatArray:
    """What the learning bettor stakes on each sample, from those before it: Kelly's fraction, mean over second moment.

    A share of the largest stake that cannot ruin, so that the same stakes can be bet against any mean.
    """
    before = np.arange(len(losses)) + _PRIOR_SAMPLES
    gains = limit - losses
    mean = (np.cumsum(gains) - gains + _PRIOR_SAMPLES * limit / 2) / before
    moment = (np.cumsum(gains**2) - gains**2 + _PRIOR_SAMPLES * limit / 2) / before
    return np.clip(mean / moment * (1 - limit), 0, _LARGEST_STAKE)


def _log_wealth(losses: FloatArray, mean: float, stakes: FloatArray) -> float:
    """The most that two bettors together ever had, who started with 1 and bet that losses are below a mean.

    If the expected loss is `mean` or more, that exceeds 1 / level with probability `level` at most (Ville).
    """
    gains = (mean - losses) / (1 - mean)
    learning = np.log(_LEARNING) + np.cumsum(np.log1p(stakes * gains))
    steady = np.log(1 - _LEARNING) + np.cumsum(np.log1p(_STEADY_STAKE * gains))
    return float(np.logaddexp(learning, steady).max(initial=0.0))
