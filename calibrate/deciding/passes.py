"""How often samples will run in a decision and in an evaluation, as far as that can be said beforehand.

A pass is one sample that is answered once. Searches end when nothing is left to learn, and proofs with the first rung
that fails, so the figures are what bundled models needed (`_SHARE`, `_RUNGS`), and the search corrects its own.
"""

from __future__ import annotations

from calibrate.deciding.ladder import LARGEST
from calibrate.deciding.search import FIRST
from calibrate.deciding.trials import Trials

#: Share of the search samples that a schedule ran on, in the mean: 31 of 107, 65 of 237.
_SHARE = 0.3
#: Rungs that were tested, of `LARGEST` at most.
_RUNGS = 8
#: Rows of an evaluation: dense, the plan, fastv, random, resize, and two controls; beside a dense plan only these.
ROWS, ROWS_BESIDE_DENSE = 7, 3


def search_passes(measure: int, samples: int) -> float:
    """Of a search that may execute so many schedules."""
    return measure * max(_SHARE * samples, min(FIRST, samples))


def search_left(trials: Trials, measure: int) -> float:
    """Of a search that is under way."""
    fresh = max(measure - trials.executed, 0) * min(FIRST, len(trials.runner))
    return max(search_passes(measure, len(trials.runner)) - trials.passes, fresh)


def proof_passes(certify: int) -> int:
    """Of a proof, with the dense answers."""
    return (1 + min(_RUNGS, LARGEST)) * certify


def evaluation_passes(samples: int, along_answer: bool, dense: bool, rounds: int) -> int:
    """Of an evaluation; prefills that are timed count too.

    Args:
        along_answer: the loss forces answers, beside giving them.
        dense: the plan is the dense model.
        rounds: of timing.
    """
    rows = ROWS_BESIDE_DENSE if dense else ROWS
    timed = rows - 2  # controls are not
    return samples * rows * (2 if along_answer else 1) + rounds * timed
