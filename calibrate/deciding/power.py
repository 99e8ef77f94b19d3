"""How many samples a proof needs, how many misses it allows, and what a ladder should aim at: 0/1 losses, exact.

Told before a model is loaded. Losses and limits as in `calibrate.deciding.proof`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv
from scipy.stats import binom

from planner.errors import InputError

#: Pictures with several questions are few below this multiple of the fewest that prove anything.
_FEW = 1.5
#: Chances to pass that the rungs of a ladder aim at, and the part of that loss they aim at: far on the safe side first.
_AIMS = ((0.98, 0.12), (0.98, 0.25), (0.98, 0.5), (0.98, 0.85), (0.9, 1), (0.7, 1), (0.4, 1), (0.15, 1))


def check_promise(limit: float, confidence: float) -> None:
    """Refuse what no samples can prove.

    Raises:
        InputError: the limit is not in (0, 1), or the confidence not in [0.5, 1).
    """
    if not 0 < limit < 1:
        raise InputError(
            f"a largest loss of {limit:g} (an agreement of {1 - limit:g}) cannot be proven by any number of samples",
            "Ask for an agreement between 0 and 1, such as 0.98",
        )
    if not 0.5 <= confidence < 1:
        raise InputError(f"a confidence of {confidence:g} makes no sense", "Give one from 0.5 to below 1, such as 0.8")


def allowed(n: int, limit: float, confidence: float) -> int:
    """How many of n samples may lose a 0/1 loss if one candidate is to be proven; -1 where not even none is enough."""
    return int(_allowed(np.array(n), limit, confidence))


def least(limit: float, confidence: float) -> int:
    """The fewest samples that can prove a 0/1 limit, if none of them loses."""
    return max(1, math.ceil(math.log(1 - confidence) / math.log1p(-limit) - 1e-9))


def few(pictures: int, limit: float, confidence: float) -> bool:
    """Whether pictures with several questions are so few that one question of each proves more, by counting misses,
    than the mean of all of them does by betting (tried for true losses of a quarter of the limit)."""
    return pictures < plenty(limit, confidence)


def plenty(limit: float, confidence: float) -> int:
    """The fewest pictures with several questions that are not `few`."""
    return math.ceil(_FEW * least(limit, confidence))


def provable(n: int, confidence: float) -> float:
    """The smallest 0/1 limit that n samples can prove, if none of them loses."""
    return float(1 - (1 - confidence) ** (1 / n))


def needed(limit: float, confidence: float, true: float, power: float = 0.8) -> int:
    """The fewest samples with which a candidate of a given true 0/1 loss is proven with probability `power`.

    A few more may serve a little worse, where they do not yet allow another miss.

    Raises:
        InputError: the true loss is not below the limit, so that no number is enough.
    """
    if not 0 <= true < limit:
        raise InputError(f"no samples prove a limit of {limit:g} for a true loss of {true:g}", "Ask for a higher limit")
    first = least(limit, confidence)
    while True:
        sizes = np.arange(first, 2 * first)
        enough = binom.cdf(_allowed(sizes, limit, confidence), sizes, true) >= power
        if enough.any():
            return int(sizes[enough.argmax()])
        first *= 2


def passing(n: int, limit: float, confidence: float, power: float) -> float:
    """The true 0/1 loss of which n samples are a proof with probability `power`; 0 where they never are."""
    misses = allowed(n, limit, confidence)
    return 0.0 if misses < 0 else float(1 - betaincinv(n - misses, misses + 1, power))


def aims(n: int, limit: float, confidence: float) -> tuple[float, ...]:
    """Expected losses that the rungs of a ladder should have, the safest first, for n certify samples.

    The first are so safe that they pass although a search on few samples misjudges them; the last are worth a try.
    Empty where n samples prove nothing.
    """
    if allowed(n, limit, confidence) < 0:
        return ()
    return tuple(part * passing(n, limit, confidence, power) for power, part in _AIMS)


def _allowed(sizes: NDArray[Any], limit: float, confidence: float) -> NDArray[Any]:
    misses = binom.ppf(1 - confidence, sizes, limit)  # the fewest whose tail reaches the level
    return np.asarray(np.where(binom.cdf(misses, sizes, limit) <= 1 - confidence, misses, misses - 1), np.int64)
