"""The ladder that is frozen for the proof: the few candidates that save most, as far as the search can tell.

A ladder is tested from its safest rung, and the first that fails ends the test (`calibrate.deciding.proof`). What it is
worth is the saving that is expected of it: of each rung, what it saves beyond the one before it, times the chance that
it and all before it pass. Chances come from what the search believes of each family. Families are thought to share a
part of their luck, since all ran on the same samples: where one is worse than it looked, so are the others, as a rule.
So rungs on the safe side are put first exactly where the search knows little.

Whatever their losses are, rungs are tested on the same samples, and what is hard for one is hard for others: so all of
them are thought to pass as often as the one does that passes least often. A rung that is safer than a cheaper one
behind it then costs nothing, and breaks the fall where that fails. Thought to pass or fail each by itself, such rungs
would be left out: ladders with steps too wide, and plans of `tests.repeat_decisions` that cost up to a half more.

What a composition is made of loses no more than the composition does, unless that may win it back
(`calibrate.deciding.space.Candidate.parts`). So it is believed to lose at least what each of its parts is believed to
lose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtr

from calibrate.deciding.search import Line
from calibrate.deciding.space import Candidate

FloatArray = NDArray[np.float64]
#: Rungs cost no confidence, but each is executed on all certify samples.
LARGEST = 16
_DRAWS = 400
#: What a believed loss may be wrong by, since no family loses answers quite as its curve says: a factor, as a normal
#: deviation of its logarithm.
_DOUBT = 0.8
#: Correlation of the luck of two families.
_SHARED = 0.8
#: A rung that is expected to save less than this share of dense more is left out.
_WORTH = 2e-4


def ladder(
    lines: Sequence[Line], certify: int, misses: int, eligible: Sequence[Candidate], seed: int = 0
) -> list[Candidate]:
    """The rungs, the safest and dearest first.

    Args:
        lines: searched families.
        certify: samples of the proof.
        misses: how many of them may lose their answer; -1 where nothing can be proven, and no rung is worth a try.
        eligible: the candidates that may be rungs.
    """
    if misses < 0:
        return []
    candidates, chances = _front(*_chances(lines, certify, misses, set(map(id, eligible)), seed))
    saved = np.array([1 - candidate.share for candidate in candidates])
    chosen: list[int] = []
    worth = 0.0
    while len(chosen) < LARGEST:
        options = [sorted([*chosen, i], key=lambda j: saved[j]) for i in range(len(candidates)) if i not in chosen]
        worths = [_worth(saved[one], chances[:, one]) for one in options]
        if not worths or max(worths) < worth + _WORTH:
            break
        worth, chosen = max(worths), options[int(np.argmax(worths))]
    return [candidates[i] for i in chosen]


def _chances(
    lines: Sequence[Line], certify: int, misses: int, eligible: set[int], seed: int
) -> tuple[list[Candidate], FloatArray]:
    """Candidates, and their chances to pass in many draws of what their losses may be: ``[draws, candidates]``."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((2, _DRAWS))
    believed: dict[str, FloatArray] = {}
    candidates: dict[str, Candidate] = {}
    for line in lines:
        luck, doubt = np.sqrt(_SHARED) * shared + np.sqrt(1 - _SHARED) * rng.standard_normal((2, _DRAWS))
        losses = line.curve.quantiles(ndtr(luck)) * np.exp(_DOUBT * doubt)[:, None]
        for member, one in enumerate(line.members):
            believed[one.name] = losses[:, member]
            if id(one) in eligible:
                candidates[one.name] = one
    if not candidates:
        return [], np.zeros((_DRAWS, 0))
    # What is made of parts loses what each of them loses. Never the other way round: the least of what many
    # compositions are believed to lose says nothing but that there are many.
    at_least = [
        np.max([believed[name], *(believed[part.name] for part in one.parts if part.name in believed)], axis=0)
        for name, one in candidates.items()
    ]
    return list(candidates.values()), bdtr(misses, certify, np.clip(np.stack(at_least, axis=1), 0, 1))


def _front(candidates: list[Candidate], chances: FloatArray) -> tuple[list[Candidate], FloatArray]:
    """Without those that neither save more nor are safer than another."""
    expected, best, kept = chances.mean(axis=0), 0.0, []
    for i in sorted(range(len(candidates)), key=lambda i: (candidates[i].share, -expected[i])):
        if expected[i] > best:
            best = float(expected[i])
            kept.append(i)
    return [candidates[i] for i in kept], chances[:, kept]


def _worth(saved: FloatArray, chances: FloatArray) -> float:
    """The expected saving of a ladder: rungs that save ever more, with their chances ``[draws, rungs]``."""
    standing: FloatArray = np.minimum.accumulate(chances, axis=1).mean(axis=0)
    return float(np.diff(saved, prepend=0.0) @ standing)
