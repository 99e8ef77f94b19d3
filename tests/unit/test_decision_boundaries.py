"""A decision at the edge of what is allowed: agreement that falls smoothly with the budget, not all or nothing.

The fake runner's answers get worse token by token, so that some budget has exactly as many misses as the limits allow:
that one holds, on either split, and after the last trim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from calibrate.deciding.decide import ChosenPlan, decide
from calibrate.deciding.search import Limits
from calibrate.probes.stats import proportion
from calibrate.running.trial import Agreement
from planner.schedule import Schedule
from tests.unit.test_calibrate_decide import LAYERS, SPEC, profile, spaces_only  # noqa: F401

VISUAL, EXIT = 144, 7
LIMITS = Limits(agreement=0.9, confidence=0.8)
PROPOSAL, VALIDATION = 64, 192
#: Of 64 samples 6.4 may change at an agreement of 0.9.
ALLOWED_PROPOSAL = 6
#: The most of 192 with which the lower bound reaches 0.9; checked below.
ALLOWED_VALIDATION = LIMITS.misses(VALIDATION)
#: The budget of the grid that has exactly the allowed misses below.
EDGE = 20


@dataclass(frozen=True)
class Seen:
    """What a fake runner reads off a schedule; the image is gone from layer `gone` on."""

    tokens: int
    score: str
    trimmed: bool
    gone: int
    harmless: bool

    @classmethod
    def of(cls, schedule: Schedule) -> Seen:
        """Harmless: no layer is blind, and the image is there up to layer `EXIT`."""
        selects = [(stage, select) for stage in schedule.stages for select in stage.selects]
        kept = [(stage, select) for stage, select in selects if select.keep.count]
        gone = min((int(stage.last) for stage, select in selects if not select.keep.count), default=LAYERS)
        blind = any(stage.visual_attention == "self" or stage.text_to_visual != "full" for stage in schedule.stages)
        return cls(
            tokens=min((int(select.keep.count) for _, select in kept), default=VISUAL),
            score=kept[0][1].rank_by if kept else "",
            trimmed=any(stage.cache_visual == "kept" for stage, _ in kept),
            gone=gone,
            harmless=not blind and gone >= EXIT,
        )


class Graded:
    """A runner on `n` samples of which `misses(seen)` change under a harmless schedule, and all under another."""

    def __init__(
        self, n: int, misses: Callable[[Seen], int], divergence: Callable[[Seen], float] = lambda seen: 0.0
    ) -> None:
        self.n, self.misses, self.divergence = n, misses, divergence
        self.refusals: list[str] = []

    def __len__(self) -> int:
        return self.n

    def first_token(self, schedule: Schedule, misses: int | None = None) -> Agreement:
        seen = Seen.of(schedule)
        lost = min(max(self.misses(seen), 0), self.n) if seen.harmless else self.n
        return Agreement(self.n - lost, self.n, self.divergence(seen))

    def whole_answer(self, schedule: Schedule, max_new_tokens: int, misses: int | None = None) -> Agreement:
        return self.first_token(schedule, misses)


def falling(edge: int, allowed: int) -> Callable[[Seen], int]:
    """Exactly the allowed misses at `edge` tokens, one more or fewer for every two tokens."""
    return lambda seen: allowed + (edge - seen.tokens + (edge > seen.tokens)) // 2


def nothing(seen: Seen) -> int:
    return 0


def found(proposal: Graded, validation: Graded, limits: Limits = LIMITS) -> ChosenPlan:
    return decide(profile(0, EXIT), SPEC, proposal, validation, limits)  # type: ignore[arg-type]


def keeps(plan: ChosenPlan) -> Seen:
    return Seen.of(plan.schedule)


def test_the_graded_truth_meets_the_limits_at_one_budget() -> None:
    of = falling(EDGE, ALLOWED_PROPOSAL)
    misses = [of(Seen(tokens, "", False, EXIT, True)) for tokens in (14, EDGE, 29, VISUAL)]
    assert misses[0] > ALLOWED_PROPOSAL == misses[1] > misses[2] > 0 > misses[3]
    low = [proportion(VALIDATION - ALLOWED_VALIDATION - more, VALIDATION, 0.6)["low"] for more in (0, 1)]
    assert low[0] >= 0.9 > low[1], "one-sided 0.8 is two-sided 0.6"


def test_exactly_the_allowed_misses_on_the_proposal_split_are_good() -> None:
    plan = found(Graded(PROPOSAL, falling(EDGE, ALLOWED_PROPOSAL)), Graded(VALIDATION, nothing))
    assert keeps(plan).tokens == EDGE
    strict = found(Graded(PROPOSAL, falling(EDGE, ALLOWED_PROPOSAL + 1)), Graded(VALIDATION, nothing))
    assert keeps(strict).tokens == 29, "one miss more is too many"


def test_exactly_the_allowed_misses_on_the_validation_split_hold() -> None:
    plan = found(Graded(PROPOSAL, nothing), Graded(VALIDATION, falling(EDGE, ALLOWED_VALIDATION)))
    assert keeps(plan).tokens == EDGE
    assert plan.measured == proportion(VALIDATION - ALLOWED_VALIDATION, VALIDATION)
    strict = found(Graded(PROPOSAL, nothing), Graded(VALIDATION, falling(EDGE, ALLOWED_VALIDATION + 1)))
    assert keeps(strict).tokens == 29


@pytest.mark.parametrize(("more", "trims"), [(0, True), (1, False)])
def test_exactly_the_allowed_misses_after_the_trim_keep_it(more: int, trims: bool) -> None:
    """Untrimmed, one miss fewer than allowed."""

    def misses(seen: Seen) -> int:
        if seen.tokens < EDGE:
            return VALIDATION
        return ALLOWED_VALIDATION + more if seen.trimmed else ALLOWED_VALIDATION - 1

    plan = found(Graded(PROPOSAL, nothing), Graded(VALIDATION, misses))
    assert keeps(plan).tokens == EDGE and keeps(plan).trimmed == trims
    lost = ALLOWED_VALIDATION + more if trims else ALLOWED_VALIDATION - 1
    assert plan.measured == proportion(VALIDATION - lost, VALIDATION)


@pytest.mark.parametrize("better", ["influence_l2", "last_attention", "random"])
def test_a_budget_that_just_holds_is_not_remembered_as_failed(better: str) -> None:
    """Keeping everything has exactly the allowed misses: a score that is tried later may still need less."""

    def misses(seen: Seen) -> int:
        return ALLOWED_VALIDATION if seen.tokens >= (10 if seen.score == better else 40) else VALIDATION

    def divergence(seen: Seen) -> float:
        return 0.2 if seen.score == better else 0.1

    plan = found(Graded(PROPOSAL, nothing, divergence), Graded(VALIDATION, misses))
    assert (keeps(plan).score, keeps(plan).tokens, keeps(plan).gone) == (better, 10, EXIT)


@pytest.mark.parametrize("nearest", ["influence_l2", "last_attention", "random"])
def test_of_equally_cheap_candidates_the_one_that_moves_the_answers_least_is_the_plan(nearest: str) -> None:
    """All scores hold with the same budget, and what they cost differs by less than a tie."""

    def misses(seen: Seen) -> int:
        return 0 if seen.tokens >= EDGE else PROPOSAL

    def divergence(seen: Seen) -> float:
        return 0.1 if seen.score == nearest else 0.2

    plan = found(Graded(PROPOSAL, misses, divergence), Graded(VALIDATION, nothing))
    assert (keeps(plan).score, keeps(plan).tokens) == (nearest, EDGE)


def test_a_cheaper_candidate_is_the_plan_however_far_it_moves_the_answers() -> None:
    """The divergence breaks ties only: with one trial on the validation split, the cheapest gets it."""

    def misses(seen: Seen) -> int:
        return 0 if seen.tokens >= (14 if seen.score == "random" else 58) else PROPOSAL

    def divergence(seen: Seen) -> float:
        return 9.0 if seen.score == "random" else 0.1

    limits = replace(LIMITS, validation_trials=1)
    plan = found(Graded(PROPOSAL, misses, divergence), Graded(VALIDATION, nothing), limits)
    assert (keeps(plan).score, keeps(plan).tokens) == ("random", 14)
