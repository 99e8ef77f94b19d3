"""Influence proposes, measurement decides.

The calibration samples are split. On the *proposing* part the filter, exit, shallow rule and budget that influence and
the masking curves suggest are executed, alone and then together, and the cheapest combinations that still answer like
the dense model become finalists. On the *held-back* part finalists are executed in order of cost, and the first whose
agreement holds is the plan. Nothing held back is ever used to propose. If no finalist holds, the plan is dense.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from calibrate.masking import contradictions
from calibrate.search import Limits, Point, Search, Trial
from calibrate.stats import proportion
from calibrate.trial import Agreement, Bench
from planner.errors import InputError
from planner.policies import Dense, Policy
from planner.profile import Profile
from planner.schedule import Schedule
from planner.spec import ModelSpec


@dataclass(frozen=True)
class Decision:
    """The chosen policy, every trial on the way, and what a reader should know."""

    policy: Policy
    schedule: Schedule
    agreement: Agreement | None
    limits: Limits
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()

    @property
    def measured(self) -> dict[str, Any] | None:
        """The held-back agreement with its 95 % interval; None for the dense fallback."""
        return None if self.agreement is None else proportion(self.agreement.hits, self.agreement.n)


def decide(
    profile: Profile,
    spec: ModelSpec,
    proposing: Bench,
    held_back: Bench,
    limits: Limits | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Decision:
    """The cheapest candidate that agrees with the dense model on samples that did not propose it.

    Args:
        profile: of the proposing samples and then the held-back ones; of its influence rows only the former's are
            read, and its masking curves must come from them.
        progress: told about each trial.

    Raises:
        InputError: the held-back part is too small to show the agreement with the confidence.
    """
    wanted = limits or Limits()
    if wanted.misses(len(held_back)) < 0:
        raise InputError(
            f"{len(held_back)} held-back samples cannot show an agreement of {wanted.agreement:g} "
            f"with confidence {wanted.confidence:g}, even if all agree",
            "Give more samples, or ask for less",
        )
    search = Search(profile, spec, proposing, wanted, progress)
    notes = _notes(profile, wanted)
    found = _first_that_holds(search, held_back)
    if found is not None:
        point, answers = found
        return Decision(
            search.policy(point), search.schedule(point), answers, wanted, tuple(search.trials.values()), tuple(notes)
        )
    notes.append(
        f"no candidate kept {wanted.agreement:g} of the dense model's answers with confidence {wanted.confidence:g} "
        f"on {len(held_back)} held-back samples: the plan is dense"
    )
    dense = Dense()
    return Decision(dense, dense.schedule(spec), None, wanted, tuple(search.trials.values()), tuple(notes))


def _first_that_holds(search: Search, held_back: Bench) -> tuple[Point, Agreement] | None:
    """Best first: the cheapest candidate; where it fails, its next dearer neighbours join the queue."""
    limits, allowed = search.limits, search.limits.misses(len(held_back))
    queue = search.finalists()
    queued = set(queue)
    for _ in range(limits.held_back_trials):
        if not queue:
            return None
        queue.sort(key=search.order)
        point = queue.pop(0)
        trial = search.run(point)
        agreement = held_back.first_token(search.schedule(point), allowed)
        answers = None
        if agreement.misses <= allowed:
            answers = held_back.whole_answer(search.schedule(point), limits.answer_tokens)
        search.record(replace(trial, held_back=agreement, answers=answers))
        search.progress(f"held back: {trial.policy}: {agreement.hits} of {agreement.n} first answer tokens kept")
        if answers is not None and answers.misses <= allowed:
            return point, answers
        fresh = [other for other in search.dearer(point) if other not in queued and search.good(other)]
        queue += fresh
        queued.update(fresh)
    return None


def _notes(profile: Profile, limits: Limits) -> list[str]:
    if "masking" in profile.probes and "influence" in profile.probes:
        return contradictions(profile.probes["masking"], profile.probes["influence"], limits.agreement)
    return []
