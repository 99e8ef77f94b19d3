"""Constraints that cannot be met: which one binds, and by how much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from calibrate.deciding.objective import Costing
from calibrate.deciding.search import Search
from calibrate.deciding.space import Candidate, Space
from planner.errors import CalibrationError


def check_constraints(space: Space) -> None:
    """Refuse constraints that nothing meets, before anything runs.

    Raises:
        CalibrationError: naming the nearest candidate, and by how much it misses which constraint.
    """
    everyone = [one for family in space.families for one in family.members]
    if not everyone:
        engine = space.costing.objective.portable
        able = "" if engine is None else f" that {engine} can run"
        raise CalibrationError(f"no policy proposes a candidate{able} for this model", "See `plan ls policies`")
    if not any(_meets(space.costing, one) for one in chain(everyone, _pairs(space))):
        raise unmeetable(space.costing, [*everyone, *_pairs(space)], f"none of {len(space)} candidates", "")


def check_dense(looking: Search, limit: float) -> None:
    """Refuse to fall back on the dense model where that does not meet the constraints itself.

    Raises:
        CalibrationError: saying which constraint binds and by how much.
    """
    costing = looking.space.costing
    if not costing.breaches(costing.dense):
        return
    hopeful = [one for line in looking.lines for one in line.hopeful(looking.aim)]
    if not hopeful or any(_meets(costing, one) for one in hopeful):
        raise CalibrationError(
            f"what meets the constraints is not proven to lose at most {limit:g}",
            "Give more samples, relax a constraint or the limit, or take --best-effort",
        )
    what = f"no candidate that may lose as little as {limit:g}"
    raise unmeetable(costing, hopeful, what, " or the limit, or take --best-effort")


def unmeetable(costing: Costing, candidates: Sequence[Candidate], what: str, remedy: str) -> CalibrationError:
    """The error for candidates none of which meets the constraints: it names the nearest.

    Args:
        what: which candidates they are.
        remedy: what may be relaxed beside the constraint.
    """

    def farthest(one: Candidate) -> float:
        return max(breach.excess for breach in costing.breaches(one.figures))

    nearest = min(candidates, key=farthest)
    binding = "; ".join(map(str, costing.breaches(nearest.figures)))
    return CalibrationError(
        f"{what} meets the constraints: {binding} by the nearest, {nearest.name}", f"Relax the constraint{remedy}"
    )


def _pairs(space: Space) -> Iterator[Candidate]:
    """The cheapest candidates of two kinds together: what neither meets alone, both may."""
    cheapest = [family.members[0] for family in space.families]
    made = (space.together(family, fixed) for family in space.families for fixed in cheapest)
    return (family.members[0] for family in made if family is not None)


def _meets(costing: Costing, candidate: Candidate) -> bool:
    return not costing.breaches(candidate.figures)
